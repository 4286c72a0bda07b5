"""How strongly do layers respond, in networks with shortcuts and without?"""

from typing import Any

import pandas as pd

from figures.degradation import depth_handles, depth_lines
from figures.lines import finish, handle, log_axis, seeds_title
from figures.style import ARMS, Axes2D, panels, style
from figures.table import arms_of, depths_of, select

ORDERS = {"in order of depth": "depth", "sorted by size": "rank"}


@style()
def layer_responses(table: pd.DataFrame, *, axes: Any = None) -> Axes2D:
    """Standard deviation of each layer's response (its own unit, log axis), in order and sorted from the largest; an
    arm's colour, the deeper a network the darker (He et al. 2015, Fig. 7).

    table: arm, depth_total, seed, block, depth (place of the layer, from 0), quantity ("std"), value. Lines are
    geometric means over seeds; a seed is sorted by itself.
    """
    rows = select(table, ["arm", "depth_total", "seed", "depth"], figure="layer_responses", quantity=["std"])
    by_network = rows.groupby(["arm", "depth_total", "seed"])["value"]
    rows = rows.assign(rank=by_network.rank(method="first", ascending=False) - 1)
    arms, depths = arms_of(rows), depths_of(rows)
    grid = panels(axes, 1, 2, figure="layer_responses", height=2.0, sharey=True)
    for axis, (title, x) in zip(grid[0], ORDERS.items(), strict=True):
        for arm in arms:
            of_arm = rows[rows["arm"] == arm].drop(columns="depth" if x == "rank" else "rank")
            depth_lines(axis, of_arm, arm, depths, x=x, geometric=True)
        log_axis(axis)
        axis.set_xlabel(f"layer, {title}")
    grid[0, 0].set_ylabel("standard deviation\nof the response")
    handles = [handle(ARMS[arm].label, ARMS[arm].colour) for arm in arms] + depth_handles(depths)
    finish(grid, handles, title=seeds_title(rows, mean="geometric mean") + "; the darker, the deeper")
    return grid
