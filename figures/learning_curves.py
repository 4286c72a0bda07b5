"""Does it learn at all, and does it generalise, epoch by epoch?"""

from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from .parts.lines import arm_handles, arm_lines, finish, log_axis, seeds_title, whole_numbers
from .parts.points import percent_axis
from .parts.sheet import drawing, panels
from .parts.style import Axes2D, Look, Looks, column_titles, depth_title
from .parts.table import arms_of, depths_of, select

ROWS = (("train", "loss"), ("validation", "accuracy"))
LOSSES = (("train", "loss"), ("validation", "loss"))


@drawing
def learning_curves(table: pd.DataFrame, *, axes: Any = None, looks: Looks = None, legend: bool = True) -> Axes2D:
    """Training loss (nats, log axis) and validation accuracy (%) over epochs; a column of panels for each depth.

    A cross marks a run that ends before the table's last epoch: it diverged, or is not finished; the mean ends with it.
    Where there is no accuracy, the validation loss is drawn instead.

    Table: arm, depth_total, seed, epoch, split, quantity ("loss" of split "train", "accuracy" of split "validation"),
    value (accuracy from 0 to 1).
    """
    keys = ["arm", "depth_total", "seed", "epoch"]
    accurate = "quantity" not in table or "accuracy" in set(table["quantity"])
    shown = ROWS if accurate else LOSSES
    drawn = [select(table, keys, figure="learning_curves", split=[s], quantity=[q]) for s, q in shown]
    rows = pd.concat(drawn)
    depths, looks = depths_of(rows), arms_of(rows, looks)
    grid = panels(axes, len(ROWS), len(depths), figure="learning_curves", sharex="col", sharey="row")
    ended = False
    for column, depth in enumerate(depths):
        for axis, part in zip(grid[:, column], drawn, strict=True):
            ended |= _panel(axis, part[part["depth_total"] == depth], looks, last=part["epoch"].max())
        grid[-1, column].set_xlabel("epoch")
    column_titles(grid[0], map(depth_title, depths))
    _label(grid, accurate=accurate)
    finish(grid, arm_handles(looks), legend=legend, caption=seeds_title(rows) + "; ×: ended early" * ended)
    return grid


def _panel(axis: Axes, rows: pd.DataFrame, looks: dict[str, Look], *, last: float) -> bool:
    """Draw one panel; True if a run in it ended before the last epoch."""
    arm_lines(axis, rows, looks, x="epoch")
    ends = rows.sort_values("epoch").groupby(["arm", "seed"]).tail(1)
    ends = ends[ends["epoch"] < last]
    for arm, epoch, value in zip(ends["arm"], ends["epoch"], ends["value"], strict=True):
        axis.plot(epoch, value, marker="x", markersize=5, color=looks[arm].colour)
    return len(ends) > 0


def _label(grid: Axes2D, *, accurate: bool) -> None:
    grid[0, 0].set_ylabel("training loss\n(nats)")
    grid[1, 0].set_ylabel("validation\naccuracy (%)" if accurate else "validation\nloss (nats)")
    for training, validation in grid.T:
        log_axis(training)
        (percent_axis if accurate else log_axis)(validation)
        whole_numbers(validation)
