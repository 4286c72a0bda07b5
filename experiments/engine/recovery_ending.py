"""How comparisons with ordinary training are shown in the terminal."""

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from experiments.engine.ending import show_estimate
from experiments.engine.recovery import DEFINITION, MARGINS, Comparison


def show_changes(console: Console, comparisons: Sequence[Comparison], *, where: str = "") -> None:
    """Each of them against ordinary training. where: of the title, as " at depth 56"."""
    title = f"Change from ordinary training{where}: mean [95 % t interval], paired by seed"
    table = Table(title=title, box=SIMPLE_HEAD, pad_edge=False)
    for column in ("", *MARGINS, "n", "ordinary training is"):
        table.add_column(column)
    for found in comparisons:
        changes = [show_estimate(found.changes[outcome], digits=3) if found.changes else "-" for outcome in MARGINS]
        table.add_row(found.arm, *changes, str(found.pairs), found.verdict)
    console.print(table)
    console.print(f"{DEFINITION}.\nIntervals are not corrected for their number\n")
