"""By which way does the gradient come back to a fork: through the shortcut, or through the branch?"""

from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from figures.lines import finish, handle, log_axis, seed_lines, seeds_title, whole_numbers, zeros_text
from figures.style import ARMS, GREY, Axes2D, column_titles, depth_title, note, panels, row_title, style
from figures.table import arms_of, depths_of, moments, select

PARTS = {"shortcut": "-", "branch": (0, (2.5, 1.2))}


@style()
def gradient_split(table: pd.DataFrame, *, axes: Any = None, depth_total: int | None = None) -> Axes2D:
    """Norms of the two parts of the gradient at every fork (log axis) against the junction's depth, a column an arm.

    table: arm, depth_total, seed, epoch, depth, quantity ("shortcut", "branch"), value (L2 over the batch). Rows of
    panels: the first and the last epoch of the network of `depth_total` (None: the deepest). The mean is geometric;
    exact zeros are left out, and a part that is nothing but zeros is named above its panel.
    """
    keys = ["arm", "depth_total", "seed", "epoch", "depth"]
    rows = select(table, keys, figure="gradient_split", quantity=list(PARTS))
    deepest = depths_of(rows)[-1] if depth_total is None else depth_total
    rows = select(rows, keys, figure="gradient_split", quantity=list(PARTS), depth_total=[deepest])
    times = moments(rows)
    rows = pd.concat(times.values())
    arms = arms_of(rows)
    grid = panels(axes, len(times), len(arms), figure="gradient_split", sharex=True, sharey="row")
    for line, (moment, at_moment) in zip(grid, times.items(), strict=True):
        for axis, arm in zip(line, arms, strict=True):
            _panel(axis, at_moment[at_moment["arm"] == arm], arm)
        line[0].set_ylabel("gradient norm\n$\\|\\partial\\,\\mathrm{loss}\\,/\\,\\partial x\\|_2$")
        row_title(line[-1], moment)
    for axis in grid.flat:
        log_axis(axis)
        whole_numbers(axis)
    for axis in grid[-1]:
        axis.set_xlabel("junction depth")
    column_titles(grid[0], [ARMS[arm].label for arm in arms])
    entries = [handle(f"through the {part}", GREY, linestyle=line) for part, line in PARTS.items()]
    title = f"{depth_title(deepest)}; {seeds_title(rows, mean='geometric mean')}{zeros_text(rows, 'quantity')}"
    finish(grid, entries, title=title)
    return grid


def _panel(axis: Axes, rows: pd.DataFrame, arm: str) -> None:
    for part, line in PARTS.items():
        values = rows[rows["quantity"] == part]
        if (values["value"] > 0).any():
            seed_lines(axis, values, arm, x="depth", geometric=True, linestyle=line)
        elif len(values):
            note(axis, f"{part} = 0")
    if rows.empty:
        note(axis, "no value")
