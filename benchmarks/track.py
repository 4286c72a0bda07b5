"""What does it cost to track a training? Ratios to the bare training step, from interleaved rounds in one process.

Each round times one training step (forward, backward, SGD) of every kind, in a random order, on one thread, in seconds
of processor time: bare; *recorded*, with norms and magnitudes written to a new CSV; *counted*, inside the context where
the step is not one to record. At every k-th step it costs (recorded + (k - 1) counted) / k. The table gives medians
over rounds with 95 % bootstrap intervals.
"""

import tempfile
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.overhead import NETWORKS, Step
from benchmarks.rounds import clock_of, interleave, judged, machine, median
from experiments.engine.running.cli import run_script
from experiments.engine.running.messages import check_choice
from experiments.engine.running.workers import check_device
from probes import track

MOST = {1: 1.12, 16: 1.02}
"""What each interval may cost, beside a bare step."""


@dataclass(frozen=True)
class Settings:
    """Settings of the benchmark."""

    rounds: int = 20
    """Timed rounds a network; two more warm up."""
    batch_size: int = 128
    """Images a step."""
    networks: tuple[str, ...] = tuple(NETWORKS)
    """Which of the networks."""
    device: str = "cpu"
    """cpu, cuda, cuda:1."""
    quick: bool = False
    """A few rounds of the smallest network, to see it run."""


QUICK = Settings(rounds=3, batch_size=32, networks=("cifar_resnet(56, width=8), 8 x 8",))


def times(network: str, settings: Settings, device: torch.device, folder: Path) -> dict[str, np.ndarray]:
    """Seconds of each kind of step in each round."""
    step, files = Step(network, settings.batch_size, device), count()

    def recorded() -> None:
        with track(step.model, every=2, to=folder / f"{next(files)}.csv"):  # the step after it is not to record
            step.bare()

    def counted() -> None:
        with track(step.model, every=3, start=1, to=folder / f"{next(files)}.csv"):
            step.bare()

    kinds = {"bare": step.bare, "recorded": recorded, "counted": counted}
    return interleave(kinds, rounds=settings.rounds, warm_up=2, clock=clock_of(device))


def main(settings: Settings) -> None:
    """Run the benchmark and print its table."""
    for network in settings.networks:
        check_choice("--networks", network, tuple(NETWORKS))
    device = check_device(settings.device)
    torch.set_num_threads(1)
    console = Console(width=110)
    table = Table(title=f"batch {settings.batch_size}, {settings.rounds} rounds")
    for column in ("", "bare step", *(f"every {k}" for k in MOST), "counted alone"):
        table.add_column(column)
    bounds = []
    with tempfile.TemporaryDirectory() as folder:
        for index, network in enumerate(settings.networks):
            (inside := Path(folder) / str(index)).mkdir()
            found = times(network, settings, device, inside)
            bare = found["bare"]
            recorded, counted = found["recorded"] / bare, found["counted"] / bare
            every = {k: median((recorded + (k - 1) * counted) / k) for k in MOST}
            cells = [f"{np.median(bare) * 1e3:.1f} ms", *(f"{found:.3f}" for found in every.values())]
            table.add_row(network, *cells, f"{median(counted):.3f}")
            bounds += [judged(f"{network}, every {k}, {MOST[k]}", every[k], most=MOST[k]) for k in MOST]
    console.print(table)
    console.print("\n".join(bounds))
    console.print(machine(device))


if __name__ == "__main__":
    run_script("benchmarks.track")
