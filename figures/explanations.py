"""Which measurement at initialisation orders networks by how well they will train?"""

from textwrap import fill
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from .parts.lines import finish, handle
from .parts.sheet import drawing, is_narrow, mosaic, panels
from .parts.style import GREY, Axes2D, Looks, column_titles, looks_of, small
from .parts.table import check_columns, check_quantities, select

BEST = 3
ROW = 0.16  # inches
LINE = 18  # letters of a label
ENDS = ["rho", "low", "high", "family low", "family high", "held out"]
BASELINE = "baseline"
NETWORK = ["arm", "control", "depth_total", "width", "first_weights"]


@drawing
def explanations(table: pd.DataFrame, *, axes: Any = None, looks: Looks = None, legend: bool = True) -> Axes2D:
    """Rank correlations of measurements at initialisation with how well networks train, and the three largest as
    scatter plots.

    (a) A row for each measurement, by the size of its correlation over all networks (point); thick bar: 95 % interval
    over networks, thin bar: over families; hollow: mean over the halves of the families that did not choose its sign.
    Baselines in grey. (b) to (d): a point for every network, its measurement against the outcome.

    Table: measurement (its name), treatment ("measurement" or "baseline"), quantity, value, with the quantities rho,
    low, high, family low, family high, held out. In rows of networks also: arm, control (the family), depth_total,
    width, first_weights ("he"; all others are hollow), and the quantities "measured" and "outcome" (0: chance, 1: the
    residual network of that size).
    """
    of_networks = table["control"].notna() if "control" in table else pd.Series(False, table.index)
    of_all, networks = table[~of_networks], table[of_networks]
    rows = select(of_all, ["measurement", "treatment"], figure="explanations", quantity=ENDS)
    numbers = rows.pivot(index="measurement", columns="quantity", values="value").reindex(columns=ENDS)
    kind = rows.drop_duplicates("measurement").set_index("measurement")["treatment"]
    order = list(numbers["rho"].abs().sort_values(ascending=False, kind="stable", na_position="last").index)
    best = [name for name in order if kind[name] != BASELINE and np.isfinite(numbers["rho"][name])][:BEST]
    best = best if len(networks) else []
    height, ratios = ROW * (len(order) + 0.5), (1.5, *[1.0] * BEST)
    if is_narrow(axes):
        grid = np.array([mosaic([[0] * BEST, range(1, 1 + BEST)], heights=(height, 0.8))], dtype=object)
    else:
        grid = panels(axes, 1, 1 + BEST, figure="explanations", height=height, width_ratios=ratios)
    _forest(grid[0, 0], numbers, kind, order)
    if len(networks):
        check_columns(networks, [*NETWORK, "measurement", "quantity", "value"], figure="explanations")
        check_quantities(networks, ["measured", "outcome"], figure="explanations")
    looks = looks_of(networks["arm"], looks) if len(networks) else {}
    for axis, name in zip(grid[0, 1:], [*best, *[None] * (BEST - len(best))], strict=True):
        if name is None:
            axis.set_axis_off()
            continue
        _scatter(axis, networks, name, looks)
    grid[0, 1].set_ylabel("gap closed")
    column_titles(grid[0][: 1 + len(best)], ["(a)", "(b)", "(c)", "(d)"][: 1 + len(best)])
    families = networks["control"].nunique() if len(networks) else 0
    count = len(networks.drop_duplicates(["control", "depth_total", "width"])) if len(networks) else 0
    title = f"{count} networks of {families} families; (a) point: over all; thick bar: 95 % over networks, thin: over"
    title += " families; hollow: on families that did not choose its sign; grey: baselines\n"
    title += "(b) to (d): of the gap between chance and the residual network; filled: He's weights, hollow: others"
    handles = [handle(look.label, look.colour, marker=look.marker, linestyle="") for look in looks.values()]
    finish(grid, handles or [handle("all", "black", marker="o", linestyle="")], legend=legend, caption=title)
    return grid


def _forest(axis: Axes, numbers: pd.DataFrame, kind: "pd.Series[str]", order: list[str]) -> None:
    axis.axvline(0, color=GREY, linewidth=0.8, zorder=0.5)
    for y, name in enumerate(order):
        of, colour = numbers.loc[name], "0.55" if kind[name] == BASELINE else "black"
        axis.hlines(y, of["family low"], of["family high"], color=colour, linewidth=0.7)
        axis.hlines(y, of["low"], of["high"], color=colour, linewidth=2)
        axis.plot(of["rho"], y, "o", color=colour, markersize=3.5)
        axis.plot(np.sign(of["rho"]) * of["held out"], y, "o", color=colour, markersize=3.5, markerfacecolor="white")
        if not np.isfinite(of["rho"]):
            axis.text(0, y, "no value", ha="center", va="center", fontsize=small(), color=GREY)
    axis.set_yticks(range(len(order)), order)
    axis.set(xlim=(-1.05, 1.05), ylim=(len(order) - 0.4, -0.6), xlabel="rank correlation")
    axis.tick_params(axis="y", length=0)
    axis.grid(visible=False, axis="y")


def _scatter(axis: Axes, networks: pd.DataFrame, name: str, looks: Any) -> None:
    own = networks[networks["measurement"] == name]
    wide = own.pivot_table(index=NETWORK, columns="quantity", values="value").reset_index()
    for (arm, weights), part in wide.groupby(["arm", "first_weights"]):
        look = looks[str(arm)]
        face = look.colour if weights == "he" else "none"
        axis.plot(part["measured"], part["outcome"], look.marker, color=look.colour, markerfacecolor=face, markersize=3)
    values = wide["measured"].to_numpy(float)
    values = values[np.isfinite(values)]
    if len(values) and values.min() > 0 and values.max() > 50 * values.min():
        axis.set_xscale("log")
    else:
        axis.xaxis.set_major_locator(MaxNLocator(2))
    axis.yaxis.set_major_locator(MaxNLocator(3))
    axis.set_xlabel(fill(name, LINE))
