"""Do deeper networks have the larger error, on training data too, and how strongly do their layers respond?"""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from .parts.lines import finish, handle, log_axis, seed_lines, seeds_title, whole_numbers
from .parts.points import percent_axis
from .parts.sheet import drawing, panels
from .parts.style import Axes2D, Look, Looks, depth_title, shade
from .parts.table import arms_of, depths_of, of_networks, select

SPLITS = {"train": "training error (%)", "test": "test error (%)"}
ORDERS = {"in order of depth": "depth", "sorted by size": "rank"}


@drawing
def degradation(table: pd.DataFrame, *, axes: Any = None, looks: Looks = None, legend: bool = True) -> Axes2D:
    """Training and test error (%) over epochs: a column of panels for each arm, the deeper a network the darker (He et
    al. 2015, Fig. 1 and 6).

    A mean ends with the first of its seeds that ends.

    Table: arm, depth_total, seed, epoch, split ("train", "test"), quantity ("error"), value (from 0 to 1).
    """
    keys = ["arm", "depth_total", "seed", "epoch"]
    rows = select(table, keys, figure="degradation", quantity=["error"], split=list(SPLITS))
    splits = [split for split in SPLITS if split in set(rows["split"])]
    looks, depths = arms_of(rows, looks), depths_of(rows)
    grid = panels(axes, len(splits), len(looks), figure="degradation", height=1.1, sharex=True, sharey="row")
    for column, (arm, look) in enumerate(looks.items()):
        of_arm = rows[rows["arm"] == arm]
        for axis, split in zip(grid[:, column], splits, strict=True):
            depth_lines(axis, of_arm[of_arm["split"] == split], look, depths, x="epoch")
            percent_axis(axis)
        grid[0, column].set_title(look.label)
        grid[-1, column].set_xlabel("epoch")
        whole_numbers(grid[-1, column])
    for axis, split in zip(grid[:, 0], splits, strict=True):
        axis.set_ylabel(SPLITS[split])
    finish(grid, depth_handles(depths), legend=legend, caption=seeds_title(rows) + "; the darker, the deeper")
    return grid


@drawing
def layer_responses(table: pd.DataFrame, *, axes: Any = None, looks: Looks = None, legend: bool = True) -> Axes2D:
    """Standard deviation of each layer's response (its own unit, log axis), in order and sorted from the largest; an
    arm's colour, the deeper a network the darker (He et al. 2015, Fig. 7).

    Lines are geometric means over seeds; a seed is sorted by itself.

    Table: arm, depth_total, seed, block, depth (place of the layer, from 0), quantity ("std"), value.
    """
    rows = select(
        of_networks(table), ["arm", "depth_total", "seed", "depth"], figure="layer_responses", quantity=["std"]
    )
    by_network = rows.groupby(["arm", "depth_total", "seed"])["value"]
    rows = rows.assign(rank=by_network.rank(method="first", ascending=False) - 1)
    looks, depths = arms_of(rows, looks), depths_of(rows)
    grid = panels(axes, 1, 2, figure="layer_responses", height=1.5, sharey=True)
    for axis, (title, x) in zip(grid[0], ORDERS.items(), strict=True):
        for arm, look in looks.items():
            of_arm = rows[rows["arm"] == arm].drop(columns="depth" if x == "rank" else "rank")
            depth_lines(axis, of_arm, look, depths, x=x, geometric=True)
        log_axis(axis)
        axis.set_xlabel(f"layer, {title}")
    grid[0, 0].set_ylabel("standard deviation\nof the response")
    deeper = "; the darker, the deeper" * (len(depths) > 1)
    handles = [handle(look.label, look.colour) for look in looks.values()] + depth_handles(depths)
    finish(grid, handles, legend=legend, caption=seeds_title(rows, mean="geometric mean") + deeper)
    return grid


def depth_lines(
    axis: Axes, rows: pd.DataFrame, look: Look, depths: list[int], *, x: str, geometric: bool = False
) -> None:
    """An arm's lines, one a depth: its colour, the paler the shallower."""
    for depth, strength in strengths(depths):
        colour = shade(look.colour, strength)
        of_depth = rows[rows["depth_total"] == depth]
        seed_lines(axis, of_depth, look, x=x, geometric=geometric, color=colour, linestyle="-")


def depth_handles(depths: list[int]) -> list[Line2D]:
    """A legend's entries for the depths, in shades of black."""
    return [handle(depth_title(depth), shade("#000000", strength)) for depth, strength in strengths(depths)]


def strengths(depths: list[int]) -> list[tuple[int, float]]:
    """How strong the colour of each depth is, from the shallowest to the deepest."""
    return list(zip(depths, np.linspace(0.35, 1, len(depths)) if len(depths) > 1 else [1.0], strict=True))
