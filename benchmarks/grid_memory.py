"""Does the process that leads a grid of 500 runs grow with every run?

`run_grid` with two workers on runs that do nothing but read how much memory the leading process holds (its resident
set); a fresh leading process in every round. Its growth from the 50th to the last run is the difference of two
medians, of the ten runs before each. Median over rounds with a 95 % bootstrap interval. The bound: at most 5 MiB.

Joining all tables at the end takes memory by the size of the tables: told apart. Needs Linux.
"""

import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
from joblib.externals.loky import get_reusable_executor
from rich.console import Console

from benchmarks.resident import resident
from benchmarks.rounds import judged, machine, median
from experiments.engine.running.cli import run_script
from experiments.engine.running.grid import run_grid
from experiments.engine.running.messages import BadInput
from experiments.engine.running.output import Output
from experiments.engine.running.run import Outcome, Run
from experiments.engine.running.workers import Execution

BEGIN = 50  # by then the workers are there, and everything has happened once
BOUND = 5.0  # MiB


@dataclass(frozen=True)
class Settings:
    """Settings of the benchmark."""

    rounds: int = 5
    """Grids, each led by a fresh process."""
    runs: int = 500
    """Runs of a grid."""
    quick: bool = False
    """Small grids, to see it run."""


QUICK = Settings(rounds=2, runs=60)


def main(settings: Settings) -> None:
    """Run the benchmark and print what it found."""
    if settings.runs <= BEGIN:
        raise BadInput(f"--runs {settings.runs}: growth is counted from run {BEGIN}; give more")
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
        found = np.array(list(pool.map(lead, [settings.runs] * settings.rounds)))
    console = Console(width=110, highlight=False, markup=False)
    begin, end, joined = np.median(found, axis=0)
    growth, ratio = median(found[:, 1] - found[:, 0]), median(found[:, 1] / found[:, 0])
    console.print(f"resident: {begin:.1f} MiB at run {BEGIN}, {end:.1f} at run {settings.runs}, {joined:.1f} joined")
    console.print(f"growth [95 %]: {growth:.2f} MiB; ratio {ratio:.3f}, {settings.rounds} grids")
    console.print(judged(f"at most {BOUND:.0f} MiB", growth, most=BOUND))
    console.print(machine())


@dataclass(frozen=True)
class Nothing:
    """A recipe that says nothing but the device."""

    device: str = "cpu"


def lead(runs: int) -> tuple[float, float, float]:
    """Lead a grid; this process's MiB at run 50, at the last one, and once all tables are joined."""
    grid = [Run("grid_memory", "none", 1, seed, Nothing()) for seed in range(runs)]
    with TemporaryDirectory() as folder:
        tables, _ = run_grid(
            grid, partial(read_memory, process=os.getpid()), Output(Path(folder)), execution=Execution(2)
        )
        joined = resident(os.getpid())
    get_reusable_executor().shutdown()  # a process of multiprocessing waits for its children, which idle for minutes
    held = tables["memory"].sort_values("step")["value"].to_numpy()  # in the order in which they were read
    begin, end = (float(np.median(held[last - 10 : last])) for last in (BEGIN, runs))
    return begin / 1024, end / 1024, joined / 1024


def read_memory(run: Run, checkpoint: Path, *, process: int) -> Outcome:
    """A run that reads how much memory the process holds."""
    row = {"step": time.monotonic_ns(), "quantity": "resident", "value": resident(process)}
    return Outcome({"memory": pd.DataFrame([row])})


if __name__ == "__main__":
    run_script("benchmarks.grid_memory")
