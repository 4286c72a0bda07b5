"""How well does each network learn with and without its shortcuts?"""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, LogLocator, NullLocator

from .parts.lines import arm_handles, finish
from .parts.points import percent_axis, points_title, seed_points, shifts
from .parts.sheet import drawing, panels
from .parts.style import Axes2D, Looks
from .parts.table import arms_of, select

PANELS = {("test", "error"): ("test error (%)", 1.0), ("train", "loss"): ("training loss (nats)", 10.0)}
ROW = 0.23  # inches
PERCENT = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 0.9)


@drawing
def variants(table: pd.DataFrame, *, axes: Any = None, looks: Looks = None, legend: bool = True) -> Axes2D:
    """Final test error (%) and training loss of each network, a row for each in the table's order, on log axes; a small
    point for every seed, a marker at their mean.

    A value of 0 stands at the left edge, a loss above 10 at the right one; a cross there marks an arm without a value.
    A network whose depth is not the most common one is named with it.

    Table: network, arm, depth_total, seed, split and quantity ("test", "error", from 0 to 1; "train", "loss", in nats),
    value.
    """
    keys = ["network", "arm", "depth_total", "seed"]
    rows = select(table, keys, figure="variants", split=["train", "test"], quantity=["error", "loss"])
    networks, looks = list(dict.fromkeys(rows["network"])), arms_of(rows, looks)
    grid = panels(axes, 1, len(PANELS), figure="variants", height=ROW * len(networks), sharey=True)
    for axis, ((split, quantity), (label, most)) in zip(grid[0], PANELS.items(), strict=True):
        part = rows[(rows["split"] == split) & (rows["quantity"] == quantity)]
        limits = edge(part["value"]), most
        means = part.groupby(["network", "arm"], as_index=False)["value"].mean()
        row: dict[str, Any] = {"by": "network", "order": networks, "horizontal": True}
        seed_points(axis, part.assign(value=part["value"].clip(*limits)), looks, **row, mean=False)
        seed_points(axis, means.assign(value=means["value"].clip(*limits)), looks, **row, seeds=False)
        present = set(zip(means["network"], means["arm"], strict=True))
        for shift, (arm, look) in zip(shifts(len(looks)), looks.items(), strict=True):
            for place in (i for i, network in enumerate(networks) if (network, arm) not in present):
                axis.plot(limits[1], place + shift, marker="x", color=look.colour, clip_on=False)
        log_rows(axis, len(networks), limits)
        axis.set_xlabel(label)
    grid[0, 0].xaxis.set_major_locator(FixedLocator(PERCENT))
    percent_axis(grid[0, 0], along="x")
    grid[0, 0].set_yticks(range(len(networks)), row_labels(rows, networks))
    finish(
        grid,
        arm_handles(looks, line=False, marker=True),
        legend=legend,
        caption=explained(rows, len(networks) * len(looks)),
    )
    return grid


def edge(values: "pd.Series[float]") -> float:
    """Where a log axis begins: below the smallest value that is not 0."""
    positive = values[values > 0]
    return 0.6 * float(positive.min()) if len(positive) else 0.1


def log_rows(axis: Axes, count: int, limits: tuple[float, float]) -> None:
    """A log axis over rows that hairlines divide, the first at the top."""
    low, high = limits
    axis.set_xscale("log")
    axis.set_xlim(low, high)
    axis.xaxis.set_major_locator(LogLocator(subs=(1,) if high > 100 * low else (1, 2, 5)))
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_ylim(count - 0.5, -0.5)
    axis.grid(visible=False, axis="y")
    for between in np.arange(count - 1) + 0.5:
        axis.axhline(between, color="0.85", linewidth=0.4, zorder=0)


def explained(rows: pd.DataFrame, marks: int) -> str:
    """What the figure's title says: depth, seeds, and what stands at the edges, if anything does; marks: in a panel."""
    (_, most) = PANELS["train", "loss"]
    have = rows.groupby(["network", "arm"])["quantity"].nunique()
    edges = (
        ((rows["value"] == 0).any(), "at the left edge: 0"),
        ((rows["value"] > most).any(), f"at the right edge: above {most:g}"),
        (have.sum() < len(PANELS) * marks, "×: no value"),
    )
    first = f"depth {usual_depth(rows)}, or as in brackets; {points_title(rows)}"
    return f"{first}\n{'; '.join(text for shown, text in edges if shown)}".strip()


def usual_depth(rows: pd.DataFrame) -> int:
    """The depth that most of the networks have."""
    return int(rows.groupby("network")["depth_total"].first().mode().iloc[0])


def row_labels(rows: pd.DataFrame, networks: list[str]) -> list[str]:
    """The networks' names, with the depth where it is not the usual one."""
    depths, usual = rows.groupby("network")["depth_total"].first(), usual_depth(rows)
    return [name if depths[name] == usual else f"{name} ({depths[name]:g})" for name in networks]
