"""A small grid for tests that kill it, and processes that begin without importing torch again."""

import os
import time
from multiprocessing import get_context
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import numpy as np
import pandas as pd

from experiments.engine.grid import Cell, Outcome, run_grid

CELLS = [Cell("toy", arm, depth, seed, {"rate": 1}) for arm in "abcd" for depth in (8, 14) for seed in range(3)]


class Slow:
    """Takes its time, and writes down which process began and ended which cell."""

    def __init__(self, seconds: float, log: Path) -> None:
        self.seconds, self.log = seconds, log

    def __call__(self, cell: Cell) -> Outcome:
        with self.log.open("a") as log:
            log.write(f"{cell.name} {os.getpid()}\n")
        time.sleep(self.seconds)
        values = np.random.default_rng([ord(cell.arm), cell.depth, cell.seed]).normal(size=100)
        return Outcome({"outcomes": pd.DataFrame({"step": range(100), "value": values})})


def run_slowly(folder: Path, seconds: float, workers: int = 1) -> None:
    """Run the grid in a folder."""
    run_grid(CELLS, Slow(seconds, folder / "log"), folder, workers=workers)


def start(target: object, *arguments: object) -> ForkServerProcess:
    """Start a process that calls `target`."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["tests.grid_script"])
    process = context.Process(target=target, args=arguments)  # type: ignore[arg-type]
    process.start()
    return process
