"""From which K on is ordinary training recovered?"""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.ticker import NullLocator, StrMethodFormatter

from figures.lines import EDGE, finish, handle
from figures.short_paths import SERIES, limit_axis, named, present
from figures.style import GREY, Axes2D, depth_title, panels, row_title, style
from figures.table import depths_of, select

OUTCOMES = {
    "log train loss": "training loss,\ntimes the ordinary one",
    "test accuracy": "test accuracy,\nchange (points)",
}
QUANTITIES = ("mean", "low", "high", "n", "margin")

BAR: dict[str, Any] = {"elinewidth": 1, "markersize": 4.5, **EDGE}


@style()
def short_path_changes(table: pd.DataFrame, *, axes: Any = None) -> Axes2D:
    """Training loss (as a factor, log axis) and test accuracy (points) against ordinary training, for each K.

    table: arm ("at-most-K", …), depth_total, path_length (K), outcome ("log train loss", "test accuracy"), quantity
    ("mean"; "low" and "high": the ends of its 95 % interval, if there is one; "n"; "margin": up to which a change
    counts as ordinary), value. Rows of panels: depth_total. The shaded side lies within the margin.
    """
    rows = select(
        named(table),
        ["arm", "depth_total", "path_length"],
        figure="short_path_changes",
        looks=SERIES,
        outcome=list(OUTCOMES),
        quantity=QUANTITIES,
    )
    depths = depths_of(rows)
    grid = panels(axes, len(depths), 2, figure="short_path_changes", height=1.7, sharex="row")
    for line, depth in zip(grid, depths, strict=True):
        at_depth = rows[rows["depth_total"] == depth]
        for axis, outcome in zip(line, OUTCOMES, strict=True):
            _panel(axis, at_depth[at_depth["outcome"] == outcome], factor=outcome == "log train loss")
            axis.set_ylabel(OUTCOMES[outcome])
            limit_axis(axis, at_depth)
        if len(depths) > 1:
            row_title(line[-1], depth_title(depth))
    for axis in grid[-1]:
        axis.set_xlabel("K (branches)")
    looks = [SERIES[name] for name in present(rows, SERIES)]
    finish(
        grid,
        [handle(k.label, k.colour, linestyle="", marker=k.marker, markersize=4.5) for k in looks],
        title=_title(rows),
    )
    return grid


def _panel(axis: Axes, rows: pd.DataFrame, *, factor: bool) -> None:
    """One outcome: a point for the mean, a bar for the interval; shaded, the changes within the margin."""
    shown = rows.assign(value=np.exp(rows["value"]) if factor else 100 * rows["value"])
    for name in present(shown, SERIES):
        wide = shown[shown["arm"] == name].pivot(index="path_length", columns="quantity", values="value")
        wide = wide.reindex(columns=list(QUANTITIES)).sort_index()
        _points(axis, wide, name)
    ordinary, margin = (1.0 if factor else 0.0), shown[shown["quantity"] == "margin"]["value"].iloc[0]
    axis.axhline(ordinary, color=GREY, linewidth=0.8)
    if factor:
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.yaxis.set_minor_locator(NullLocator())
    low, high = axis.get_ylim()
    axis.axhspan(*((low, margin) if factor else (margin, high)), color=GREY, alpha=0.15, linewidth=0)
    axis.set_ylim(low, high)


def _points(axis: Axes, wide: pd.DataFrame, name: str) -> ErrorbarContainer:
    look = SERIES[name]
    reach = np.abs(wide[["low", "high"]].to_numpy(float) - wide[["mean"]].to_numpy(float)).T
    beside = 1.0 if name == "at-most" else 1.08  # so that no bar covers another at the same K
    return axis.errorbar(
        wide.index * beside, wide["mean"], reach, color=look.colour, marker=look.marker, linestyle="", **BAR
    )


def _title(rows: pd.DataFrame) -> str:
    counts = sorted(int(count) for count in rows[rows["quantity"] == "n"]["value"].unique())
    n = "–".join(map(str, dict.fromkeys((counts[0], counts[-1])))) if counts else "?"
    bars = ", 95 % paired t intervals" if (rows["quantity"] == "low").any() else ", no intervals"
    return f"change from ordinary training: mean of n = {n} seeds{bars}\nshaded: within the margin"
