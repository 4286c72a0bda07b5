"""What does each measurement cost, beside one forward and backward of the same batch?

Ratios to a bare forward + backward, from interleaved rounds in one process, in a random order, on one thread: the
median over rounds with a 95 % bootstrap interval. Seconds are the process's own, so that other work on the machine
counts little. Where a price goes by a number (random vectors, outputs, batches, paths), that is in the row's name. What
is taken of a recording is timed without the recording, which has rows of its own.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor

from benchmarks.rounds import interleave, judged, machine, median, show_table
from experiments.engine.running.cli import run_script
from models import cifar_resnet
from probes import (
    Recording,
    branch_attribution,
    contributions,
    find_junctions,
    gate,
    gradient_alignment,
    gradient_correlation,
    gradient_noise,
    gradient_norms,
    iterative_inference,
    jacobian_spectrum,
    layer_responses,
    linear_probes,
    path_contributions,
    precision,
    read_out,
    record,
    residual_magnitudes,
    sample_paths,
    similarity,
    stream_statistics,
    tangent_kernel,
    update_sizes,
)


@dataclass(frozen=True)
class Settings:
    """Settings of the benchmark."""

    depth: int = 56
    """Layers of the `cifar_resnet`: (depth - 2) / 2 blocks."""
    width: int = 16
    """Channels of its first stage."""
    size: int = 32
    """Side of the images."""
    batch_size: int = 16
    """Images."""
    outputs: int = 8
    """Outputs whose tangent kernel is taken."""
    batches: int = 4
    """Batches whose gradients are compared."""
    paths: int = 10
    """Single paths that are sampled."""
    rounds: int = 5
    """Timed rounds; one more warms up."""
    to: Path | None = None
    """A CSV file for the table."""
    quick: bool = False
    """A shallow network and few rounds, to see it run."""


QUICK = Settings(depth=8, width=4, size=8, batch_size=8, outputs=2, batches=2, paths=2, rounds=2)
BOUNDS = {"recording": 1.3, "keep": 1.3, "jacobians": 30.0}


class Run:
    """One network and batch, and what is timed of it."""

    def __init__(self, settings: Settings) -> None:
        torch.manual_seed(0)
        self.settings = settings
        self.model = cifar_resnet(settings.depth, width=settings.width)
        self.images = torch.randn(settings.batch_size, 3, settings.size, settings.size)
        self.labels = torch.arange(settings.batch_size) % 3
        self.kept = self.record(keep=True)
        self.before = {name: x.detach().clone() for name, x in self.model.state_dict().items()}
        self.gradient = {name: p.grad.clone() for name, p in self.model.named_parameters() if p.grad is not None}
        self.heads = {site.name: self.model.classifier for site in self.kept.junctions if site.name[:6] == "layer3"}
        with record(self.model) as self.graph:
            self.loss(self.model(self.images)).backward(retain_graph=True)
        self.evaluated = copy.deepcopy(self.model).eval()
        self.junction = find_junctions(self.evaluated, self.images)[-1]

    def loss(self, output: Tensor) -> Tensor:
        """Of the batch's images."""
        return F.cross_entropy(output, self.labels)

    def step(self) -> None:
        """One forward and backward."""
        self.model.zero_grad()
        self.loss(self.model(self.images)).backward()

    def record(self, *, keep: bool) -> Recording:
        """A recorded forward and backward."""
        with record(self.model, keep=keep) as recording:
            self.step()
        return recording

    def recording(self) -> None:
        """A recorded step and the measurements whose sizes are taken on the way."""
        recording = self.record(keep=False)
        gradient_norms(recording)
        residual_magnitudes(recording)

    def single_paths(self) -> None:
        """Some paths of the middle length."""
        sample_paths(self.graph, lengths=[len(self.graph.junctions) // 2], samples=self.settings.paths)

    def noise(self) -> None:
        """The gradients of some batches."""
        gradient_noise(self.model, lambda model, x: self.loss(model(x)), [self.images] * self.settings.batches)

    def of_some(self, output: Tensor) -> Tensor:
        """The outputs whose tangent kernel is taken."""
        return output.flatten()[: self.settings.outputs]

    def kernel(self, *, biased: bool = False) -> None:
        """The tangent kernel of some outputs, or that of a biased backward beside it."""
        gated = partial(gate, self.model, shortcut_gradient=0.0) if biased else None
        tangent_kernel(self.model, self.images, outputs=self.of_some, biased=gated)

    def attribution(self) -> None:
        """Integrated gradients at the last junction."""
        branch_attribution(self.evaluated, [self.junction], self.images, target=0, steps=8)


def kinds(run: Run) -> dict[str, tuple[str, Callable[[], object]]]:
    """What is timed, by a short name: its row's name, and a call."""
    model, images, kept = run.model, run.images, run.kept
    outputs, batches, paths = run.settings.outputs, run.settings.batches, run.settings.paths
    spectrum = partial(jacobian_spectrum, model, images)
    return {
        "bare": ("bare forward + backward", run.step),
        "recording": ("the same in record, with gradient_norms and residual_magnitudes", run.recording),
        "keep": ("the same in record(keep=True)", lambda: run.record(keep=True)),
        "contributions": ("contributions, of a recording", lambda: contributions(kept)),
        "stream": ("stream_statistics, of a recording", lambda: stream_statistics(kept)),
        "inference": ("iterative_inference, of a recording", lambda: iterative_inference(kept)),
        "read_out": ("read_out of the last stage, of a recording", lambda: read_out(kept, run.heads, run.labels)),
        "similarity": ("similarity, of a recording", lambda: similarity(kept, kept)),
        "probes": ("linear_probes, of a recording", lambda: linear_probes(kept, run.labels)),
        "paths": ("path_contributions, of a recording", lambda: path_contributions(run.graph)),
        "parameter paths": (
            "path_contributions of parameters, of a recording",
            lambda: path_contributions(run.graph, of="parameters"),
        ),
        "single paths": (f"sample_paths, {paths} paths of one length, of a recording", run.single_paths),
        "jacobians": ("jacobian_spectrum, blocks, 32 vectors", spectrum),
        "stages": ("jacobian_spectrum, stages, 32 vectors", lambda: spectrum(of="stages")),
        "whole": ("jacobian_spectrum, stream, 32 vectors", lambda: spectrum(of="stream")),
        "correlation": ("gradient_correlation", lambda: gradient_correlation(model, images)),
        "noise": (f"gradient_noise, {batches} batches", run.noise),
        "precision": ("precision", lambda: precision(model, images, loss=run.loss)),
        "kernel": (f"tangent_kernel, {outputs} outputs", run.kernel),
        "biased": (f"tangent_kernel, {outputs} outputs, biased", lambda: run.kernel(biased=True)),
        "alignment": ("gradient_alignment", lambda: gradient_alignment(run.gradient, run.gradient)),
        "updates": ("update_sizes", lambda: update_sizes(model, run.before, images)),
        "responses": ("layer_responses", lambda: layer_responses(model, images)),
        "attribution": ("branch_attribution, the last junction, 8 steps", run.attribution),
    }


def main(settings: Settings) -> None:
    """Run the benchmark and print its table."""
    torch.set_num_threads(1)
    console = Console(width=120)
    timed = kinds(Run(settings))
    found = interleave({kind: call for kind, (_, call) in timed.items()}, rounds=settings.rounds)
    ratios = {kind: median(seconds / found["bare"]) for kind, seconds in found.items()}
    title = (
        f"cifar_resnet({settings.depth}, width={settings.width}), batch {settings.batch_size}, "
        f"{settings.size} x {settings.size}, {settings.rounds} rounds"
    )
    rows = [
        (name, f"{1000 * median(found[kind]).median:.0f}", f"{ratios[kind]:.2f}") for kind, (name, _) in timed.items()
    ]
    show_table(("milliseconds", "ratio to bare [95 %]"), rows, console, title=title, to=settings.to)
    for kind, most in BOUNDS.items():
        console.print(judged(f"{timed[kind][0]}: at most {most:g} x", ratios[kind], most=most))
    console.print(machine())


if __name__ == "__main__":
    run_script("benchmarks.measurements")
