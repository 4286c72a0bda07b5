"""Interleaved rounds in one process, and the medians they give: what the benchmarks share.

Each round takes every kind once, in a random order. What is compared is compared within a round, so that whatever slows
the machine for a while slows both sides.
"""

import csv
import os
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from scipy import stats

from experiments.engine.running.provenance import hardware


def interleave(
    kinds: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    warm_up: int = 1,
    clock: Callable[[], float] = time.process_time,
) -> dict[str, np.ndarray]:
    """Seconds of every kind in each round, after `warm_up` rounds that do not count.

    clock: processor time by default, to which other jobs do little; time.perf_counter where parallelism is measured;
    `clock_of` a device.
    """
    order = random.Random(0)
    found: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(rounds + warm_up):
        for kind in order.sample(list(kinds), len(kinds)):
            start = clock()
            kinds[kind]()
            found[kind].append(clock() - start)
    return {kind: np.array(seconds[warm_up:]) for kind, seconds in found.items()}


@dataclass(frozen=True)
class Interval:
    """A median over rounds, and its 95 % bootstrap interval."""

    median: float
    low: float
    high: float

    def __format__(self, spec: str) -> str:
        return f"{self.median:{spec}} [{self.low:{spec}}, {self.high:{spec}}]"


def median(values: np.ndarray) -> Interval:
    """The median of one value a round (two rounds least), with its interval by percentiles: the jackknife, on which
    scipy's default leans, fails for medians (Efron 1982)."""
    low, high = stats.bootstrap((values,), np.median, rng=0, method="percentile").confidence_interval
    return Interval(float(np.median(values)), float(low), float(high))


def judged(bound: str, found: Interval, *, least: float = -np.inf, most: float = np.inf) -> str:
    """The bound and whether it holds: undecided where the interval lies on both sides of it."""
    inside = [least <= end <= most for end in (found.low, found.high)]
    word = "holds" if all(inside) else "undecided" if any(inside) else "does not hold"
    return f"bound: {bound}: {word}"


def show_table(
    head: Sequence[str], rows: Iterable[Sequence[str]], console: Console, *, title: str, to: Path | None
) -> None:
    """Print a table, and write it to a CSV file if one is given, with its title above the rows' names."""
    shown, listed = Table(title=title), list(rows)
    for column in ("", *head):
        shown.add_column(column, no_wrap=True)
    for row in listed:
        shown.add_row(*row)
    console.print(shown)
    if to is not None:
        with to.open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([[title, *head], *listed])


def clock_of(device: torch.device) -> Callable[[], float]:
    """Processor time; of a GPU wall-clock time, once all that it was given is done."""
    if device.type == "cpu":
        return time.process_time

    def clock() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return clock


def machine(device: torch.device | None = None) -> str:
    """Where the numbers come from; the load tells of other jobs (it counts those that ran in the last minute)."""
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    gpu = ""
    if device is not None and device.type == "cuda":
        flags = ((torch.backends.cudnn, "convolutions"), (torch.backends.cuda.matmul, "matrix products"))
        tf32 = [f"{'TF32' if kind.allow_tf32 else 'no TF32'} in {where}" for kind, where in flags]
        gpu = f"{hardware(str(device))} ({', '.join(tf32)}), "
    return f"{gpu}{hardware('cpu')}{load}, torch {torch.__version__}"
