"""One network's profile, also over its training: gradient and residual size against depth, and its path lengths."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from .parts.lines import arm_handles, finish, log_axis, whole_numbers
from .parts.sheet import drawing, panels
from .parts.style import GREY, ONE, Axes2D, Look, Looks, looks_of, note, shade
from .parts.table import check_columns, select

GRADIENT = {
    "total": Look("total", "#000000"),
    "shortcut": Look("shortcut", "#0072B2", "s", (0, (5, 1.5))),
    "branch": Look("branch", "#D55E00", "^", (0, (1.2, 1))),
    "other": Look("other", "#CC79A7", "D", (0, (3, 1, 1, 1))),
}
RATIO = {"ratio": Look("ratio", "#009E73")}
SHARE = {"share": Look("share", "#000000")}
PANELS = {  # by the quantity that is drawn over a training: the column of x, and the labels
    "total": ("depth", {"xlabel": "junction depth", "ylabel": "gradient norm at the fork"}),
    "ratio": ("depth", {"xlabel": "junction depth", "ylabel": "branch / shortcut\n(ratio of norms)"}),
    "share": ("path_length", {"xlabel": "path length (branches)", "ylabel": "signed share\nof the gradient"}),
}
WEAKEST = 0.25  # strength of the first checkpoint's colour
CHECKPOINTS = 6  # drawn at most


@drawing
def profiles(
    table: pd.DataFrame, *, axes: Any = None, looks: Looks = None, legend: bool = True, title: str = ""
) -> Axes2D:
    """Three panels of one network: gradient norms and branch / shortcut ratio against depth, share of path lengths.

    What the table lacks is named in its panel; zeros are left out of the logarithmic axes.

    Table: depth or path_length, quantity ("total", "shortcut", "branch", "other": norms at the fork; "ratio"; "share"),
    value, as the probes give them, one under the other.
    looks: By quantity.
    title: What network it is, for the caption.
    """
    known = {*GRADIENT, *RATIO, *SHARE}
    present = set(table["quantity"]) & known if "quantity" in table else set()
    if not present:
        raise ValueError(f"profiles: the table has no quantity of {', '.join(sorted(known))}.")
    check_columns(table, ["value"], figure="profiles")
    grid = panels(axes, 1, 3, figure="profiles", height=1.15)
    gradient, ratio, share = grid.flat
    gradients, ratios, shares = (looks_of(known, looks, known=known) for known in (GRADIENT, RATIO, SHARE))
    drawn = _draw(gradient, table, gradients, x="depth", log=True)
    _draw(ratio, table, ratios, x="depth", log=True)
    _draw(share, table, shares, x="path_length", log=False)
    for axis, (_, labels) in zip(grid.flat, PANELS.values(), strict=True):
        axis.set(**labels)
    entries = arm_handles({part: gradients[part] for part in drawn}, marker=True)
    caption = f"of {title}\n" * bool(title) + "zeros are left out of log axes"
    finish(grid, entries, legend=legend, caption=caption)
    return grid


@drawing
def checkpoints(
    table: pd.DataFrame, *, axes: Any = None, looks: Looks = None, legend: bool = True, title: str = ""
) -> Axes2D:
    """A network's profile over its training: those panels of `profiles` that the table has, light to dark.

    Of more than six checkpoints six are drawn, evenly spaced, the first and the last among them.

    Table: checkpoint (in order), depth or path_length, quantity ("total": norm at the fork; "ratio"; "share"), value.
    looks: By checkpoint.
    title: What network it is, for the caption.
    """
    places = [column for column in ("depth", "path_length") if column in table]
    rows = select(table, ["checkpoint", *places], figure="checkpoints", quantity=list(PANELS))
    names = list(dict.fromkeys(rows["checkpoint"]))
    drawn = [names[round(k)] for k in np.linspace(0, len(names) - 1, min(len(names), CHECKPOINTS))]
    strengths = np.linspace(1, WEAKEST, len(drawn))[::-1]  # one alone is dark
    shades = {name: Look(str(name), shade(ONE.colour, k)) for name, k in zip(drawn, strengths, strict=True)}
    shades = looks_of(drawn, looks, known=shades)
    panel = {quantity: PANELS[quantity] for quantity in PANELS if quantity in set(rows["quantity"])}
    grid = panels(axes, 1, len(panel), figure="checkpoints", height=1.15)
    for axis, (quantity, (x, labels)) in zip(grid.flat, panel.items(), strict=True):
        _draw(axis, rows[rows["quantity"] == quantity], shades, by="checkpoint", x=x, log=quantity != "share")
        axis.set(**labels)
    left = f"; {len(drawn)} of {len(names)} are drawn" * (len(drawn) < len(names))
    caption = f"of {title}\n" * bool(title) + f"light to dark: early to late checkpoints{left}\n"
    caption += "zeros are left out of log axes"
    finish(grid, arm_handles(shades, marker=True), legend=legend, caption=caption)
    return grid


def _draw(
    axis: Axes, table: pd.DataFrame, looks: dict[str, Look], *, x: str, log: bool, by: str = "quantity"
) -> list[str]:
    """Draw the rows of each look, by the column `by`, as a line; return those that had something to draw."""
    drawn = []
    for name, look in looks.items():
        rows = table[table[by] == name].sort_values(x) if x in table else table[:0]
        values = rows["value"].where(rows["value"] > 0) if log else rows["value"]
        if values.notna().any():
            # Faint lines: a transformer's two junctions a block make every other point jump.
            axis.plot(rows[x], values, color=look.colour, linestyle=look.line, linewidth=0.6, alpha=0.5)
            axis.plot(rows[x], values, color=look.colour, linestyle="", marker=look.marker, markersize=2.5)
            drawn.append(name)
    if not drawn:
        note(axis, "not measured")
        axis.tick_params(labelcolor=GREY)
    elif log:
        log_axis(axis)
    whole_numbers(axis)
    return drawn
