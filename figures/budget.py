"""Does a larger budget close the gap, on training data or on test data?"""

from typing import Any

import pandas as pd

from figures.lines import EDGE, arm_handles, finish, seed_lines, seeds_title
from figures.points import percent_axis
from figures.style import ARMS, Axes2D, column_titles, depth_title, panels, style
from figures.table import arms_of, depths_of, select

SPLITS = {"train": "training accuracy (%)", "test": "test accuracy (%)"}


@style()
def budget(table: pd.DataFrame, *, axes: Any = None) -> Axes2D:
    """Final accuracy (%) on training and test data against the budget (log axis); a row of panels for each depth.

    table: arm, depth_total, seed, budget (how many times the epochs), split ("train", "test"), quantity ("accuracy"),
    value (from 0 to 1).
    """
    keys = ["arm", "depth_total", "seed", "budget"]
    rows = select(table, keys, figure="budget", split=list(SPLITS), quantity=["accuracy"])
    depths = depths_of(rows)
    grid = panels(axes, len(depths), len(SPLITS), figure="budget", height=1.9, sharex=True, sharey=True)
    for line, depth in zip(grid, depths, strict=True):
        for axis, (split, label) in zip(line, SPLITS.items(), strict=True):
            axis.set_xscale("log")
            part = rows[(rows["depth_total"] == depth) & (rows["split"] == split)]
            for arm in arms_of(part):
                seed_lines(axis, part[part["arm"] == arm], arm, x="budget", marker=ARMS[arm].marker, **EDGE)
            axis.set_ylabel(label)
        column_titles(line, [depth_title(depth)] * len(SPLITS))
    ticks = sorted(rows["budget"].unique())
    for axis in grid[-1]:
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.set_xticks([], minor=True)
        axis.set_xlabel("budget (times the epochs)")
    percent_axis(grid[0, 0])
    finish(grid, arm_handles(arms_of(rows), marker=True), title=seeds_title(rows))
    return grid
