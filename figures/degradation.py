"""Do deeper networks have the larger error, on training data too?"""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from figures.lines import finish, handle, seed_lines, seeds_title, whole_numbers
from figures.points import percent_axis
from figures.style import ARMS, Axes2D, depth_title, panels, shade, style
from figures.table import arms_of, depths_of, select

SPLITS = {"train": "training error (%)", "test": "test error (%)"}


@style()
def degradation(table: pd.DataFrame, *, axes: Any = None) -> Axes2D:
    """Training and test error (%) over epochs: a column of panels for each arm, the deeper a network the darker (He et
    al. 2015, Fig. 1 and 6).

    table: arm, depth_total, seed, epoch, split ("train", "test"), quantity ("error"), value (from 0 to 1). A mean ends
    with the first of its seeds that ends.
    """
    keys = ["arm", "depth_total", "seed", "epoch"]
    rows = select(table, keys, figure="degradation", quantity=["error"], split=list(SPLITS))
    splits = [split for split in SPLITS if split in set(rows["split"])]
    arms, depths = arms_of(rows), depths_of(rows)
    grid = panels(axes, len(splits), len(arms), figure="degradation", height=1.5, sharex=True, sharey="row")
    for column, arm in enumerate(arms):
        of_arm = rows[rows["arm"] == arm]
        for axis, split in zip(grid[:, column], splits, strict=True):
            depth_lines(axis, of_arm[of_arm["split"] == split], arm, depths, x="epoch")
            percent_axis(axis)
        grid[0, column].set_title(ARMS[arm].label)
        grid[-1, column].set_xlabel("epoch")
        whole_numbers(grid[-1, column])
    for axis, split in zip(grid[:, 0], splits, strict=True):
        axis.set_ylabel(SPLITS[split])
    finish(grid, depth_handles(depths), title=seeds_title(rows) + "; the darker, the deeper")
    return grid


def depth_lines(
    axis: Axes, rows: pd.DataFrame, arm: str, depths: list[int], *, x: str, geometric: bool = False
) -> None:
    """An arm's lines, one a depth: its colour, the paler the shallower."""
    for depth, strength in strengths(depths):
        colour = shade(ARMS[arm].colour, strength)
        of_depth = rows[rows["depth_total"] == depth]
        seed_lines(axis, of_depth, arm, x=x, geometric=geometric, color=colour, linestyle="-")


def depth_handles(depths: list[int]) -> list[Line2D]:
    """A legend's entries for the depths, in shades of black."""
    return [handle(depth_title(depth), shade("#000000", strength)) for depth, strength in strengths(depths)]


def strengths(depths: list[int]) -> list[tuple[int, float]]:
    """How strong the colour of each depth is, from the shallowest to the deepest."""
    return list(zip(depths, np.linspace(0.35, 1, len(depths)) if len(depths) > 1 else [1.0], strict=True))
