"""How well does each network learn with and without its shortcuts?"""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, LogLocator, NullLocator

from figures.lines import EDGE, THICK, arm_handles, finish
from figures.points import points_title
from figures.style import ARMS, Axes2D, panels, style
from figures.table import arms_of, select

PANELS = {("test", "error"): "test error (%)", ("train", "loss"): "training loss (nats)"}
ROW = 0.23  # inches
PERCENT = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 0.9)


@style()
def variants(table: pd.DataFrame, *, axes: Any = None) -> Axes2D:
    """Final test error (%) and training loss of each network, a row for each in the table's order, on log axes; a point
    for every seed, a bar for their mean. A value of 0 stands at the left edge.

    table: network, arm, depth_total, seed, split and quantity ("test", "error", from 0 to 1; "train", "loss", in nats),
    value. A network whose depth is not the most common one is named with it.
    """
    keys = ["network", "arm", "depth_total", "seed"]
    rows = select(table, keys, figure="variants", split=["train", "test"], quantity=["error", "loss"])
    networks, arms = list(dict.fromkeys(rows["network"])), arms_of(rows)
    height = ROW * len(networks) + 0.3
    grid = panels(axes, 1, len(PANELS), figure="variants", height=height, sharey=True)
    for axis, ((split, quantity), label) in zip(grid[0], PANELS.items(), strict=True):
        part = rows[(rows["split"] == split) & (rows["quantity"] == quantity)]
        left = edge(part["value"])
        for place, network in enumerate(networks):
            for arm in arms:
                of_arm = part[(part["network"] == network) & (part["arm"] == arm)]
                seeds_and_mean(axis, place + offset(arm, arms), of_arm, arm, left=left)
        log_rows(axis, len(networks), left=left)
        axis.set_xlabel(label)
    grid[0, 0].xaxis.set_major_locator(FixedLocator(PERCENT))
    grid[0, 0].xaxis.set_major_formatter(lambda value, _: f"{100 * value:g}")
    grid[0, 0].set_yticks(range(len(networks)), row_labels(rows, networks))
    usual = f"depth {usual_depth(rows)}, or as in brackets; "
    zeros = "; at the left edge: 0" if (rows["value"] == 0).any() else ""
    lacking = rows.groupby("network")["arm"].nunique().min() < len(arms)
    zeros += "; no mark: not trained, or diverged" * bool(lacking)
    finish(grid, arm_handles(arms, marker=True), title=usual + points_title(rows, mean="bar: mean") + zeros)
    return grid


def offset(arm: str, arms: list[str]) -> float:
    """How far below its row's middle an arm stands: all of them within 0.56 of a row."""
    return 0.0 if len(arms) == 1 else 0.56 * (arms.index(arm) / (len(arms) - 1) - 0.5)


def edge(values: "pd.Series[float]") -> float:
    """Where a log axis begins: below the smallest value that is not 0."""
    positive = values[values > 0]
    return 0.6 * float(positive.min()) if len(positive) else 0.1


def seeds_and_mean(axis: Axes, y: float, rows: pd.DataFrame, arm: str, *, left: float) -> None:
    """The arm's points of one row, and a bar at their mean."""
    if rows.empty:
        return
    look, options = ARMS[arm], dict[str, Any](EDGE)
    values, mean = np.maximum(rows["value"], left), max(float(rows["value"].mean()), left)
    axis.vlines(mean, y - 0.17, y + 0.17, color=look.colour, linewidth=THICK)
    axis.plot(values, np.full(len(values), y), linestyle="", marker=look.marker, color=look.colour, **options)


def log_rows(axis: Axes, count: int, *, left: float) -> None:
    """A log axis from `left` on, over rows that hairlines divide, the first at the top."""
    axis.set_xscale("log")
    axis.set_xlim(left=left)
    low, high = axis.get_xlim()
    axis.xaxis.set_major_locator(LogLocator(subs=(1,) if high > 100 * low else (1, 2, 5)))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_ylim(count - 0.5, -0.5)
    axis.grid(visible=False, axis="y")
    for between in np.arange(count - 1) + 0.5:
        axis.axhline(between, color="0.85", linewidth=0.4, zorder=0)


def usual_depth(rows: pd.DataFrame) -> int:
    """The depth that most of the networks have."""
    return int(rows.groupby("network")["depth_total"].first().mode().iloc[0])


def row_labels(rows: pd.DataFrame, networks: list[str]) -> list[str]:
    """The networks' names, with the depth where it is not the usual one."""
    depths, usual = rows.groupby("network")["depth_total"].first(), usual_depth(rows)
    return [name if depths[name] == usual else f"{name} ({depths[name]:g})" for name in networks]
