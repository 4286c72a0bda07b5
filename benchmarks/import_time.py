"""How much longer does a program take to start because it imports probes?

Fresh interpreters in interleaved rounds: `import torch, pandas` alone, and with `probes`, which needs both. Seconds of
the interpreters' processor time (an import runs on one thread), after a round that compiles and fills the file cache.
The difference and the ratio are taken within a round: medians over rounds with 95 % bootstrap intervals. The bound: at
most 0.3 s more.
"""

import resource
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from rich.console import Console

from benchmarks.rounds import interleave, judged, machine, median
from experiments.engine.running.cli import run_script

ROOT = Path(__file__).parents[1]
WITHOUT, WITH = "torch, pandas", "torch, pandas, probes"
BOUND = 0.3


@dataclass(frozen=True)
class Settings:
    """Settings of the benchmark."""

    rounds: int = 20
    """Timed rounds of two interpreters; one more warms up."""
    quick: bool = False
    """Two rounds without warming up, to see it run."""


QUICK = Settings(rounds=2)


def main(settings: Settings) -> None:
    """Run the benchmark and print what it found."""
    kinds = {names: partial(start_interpreter, names) for names in (WITHOUT, WITH)}
    found = interleave(kinds, rounds=settings.rounds, warm_up=int(not settings.quick), clock=processor_time_of_children)
    more = median(found[WITH] - found[WITHOUT])
    console = Console(width=110, highlight=False, markup=False)
    for names, seconds in found.items():
        console.print(f"import {names}: {np.median(seconds):.2f} s, n = {settings.rounds} interpreters")
    console.print(f"more for probes [95 %]: {more:.3f} s; ratio {median(found[WITH] / found[WITHOUT]):.3f}")
    console.print(judged(f"at most {BOUND} s more", more, most=BOUND))
    console.print(machine())


def start_interpreter(names: str) -> None:
    """Start Python, import, and end."""
    subprocess.run([sys.executable, "-c", f"import {names}"], cwd=ROOT, check=True)


def processor_time_of_children() -> float:
    """Seconds of processor time of all processes that this one has started, and that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return children.ru_utime + children.ru_stime


if __name__ == "__main__":
    run_script("benchmarks.import_time")
