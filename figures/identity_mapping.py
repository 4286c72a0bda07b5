"""Is the identity hard to learn for a stack of blocks?"""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from figures.lines import THICK, arm_handles, finish, handle, log_axis, seed_lines, whole_numbers
from figures.points import seed_points
from figures.style import ARMS, Axes2D, panels, style
from figures.table import arms_of, seeds_text, select

SPREAD = 0.75  # of the gap between two numbers of blocks, taken by the arms side by side


@style()
def copying(table: pd.DataFrame, *, axes: Any = None) -> Axes2D:
    """How well stacks of blocks copy their input: the error at the end by number of blocks, over time with the most
    blocks, and what a block changes of its input; log axes, a point or thin line for every seed.

    table: arm, depth_total (two layers a block), seed, epoch, split ("test": the first panel, at the last epoch;
    "validation": the second), quantity ("error"; "change", first and last, of no split), value.
    """
    keys = ["arm", "depth_total", "seed", "epoch", "split"]
    rows = select(table, keys, figure="copying", quantity=["error", "change"])
    rows = rows.assign(blocks=rows["depth_total"] // 2)
    arms, counts, last = arms_of(rows), sorted(rows["blocks"].unique()), rows["epoch"].max()
    errors, changes = rows[rows["quantity"] == "error"], rows[rows["quantity"] == "change"]
    grid = panels(axes, 1, 3, figure="copying", height=1.9)
    by_blocks, over_time, by_block = grid[0]
    test = errors[errors["split"] == "test"]
    _by_blocks(by_blocks, test[test["epoch"] == last], arms, counts)
    _by_blocks(by_block, changes[changes["epoch"] == 0], arms, counts, hollow=True)
    _by_blocks(by_block, changes[changes["epoch"] == last], arms, counts)
    most = errors[(errors["split"] == "validation") & (errors["blocks"] == counts[-1])]
    for arm in arms:
        seed_lines(over_time, most[most["arm"] == arm], arm, x="epoch", geometric=True)
    log_axis(over_time)
    whole_numbers(over_time)
    by_blocks.set(xlabel="blocks", ylabel="error of the copy, test")
    over_time.set(xlabel="epoch", ylabel=f"error of the copy, {counts[-1]} blocks")
    by_block.set(xlabel="blocks", ylabel="change by a block\n(of its input's norm)")
    finish(
        grid,
        [
            *arm_handles(arms, marker=True),
            handle("before training", "0.45", marker="o", linestyle="", markerfacecolor="none", markeredgecolor="0.45"),
        ],
        title=f"bar and thick line: geometric mean; points and thin lines: each of {seeds_text(rows)}",
    )
    return grid


def _by_blocks(axis: Axes, rows: pd.DataFrame, arms: list[str], counts: list[int], *, hollow: bool = False) -> None:
    """A point for every seed and a bar for their geometric mean, the arms side by side at each number of blocks."""
    step = SPREAD / max(1, len(arms))
    for place, count in enumerate(counts):
        for index, arm in enumerate(arms):
            part = rows[(rows["arm"] == arm) & (rows["blocks"] == count) & (rows["value"] > 0)]
            x = place + step * (index - (len(arms) - 1) / 2)
            if part.empty:
                continue
            if hollow:
                axis.plot(
                    x,
                    np.exp(np.log(part["value"]).mean()),
                    linestyle="",
                    marker=ARMS[arm].marker,
                    markerfacecolor="none",
                    markeredgecolor=ARMS[arm].colour,
                    markeredgewidth=0.7,
                )
                continue
            seed_points(axis, x, part, arm, width=0.5 * step)
            axis.hlines(
                np.exp(np.log(part["value"]).mean()),
                x - step / 2,
                x + step / 2,
                color=ARMS[arm].colour,
                linewidth=THICK,
            )
    axis.set_xticks(range(len(counts)), [str(count) for count in counts])
    axis.set_xlim(-0.6, len(counts) - 0.4)
    axis.grid(visible=False, axis="x")
    log_axis(axis)
