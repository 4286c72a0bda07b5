"""How many more runs an hour do two workers finish than one?

`run_grid` on runs that train `cifar_resnet` on the digits, some seconds each, with one and with two workers of one
thread, in interleaved rounds, each into an empty folder. Wall time, since parallelism is measured: other jobs disturb
it. A round before the timed ones starts the workers, which the grids of one process share where they can. The ratio of
runs an hour is taken within a round: median over rounds with a 95 % bootstrap interval. The bound: two workers finish
at least 1.6 times the runs of one. It needs two cores.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from rich.console import Console

from benchmarks.rounds import interleave, judged, machine, median
from experiments.engine.running.cli import run_script
from experiments.engine.running.grid import run_grid
from experiments.engine.running.output import Output
from experiments.engine.running.run import Run
from experiments.engine.running.workers import Execution
from experiments.engine.training.data import Data, Dataset, load
from experiments.engine.training.optimisation import Training
from experiments.engine.training.settings import NetworkSettings
from experiments.engine.training.train_run import train_run

BOUND = 1.6


@dataclass(frozen=True)
class Settings:
    """Settings of the benchmark."""

    rounds: int = 6
    """Timed rounds of two grids; one more warms up."""
    runs: int = 4
    """Runs of a grid: an even number, or one worker waits at the end."""
    depth: int = 20
    """Layers of the network, 6n + 2."""
    epochs: int = 10
    """Passes through the training images."""
    quick: bool = False
    """Few and short runs, to see it run: the workers' idle moments weigh too much."""


QUICK = Settings(rounds=2, runs=2, depth=8, epochs=1)


def main(settings: Settings) -> None:
    """Run the benchmark and print what it found."""
    dataset, training = load(Data()), Training(epochs=settings.epochs)
    whole = NetworkSettings(seeds=tuple(range(settings.runs)), training=training)
    runs = whole.runs("grid_workers", dataset, arms=["residual"], depths=[settings.depth])
    kinds = {str(workers): partial(run_all, runs, dataset, workers=workers) for workers in (1, 2)}
    found = interleave(kinds, rounds=settings.rounds, clock=time.perf_counter)
    console = Console(width=110, highlight=False, markup=False)
    for workers, seconds in found.items():
        console.print(f"workers: {workers}; {3600 * len(runs) / np.median(seconds):,.0f} runs an hour")
    ratio = median(found["1"] / found["2"])
    console.print(f"ratio, two workers to one [95 %]: {ratio:.2f}, {settings.rounds} rounds of {len(runs)} runs")
    console.print(judged(f"at least {BOUND} times the runs an hour", ratio, least=BOUND))
    console.print(machine())


def run_all(runs: Sequence[Run], dataset: Dataset, *, workers: int) -> None:
    """Run every run anew."""
    with TemporaryDirectory() as folder:
        task = partial(train_run, dataset=dataset)
        run_grid(runs, task, Output(Path(folder)), execution=Execution(workers))


if __name__ == "__main__":
    run_script("benchmarks.grid_workers")
