"""Do shortcuts change what a network reaches, or only how fast?"""

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from figures.lines import THICK, arm_handles, finish, log_axis, seed_lines, seeds_title, whole_numbers
from figures.points import percent_axis, seed_points
from figures.style import ARMS, GREY, SMALL, Axes2D, depth_title, panels, row_title, style
from figures.table import arms_of, depths_of, select

WIDTH = 0.5


@style()
def training_speed(table: pd.DataFrame, *, axes: Any = None) -> Axes2D:
    """Training loss (nats, log axis) over steps, with the targets as thin lines; beside it the final test error (%), a
    point for every seed, a bar for their mean. A row of panels for each network.

    table: network, arm, depth_total, seed, step, split, quantity ("loss" of split "train", each value the mean of the
    last epoch's steps; "error" of split "test"), target (of other rows, one for each line), value (errors from 0 to 1).
    """
    keys = ["network", "arm", "depth_total", "seed"]
    losses = select(table, [*keys, "step"], figure="training_speed", split=["train"], quantity=["loss"])
    errors = select(table, keys, figure="training_speed", split=["test"], quantity=["error"])
    networks, arms = list(errors["network"].unique()), arms_of(losses)
    targets = table["target"].dropna().unique().tolist()
    share = {"sharex": "col", "sharey": "col", "width_ratios": (2.4, 1)}
    grid = panels(axes, len(networks), 2, figure="training_speed", height=1.6, **share)
    for (left, right), network in zip(grid, networks, strict=True):
        of_network = losses[losses["network"] == network]
        for arm in arms:
            seed_lines(left, of_network[of_network["arm"] == arm], arm, x="step")
        _targets(left, targets)
        left.set_ylabel("training loss (nats),\nmean of an epoch's steps")
        _errors(right, errors[errors["network"] == network], arms)
        row_title(right, network)
    for left, right in grid:
        left.set_ylim(bottom=0.8 * min([losses["value"].min(), *targets]))
        right.set_ylim(bottom=min(0, right.get_ylim()[0]))
    grid[-1, 0].set_xlabel("step")
    grid[-1, 1].set_xlabel("arm")
    whole_numbers(grid[-1, 0])
    depth = ", ".join(map(depth_title, depths_of(losses)))
    finish(grid, arm_handles(arms, marker=True), title=f"{depth}; {seeds_title(losses)}; bar: mean")
    return grid


def _targets(axis: Axes, targets: Sequence[float]) -> None:
    """A thin line, with its number, for each loss whose first step is told."""
    log_axis(axis)
    for target in targets:
        axis.axhline(target, color=GREY, linewidth=0.5)
        place = axis.get_yaxis_transform()
        axis.text(0.995, target, f"{target:g}", transform=place, ha="right", va="bottom", fontsize=SMALL, color=GREY)


def _errors(axis: Axes, rows: pd.DataFrame, arms: list[str]) -> None:
    """Draw the final test errors, an arm beside the other."""
    for place, arm in enumerate(arms):
        of_arm = rows[rows["arm"] == arm]
        if len(of_arm):
            mean = seed_points(axis, place, of_arm, arm, width=0.6 * WIDTH)
            axis.hlines(mean, place - WIDTH / 2, place + WIDTH / 2, color=ARMS[arm].colour, linewidth=THICK)
    axis.set_xlim(-0.6, len(arms) - 0.4)
    axis.set_xticks([])  # the legend names the arms
    axis.set_ylabel("test error (%)")
    percent_axis(axis)
