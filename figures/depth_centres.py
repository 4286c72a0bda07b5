"""Are the blocks used evenly, or more at one end? Centres of mass over depth."""

from textwrap import fill
from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from figures.lines import EDGE, finish, handle
from figures.points import points_title
from figures.style import ARMS, GREY, SMALL, Axes2D, panels, style
from figures.table import arms_of, select

TICKS = ["0\nfirst block", "0.25\n", "0.5\neven", "0.75\n", "1\nlast block"]  # of two lines each, to stand level
SPREAD = 0.13  # between two arms of one measure, whose room is 1


@style()
def depth_centres(table: pd.DataFrame, *, axes: Any = None) -> Axes2D:
    """A line for each measure: the centre of mass of each arm between the first block (0) and the last (1).

    table: arm, seed, outcome (the measure), quantity ("centre", a point for each seed; "low" and "high", the ends of an
    interval, a bar), value.
    """
    rows = select(table, ["arm", "seed", "outcome"], figure="depth_centres", quantity=["centre"])
    names = list(dict.fromkeys(rows["outcome"]))
    grid = panels(axes, 1, 1, figure="depth_centres", height=0.42 * len(names) + 0.3)
    axis = grid[0, 0]
    arms = arms_of(rows)
    for place, name in enumerate(names):
        for i, arm in enumerate(arms):
            y = place + SPREAD * (i - (len(arms) - 1) / 2)
            _draw(axis, table[(table["outcome"] == name) & (table["arm"] == arm)], arm, y)
    axis.axvline(0.5, color=GREY, linewidth=0.8, zorder=1)
    axis.set_xlim(-0.02, 1.02)
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.set_yticks(range(len(names)), [fill(name, 18) for name in names], linespacing=0.95)
    axis.tick_params(axis="y", length=0)
    axis.grid(visible=False, axis="y")
    for edge in range(1, len(names)):
        axis.axhline(edge - 0.5, color="0.9", linewidth=0.5, zorder=0)
    axis.set_xticks([0.25 * i for i in range(5)], TICKS)
    axis.set_xlabel("centre of mass over depth", fontsize=SMALL + 1)
    handles = [handle(ARMS[arm].label, ARMS[arm].colour, marker=ARMS[arm].marker, linestyle="") for arm in arms]
    bars = "; bars: 95 % t interval" if table[table["quantity"] == "low"]["value"].notna().any() else ""
    finish(grid, handles, title=points_title(rows, mean=f"lines: mean{bars}"))
    return grid


def _draw(axis: Axes, rows: pd.DataFrame, arm: str, y: float) -> None:
    values = rows[rows["quantity"] == "centre"]["value"]
    if values.empty:
        return
    look = ARMS[arm]
    ends = [rows[rows["quantity"] == end]["value"].dropna().tolist() for end in ("low", "high")]
    if all(ends):
        axis.plot([ends[0][0], ends[1][0]], [y, y], color=look.colour, linewidth=1, alpha=0.6)
    options: dict[str, Any] = {"markersize": 2.8, **EDGE}
    axis.plot(values, [y] * len(values), color=look.colour, linestyle="", marker=look.marker, **options)
    axis.plot([values.mean()] * 2, [y - SPREAD / 2, y + SPREAD / 2], color=look.colour, linewidth=1.2)
