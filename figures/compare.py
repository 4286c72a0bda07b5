"""Two recordings, or two experiments, block by block: how large is either, and how large is their ratio?"""

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from .parts.lines import THICK, arm_handles, finish, handle, log_axis, whole_numbers
from .parts.sheet import drawing, panels
from .parts.style import GREY, Axes2D, Look, Looks, column_titles, looks_of
from .parts.table import check_columns, check_values

SIDES = {"a": Look("a", "#0072B2"), "b": Look("b", "#D55E00", "s", (0, (5, 1.5)))}
SHOWN = ("total", "ratio", "norm", "std")  # where a table has them
SIGNED = ("cosine", "share")
RING: dict[str, Any] = {"linestyle": "", "markerfacecolor": "none", "markersize": 5, "markeredgewidth": 0.8}
XLABELS = {"depth": "depth", "path_length": "path length\n(branches)"}


@drawing
def compare(
    table: pd.DataFrame,
    *,
    quantities: Sequence[str] | None = None,
    axes: Any = None,
    looks: Looks = None,
    legend: bool = True,
) -> Axes2D:
    """What was measured of a and of b against depth or path length (log axes but for shares and cosines), a vertical
    between the two of each block, and below it b / a. A column of panels for each quantity.

    A ring is a block that one side alone has, at its own depth. Zeros are left out of log axes.

    Table: measurement, block (if any), depth or path_length, quantity, side ("a", "b", "ratio"), value, as
    `probes.compare` gives them.
    quantities: Which to draw; None: "total", "ratio", "norm" and "std" as far as they are there, or else all.
    looks: By side, "a" and "b".
    """
    check_columns(table, ["measurement", "quantity", "side", "value"], figure="compare")
    x = "path_length" if "depth" not in table or table["depth"].isna().all() else "depth"
    check_columns(table, [x], figure="compare")
    names = [key for key in ("measurement", "quantity", "side", "block", x) if key in table]
    placed = table[table[x].notna()]
    present = list(placed["quantity"].unique())
    wanted = quantities or [name for name in SHOWN if name in present] or present
    if missing := [name for name in wanted if name not in present] or (["any"] if not wanted else []):
        raise ValueError(f"compare: the table has no {', '.join(missing)}; its quantities are {', '.join(present)}.")
    rows = placed[placed["quantity"].isin(list(wanted))]
    check_values(rows, names, figure="compare")
    columns = list(rows[["measurement", "quantity"]].drop_duplicates().itertuples(index=False, name=None))
    shown = looks_of(SIDES, looks, known=SIDES)
    heights = (1.1, 0.6)
    grid = panels(axes, 2, len(columns), figure="compare", height=heights, sharex="col")
    rings = False
    for (above, below), (measurement, quantity) in zip(grid.T, columns, strict=True):
        part = rows[(rows["measurement"] == measurement) & (rows["quantity"] == quantity)]
        rings |= _sides(above, part, shown, x=x)
        ratios = part[part["side"] == "ratio"].sort_values(x)
        below.axhline(1, color=GREY, linewidth=0.8)
        below.plot(ratios[x], ratios["value"], color="black", linewidth=0.8, marker=".", markersize=4)
        for axis, values in ((above, part[part["side"] != "ratio"]), (below, ratios)):
            if quantity not in SIGNED and (values["value"].dropna() >= 0).all():
                log_axis(axis)
        below.set_xlabel(XLABELS[x])
        whole_numbers(below)
    grid[0, 0].set_ylabel("a and b")
    grid[1, 0].set_ylabel("b / a")
    column_titles(grid[0], [f"{measurement}: {quantity}".replace("_", " ") for measurement, quantity in columns])
    entries = arm_handles({side: shown[side] for side in SIDES}, marker=True)
    entries += [handle("on one side alone", GREY, marker="o", **{**RING, "markeredgecolor": GREY})] * rings
    names = f"{shown['a'].label} and {shown['b'].label}"
    finish(grid, entries, legend=legend, caption=f"Above, {names}, block by block; below, the second over the first")
    return grid


def _sides(axis: Axes, rows: pd.DataFrame, looks: dict[str, Look], *, x: str) -> bool:
    """Both sides of one quantity; True if a block of one side has none on the other."""
    by = [key for key in ("block", x) if key in rows]
    joined = rows[rows["side"] == "ratio"][by]
    both = rows.merge(joined, on=by)
    wide = both[both["side"] != "ratio"].pivot(index=by, columns="side", values="value")
    wide = wide.reindex(columns=list(SIDES)).reset_index()
    axis.vlines(wide[x], wide["a"], wide["b"], color=GREY, linewidth=0.5)
    alone = False
    for side in SIDES:
        look = looks[side]
        own = both[both["side"] == side].sort_values(x)
        drawn: dict[str, Any] = {"linewidth": THICK, "linestyle": look.line, "marker": look.marker}
        axis.plot(own[x], own["value"], color=look.colour, **drawn)
        rest = rows[rows["side"] == side].merge(joined, on=by, how="left", indicator=True)
        rest = rest[rest["_merge"] == "left_only"]
        axis.plot(rest[x], rest["value"], look.marker, color=look.colour, **RING)
        alone |= len(rest) > 0
    return alone
