"""Does an arm's gradient point where the true one does, and how long is it?"""

from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from figures.lines import arm_handles, finish, log_axis, marks, seed_lines, seeds_title, whole_numbers
from figures.style import GREY, SMALL, Axes2D, column_titles, depth_title, panels, style
from figures.table import arms_of, depths_of, moments, select

BY_BLOCK = {"cosine": "cosine with the\ntrue gradient", "norm ratio": "norm /\ntrue norm"}
BY_EPOCH = {"cosine": "cosine with the\ntrue gradient", "uphill share": "steps uphill\n(%)"}


@style()
def alignment(table: pd.DataFrame, *, axes: Any = None) -> Axes2D:
    """Cosine and norm ratio (log axis) of each block's gradient with the true one of the same weights, against the
    block's depth. Columns: each network's depth, before and after training; the grey line is the true gradient.

    table: arm, depth_total, seed, epoch, depth (rows without one are left out), quantity ("cosine", "norm ratio"),
    value. The mean ratio is geometric; exact zeros are left out, as are blocks without a gradient.
    """
    keys = ["arm", "depth_total", "seed", "epoch", "depth"]
    blocks = table[table["depth"].notna()] if "depth" in table else table
    rows = select(blocks, keys, figure="alignment", quantity=list(BY_BLOCK))
    times, depths = moments(rows), depths_of(rows)
    columns = [(depth, moment) for depth in depths for moment in times]
    grid = panels(axes, 2, len(columns), figure="alignment", height=1.3, sharex="col", sharey="row")
    for line, (quantity, label) in zip(grid, BY_BLOCK.items(), strict=True):
        for axis, (depth, moment) in zip(line, columns, strict=True):
            part = times[moment]
            part = part[(part["depth_total"] == depth) & (part["quantity"] == quantity)]
            _lines(axis, part, x="depth", geometric=quantity == "norm ratio", true=1)
        line[0].set_ylabel(label)
    for axis in grid[1]:
        log_axis(axis)
        whole_numbers(axis)
        axis.set_xlabel("block")
    column_titles(grid[0], [f"{depth_title(depth)},\n{moment}" for depth, moment in columns])
    for axis in grid[0]:
        axis.title.set_linespacing(1.1)
        if len(columns) > 4:
            axis.title.set_fontsize(SMALL)
    finish(grid, arm_handles(arms_of(rows), marker=True), title=seeds_title(rows, mean="mean (of ratios, geometric)"))
    return grid


@style()
def alignment_over_epochs(table: pd.DataFrame, *, axes: Any = None) -> Axes2D:
    """Cosine of the whole network's gradient with the true one after every epoch, and the share (%) of each epoch's
    steps that go uphill on the true loss, to first order. Columns: each network's depth.

    table: arm, depth_total, seed, epoch, quantity ("cosine", "uphill share"), value (a share from 0 to 1).
    """
    keys = ["arm", "depth_total", "seed", "epoch"]
    rows = select(table, keys, figure="alignment_over_epochs", quantity=list(BY_EPOCH))
    depths = depths_of(rows)
    grid = panels(axes, 2, len(depths), figure="alignment_over_epochs", height=1.3, sharex="col", sharey="row")
    for line, (quantity, label) in zip(grid, BY_EPOCH.items(), strict=True):
        for axis, depth in zip(line, depths, strict=True):
            part = rows[(rows["depth_total"] == depth) & (rows["quantity"] == quantity)]
            _lines(axis, part, x="epoch", geometric=False, true=1 if quantity == "cosine" else None)
        line[0].set_ylabel(label)
    grid[1, 0].yaxis.set_major_formatter(lambda value, _: f"{100 * value:g}")
    for axis in grid[1]:
        whole_numbers(axis)
        axis.set_xlabel("epoch")
    column_titles(grid[0], map(depth_title, depths))
    finish(grid, arm_handles(arms_of(rows), marker=True), title=seeds_title(rows))
    return grid


def _lines(axis: Axes, rows: pd.DataFrame, *, x: str, geometric: bool, true: float | None) -> None:
    """Every arm's lines, and a grey one where the true gradient is."""
    if true is not None:
        axis.axhline(true, color=GREY, linewidth=0.8, zorder=0.5)
    for arm in arms_of(rows):
        seed_lines(axis, rows[rows["arm"] == arm], arm, x=x, geometric=geometric, **marks(rows, arm, x=x))
