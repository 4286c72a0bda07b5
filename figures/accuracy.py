"""Accuracy at the end: by depth, budget and learning rate, and over the factorial of the shortcut's two roles."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from .parts.lines import THICK, arm_handles, arm_lines, finish, handle, note_missing, seeds_title
from .parts.points import percent_axis, points_title, seed_points, shifts
from .parts.sheet import drawing, nothing, panels
from .parts.style import GREY, Axes2D, Look, Looks, column_titles, depth_title
from .parts.table import arms_of, depths_of, select

SPLITS = {"train": "training accuracy (%)", "test": "test accuracy (%)"}
CORNERS = {"on": ("stop-gradient", "residual"), "off": ("plain", "gradient-only")}  # by forward; backward off, then on
LINES = {"on": "-", "off": (0, (2.5, 1.2))}


@drawing
def accuracy_by_depth(table: pd.DataFrame, *, axes: Any = None, looks: Looks = None, legend: bool = True) -> Axes2D:
    """Final accuracy (%) on training and test data against depth: a point for every seed, a marker at their mean.

    A cross at the bottom marks an arm without a value at that depth.

    Table: arm, depth_total, seed, split ("train", "test": a panel each, if present), quantity ("accuracy"), value (from
    0 to 1).
    """
    keys = ["arm", "depth_total", "seed"]
    rows = select(table, keys, figure="accuracy_by_depth", quantity=["accuracy"], split=list(SPLITS))
    splits, looks, depths = (
        [split for split in SPLITS if split in set(rows["split"])],
        arms_of(rows, looks),
        depths_of(rows),
    )
    grid = panels(axes, 1, len(splits), figure="accuracy_by_depth", height=1.45, sharex=True, sharey=True)
    missing = False
    for axis, split in zip(grid[0], splits, strict=True):
        part = rows[rows["split"] == split]
        seed_points(axis, part, looks, by="depth_total", order=depths, joined=True)
        missing |= _crosses(axis, part, looks, depths)
        axis.set(xlabel="depth (layers)", ylabel=SPLITS[split])
        percent_axis(axis)
    finish(grid, arm_handles(looks, marker=True), legend=legend, caption=points_title(rows) + "; ×: no value" * missing)
    return grid


def _crosses(axis: Axes, rows: pd.DataFrame, looks: dict[str, Look], depths: list[int]) -> bool:
    """Mark the arms without a value at some depth (they diverged, or were not run); True if there are any."""
    crossed = False
    for shift, (arm, look) in zip(shifts(len(looks)), looks.items(), strict=True):
        present = set(rows[rows["arm"] == arm]["depth_total"])
        gaps = [place + shift for place, depth in enumerate(depths) if depth not in present]
        for x in gaps:
            axis.plot(x, 0.03, "x", color=look.colour, transform=axis.get_xaxis_transform())
        crossed |= bool(gaps)
    return crossed


@drawing
def budget(table: pd.DataFrame, *, axes: Any = None, looks: Looks = None, legend: bool = True) -> Axes2D:
    """Final accuracy (%) on training and test data against the budget (log axis); a row of panels for each depth.

    Table: arm, depth_total, seed, budget (how many times the epochs), split ("train", "test"), quantity ("accuracy"),
    value (from 0 to 1).
    """
    keys = ["arm", "depth_total", "seed", "budget"]
    rows = select(table, keys, figure="budget", split=list(SPLITS), quantity=["accuracy"])
    depths, looks = depths_of(rows), arms_of(rows, looks)
    grid = panels(axes, len(depths), len(SPLITS), figure="budget", height=1.45, sharex=True, sharey=True)
    for line, depth in zip(grid, depths, strict=True):
        for axis, (split, label) in zip(line, SPLITS.items(), strict=True):
            _against(axis, rows[(rows["depth_total"] == depth) & (rows["split"] == split)], looks, x="budget")
            axis.set_ylabel(label)
        column_titles(line, [depth_title(depth)] * len(SPLITS))
    ticks = sorted(rows["budget"].unique())
    for axis in grid[-1]:
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.set_xticks([], minor=True)
        axis.set_xlabel("budget (times the epochs)")
    finish(grid, arm_handles(looks, marker=True), legend=legend, caption=seeds_title(rows))
    return grid


@drawing
def learning_rates(table: pd.DataFrame, *, axes: Any = None, looks: Looks = None, legend: bool = True) -> Axes2D:
    """Validation accuracy (%) against the learning rate (log axis), a panel for each depth; 0 for runs that diverged.

    Table: control (an arm, or a condition), depth_total, seed, learning_rate, split ("validation"), quantity
    ("accuracy"), value (from 0 to 1).
    """
    keys = ["arm", "depth_total", "seed", "learning_rate"]
    named = table.assign(arm=table["control"]) if "control" in table else table
    rows = select(named, keys, figure="learning_rates", split=["validation"], quantity=["accuracy"])
    depths, looks = depths_of(rows), arms_of(rows, looks)
    grid = panels(axes, 1, len(depths), figure="learning_rates", height=1.45, sharex=True, sharey=True)
    for axis, depth in zip(grid[0], depths, strict=True):
        _against(axis, rows[rows["depth_total"] == depth], looks, x="learning_rate")
        axis.set_xlabel("learning rate")
    grid[0, 0].set_ylabel("validation accuracy (%)")
    column_titles(grid[0], map(depth_title, depths))
    zero = "; 0: diverged" * bool((rows["value"] == 0).any())
    finish(grid, arm_handles(looks, marker=True), legend=legend, caption=seeds_title(rows) + zero)
    return grid


def _against(axis: Axes, rows: pd.DataFrame, looks: dict[str, Look], *, x: str) -> None:
    """Accuracies against a column that is a factor."""
    axis.set_xscale("log")
    arm_lines(axis, rows, looks, x=x, markers="all")
    percent_axis(axis)


@drawing
def interaction(table: pd.DataFrame, *, axes: Any = None, looks: Looks = None, legend: bool = True) -> Axes2D:
    """Test accuracy (%) of the 2 x 2 factorial: x, the shortcut's backward; a line each for its forward on and off.

    One panel for each depth_total. Parallel lines: the two effects add up.

    Table: arm (residual, stop-gradient, gradient-only, plain; others are left out), depth_total, seed, split ("test"),
    quantity ("accuracy"), value (from 0 to 1).
    """
    arms = [arm for pair in CORNERS.values() for arm in pair]
    rows = select(table, ["arm", "depth_total", "seed"], figure="interaction", quantity=["accuracy"], split=["test"])
    rows = rows[rows["arm"].isin(arms)]
    if rows.empty:
        return nothing(axes, f"nothing to show: none of the arms\n{', '.join(arms)}", figure="interaction")
    backward = {arm: switch for pair in CORNERS.values() for switch, arm in zip(("off", "on"), pair, strict=True)}
    rows = rows.assign(backward=rows["arm"].map(backward))
    depths, looks = depths_of(rows), arms_of(rows, looks)
    grid = panels(axes, 1, len(depths), figure="interaction", height=1.45, sharex=True, sharey=True)
    for axis, depth in zip(grid[0], depths, strict=True):
        part = rows[rows["depth_total"] == depth]
        seed_points(axis, part, looks, by="backward", order=["off", "on"], dodge=False)
        for forward, pair in CORNERS.items():
            means = [np.mean(part[part["arm"] == arm]["value"]) if arm in set(part["arm"]) else np.nan for arm in pair]
            axis.plot([0, 1], means, color=GREY, linestyle=LINES[forward], linewidth=THICK, zorder=1.5)
        axis.set_xlim(-0.3, 1.3)
        percent_axis(axis)
        note_missing(axis, rows, part, looks)
        axis.set_xlabel("shortcut backward")
    column_titles(grid[0], map(depth_title, depths))
    grid[0, 0].set_ylabel("test accuracy (%)")
    lines = [handle(f"shortcut forward {which}", GREY, linestyle=line) for which, line in LINES.items()]
    points = arm_handles(looks, line=False, marker=True)
    finish(grid, points + lines, legend=legend, caption=points_title(rows) + "; lines join means")
    return grid
