"""At which learning rate does each arm learn?"""

from typing import Any

import pandas as pd

from figures.lines import EDGE, arm_handles, finish, seed_lines, seeds_title
from figures.points import percent_axis
from figures.style import ARMS, Axes2D, column_titles, depth_title, panels, style
from figures.table import arms_of, depths_of, select


@style()
def learning_rates(table: pd.DataFrame, *, axes: Any = None) -> Axes2D:
    """Validation accuracy (%) against the learning rate (log axis), a panel for each depth; 0 for runs that diverged.

    table: control (an arm), depth_total, seed, learning_rate, split ("validation"), quantity ("accuracy"), value (from
    0 to 1).
    """
    keys = ["arm", "depth_total", "seed", "learning_rate"]
    named = table.assign(arm=table["control"]) if "control" in table else table
    rows = select(named, keys, figure="learning_rates", split=["validation"], quantity=["accuracy"])
    depths = depths_of(rows)
    grid = panels(axes, 1, len(depths), figure="learning_rates", height=1.9, sharex=True, sharey=True)
    for axis, depth in zip(grid[0], depths, strict=True):
        axis.set_xscale("log")
        for arm in arms_of(rows):
            of_arm = rows[(rows["arm"] == arm) & (rows["depth_total"] == depth)]
            seed_lines(axis, of_arm, arm, x="learning_rate", marker=ARMS[arm].marker, **EDGE)
        axis.set_xlabel("learning rate")
    percent_axis(grid[0, 0])
    grid[0, 0].set_ylabel("validation accuracy (%)")
    column_titles(grid[0], map(depth_title, depths))
    zero = "; 0: diverged" * bool((rows["value"] == 0).any())
    finish(grid, arm_handles(arms_of(rows), marker=True), title=seeds_title(rows) + zero)
    return grid
