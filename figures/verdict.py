"""Does each effect of the shortcut's two roles survive the controls?"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from .parts.lines import finish, handle
from .parts.style import GREY, Axes2D, panels, row_title, style

ROW = 0.36  # inches
# By outcome: the axis, and the sign that makes right mean better.
OUTCOMES: dict[str, tuple[str, int]] = {
    "log train loss": ("train loss, log10 of the factor gained", -1),
    "test accuracy": ("test accuracy, points gained", 1),
}
UNITS = {"log train loss": 0.4343, "test accuracy": 100}  # of the axis, in units of the table
MARKS = ("o", "s", "D", "^")
SHADES = ("#000000", "0.5", "#009E73", "#E69F00")  # none is an arm's, but for black


@style()
def verdict(table: pd.DataFrame, *, margin: Mapping[str, float] | None = None, axes: Any = None) -> Axes2D:
    """What each effect is worth, in every version and at every depth: mean, 95 % interval and each seed's value; right
    of the grey band, the margin, is better. Columns: training loss and test accuracy; a row of panels a data set.

    Hollow: the shallower depths. An effect without a mark was not read; a mark without a line has no interval.

    Table: data, control (the version), depth_total, outcome ("log train loss", "test accuracy"; others are left out),
    effect, quantity ("mean", "low", "high"; "difference", of one seed; "margin", of an outcome), value.
    margin: By outcome, in the table's unit: within it a difference is none. None: those of the table, if any.
    """
    rows = table[table["quantity"] == "margin"]
    margins = dict(zip(rows["outcome"], rows["value"], strict=True)) if margin is None else margin
    table = table[table["quantity"] != "margin"]
    rows = table[table["outcome"].isin(list(OUTCOMES)) & table["quantity"].isin(["mean", "low", "high", "difference"])]
    rows = rows[rows["value"].notna()]
    if rows.empty:
        raise ValueError(f"verdict: no value of {' or '.join(OUTCOMES)} among {len(table)} rows.")
    titles, versions = list(rows["data"].unique()), list(table["control"].unique())
    names = {outcome: list(table[table["outcome"] == outcome]["effect"].unique()) for outcome in OUTCOMES}
    high = ROW * max(map(len, names.values())) + 0.45
    grid = panels(axes, len(titles), len(OUTCOMES), figure="verdict", height=high, sharey="row")
    for line, title in zip(grid, titles, strict=True):
        of_data = rows[rows["data"] == title]
        for axis, outcome in zip(line, OUTCOMES, strict=True):
            _panel(
                axis, of_data[of_data["outcome"] == outcome], names[outcome], versions, outcome, margins.get(outcome)
            )
        line[0].set_yticks(range(len(names["log train loss"])), [_short(name) for name in names["log train loss"]])
        row_title(line[-1], title)
    for axis, outcome in zip(grid[-1], OUTCOMES, strict=True):
        axis.set_xlabel(OUTCOMES[outcome][0])
    finish(grid, list(_handles(versions)), title=_explained(rows) + "; grey band: the margin" * bool(margins))
    return grid


def _panel(
    axis: Axes,
    rows: pd.DataFrame,
    names: Sequence[str],
    versions: Sequence[str],
    outcome: str,
    margin: float | None,
) -> None:
    sign, unit = OUTCOMES[outcome][1], UNITS[outcome]
    if margin is not None:
        axis.axvspan(-margin * unit, margin * unit, color="0.9", linewidth=0, zorder=0)
    axis.axvline(0, color=GREY, linewidth=0.8, zorder=0.5)
    depths = sorted(rows["depth_total"].unique())
    lanes = [(version, depth) for version in versions for depth in depths]
    for edge in range(1, len(names)):
        axis.axhline(edge - 0.5, color="0.85", linewidth=0.5)
    for (version, depth, name), found, values in _values(rows):
        y = names.index(name) + 0.7 * ((lanes.index((version, depth)) + 0.5) / len(lanes) - 0.5)
        place = versions.index(version)
        ends = [sign * unit * found.get(quantity, float("nan")) for quantity in ("low", "high")]
        axis.plot([sign * unit * value for value in values], [y] * len(values), "|", color=SHADES[place], markersize=4)
        axis.hlines(y, min(ends), max(ends), color=SHADES[place], linewidth=1)
        face = SHADES[place] if depth == depths[-1] else "white"
        look: dict[str, Any] = {"marker": MARKS[place], "markerfacecolor": face, "markersize": 4, "zorder": 3}
        axis.plot(sign * unit * found["mean"], y, color=SHADES[place], linestyle="", **look)
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.grid(visible=False, axis="y")
    axis.tick_params(axis="y", length=0)


def _values(rows: pd.DataFrame) -> Iterator[tuple[tuple[str, int, str], Mapping[str, float], list[float]]]:
    """Each mark's version, depth and effect, with its numbers and its seeds' values."""
    for key, part in rows.groupby(["control", "depth_total", "effect"], sort=False):
        seeds = part[part["quantity"] == "difference"]["value"].tolist()
        yield key, dict(zip(part["quantity"], part["value"], strict=True)), seeds  # type: ignore[misc]


def _handles(versions: Sequence[str]) -> Iterator[Any]:
    for place, version in enumerate(versions):
        yield handle(version, SHADES[place], marker=MARKS[place], markersize=3.5)


def _short(name: str) -> str:
    """An effect's name over two lines, without the outcome."""
    return name.removesuffix(", fitting").replace(" beside ", "\nbeside ")


def _explained(rows: pd.DataFrame) -> str:
    depths = ", ".join(map(str, sorted(rows["depth_total"].unique())))
    keys = ["data", "control", "depth_total", "effect", "outcome"]
    counts = rows[rows["quantity"] == "difference"].groupby(keys).size()
    n = "–".join(map(str, sorted({counts.min(), counts.max()})))
    return (
        f"mean, 95 % t interval (paired) and each of {n} seeds at depths {depths},\n"
        "hollow: the shallower; right is better"
    )
