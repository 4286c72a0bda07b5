"""How experiments on conditions end in the terminal: outcomes, R and differences, condition by condition."""

from collections.abc import Sequence
from dataclasses import replace

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from experiments.engine.condition_scores import SCORED, Key, difference
from experiments.engine.conditions import Condition, Rates
from experiments.engine.effects import Estimate, flags
from experiments.engine.ending import show_estimate, show_outcomes
from experiments.engine.grid import Cell
from experiments.engine.score import Recovery

EXPLAINED = (
    "R = (plain - condition) / (plain - residual), of the same optimiser: 0 as bad as plain, 1 as good as residual; "
    "Fieller's 95 % interval"
)


def show_conditions(
    console: Console,
    outcomes: pd.DataFrame,
    cells: pd.DataFrame,
    conditions: Sequence[Condition],
    diverged: Sequence[Cell],
    classes: int,
) -> None:
    """Depth x condition: how each ended."""
    named = outcomes.assign(arm=outcomes["control"])
    gone = [replace(cell, arm=cell.labels["control"]) for cell in diverged]
    marks = {int(depth): flags(cells, depth, classes) for depth in sorted(outcomes["depth_total"].unique())}
    show_outcomes(console, named, [condition.name for condition in conditions], gone, marks)


def show_scores(
    console: Console,
    found: dict[Key, Recovery],
    rates: Rates,
    cells: pd.DataFrame,
    minus: Sequence[tuple[str, dict[str, str]]] = (),
) -> None:
    """Depth x condition: its learning rate, R, and further columns of differences in test accuracy.

    minus: a column's title, and the condition to subtract from each one that has such a difference.
    """
    table = Table(title="R, and differences in test accuracy, paired by seed", box=SIMPLE_HEAD, pad_edge=False)
    for column in ("", "rate", *(f"R, {outcome}" for outcome in SCORED), *(title for title, _ in minus)):
        table.add_column(column)
    for depth in dict.fromkeys(depth for _, depth, _ in found):
        table.add_row(f"depth {depth}", style="bold")
        for name in dict.fromkeys(name for name, at, _ in found if at == depth):
            recovered = [show_recovery(found[name, depth, outcome]) for outcome in SCORED]
            others = [
                show_difference(difference(cells, depth, name, less[name])) if name in less else "" for _, less in minus
            ]
            table.add_row(name, f"{rates[name, depth]:g}", *recovered, *others)
        table.add_section()
    console.print(table)
    intervals = len(found) + len(found) // len(SCORED) * len(minus)
    console.print(f"{EXPLAINED}. Not corrected for their number, at most {intervals} intervals\n")


def show_recovery(found: Recovery) -> str:
    """`0.55 [0.40, 0.70]`, or why there is none."""
    return found.note or f"{found.mean:.2f} [{found.low:.2f}, {found.high:.2f}]"


def show_difference(found: Estimate) -> str:
    """`+0.05 [+0.01, +0.09]`, the seeds' own values, or `-` where there is none."""
    return show_estimate(found, digits=3) if found.values else "-"
