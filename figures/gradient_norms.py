"""How much gradient reaches each depth?"""

from typing import Any

import pandas as pd

from figures.lines import (
    arm_handles,
    finish,
    log_axis,
    marks,
    note_missing,
    seed_lines,
    seeds_title,
    whole_numbers,
    zeros_text,
)
from figures.style import Axes2D, column_titles, depth_title, panels, row_title, style
from figures.table import arms_of, depths_of, moments, select


@style()
def gradient_norms(table: pd.DataFrame, *, axes: Any = None) -> Axes2D:
    """Norm of the loss's gradient at every fork (log axis) against the junction's depth, before and after training.

    table: arm, depth_total, seed, epoch, depth, quantity ("total"), value (L2 over the batch). Rows of panels: the
    first and the last epoch; columns: depth_total. The mean is geometric; exact zeros are left out.
    """
    keys = ["arm", "depth_total", "seed", "epoch", "depth"]
    times = moments(select(table, keys, figure="gradient_norms", quantity=["total"]))
    rows = pd.concat(times.values())
    depths = depths_of(rows)
    grid = panels(axes, len(times), len(depths), figure="gradient_norms", sharex="col", sharey="row")
    for line, (moment, at_moment) in zip(grid, times.items(), strict=True):
        for axis, depth in zip(line, depths, strict=True):
            part = at_moment[at_moment["depth_total"] == depth]
            for arm in arms_of(part):
                of_arm = part[part["arm"] == arm]
                seed_lines(axis, of_arm, arm, x="depth", geometric=True, **marks(part, arm, x="depth"))
            note_missing(axis, rows[rows["depth_total"] == depth], part)
        line[0].set_ylabel("gradient norm\n$\\|\\partial\\,\\mathrm{loss}\\,/\\,\\partial x\\|_2$")
        row_title(line[-1], moment)
    for axis in grid.flat:
        log_axis(axis)
    for axis in grid[-1]:
        axis.set_xlabel("junction depth")
        whole_numbers(axis)
    column_titles(grid[0], map(depth_title, depths))
    title = seeds_title(rows, mean="geometric mean") + zeros_text(rows)
    finish(grid, arm_handles(arms_of(rows), marker=True), title=title)
    return grid
