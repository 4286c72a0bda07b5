"""Why do residual connections help: what do first weights do without shortcuts, what share has each explanation?"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from .parts.lines import (
    EDGE,
    THICK,
    finish,
    handle,
    log_axis,
    marks,
    mean_over_seeds,
    seed_lines,
    seeds_title,
)
from .parts.points import percent_axis, points_title
from .parts.sheet import drawing, is_narrow, mosaic, panels
from .parts.style import ARMS, GREY, Axes2D, Look, Looks, column_titles, looks_of, small
from .parts.table import check_columns, check_values, select

# Beside ARMS. A conditioned network has the colour of its arm, and a hollow marker; plain ones beyond the first have
# brown and olive, which stay apart from the arms for colour-blind readers.
CONDITIONS: dict[str, Look] = {
    "stop-gradient's norms, true direction": Look("stop-gradient's norms,\ntrue direction", "#882255", "X", "-"),
    "paths of at most 3": Look("paths of at most 3", "#56B4E9", "v", (0, (4, 1))),
    "paths of at least 4": Look("paths of at least 4", "#E69F00", ">", (0, (4, 1, 1, 1))),
    "residual, near-identity": Look("residual, near-identity", ARMS["residual"].colour, "o", "-"),
    "value alone, near-identity": Look("value alone, near-identity", ARMS["stop-gradient"].colour, "s", (0, (5, 1.5))),
    "plain, near-identity": Look("plain, near-identity", ARMS["plain"].colour, "D", (0, (1.2, 1))),
    "plain, looks-linear": Look("plain, looks-linear", "#7F5539", "^", (0, (3, 1, 1, 1))),
    "plain, delta-orthogonal": Look("plain, delta-orthogonal", "#999933", "p", (0, (2, 1))),
}
REFERENCES = ("residual", "plain")  # of the conditioned panel, in grey
EFFECTS = ("conditioning", "value", "short paths")
OUTCOME = "test error"
ENDS = ["estimate", "low", "high"]
SCALE = (-0.5, 1.5)  # of shares
MARGINS, TARGETS = (0.1, 0.5), (0.5, 0.1)
ROW = 0.155  # inches, of a share
TITLES = ("(a) He's\nfirst weights", "(b) other\nfirst weights", "(c) shares of\nthe shortcut's effect")
HOLLOW = "filled: He's, hollow: other first weights"


@drawing
def answer(table: pd.DataFrame, *, axes: Any = None, looks: Looks = None, legend: bool = True) -> Axes2D:
    """Test error (%) against training steps (log axis), with He's and with other first weights: a small point for
    every seed, lines through the means; beside them the share of the shortcut's effect that each explanation has.

    A row of panels for each data set, digits first. The conditioned panel has the means of residual and plain networks
    at He's weights in grey. Conditions stand side by side at their number of steps. No mean is drawn where the table
    has a seed without a finite value. Shares: point and 95 % interval, cut with an arrow beyond -0.5 and 1.5, and the
    reading; without rows of an `effect` there is no such panel.

    Table: data, control (the condition), first_weights ("he"; all others are conditioned), step (of the whole
    training), seed, outcome ("test error"), value (from 0 to 1). In rows of shares: effect ("conditioning", "value",
    "short paths" or another), data, step, outcome, quantity ("estimate", "low", "high"; others are left out), reading
    (in words), value (nan where there is none).
    """
    errors, shares = _parted(table)
    keys = ["data", "control", "first_weights", "step", "seed"]
    rows = _with_kind(select(errors, keys, figure="answer", outcome=[OUTCOME]), figure="answer")
    means, looks = _means(errors), looks_of(rows["control"], looks, known=ARMS | CONDITIONS)
    names = _digits_first(rows["data"])
    if lacking := set(shares["data"]) - set(names):
        raise ValueError(f"answer: shares of {', '.join(sorted(lacking))}, but no {OUTCOME} of a condition there.")
    ys = {name: _places(shares[shares["data"] == name]) for name in names}
    most = max((max(places.values(), default=0) for places in ys.values()), default=0)
    columns, height = 3 - shares.empty, ROW * (most + 1.4)
    below = {name: max(places.values(), default=0) if is_narrow(axes) else most for name, places in ys.items()}
    if is_narrow(axes) and columns == 3:  # the shares below the errors
        layout = [row for i in range(0, 3 * len(names), 3) for row in ((i, i + 1), (i + 2, i + 2))]
        heights = [inches for name in names for inches in (1.1, ROW * (below[name] + 1.4))]
        grid = np.array(mosaic(layout, heights=heights), dtype=object).reshape(-1, 3)
    else:
        options: dict[str, Any] = {"height": max(1.3, height), "width_ratios": (1.3, 1.3, 1)[:columns]}
        grid = panels(axes, len(names), columns, figure="answer", **options)
    for line, name in zip(grid, names, strict=True):
        of_data = rows[rows["data"] == name]
        _error_panels(line[0], line[1], of_data, means.loc[[name]].droplevel("data"), looks)
        line[0].set_ylabel(f"{name}\ntest error (%)" if len(names) > 1 else "test error (%)")
        for axis in line[2:]:
            _forest(axis, shares[shares["data"] == name], ys[name], below[name])
    _label(grid, ("training steps", "training steps", "share, 95 % interval"), TITLES)
    title = points_title(rows.assign(arm=rows["data"] + rows["control"], budget=rows["step"])) + f"; {HOLLOW}"
    title += "; no mean where a seed has no value" * bool(means.isna().any())
    more = ["dashed in (c): the margins 0.1 and 0.5"] if len(shares) else []
    _finish(grid, rows, looks, legend=legend, caption=title, remarks=more)
    return grid


def _parted(table: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows of conditions and those of shares, the latter checked."""
    if "effect" not in table:
        return table, pd.DataFrame({"data": []})
    errors, shares = table[table["effect"].isna()], table[table["effect"].notna()]
    if errors.empty and len(table):
        raise ValueError(f"answer: no {OUTCOME} of a condition among {len(table)} rows, which are all of shares.")
    if len(shares):
        keys = ["data", "effect", "step", "outcome", "quantity"]
        check_columns(shares, [*keys, "reading", "value"], figure="answer")
        shares = shares[(shares["outcome"] == OUTCOME) & shares["quantity"].isin(ENDS)]
        check_values(shares, keys, figure="answer")
    return errors, shares


def _with_kind(rows: pd.DataFrame, *, figure: str) -> pd.DataFrame:
    """The rows with the column `conditioned`: whether the first weights are not He's."""
    lacking = rows[rows["first_weights"].isna()]["control"].unique()
    if len(lacking):
        raise ValueError(f"{figure}: no first_weights of {', '.join(lacking)}; give he, or what they were.")
    return rows.assign(conditioned=rows["first_weights"] != "he")


def _digits_first(data: "pd.Series[str]") -> list[str]:
    return sorted(data.unique(), key=lambda name: "digits" not in name.lower())


def _means(errors: pd.DataFrame) -> "pd.Series[float]":
    """By data, control and step; nan where a seed has no finite value."""
    whole = errors[errors["outcome"] == OUTCOME].reset_index(drop=True)
    finite = whole["value"].where(np.isfinite(whole["value"]))
    return finite.groupby([whole[key] for key in ("data", "control", "step")]).agg(lambda of: of.mean(skipna=False))


def _error_panels(
    left: Axes, right: Axes, rows: pd.DataFrame, means: "pd.Series[float]", looks: Mapping[str, Look]
) -> None:
    """One data set, He's weights at the left, others at the right; both have the same axes."""
    steps = sorted(rows["step"].unique())
    for axis, conditioned in ((left, False), (right, True)):
        part = rows[rows["conditioned"] == conditioned]
        shown = {name: look for name, look in looks.items() if name in set(part["control"])}
        room = 0.045 * np.log(steps[-1] / steps[0]) if len(steps) > 1 else 0.2
        for place, (name, look) in enumerate(shown.items()):
            shift = np.exp(room * (place - (len(shown) - 1) / 2))
            points, line = part[part["control"] == name].sort_values(["step", "seed"]), _line(means, name)
            axis.plot(points["step"] * shift, points["value"], ".", color=look.colour, markersize=2.6, alpha=0.5)
            marker = {"marker": look.marker, "markersize": 4, **_face(look, hollow=conditioned)}
            axis.plot(line.index * shift, line, color=look.colour, linestyle=look.line, linewidth=1, **marker)
    for name in REFERENCES:
        if name in looks and len(line := _line(means, name)):
            _reference(right, line, looks[name])
    lowest, highest = rows["value"].min(), rows["value"].max()
    bottom = 0 if lowest < highest / 2 else lowest  # errors that are all alike have an axis of their own
    room = 0.06 * (highest - bottom) or 0.1
    for axis in (left, right):
        axis.set_xscale("log")
        margin = (steps[-1] / steps[0]) ** 0.22 if len(steps) > 1 else 2
        axis.set(xlim=(steps[0] / margin, steps[-1] * margin), ylim=(bottom - room, highest + room))
        axis.set_xticks(steps, [f"{step:,g}" for step in steps])
        axis.xaxis.set_minor_locator(NullLocator())
        axis.grid(visible=False, axis="x")
        percent_axis(axis)
    right.tick_params(labelleft=False)


def _line(means: "pd.Series[float]", name: str) -> "pd.Series[float]":
    """A condition's means, by step."""
    return means[means.index.get_level_values("control") == name].droplevel("control").sort_index()


def _face(look: Look, *, hollow: bool) -> dict[str, Any]:
    """How the marker of a mean is filled."""
    return {"markerfacecolor": "white", "markeredgecolor": look.colour, "markeredgewidth": 1} if hollow else EDGE


def _reference(axis: Axes, line: "pd.Series[float]", look: Look) -> None:
    """A thin grey line, dashed as the arm's, behind all others."""
    drawn: dict[str, Any] = {"color": GREY, "linestyle": look.line, "linewidth": 0.8, "zorder": 1}
    if len(line) == 1:
        axis.axhline(line.iloc[0], **drawn)
    else:
        axis.plot(line.index, line, **drawn)


def _places(shares: pd.DataFrame) -> dict[tuple[str, float], float]:
    """Where each share stands, by its effect and step, under the effect's name."""
    places, low = dict[tuple[str, float], float](), 0.0
    found = shares.get("effect", pd.Series(dtype=object)).unique()
    for effect in sorted(found, key=lambda name: EFFECTS.index(name) if name in EFFECTS else len(EFFECTS)):
        steps = sorted(shares[shares["effect"] == effect]["step"].unique())
        places |= {(effect, step): low + 1 + i for i, step in enumerate(steps)}
        low += len(steps) + 1.3
    return places


def _forest(axis: Axes, shares: pd.DataFrame, places: Mapping[tuple[str, float], float], most: float) -> None:
    """A row for each share: the point and its interval, cut where they leave the scale, and the reading."""
    if not places:
        axis.set_axis_off()
        return
    for edge in (0, 1):
        axis.axvline(edge, color=GREY, linewidth=0.8, zorder=0.5)
    for margin in MARGINS:
        axis.axvline(margin, color=GREY, linewidth=0.7, linestyle=(0, (3, 2)), zorder=0.5)
    for (effect, step), y in places.items():
        rows = shares[(shares["effect"] == effect) & (shares["step"] == step)]
        found = dict(zip(rows["quantity"], rows["value"], strict=True))
        _interval(axis, y, *(float(found.get(end, np.nan)) for end in ENDS))
        axis.text(1.1, y, rows["reading"].iloc[0], transform=axis.get_yaxis_transform(), va="center", fontsize=small())
    at: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "xytext": (-7, 0), "textcoords": "offset points"}
    for effect in dict.fromkeys(effect for effect, _ in places):
        y = min(y for (name, _), y in places.items() if name == effect) - 1
        axis.annotate(effect, (0, y), **at, ha="right", va="center", fontsize=small(), fontstyle="italic")
    spare = (most - max(places.values())) / 2  # where another data set has more rows
    axis.set(xlim=SCALE, ylim=(most + 0.7 - spare, -0.7 - spare))
    axis.set_yticks(list(places.values()), [f"{step:,g} steps" for _, step in places])
    axis.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    axis.tick_params(axis="y", length=0, pad=7)
    axis.grid(visible=False)


def _interval(axis: Axes, y: float, share: float, low: float, high: float) -> None:
    left, right = SCALE
    mark: dict[str, Any] = {"color": "black", "linestyle": "", "clip_on": False}
    if low <= right and high >= left:
        axis.hlines(y, max(low, left), min(high, right), color="black", linewidth=1)
    if left <= share <= right:
        axis.plot(share, y, marker="o", markersize=3, **mark)
    for edge, marker, beyond in ((left, "<", min(share, low) < left), (right, ">", max(share, high) > right)):
        if beyond:
            axis.plot(edge, y, marker=marker, markersize=4, **mark)


def _label(grid: Axes2D, labels: Sequence[str], titles: Sequence[str]) -> None:
    """Titles above the first row of panels, labels of x below the last."""
    columns = grid.shape[1]
    column_titles(grid[0], titles[:columns])
    for axis in grid[0]:
        axis.title.set_linespacing(1)
    for axis, label in zip(grid[-1], labels[:columns], strict=True):
        axis.set_xlabel(label)


def _finish(
    grid: Axes2D,
    rows: pd.DataFrame,
    looks: Mapping[str, Look],
    *,
    legend: bool,
    caption: str,
    remarks: Sequence[str] = (),
    more: Sequence[Any] = (),
) -> None:
    """An entry for each condition, the conditioned ones hollow, then `more`; `remarks` under the title."""
    conditioned = set(rows[rows["conditioned"]]["control"])
    entries = [
        handle(k.label, k.colour, linestyle=k.line, marker=k.marker, **_face(k, hollow=name in conditioned))
        for name, k in sorted(looks.items(), key=lambda item: item[0] in conditioned)
    ]
    grey = [name for name in REFERENCES if name in looks and conditioned]
    remarks = [f"grey in (b): {' and '.join(grey)} of (a)"] * bool(grey) + list(remarks)
    finish(grid, [*entries, *more], legend=legend, caption="\n".join([caption, "; ".join(remarks)]).strip())


@drawing
def answer_losses(table: pd.DataFrame, *, axes: Any = None, looks: Looks = None, legend: bool = True) -> Axes2D:
    """Training loss (nats, log axis) over steps, with He's and with other first weights: thin, each seed; thick,
    their geometric mean. Or, of a table with means: the mean, and a band from low to high.

    A row of panels for each data set, digits first. The conditioned panel has residual and plain networks at He's
    weights in grey; the dashed horizontals are at 0.5 and 0.1.

    Table: data, control (the condition), first_weights ("he"; all others are conditioned), budget (one for each data
    set), step, seed or else quantity ("mean", "low", "high"), value (trailing means); window (the steps that each is
    the mean of), if it is to be said.
    """
    banded = "quantity" in table and "mean" in set(table["quantity"])
    where = {"quantity": ["mean", "low", "high"]} if banded else {}
    keys = ["data", "control", "first_weights", "budget", "step", *([] if banded else ["seed"])]
    rows = select(table, keys, figure="answer_losses", **where)
    rows = _with_kind(rows, figure="answer_losses")
    budgets = rows.groupby("data")["budget"].unique()
    for name in budgets.index[budgets.map(len) > 1]:
        raise ValueError(f"answer_losses: budgets {sorted(budgets[name].tolist())} of {name}. Draw one at a time.")
    looks, names = looks_of(rows["control"], looks, known=ARMS | CONDITIONS), _digits_first(rows["data"])
    grid = panels(axes, len(names), 2, figure="answer_losses", height=1.6, sharex="row", sharey="row")
    windows = sorted(rows["window"].unique()) if "window" in rows else []
    of = f",\nmean of {windows[0]:g} steps" if len(windows) == 1 else ""
    for line, name in zip(grid, names, strict=True):
        for axis, conditioned in zip(line, (False, True), strict=True):
            _losses(axis, rows[rows["data"] == name], looks, conditioned=conditioned, banded=banded)
        line[0].set_ylabel(f"{name}: " * (len(names) > 1) + f"training loss (nats){of}")
    _label(grid, ("training steps",) * 2, [title.replace("\n", " ") for title in TITLES])
    named = rows.assign(arm=rows["data"] + rows["control"])
    title = "lines: means; bands: low to high" if banded else seeds_title(named, mean="geometric mean")
    targets = handle("loss 0.5 and 0.1", GREY, linestyle=(0, (3, 2)), linewidth=0.7)
    _finish(grid, rows, looks, legend=legend, caption=f"{title}; {HOLLOW}", more=[targets])
    return grid


def _losses(axis: Axes, rows: pd.DataFrame, looks: Mapping[str, Look], *, conditioned: bool, banded: bool) -> None:
    """One panel: lines over seeds, or a mean in its band."""
    part = rows[rows["conditioned"] == conditioned]
    shown = {name: look for name, look in looks.items() if name in set(part["control"])}
    of_he = rows[~rows["conditioned"] & rows["control"].isin(REFERENCES)] if conditioned else rows[:0]
    for name, repeated in of_he.groupby("control"):
        wide = repeated.pivot(index="step", columns="quantity" if banded else "seed", values="value")
        line = wide["mean"] if banded else mean_over_seeds(wide, geometric=True)
        _reference(axis, line, looks[str(name)])
    for name, look in shown.items():
        of = part[part["control"] == name]
        marker = marks(of.assign(arm=name), shown, name, x="step") | _face(look, hollow=conditioned)
        if banded:
            wide = of.pivot(index="step", columns="quantity", values="value").reindex(columns=["mean", "low", "high"])
            axis.fill_between(wide.index, wide["low"], wide["high"], color=look.colour, alpha=0.15, linewidth=0)
            axis.plot(wide.index, wide["mean"], color=look.colour, linestyle=look.line, linewidth=THICK, **marker)
        else:
            seed_lines(axis, of, look, x="step", geometric=True, **marker)
    for target in TARGETS:
        axis.axhline(target, color=GREY, linewidth=0.7, linestyle=(0, (3, 2)), zorder=0.5)
    log_axis(axis)
