"""How much better than its members is an ensemble?"""

from typing import Any

import pandas as pd

from .parts.lines import arm_handles, finish
from .parts.points import percent_axis, points_title, seed_points
from .parts.sheet import drawing, panels
from .parts.style import Axes2D, Looks
from .parts.table import arms_of, select


@drawing
def ensemble(table: pd.DataFrame, *, axes: Any = None, looks: Looks = None, legend: bool = True) -> Axes2D:
    """Test error (%) of networks of different depth and, at the right, of all of them with averaged probabilities; a
    panel for top-1, one for top-5; a point for every seed, a marker at their mean.

    Table: arm (one), depth_total (without a value: the ensemble), seed, count (networks in it), quantity ("top-1
    error", "top-5 error"), value (from 0 to 1).
    """
    rows = select(
        table, ["arm", "depth_total", "seed", "count"], figure="ensemble", quantity=["top-1 error", "top-5 error"]
    )
    looks, quantities = arms_of(rows, looks), sorted(rows["quantity"].unique())
    depths = sorted(rows["depth_total"].dropna().unique())
    names = {depth: f"{depth:g}" for depth in depths}
    together = f"all {len(depths)}"
    rows = rows.assign(network=rows["depth_total"].map(names).fillna(together))
    grid = panels(axes, 1, len(quantities), figure="ensemble", height=1.45)
    for axis, quantity in zip(grid[0], quantities, strict=True):
        part = rows[rows["quantity"] == quantity]
        seed_points(axis, part, looks, by="network", order=[*names.values(), together])
        axis.axvline(len(depths) - 0.5, color="0.6", linewidth=0.6, linestyle=(0, (2, 2)))
        axis.set(xlabel="depth (layers)", ylabel=f"test {quantity} (%)")
        axis.set_ylim(bottom=-0.04 * part["value"].max())  # points at 0 stay whole
        percent_axis(axis)
    finish(grid, arm_handles(looks, line=False, marker=True), legend=legend, caption=points_title(rows))
    return grid
