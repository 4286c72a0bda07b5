"""What does a lesion cost, by the block that it hits, and by how many?"""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from figures.lines import THIN, arm_handles, finish, marks, seed_lines, seeds_title, whole_numbers
from figures.points import percent_axis
from figures.style import ARMS, GREY, Axes2D, panels, style
from figures.table import arms_of, seeds_text, select

STATISTICS = {"kept": "BatchNorm statistics kept", "re-estimated": "BatchNorm estimated anew"}
XLABELS = {
    "delete": "deleted block", "swap": "block that changed places\nwith the next",
    "delete at random": "deleted blocks", "permute": "Kendall's τ of the order",
}  # fmt: skip


@style()
def lesions_by_block(table: pd.DataFrame, *, axes: Any = None) -> Axes2D:
    """Test error (%) after one lesion against the block it hits; thin grey verticals: the first block of a stage.

    table: arm, seed, lesion ("delete" or "swap" beside "none"), statistics ("kept", "re-estimated": a panel each),
    block ("layer2.0"), depth (of the block), quantity ("error"), value (from 0 to 1). Horizontals: the whole network.
    A block that an arm has no value for (it cannot be skipped) leaves a gap.
    """
    rows, whole = _parts(table, ["arm", "seed", "depth"], figure="lesions_by_block")
    grid = _panels(rows, axes, figure="lesions_by_block")
    for axis, statistics in zip(grid[0], _statistics(rows), strict=True):
        part = rows[rows["statistics"] == statistics]
        for arm in arms_of(part):
            of_arm = part[part["arm"] == arm]
            whole_range = pd.RangeIndex(int(rows["depth"].max()) + 1)
            wide = of_arm.pivot(index="depth", columns="seed", values="value").reindex(whole_range)
            axis.plot(wide.index, wide, color=ARMS[arm].colour, **THIN)
            look = {"color": ARMS[arm].colour, "linestyle": ARMS[arm].line, "linewidth": 1.2}
            axis.plot(wide.index, wide.mean(axis="columns"), **look, **marks(of_arm, arm, x="depth"))
        for depth in _first_of_stage(part):
            axis.axvline(depth, color=GREY, linewidth=0.5, zorder=0)
        _whole(axis, whole[whole["statistics"] == statistics])
        whole_numbers(axis)
    return _finished(grid, rows, title=seeds_title(rows))


@style()
def lesions_by_count(table: pd.DataFrame, *, axes: Any = None) -> Axes2D:
    """Test error (%) against the number of blocks deleted at random, or against Kendall's τ of permuted blocks.

    table: arm, seed, lesion ("delete at random" or "permute" beside "none"), statistics, count, draw, quantity
    ("error"; for permutations also "tau"), value. A thin line is a seed's mean over its draws; for permutations a point
    is a draw.
    """
    rows, whole = _parts(table, ["arm", "seed", "count", "draw"], figure="lesions_by_count")
    grid = _panels(rows, axes, figure="lesions_by_count")
    permuted = set(rows["lesion"]) == {"permute"}
    for axis, statistics in zip(grid[0], _statistics(rows), strict=True):
        part = rows[rows["statistics"] == statistics]
        base = whole[whole["statistics"] == statistics]
        for arm in arms_of(part):
            of_arm = part[part["arm"] == arm]
            if permuted:
                taus = table[(table["quantity"] == "tau") & (table["statistics"] == statistics) & (table["arm"] == arm)]
                _scatter(axis, of_arm, taus, arm)
            else:
                whole_network = base[base["arm"] == arm].assign(count=0)
                both = pd.concat([whole_network, of_arm])
                means = both.groupby(["seed", "count"])["value"].mean().reset_index()
                seed_lines(axis, means, arm, x="count", **marks(means, arm, x="count"))
        _whole(axis, base)
        if not permuted:
            whole_numbers(axis)
    if permuted:
        grid[0, 0].invert_xaxis()  # which the panels share
    draws = int(rows.groupby(["arm", "seed", "statistics", "count"])["draw"].nunique().max())
    title = f"{seeds_title(rows)}; each seed's line: mean of {draws} draws"
    if permuted:
        title = f"points: {draws} draws of each number of swaps in {seeds_text(rows)}"
    return _finished(grid, rows, title=title)


def _parts(table: pd.DataFrame, keys: list[str], *, figure: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The lesions' errors, and the whole network's."""
    hurt = table[table["lesion"] != "none"]
    rows = select(hurt, [*keys, "lesion", "statistics"], figure=figure, quantity=["error"])
    if rows["lesion"].nunique() > 1:
        raise ValueError(f"{figure}: give one lesion's rows; got {', '.join(sorted(set(rows['lesion'])))}")
    return rows, table[(table["lesion"] == "none") & (table["quantity"] == "error")]


def _statistics(rows: pd.DataFrame) -> list[str]:
    return [name for name in STATISTICS if name in set(rows["statistics"])]


def _panels(rows: pd.DataFrame, axes: Any, *, figure: str) -> Axes2D:
    return panels(axes, 1, len(_statistics(rows)), figure=figure, height=1.7, sharex=True, sharey=True)


def _first_of_stage(rows: pd.DataFrame) -> list[int]:
    blocks = rows.drop_duplicates("depth")
    return [int(depth) for depth in blocks[blocks["block"].str.endswith(".0")]["depth"] if depth > 0]


def _scatter(axis: Axes, rows: pd.DataFrame, taus: pd.DataFrame, arm: str) -> None:
    keys = ["seed", "count", "draw"]
    both = rows.merge(taus[[*keys, "value"]], on=keys, suffixes=("", "_tau"))
    look = ARMS[arm]
    axis.plot(both["value_tau"], both["value"], look.marker, color=look.colour, markersize=3, alpha=0.6)


def _whole(axis: Axes, whole: pd.DataFrame) -> None:
    """A dotted line at each arm's error without a lesion."""
    for arm in arms_of(whole):
        error = float(np.mean(whole[whole["arm"] == arm]["value"]))
        axis.axhline(error, color=ARMS[arm].colour, linewidth=0.6, linestyle=":")


def _finished(grid: Axes2D, rows: pd.DataFrame, *, title: str) -> Axes2D:
    (lesion,) = set(rows["lesion"])
    for axis, statistics in zip(grid[0], _statistics(rows), strict=True):
        axis.set_xlabel(XLABELS[lesion])
        axis.set_title(STATISTICS[statistics])
        percent_axis(axis)
        axis.set_ylim(bottom=0)
    grid[0, 0].set_ylabel("test error (%)")
    finish(grid, arm_handles(arms_of(rows), marker=True), title=f"{title}\ndotted: without a lesion")
    return grid
