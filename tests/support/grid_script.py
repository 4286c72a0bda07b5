"""A small grid for tests that kill it, and processes that begin without importing torch again."""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from threading import Timer

import numpy as np
import pandas as pd
from torch import nn

from experiments.engine.running import checkpoints
from experiments.engine.running.grid import run_grid
from experiments.engine.running.output import Output
from experiments.engine.running.run import Outcome, Run
from experiments.engine.running.workers import Execution
from experiments.engine.training.data import Batches, Data, load
from experiments.engine.training.optimisation import Training
from experiments.engine.training.settings import NetworkSettings
from experiments.engine.training.train_run import train_run


@dataclass(frozen=True)
class Toy:
    """A recipe."""

    rate: float = 1
    device: str = "cpu"


RUNS = [Run("toy", arm, depth, seed, Toy()) for arm in "abcd" for depth in (8, 14) for seed in range(3)]
NAMES = {run.name for run in RUNS}
ONE = Execution(1)


class Life:
    """Ends this process by SIGKILL, so many seconds after so many steps: however busy the machine, it gets that far."""

    def __init__(self, steps: int, seconds: float) -> None:
        self.steps, self.seconds = steps, seconds

    def step(self) -> None:
        self.steps -= 1
        if self.steps == 0:
            timer = Timer(self.seconds, os.kill, (os.getpid(), signal.SIGKILL))
            timer.daemon = True
            timer.start()


class Slow:
    """Takes its time, and writes down which process began which run."""

    def __init__(self, seconds: float, log: Path, life: Life | None = None) -> None:
        self.seconds, self.log, self.life = seconds, log, life

    def __call__(self, run: Run, checkpoint: Path) -> Outcome:
        if self.life:
            self.life.step()
        with self.log.open("a") as log:
            log.write(f"{run.name} {os.getpid()}\n")
        time.sleep(self.seconds)
        values = np.random.default_rng([ord(run.arm), run.depth, run.seed]).normal(size=100)
        return Outcome({"outcomes": pd.DataFrame({"step": range(100), "value": values})})


def run_slowly(folder: Path, seconds: float, *, execution: Execution = ONE, life: Life | None = None) -> None:
    """Run the grid in a folder; a step of life is a run."""
    run_grid(RUNS, Slow(seconds, folder / "log", life), Output(folder), execution=execution)


def train_networks(folder: Path, epochs: int, *, life: Life | None = None) -> None:
    """Train two small networks, one of which drops values by torch's own random state, and write down each epoch, which
    is a step of life."""
    checkpoints.EVERY = 0
    data = load(Data(train_limit=256))

    def measure(model: nn.Module, batches: Batches, epoch: int, last: bool) -> dict[str, pd.DataFrame]:
        with (folder / "log").open("a") as log:
            log.write(f"{epoch}\n")
        if life:
            life.step()
        return {"sums": pd.DataFrame({"value": [sum(p.double().sum().item() for p in model.parameters())]})}

    runs = [
        run
        for network in ("resnet", "dropout-shortcut")
        for run in NetworkSettings(network=network, width=2, seeds=(0,), training=Training(epochs=epochs)).runs(
            "toy", data, arms=("residual",), depths=(8,), outputs=("sums",)
        )
    ]
    run_grid(runs, partial(train_run, dataset=data, measure=measure), Output(folder), execution=ONE)


def start(target: object, *arguments: object, **options: object) -> ForkServerProcess:
    """Start a process that calls `target`."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["tests.support.grid_script"])
    process = context.Process(target=target, args=arguments, kwargs=options)  # type: ignore[arg-type]
    process.start()
    return process


def finished(folder: Path) -> set[str]:
    return {path.parent.name for path in (folder / "runs").glob("[!.]*/run.json")}


def ran(folder: Path) -> list[str]:
    """The runs that were begun, by name, in order."""
    return [line.split()[0] for line in (folder / "log").read_text().splitlines()]


def wait_until(condition: Callable[[], object], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
