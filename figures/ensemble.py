"""How much better than its members is an ensemble?"""

from typing import Any

import numpy as np
import pandas as pd

from figures.lines import THICK, arm_handles, finish
from figures.points import percent_axis, points_title, seed_points
from figures.style import ARMS, Axes2D, panels, style
from figures.table import arms_of, select

WIDTH = 0.5


@style()
def ensemble(table: pd.DataFrame, *, axes: Any = None) -> Axes2D:
    """Test error (%) of networks of different depth and, at the right, of all of them with averaged probabilities; a
    panel for top-1, one for top-5; a point for every seed, a bar for their mean.

    table: arm (one), depth_total (without a value: the ensemble), seed, count (networks in it), quantity ("top-1
    error", "top-5 error"), value (from 0 to 1).
    """
    rows = select(
        table, ["arm", "depth_total", "seed", "count"], figure="ensemble", quantity=["top-1 error", "top-5 error"]
    )
    (arm,) = arms_of(rows)
    quantities = sorted(rows["quantity"].unique())
    depths = sorted(rows["depth_total"].dropna().unique())
    grid = panels(axes, 1, len(quantities), figure="ensemble", height=1.9)
    for axis, quantity in zip(grid[0], quantities, strict=True):
        of_quantity = rows[rows["quantity"] == quantity]
        members = [of_quantity[of_quantity["depth_total"] == depth] for depth in depths]
        places = [*np.arange(len(depths)), len(depths) + 0.4]
        for x, part in zip(places, [*members, of_quantity[of_quantity["depth_total"].isna()]], strict=True):
            mean = seed_points(axis, x, part, arm, width=0.6 * WIDTH)
            axis.hlines(mean, x - WIDTH / 2, x + WIDTH / 2, color=ARMS[arm].colour, linewidth=THICK)
        axis.axvline(len(depths) - 0.3, color="0.6", linewidth=0.6, linestyle=(0, (2, 2)))
        axis.set_xticks(places, [*(f"{depth:g}" for depth in depths), f"all {len(depths)}"])
        axis.grid(visible=False, axis="x")
        axis.set(xlabel="depth (layers)", ylabel=f"{quantity} (%)".replace("error", "test error"))
        axis.set_ylim(bottom=-0.04 * of_quantity["value"].max())  # points at 0 stay whole
        percent_axis(axis)
    finish(grid, arm_handles([arm], marker=True), title=points_title(rows, mean="bar: mean"))
    return grid
