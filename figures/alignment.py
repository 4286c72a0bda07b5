"""Does an arm's gradient point where the true one does, and how long is it?"""

from typing import Any

import pandas as pd

from .parts.lines import arm_handles, arm_lines, finish, log_axis, seeds_title, whole_numbers
from .parts.points import percent_axis
from .parts.sheet import drawing, panels
from .parts.style import GREY, Axes2D, Looks, column_titles, depth_title
from .parts.table import arms_of, depths_of, moments, select

BY_BLOCK = {"cosine": "cosine with the\ntrue gradient", "norm ratio": "norm /\ntrue norm"}
BY_EPOCH = {"cosine": "cosine with the\ntrue gradient", "uphill share": "steps uphill\n(%)"}


@drawing
def alignment(table: pd.DataFrame, *, axes: Any = None, looks: Looks = None, legend: bool = True) -> Axes2D:
    """Cosine and norm ratio (log axis) of each block's gradient with the true one of the same weights, against the
    block's depth. Columns: each network's depth, before and after training; the grey line is the true gradient.

    The mean ratio is geometric; exact zeros are left out, as are blocks without a gradient.

    Table: arm, depth_total, seed, epoch, depth (rows without one are left out), quantity ("cosine", "norm ratio"),
    value.
    """
    keys = ["arm", "depth_total", "seed", "epoch", "depth"]
    blocks = table[table["depth"].notna()] if "depth" in table else table
    rows = select(blocks, keys, figure="alignment", quantity=list(BY_BLOCK))
    times, depths, looks = moments(rows), depths_of(rows), arms_of(rows, looks)
    columns = [(depth, moment) for depth in depths for moment in times]
    grid = panels(axes, 2, len(columns), figure="alignment", height=0.95, sharex="col", sharey="row")
    for line, (quantity, label) in zip(grid, BY_BLOCK.items(), strict=True):
        for axis, (depth, moment) in zip(line, columns, strict=True):
            part = times[moment]
            part = part[(part["depth_total"] == depth) & (part["quantity"] == quantity)]
            axis.axhline(1, color=GREY, linewidth=0.8, zorder=0.5)
            arm_lines(axis, part, looks, x="depth", geometric=quantity == "norm ratio", markers="few")
        line[0].set_ylabel(label)
    for axis in grid[1]:
        log_axis(axis)
        whole_numbers(axis)
        axis.set_xlabel("block")
    column_titles(grid[0], [f"{depth_title(depth)},\n{moment}" for depth, moment in columns])
    for axis in grid[0]:
        axis.title.set_linespacing(1.1)
    finish(
        grid,
        arm_handles(looks, marker=True),
        legend=legend,
        caption=seeds_title(rows, mean="mean (of ratios, geometric)"),
    )
    return grid


@drawing
def alignment_over_epochs(table: pd.DataFrame, *, axes: Any = None, looks: Looks = None, legend: bool = True) -> Axes2D:
    """Cosine of the whole network's gradient with the true one after every epoch, and the share (%) of each epoch's
    steps that go uphill on the true loss, to first order. Columns: each network's depth.

    Table: arm, depth_total, seed, epoch, quantity ("cosine", "uphill share"), value (a share from 0 to 1).
    """
    keys = ["arm", "depth_total", "seed", "epoch"]
    rows = select(table, keys, figure="alignment_over_epochs", quantity=list(BY_EPOCH))
    depths, looks = depths_of(rows), arms_of(rows, looks)
    grid = panels(axes, 2, len(depths), figure="alignment_over_epochs", height=0.95, sharex="col", sharey="row")
    for line, (quantity, label) in zip(grid, BY_EPOCH.items(), strict=True):
        for axis, depth in zip(line, depths, strict=True):
            part = rows[(rows["depth_total"] == depth) & (rows["quantity"] == quantity)]
            if quantity == "cosine":
                axis.axhline(1, color=GREY, linewidth=0.8, zorder=0.5)
            arm_lines(axis, part, looks, x="epoch", markers="few")
        line[0].set_ylabel(label)
    percent_axis(grid[1, 0])
    for axis in grid[1]:
        whole_numbers(axis)
        axis.set_xlabel("epoch")
    column_titles(grid[0], map(depth_title, depths))
    finish(grid, arm_handles(looks, marker=True), legend=legend, caption=seeds_title(rows))
    return grid
