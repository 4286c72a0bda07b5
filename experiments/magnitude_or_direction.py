"""Is it the size of the gradient, its direction, its bias, or that early blocks do not learn?

A stop-gradient network computes what a residual network computes, and learns from the longest gradient path alone. That
gradient differs from the true one in each block's norm and in its direction. Here each is exchanged for the true one;
the true gradient is blurred by noise to the same cosine and norm; the early blocks are frozen; the way back is random
(Lillicrap et al. 2016, arXiv 1411.0247); and the optimiser is one that does not see the gradient's scale: Adam, and SGD
on signs. Each condition is trained at its own best learning rate, chosen by validation on other seeds.

Writes tables, figures and the search to OUT/magnitude_or_direction, runs to OUT/answer; finished runs are not repeated.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

import figures
from experiments.engine.conditions.catalogue import (
    MAGNITUDE,
    PLAIN,
    RESIDUAL,
    SCALE_FREE,
    STOP_GRADIENT,
    UNMODIFIED_ARMS,
)
from experiments.engine.conditions.conditions import Condition, ConditionSettings, choose
from experiments.engine.conditions.controls import NO_CONTROL
from experiments.engine.conditions.gap_closed import (
    HALF,
    GapClosed,
    Key,
    condition_table,
    difference,
    differences,
    gap_table,
    gaps_closed,
)
from experiments.engine.conditions.learning_rate_search import ConditionRunner, Rates
from experiments.engine.reporting import show
from experiments.engine.reporting.conditions import (
    SEARCHED,
    diverged_note,
    format_gap,
    show_alignment,
    show_differences,
    show_gaps_closed,
)
from experiments.engine.reporting.factorial import show_outcomes
from experiments.engine.running.cli import run_script
from experiments.engine.running.output import Output
from experiments.engine.running.run import Run, Tables
from experiments.engine.statistics.estimates import MARGIN
from experiments.engine.training.data import load
from experiments.engine.training.optimisation import Training

EXPERIMENT = "magnitude_or_direction"
CONDITIONS = (*UNMODIFIED_ARMS, *MAGNITUDE, *SCALE_FREE)
TRUE_NORMS, TRUE_DIRECTION, NOISE = (condition.name for condition in MAGNITUDE[:3])
FROZEN = MAGNITUDE[-1].name
GROUPS = {
    "unmodified": [condition.name for condition in UNMODIFIED_ARMS],
    "exchanged": [condition.name for condition in MAGNITUDE],
    "without the gradient's scale": [condition.name for condition in SCALE_FREE],
}


@dataclass(frozen=True)
class Settings(ConditionSettings):
    """Every setting of the experiment."""

    depths: tuple[int, ...] = (32, 56)
    """Layers, each 6n + 2."""
    conditions: tuple[str, ...] = ()
    """Names of those to run, beside plain, residual and stop-gradient; none: all."""

    def check(self) -> None:
        super().check()
        self.chosen()

    def chosen(self) -> tuple[Condition, ...]:
        """The conditions to run."""
        return choose(self.conditions, CONDITIONS, always=(PLAIN, RESIDUAL, STOP_GRADIENT))


QUICK = Settings(
    depths=(8,),
    seeds=(0, 1),
    tuning_seeds=(100,),
    training=Training(epochs=2),
    conditions=(TRUE_NORMS, TRUE_DIRECTION, NOISE, FROZEN),
)


def main(settings: Settings) -> None:
    """Run the grid and report it."""
    settings.check()
    runner = ConditionRunner(settings, load(settings.data))
    output, conditions = show.live(settings.output(EXPERIMENT)), settings.chosen()
    tables, diverged, rates = runner.train_at_best_rates(conditions, output)
    report(tables, diverged, rates, conditions, runner, output)


def report(
    tables: Tables,
    diverged: Sequence[Run],
    rates: Rates,
    conditions: Sequence[Condition],
    runner: ConditionRunner,
    output: Output,
) -> None:
    """Write the gaps closed, draw the figures, and print the results."""
    console, dataset, depths = show.terminal(), runner.dataset, sorted(runner.settings.depths)
    if show.all_diverged(console, tables, output, advice=SEARCHED):
        return
    outcomes, names = tables["outcomes"], [condition.name for condition in conditions]
    runs = condition_table(outcomes, dataset.size("test"))
    gaps = gaps_closed(runs, conditions, depths)
    output.table("scores", scores := gap_table(gaps, conditions))
    show.save_figure(output, figures.conditions(outcomes, groups=GROUPS), outcomes, EXPERIMENT)
    show.save_figure(output, figures.gap_closed(scores, groups=GROUPS), scores, "gap_closed")
    show_outcomes(console, outcomes, runs, names, diverged, len(dataset.classes), by="control")
    show_alignment(console, tables["alignment"], names, depths[-1])
    show_gaps_closed(console, scores, rates)
    show_differences(console, differences(runs, depths, subtractions(conditions)))
    n = len(gaps[STOP_GRADIENT, depths[-1], "test error"].gap.values)
    title = f"{dataset.title}, depth {depths[-1]}, n = {n}"
    remark = (
        "R: the gap in test error that is closed; differences are of test accuracy. One data set, one budget, each "
        f"condition's best learning rate.{diverged_note(diverged)}"
    )
    show.conclusion(console, output, decide(runs, gaps, depths[-1]), title=title, remark=remark)


def subtractions(conditions: Sequence[Condition]) -> dict[str, dict[str, str]]:
    """What each condition is compared with: stop-gradient under the same optimiser, and early blocks that never
    learn."""
    unmodified = {c.optimiser: c.name for c in conditions if (c.arm, c.control) == (STOP_GRADIENT, NO_CONTROL)}
    found = {
        "minus stop-gradient": {c.name: unmodified[c.optimiser] for c in conditions if c.optimiser in unmodified},
        "minus frozen": {c.name: FROZEN for c in conditions if c.optimiser == "sgd"},
    }
    return {title: pairs for title, pairs in found.items() if set(pairs.values()) <= {c.name for c in conditions}}


# Which explanation the numbers leave. The rules and their margins were fixed before any result was seen.
def decide(runs: pd.DataFrame, gaps: Mapping[Key, GapClosed], depth: int) -> dict[str, show.Decision]:
    """By effect: its estimate, its margin, and what it decides about size or direction, bias, and early blocks."""
    found: dict[str, show.Decision] = {}
    words = {"yes": "more than half", "no": "less than half"}
    for name in (STOP_GRADIENT, TRUE_NORMS, TRUE_DIRECTION):
        if closed := gaps.get((name, depth, "test error")):
            found[f"R of {name}"] = format_gap(closed.numbers), f"{HALF}", words.get(closed.recovers, "undecided")
    found["size or direction"] = "", "", size_or_direction(gaps, depth)
    bias = {"above": "a structured bias, not a weak signal", "within": "no structured bias"}
    early = {"above": "stop-gradient is better", "within": "not better: says nothing of early blocks"}
    for effect, more, less, words in (
        ("bias: noise - stop-gradient", NOISE, STOP_GRADIENT, bias),
        ("stop-gradient - frozen early blocks", STOP_GRADIENT, FROZEN, early),
    ):
        change = difference(runs, depth, more, less)
        found[effect] = show.decision(change, MARGIN, words, one_sided=True, missing="no seed has both")
    return found


def size_or_direction(gaps: Mapping[Key, GapClosed], depth: int) -> str:
    """Size, if the stop-gradient direction with true norms recovers; direction, if it does not and the true direction
    with stop-gradient norms does."""
    names = (STOP_GRADIENT, TRUE_NORMS, TRUE_DIRECTION)
    if missing := [name for name in names if (name, depth, "test error") not in gaps]:
        return f"not asked without {', '.join(missing)}"
    unmodified, norms, direction = (gaps[name, depth, "test error"] for name in names)
    if unmodified.note:
        return f"cannot be read: {unmodified.note}"
    if unmodified.recovers == "yes":
        return "stop-gradient recovers by itself: nothing is left to explain"
    if norms.recovers == "yes":
        return "the gradient's size"
    if (norms.recovers, direction.recovers) == ("no", "yes"):
        return "the gradient's direction"
    return "undecided"


if __name__ == "__main__":
    run_script("experiments.magnitude_or_direction")
