"""How short may the gradient's paths be, with the forward unchanged?"""

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from figures.lines import EDGE, finish, handle, seed_lines
from figures.points import percent_axis
from figures.style import ARMS, Axes2D, Look, depth_title, panels, row_title, style
from figures.table import depths_of, seeds_text, select

SPLITS = {"train": "training accuracy (%)", "test": "test accuracy (%)"}
# All are trained residual networks: "at most" is in that arm's colour, and ends in that arm.
SERIES = {
    "at-most": Look("at most K branches", ARMS["residual"].colour, "o", "-"),
    "at-least": Look("at least K branches", "#E69F00", ">", (0, (5, 1.5))),
    "exactly": Look("exactly K branches", "#CC79A7", "P", (0, (3, 1, 1, 1))),
    "sampled": Look("K branches, drawn anew each step", "#009E73", "d", (0, (1.2, 1))),
}

ACROSS = 0.8  # the width of a line across


@style()
def short_paths(table: pd.DataFrame, *, axes: Any = None) -> Axes2D:
    """Final accuracy (%) on training and test data against K, the limit on the branches of the gradient's paths.

    table: arm ("at-most-K", "at-least-K", "exactly-K", "sampled-K", or an arm of ARMS, which is trained without a limit
    and becomes a line and a band across), depth_total, seed, path_length (K; the number of blocks where there is no
    limit), split ("train", "test"), quantity ("accuracy"), value (from 0 to 1). x is linear from 0 to 1 and logarithmic
    beyond; "at most" ends in the residual arm. Rows of panels: depth_total.
    """
    rows = select(
        named(table),
        ["arm", "depth_total", "seed", "path_length"],
        figure="short_paths",
        looks={**ARMS, **SERIES},
        quantity=["accuracy"],
        split=list(SPLITS),
    )
    splits = [split for split in SPLITS if split in set(rows["split"])]
    depths = depths_of(rows)
    grid = panels(axes, len(depths), len(splits), figure="short_paths", height=1.9, sharex="row", sharey=True)
    for line, depth in zip(grid, depths, strict=True):
        at_depth = rows[rows["depth_total"] == depth]
        for axis, split in zip(line, splits, strict=True):
            _panel(axis, at_depth[at_depth["split"] == split])
            axis.set_ylabel(SPLITS[split])
            limit_axis(axis, at_depth)
        if len(depths) > 1:
            row_title(line[-1], depth_title(depth))
    for axis in grid[-1]:
        axis.set_xlabel("K (branches)")
    finish(grid, _handles(rows), title=_title(rows))
    return grid


def named(table: pd.DataFrame) -> pd.DataFrame:
    """The table with its arms `at-most-3` called `at-most`."""
    if "arm" not in table.columns:
        return table
    pattern = rf"^({'|'.join(SERIES)})-\d+$"
    return table.assign(arm=table["arm"].astype(str).str.replace(pattern, r"\1", regex=True))


def _panel(axis: Axes, rows: pd.DataFrame) -> None:
    for arm in present(rows, ARMS):
        _across(axis, rows[rows["arm"] == arm], ARMS[arm])
    for name in present(rows, SERIES):
        look = SERIES[name]
        part = rows[rows["arm"].isin([name, "residual"] if name == "at-most" else [name])]
        options: dict[str, Any] = {"color": look.colour, "linestyle": look.line, "marker": look.marker, **EDGE}
        seed_lines(axis, part, "residual", x="path_length", **options)
    percent_axis(axis)


def _across(axis: Axes, rows: pd.DataFrame, look: Look) -> None:
    """An arm without a limit: its mean as a line across, the range of its seeds as a band."""
    axis.axhspan(rows["value"].min(), rows["value"].max(), color=look.colour, alpha=0.15, linewidth=0)
    axis.axhline(rows["value"].mean(), color=look.colour, linestyle=look.line, linewidth=ACROSS)


def limit_axis(axis: Axes, rows: pd.DataFrame) -> None:
    """x linear from 0 to 1, then logarithmic; ticks at powers of two and the largest K."""
    most = int(rows["path_length"].max())
    powers = [2**k for k in range(most.bit_length()) if 1.4 * 2**k < most]
    axis.set_xscale("symlog", linthresh=1, linscale=0.7, base=2)
    ticks = sorted({0, *powers, most})
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
    axis.xaxis.set_minor_locator(NullLocator())


def present(rows: pd.DataFrame, looks: dict[str, Look]) -> list[str]:
    """The arms in the table, in the order of the looks."""
    return [name for name in looks if (rows["arm"] == name).any()]


def _handles(rows: pd.DataFrame) -> list[Line2D]:
    limited = [_handle(SERIES[name], rows[rows["arm"] == name]) for name in present(rows, SERIES)]
    across = [ARMS[arm] for arm in present(rows, ARMS)]
    return limited + [handle(look.label, look.colour, linestyle=look.line, linewidth=ACROSS) for look in across]


def _handle(look: Look, rows: pd.DataFrame) -> Line2D:
    """A line with markers; one K alone is drawn as a ring."""
    if rows["path_length"].nunique() > 1:
        return handle(look.label, look.colour, linestyle=look.line, marker=look.marker)
    ring = {"markersize": 6, "markerfacecolor": "none", "markeredgecolor": look.colour, "markeredgewidth": 1}
    return handle(look.label, look.colour, linestyle="", marker="o", **ring)


def _title(rows: pd.DataFrame) -> str:
    count = seeds_text(rows)
    return count if count == "1 seed" else f"thick and lines across: mean; thin: each of {count}; bands: their range"
