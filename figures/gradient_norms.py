"""How much gradient reaches each depth, and does it come back through the shortcut or through the branch?"""

from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from .parts.lines import (
    arm_handles,
    arm_lines,
    finish,
    handle,
    log_axis,
    note_missing,
    seed_lines,
    seeds_title,
    whole_numbers,
    zeros_text,
)
from .parts.sheet import drawing, panels
from .parts.style import GREY, Axes2D, Look, Looks, column_titles, depth_title, note, row_title
from .parts.table import arms_of, depths_of, moments, of_networks, select

LABEL = "gradient norm\n$\\|\\partial\\,\\mathrm{loss}\\,/\\,\\partial x\\|_2$"
WIDE = 5  # columns beside which there is room for a label in one line
PARTS = {"shortcut": "-", "branch": (0, (2.5, 1.2))}


@drawing
def gradient_norms(table: pd.DataFrame, *, axes: Any = None, looks: Looks = None, legend: bool = True) -> Axes2D:
    """Norm of the loss's gradient at every fork (log axis) against the junction's depth, before and after training.

    Rows of panels: the first and the last epoch; columns: depth_total. The mean is geometric; exact zeros are left out.

    Table: arm, depth_total, seed, epoch, depth, quantity ("total"), value (L2 over the batch).
    """
    keys = ["arm", "depth_total", "seed", "epoch", "depth"]
    times = moments(select(of_networks(table), keys, figure="gradient_norms", quantity=["total"]))
    rows = pd.concat(times.values())
    depths, looks = depths_of(rows), arms_of(rows, looks)
    grid = panels(axes, len(times), len(depths), figure="gradient_norms", sharex="col", sharey="row")
    for line, (moment, at_moment) in zip(grid, times.items(), strict=True):
        for axis, depth in zip(line, depths, strict=True):
            part = at_moment[at_moment["depth_total"] == depth]
            arm_lines(axis, part, looks, x="depth", geometric=True, markers="few")
            note_missing(axis, rows[rows["depth_total"] == depth], part, looks, zeros=True)
        line[0].set_ylabel(LABEL)
        row_title(line[-1], moment)
    for axis in grid.flat:
        log_axis(axis)
    for axis in grid[-1]:
        axis.set_xlabel("junction depth")
        whole_numbers(axis)
    column_titles(grid[0], map(depth_title, depths))
    title = seeds_title(rows, mean="geometric mean") + zeros_text(rows)
    finish(grid, arm_handles(looks, marker=True), legend=legend, caption=title)
    return grid


@drawing
def gradient_split(
    table: pd.DataFrame, *, axes: Any = None, looks: Looks = None, legend: bool = True, depth_total: int | None = None
) -> Axes2D:
    """Norms of the two parts of the gradient at every fork (log axis) against the junction's depth, a column an arm.

    Rows of panels: the first and the last epoch. The mean is geometric; exact zeros are left out, and a part that is
    zero everywhere is named above its panel.

    Table: arm, depth_total, seed, epoch, depth, quantity ("shortcut", "branch"), value (L2 over the batch).
    depth_total: The network to draw; None: the deepest.
    """
    keys = ["arm", "depth_total", "seed", "epoch", "depth"]
    rows = select(of_networks(table), keys, figure="gradient_split", quantity=list(PARTS))
    deepest = depths_of(rows)[-1] if depth_total is None else depth_total
    rows = select(rows, keys, figure="gradient_split", quantity=list(PARTS), depth_total=[deepest])
    times = moments(rows)
    rows = pd.concat(times.values())
    looks = arms_of(rows, looks)
    grid = panels(axes, len(times), len(looks), figure="gradient_split", sharex=True, sharey="row")
    for line, (moment, at_moment) in zip(grid, times.items(), strict=True):
        for axis, (arm, look) in zip(line, looks.items(), strict=True):
            _parts(axis, at_moment[at_moment["arm"] == arm], look)
        line[0].set_ylabel(LABEL)
        row_title(line[-1], moment)
    for axis in grid.flat:
        log_axis(axis)
        whole_numbers(axis)
    for axis in grid[-1]:
        axis.set_xlabel("junction depth" if len(looks) <= WIDE else "junction\ndepth")
    column_titles(grid[0], [look.label for look in looks.values()])
    entries = [handle(f"through the {part}", GREY, linestyle=line) for part, line in PARTS.items()]
    said = f"{seeds_title(rows, mean='geometric mean')}{zeros_text(rows, 'quantity')}"
    title = "; ".join(filter(None, (depth_title(deepest), said)))
    finish(grid, entries, legend=legend, caption=title)
    return grid


def _parts(axis: Axes, rows: pd.DataFrame, look: Look) -> None:
    for part, line in PARTS.items():
        values = rows[rows["quantity"] == part]
        if (values["value"] > 0).any():
            seed_lines(axis, values, look, x="depth", geometric=True, linestyle=line)
        elif len(values):
            note(axis, f"{part} = 0")
    if rows.empty:
        note(axis, "no value")
