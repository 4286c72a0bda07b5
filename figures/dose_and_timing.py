"""How much of the shortcut's gradient is needed, how surely, when, and where?"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from figures.lines import THICK, finish, handle, log_axis
from figures.points import percent_axis, points_title
from figures.style import ARMS, SMALL, Axes2D, panels, style
from figures.table import select

OUTCOMES = {("test", "accuracy"): "test accuracy (%)", ("train", "loss"): "training loss"}
REFERENCES = ("residual", "stop-gradient", "plain")
# What a condition's name begins with: its panel, its place in it from the number that follows, label, marker, fill.
Series = tuple[str, Callable[[float], float], str, str, str]
SERIES: dict[str, Series] = {
    "weight ": ("weight", lambda weight: weight, "weight in every step", "o", "full"),
    "biased coin, ": ("weight", lambda chance: 1 - chance + 0.05, "cut by a coin (at the mean weight)", "<", "none"),
    "unbiased coin, ": ("weight", lambda chance: 1.05 + 0.2 * chance, "unbiased coin, mean weight 1", ">", "none"),
    "until epoch ": ("epoch", lambda epoch: epoch - 0.12, "cut until an epoch", "<", "full"),
    "from epoch ": ("epoch", lambda epoch: epoch + 0.12, "cut from an epoch on", ">", "full"),
}
XLABELS = {"weight": "weight of the shortcut's gradient", "epoch": "epoch", "place": "cut shortcuts"}
WIDTH = {"weight": 0.03, "epoch": 0.12, "place": 0.3}  # over which seeds stand side by side


@style()
def dose_and_timing(table: pd.DataFrame, *, axes: Any = None) -> Axes2D:
    """Test accuracy (%) and training loss (log) at the end, against the weight of the shortcut's gradient, against the
    epoch at which its cut ends or begins, and by the place of the cut; a point for every seed, a bar for their mean.

    table: control ("weight 0.5"; "biased coin, 0.5", a chance; "until epoch 5"; any other is a place), arm, depth_total
    (one), seed, split, quantity, value. residual, stop-gradient and plain are lines at their means, in each panel, and
    points at weights 1 and 0. Numbers beside unbiased coins: the chance of a cut.
    """
    keys = ["control", "arm", "depth_total", "seed"]
    rows = select(table, keys, figure="dose_and_timing", split=["test", "train"], quantity=["accuracy", "loss"])
    names = [name for name in dict.fromkeys(rows["control"]) if name not in ARMS]
    kinds = [kind for kind in XLABELS if kind == "weight" or any(kind_of(name) == kind for name in names)]
    grid = panels(axes, len(OUTCOMES), len(kinds), figure="dose_and_timing", height=1.6, sharex="col", sharey="row")
    for line, (split, quantity) in zip(grid, OUTCOMES, strict=True):
        of_outcome = rows[(rows["split"] == split) & (rows["quantity"] == quantity)]
        for axis, kind in zip(line, kinds, strict=True):
            _panel(axis, of_outcome, kind, [name for name in names if kind_of(name) == kind])
        line[0].set_ylabel(OUTCOMES[split, quantity])
        percent_axis(line[0]) if quantity == "accuracy" else log_axis(line[0])
    for axis, kind in zip(grid[-1], kinds, strict=True):
        axis.set_xlabel(XLABELS[kind])
    finish(grid, _handles(rows, names), title=points_title(rows, mean="bars, lines: means"))
    return grid


def kind_of(name: str) -> str:
    """The panel of a condition."""
    return next((series[0] for start, series in SERIES.items() if name.startswith(start)), "place")


def _panel(axis: Axes, rows: pd.DataFrame, kind: str, names: Sequence[str]) -> None:
    values = {name: of_name.sort_values("seed")["value"].to_numpy() for name, of_name in rows.groupby("control")}
    for arm in REFERENCES:
        if arm in values:
            axis.axhline(values[arm].mean(), color=ARMS[arm].colour, linestyle=ARMS[arm].line, linewidth=0.8)
    if kind == "weight":
        for arm, x in (("residual", 1), ("stop-gradient", 0)):
            if arm in values:
                _points(axis, x, values[arm], arm, ARMS[arm].marker, "full", kind)
        axis.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "", "0.5", "", "1"])
    for place, name in enumerate(names):
        if name not in values:
            continue
        start, series = next(((s, look) for s, look in SERIES.items() if name.startswith(s)), ("", None))
        x = series[1](float(name.removeprefix(start))) if series else place
        _, _, _, marker, fill = series or ("", None, "", ARMS["residual"].marker, "full")
        mean = _points(axis, x, values[name], "residual", marker, fill, kind)
        if start.startswith("unbiased"):
            axis.annotate(name.removeprefix(start), (x, mean), (5, 0), textcoords="offset points", fontsize=SMALL - 2)
    if kind == "place":
        axis.set_xticks(range(len(names)), [name.replace(" block", "") for name in names], rotation=45, ha="right")
        axis.set_xlim(-0.6, len(names) - 0.4)
    axis.grid(visible=False, axis="x")


def _points(axis: Axes, x: float, values: np.ndarray, arm: str, marker: str, fill: Any, kind: str) -> float:
    """Every seed side by side, and a bar at their mean, which is returned."""
    look, width = ARMS[arm], WIDTH[kind]
    places = x + (np.linspace(-width / 2, width / 2, len(values)) if len(values) > 1 else np.zeros(len(values)))
    options: dict[str, Any] = {"marker": marker, "fillstyle": fill, "markersize": 3.2, "markeredgewidth": 0.6}
    axis.plot(places, values, linestyle="", color=look.colour, **options)
    axis.hlines(values.mean(), x - width, x + width, color=look.colour, linewidth=THICK)
    return float(values.mean())


def _handles(rows: pd.DataFrame, names: Sequence[str]) -> list[Any]:
    arms = [ARMS[arm] for arm in REFERENCES if arm in set(rows["control"])]
    drawn = [series for start, series in SERIES.items() if any(name.startswith(start) for name in names)]
    options = {"linestyle": "", "markeredgecolor": ARMS["residual"].colour, "markeredgewidth": 0.6}
    return [handle(look.label, look.colour, linestyle=look.line) for look in arms] + [
        handle(label, ARMS["residual"].colour, marker=marker, fillstyle=fill, **options)
        for _, _, label, marker, fill in drawn
    ]
