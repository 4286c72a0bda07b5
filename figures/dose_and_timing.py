"""How much of the shortcut's gradient is needed, how surely, when, and where?"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from figures.lines import THICK, finish, handle, log_axis
from figures.points import percent_axis, points_title
from figures.style import ARMS, Axes2D, panels, style
from figures.table import select

OUTCOMES = {("test", "accuracy"): "test accuracy (%)", ("train", "loss"): "training loss"}
REFERENCES = ("residual", "stop-gradient", "plain")
# What a condition's name begins with, before a number: its panel, its shift there, its label, marker and fill.
Series = tuple[str, float, str, str, str]
SERIES: dict[str, Series] = {
    "weight ": ("weight", 0, "", "o", "full"),
    "biased coin, ": ("coin", -0.2, "biased coin", "v", "none"),
    "unbiased coin, ": ("coin", 0.2, "unbiased coin", "^", "none"),
    "until epoch ": ("epoch", -0.2, "cut until an epoch", "<", "full"),
    "from epoch ": ("epoch", 0.2, "cut from an epoch on", ">", "full"),
}
PLACE: Series = ("place", 0, "", "o", "full")
XLABELS = {
    "weight": "weight of the\nshortcut's gradient",
    "coin": "chance\nof a cut",
    "epoch": "epoch",
    "place": "cut shortcuts",
}
ROOM = {"weight": 1.3, "coin": 0.9, "epoch": 1.1, "place": 1.4}  # panels' widths, against each other
WIDTH = {"weight": 0.05, "coin": 0.24, "epoch": 0.24, "place": 0.5}  # over which seeds stand side by side


@style()
def dose_and_timing(table: pd.DataFrame, *, axes: Any = None) -> Axes2D:
    """Test accuracy (%) and training loss (log) at the end, against the weight of the shortcut's gradient, against the
    chance of its cut, against the epoch at which its cut ends or begins, and by the place of the cut; a point for every
    seed, a bar for their mean.

    table: control ("weight 0.5"; "biased coin, 0.5", a chance; "until epoch 5"; any other is a place), arm, depth_total
    (one), seed, split, quantity, value. residual, stop-gradient and plain are lines at their means, in each panel, and
    the first two points at weights 1 and 0. Only weights stand to scale.
    """
    keys = ["control", "arm", "depth_total", "seed"]
    rows = select(table, keys, figure="dose_and_timing", split=["test", "train"], quantity=["accuracy", "loss"])
    names = [name for name in dict.fromkeys(rows["control"]) if name not in ARMS]
    kinds = [kind for kind in XLABELS if kind == "weight" or any(series_of(name)[0] == kind for name in names)]
    share: dict[str, Any] = {"sharex": "col", "sharey": "row", "width_ratios": [ROOM[kind] for kind in kinds]}
    grid = panels(axes, len(OUTCOMES), len(kinds), figure="dose_and_timing", height=1.6, **share)
    for line, (split, quantity) in zip(grid, OUTCOMES, strict=True):
        of_outcome = rows[(rows["split"] == split) & (rows["quantity"] == quantity)]
        for axis, kind in zip(line, kinds, strict=True):
            _panel(axis, of_outcome, kind, [name for name in names if series_of(name)[0] == kind])
        line[0].set_ylabel(OUTCOMES[split, quantity])
        percent_axis(line[0]) if quantity == "accuracy" else log_axis(line[0])
    for axis, kind in zip(grid[-1], kinds, strict=True):
        axis.set_xlabel(XLABELS[kind])
    finish(grid, _handles(rows, names), title=points_title(rows, mean="bars, lines: means"))
    return grid


def series_of(name: str) -> Series:
    """How a condition is drawn."""
    return next((series for start, series in SERIES.items() if name.startswith(start)), PLACE)


def number_of(name: str) -> float:
    """The number that ends the name of a condition of a series."""
    return float(name.rsplit(" ", 1)[1])


def _panel(axis: Axes, rows: pd.DataFrame, kind: str, names: Sequence[str]) -> None:
    values = {name: of_name.sort_values("seed")["value"].to_numpy() for name, of_name in rows.groupby("control")}
    for arm in REFERENCES:
        if arm in values:
            axis.axhline(values[arm].mean(), color=ARMS[arm].colour, linestyle=ARMS[arm].line, linewidth=0.8)
    places = _places(axis, kind, names)
    for name in [name for name in names if name in values]:
        _, shift, _, marker, fill = series_of(name)
        _points(axis, places[name] + shift, values[name], "residual", marker, fill, kind)
    if kind == "weight":
        for arm, x in (("residual", 1), ("stop-gradient", 0)):
            if arm in values:
                _points(axis, x, values[arm], arm, ARMS[arm].marker, "full", kind)
    axis.grid(visible=False, axis="x")


def _places(axis: Axes, kind: str, names: Sequence[str]) -> dict[str, float]:
    """Where each condition stands, which the ticks say: weights to scale, all others side by side."""
    if kind == "weight":
        axis.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "", "0.5", "", "1"])
        return {name: number_of(name) for name in names}
    if kind == "place":
        places = {name: float(place) for place, name in enumerate(names)}
        axis.set_xticks(range(len(names)), [name.replace(" block", "") for name in names], rotation=45, ha="right")
    else:
        numbers = sorted({number_of(name) for name in names})
        places = {name: float(numbers.index(number_of(name))) for name in names}
        axis.set_xticks(range(len(numbers)), [f"{number:g}" for number in numbers])
    axis.set_xlim(-0.6, max(places.values()) + 0.6)
    return places


def _points(axis: Axes, x: float, values: np.ndarray, arm: str, marker: str, fill: Any, kind: str) -> None:
    """Every seed side by side, and a bar at their mean."""
    look, width = ARMS[arm], WIDTH[kind]
    places = x + (np.linspace(-width / 2, width / 2, len(values)) if len(values) > 1 else np.zeros(len(values)))
    options: dict[str, Any] = {"marker": marker, "fillstyle": fill, "markersize": 2.8, "markeredgewidth": 0.6}
    axis.plot(places, values, linestyle="", color=look.colour, **options)
    axis.hlines(values.mean(), x - 0.7 * width, x + 0.7 * width, color=look.colour, linewidth=THICK)


def _handles(rows: pd.DataFrame, names: Sequence[str]) -> list[Any]:
    arms = [ARMS[arm] for arm in REFERENCES if arm in set(rows["control"])]
    drawn = [series for start, series in SERIES.items() if any(name.startswith(start) for name in names)]
    options = {"linestyle": "", "markeredgecolor": ARMS["residual"].colour, "markeredgewidth": 0.6}
    return [handle(look.label, look.colour, linestyle=look.line) for look in arms] + [
        handle(label, ARMS["residual"].colour, marker=marker, fillstyle=fill, **options)
        for _, _, label, marker, fill in drawn
        if label
    ]
