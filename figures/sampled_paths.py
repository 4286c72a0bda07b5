"""How large is the gradient along single paths of each length, and how much of it cancels?"""

import math
from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from figures.lines import (
    arm_handles,
    finish,
    handle,
    log_axis,
    marks,
    note_missing,
    seed_lines,
    seeds_title,
    whole_numbers,
)
from figures.path_lengths import single
from figures.points import percent_axis
from figures.style import ARMS, GREY, Axes2D, column_titles, depth_title, epoch_title, panels, style
from figures.table import arms_of, depths_of, select

LABELS = {
    "path_norm": "mean norm of\nsingle paths",
    "mass": "share of mass (%)\n(norm × number)",
    "cancellation": "norm of sum /\nsum of norms",
}
ENDS = ["path_norm_low", "path_norm_high"]
BAND = ["mass_low", "mass_high"]
DOTS = (0, (1, 1.5))
KEYS = ["arm", "depth_total", "seed", "epoch", "path_length"]


@style()
def sampled_paths(table: pd.DataFrame, *, axes: Any = None, depth_total: int | None = None) -> Axes2D:
    """Against path length: mean gradient norm along sampled single paths, the share of the mass, and the cancellation.

    table: arm, depth_total, seed, epoch, path_length, quantity, value, of the network of `depth_total` (None: the
    deepest). quantity: "path_norm" (log axis; "path_norm_low" and "path_norm_high", the ends of its interval, become a
    shade), "mass" (mean norm times the number of paths; drawn as its share in the sum over lengths), "cancellation"
    (norm of the exact sum over the mass; log axis), "samples" (the paths a length; the legend tells the most), and
    without a path_length "mass_low" and "mass_high", the ends of the band of lengths that holds 95 % of the mass: a
    bar. The grey line is the cancellation of C(L, k) directions at right angles to each other, one over its root.
    Columns of panels: epochs; of more than three, the first two and the last. An arm with a single path has one point
    of norm, and neither share nor cancellation: the legend names it.
    """
    rows = select(table, KEYS, figure="sampled_paths", quantity=list(LABELS))
    deepest = depths_of(rows)[-1] if depth_total is None else depth_total
    rows = select(rows, KEYS, figure="sampled_paths", quantity=list(LABELS), depth_total=[deepest])
    epochs = sorted(set(rows["epoch"]))
    epochs = epochs if len(epochs) <= 3 else [*epochs[:2], epochs[-1]]
    everything = table[(table["depth_total"] == deepest) & table["epoch"].isin(epochs)]
    rows = rows[rows["epoch"].isin(epochs)]
    lonely = [arm for arm in arms_of(rows) if single(_of(rows, "path_norm", arm))]
    lines = [q for q in LABELS if len(rows[(rows["quantity"] == q) & (~rows["arm"].isin(lonely) | (q == "path_norm"))])]
    grid = panels(axes, len(lines), len(epochs), figure="sampled_paths", height=1.4, sharex=True, sharey="row")
    for line, quantity in zip(grid, lines, strict=True):
        for axis, epoch in zip(line, epochs, strict=True):
            _panel(axis, everything[everything["epoch"] == epoch], quantity, lonely)
            if quantity == "path_norm":
                note_missing(axis, rows, rows[rows["epoch"] == epoch])
            if quantity == "cancellation":
                _right_angles(axis, rows)
        if quantity == "mass":
            top = line[0].get_ylim()[1]  # the row's axes share it
            for axis, epoch in zip(line, epochs, strict=True):
                _bands(axis, everything[everything["epoch"] == epoch], lonely, top=top)
        for axis in line:
            percent_axis(axis) if quantity == "mass" else log_axis(axis)
        line[0].set_ylabel(LABELS[quantity])
    for axis in grid[-1]:
        axis.set_xlabel("path length (branches)")
        whole_numbers(axis)
    column_titles(grid[0], map(epoch_title, epochs))
    entries = arm_handles(arms_of(rows), marker=True)
    if set(BAND) <= set(everything["quantity"]) and "mass" in lines:
        entries.append(handle("95 % of the mass", GREY, marker="|", markeredgecolor=GREY, markeredgewidth=1.2))
    if "cancellation" in lines:
        entries.append(handle("paths at right angles", GREY, linewidth=0.8, linestyle=DOTS))
    finish(grid, entries, title=_title(rows, everything, deepest, lonely))
    return grid


def _of(rows: pd.DataFrame, quantity: str, arm: str) -> pd.DataFrame:
    return rows[(rows["quantity"] == quantity) & (rows["arm"] == arm)]


def _panel(axis: Axes, rows: pd.DataFrame, quantity: str, lonely: list[str]) -> None:
    """One quantity of all arms at one epoch."""
    arms = [arm for arm in arms_of(rows) if quantity == "path_norm" or arm not in lonely]
    for arm in arms:
        values = _of(rows, quantity, arm)
        if quantity == "path_norm":
            _intervals(axis, rows[rows["arm"] == arm], arm)
        if quantity == "mass":
            whole = values.groupby("seed")["value"].transform("sum")
            values = values.assign(value=values["value"] / whole.where(whole > 0))
        looks = marks(values, arm, x="path_length")
        seed_lines(axis, values, arm, x="path_length", geometric=quantity != "mass", **looks)


def _intervals(axis: Axes, rows: pd.DataFrame, arm: str) -> None:
    """A shade between the ends of each seed's interval."""
    ends = rows[rows["quantity"].isin(ENDS)]
    for _, of_seed in ends.groupby("seed"):
        wide = of_seed.pivot(index="path_length", columns="quantity", values="value").sort_index()
        wide = wide[wide["path_norm_high"] > 0]
        # An interval that reaches below zero has no lower end on a log axis: the shade stops at a tenth of the upper.
        low = wide["path_norm_low"].clip(lower=wide["path_norm_high"] / 10)
        axis.fill_between(wide.index, low, wide["path_norm_high"], color=ARMS[arm].colour, alpha=0.15, linewidth=0)


def _bands(axis: Axes, rows: pd.DataFrame, lonely: list[str], *, top: float) -> None:
    """Above the curves, a bar for each arm over the lengths that hold most of its mass, mean over seeds."""
    for place, arm in enumerate(arm for arm in arms_of(rows) if arm not in lonely):
        low, high = (_of(rows, end, arm)["value"].mean() for end in BAND)
        height, colour = top * (1.04 + 0.1 * place), ARMS[arm].colour
        axis.plot([low, high], [height] * 2, color=colour, linewidth=1.2, marker="|", markersize=5)


def _right_angles(axis: Axes, rows: pd.DataFrame) -> None:
    """The norm of the sum of as many orthogonal vectors of one norm as there are paths, over the sum of their norms."""
    junctions = int(rows["path_length"].max())
    roots = [math.comb(junctions, k) ** -0.5 for k in range(junctions + 1)]
    axis.plot(range(junctions + 1), roots, color=GREY, linewidth=0.8, linestyle=DOTS)


def _title(rows: pd.DataFrame, everything: pd.DataFrame, deepest: int, lonely: list[str]) -> str:
    samples = everything[everything["quantity"] == "samples"]["value"].max()
    said = f"{depth_title(deepest)}, " + (f"{samples:.0f} paths a length; " if samples == samples else "")
    said += seeds_title(rows, mean="mean (geometric but for shares)")
    if set(ENDS) <= set(everything["quantity"]):
        said += "\nshade: 95 % interval of a seed's mean"
    ratios = rows[(rows["quantity"] == "cancellation") & ~rows["arm"].isin(lonely)]["value"]
    if ratios.max() > 1.05:
        said += "; a ratio above 1: too few paths for their spread"
    names = ", ".join(ARMS[arm].label for arm in lonely)
    return f"{said}\na single path, no curves: {names}" if names else said
