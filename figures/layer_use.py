"""How much is each block used: learning, damage, read-out and attribution by depth, and their centres of mass?"""

from dataclasses import dataclass
from textwrap import fill
from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from .parts.lines import arm_handles, arm_lines, dotted_means, finish, log_axis, seeds_title, whole_numbers
from .parts.points import percent_axis, points_title, seed_points, shifts
from .parts.sheet import drawing, panels
from .parts.style import GREY, Axes2D, Look, Looks, epoch_title, note
from .parts.table import arms_of, check_columns, select, stage_starts


@dataclass(frozen=True)
class Panel:
    """What a panel shows of the table."""

    title: str
    unit: str
    quantity: str
    statistics: str = ""
    at_start: bool = False
    log: bool = False


TICKS = ["0\nfirst block", "0.25\n", "0.5\neven", "0.75\n", "1\nlast block"]  # of two lines each, to stand level
ERROR = "test error (%)"
PANELS = (
    Panel("weight movement", r"$\Vert w-w_0\Vert\,/\,\Vert w_0\Vert$", "movement", log=True),
    Panel("gradient, {moment}", "share", "gradient", at_start=True, log=True),
    Panel("gradient, {moment}", "share", "gradient", log=True),
    Panel("block reset, BN re-est.", ERROR, "reset", "re-estimated"),
    Panel("block deleted, BN re-est.", ERROR, "deleted", "re-estimated"),
    Panel("read-out after block", ERROR, "read-out"),
    Panel("block reset, BN kept", ERROR, "reset", "kept"),
    Panel("block deleted, BN kept", ERROR, "deleted", "kept"),
    Panel("score through branch", "share (%)", "attribution"),
)


@drawing
def layer_use(table: pd.DataFrame, *, axes: Any = None, looks: Looks = None, legend: bool = True) -> Axes2D:
    """Nine panels of what each block does, against its depth; thin grey verticals: the first block of a stage.

    Log axes leave zeros out.

    Table: arm, seed, epoch, statistics (of BatchNorm: "kept", "re-estimated", or nan), block ("layer2.0"), depth (of
    the block), quantity ("movement"; "gradient", at the first epoch and at the last; "reset"; "deleted"; "read-out", at
    depth -1 before the first block; "attribution"; "whole", the error without damage, a dotted horizontal), value
    (movement as a ratio, all others from 0 to 1).
    """
    rows = table.assign(statistics=table["statistics"].fillna("")) if "statistics" in table else table
    keys = ["arm", "seed", "epoch", "statistics", "depth"]
    check_columns(rows, [*keys, "block", "quantity", "value"], figure="layer_use")
    rows = select(rows, keys, figure="layer_use", quantity=sorted({panel.quantity for panel in PANELS}))
    looks, whole = arms_of(rows, looks), table[table["quantity"] == "whole"]
    grid = panels(axes, 3, 3, figure="layer_use", height=0.9, sharex=True)
    for axis, panel in zip(grid.flat, PANELS, strict=True):
        part = _part(rows, panel)
        moment = epoch_title(part["epoch"].iloc[0]) if len(part) else ""
        axis.set_title(panel.title.format(moment=moment).rstrip(", "))
        axis.set_ylabel(panel.unit)
        _draw(axis, part, looks, panel)
        if panel.unit == ERROR:
            dotted_means(axis, whole[whole["statistics"] == (panel.statistics or "kept")], looks)
            axis.set_ylim(0, 1)
        for depth in stage_starts(rows):
            axis.axvline(depth, color=GREY, linewidth=0.5, zorder=0)
        axis.grid(visible=False, axis="x")
    for axis in grid[-1]:
        axis.set_xlabel("block")
    title = (
        f"{seeds_title(rows, mean='mean (geometric on log axes)')}\ndotted: without damage; BN: BatchNorm statistics"
    )
    finish(grid, arm_handles(looks, marker=True), legend=legend, caption=title)
    return grid


def _part(rows: pd.DataFrame, panel: Panel) -> pd.DataFrame:
    found = rows[(rows["quantity"] == panel.quantity) & (rows["statistics"] == panel.statistics)]
    start = found["epoch"] == 0
    return found[start if panel.at_start else ~start]


def _draw(axis: Axes, rows: pd.DataFrame, looks: dict[str, Look], panel: Panel) -> None:
    arm_lines(axis, rows, looks, x="depth", geometric=panel.log, markers="few", linewidth=1, markersize=3)
    if rows.empty:
        note(axis, "not measured")
    elif panel.log:
        log_axis(axis)
    else:
        percent_axis(axis)
    whole_numbers(axis)


@drawing
def depth_centres(table: pd.DataFrame, *, axes: Any = None, looks: Looks = None, legend: bool = True) -> Axes2D:
    """A line for each measure: the centre of mass of each arm between the first block (0) and the last (1).

    Table: arm, seed, outcome (the measure), quantity ("centre", of a seed; "low" and "high", the ends of an interval, a
    bar), value.
    """
    rows = select(table, ["arm", "seed", "outcome"], figure="depth_centres", quantity=["centre"])
    names, looks = list(dict.fromkeys(rows["outcome"])), arms_of(rows, looks)
    grid = panels(axes, 1, 1, figure="depth_centres", height=0.42 * len(names))
    axis = grid[0, 0]
    seed_points(axis, rows, looks, by="outcome", order=names, horizontal=True)
    intervals = table.pivot_table(index=["outcome", "arm"], columns="quantity", values="value").dropna()
    for shift, (arm, look) in zip(shifts(len(looks)), looks.items(), strict=True):
        for place, name in enumerate(names):
            if (name, arm) in intervals.index and {"low", "high"} <= set(intervals):
                ends = intervals.loc[(name, arm), ["low", "high"]]
                axis.plot(ends, [place + shift] * 2, color=look.colour, linewidth=1, alpha=0.6)
    axis.axvline(0.5, color=GREY, linewidth=0.8, zorder=1)
    axis.set_xlim(-0.02, 1.02)
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.set_yticks(range(len(names)), [fill(name, 18) for name in names], linespacing=0.95)
    axis.tick_params(axis="y", length=0)
    for edge in range(1, len(names)):
        axis.axhline(edge - 0.5, color="0.9", linewidth=0.5, zorder=0)
    axis.set_xticks([0.25 * i for i in range(5)], TICKS)
    axis.set_xlabel("centre of mass over depth")
    bars = "; bars: 95 % t interval" if table[table["quantity"] == "low"]["value"].notna().any() else ""
    finish(grid, arm_handles(looks, line=False, marker=True), legend=legend, caption=points_title(rows) + bars)
    return grid
