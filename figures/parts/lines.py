"""A line for every seed and a thick one for their mean, and the legend that says so."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

from .sheet import explain
from .sheet import legend as draw_legend
from .style import Axes2D, Look, Looks, note
from .table import arms_of, seeds_text, several

THICK = 1.4
THIN: dict[str, Any] = {"linewidth": 0.5, "alpha": 0.55}
EDGE: dict[str, Any] = {"markeredgecolor": "white", "markeredgewidth": 0.4}


def seed_lines(axis: Axes, rows: pd.DataFrame, look: Look, *, x: str, geometric: bool = False, **mean: Any) -> None:
    """Draw an arm's `value` against the column x: thin, each seed; thick, their mean, as far as all have a value.

    geometric: the mean of the logarithms, for a log axis; it leaves zeros out. `mean`: how to draw the thick line.
    A value at one x only becomes points instead of lines, the mean's a hollow one.
    """
    if rows.empty:
        return
    drawn = {"color": look.colour, "linestyle": look.line, "linewidth": THICK} | mean
    wide = rows.pivot(index=x, columns="seed", values="value").sort_index()
    if geometric:
        wide = wide.where(wide > 0).dropna(how="all")
    if len(wide) == 1:
        drawn |= {"marker": look.marker, "markevery": 1, "markersize": 6}
        drawn |= {"markerfacecolor": "none", "markeredgecolor": drawn["color"], "markeredgewidth": 1}
    for seed in wide.columns:
        axis.plot(wide.index, wide[seed], color=drawn["color"], marker="." if len(wide) == 1 else "", **THIN)
    line = mean_over_seeds(wide, geometric=geometric)
    axis.plot(line.index, line, **drawn)


def arm_lines(
    axis: Axes,
    rows: pd.DataFrame,
    looks: Mapping[str, Look],
    *,
    x: str,
    geometric: bool = False,
    markers: Literal["none", "few", "all"] = "none",
    **mean: Any,
) -> None:
    """The lines of every arm of `looks`, their means with markers at no, few or all values of x."""
    for arm, look in looks.items():
        marked = {"few": marks(rows, looks, arm, x=x), "all": {"marker": look.marker, **EDGE}}.get(markers, {})
        seed_lines(axis, rows[rows["arm"] == arm], look, x=x, geometric=geometric, **(marked | mean))


def mean_over_seeds(wide: pd.DataFrame, *, geometric: bool) -> "pd.Series[float]":
    """The mean of each row, a column a seed; nan where a seed is missing, so that no mean is that of the survivors."""
    values = wide.apply(np.log) if geometric else wide
    means = values.mean(axis="columns", skipna=False)
    return means.apply(np.exp) if geometric else means


def marks(rows: pd.DataFrame, looks: Mapping[str, Look], arm: str, *, x: str) -> dict[str, Any]:
    """The arm's marker at about six places of x, shifted from arm to arm so that they do not cover each other."""
    step = max(1, rows[x].nunique() // 6)
    return {"marker": looks[arm].marker, "markevery": (list(looks).index(arm) % step, step), **EDGE}


def log_axis(axis: Axes) -> None:
    """Make y logarithmic once all is drawn: not positive is left out; a short axis has ticks at 1, 2 and 5."""
    values = np.concatenate([np.asarray(line.get_ydata(), dtype=float) for line in axis.lines] or [np.array([])])
    values = values[values > 0]
    if not len(values):
        axis.set_ylim(0.1, 10)  # nothing to show, and limits that a logarithm has
    elif values.max() < 1.01 * values.min():  # nothing to scale by
        axis.set_ylim(values.min() / 3, values.max() * 3)
    axis.set_yscale("log", nonpositive="mask")
    low, high = axis.get_ylim()
    if high < 100 * low:
        _plain_ticks(axis)
    axis.yaxis.set_minor_locator(NullLocator())


def note_missing(axis: Axes, rows: pd.DataFrame, drawn: pd.DataFrame, looks: Looks, *, zeros: bool = False) -> None:
    """Name above the panel the arms that `rows` has and `drawn` lacks: diverged, or not finite. zeros: and those that
    have zeros alone, which a log axis cannot show."""
    missing = [arm for arm in arms_of(rows, looks) if arm not in set(drawn["arm"])]
    zero = [arm for arm, own in drawn.groupby("arm") if zeros and not own["value"].any()]
    labels = {arm: look.label for arm, look in arms_of(rows, looks).items()}
    words = {"no value": missing, "zero": zero}
    said = [f"{word}: {', '.join(labels[str(arm)] for arm in arms)}" for word, arms in words.items() if arms]
    if said:
        note(axis, "; ".join(said))


def whole_numbers(axis: Axes) -> None:
    """Ticks of x at whole numbers only, and few; one number alone keeps a unit on both sides."""
    low, high = axis.get_xlim()
    if high - low < 1:
        axis.set_xlim(round((low + high) / 2) - 1, round((low + high) / 2) + 1)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))


def handle(label: str, colour: str, **line: Any) -> Line2D:
    """An entry of a legend."""
    options: dict[str, Any] = {"linewidth": THICK} | EDGE | line
    return Line2D([], [], label=label, color=colour, **options)


def arm_handles(looks: Mapping[str, Look], *, line: bool = True, marker: bool = False) -> list[Line2D]:
    """A legend's entries: the colour of each look, with its line, its marker or both."""
    return [
        handle(k.label, k.colour, linestyle=k.line if line else "", marker=k.marker if marker else "")
        for k in looks.values()
    ]


def finish(axes: Axes2D, entries: Sequence[Artist], *, caption: str, legend: bool) -> None:
    """One legend for all panels; what lines and points are, and n, goes into the caption, a sentence a line."""
    explain(axes, *caption.splitlines())
    if legend:
        draw_legend(axes, entries)
    for axis in axes.flat:
        axis.xaxis.label.set_linespacing(1.1)
        axis.yaxis.label.set_linespacing(1.1)
    axes.flat[0].get_figure().align_ylabels(axes[:, 0])


def seeds_title(rows: pd.DataFrame, *, mean: str = "mean") -> str:
    """What thin and thick lines are, with the number of seeds."""
    count = seeds_text(rows)
    return f"thick: {mean}; thin: each of {count}" if several(count) else count


def dotted_means(axis: Axes, rows: pd.DataFrame, looks: Mapping[str, Look]) -> None:
    """A dotted horizontal at the mean of each arm: what lines are compared with."""
    for arm, value in rows[rows["arm"].isin(list(looks))].groupby("arm")["value"].mean().items():
        axis.axhline(value, color=looks[str(arm)].colour, linewidth=0.6, linestyle=":")


def factor_axis(axis: Axes) -> None:
    """Make y logarithmic, with ticks as plain numbers."""
    axis.set_yscale("log")
    _plain_ticks(axis)
    axis.yaxis.set_minor_locator(NullLocator())


def _plain_ticks(axis: Axes) -> None:
    """Ticks of a log axis as plain numbers: at 1, 2 and 5 of each decade, or evenly where that would be one or none."""
    low, high = axis.get_ylim()
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)) if high > 4 * low else MaxNLocator(4))
    axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))


def zeros_text(rows: pd.DataFrame, *by: str) -> str:
    """Says that zeros are left out of the log axis, if a line (of an arm, depth, epoch, `by`) loses a part to them."""
    lost = (rows["value"] == 0).groupby([rows[key] for key in ("arm", "depth_total", "epoch", *by)]).mean()
    return "; exact zeros left out" if lost.between(0, 1, inclusive="neither").any() else ""
