"""How experiments on conditions end in the terminal: outcomes, R and differences, condition by condition."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from experiments.engine.condition_scores import NONE, SCORED, Key, difference
from experiments.engine.conditions import Condition, Rates
from experiments.engine.effects import flags
from experiments.engine.ending import show_estimate, show_outcomes
from experiments.engine.grid import Cell
from experiments.engine.score import Recovery, coverage

TRUE, RUNS = 0.5, 1000  # the R of simulated runs, and their number
EXPLAINED = (
    "R = (plain - condition) / (plain - residual), of the same optimiser: 0 as bad as plain, 1 as good as residual; "
    "Fieller's 95 % interval"
)

SEARCHED = "Learning rates are the best of the search, as tuning/tuning.csv tells: change another setting."


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
    depths = {*outcomes["depth_total"].tolist(), *(cell.depth for cell in diverged)}
    marks = {depth: flags(cells, depth, classes) for depth in sorted(depths)}
    show_outcomes(console, named, [condition.name for condition in conditions], gone, marks)


def show_scores(console: Console, found: dict[Key, Recovery], rates: Rates) -> None:
    """Depth x condition: its learning rate, and R."""
    table = Table(title="How much of the gap between plain and residual is closed", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("", no_wrap=True)
    for column in ("rate", *(f"R, {outcome}" for outcome in SCORED)):
        table.add_column(column)
    for depth in dict.fromkeys(depth for _, depth, _ in found):
        table.add_row(f"depth {depth}", style="bold")
        for name in dict.fromkeys(name for name, at, _ in found if at == depth):
            recovered = [show_recovery(found[name, depth, outcome]) for outcome in SCORED]
            table.add_row(name, f"{rates[name, depth]:g}", *recovered)
        table.add_section()
    console.print(table)
    counts = sorted({len(each.gap.values) for each in found.values() if not each.note})
    covers = (f"{100 * coverage(n, true=TRUE, runs=RUNS):.1f} % at n = {n}" for n in counts)
    simulated = f". Of {RUNS} simulated runs it holds the known R, {TRUE}, in {', '.join(covers)}" * bool(counts)
    console.print(f"{EXPLAINED}{simulated}. Not corrected for their number, at most {len(found)}\n")


def show_differences(
    console: Console, cells: pd.DataFrame, depths: Sequence[int], minus: Mapping[str, Mapping[str, str]]
) -> None:
    """Depth x condition: differences in test accuracy.

    minus: by a column's title, the condition to subtract from each one that has such a difference.
    """
    table = Table(title="Differences in test accuracy, paired by seed", box=SIMPLE_HEAD, pad_edge=False)
    for column in ("", *minus):
        table.add_column(column, no_wrap=True)
    for depth in depths:
        table.add_row(f"depth {depth}", style="bold")
        for name in dict.fromkeys(name for less in minus.values() for name in less):
            shown = (show_difference(cells, depth, name, less.get(name)) for less in minus.values())
            table.add_row(name, *shown)
        table.add_section()
    console.print(table)
    count = len(depths) * sum(more != other for less in minus.values() for more, other in less.items())
    console.print(
        f"mean [95 % t interval], (seeds' values) where there is none; not corrected for their number, {count}\n"
    )


def show_alignment(console: Console, alignment: pd.DataFrame, conditions: Sequence[Condition], depth: int) -> None:
    """What the controls make of the gradient, on one batch: the range over blocks of the means over seeds."""
    rows = alignment[alignment["depth_total"] == depth]
    table = Table(
        title=f"Update against true gradient at depth {depth}: from block to block", box=SIMPLE_HEAD, pad_edge=False
    )
    moments = {"at first": rows["epoch"].min(), "at last": rows["epoch"].max()}
    table.add_column("", no_wrap=True)
    for word in moments:
        table.add_column(f"cosine, {word}")
        table.add_column(f"norm ratio, {word}")
    for condition in conditions:
        of_it = rows[rows["control"] == condition.name]
        ranges = [
            block_range(of_it[(of_it["epoch"] == epoch) & (of_it["quantity"] == quantity)])
            for epoch in moments.values()
            for quantity in ("cosine", "norm ratio")
        ]
        table.add_row(condition.name, *ranges)
    console.print(table)
    console.print("Blocks without an update have no cosine. Updates are taken before the optimiser\n")


def block_range(rows: pd.DataFrame) -> str:
    """`0.01 to 0.98`, least and most over blocks of the mean over seeds; `-` where there is none."""
    means = rows.groupby("depth")["value"].mean().dropna()
    return f"{means.min():.2g} to {means.max():.2g}" if len(means) else "-"


def left_out(diverged: Sequence[Cell]) -> str:
    """` Diverged, and left out of means and differences: plain at depth 56 (2 seeds).`, or nothing where none did."""
    counts: dict[str, int] = {}
    for cell in diverged:
        times = f", {cell.labels['budget']} times the epochs" if cell.labels["budget"] != 1 else ""
        where = f"{cell.labels['control']} at depth {cell.depth}{times}"
        counts[where] = counts.get(where, 0) + 1
    said = [f"{where} ({count} seed{'s' * (count > 1)})" for where, count in counts.items()]
    return f" Diverged, and left out of means and differences: {'; '.join(said)}." if said else ""


def show_recovery(found: Recovery) -> str:
    """`0.55 [0.40, 0.70]`, or why there is none."""
    return found.note.removesuffix(" to explain") or f"{found.mean:.2f} [{found.low:.2f}, {found.high:.2f}]"


def show_difference(cells: pd.DataFrame, depth: int, more: str, less: str | None) -> str:
    """`+0.050 [+0.010, +0.090]`, the seeds' own values, or `-` where there is none."""
    found = NONE if less is None else difference(cells, depth, more, less)
    return show_estimate(found, digits=3) if found.values else "-"
