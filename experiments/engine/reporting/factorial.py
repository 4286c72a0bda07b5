"""How arms and the factorial's effects are shown in the terminal."""

from collections.abc import Mapping, Sequence

import pandas as pd
from rich.console import Console

from experiments.engine.reporting.console import format_estimate, mean_sd, show_decisions, show_table
from experiments.engine.statistics.estimates import MARGIN, classify
from experiments.engine.statistics.factorial import CEILING, EFFECTS, FACTORIAL, FLOOR, OUTCOMES, effects, flags

SHOWN = (("train", "loss"), ("train", "accuracy"), ("test", "accuracy"))


def show_outcomes(
    console: Console,
    outcomes: pd.DataFrame,
    names: Sequence[str],
    diverged: Sequence[tuple[str, int]],
    marks: Mapping[int, Mapping[str, str]],
    *,
    by: str = "arm",
) -> None:
    """Arm x depth: train loss, train and test accuracy (mean ± sd over seeds), n, diverged runs, floor or ceiling.

    Args:
        console: Where.
        outcomes: The table of that name.
        names: Of arms (or conditions: values of the column `by`), in order.
        diverged: Name and depth of every diverged run.
        marks: By depth and name, "floor" or "ceiling".
        by: The column that tells what is compared.
    """
    rows = {}
    for depth in sorted(marks):
        for name in names:
            at = outcomes[(outcomes["depth_total"] == depth) & (outcomes[by] == name)]
            values = {
                f"{split} {quantity}": at[(at["split"] == split) & (at["quantity"] == quantity)]["value"]
                for split, quantity in SHOWN
            }
            gone = diverged.count((name, depth))
            if at.empty and not gone:  # not asked at this depth
                continue
            note = [f"{gone} diverged"] * bool(gone) + [marks[depth].get(name, "")]
            n = str(len(values["test accuracy"]))
            rows[f"depth {depth}", name] = {column: mean_sd(of) for column, of in values.items()} | {
                "n": n,
                "note": " ".join(note),
            }
    caption = f"floor, ceiling: test accuracy within {FLOOR} of chance, or at least {CEILING}: effects on it mislead"
    show_table(console, rows, title="At the end of training: mean ± sd over n seeds", caption=caption)


def show_effects(console: Console, runs: pd.DataFrame, depth: int, *, by: str = "arm") -> None:
    """The simple effects, the main effects and the interaction at one depth, each on three outcomes."""
    by_outcome = {outcome: effects(runs, depth, outcome, by=by) for outcome in OUTCOMES}
    if not all(by_outcome.values()):
        console.print(f"depth {depth}: no effects, since no seed has finished all of {', '.join(FACTORIAL)}\n")
        return
    n = len(by_outcome[OUTCOMES[0]]["forward, backward on"].values)
    rows = {
        ("", name): {outcome: format_estimate(by_outcome[outcome][name]) for outcome in OUTCOMES} for name in EFFECTS
    }
    show_table(
        console,
        rows,
        title=f"Effects of the shortcut at depth {depth}: mean [95 % t interval], paired over n = {n} seeds",
        caption="(a, b): the seeds' own values, where n < 3 or the interval runs beyond the scale; "
        "intervals are not corrected for their number",
    )


def decide_factorial(
    console: Console, runs: pd.DataFrame, depth: int, *, title: str, classes: int, by: str = "arm"
) -> None:
    """What the test accuracies of one depth decide about the shortcut's value and gradient, and what they do not."""
    found = effects(runs, depth, "test accuracy", by=by)
    if not found:
        console.print(f"{title}, depth {depth}: no effects; no seed has finished {', '.join(FACTORIAL)}.")
        return
    questions = {
        "whole shortcut": "whole shortcut",
        "value without gradient": "forward, backward off",
        "gradient without value": "backward, forward off",
        "both, beyond the sum": "interaction / gradient mismatch",
    }
    marks = {arm: mark for arm, mark in flags(runs, depth, classes, by=by).items() if arm in FACTORIAL}
    words = {"above": "helps", "below": "harms", "within": "changes nothing"}
    sums = {"above": "more than the sum", "below": "less than the sum", "within": "the sum"}
    decisions = {}
    for question, effect in questions.items():
        additive = effect == "interaction / gradient mismatch"
        reading = (sums if additive else words).get(classify(found[effect], MARGIN), "undecided")
        if additive and marks:
            reading = f"cannot be read: {', '.join(f'{arm} at the {mark}' for arm, mark in marks.items())}"
        decisions[question] = (format_estimate(found[effect]), f"{MARGIN}", reading)
    n, seeds = len(found["whole shortcut"].values), runs[runs["depth_total"] == depth]["seed"].nunique()
    lost = f" of {seeds} seeds, the others diverged" if n < seeds else ""
    show_decisions(console, decisions, title=f"{title}, depth {depth}, test accuracy, n = {n}{lost}")
    console.print(
        "One data set, one budget: this alone does not say why residual connections help. Both "
        "together give more than the sum wherever a gradient only helps the function that it belongs to."
    )
