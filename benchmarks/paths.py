"""What does the exact path spectrum cost, and what would sampling paths cost instead?

`path_gradients` of a recorded network, at the first fork and at all parameters, as the ratio to one bare forward +
backward of the same batch: interleaved rounds in one process, in a random order, on one thread; the median over rounds
with a 95 % bootstrap interval. Recording (with the graph retained) is a row of its own. Seconds are the process's own,
so that other work on the machine counts little.

Another quantity, never on one scale with it: the mean norm of single paths (Veit et al. 2016). Its time is
extrapolated: some paths of each length are walked, which gives seconds a path and the coefficient of variation c of
their norms; a standard error of e then takes (c / e)² paths of that length, or all C(L, k) where there are fewer.

Memory is the peak of the process's resident set less what it has once all is imported, each kind in a process of its
own.
"""

import math
import multiprocessing
import time
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table

from benchmarks.resident import highest_resident
from benchmarks.rounds import interleave, machine, median
from experiments.engine.running.cli import run_script
from models import cifar_resnet
from probes import Recording, path_gradients, record, sample_paths


@dataclass(frozen=True)
class Settings:
    """Settings of the benchmark."""

    depth: int = 110
    """Layers of the `cifar_resnet`: (depth - 2) / 2 blocks."""
    width: int = 16
    """Channels of its first stage."""
    size: int = 32
    """Side of the images."""
    batch_size: int = 16
    """Images."""
    rounds: int = 9
    """Timed rounds; one more warms up."""
    samples: int = 10
    """Paths walked of each length."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Choices of the paths; each gives an estimate of the sampler's time."""
    error: float = 0.05
    """Standard error that the sampler is to reach, relative to the mean, at every length."""
    quick: bool = False
    """A shallow network and few rounds, to see it run."""


QUICK = Settings(depth=20, width=4, size=8, rounds=3, samples=3)


class Run:
    """One network and batch, and what is timed of it."""

    def __init__(self, settings: Settings) -> None:
        torch.manual_seed(0)
        self.model = cifar_resnet(settings.depth, width=settings.width)
        self.images = torch.randn(settings.batch_size, 3, settings.size, settings.size)
        self.labels = torch.randint(10, (settings.batch_size,))

    @cached_property
    def recording(self) -> Recording:
        """What the spectra are taken of; the bare step does without."""
        return self.recorded()

    def bare(self) -> None:
        """One forward and backward: what the others are compared with."""
        self.model.zero_grad()
        F.cross_entropy(self.model(self.images), self.labels).backward()

    def recorded(self) -> Recording:
        """The same inside `record`, its graph retained."""
        self.model.zero_grad()
        with record(self.model) as recording:
            F.cross_entropy(self.model(self.images), self.labels).backward(retain_graph=True)
        return recording

    def inputs(self) -> None:
        """The exact spectrum of the gradient at the first fork."""
        path_gradients(self.recording)

    def parameters(self) -> None:
        """The exact spectrum of every parameter's gradient."""
        path_gradients(self.recording, of="parameters")

    def sampler(self) -> None:
        """Two sampled paths of a few lengths."""
        length = len(self.recording.junctions)
        sample_paths(self.recording, lengths=[length // 4, length // 2], samples=2)


KINDS = {
    "bare": "bare forward + backward",
    "recorded": "the same, recorded, graph retained",
    "inputs": "path_gradients, at the first fork",
    "parameters": 'path_gradients, of="parameters"',
    "sampler": "sample_paths",
}
TIMED = ("bare", "recorded", "inputs", "parameters")


def times(settings: Settings) -> dict[str, np.ndarray]:
    """Seconds of each kind in each round."""
    run = Run(settings)
    run.inputs()  # makes the recording
    return interleave({kind: getattr(run, kind) for kind in TIMED}, rounds=settings.rounds)


def peak_memory(settings: Settings, kind: str) -> int:
    """How much the highest resident set grows by doing one kind twice, in kilobytes; run in a fresh process."""
    torch.set_num_threads(1)
    before, run = highest_resident(), Run(settings)
    for _ in range(2):
        getattr(run, kind)()
    return highest_resident() - before


def sampling(recording: Recording, settings: Settings, seed: int) -> tuple[float, float, float]:
    """Extrapolated seconds for the wanted standard error at every length, paths for it, and the largest variation."""
    junctions, seconds, paths, widest = len(recording.junctions), 0.0, 0.0, 0.0
    for length in range(junctions + 1):
        start = time.process_time()
        table = sample_paths(recording, lengths=[length], samples=settings.samples, seed=seed)
        took = time.process_time() - start
        value = table.set_index("quantity")["value"]
        error = (value["path_norm_high"] - value["path_norm"]) / 1.96
        variation = error / value["path_norm"] * math.sqrt(value["samples"])
        count = math.comb(junctions, length)
        exact = count <= settings.samples  # all of them were walked: no error is left
        needed = count if exact else min(max(1.0, (variation / settings.error) ** 2), count)
        paths, widest = paths + needed, max(widest, variation)
        seconds += needed * took / value["samples"]
    return seconds, paths, widest


def main(settings: Settings) -> None:
    """Run the benchmark and print its tables."""
    torch.set_num_threads(1)
    console = Console(width=110)
    found = times(settings)
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        peak = {kind: pool.apply(peak_memory, (settings, kind)) for kind in KINDS}
    show_exact(console, settings, found, peak)
    recording = Run(settings).recording
    show_sampled(console, settings, [sampling(recording, settings, seed) for seed in settings.seeds], found, peak)
    console.print(machine())


def show_exact(console: Console, settings: Settings, found: dict[str, np.ndarray], peak: dict[str, int]) -> None:
    """Seconds, ratios with intervals, and memory, of what is exact."""
    title = f"Exact: cifar_resnet({settings.depth}, width={settings.width}), batch {settings.batch_size}, "
    table = Table(title=title + f"{settings.size} x {settings.size}, {settings.rounds} rounds")
    for column in ("", "seconds", "ratio to bare [95 %]", "peak memory, MiB", "ratio"):
        table.add_column(column, no_wrap=True)
    for kind in TIMED:
        ratios = found[kind] / found["bare"]
        table.add_row(
            KINDS[kind],
            f"{np.median(found[kind]):.2f}",
            f"{median(ratios):.2f}",
            *memory(kind, peak),
        )
    console.print(table)


def show_sampled(
    console: Console,
    settings: Settings,
    estimates: list[tuple[float, float, float]],
    found: dict[str, np.ndarray],
    peak: dict[str, int],
) -> None:
    """What the sampler would need for its own, other quantity."""
    seconds, paths, variation = (sorted(column) for column in zip(*estimates, strict=True))
    console.print(
        f"Another quantity, the mean norm of single paths (Veit et al. 2016), to a standard error of "
        f"{settings.error:.0%} at each of {(settings.depth - 2) // 2 + 1} lengths: {span(seconds)} s, "
        f"{span([s / float(np.median(found['bare'])) for s in seconds])} times the bare step, for {span(paths)} paths. "
        f"Extrapolated from {settings.samples} paths a length (median and range over {len(estimates)} choices of "
        f"paths; largest coefficient of variation {variation[-1]:.2g}). Peak memory: "
        f"{' MiB, '.join(memory('sampler', peak))} times the bare step's."
    )


def span(values: list[float]) -> str:
    """`120 (100 to 150)`: median and range."""
    return f"{np.median(values):.0f} ({values[0]:.0f} to {values[-1]:.0f})"


def memory(kind: str, peak: dict[str, int]) -> tuple[str, str]:
    """Peak memory in MiB, and as a ratio to the bare step's."""
    return f"{peak[kind] / 1024:.0f}", f"{peak[kind] / peak['bare']:.2f}"


if __name__ == "__main__":
    run_script("benchmarks.paths")
