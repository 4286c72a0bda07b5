"""What becomes of the residual stream with depth, and what does the head read out of it?"""

from typing import Any

import pandas as pd

from .parts.lines import arm_handles, arm_lines, finish, log_axis, note_missing, seeds_title, whole_numbers
from .parts.sheet import drawing, panels
from .parts.style import Axes2D, Looks, column_titles, depth_title
from .parts.table import arms_of, depths_of, moments, of_networks, select

LABELS = {
    "effective_rank": "effective\nrank",
    "cosine": "cosine between\npositions",
    "loss": "loss of the\nread-out (nats)",
}
LOGARITHMIC = ("effective_rank",)


@drawing
def stream(table: pd.DataFrame, *, axes: Any = None, looks: Looks = None, legend: bool = True) -> Axes2D:
    """Effective rank (log axis) and mean cosine between positions of the stream at every fork, and the loss of the head
    read out behind every junction, against depth. Columns: each network's depth, before and after training; rows:
    those of the quantities that the table has.

    Table: arm, depth_total, seed, epoch, depth, quantity ("effective_rank", "cosine", "loss"), value, as
    `stream_statistics` and `read_out` give them, one under the other.
    """
    keys = ["arm", "depth_total", "seed", "epoch", "depth"]
    rows = select(of_networks(table), keys, figure="stream", quantity=list(LABELS))
    times, depths, looks = moments(rows), depths_of(rows), arms_of(rows, looks)
    columns = [(depth, moment) for depth in depths for moment in times]
    present = [quantity for quantity in LABELS if quantity in set(rows["quantity"])]
    grid = panels(axes, len(present), len(columns), figure="stream", height=0.9, sharex="col", sharey="row")
    for line, quantity in zip(grid, present, strict=True):
        of_quantity = rows[rows["quantity"] == quantity]
        for axis, (depth, moment) in zip(line, columns, strict=True):
            part = times[moment]
            part = part[(part["depth_total"] == depth) & (part["quantity"] == quantity)]
            arm_lines(axis, part, looks, x="depth", geometric=quantity in LOGARITHMIC, markers="few")
            note_missing(axis, of_quantity[of_quantity["depth_total"] == depth], part, looks)
            if quantity in LOGARITHMIC:
                log_axis(axis)
        line[0].set_ylabel(LABELS[quantity])
    for axis in grid[-1]:
        whole_numbers(axis)
        axis.set_xlabel("junction depth")
    column_titles(grid[0], [",\n".join(filter(None, (depth_title(depth), moment))) for depth, moment in columns])
    finish(
        grid,
        arm_handles(looks, marker=True),
        legend=legend,
        caption=seeds_title(rows, mean="mean (of ranks, geometric)"),
    )
    return grid
