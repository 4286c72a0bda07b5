"""How does each condition end, and how much of the gap between plain and residual networks does it close?"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from figures.lines import EDGE, THICK, finish, handle
from figures.style import ARMS, GREY, SMALL, Axes2D, column_titles, depth_title, panels, style
from figures.table import arms_of, depths_of, seeds_text, select

Groups = Mapping[str, Sequence[str]]  # conditions by the title of their group
ROW, TITLE = 0.16, 1.1  # inches of a row; rows that a group's title takes
OUTCOMES = {"test error": "full", "log train loss": "none"}  # how a marker is filled


@style()
def conditions(table: pd.DataFrame, *, groups: Groups | None = None, axes: Any = None) -> Axes2D:
    """Test accuracy (%) at the end: a row for each condition, a panel for each depth; a point for every seed in its
    arm's colour, a bar for their mean.

    table: control (the condition), arm, depth_total, seed, split ("test"), quantity ("accuracy"), value (from 0 to 1).
    groups: which conditions stand together, in what order; if None, all, as the table has them. A condition without a
    value at some depth has a cross at the left.
    """
    keys = ["control", "arm", "depth_total", "seed"]
    rows = select(table, keys, figure="conditions", split=["test"], quantity=["accuracy"])
    grid, places = _rows_of(rows, groups, axes, figure="conditions", sharex=True)
    missing = False
    for axis, depth in zip(grid[0], depths_of(rows), strict=True):
        for name, y in places.items():
            of_row = rows[(rows["depth_total"] == depth) & (rows["control"] == name)].sort_values("seed")
            missing |= of_row.empty
            _seeds(axis, y, of_row)
        axis.xaxis.set_major_formatter(lambda value, _: f"{100 * value:g}")
        axis.set_xlabel("test accuracy (%)")
    title = f"bar: mean; points: each of {seeds_text(rows)}" + "; ×: no value" * missing
    finish(grid, _marks(arms_of(rows)), title=title)
    return grid


@style()
def recovery_scores(table: pd.DataFrame, *, groups: Groups | None = None, axes: Any = None) -> Axes2D:
    """R of each condition: a row each, a panel for each depth; filled, of the test error; hollow, of the log train
    loss; bars, Fieller's 95 % intervals. No mark where there is no degradation to explain.

    table: control (the condition), arm, depth_total, outcome ("test error", "log train loss"), quantity ("R", "R low",
    "R high", "n"), value. Beyond -1 and 2 intervals are cut and marks stand at the border.
    """
    keys = ["control", "arm", "depth_total"]
    wanted = ["R", "R low", "R high", "n"]
    rows = select(table, keys, figure="recovery_scores", outcome=list(OUTCOMES), quantity=wanted)
    grid, places = _rows_of(rows, groups, axes, figure="recovery_scores", sharex=True)
    for axis, depth in zip(grid[0], depths_of(rows), strict=True):
        at_depth = rows[rows["depth_total"] == depth]
        for shift, (outcome, fill) in zip((-0.17, 0.17), OUTCOMES.items(), strict=True):
            _scores(axis, at_depth[at_depth["outcome"] == outcome], places, shift, fill)
        for edge in (0, 1):
            axis.axvline(edge, color=GREY, linewidth=0.8, zorder=0.5)
        axis.set_xlim(-1.05, 2.05)
        axis.set_xlabel("R (0: plain, 1: residual)")
    counts = sorted({int(count) for count in rows[rows["quantity"] == "n"]["value"]} - {0})
    n = "–".join(map(str, dict.fromkeys((counts[0], counts[-1])))) if counts else "0"
    title = f"filled: of the test error; hollow: of the log train loss; bars: 95 % intervals over n = {n} seeds"
    ends = rows[rows["quantity"].str.startswith("R")]["value"]
    cut = ["cut at -1 and 2"] * (not ends.between(-1, 2).all())
    notes = "; ".join(cut + ["no mark: no degradation to explain, or too few seeds"] * _lacking(rows))
    finish(grid, _marks(arms_of(rows)), title=title + f"\n{notes}" * bool(notes))
    return grid


def _rows_of(
    rows: pd.DataFrame, groups: Groups | None, axes: Any, *, figure: str, **share: Any
) -> tuple[Axes2D, dict[str, float]]:
    """Panels whose rows are the conditions at hand, grouped; each condition's place."""
    present = list(dict.fromkeys(rows["control"]))
    parts = {title: [n for n in names if n in present] for title, names in (groups or {"": present}).items()}
    parts = {title: names for title, names in parts.items() if names}
    places, titles = _places(parts)
    low = max([*places.values(), *titles.values()])
    depths = depths_of(rows)
    grid = panels(axes, 1, len(depths), figure=figure, height=ROW * (low + 2) + 0.4, sharey=True, **share)
    for axis in grid[0]:
        axis.set_ylim(low + 0.7, -0.7)
        axis.grid(visible=False, axis="y")
    grid[0, 0].set_yticks(list(places.values()), list(places))
    for axis in grid[0]:
        axis.tick_params(axis="y", length=0)
    for title, y in titles.items():
        at: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "xytext": (-4, 0), "textcoords": "offset points"}
        look: dict[str, Any] = {"ha": "right", "va": "center", "fontsize": SMALL, "fontstyle": "italic", "color": GREY}
        grid[0, 0].annotate(title, (0, y), **at, **look)
    column_titles(grid[0], map(depth_title, depths))
    return grid, places


def _places(groups: Groups) -> tuple[dict[str, float], dict[str, float]]:
    """Where each condition stands, and the titles of groups above them, from the top."""
    places, titles, y = dict[str, float](), dict[str, float](), 0.0
    for title, names in groups.items():
        if title:
            titles[title] = y
            y += TITLE
        for name in names:
            places[name] = y
            y += 1
        y += 0.3
    return places, titles


def _seeds(axis: Axes, y: float, rows: pd.DataFrame) -> None:
    if rows.empty:
        axis.plot(0.02, y, "x", color=GREY, transform=axis.get_yaxis_transform())
        return
    look, options = ARMS[rows["arm"].iloc[0]], dict[str, Any](EDGE | {"markersize": 2.8})  # the bar shows through
    ys = y + (np.linspace(-0.25, 0.25, len(rows)) if len(rows) > 1 else np.zeros(len(rows)))
    axis.vlines(rows["value"].mean(), y - 0.45, y + 0.45, color=look.colour, linewidth=THICK)
    axis.plot(rows["value"], ys, linestyle="", marker=look.marker, color=look.colour, **options)


def _scores(axis: Axes, rows: pd.DataFrame, places: Mapping[str, float], shift: float, fill: Any) -> None:
    for name, arm, found in _values(rows):
        y, colour = places[name] + shift, ARMS[arm].colour
        low, high = np.clip([found["R low"], found["R high"]], -1, 2)
        axis.hlines(y, low, high, color=colour, linewidth=0.9)
        marker = {"marker": ARMS[arm].marker, "fillstyle": fill, "markersize": 3.5, "markeredgewidth": 0.8}
        axis.plot(np.clip(found["R"], -1, 2), y, color=colour, linestyle="", **marker)


def _lacking(rows: pd.DataFrame) -> bool:
    """Whether some condition has no R at some depth, of some outcome."""
    keys = ["control", "depth_total", "outcome"]
    return len(rows[rows["quantity"] == "R"]) < len(rows.drop_duplicates(keys))


def _values(rows: pd.DataFrame) -> Iterator[tuple[str, str, "pd.Series[float]"]]:
    """Each condition that has an R, with its arm and numbers."""
    wide = rows.pivot(index=["control", "arm"], columns="quantity", values="value")
    if "R" in wide:
        for (name, arm), found in wide.dropna(subset="R").iterrows():  # type: ignore[misc]
            yield name, arm, found


def _marks(arms: Sequence[str]) -> list[Any]:
    """A legend's entries for the arms: markers alone."""
    looks = [ARMS[arm] for arm in arms]
    return [handle(look.label, look.colour, linestyle="", marker=look.marker) for look in looks]
