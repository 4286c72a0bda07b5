"""Does a good shallow network become worse when blocks are inserted and training goes on?"""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator, StrMethodFormatter

from figures.lines import EDGE, arm_handles, finish, handle
from figures.style import ARMS, GREY, SMALL, Axes2D, panels, style
from figures.table import arms_of, select

OUTCOMES = {
    "log train loss": "training loss,\ntimes the shallow one's",
    "test accuracy": "test accuracy,\nchange (points)",
    "change last": "change by a block\n(of its input's norm)",
}
QUANTITIES = ("mean", "low", "high", "n", "margin", "seed")
SPREAD = 0.75  # of the gap between two insertions, taken by the arms side by side


@style()
def insertion(table: pd.DataFrame, *, axes: Any = None) -> Axes2D:
    """Training loss (as a factor, log axis) and test accuracy (points) of deeper networks against the shallow one that
    went on as well, and what an inserted block changes of its input, right after insertion (hollow) and at the end.

    table: arm, depth_total, effect (the kind of inserted blocks), outcome ("log train loss", "test accuracy"; "change
    first", "change last"), quantity ("mean"; "low" and "high": the ends of its 95 % interval, if there is one; "n";
    "margin"; "seed": each seed's own, told apart by draw), draw, value. Shaded: within the margin.
    """
    keys = ["arm", "depth_total", "effect", "draw"]
    rows = select(table, keys, figure="insertion", outcome=[*OUTCOMES, "change first"], quantity=QUANTITIES)
    arms = arms_of(rows)
    places = sorted({(str(kind), int(depth)) for kind, depth in zip(rows["effect"], rows["depth_total"], strict=True)})
    shown = [outcome for outcome in OUTCOMES if outcome in set(rows["outcome"])]
    grid = panels(axes, 1, len(shown), figure="insertion", height=1.9)
    for axis, outcome in zip(grid[0], shown, strict=True):
        _panel(axis, rows[rows["outcome"] == outcome], arms, places, outcome)
        if outcome == "change last":
            _first(axis, rows[rows["outcome"] == "change first"], arms, places)
        axis.set_ylabel(OUTCOMES[outcome])
        axis.set_xticks(range(len(places)), [f"{depth}" for _, depth in places])
        for kind in dict.fromkeys(kind for kind, _ in places):
            _name(axis, kind, [place for place, (its_kind, _) in enumerate(places) if its_kind == kind])
        axis.set_xlim(-0.5, len(places) - 0.5)
        axis.grid(visible=False, axis="x")
        axis.set_xlabel("depth (layers)", labelpad=14)
    counts = sorted({int(n) for n in rows[rows["quantity"] == "n"]["value"]})
    bars = ", bars 95 % t intervals" if (rows["quantity"] == "low").any() else ", no intervals"
    hollow = handle(
        "right after insertion", GREY, marker="o", linestyle="", markerfacecolor="none", markeredgecolor=GREY
    )
    finish(
        grid,
        [*arm_handles(arms, marker=True), hollow],
        title=f"large: mean of n = {'–'.join(map(str, dict.fromkeys((counts[0], counts[-1]))))}{bars}; small: each seed"
        "\nidentity, random: how the inserted blocks began; shaded: within the margin",
    )
    return grid


def _name(axis: Axes, kind: str, places: list[int]) -> None:
    """Name a kind of inserted blocks below its depths."""
    centre = sum(places) / len(places)
    axis.annotate(
        kind, (centre, 0), (0, -17), xycoords=axis.get_xaxis_transform(), textcoords="offset points", ha="center",
        va="top", fontsize=SMALL,
    )  # fmt: skip


def _x(arms: list[str], arm: str, place: int) -> float:
    return place + SPREAD / max(1, len(arms)) * (arms.index(arm) - (len(arms) - 1) / 2)


def _panel(axis: Axes, rows: pd.DataFrame, arms: list[str], places: list[tuple[str, int]], outcome: str) -> None:
    """One outcome: small points for the seeds, a large one and a bar for mean and interval; shaded: the margin."""
    factor = outcome == "log train loss"
    scale = 100 if outcome == "test accuracy" else 1
    rows = rows.assign(value=np.exp(rows["value"]) if factor else scale * rows["value"])
    for arm in arms:
        look = ARMS[arm]
        for place, (kind, depth) in enumerate(places):
            part = rows[(rows["arm"] == arm) & (rows["effect"] == kind) & (rows["depth_total"] == depth)]
            by = part[part["quantity"] != "seed"].set_index("quantity")["value"].reindex(list(QUANTITIES))
            x, own = _x(arms, arm, place), part[part["quantity"] == "seed"]["value"]
            reach = [[by["mean"] - by["low"]], [by["high"] - by["mean"]]]
            axis.plot(
                [x + 0.07] * len(own), own, linestyle="", marker=".", markersize=2.5, color=look.colour, alpha=0.6
            )
            axis.errorbar(
                x, by["mean"], reach, color=look.colour, marker=look.marker, elinewidth=1, markersize=4, **EDGE
            )
    if factor:
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.yaxis.set_minor_locator(NullLocator())
    ordinary, margin = (1.0 if factor else 0.0), rows[rows["quantity"] == "margin"]["value"].iloc[0]
    low, high = axis.get_ylim()
    if outcome == "change last":
        low = 0.0
    axis.axhline(ordinary, color=GREY, linewidth=0.8)
    axis.axhspan(*((margin, high) if margin < ordinary else (low, margin)), color=GREY, alpha=0.15, linewidth=0)
    axis.set_ylim(low, high)


def _first(axis: Axes, rows: pd.DataFrame, arms: list[str], places: list[tuple[str, int]]) -> None:
    """Hollow points for the means right after insertion."""
    means = rows[rows["quantity"] == "mean"]
    for arm in arms:
        for place, (kind, depth) in enumerate(places):
            part = means[(means["arm"] == arm) & (means["effect"] == kind) & (means["depth_total"] == depth)]
            axis.plot(
                [_x(arms, arm, place)] * len(part),
                part["value"],
                linestyle="",
                marker=ARMS[arm].marker,
                markerfacecolor="none",
                markeredgecolor=ARMS[arm].colour,
                markeredgewidth=0.7,
                markersize=4,
            )
    low, high = axis.get_ylim()
    axis.set_ylim(min(low, -0.03 * means["value"].max()), max(high, 1.08 * means["value"].max()))
