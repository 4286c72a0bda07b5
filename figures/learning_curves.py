"""Does it learn at all, and does it generalise, epoch by epoch?"""

from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from figures.lines import arm_handles, finish, log_axis, seed_lines, seeds_title, whole_numbers
from figures.points import percent_axis
from figures.style import ARMS, Axes2D, column_titles, depth_title, panels, style
from figures.table import arms_of, depths_of, select

ROWS = (("train", "loss"), ("validation", "accuracy"))


@style()
def learning_curves(table: pd.DataFrame, *, axes: Any = None) -> Axes2D:
    """Training loss (nats, log axis) and validation accuracy (%) over epochs; a column of panels for each depth.

    table: arm, depth_total, seed, epoch, split, quantity, value (accuracy from 0 to 1). A cross marks a run that ends
    before the table's last epoch: it diverged, or is not finished; the mean ends with it.
    """
    keys = ["arm", "depth_total", "seed", "epoch"]
    drawn = [select(table, keys, figure="learning_curves", split=[s], quantity=[q]) for s, q in ROWS]
    rows = pd.concat(drawn)
    depths = depths_of(rows)
    grid = panels(axes, len(ROWS), len(depths), figure="learning_curves", sharex="col", sharey="row")
    ended = False
    for column, depth in enumerate(depths):
        for axis, part in zip(grid[:, column], drawn, strict=True):
            ended |= _panel(axis, part[part["depth_total"] == depth], last=part["epoch"].max())
        grid[-1, column].set_xlabel("epoch")
    column_titles(grid[0], map(depth_title, depths))
    _label(grid)
    finish(grid, arm_handles(arms_of(rows)), title=seeds_title(rows) + "; ×: ended early" * ended)
    return grid


def _panel(axis: Axes, rows: pd.DataFrame, *, last: float) -> bool:
    """Draw one panel; True if a run in it ended before the last epoch."""
    for arm in arms_of(rows):
        seed_lines(axis, rows[rows["arm"] == arm], arm, x="epoch")
    ends = rows.sort_values("epoch").groupby(["arm", "seed"]).tail(1)
    ends = ends[ends["epoch"] < last]
    for arm, epoch, value in zip(ends["arm"], ends["epoch"], ends["value"], strict=True):
        axis.plot(epoch, value, marker="x", markersize=5, color=ARMS[arm].colour)
    return len(ends) > 0


def _label(grid: Axes2D) -> None:
    grid[0, 0].set_ylabel("training loss\n(nats)")
    grid[1, 0].set_ylabel("validation\naccuracy (%)")
    for loss, accuracy in grid.T:
        log_axis(loss)
        percent_axis(accuracy)
        whole_numbers(accuracy)
