"""How short may the gradient's paths be, with the forward unchanged, and from which length on is training ordinary?"""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from .parts.lines import EDGE, arm_handles, factor_axis, finish, handle, seed_lines
from .parts.points import percent_axis
from .parts.sheet import drawing, panels
from .parts.style import ARMS, GREY, Axes2D, Look, Looks, depth_title, looks_of, row_title
from .parts.table import counts_text, depths_of, seeds_text, select, several

SPLITS = {"train": "training accuracy (%)", "test": "test accuracy (%)"}
OUTCOMES = {
    "log train loss": "training loss,\ntimes the ordinary one",
    "test accuracy": "test accuracy,\nchange (points)",
}
QUANTITIES = ("mean", "low", "high", "n", "margin")
# All are trained residual networks: "at most" is in that arm's colour, and ends in that arm.
SERIES = {
    "at-most": Look("at most K branches", ARMS["residual"].colour, "o", "-"),
    "at-least": Look("at least K branches", "#E69F00", ">", (0, (5, 1.5))),
    "exactly": Look("exactly K branches", "#CC79A7", "P", (0, (3, 1, 1, 1))),
    "sampled": Look("K branches, drawn anew each step", "#009E73", "d", (0, (1.2, 1))),
}
REFERENCE = 0.8  # the line width of an arm without a limit


@drawing
def short_paths(table: pd.DataFrame, *, axes: Any = None, looks: Looks = None, legend: bool = True) -> Axes2D:
    """Final accuracy (%) on training and test data against K, the limit on the branches of the gradient's paths.

    An arm without a limit becomes a horizontal line at its mean, and a band over the range of its seeds. x is linear
    from 0 to 1 and logarithmic beyond; "at most" ends in the residual arm. Rows of panels: depth_total.

    Table: treatment ("at-most", "at-least", "exactly", "sampled"; nan, or no such column, without a limit), arm,
    depth_total, seed, path_length (K; the number of blocks where there is no limit), split ("train", "test"), quantity
    ("accuracy"), value (from 0 to 1).
    """
    keys = ["arm", "depth_total", "seed", "path_length", *(["treatment"] if "treatment" in table else [])]
    rows = _with_series(select(table, keys, figure="short_paths", quantity=["accuracy"], split=list(SPLITS)))
    limits = looks_of(rows["treatment"], looks, known=SERIES)
    references = looks_of(rows[rows["treatment"].isna()]["arm"], looks)
    splits, depths = [split for split in SPLITS if split in set(rows["split"])], depths_of(rows)
    grid = panels(axes, len(depths), len(splits), figure="short_paths", height=1.45, sharex="row", sharey=True)
    for line, depth in zip(grid, depths, strict=True):
        at_depth = rows[rows["depth_total"] == depth]
        for axis, split in zip(line, splits, strict=True):
            _accuracies(axis, at_depth[at_depth["split"] == split], limits, references)
            axis.set_ylabel(SPLITS[split])
            limit_axis(axis, at_depth)
        if len(depths) > 1:
            row_title(line[-1], depth_title(depth))
    for axis in grid[-1]:
        axis.set_xlabel("K (branches)")
    lines = [handle(k.label, k.colour, linestyle=k.line, linewidth=REFERENCE) for k in references.values()]
    entries = [_handle(look, rows[rows["treatment"] == name]) for name, look in limits.items()]
    count = seeds_text(rows.assign(arm=rows["series"]))
    title = f"thick and horizontal: mean; thin: each of {count}; bands: their range"
    finish(grid, entries + lines, legend=legend, caption=title if several(count) else count)
    return grid


def _with_series(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with the columns `treatment`, missing where there is none, and `series`: that, or else the arm."""
    given = rows["treatment"] if "treatment" in rows else pd.Series(None, rows.index, dtype=object)
    treatment = given.astype(object).where(given.notna() & (given != ""), None)
    return rows.assign(treatment=treatment, series=treatment.fillna(rows["arm"]))


def _accuracies(axis: Axes, rows: pd.DataFrame, limits: dict[str, Look], references: dict[str, Look]) -> None:
    for arm, look in references.items():
        values = rows[(rows["series"] == arm) & rows["treatment"].isna()]["value"]
        if len(values):
            axis.axhspan(values.min(), values.max(), color=look.colour, alpha=0.15, linewidth=0)
            axis.axhline(values.mean(), color=look.colour, linestyle=look.line, linewidth=REFERENCE)
    for name, look in limits.items():
        part = rows[rows["series"].isin([name, "residual"] if name == "at-most" else [name])]
        seed_lines(axis, part, look, x="path_length", marker=look.marker, **EDGE)
    percent_axis(axis)


def limit_axis(axis: Axes, rows: pd.DataFrame) -> None:
    """x linear from 0 to 1, then logarithmic; ticks at powers of two and the largest K."""
    most = int(rows["path_length"].max())
    powers = [2**k for k in range(most.bit_length()) if 1.4 * 2**k < most]
    axis.set_xscale("symlog", linthresh=1, linscale=0.7, base=2)
    ticks = sorted({0, *powers, most})
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
    axis.xaxis.set_minor_locator(NullLocator())


def _handle(look: Look, rows: pd.DataFrame) -> Line2D:
    """A line with markers; one K alone is drawn as a ring."""
    if rows["path_length"].nunique() > 1:
        return handle(look.label, look.colour, linestyle=look.line, marker=look.marker)
    ring = {"markersize": 6, "markerfacecolor": "none", "markeredgecolor": look.colour, "markeredgewidth": 1}
    return handle(look.label, look.colour, linestyle="", marker=look.marker, **ring)


@drawing
def short_path_changes(table: pd.DataFrame, *, axes: Any = None, looks: Looks = None, legend: bool = True) -> Axes2D:
    """Training loss (as a factor, log axis) and test accuracy (points) against ordinary training, for each K.

    Rows of panels: depth_total. The shaded side is within the margin.

    Table: treatment ("at-most", "at-least", "exactly", "sampled"), arm, depth_total, path_length (K), outcome ("log
    train loss", "test accuracy"), quantity ("mean"; "low" and "high": the ends of its 95 % interval, if there is one;
    "n"; "margin": up to which a change counts as ordinary), value.
    """
    keys = ["arm", "depth_total", "path_length", *(["treatment"] if "treatment" in table else [])]
    rows = select(table, keys, figure="short_path_changes", outcome=list(OUTCOMES), quantity=QUANTITIES)
    rows = _with_series(rows)
    looks, depths = looks_of(rows["series"], looks, known=ARMS | SERIES), depths_of(rows)
    grid = panels(axes, len(depths), 2, figure="short_path_changes", height=1.3, sharex="row")
    for line, depth in zip(grid, depths, strict=True):
        at_depth = rows[rows["depth_total"] == depth]
        for axis, outcome in zip(line, OUTCOMES, strict=True):
            _changes(axis, at_depth[at_depth["outcome"] == outcome], looks, factor=outcome == "log train loss")
            axis.set_ylabel(OUTCOMES[outcome])
            limit_axis(axis, at_depth)
        if len(depths) > 1:
            row_title(line[-1], depth_title(depth))
    for axis in grid[-1]:
        axis.set_xlabel("K (branches)")
    bars = ", 95 % paired t intervals" if (rows["quantity"] == "low").any() else ", no intervals"
    title = f"change from ordinary training: mean of n = {counts_text(rows)} seeds{bars}\nshaded: within the margin"
    finish(grid, arm_handles(looks, line=False, marker=True), legend=legend, caption=title)
    return grid


def _changes(axis: Axes, rows: pd.DataFrame, looks: dict[str, Look], *, factor: bool) -> None:
    """One outcome: a point for the mean, a bar for the interval; shaded, the changes within the margin."""
    shown = rows.assign(value=np.exp(rows["value"]) if factor else 100 * rows["value"])
    for place, (name, look) in enumerate(looks.items()):
        wide = shown[shown["series"] == name].pivot(index="path_length", columns="quantity", values="value")
        wide = wide.reindex(columns=list(QUANTITIES)).sort_index()
        ends = np.abs(wide[["low", "high"]].to_numpy(float) - wide[["mean"]].to_numpy(float)).T
        x = wide.index * 1.08**place  # so that no bar covers another at the same K
        bar: dict[str, Any] = {"elinewidth": 1, "markersize": 4.5, **EDGE}
        axis.errorbar(x, wide["mean"], ends, color=look.colour, marker=look.marker, linestyle="", **bar)
    ordinary, margins = (1.0 if factor else 0.0), shown[shown["quantity"] == "margin"]["value"]
    axis.axhline(ordinary, color=GREY, linewidth=0.8)
    if factor:
        factor_axis(axis)
    low, high = axis.get_ylim()
    for margin in margins.iloc[:1]:
        axis.axhspan(*((low, margin) if factor else (margin, high)), color=GREY, alpha=0.15, linewidth=0)
    axis.set_ylim(low, high)
