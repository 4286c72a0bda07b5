"""A point for every seed, beside each other where they would cover each other, on an axis of percent."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from figures.lines import EDGE
from figures.style import ARMS
from figures.table import seeds_text


def seed_points(axis: Axes, x: float, rows: pd.DataFrame, arm: str, *, width: float) -> float:
    """Draw the `value` of every seed at x, side by side over `width`, in the arm's colour; returns their mean."""
    values = rows.sort_values("seed")["value"]
    places = x + (np.linspace(-width / 2, width / 2, len(values)) if len(values) > 1 else np.zeros(len(values)))
    look, options = ARMS[arm], dict[str, Any](EDGE)
    axis.plot(places, values, linestyle="", marker=look.marker, color=look.colour, **options)
    return float(values.mean())


def percent_axis(axis: Axes) -> None:
    """Ticks of y in percent, of values from 0 to 1."""
    axis.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g}")


def points_title(rows: pd.DataFrame, *, mean: str) -> str:
    """What points and means are, with the number of seeds."""
    count = seeds_text(rows)
    return count if count == "1 seed" else f"{mean}; points: each of {count}"
