"""A small point for every seed and a marker at their mean, by category, and axes of percent."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn
from matplotlib.axes import Axes

from .lines import EDGE
from .style import Look
from .table import seeds_text, several

WIDTH = 0.8  # of a category, over which seaborn lays its groups


def seed_points(
    axis: Axes,
    rows: pd.DataFrame,
    looks: Mapping[str, Look],
    *,
    by: str,
    order: Sequence[Any] | None,
    group: str = "arm",
    dodge: bool = True,
    horizontal: bool = False,
    seeds: bool = True,
    mean: bool = True,
    joined: bool = False,
    **marker: Any,
) -> None:
    """Draw `value` in each category: a small point for every seed, and the marker of the look at their mean.

    by: the column of categories, drawn in this order; order None: a column of numbers, to scale.
    group: the column whose looks stand side by side in a category, unless dodge is False.
    horizontal: categories from the top down, values along x. joined: thin lines from mean to mean.
    On an axis that is logarithmic already the mean is geometric. `marker`: how to draw the mean's.
    """
    if rows.empty:
        return
    rows = rows.assign(**{group: rows[group].map(str)})
    if order is not None:
        rows = rows.assign(**{by: rows[by].astype(object).map(str)})
    count = len(looks)
    shared: dict[str, Any] = {
        "data": rows, "hue": group, "hue_order": [str(name) for name in looks], "legend": False, "ax": axis,
        "palette": {str(name): look.colour for name, look in looks.items()}, "native_scale": order is None,
        "order": None if order is None else [str(category) for category in order],
        **({"x": "value", "y": by, "orient": "h"} if horizontal else {"x": by, "y": "value", "orient": "v"}),
    }  # fmt: skip
    side_by_side = dodge and count > 1
    if seeds:
        seaborn.stripplot(**shared, jitter=False, dodge=side_by_side, size=2.6, alpha=0.6, clip_on=False)
    if mean:
        lines = [look.line if joined else "" for look in looks.values()]
        shared |= {"dodge": WIDTH * (1 - 1 / count) if side_by_side else False, "linestyles": lines}
        shared |= {"markers": [look.marker for look in looks.values()], "linewidth": 0.6, "markersize": 4.5}
        seaborn.pointplot(**shared, errorbar=None, clip_on=False, **(EDGE | marker))
        for line in list(axis.lines):
            if np.isnan(np.asarray(line.get_xydata(), float)).any(axis=1).all():  # would take room at the origin
                line.remove()
    for label in (axis.xaxis.label, axis.yaxis.label):  # seaborn's names of columns; it hides those of inner panels
        label.set(text="", visible=True)
    axis.grid(visible=False, axis="y" if horizontal else "x")


def shifts(count: int) -> np.ndarray:
    """Where `seed_points` draws each of `count` looks, from the middle of its category."""
    return (np.arange(count) - (count - 1) / 2) * WIDTH / count


def percent_axis(axis: Axes, *, along: str = "y") -> None:
    """Ticks in percent, of values from 0 to 1."""
    (axis.xaxis if along == "x" else axis.yaxis).set_major_formatter(lambda value, _: f"{100 * value:g}")


def points_title(rows: pd.DataFrame) -> str:
    """What large and small markers are, with the number of seeds."""
    count = seeds_text(rows)
    return f"large: mean; small: each of {count}" if several(count) else count
