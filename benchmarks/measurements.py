"""What does each measurement cost, beside one forward and backward of the same batch?

Ratios to a bare forward + backward, from interleaved rounds in one process, in a random order, on one thread: the
median over rounds with a 95 % bootstrap interval. Seconds are the process's own, so that other work on the machine
counts little. Where a price goes by a number (random vectors, outputs, batches), that is in the row's name.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks.rounds import interleave, judged, machine, median
from experiments.engine.running.cli import run_script
from models import cifar_resnet
from probes import (
    Recording,
    gate,
    gradient_correlation,
    gradient_noise,
    gradient_norms,
    jacobian_spectrum,
    linear_probes,
    precision,
    record,
    residual_magnitudes,
    similarity,
    tangent_kernel,
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
    rounds: int = 5
    """Timed rounds; one more warms up."""
    quick: bool = False
    """A shallow network and few rounds, to see it run."""


QUICK = Settings(depth=8, width=4, size=8, batch_size=8, outputs=2, batches=2, rounds=2)
BOUNDS = {"recording": 1.3, "jacobians": 30.0}


class Run:
    """One network and batch, and what is timed of it."""

    def __init__(self, settings: Settings) -> None:
        torch.manual_seed(0)
        self.settings = settings
        self.model = cifar_resnet(settings.depth, width=settings.width)
        self.images = torch.randn(settings.batch_size, 3, settings.size, settings.size)
        self.labels = torch.arange(settings.batch_size) % 3
        self.kept = self.record(keep=True)

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

    def noise(self) -> None:
        """The gradients of some batches."""
        gradient_noise(self.model, lambda model, x: self.loss(model(x)), [self.images] * self.settings.batches)

    def of_some(self, output: Tensor) -> Tensor:
        """The outputs whose tangent kernel is taken."""
        return output.flatten()[: self.settings.outputs]

    def kernel(self) -> None:
        """The tangent kernel of some outputs."""
        tangent_kernel(self.model, self.images, outputs=self.of_some)

    def biased_kernel(self) -> None:
        """That of a biased backward."""
        biased = partial(gate, self.model, shortcut_gradient=0.0)
        tangent_kernel(self.model, self.images, outputs=self.of_some, biased=biased)


def kinds(run: Run) -> dict[str, tuple[str, Callable[[], object]]]:
    """What is timed, by a short name: its row's name, and a call."""
    model: nn.Module = run.model
    outputs, batches = run.settings.outputs, run.settings.batches
    return {
        "bare": ("bare forward + backward", run.step),
        "recording": ("the same in record, with gradient_norms and residual_magnitudes", run.recording),
        "keep": ("the same in record(keep=True)", lambda: run.record(keep=True)),
        "jacobians": ("jacobian_spectrum, blocks, 32 vectors", lambda: jacobian_spectrum(model, run.images)),
        "correlation": ("gradient_correlation", lambda: gradient_correlation(model, run.images)),
        "noise": (f"gradient_noise, {batches} batches", run.noise),
        "precision": ("precision", lambda: precision(model, run.images, loss=run.loss)),
        "similarity": ("similarity, of a recording", lambda: similarity(run.kept, run.kept)),
        "probes": ("linear_probes, of a recording", lambda: linear_probes(run.kept, run.labels)),
        "kernel": (f"tangent_kernel, {outputs} outputs", run.kernel),
        "biased": (f"tangent_kernel, {outputs} outputs, biased", run.biased_kernel),
    }


def main(settings: Settings) -> None:
    """Run the benchmark and print its table."""
    torch.set_num_threads(1)
    console = Console(width=110)
    timed = kinds(Run(settings))
    found = interleave({kind: call for kind, (_, call) in timed.items()}, rounds=settings.rounds)
    table = Table(
        title=f"cifar_resnet({settings.depth}, width={settings.width}), batch {settings.batch_size}, "
        f"{settings.size} x {settings.size}, {settings.rounds} rounds"
    )
    for column in ("", "milliseconds", "ratio to bare [95 %]"):
        table.add_column(column, no_wrap=True)
    ratios = {kind: median(seconds / found["bare"]) for kind, seconds in found.items()}
    for kind, (name, _) in timed.items():
        table.add_row(name, f"{1000 * median(found[kind]).median:.0f}", f"{ratios[kind]:.2f}")
    console.print(table)
    for kind, most in BOUNDS.items():
        console.print(judged(f"{timed[kind][0]}: at most {most:g} x", ratios[kind], most=most))
    console.print(machine())


if __name__ == "__main__":
    run_script("benchmarks.measurements")
