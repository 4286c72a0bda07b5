"""How much of the shortcut's gradient is needed, how surely, when, and where?"""

from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from .parts.lines import arm_handles, finish, handle, log_axis
from .parts.points import percent_axis, points_title, seed_points
from .parts.sheet import drawing, panels
from .parts.style import ARMS, COLOURS, Axes2D, Look, Looks
from .parts.table import arms_of, check_columns, select

OUTCOMES = {("test", "accuracy"): "test accuracy (%)", ("train", "loss"): "training loss"}
BLUE, WINE = ARMS["residual"].colour, COLOURS[0]  # all of them are residual networks, cut; wine: the second of a panel
# By panel: its x label, its width against the others', the treatments in it.
PANELS: dict[str, tuple[str, float, dict[str, Look]]] = {
    "weight": ("weight of the\nshortcut's gradient", 1.3, {"weight": Look("", BLUE, "o", "")}),
    "coin": (
        "chance\nof a cut",
        0.9,
        {"biased coin": Look("biased coin", BLUE, "v", ""), "unbiased coin": Look("unbiased coin", WINE, "^", "")},
    ),
    "epoch": (
        "epoch",
        1.1,
        {
            "until epoch": Look("cut until an epoch", BLUE, "<", ""),
            "from epoch": Look("cut from an epoch on", WINE, ">", ""),
        },
    ),
    "place": ("cut shortcuts", 1.4, {"place": Look("", BLUE, "o", "")}),
}
PANEL_OF = {treatment: panel for panel, (_, _, looks) in PANELS.items() for treatment in looks}
ENDS = {"residual": 1.0, "stop-gradient": 0.0}  # the arms that are weights, too


@drawing
def dose_and_timing(table: pd.DataFrame, *, axes: Any = None, looks: Looks = None, legend: bool = True) -> Axes2D:
    """Test accuracy (%) and training loss (log) at the end, against the weight of the shortcut's gradient, the chance
    of its cut, the epoch at which its cut ends or begins, and by the place of the cut; a small point for every seed, a
    marker at their mean.

    The arms as they are become lines at their means in every panel; residual and stop-gradient are also points, at
    weights 1 and 0. Only weights are to scale.

    Table: control (the condition's name), arm, treatment ("weight", "biased coin", "unbiased coin", "until epoch",
    "from epoch"; any other is a place; nan, or no such column, for arms as they are, whose control is their name),
    amount (the weight, the chance, the epoch; the stage, or n of every n-th block), depth_total (one), seed, split
    ("test", "train"), quantity ("accuracy" from 0 to 1, "loss"), value.
    """
    keys = ["control", "arm", "depth_total", "seed"]
    rows = select(table, keys, figure="dose_and_timing", split=["test", "train"], quantity=["accuracy", "loss"])
    if "treatment" in rows:
        check_columns(rows, ["amount"], figure="dose_and_timing")
    treated = rows.get("treatment", pd.Series(None, rows.index, dtype=object))
    untouched = treated.isna() & (rows["control"] == rows["arm"])
    kinds = treated.where(treated.isin(list(PANEL_OF)), "place")
    rows = rows.assign(treatment=kinds.mask(untouched), panel=kinds.map(PANEL_OF).mask(untouched))
    looks = arms_of(rows[untouched], looks)
    shown = [panel for panel in PANELS if panel == "weight" or panel in set(rows["panel"])]
    share: dict[str, Any] = {"sharex": "col", "sharey": "row", "width_ratios": [PANELS[panel][1] for panel in shown]}
    grid = panels(axes, len(OUTCOMES), len(shown), figure="dose_and_timing", height=1.15, **share)
    for line, (split, quantity) in zip(grid, OUTCOMES, strict=True):
        of_outcome = rows[(rows["split"] == split) & (rows["quantity"] == quantity)]
        for axis, panel in zip(line, shown, strict=True):
            _panel(axis, of_outcome, panel, looks)
        line[0].set_ylabel(OUTCOMES[split, quantity])
        percent_axis(line[0]) if quantity == "accuracy" else log_axis(line[0])
    for axis, panel in zip(grid[-1], shown, strict=True):
        axis.set_xlabel(PANELS[panel][0])
        if panel == "place":
            axis.tick_params(axis="x", rotation=90)
    finish(grid, _handles(rows, looks), legend=legend, caption=f"{points_title(rows)}; lines: means")
    return grid


def _panel(axis: Axes, rows: pd.DataFrame, panel: str, looks: dict[str, Look]) -> None:
    arms, part = rows[rows["panel"].isna()], rows[rows["panel"] == panel]
    for arm, look in looks.items():
        mean = arms[arms["arm"] == arm]["value"].mean()
        axis.axhline(mean, color=look.colour, linestyle=look.line, linewidth=0.8)
    series = PANELS[panel][2]
    if panel == "weight":
        ends = arms[arms["arm"].isin(list(ENDS))]
        part = pd.concat([part, ends.assign(treatment=ends["arm"], amount=ends["arm"].map(ENDS))])
        series = series | {arm: looks[arm] for arm in ENDS if arm in looks}
        seed_points(axis, part, series, by="amount", order=None, group="treatment", dodge=False)
        axis.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "", "0.5", "", "1"])
        return
    by = "control" if panel == "place" else "amount"
    named = part if panel == "place" else part.assign(amount=part["amount"].map("{:g}".format))
    categories = list(dict.fromkeys(named.sort_values("amount", key=pd.to_numeric)[by] if by == "amount" else part[by]))
    seed_points(axis, named, series, by=by, order=categories, group="treatment")


def _handles(rows: pd.DataFrame, looks: dict[str, Look]) -> list[Any]:
    series = {name: look for _, _, of_panel in PANELS.values() for name, look in of_panel.items() if look.label}
    present = {name: look for name, look in series.items() if name in set(rows["treatment"])}
    return [handle(look.label, look.colour, linestyle=look.line) for look in looks.values()] + arm_handles(
        present, line=False, marker=True
    )
