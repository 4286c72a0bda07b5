"""What does a lesion cost, by the block that it hits, and by how many?"""

from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from .parts.lines import THIN, arm_handles, arm_lines, dotted_means, finish, marks, seeds_title, whole_numbers
from .parts.points import percent_axis
from .parts.sheet import drawing, panels
from .parts.style import GREY, Axes2D, Look, Looks
from .parts.table import arms_of, check_columns, seeds_text, select, stage_starts

STATISTICS = {"kept": "BatchNorm statistics kept", "re-estimated": "BatchNorm re-estimated"}
XLABELS = {
    "delete": "deleted block", "swap": "block that changed places\nwith the next",
    "delete at random": "deleted blocks", "permute": "Kendall's τ of the order",
}  # fmt: skip


@drawing
def lesions_by_block(table: pd.DataFrame, *, axes: Any = None, looks: Looks = None, legend: bool = True) -> Axes2D:
    """Test error (%) after one lesion against the block it hits; thin grey verticals: the first block of a stage.

    Horizontals: the whole network. A block that an arm has no value for (it cannot be skipped) leaves a gap.

    Table: arm, seed, lesion ("delete" or "swap" beside "none"), statistics ("kept", "re-estimated": a panel each),
    block ("layer2.0"), depth (of the block), quantity ("error"), value (from 0 to 1).
    """
    rows, whole = _parts(table, ["arm", "seed", "block", "depth"], figure="lesions_by_block")
    looks = arms_of(rows, looks)
    grid = _panels(rows, axes, figure="lesions_by_block")
    for axis, statistics in zip(grid[0], _statistics(rows), strict=True):
        part = rows[rows["statistics"] == statistics]
        for arm, look in looks.items():
            of_arm = part[part["arm"] == arm]
            whole_range = pd.RangeIndex(int(rows["depth"].max()) + 1)
            wide = of_arm.pivot(index="depth", columns="seed", values="value").reindex(whole_range)
            axis.plot(wide.index, wide, color=look.colour, **THIN)
            drawn = {"color": look.colour, "linestyle": look.line, "linewidth": 1.2}
            axis.plot(wide.index, wide.mean(axis="columns"), **drawn, **marks(of_arm, looks, arm, x="depth"))
        for depth in stage_starts(part):
            axis.axvline(depth, color=GREY, linewidth=0.5, zorder=0)
        dotted_means(axis, whole[whole["statistics"] == statistics], looks)
        whole_numbers(axis)
    return _finished(grid, rows, looks, legend=legend, caption=seeds_title(rows))


@drawing
def lesions_by_count(table: pd.DataFrame, *, axes: Any = None, looks: Looks = None, legend: bool = True) -> Axes2D:
    """Test error (%) against the number of blocks deleted at random, or against Kendall's τ of permuted blocks.

    A thin line is a seed's mean over its draws; for permutations a point is a draw.

    Table: arm, seed, lesion ("delete at random" or "permute" beside "none"), statistics, count, draw, quantity
    ("error"; for permutations also "tau"), value.
    """
    rows, whole = _parts(table, ["arm", "seed", "count", "draw"], figure="lesions_by_count")
    looks = arms_of(rows, looks)
    grid = _panels(rows, axes, figure="lesions_by_count")
    permuted = set(rows["lesion"]) == {"permute"}
    for axis, statistics in zip(grid[0], _statistics(rows), strict=True):
        part = rows[rows["statistics"] == statistics]
        base = whole[whole["statistics"] == statistics]
        if permuted:
            taus = table[(table["quantity"] == "tau") & (table["statistics"] == statistics)]
            _scatter(axis, part, taus, looks)
        else:
            means = pd.concat([base.assign(count=0), part]).groupby(["arm", "seed", "count"])["value"].mean()
            arm_lines(axis, means.reset_index(), looks, x="count", markers="few")
        dotted_means(axis, base, looks)
        if not permuted:
            whole_numbers(axis)
    if permuted:
        grid[0, 0].invert_xaxis()  # which the panels share
    draws = int(rows.groupby(["arm", "seed", "statistics", "count"])["draw"].nunique().max())
    title = f"{seeds_title(rows)}; each seed's line: mean of {draws} draws"
    if permuted:
        title = f"points: {draws} draws of each number of swaps in {seeds_text(rows)}"
    return _finished(grid, rows, looks, legend=legend, caption=title)


def _parts(table: pd.DataFrame, keys: list[str], *, figure: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The lesions' errors, and the whole network's."""
    check_columns(table, [*keys, "lesion", "statistics", "quantity", "value"], figure=figure)
    hurt = table[table["lesion"] != "none"]
    rows = select(hurt, [*keys, "lesion", "statistics"], figure=figure, quantity=["error"])
    if rows["lesion"].nunique() > 1:
        raise ValueError(f"{figure}: give one lesion's rows; got {', '.join(sorted(set(rows['lesion'])))}")
    return rows, table[(table["lesion"] == "none") & (table["quantity"] == "error")]


def _statistics(rows: pd.DataFrame) -> list[str]:
    return [name for name in STATISTICS if name in set(rows["statistics"])]


def _panels(rows: pd.DataFrame, axes: Any, *, figure: str) -> Axes2D:
    return panels(axes, 1, len(_statistics(rows)), figure=figure, height=1.3, sharex=True, sharey=True)


def _scatter(axis: Axes, rows: pd.DataFrame, taus: pd.DataFrame, looks: dict[str, Look]) -> None:
    keys = ["arm", "seed", "count", "draw"]
    both = rows.merge(taus[[*keys, "value"]], on=keys, suffixes=("", "_tau"))
    for arm, look in looks.items():
        of_arm = both[both["arm"] == arm]
        axis.plot(of_arm["value_tau"], of_arm["value"], look.marker, color=look.colour, markersize=3, alpha=0.6)


def _finished(grid: Axes2D, rows: pd.DataFrame, looks: dict[str, Look], *, legend: bool, caption: str) -> Axes2D:
    (lesion,) = set(rows["lesion"])
    for axis, statistics in zip(grid[0], _statistics(rows), strict=True):
        axis.set_xlabel(XLABELS.get(lesion, lesion))
        axis.set_title(STATISTICS[statistics])
        percent_axis(axis)
        axis.set_ylim(bottom=0)
    grid[0, 0].set_ylabel("test error (%)")
    finish(grid, arm_handles(looks, marker=True), legend=legend, caption=f"{caption}\ndotted: without a lesion")
    return grid
