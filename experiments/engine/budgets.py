"""Which arms fit their training set at some budget, and which generalise as ordinary training does there.

The rules and their margins were fixed before any result was seen.
"""

import math
from collections.abc import Iterator

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from experiments.engine.answer import RESIDUAL
from experiments.engine.condition_scores import MARGIN, NONE, side
from experiments.engine.effects import Estimate, decide, estimate
from experiments.engine.ending import mean_sd, show_estimate
from experiments.engine.speed_ending import show_steps
from models import ARMS
from probes.tables import table

FITTED = 0.99  # of the training set
KEYS = ["depth_total", "budget", "arm", "seed"]


def outcomes_of(outcomes: pd.DataFrame) -> pd.DataFrame:
    """Final accuracies on training and test data, and the gap between them: a row for each depth, budget, arm, seed."""
    accuracy = outcomes[outcomes["quantity"] == "accuracy"]
    wide = accuracy.pivot(index=KEYS, columns="split", values="value")[["train", "test"]]
    return wide.assign(gap=wide["train"] - wide["test"]).reset_index()


def runs(rows: pd.DataFrame) -> Iterator[tuple[int, int, pd.DataFrame]]:
    """The rows of each depth and budget."""
    for depth in sorted(rows["depth_total"].unique().tolist()):
        at_depth = rows[rows["depth_total"] == depth]
        for budget in sorted(at_depth["budget"].unique().tolist()):
            yield depth, budget, at_depth[at_depth["budget"] == budget]


def at(ends: pd.DataFrame, depth: int, budget: int, arm: str) -> pd.DataFrame:
    """An arm's runs at a depth and budget, by seed."""
    rows = ends[(ends["depth_total"] == depth) & (ends["budget"] == budget) & (ends["arm"] == arm)]
    return rows.set_index("seed")


def fitting(ends: pd.DataFrame, depth: int, budget: int, arm: str) -> tuple[Estimate, str]:
    """Training accuracy, and whether its whole interval lies above or below what counts as fitted."""
    values = at(ends, depth, budget, arm)["train"].to_numpy()
    found = estimate(values) if len(values) else NONE
    return found, decide(found, FITTED, ("fits", "does not fit"))


def generalising(ends: pd.DataFrame, depth: int, budget: int, arm: str) -> tuple[Estimate, str]:
    """Test accuracy minus that of ordinary training of the same budget, paired by seed, and where its interval lies."""
    own, ordinary = (at(ends, depth, budget, each)["test"] for each in (arm, RESIDUAL))
    values = (own - ordinary).dropna().to_numpy()
    found = estimate(values, reach=1) if len(values) else NONE
    words = {"above": "better", "below": "worse", "within": "as well", "undecided": "undecided"}
    return found, words[side(found)]


def show_budgets(console: Console, ends: pd.DataFrame) -> None:
    """Depth x budget x arm: accuracies, their gap, whether it fits, and how it generalises against residual."""
    shown = Table(title="At the end of each budget: mean ± sd over n seeds", box=SIMPLE_HEAD, pad_edge=False)
    for column in ("", "train", "test", "gap", "n", "fits?", "test - residual's"):
        shown.add_column(column)
    for depth, budget, rows in runs(ends):
        shown.add_row(f"depth {depth}, x {budget}", style="bold")
        for arm in ARMS:
            of_arm = rows[rows["arm"] == arm]
            numbers = [mean_sd(of_arm[column]) for column in ("train", "test", "gap")]
            against, _ = generalising(ends, depth, budget, arm)
            difference = "" if arm == RESIDUAL else show_estimate(against, digits=3) if against.values else "-"
            fits = fitting(ends, depth, budget, arm)[1] if len(of_arm) else "diverged"
            shown.add_row(arm, *numbers, str(len(of_arm)), fits, difference)
        shown.add_section()
    console.print(shown)
    console.print(
        f"fits: the whole 95 % t interval of training accuracy lies above {FITTED}; differences: mean [95 % t "
        "interval], paired by seed, not corrected for their number\n"
    )


def show_steps_to(console: Console, steps: pd.DataFrame, seeds: int) -> None:
    """Depth x budget x arm: the first step at each training loss; where a seed does not get there, how many do."""
    targets = list(steps["target"].unique())
    shown = Table(title="First step at a training loss: mean ± sd", box=SIMPLE_HEAD, pad_edge=False)
    for column in ("", *(f"loss {target:g}" for target in targets)):
        shown.add_column(column, no_wrap=True)
    for depth, budget, rows in runs(steps):
        shown.add_row(f"depth {depth}, x {budget}", style="bold")
        for arm in ARMS:
            of_arm = rows[rows["arm"] == arm]
            shown.add_row(arm, *(show_steps(of_arm[of_arm["target"] == each]["value"], seeds) for each in targets))
        shown.add_section()
    console.print(shown)
    console.print(f"k of {seeds}: so many seeds got there before the end (censored); no mean is taken of them alone\n")


def verdict_table(ends: pd.DataFrame) -> pd.DataFrame:
    """Fitting and generalising as a long table: depth_total, budget, arm, outcome, quantity (mean, low, high, n),
    value."""
    rows = []
    for depth, budget, part in runs(ends):
        for arm in part["arm"].unique():
            about = {"depth_total": depth, "budget": budget, "arm": arm}
            rows += fitting(ends, depth, budget, arm)[0].rows(**about, outcome="training accuracy")
            rows += generalising(ends, depth, budget, arm)[0].rows(**about, outcome="test accuracy - residual's")
    return table(rows)


def sentence(ends: pd.DataFrame, *, depth: int, title: str) -> str:
    """Which arms fail to fit at the largest budget, and of those that fit, which fail to generalise."""
    at_depth = ends[ends["depth_total"] == depth]
    if at_depth.empty:
        return f"{title}, depth {depth}: nothing can be said, since every cell diverged."
    budget = int(at_depth["budget"].max())
    finished = set(at_depth[at_depth["budget"] == budget]["arm"])
    fits = {arm: fitting(ends, depth, budget, arm)[1] if arm in finished else "diverged" for arm in ARMS}
    said = [
        f"{word}: {', '.join(named)}"
        for word in ("fits", "does not fit", "undecided", "diverged")
        if (named := [arm for arm in ARMS if fits[arm] == word])
    ]
    others = [arm for arm in ARMS if fits[arm] == "fits" and arm != RESIDUAL]
    against = [described(ends, depth, budget, arm) for arm in others]
    n = at_depth["seed"].nunique()
    return (
        f"{title}, depth {depth}, n = {n}: with {budget} times the steps, {'; '.join(said)} (training accuracy "
        f"against {FITTED}). Of those that fit: {', '.join(against) or 'none beside residual'} (test accuracy minus "
        f"residual's, margin {MARGIN}). One data set, learning rates that are best at once the steps."
    )


def described(ends: pd.DataFrame, depth: int, budget: int, arm: str) -> str:
    """`stop-gradient generalises worse (-0.2 [...])`."""
    found, word = generalising(ends, depth, budget, arm)
    if not found.values or math.isnan(found.mean):
        return f"{arm} has no seed in common with residual"
    words = {"undecided": "is undecided"}.get(word, f"generalises {word}")
    return f"{arm} {words} ({show_estimate(found, digits=3)})"
