"""Do shortcuts change what a network reaches, or only how fast?"""

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from .parts.lines import arm_handles, arm_lines, finish, log_axis, seeds_title, whole_numbers
from .parts.points import percent_axis, seed_points
from .parts.sheet import drawing, panels
from .parts.style import GREY, Axes2D, Looks, depth_title, row_title, small
from .parts.table import arms_of, check_columns, depths_of, select


@drawing
def training_speed(table: pd.DataFrame, *, axes: Any = None, looks: Looks = None, legend: bool = True) -> Axes2D:
    """Training loss (nats, log axis) over steps, with the targets as thin lines; beside it the final test error (%), a
    small point for every seed, a marker at their mean. A row of panels for each network.

    Table: network, arm, depth_total, seed, step, split, quantity ("loss" of split "train", each value the mean of the
    last epoch's steps; "error" of split "test"), target (of other rows, one for each line), value (errors from 0 to 1).
    """
    keys = ["network", "arm", "depth_total", "seed"]
    losses = select(table, [*keys, "step"], figure="training_speed", split=["train"], quantity=["loss"])
    check_columns(table, ["target"], figure="training_speed")
    errors = select(table, keys, figure="training_speed", split=["test"], quantity=["error"])
    networks, looks = list(errors["network"].unique()), arms_of(losses, looks)
    targets = table["target"].dropna().unique().tolist()
    share = {"sharex": "col", "sharey": "col", "width_ratios": (2.4, 1)}
    grid = panels(axes, len(networks), 2, figure="training_speed", height=1.15, **share)
    for (left, right), network in zip(grid, networks, strict=True):
        arm_lines(left, losses[losses["network"] == network], looks, x="step")
        _targets(left, targets)
        left.set_ylabel("training loss (nats),\nmean of an epoch's steps")
        at_end = errors[errors["network"] == network].assign(at="end")
        seed_points(right, at_end, looks, by="at", order=["end"])
        right.set_ylabel("test error (%)")
        percent_axis(right)
        row_title(right, network)
    for left, right in grid:
        left.set_ylim(bottom=0.8 * min([losses["value"].min(), *targets]))
        right.set_ylim(bottom=min(0, right.get_ylim()[0]))
    grid[-1, 0].set_xlabel("step")
    grid[-1, 1].set(xlabel="arm", xticks=[])  # the legend names the arms
    whole_numbers(grid[-1, 0])
    depth = ", ".join(map(depth_title, depths_of(losses)))
    finish(
        grid, arm_handles(looks, marker=True), legend=legend, caption=f"{depth}; {seeds_title(losses)}; markers: means"
    )
    return grid


def _targets(axis: Axes, targets: Sequence[float]) -> None:
    """A thin line, with its number, for each target."""
    log_axis(axis)
    for target in targets:
        axis.axhline(target, color=GREY, linewidth=0.5)
        place = axis.get_yaxis_transform()
        axis.text(0.995, target, f"{target:g}", transform=place, ha="right", va="bottom", fontsize=small(), color=GREY)
