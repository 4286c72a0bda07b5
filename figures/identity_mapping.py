"""Is the identity hard to learn for a stack of blocks, and is it kept when blocks are inserted?"""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from .parts.lines import EDGE, arm_handles, arm_lines, factor_axis, finish, handle, log_axis, whole_numbers
from .parts.points import seed_points, shifts
from .parts.sheet import drawing, is_narrow, panels
from .parts.style import GREY, Axes2D, Look, Looks, small
from .parts.table import arms_of, check_quantities, counts_text, seeds_text, select

OUTCOMES = {
    "log train loss": "training loss,\ntimes the shallow one's",
    "test accuracy": "test accuracy,\nchange (points)",
    "change last": "change by a block\n(of its input's norm)",
}
QUANTITIES = ("mean", "low", "high", "n", "margin", "seed")
HOLLOW: dict[str, Any] = {"markerfacecolor": "none", "markeredgecolor": "auto", "markeredgewidth": 0.7}
GREY_HOLLOW = {**HOLLOW, "markeredgecolor": GREY, "marker": "o", "linestyle": ""}


@drawing
def copying(table: pd.DataFrame, *, axes: Any = None, looks: Looks = None, legend: bool = True) -> Axes2D:
    """How well stacks of blocks copy their input: the error at the end by number of blocks, over time with the most
    blocks, and what a block changes of its input; log axes, a point or thin line for every seed.

    Table: arm, depth_total (two layers a block), seed, epoch, split ("test": the first panel, at the last epoch;
    "validation": the second), quantity ("error"; "change", first and last, of no split), value.
    """
    keys = ["arm", "depth_total", "seed", "epoch", "split"]
    rows = select(table, keys, figure="copying", quantity=["error", "change"])
    rows = rows.assign(blocks=rows["depth_total"] // 2)
    looks, counts, last = arms_of(rows, looks), sorted(rows["blocks"].unique()), rows["epoch"].max()
    errors, changes = rows[rows["quantity"] == "error"], rows[rows["quantity"] == "change"]
    grid = panels(axes, 1, 3, figure="copying", height=1.45)
    by_blocks, over_time, by_block = grid[0]
    order: dict[str, Any] = {"by": "blocks", "order": counts}
    for axis in (by_blocks, by_block):
        axis.set_yscale("log")
    tested = errors[(errors["split"] == "test") & (errors["value"] > 0)]
    seed_points(by_blocks, tested[tested["epoch"] == last], looks, **order)
    changed = changes[changes["value"] > 0]
    seed_points(by_block, changed[changed["epoch"] == 0], looks, seeds=False, **order, **HOLLOW)
    seed_points(by_block, changed[changed["epoch"] == last], looks, **order)
    most = errors[(errors["split"] == "validation") & (errors["blocks"] == counts[-1])]
    arm_lines(over_time, most, looks, x="epoch", geometric=True)
    for axis in grid[0]:
        log_axis(axis)
    whole_numbers(over_time)
    by_blocks.set(xlabel="blocks", ylabel="error of the copy, test")
    over_time.set(xlabel="epoch", ylabel=f"error of the copy, {counts[-1]} blocks")
    by_block.set(xlabel="blocks", ylabel="change by a block\n(of its input's norm)")
    title = f"large and thick: geometric mean; small and thin: each of {seeds_text(rows)}"
    finish(
        grid,
        [*arm_handles(looks, marker=True), handle("before training", GREY, **GREY_HOLLOW)],
        legend=legend,
        caption=title,
    )
    return grid


@drawing
def insertion(table: pd.DataFrame, *, axes: Any = None, looks: Looks = None, legend: bool = True) -> Axes2D:
    """Training loss (as a factor, log axis) and test accuracy (points) of deeper networks against the shallow one that
    was trained further as well, and what an inserted block changes of its input, right after insertion (hollow) and at
    the end. Shaded: within the margin.

    Table: arm, depth_total, effect (the kind of inserted blocks), outcome ("log train loss", "test accuracy"; "change
    first", "change last"), quantity ("mean"; "low" and "high": the ends of its 95 % interval, if there is one; "n";
    "margin"; "seed": each seed's own, told apart by draw), draw, value.
    """
    keys = ["arm", "depth_total", "effect", "draw"]
    rows = select(table, keys, figure="insertion", outcome=[*OUTCOMES, "change first"], quantity=QUANTITIES)
    looks = arms_of(rows, looks)
    places = sorted({(str(kind), int(depth)) for kind, depth in zip(rows["effect"], rows["depth_total"], strict=True)})
    kinds = [kind for kind, _ in places]
    at = [places.index((str(k), int(d))) for k, d in zip(rows["effect"], rows["depth_total"], strict=True)]
    rows = rows.assign(place=at)
    shown = [outcome for outcome in OUTCOMES if outcome in set(rows["outcome"])]
    rows_and_columns = (len(shown), 1) if is_narrow(axes) else (1, len(shown))  # names of kinds need room
    grid = panels(axes, *rows_and_columns, figure="insertion", height=1.2)
    for axis, outcome in zip(grid.flat, shown, strict=True):
        _panel(axis, rows[rows["outcome"] == outcome], looks, outcome)
        if outcome == "change last":
            _first(axis, rows[(rows["outcome"] == "change first") & (rows["quantity"] == "mean")], looks)
        axis.set_ylabel(OUTCOMES[outcome])
        axis.set_xticks(range(len(places)), [f"{depth}" for _, depth in places])
        for kind in dict.fromkeys(kinds):
            _name(axis, kind, kinds.index(kind) + (kinds.count(kind) - 1) / 2)
        axis.set_xlim(-0.5, len(places) - 0.5)
        axis.grid(visible=False, axis="x")
        axis.set_xlabel("depth (layers)", labelpad=14)
    bars = ", bars 95 % t intervals" if (rows["quantity"] == "low").any() else ", no intervals"
    finish(
        grid,
        [*arm_handles(looks, line=False, marker=True), handle("right after insertion", GREY, **GREY_HOLLOW)],
        legend=legend,
        caption=f"large: mean of n = {counts_text(rows)}{bars}; small: each seed"
        "\nidentity, random: how the inserted blocks began; shaded: within the margin",
    )
    return grid


def _name(axis: Axes, kind: str, centre: float) -> None:
    """Name a kind of inserted blocks below its depths."""
    axis.annotate(
        kind, (centre, 0), (0, -17), xycoords=axis.get_xaxis_transform(), textcoords="offset points", ha="center",
        va="top", fontsize=small(),
    )  # fmt: skip


def _panel(axis: Axes, rows: pd.DataFrame, looks: dict[str, Look], outcome: str) -> None:
    """One outcome: small points for the seeds, a large one and a bar for mean and interval; shaded: the margin."""
    check_quantities(rows, ["margin"], figure="insertion")
    factor = outcome == "log train loss"
    scale = 100 if outcome == "test accuracy" else 1
    rows = rows.assign(value=np.exp(rows["value"]) if factor else scale * rows["value"])
    for shift, (arm, look) in zip(shifts(len(looks)), looks.items(), strict=True):
        part = rows[rows["arm"] == arm]
        own = part[part["quantity"] == "seed"].sort_values(["place", "draw"])
        by = part[part["quantity"] != "seed"].pivot(index="place", columns="quantity", values="value")
        by = by.reindex(columns=list(QUANTITIES)).sort_index()
        ends = [by["mean"] - by["low"], by["high"] - by["mean"]]
        axis.plot(own["place"] + shift + 0.07, own["value"], ".", markersize=2.5, color=look.colour, alpha=0.6)
        bars: dict[str, Any] = {"linestyle": "", "elinewidth": 1, "markersize": 4, **EDGE}
        axis.errorbar(by.index + shift, by["mean"], ends, color=look.colour, marker=look.marker, **bars)
    if factor:
        factor_axis(axis)
    ordinary, margin = (1.0 if factor else 0.0), rows[rows["quantity"] == "margin"]["value"].iloc[0]
    low, high = axis.get_ylim()
    if outcome == "change last":
        low = 0.0
    axis.axhline(ordinary, color=GREY, linewidth=0.8)
    axis.axhspan(*((margin, high) if margin < ordinary else (low, margin)), color=GREY, alpha=0.15, linewidth=0)
    axis.set_ylim(low, high)


def _first(axis: Axes, means: pd.DataFrame, looks: dict[str, Look]) -> None:
    """Hollow points for the means right after insertion."""
    for shift, (arm, look) in zip(shifts(len(looks)), looks.items(), strict=True):
        part = means[means["arm"] == arm].sort_values("place")
        x, marker = part["place"] + shift, {"marker": look.marker, "markersize": 4, **HOLLOW}
        axis.plot(x, part["value"], linestyle="", color=look.colour, **marker)
    low, high = axis.get_ylim()
    axis.set_ylim(min(low, -0.03 * means["value"].max()), max(high, 1.08 * means["value"].max()))
