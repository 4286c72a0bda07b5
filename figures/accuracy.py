"""Does depth hurt, and is it the fitting or the generalising that fails?"""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from figures.lines import THICK, arm_handles, finish
from figures.points import percent_axis, points_title, seed_points
from figures.style import ARMS, Axes2D, panels, style
from figures.table import arms_of, depths_of, select

SPLITS = {"train": "training accuracy (%)", "test": "test accuracy (%)"}
STEP = 0.16  # from arm to arm, of the distance between two depths


@style()
def accuracy_by_depth(table: pd.DataFrame, *, axes: Any = None) -> Axes2D:
    """Final accuracy (%) on training and test data against depth; a point for every seed, a bar for their mean.

    table: arm, depth_total, seed, split ("train", "test"), quantity ("accuracy"), value (from 0 to 1). A split without
    rows has no panel; a cross at the bottom marks an arm without a value at that depth.
    """
    keys = ["arm", "depth_total", "seed"]
    rows = select(table, keys, figure="accuracy_by_depth", quantity=["accuracy"], split=list(SPLITS))
    splits = [split for split in SPLITS if split in set(rows["split"])]
    grid = panels(axes, 1, len(splits), figure="accuracy_by_depth", height=1.9, sharex=True, sharey=True)
    missing = False
    for axis, split in zip(grid[0], splits, strict=True):
        missing |= _panel(axis, rows[rows["split"] == split], arms_of(rows), depths_of(rows))
        axis.set(xlabel="depth (layers)", ylabel=SPLITS[split])
    title = points_title(rows, mean="bar: mean") + "; ×: no value" * missing
    finish(grid, arm_handles(arms_of(rows), marker=True), title=title)
    return grid


def _panel(axis: Axes, rows: pd.DataFrame, arms: list[str], depths: list[int]) -> bool:
    """Draw one panel; True if an arm has no value at some depth (it diverged, or was not run)."""
    missing = False
    for place, arm in enumerate(arms):
        of_arm, look = rows[rows["arm"] == arm], ARMS[arm]
        x = np.arange(len(depths)) + STEP * (place - (len(arms) - 1) / 2)
        cells = [of_arm[of_arm["depth_total"] == depth] for depth in depths]
        means = [seed_points(axis, at, cell, arm, width=0.6 * STEP) for at, cell in zip(x, cells, strict=True)]
        axis.plot(x, means, color=look.colour, linestyle=look.line, linewidth=0.6, alpha=0.6)
        gaps = x[np.isnan(means)]
        axis.plot(gaps, 0 * gaps + 0.03, "x", color=look.colour, transform=axis.get_xaxis_transform())
        missing |= len(gaps) > 0
        axis.hlines(means, x - 0.45 * STEP, x + 0.45 * STEP, color=look.colour, linewidth=THICK)
    axis.set_xlim(-0.55, len(depths) - 0.45)
    axis.set_xticks(np.arange(len(depths)), [str(depth) for depth in depths])
    axis.grid(visible=False, axis="x")
    percent_axis(axis)
    return missing
