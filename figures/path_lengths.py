"""Which path lengths carry the gradient?"""

import math
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

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
from figures.style import ARMS, GREY, Axes2D, column_titles, depth_title, panels, row_title, style
from figures.table import arms_of, depths_of, moments, select

LABELS = {"norm": "norm of the\nsummed gradient", "share": "signed share\nof the gradient"}


@style()
def path_lengths(table: pd.DataFrame, *, axes: Any = None) -> Axes2D:
    """Norm (log axis) and signed share of the summed gradient of all paths of each length, before and after training.

    table: arm, depth_total, seed, epoch, path_length (branches taken), quantity ("norm": L2 of the gradient at the
    first fork; "share": <g_k, g> / <g, g>, they sum to 1), value. Columns of panels: depth_total. Exact zeros are left
    out of the norms, whose mean is geometric. An arm with a single path length is a point there and has no curve of
    shares (its one share is 1): the legend names it.
    """
    keys = ["arm", "depth_total", "seed", "epoch", "path_length"]
    times = moments(select(table, keys, figure="path_lengths", quantity=list(LABELS)))
    rows = pd.concat(times.values())
    depths = depths_of(rows)
    lines = [(quantity, moment) for quantity in _quantities(rows) for moment in times]
    grid = panels(axes, len(lines), len(depths), figure="path_lengths", height=1.25, sharex="col", sharey="row")
    for line, (quantity, moment) in zip(grid, lines, strict=True):
        for axis, depth in zip(line, depths, strict=True):
            part = times[moment][times[moment]["depth_total"] == depth]
            _draw(axis, part[part["quantity"] == quantity])
            note_missing(axis, rows[rows["depth_total"] == depth], part)
        for axis in line:
            log_axis(axis) if quantity == "norm" else _share_axis(axis)
        line[0].set_ylabel(LABELS[quantity])
        row_title(line[-1], moment)
    for axis in grid[-1]:
        axis.set_xlabel("path length\n(branches)")
        whole_numbers(axis)
    column_titles(grid[0], map(depth_title, depths))
    finish(grid, arm_handles(arms_of(rows), marker=True), title=_title(rows))
    return grid


def _draw(axis: Axes, rows: pd.DataFrame) -> None:
    norm = set(rows["quantity"]) == {"norm"}
    for arm in arms_of(rows):
        values = rows[rows["arm"] == arm]
        if norm or not single(values):
            seed_lines(axis, values, arm, x="path_length", geometric=norm, **marks(values, arm, x="path_length"))


def single(values: pd.DataFrame) -> bool:
    """Whether no network in here has a second path length with a gradient."""
    return values[values["value"] != 0].groupby(["depth_total", "epoch", "seed"])["path_length"].nunique().max() <= 1


def _single_arms(rows: pd.DataFrame, quantity: str) -> list[str]:
    rows = rows[rows["quantity"] == quantity]
    return [arm for arm in arms_of(rows) if single(rows[rows["arm"] == arm])]


def _quantities(rows: pd.DataFrame) -> list[str]:
    """The quantities there, but no shares beside the norms if all of them are 1."""
    there = [quantity for quantity in LABELS if quantity in set(rows["quantity"])]
    return ["norm"] if "norm" in there and _single_arms(rows, "share") == arms_of(rows) else there


def _share_axis(axis: Axes) -> None:
    """Linear, with the zero; where shares beyond 2 cancel each other, logarithmic in both directions outside of ±1."""
    axis.axhline(0, color=GREY, linewidth=0.5)
    limit = max(map(abs, axis.get_ylim()))
    if limit > 2:
        axis.set_yscale("symlog", linthresh=1)
        decades = {math.floor(math.log10(limit)), (math.floor(math.log10(limit)) + 1) // 2}
        axis.set_yticks([0, *(sign * 10.0**decade for sign in (-1, 1) for decade in decades)])
        axis.yaxis.set_minor_locator(NullLocator())


def _title(rows: pd.DataFrame) -> str:
    shares = _quantities(rows) != ["norm"]
    curves = rows[(rows["quantity"] == "norm") & ~rows["arm"].isin(_single_arms(rows, "norm"))]
    mean = "mean (geometric for norms)" if shares else "geometric mean"
    title = seeds_title(rows, mean=mean) + zeros_text(curves)
    single = ", ".join(ARMS[arm].label for arm in _single_arms(rows, "share"))
    return f"{title}\nno share curve: {single} (one length, share 1)" if single and shares else title
