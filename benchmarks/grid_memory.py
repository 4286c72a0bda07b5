"""Does the process that leads a grid of 500 cells grow with every cell?

`run_grid` with two workers on cells that do nothing but read how much memory the leading process holds (its resident
set); a fresh leading process in every round. Its growth from the 50th to the last cell is the difference of two
medians, of the ten cells before each. Median over rounds with a 95 % bootstrap interval. The bound: at most 5 MiB.

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
from experiments.engine.command import BadInput, run_script
from experiments.engine.grid import Cell, Outcome, run_grid
from experiments.engine.workers import Workers

BEGIN = 50  # by then the workers are there, and everything has happened once
BOUND = 5.0  # MiB


@dataclass(frozen=True)
class Settings:
    """Settings of the benchmark."""

    rounds: int = 5
    """Grids, each led by a fresh process."""
    cells: int = 500
    """Cells of a grid."""
    quick: bool = False
    """Small grids, to see it run."""


QUICK = Settings(rounds=2, cells=60)


def main(settings: Settings) -> None:
    """Run the benchmark and print what it found."""
    if settings.cells <= BEGIN:
        raise BadInput(f"--cells {settings.cells}: growth is counted from cell {BEGIN}; give more")
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
        found = np.array(list(pool.map(lead, [settings.cells] * settings.rounds)))
    console = Console(width=110, highlight=False, markup=False)
    begin, end, joined = np.median(found, axis=0)
    growth, ratio = median(found[:, 1] - found[:, 0]), median(found[:, 1] / found[:, 0])
    console.print(f"resident: {begin:.1f} MiB at cell {BEGIN}, {end:.1f} at cell {settings.cells}, {joined:.1f} joined")
    console.print(f"growth [95 %]: {growth:.2f} MiB; ratio {ratio:.3f}, {settings.rounds} grids")
    console.print(judged(f"at most {BOUND:.0f} MiB", growth, most=BOUND))
    console.print(machine())


def lead(cells: int) -> tuple[float, float, float]:
    """Lead a grid; this process's MiB at cell 50, at the last one, and once all tables are joined."""
    grid = [Cell("grid_memory", "none", 1, seed, {}) for seed in range(cells)]
    with TemporaryDirectory() as folder:
        tables, _ = run_grid(grid, partial(read_memory, process=os.getpid()), Path(folder), workers=Workers(2))
        joined = resident(os.getpid())
    get_reusable_executor().shutdown()  # a process of multiprocessing waits for its children, which idle for minutes
    held = tables["memory"].sort_values("step")["value"].to_numpy()  # in the order in which they were read
    begin, end = (float(np.median(held[last - 10 : last])) for last in (BEGIN, cells))
    return begin / 1024, end / 1024, joined / 1024


def read_memory(cell: Cell, *, process: int) -> Outcome:
    """A cell that reads how much memory the process holds."""
    row = {"step": time.monotonic_ns(), "quantity": "resident", "value": resident(process)}
    return Outcome({"memory": pd.DataFrame([row])})


if __name__ == "__main__":
    run_script("benchmarks.grid_memory")
