"""How does each condition end, and how much of the gap between plain and residual networks does it close?"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pandas as pd
from matplotlib.axes import Axes

from .parts.lines import arm_handles, finish
from .parts.points import percent_axis, points_title, seed_points
from .parts.sheet import drawing, panels
from .parts.style import GREY, Axes2D, Look, Looks, column_titles, depth_title, small
from .parts.table import arms_of, counts_text, depths_of, select

Groups = Mapping[str, Sequence[str]]  # conditions by the title of their group
ROW = 0.16  # inches
LABELS = {"accuracy": "test accuracy (%)", "loss": "test loss (nats)"}
OUTCOMES = {"test error": "full", "log train loss": "none"}  # how a marker is filled
RATIOS = ["R", "R low", "R high"]


@drawing
def conditions(
    table: pd.DataFrame,
    *,
    groups: Groups | None = None,
    quantity: Literal["accuracy", "loss"] | None = None,
    axes: Any = None,
    looks: Looks = None,
    legend: bool = True,
) -> Axes2D:
    """Test accuracy (%) or loss (nats) at the end: a row for each condition, a panel for each depth; a point for every
    seed, a marker of the arm at their mean.

    A condition without a value at some depth has a cross at the left.

    Table: control (the condition), arm, depth_total, seed, split ("test"), quantity ("accuracy", "loss"), value
    (accuracy from 0 to 1).
    groups: Which conditions stand together, in what order; None: all, as the table has them.
    quantity: What is drawn; None: the accuracy, or the loss of a table of losses alone.
    """
    keys = ["control", "arm", "depth_total", "seed"]
    quantity = quantity or ("loss" if set(table.get("quantity", ())) == {"loss"} else "accuracy")
    rows = select(table, keys, figure="conditions", split=["test"], quantity=[quantity])
    grid, places = _rows_of(rows, groups, axes, figure="conditions")
    looks, missing = arms_of(rows, looks), False
    for axis, depth in zip(grid[0], depths_of(rows), strict=True):
        part = rows[rows["depth_total"] == depth].assign(place=rows["control"].map(places))
        seed_points(axis, part, looks, by="place", order=None, dodge=False, horizontal=True)
        for name in set(places) - set(part["control"]):
            axis.plot(0.02, places[name], "x", color=GREY, transform=axis.get_yaxis_transform())
            missing = True
        if quantity == "accuracy":
            percent_axis(axis, along="x")
        axis.set_xlabel(LABELS[quantity])
    finish(
        grid,
        arm_handles(looks, line=False, marker=True),
        legend=legend,
        caption=points_title(rows) + "; ×: no value" * missing,
    )
    return grid


@drawing
def gap_closed(
    table: pd.DataFrame, *, groups: Groups | None = None, axes: Any = None, looks: Looks = None, legend: bool = True
) -> Axes2D:
    """Share of the gap between plain and residual networks that each condition closes: a row each, a panel for each
    depth; filled, of the test error; hollow, of the log train loss; bars, Fieller's 95 % intervals.

    Beyond -1 and 2 intervals are cut and marks stand at the border. No mark where there is no gap to close.

    Table: control (the condition), arm, depth_total, outcome ("test error", "log train loss"), quantity ("R", the gap
    closed; "R low", "R high"; "n"), value.
    groups: Which conditions stand together, in what order; None: all, as the table has them.
    """
    keys = ["control", "arm", "depth_total"]
    rows = select(table, keys, figure="gap_closed", outcome=list(OUTCOMES), quantity=[*RATIOS, "n"])
    grid, places = _rows_of(rows, groups, axes, figure="gap_closed")
    looks = arms_of(rows, looks)
    for axis, depth in zip(grid[0], depths_of(rows), strict=True):
        at_depth = rows[rows["depth_total"] == depth]
        for shift, (outcome, fill) in zip((-0.17, 0.17), OUTCOMES.items(), strict=True):
            _ratios(axis, at_depth[at_depth["outcome"] == outcome], places, looks, shift, fill)
        for edge in (0, 1):
            axis.axvline(edge, color=GREY, linewidth=0.8, zorder=0.5)
        axis.set_xlim(-1.05, 2.05)
        axis.set_xlabel("gap closed (0: plain, 1: residual)")
    bars = f"95 % intervals over n = {counts_text(rows)} seeds"
    title = f"filled: of the test error; hollow: of the log train loss; bars: {bars}"
    cut = ["cut at -1 and 2"] * (not rows[rows["quantity"].isin(RATIOS)]["value"].between(-1, 2).all())
    notes = "; ".join(cut + ["no mark: no gap to close, or too few seeds"] * _lacking(rows))
    finish(grid, arm_handles(looks, line=False, marker=True), legend=legend, caption=title + f"\n{notes}" * bool(notes))
    return grid


def _rows_of(rows: pd.DataFrame, groups: Groups | None, axes: Any, *, figure: str) -> tuple[Axes2D, dict[str, float]]:
    """Panels whose rows are the conditions present, under the titles of their groups; each condition's place."""
    present = list(dict.fromkeys(rows["control"]))
    places, titles, low = dict[str, float](), dict[str, float](), 0.0
    for title, names in (groups or {"": present}).items():
        members = [name for name in names if name in present]
        if title and members:
            titles[title] = low
            low += 1.1
        places |= {name: low + i for i, name in enumerate(members)}
        low += len(members) + 0.3 * bool(members)
    depths = depths_of(rows)
    height = ROW * (low + 0.5)
    grid = panels(axes, 1, len(depths), figure=figure, height=height, sharex=True, sharey=True)
    for axis in grid[0]:
        axis.set_ylim(low - 0.6, -0.7)
        axis.grid(visible=False, axis="y")
        axis.tick_params(axis="y", length=0)
    grid[0, 0].set_yticks(list(places.values()), list(places))
    for title, y in titles.items():
        at: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "xytext": (-4, 0), "textcoords": "offset points"}
        look: dict[str, Any] = {
            "ha": "right",
            "va": "center",
            "fontsize": small(),
            "fontstyle": "italic",
            "color": GREY,
        }
        grid[0, 0].annotate(title, (0, y), **at, **look)
    column_titles(grid[0], map(depth_title, depths))
    return grid, places


def _ratios(
    axis: Axes, rows: pd.DataFrame, places: Mapping[str, float], looks: Mapping[str, Look], shift: float, fill: Any
) -> None:
    """The gap closed by each condition that has a value, with its interval."""
    wide = rows.pivot(index=["control", "arm"], columns="quantity", values="value").reindex(columns=RATIOS).clip(-1, 2)
    for (name, arm), found in wide.dropna(subset="R").iterrows():  # type: ignore[misc]
        if name in places:
            y, look = places[name] + shift, looks[arm]
            axis.hlines(y, found["R low"], found["R high"], color=look.colour, linewidth=0.9)
            marker = {"marker": look.marker, "fillstyle": fill, "markersize": 3.5, "markeredgewidth": 0.8}
            axis.plot(found["R"], y, color=look.colour, linestyle="", **marker)


def _lacking(rows: pd.DataFrame) -> bool:
    """Whether some condition has no gap closed at some depth, of some outcome."""
    keys = ["control", "depth_total", "outcome"]
    return len(rows[rows["quantity"] == "R"]) < len(rows.drop_duplicates(keys))
