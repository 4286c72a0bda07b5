"""How arms and the factorial's effects are shown in the terminal."""

from collections.abc import Sequence

import pandas as pd
from rich.console import Console

from experiments.engine.reporting import show
from experiments.engine.running.run import Run
from experiments.engine.statistics.estimates import MARGIN
from experiments.engine.statistics.factorial import CEILING, EFFECTS, FACTORIAL, FLOOR, OUTCOMES, effects, flags
from experiments.engine.statistics.long_tables import select

SHOWN = (("train", "loss"), ("train", "accuracy"), ("test", "accuracy"))


def show_outcomes(
    console: Console,
    outcomes: pd.DataFrame,
    runs: pd.DataFrame,
    names: Sequence[str],
    diverged: Sequence[Run],
    classes: int,
    *,
    by: str = "arm",
) -> None:
    """Arm x depth: train loss, train and test accuracy (mean ± sd over seeds), n, diverged runs, floor or ceiling.

    Args:
        console: Where.
        outcomes: The table of that name.
        runs: The same, as `factorial.outcome_table` gives them.
        names: Of arms (or conditions: values of the column `by`), in order.
        diverged: The runs without an outcome.
        classes: Of the data set.
        by: The column (or label of runs) that tells what is compared.
    """
    rows = {}
    lost = [(run.labels.get(by, run.arm), run.depth) for run in diverged]
    for depth in sorted({*outcomes["depth_total"].tolist(), *(run.depth for run in diverged)}):
        marks = flags(runs, depth, classes, by=by)
        for name in names:
            count, at = lost.count((name, depth)), select(outcomes, depth_total=depth, **{by: name})
            if count or len(at):  # else it was not trained at this depth
                note = [f"{count} diverged"] * bool(count) + [marks.get(name, "")]
                rows[f"depth {depth}", name] = {**outcome_row(at, SHOWN), "note": " ".join(note)}
    caption = f"floor, ceiling: test accuracy within {FLOOR} of chance, or at least {CEILING}: effects on it mislead"
    show.table(console, rows, title="At the end of training: mean ± sd over n seeds", caption=caption)


def outcome_row(outcomes: pd.DataFrame, shown: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Mean ± sd over seeds of each split and quantity to be shown, and the number of seeds."""
    values = [select(outcomes, split=split, quantity=quantity)["value"] for split, quantity in shown]
    row = {f"{split} {quantity}": show.mean_sd(of) for (split, quantity), of in zip(shown, values, strict=True)}
    return row | {"n": str(len(values[-1]))}


def show_effects(console: Console, runs: pd.DataFrame, depth: int, *, by: str = "arm") -> None:
    """The simple effects, the main effects and the interaction at one depth, each on three outcomes."""
    by_outcome = {outcome: effects(runs, depth, outcome, by=by) for outcome in OUTCOMES}
    if not all(by_outcome.values()):
        console.print(f"depth {depth}: no effects, since no seed has finished all of {', '.join(FACTORIAL)}\n")
        return
    n = len(by_outcome[OUTCOMES[0]]["forward, backward on"].values)
    rows = {("", name): {outcome: show.estimate(by_outcome[outcome][name]) for outcome in OUTCOMES} for name in EFFECTS}
    show.table(
        console,
        rows,
        title=f"Effects of the shortcut at depth {depth}: mean [95 % t interval], paired over n = {n} seeds",
        caption="(a, b): the seeds' own values, where n < 3; intervals are not corrected for their number",
    )


def decide_factorial(
    console: Console, runs: pd.DataFrame, depth: int, *, title: str, limits: str, classes: int, by: str = "arm"
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
    }
    marks = {arm: mark for arm, mark in flags(runs, depth, classes, by=by).items() if arm in FACTORIAL}
    words = {"above": "helps", "below": "harms", "within": "changes nothing"}
    sums = {"above": "more than the sum", "below": "less than the sum", "within": "the sum"}
    decisions = {
        question: show.decision(found[effect], MARGIN, words, digits=2) for question, effect in questions.items()
    }
    text, margin, reading = show.decision(interaction := found["interaction / gradient mismatch"], 0, sums, digits=2)
    if marks:
        reading = f"cannot be read: {', '.join(f'{arm} at the {mark}' for arm, mark in marks.items())}"
    decisions["both, beyond the sum"] = text, margin, reading
    n, seeds = len(found["whole shortcut"].values), select(runs, depth_total=depth)["seed"].nunique()
    lost = f" of {seeds} seeds, the others diverged" if n < seeds else ""
    show.decisions(console, decisions, title=f"{title}, depth {depth}, test accuracy, n = {n}{lost}")
    hint = " More than the sum is what a gradient that only helps where it fits would give." * (interaction.low > 0)
    console.print(f"{limits} This alone does not say why residual connections help.{hint}")
