"""How much is each block used? Learning, damage, read-out and attribution by depth."""

from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from figures.lines import arm_handles, finish, log_axis, marks, seed_lines, seeds_title, whole_numbers
from figures.points import percent_axis
from figures.style import ARMS, GREY, Axes2D, epoch_title, note, panels, style
from figures.table import arms_of, select


@dataclass(frozen=True)
class Panel:
    """What a panel shows of the table."""

    title: str
    unit: str
    quantity: str
    statistics: str = ""
    at_start: bool = False
    log: bool = False


ERROR = "test error (%)"
PANELS = (
    Panel("weight movement", r"$\Vert w-w_0\Vert\,/\,\Vert w_0\Vert$", "movement", log=True),
    Panel("gradient, {moment}", "share", "gradient", at_start=True, log=True),
    Panel("gradient, {moment}", "share", "gradient", log=True),
    Panel("block reset, BN anew", ERROR, "reset", "re-estimated"),
    Panel("block deleted, BN anew", ERROR, "deleted", "re-estimated"),
    Panel("read-out after block", ERROR, "read-out"),
    Panel("block reset, BN kept", ERROR, "reset", "kept"),
    Panel("block deleted, BN kept", ERROR, "deleted", "kept"),
    Panel("score through branch", "share (%)", "attribution"),
)


@style()
def layer_use(table: pd.DataFrame, *, axes: Any = None) -> Axes2D:
    """Nine panels of what each block does, against its depth; thin grey verticals: the first block of a stage.

    table: arm, seed, epoch, statistics (of BatchNorm: "kept", "re-estimated", or nan), block ("layer2.0"), depth (of
    the block), quantity ("movement", "gradient", "reset", "deleted", "read-out", "attribution"; "whole", the error
    without damage, a dotted horizontal), value (movement as a ratio, all others from 0 to 1). gradient: at the first
    epoch and at the last. read-out at depth -1: before the first block. Log axes leave zeros out.
    """
    rows = table.assign(statistics=table["statistics"].fillna("")) if "statistics" in table else table
    keys = ["arm", "seed", "epoch", "statistics", "depth"]
    rows = select(rows, keys, figure="layer_use", quantity=sorted({panel.quantity for panel in PANELS}))
    whole = table[table["quantity"] == "whole"]
    grid = panels(axes, 3, 3, figure="layer_use", height=1.35, sharex=True)
    for axis, panel in zip(grid.flat, PANELS, strict=True):
        part = _part(rows, panel)
        moment = epoch_title(part["epoch"].iloc[0]) if len(part) else ""
        axis.set_title(panel.title.format(moment=moment).rstrip(", "))
        axis.set_ylabel(panel.unit)
        _draw(axis, part, panel)
        if panel.unit == ERROR:
            _whole(axis, whole[whole["statistics"] == (panel.statistics or "kept")])
            axis.set_ylim(0, 1)
        for depth in _first_of_stage(rows):
            axis.axvline(depth, color=GREY, linewidth=0.5, zorder=0)
        axis.grid(visible=False, axis="x")
    for axis in grid[-1]:
        axis.set_xlabel("block")
    title = (
        f"{seeds_title(rows, mean='mean (geometric on log axes)')}\ndotted: without damage; BN: BatchNorm statistics"
    )
    finish(grid, arm_handles(arms_of(rows), marker=True), title=title)
    return grid


def _part(rows: pd.DataFrame, panel: Panel) -> pd.DataFrame:
    found = rows[(rows["quantity"] == panel.quantity) & (rows["statistics"] == panel.statistics)]
    start = found["epoch"] == 0
    return found[start if panel.at_start else ~start]


def _draw(axis: Axes, rows: pd.DataFrame, panel: Panel) -> None:
    for arm in arms_of(rows):
        of_arm = rows[rows["arm"] == arm]
        look = {"linewidth": 1, "markersize": 3, **marks(of_arm, arm, x="depth")}
        seed_lines(axis, of_arm, arm, x="depth", geometric=panel.log, **look)
    if rows.empty:
        note(axis, "not measured")
    elif panel.log:
        log_axis(axis)
    else:
        percent_axis(axis)
    whole_numbers(axis)


def _whole(axis: Axes, whole: pd.DataFrame) -> None:
    for arm in arms_of(whole):
        error = float(whole[whole["arm"] == arm]["value"].mean())
        axis.axhline(error, color=ARMS[arm].colour, linewidth=0.6, linestyle=":")


def _first_of_stage(rows: pd.DataFrame) -> list[int]:
    blocks = rows.drop_duplicates("depth")
    return [int(depth) for depth in blocks[blocks["block"].str.endswith(".0")]["depth"] if depth > 0]
