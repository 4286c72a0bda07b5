"""How large is the residual beside what the shortcut carries, over training?"""

from typing import Any

import numpy as np
import pandas as pd

from .parts.lines import finish, handle, log_axis, seed_lines, seeds_title, whole_numbers
from .parts.sheet import drawing, nothing, panels
from .parts.style import GREY, UNSAID, Axes2D, Look, Looks, column_titles, depth_title, row_title, shade
from .parts.table import arms_of, depths_of, of_networks, select

WEAKEST = 0.25  # strength of the first epoch's colour
EPOCHS = 6  # drawn at most


@drawing
def residual_magnitudes(table: pd.DataFrame, *, axes: Any = None, looks: Looks = None, legend: bool = True) -> Axes2D:
    """Norm of the branch over norm of the shortcut (log axis) at every junction; light to dark: early to late epochs.

    Rows of panels: depth_total; columns: the arms with a shortcut. Where the shortcut carries zeros there is no ratio:
    the caption names those arms. Of more than six epochs six are drawn: the first, the last, and four between them that
    are closer at the beginning.

    Table: arm, depth_total, seed, epoch, depth, quantity ("ratio", "shortcut"), value.
    """
    keys = ["arm", "depth_total", "seed", "epoch", "depth"]
    found = select(of_networks(table), keys, figure="residual_magnitudes", quantity=["ratio", "shortcut"])
    if not found["value"].any():
        return nothing(axes, _without(arms_of(found, looks)), figure="residual_magnitudes")
    rows = select(found, keys, figure="residual_magnitudes", quantity=["ratio"])
    strengths = _strengths(rows)
    rows = rows[rows["epoch"].isin(list(strengths))]
    looks, depths = arms_of(rows, looks), depths_of(rows)
    grid = panels(axes, len(depths), len(looks), figure="residual_magnitudes", sharex="row", sharey=True)
    for line, depth in zip(grid, depths, strict=True):
        for axis, (arm, look) in zip(line, looks.items(), strict=True):
            part = rows[(rows["arm"] == arm) & (rows["depth_total"] == depth)]
            for epoch, strength in strengths.items():
                drawn = {"color": shade(look.colour, strength), "linestyle": "-"}
                seed_lines(axis, part[part["epoch"] == epoch], look, x="depth", geometric=True, **drawn)
            axis.axhline(1, color=GREY, linewidth=0.5)
        whole_numbers(line[0])
        line[0].set_ylabel("branch / shortcut\n(ratio of norms)")
        row_title(line[-1], depth_title(depth))
    column_titles(grid[0], [look.label for look in looks.values()])
    for axis in grid.flat:
        log_axis(axis)
    for axis in grid[-1]:
        axis.set_xlabel("junction depth")
    handles = [
        handle("" if epoch == UNSAID else f"epoch {epoch:g}", shade("black", k)) for epoch, k in strengths.items()
    ]
    without = {arm: look for arm, look in arms_of(found, looks).items() if arm not in looks}
    title = seeds_title(rows, mean="geometric mean")
    finish(grid, handles, legend=legend, caption=f"{title}\n{_without(without)}" if without else title)
    return grid


def _strengths(rows: pd.DataFrame) -> dict[float, float]:
    """The epochs to draw, and how strong the colour of each is."""
    epochs = sorted(set(rows["epoch"]))
    if len(epochs) > EPOCHS:
        epochs = [epochs[i] for i in np.unique(np.geomspace(1, len(epochs), EPOCHS).round().astype(int) - 1)]
    return dict(zip(epochs, np.linspace(1, WEAKEST, len(epochs))[::-1], strict=True))


def _without(looks: dict[str, Look]) -> str:
    return f"no ratio: {', '.join(look.label for look in looks.values())} (the shortcut carries zeros)"
