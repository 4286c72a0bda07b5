"""What a dry run tells: the cells of a grid, which of them are done, and how long the others may take."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from experiments.engine.cell_folders import read_report
from experiments.engine.progress import duration

if TYPE_CHECKING:
    from experiments.engine.grid import Cell

LIKE = ("network", "width", "data", "device", "batch_size")
"""The settings in which cells are alike that take the same time a layer and epoch."""


def show_plan(cells: "Sequence[Cell]", missing: "Sequence[Cell]", home: Path, *, at_once: int, then: str) -> None:
    """Print a line for each cell, and what is to be expected."""
    console = Console(highlight=False, markup=False)
    for cell in cells:
        console.print(f"{'to do' if cell in missing else 'done '} {cell.name}", soft_wrap=True)
    said = [f"{len(missing)} of {len(cells)} cells to do", *([estimate(missing, home, at_once)] if missing else [])]
    console.print("; ".join(said), soft_wrap=True)
    if then and missing:
        console.print(f"then: {then}")


def estimate(missing: "Sequence[Cell]", home: Path, at_once: int) -> str:
    """How long the cells may take, by the finished cells of their store that are like them.

    Time grows with layers and epochs: a cell takes the like cells' seconds a layer and epoch, times its own.
    """
    spent = seconds_by_likeness(home)
    known = [cell for cell in missing if likeness(cell.settings) in spent]
    unknown = len(missing) - len(known)
    if not known:
        return "how long is not known, since no finished cell here is like them"
    each = [cell.work * spent[likeness(cell.settings)] for cell in known]
    time = duration(max(sum(each) / at_once, max(each)))
    return f"about {time} with {at_once} at once" + f", and {unknown} of which nothing is known" * bool(unknown)


def seconds_by_likeness(home: Path) -> dict[str, float]:
    """The mean seconds a layer and epoch of a store's finished cells, by what makes them alike."""
    sums: dict[str, list[float]] = {}
    for file in home.glob("[!.]*/run.json"):
        try:
            report = read_report(file.parent)
            settings, seconds = report["cell"]["settings"], float(report["wall_seconds"])
            work = report["cell"]["depth"] * settings.get("epochs", 1)
        except (ValueError, TypeError, KeyError):  # damaged
            continue
        of_these = sums.setdefault(likeness(settings), [0.0, 0.0])
        of_these[0] += seconds
        of_these[1] += work
    return {key: seconds / work for key, (seconds, work) in sums.items()}


def likeness(settings: dict[str, object]) -> str:
    """What makes cells alike, as one string."""
    return json.dumps([settings.get(name) for name in LIKE], default=str)
