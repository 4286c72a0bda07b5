"""What a grid tells while it runs: a bar on a terminal, plain lines elsewhere, and warnings."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from experiments.engine.cell_folders import read_report
from experiments.engine.provenance import commit

if TYPE_CHECKING:
    from experiments.engine.grid import Cell


class _Lines(logging.Handler):
    """Prints lines on standard error, above the bar if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        Console(stderr=True, highlight=False, markup=False).print(self.format(record), soft_wrap=True)


logger = logging.getLogger("experiments")
logger.setLevel(logging.INFO)
logger.propagate = False
logger.addHandler(_Lines())


@contextmanager
def progress(cells: "Sequence[Cell]", missing: "Sequence[Cell]", home: Path) -> "Iterator[Callable[[Cell], None]]":
    """Tell what is done already; then call what this gives for each cell that has ended."""
    tell_found(cells, missing, home)
    console = Console(stderr=True)
    shown = console.is_terminal and logger.isEnabledFor(logging.INFO)
    total, start = sum(cell.work for cell in missing), time.monotonic()
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    count, before = 0, len(cells) - len(missing)
    with Progress(*columns, console=console, disable=not shown) as bar:
        task = bar.add_task(f"{before}/{len(cells)} cells", total=total)

        def done(cell: "Cell") -> None:
            nonlocal count
            count += 1
            bar.advance(task, cell.work)
            seconds, worked = time.monotonic() - start, bar.tasks[0].completed
            rate = f"{60 * count / seconds:.1f} cells a minute"
            bar.update(task, description=f"{before + count}/{len(cells)} cells, {rate}")
            if not shown:
                left = duration(seconds * (total - worked) / worked)
                logger.info(f"[{before + count}/{len(cells)}] {cell.name} ({seconds:.0f} s, {rate}, {left} left)")

        yield done


def tell_found(cells: "Sequence[Cell]", missing: "Sequence[Cell]", home: Path) -> None:
    """Which cells are done, damaged, or of another version of the code."""
    for cell in missing:
        if (home / cell.name).exists():
            logger.warning(f"{cell.name} is damaged: it is set aside in {home.parent / 'damaged'}, and run again")
    found = {cell.name: read_report(home / cell.name)["commit"] for cell in cells if cell not in missing}
    if found:
        logger.info(f"{len(found)} of {len(cells)} cells are already done")
    for name, version in found.items():
        logger.debug(f"{name} is done, by {version}")
    if others := sum(version != commit() for version in found.values()):
        logger.warning(
            f"{others} of them by another version of the code, as their run.json tells: delete them to repeat"
        )


def duration(seconds: float) -> str:
    """`40 s`, `5 min` or `2.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
