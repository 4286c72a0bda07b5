"""How experiments on conditions are shown in the terminal: outcomes, gaps closed and differences."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from rich.console import Console

from experiments.engine.reporting import show
from experiments.engine.running.run import Run
from experiments.engine.statistics.estimates import Estimate
from experiments.engine.statistics.long_tables import select

EXPLAINED = (
    "R, the gap closed = (plain - condition) / (plain - residual), of the same optimiser: 0 as bad as plain, 1 as good "
    "as residual; Fieller's 95 % interval. Not corrected for their number"
)
SEARCHED = "Learning rates are the best of the search (in tuning/): change another setting."


def show_gaps_closed(console: Console, gaps: pd.DataFrame, rates: Mapping[tuple[str, int], float]) -> None:
    """Depth x condition: its learning rate, and R. gaps: as `gap_closed.gap_table` gives them."""
    wide = gaps.pivot(index=["depth_total", "control", "outcome"], columns="quantity", values="value").to_dict("index")
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for depth, name, outcome in gaps[["depth_total", "control", "outcome"]].drop_duplicates().itertuples(index=False):
        row = rows.setdefault((f"depth {depth}", name), {"rate": f"{rates[name, depth]:g}"})
        row[f"R, {outcome}"] = format_gap(wide[depth, name, outcome])
    show.table(console, rows, title="How much of the gap between plain and residual is closed", caption=EXPLAINED)


def format_gap(numbers: Mapping[Any, float]) -> str:
    """`0.55 [0.40, 0.70]`, or why there is none."""
    if numbers["R"] == numbers["R"]:
        return f"{numbers['R']:.2f} [{numbers['R low']:.2f}, {numbers['R high']:.2f}]"
    return "no seed" if not numbers["n"] else "fewer than three seeds" if numbers["n"] < 3 else "no degradation"


def show_differences(console: Console, found: Mapping[int, Mapping[str, Mapping[str, Estimate]]]) -> None:
    """Differences in test accuracy, by depth, condition and what is subtracted."""
    rows = {
        (f"depth {depth}", name): {title: show.estimate(change, digits=3) for title, change in changes.items()}
        for depth, by_name in found.items()
        for name, changes in by_name.items()
    }
    if not rows:
        return
    count = sum(
        bool(change.values) for by_name in found.values() for row in by_name.values() for change in row.values()
    )
    caption = f"mean [95 % t interval], (seeds' values) where there is none; not corrected for their number, {count}"
    show.table(console, rows, title="Differences in test accuracy, paired by seed", caption=caption)


def show_alignment(console: Console, alignment: pd.DataFrame, names: Sequence[str], depth: int) -> None:
    """Cosine and norm ratio of updates and true gradients, on one batch: the range over blocks of means over seeds."""
    at_depth = select(alignment, depth_total=depth)
    moments = {"first": at_depth["epoch"].min(), "last": at_depth["epoch"].max()}
    rows = {}
    for name in names:
        rows["", name] = {
            f"{quantity}, {word}": block_range(select(at_depth, control=name, epoch=epoch, quantity=quantity))
            for word, epoch in moments.items()
            for quantity in ("cosine", "norm ratio")
        }
    show.table(
        console,
        rows,
        title=f"Update against true gradient at depth {depth}: from block to block",
        caption="Blocks without an update have no cosine. Updates are taken before the optimiser",
    )


def block_range(rows: pd.DataFrame) -> str:
    """`0.01 to 0.98`, least and most over blocks of the mean over seeds; `-` where there is none."""
    means = rows.groupby("depth")["value"].mean().dropna()
    return f"{means.min():.2g} to {means.max():.2g}" if len(means) else "-"


def diverged_note(diverged: Sequence[Run]) -> str:
    """` Diverged, and left out of means and differences: plain at depth 56 (2 seeds).`, or nothing where none did."""
    counts: dict[str, int] = {}
    for run in diverged:
        times = f", {run.labels['budget']} times the epochs" if run.labels["budget"] != 1 else ""
        where = f"{run.labels['control']} at depth {run.depth}{times}"
        counts[where] = counts.get(where, 0) + 1
    parts = [f"{where} ({count} seed{'s' * (count > 1)})" for where, count in counts.items()]
    return f" Diverged, and left out of means and differences: {'; '.join(parts)}." if parts else ""
