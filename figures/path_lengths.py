"""Which path lengths carry the gradient, how large is it along single paths, and how much of it cancels?"""

import math
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from .parts.lines import (
    arm_handles,
    arm_lines,
    finish,
    handle,
    log_axis,
    note_missing,
    seeds_title,
    whole_numbers,
    zeros_text,
)
from .parts.points import percent_axis
from .parts.sheet import drawing, panels
from .parts.style import GREY, UNSAID, Axes2D, Look, Looks, column_titles, depth_title, epoch_title, row_title
from .parts.table import arms_of, check_quantities, depths_of, moments, of_networks, select

KEYS = ["arm", "depth_total", "seed", "epoch", "path_length"]
SUMMED = {"norm": "norm of the\nsummed gradient", "share": "signed share\nof the gradient"}
SAMPLED = {
    "path_norm": "mean norm of\nsingle paths",
    "mass": "share of mass (%)\n(norm × number)",
    "cancellation": "norm of sum /\nsum of norms",
}
ENDS = ["path_norm_low", "path_norm_high"]
BAND = ["mass_low", "mass_high"]
DOTS = (0, (1, 1.5))


@drawing
def path_lengths(table: pd.DataFrame, *, axes: Any = None, looks: Looks = None, legend: bool = True) -> Axes2D:
    """Norm (log axis) and signed share of the summed gradient of all paths of each length, before and after training.

    Columns of panels: depth_total. Exact zeros are left out of the norms, whose mean is geometric. An arm with a single
    path length is a point there and has no curve of shares (its one share is 1): the caption names it.

    Table: arm, depth_total, seed, epoch, path_length (branches taken), quantity ("norm": L2 of the gradient at the
    first fork; "share": <g_k, g> / <g, g>, they sum to 1), value.
    """
    times = moments(select(of_networks(table), KEYS, figure="path_lengths", quantity=list(SUMMED)))
    rows = pd.concat(times.values())
    depths, looks = depths_of(rows), arms_of(rows, looks)
    lines = [(quantity, moment) for quantity in _quantities(rows) for moment in times]
    grid = panels(axes, len(lines), len(depths), figure="path_lengths", height=0.9, sharex="col", sharey="row")
    for line, (quantity, moment) in zip(grid, lines, strict=True):
        for axis, depth in zip(line, depths, strict=True):
            part = times[moment][times[moment]["depth_total"] == depth]
            _draw_summed(axis, part[part["quantity"] == quantity], looks)
            note_missing(axis, rows[rows["depth_total"] == depth], part, looks)
        for axis in line:
            log_axis(axis) if quantity == "norm" else _share_axis(axis)
        line[0].set_ylabel(SUMMED[quantity])
        row_title(line[-1], moment)
    for axis in grid[-1]:
        axis.set_xlabel("path length\n(branches)")
        whole_numbers(axis)
    column_titles(grid[0], map(depth_title, depths))
    finish(grid, arm_handles(looks, marker=True), legend=legend, caption=_summed_title(rows, looks))
    return grid


def _draw_summed(axis: Axes, rows: pd.DataFrame, looks: dict[str, Look]) -> None:
    norm = set(rows["quantity"]) == {"norm"}
    drawn = {arm: look for arm, look in looks.items() if norm or not single(rows[rows["arm"] == arm])}
    arm_lines(axis, rows[rows["arm"].isin(list(drawn))], drawn, x="path_length", geometric=norm, markers="few")


def single(values: pd.DataFrame) -> bool:
    """Whether no network in here has a second path length with a gradient."""
    return values[values["value"] != 0].groupby(["depth_total", "epoch", "seed"])["path_length"].nunique().max() <= 1


def _single_arms(rows: pd.DataFrame, quantity: str, looks: Looks = None) -> dict[str, Look]:
    rows = rows[rows["quantity"] == quantity]
    return {arm: look for arm, look in arms_of(rows, looks).items() if single(rows[rows["arm"] == arm])}


def _quantities(rows: pd.DataFrame) -> list[str]:
    """The quantities present, but no shares beside the norms if all of them are 1."""
    present = [quantity for quantity in SUMMED if quantity in set(rows["quantity"])]
    return ["norm"] if "norm" in present and set(_single_arms(rows, "share")) == set(rows["arm"]) else present


def _share_axis(axis: Axes) -> None:
    """Linear, with the zero; where shares beyond 2 cancel each other, logarithmic in both directions outside of ±1."""
    axis.axhline(0, color=GREY, linewidth=0.5)
    limit = max(map(abs, axis.get_ylim()))
    if limit > 2:
        axis.set_yscale("symlog", linthresh=1)
        decades = {math.floor(math.log10(limit)), (math.floor(math.log10(limit)) + 1) // 2}
        axis.set_yticks([0, *(sign * 10.0**decade for sign in (-1, 1) for decade in decades)])
        axis.yaxis.set_minor_locator(NullLocator())


def _summed_title(rows: pd.DataFrame, looks: dict[str, Look]) -> str:
    shares = _quantities(rows) != ["norm"]
    curves = rows[(rows["quantity"] == "norm") & ~rows["arm"].isin(list(_single_arms(rows, "norm")))]
    mean = "mean (geometric for norms)" if shares else "geometric mean"
    title = seeds_title(rows, mean=mean) + zeros_text(curves)
    names = ", ".join(look.label for look in _single_arms(rows, "share", looks).values())
    return f"{title}\nno share curve: {names} (one length, share 1)" if names and shares else title


@drawing
def sampled_paths(
    table: pd.DataFrame, *, axes: Any = None, looks: Looks = None, legend: bool = True, depth_total: int | None = None
) -> Axes2D:
    """Against path length: mean gradient norm along sampled single paths, the share of the mass, and the cancellation.

    Columns of panels: epochs; of more than three, the first two and the last. The grey line is the cancellation of
    C(L, k) directions at right angles to each other, one over its root. An arm with a single path has one point of
    norm, and neither share nor cancellation: the caption names it.

    Table: arm, depth_total, seed, epoch, path_length, quantity, value. quantity: "path_norm" (log axis; "path_norm_low"
    and "path_norm_high", the ends of its interval, become a shade), "mass" (mean norm times the number of paths; drawn
    as its share in the sum over lengths), "cancellation" (norm of the exact sum over the mass; log axis), "samples"
    (the paths a length; the caption gives the most), and without a path_length "mass_low" and "mass_high", the ends of
    the band of lengths that holds 95 % of the mass: a bar.
    depth_total: The network to draw; None: the deepest.
    """
    table = of_networks(table)
    rows = select(table, KEYS, figure="sampled_paths", quantity=list(SAMPLED))
    if table["quantity"].isin(ENDS).any():
        check_quantities(table, ENDS, figure="sampled_paths")
    deepest = depths_of(rows)[-1] if depth_total is None else depth_total
    rows = select(rows, KEYS, figure="sampled_paths", quantity=list(SAMPLED), depth_total=[deepest])
    epochs = sorted(set(rows["epoch"]))
    epochs = epochs if len(epochs) <= 3 else [*epochs[:2], epochs[-1]]
    everything = table[(table["depth_total"] == deepest) & table["epoch"].isin(epochs)]
    rows = rows[rows["epoch"].isin(epochs)]
    looks = arms_of(rows, looks)
    curves = {arm: look for arm, look in looks.items() if not single(_of(rows, "path_norm", arm))}
    several = rows["arm"].isin(list(curves))
    lines = [q for q in SAMPLED if len(rows[(rows["quantity"] == q) & (several | (q == "path_norm"))])]
    grid = panels(axes, len(lines), len(epochs), figure="sampled_paths", height=1.0, sharex=True, sharey="row")
    for line, quantity in zip(grid, lines, strict=True):
        for axis, epoch in zip(line, epochs, strict=True):
            drawn = looks if quantity == "path_norm" else curves
            _draw_sampled(axis, everything[everything["epoch"] == epoch], quantity, drawn)
            if quantity == "path_norm":
                note_missing(axis, rows, rows[rows["epoch"] == epoch], looks)
            if quantity == "cancellation":
                _right_angles(axis, rows)
        if quantity == "mass":
            top = line[0].get_ylim()[1]  # the row's axes share it
            for axis, epoch in zip(line, epochs, strict=True):
                _bands(axis, everything[everything["epoch"] == epoch], curves, top=top)
        for axis in line:
            percent_axis(axis) if quantity == "mass" else log_axis(axis)
        line[0].set_ylabel(SAMPLED[quantity])
    for axis in grid[-1]:
        axis.set_xlabel("path length (branches)")
        whole_numbers(axis)
    column_titles(grid[0], map(epoch_title, epochs))
    entries = arm_handles(looks, marker=True)
    if set(BAND) <= set(everything["quantity"]) and "mass" in lines:
        entries.append(handle("95 % of the mass", GREY, marker="|", markeredgecolor=GREY, markeredgewidth=1.2))
    if "cancellation" in lines:
        entries.append(handle("paths at right angles", GREY, linewidth=0.8, linestyle=DOTS))
    finish(grid, entries, legend=legend, caption=_sampled_title(rows, everything, deepest, looks, curves))
    return grid


def _of(rows: pd.DataFrame, quantity: str, arm: str) -> pd.DataFrame:
    return rows[(rows["quantity"] == quantity) & (rows["arm"] == arm)]


def _draw_sampled(axis: Axes, rows: pd.DataFrame, quantity: str, looks: dict[str, Look]) -> None:
    """One quantity of the arms of `looks` at one epoch."""
    values = rows[(rows["quantity"] == quantity) & rows["arm"].isin(list(looks))]
    if quantity == "path_norm":
        for arm, look in looks.items():
            _intervals(axis, rows[rows["arm"] == arm], look)
    if quantity == "mass":
        whole = values.groupby(["arm", "seed"])["value"].transform("sum")
        values = values.assign(value=values["value"] / whole.where(whole > 0))
    arm_lines(axis, values, looks, x="path_length", geometric=quantity != "mass", markers="few")


def _intervals(axis: Axes, rows: pd.DataFrame, look: Look) -> None:
    """A shade between the ends of each seed's interval."""
    ends = rows[rows["quantity"].isin(ENDS)]
    for _, of_seed in ends.groupby("seed"):
        wide = of_seed.pivot(index="path_length", columns="quantity", values="value").sort_index()
        wide = wide[wide["path_norm_high"] > 0]
        # An interval that reaches below zero has no lower end on a log axis: the shade stops at a tenth of the upper.
        low = wide["path_norm_low"].clip(lower=wide["path_norm_high"] / 10)
        axis.fill_between(wide.index, low, wide["path_norm_high"], color=look.colour, alpha=0.15, linewidth=0)


def _bands(axis: Axes, rows: pd.DataFrame, curves: dict[str, Look], *, top: float) -> None:
    """Above the curves, a bar for each arm over the lengths that hold most of its mass, mean over seeds."""
    for place, (arm, look) in enumerate(curves.items()):
        low, high = (_of(rows, end, arm)["value"].mean() for end in BAND)
        height = top * (1.04 + 0.1 * place)
        axis.plot([low, high], [height] * 2, color=look.colour, linewidth=1.2, marker="|", markersize=5)


def _right_angles(axis: Axes, rows: pd.DataFrame) -> None:
    """The norm of the sum of as many orthogonal vectors of one norm as there are paths, over the sum of their norms."""
    junctions = int(rows["path_length"].max())
    roots = [math.comb(junctions, k) ** -0.5 for k in range(junctions + 1)]
    axis.plot(range(junctions + 1), roots, color=GREY, linewidth=0.8, linestyle=DOTS)


def _sampled_title(
    rows: pd.DataFrame, everything: pd.DataFrame, deepest: int, looks: dict[str, Look], curves: dict[str, Look]
) -> str:
    samples = everything[everything["quantity"] == "samples"]["value"].max()
    counted = f"{samples:.0f} paths a length" if samples == samples else ""
    lines = seeds_title(rows, mean="mean (geometric but for shares)")
    title = "; ".join(filter(None, (", ".join(filter(None, (depth_title(deepest), counted))), lines)))
    if set(ENDS) <= set(everything["quantity"]):
        of = "the" if set(rows["seed"]) == {UNSAID} else "a seed's"
        title += f"\nshade: 95 % interval of {of} mean"
    ratios = rows[(rows["quantity"] == "cancellation") & rows["arm"].isin(list(curves))]["value"]
    if ratios.max() > 1.05:
        title += "; a ratio above 1: too few paths for their spread"
    names = ", ".join(look.label for arm, look in looks.items() if arm not in curves)
    return f"{title}\na single path, no curves: {names}" if names else title
