"""What does the shortcut do forward, what backward, and do the two add up?"""

from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from figures.lines import THICK, finish, handle, note_missing
from figures.points import percent_axis, points_title, seed_points
from figures.style import ARMS, GREY, Axes2D, column_titles, depth_title, nothing, panels, style
from figures.table import arms_of, depths_of, select

CORNERS = {"on": ("stop-gradient", "residual"), "off": ("plain", "gradient-only")}  # by forward; backward off, then on
LINES = {"on": "-", "off": (0, (2.5, 1.2))}


@style()
def interaction(table: pd.DataFrame, *, axes: Any = None) -> Axes2D:
    """Test accuracy (%) of the 2 x 2 factorial: x, the shortcut's backward; a line each for its forward on and off.

    table: arm (residual, stop-gradient, gradient-only, plain), depth_total, seed, split ("test"), quantity
    ("accuracy"), value (from 0 to 1). One panel for each depth_total; lines join the means, every seed is a point.
    Parallel lines: the two effects add up.
    """
    arms = [arm for pair in CORNERS.values() for arm in pair]
    rows = select(table, ["arm", "depth_total", "seed"], figure="interaction", quantity=["accuracy"], split=["test"])
    if not set(arms) & set(rows["arm"]):
        return nothing(axes, f"nothing to show: none of the arms\n{', '.join(arms)}", figure="interaction")
    rows = rows[rows["arm"].isin(arms)]
    depths = depths_of(rows)
    grid = panels(axes, 1, len(depths), figure="interaction", height=1.9, sharex=True, sharey=True)
    for axis, depth in zip(grid[0], depths, strict=True):
        _panel(axis, part := rows[rows["depth_total"] == depth])
        note_missing(axis, rows, part)
        axis.set_xlabel("shortcut backward")
    column_titles(grid[0], map(depth_title, depths))
    grid[0, 0].set_ylabel("test accuracy (%)")
    points = [handle(ARMS[arm].label, ARMS[arm].colour, marker=ARMS[arm].marker, linestyle="") for arm in arms_of(rows)]
    lines = [handle(f"shortcut forward {which}", GREY, linestyle=line) for which, line in LINES.items()]
    finish(grid, points + lines, title=points_title(rows, mean="lines join means"))
    return grid


def _panel(axis: Axes, rows: pd.DataFrame) -> None:
    for forward, pair in CORNERS.items():
        means = [seed_points(axis, x, rows[rows["arm"] == arm], arm, width=0.1) for x, arm in enumerate(pair)]
        axis.plot([0, 1], means, color=GREY, linestyle=LINES[forward], linewidth=THICK, zorder=1.5)
    axis.set_xticks([0, 1], ["off", "on"])
    axis.set_xlim(-0.3, 1.3)
    axis.grid(visible=False, axis="x")
    percent_axis(axis)
