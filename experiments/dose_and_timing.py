"""How much of the shortcut's gradient is needed, when, and where?

Trains residual networks whose shortcuts carry the value forward in full and the gradient back in part:

weight: between that of stop-gradient, 0, and that of residual, 1. coin: each block's shortcut is cut in a step with a
certain chance (h-detach: Arpit et al. 2018, arXiv 1810.03023); biased, or unbiased by amplifying the shortcuts that are
not cut, so that the expected gradient is the true one. until, from: cut before an epoch, or from it on. stage, every:
cut in one stage, or in every k-th block. Each condition is trained at its own best learning rate, chosen by validation
on other seeds.

Writes tables, figures and the search to OUT/dose_and_timing, runs to OUT/answer; finished runs are not repeated.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

import figures
from experiments.engine.conditions.catalogue import COINS, DOSES, PLACES, PLAIN, RESIDUAL, STOP_GRADIENT, timing
from experiments.engine.conditions.conditions import Condition, ConditionSettings, choose
from experiments.engine.conditions.controls import Cut
from experiments.engine.conditions.gap_closed import condition_table, difference, differences, gap_table, gaps_closed
from experiments.engine.conditions.learning_rate_search import ConditionRunner, Rates
from experiments.engine.reporting import show
from experiments.engine.reporting.conditions import SEARCHED, diverged_note, show_differences, show_gaps_closed
from experiments.engine.reporting.factorial import show_outcomes
from experiments.engine.running.cli import run_script
from experiments.engine.running.output import Output
from experiments.engine.running.run import Run, Tables
from experiments.engine.statistics.equivalence import Comparison, compare, smallest_sufficient
from experiments.engine.statistics.estimates import MARGIN
from experiments.engine.statistics.long_tables import select
from experiments.engine.training.data import load
from experiments.engine.training.optimisation import Training
from probes.tables import ordered

EXPERIMENT = "dose_and_timing"
REFERENCE_ARMS = tuple(Condition(arm, arm) for arm in (RESIDUAL, STOP_GRADIENT, PLAIN))


@dataclass(frozen=True)
class Settings(ConditionSettings):
    """Every setting of the experiment."""

    depths: tuple[int, ...] = (56,)
    """Layers, each 6n + 2."""
    conditions: tuple[str, ...] = ()
    """Names of those to run, beside plain, residual and stop-gradient; none: all."""

    def check(self) -> None:
        super().check()
        self.chosen()

    def chosen(self) -> tuple[Condition, ...]:
        """The conditions to run."""
        every = (*REFERENCE_ARMS, *DOSES, *COINS, *timing(self.training.epochs), *PLACES)
        return choose(self.conditions, every, always=(STOP_GRADIENT,))


QUICK = Settings(
    depths=(8,),
    seeds=(0, 1),
    tuning_seeds=(100,),
    training=Training(epochs=2),
    conditions=(DOSES[1].name, DOSES[2].name, COINS[0].name, COINS[1].name, "until epoch 1", "from epoch 1", "stage 3"),
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
    epochs = runner.settings.training.epochs
    if show.all_diverged(console, tables, output, advice=SEARCHED):
        return
    outcomes, names = tables["outcomes"], [condition.name for condition in conditions]
    runs = condition_table(outcomes, dataset.size("test"))
    output.table("scores", scores := gap_table(gaps_closed(runs, conditions, depths), conditions))
    drawn = with_treatments(outcomes, conditions)
    for depth in sorted(drawn["depth_total"].unique()):
        at_depth = select(drawn, depth_total=depth)
        show.save_figure(output, figures.dose_and_timing(at_depth), at_depth, f"{EXPERIMENT}_{depth}")
    show.save_figure(output, figures.gap_closed(scores), scores, "gap_closed")
    show_outcomes(console, outcomes, runs, names, diverged, len(dataset.classes), by="control")
    show_gaps_closed(console, scores, rates)
    comparisons = {depth: against_residual(runs, conditions, depth) for depth in depths}
    for depth in depths:
        show.changes(console, list(comparisons[depth].values()), where=f" at depth {depth}")
    show_differences(console, differences(runs, depths, subtractions(conditions, epochs)))
    deepest = comparisons[depths[-1]]
    n = max((comparison.pairs for comparison in deepest.values()), default=0)
    decided = decide(runs, deepest, conditions, depth=depths[-1], epochs=epochs)
    remark = "Differences are of test accuracy. One data set, one budget, each condition's best learning rate."
    title = f"{dataset.title}, depth {depths[-1]}, n = {n}"
    show.conclusion(console, output, decided, title=title, remark=remark + diverged_note(diverged))


def treatment(cut: Cut | None) -> tuple[str | None, float]:
    """The kind of a cut, and the number by which conditions of that kind differ; (None, nan) for an unmodified arm."""
    if cut is None:
        return None, math.nan
    if cut.chance < 1:
        return "unbiased coin" if cut.unbiased else "biased coin", cut.chance
    if cut.end is not None:
        return "until epoch", cut.end
    if cut.begin > 0:
        return "from epoch", cut.begin
    if cut.stage is not None:
        return "stage", cut.stage
    return ("every n-th block", cut.every) if cut.every > 1 else ("weight", cut.weight)


def with_treatments(outcomes: pd.DataFrame, conditions: Sequence[Condition]) -> pd.DataFrame:
    """The outcomes with columns treatment and amount, from the conditions' cuts."""
    found = {condition.name: treatment(condition.control.cut) for condition in conditions}
    columns = list(zip(*outcomes["control"].map(found), strict=True))
    return ordered(outcomes.assign(treatment=columns[0], amount=columns[1]))


def against_residual(runs: pd.DataFrame, conditions: Sequence[Condition], depth: int) -> dict[str, Comparison]:
    """Each condition with a cut shortcut gradient, against the residual network."""
    at_depth = select(runs, depth_total=depth)
    cutting = [c.name for c in conditions if c.control.cut is not None or c.name == STOP_GRADIENT]
    return {name: compare(at_depth, name, 0, by="control") for name in cutting}


def by_treatment(conditions: Sequence[Condition]) -> dict[str, dict[float, str]]:
    """Names of conditions, by treatment and amount; stop-gradient is weight 0."""
    found = defaultdict[str, dict[float, str]](dict)
    for condition in conditions:
        kind, amount = ("weight", 0.0) if condition.name == STOP_GRADIENT else treatment(condition.control.cut)
        if kind:
            found[kind][amount] = condition.name
    return found


def pairs_of_timing(conditions: Sequence[Condition], epochs: int) -> dict[float, tuple[str, str]]:
    """By the number of epochs that are cut: the condition that is cut during the first of them, and the one
    that is cut during the last."""
    named = by_treatment(conditions)
    return paired(named["until epoch"], {epochs - begin: name for begin, name in named["from epoch"].items()})


def pairs_of_coins(conditions: Sequence[Condition]) -> dict[float, tuple[str, str]]:
    """By the coin's chance: the biased condition, and the unbiased one."""
    named = by_treatment(conditions)
    return paired(named["biased coin"], named["unbiased coin"])


def paired(first: Mapping[float, str], second: Mapping[float, str]) -> dict[float, tuple[str, str]]:
    """Pairs of names, by the numbers that both mappings have."""
    return {number: (first[number], second[number]) for number in sorted(first.keys() & second.keys())}


def subtractions(conditions: Sequence[Condition], epochs: int) -> dict[str, dict[str, str]]:
    """Cuts of one length, late minus early; coins of one chance, unbiased minus biased."""
    pairs = {
        "minus the early cut": pairs_of_timing(conditions, epochs),
        "minus the biased coin": pairs_of_coins(conditions),
    }
    return {title: {more: less for less, more in of.values()} for title, of in pairs.items()}


# The rules and their margins were fixed before any result was seen.
def decide(
    runs: pd.DataFrame,
    comparisons: Mapping[str, Comparison],
    conditions: Sequence[Condition],
    *,
    depth: int,
    epochs: int,
) -> dict[str, show.Decision]:
    """By effect: its estimate, its margin and its reading: the smallest weight from which on all recover, a late cut
    against an early one of the same length (the one nearest to half of training), and unbiased coins against biased."""
    readings = {weight: comparisons[name].reading for weight, name in by_treatment(conditions)["weight"].items()}
    found = {"smallest weight that suffices": smallest_weight(readings)}
    if cuts := pairs_of_timing(conditions, epochs):
        length = min(cuts, key=lambda length: abs(length - epochs / 2))
        early, late = cuts[length]
        words = {"above": "the early cut costs more", "below": "the late cut costs more", "within": "the same cost"}
        effect = f"late cut - early cut, {length:g} of {epochs} epochs"
        found[effect] = show.decision(difference(runs, depth, late, early), MARGIN, words)
    words = {"above": "unbiased is better", "below": "unbiased is worse", "within": "unbiased is as good"}
    for chance, (biased, unbiased) in pairs_of_coins(conditions).items():
        text, margin, reading = show.decision(difference(runs, depth, unbiased, biased), MARGIN, words)
        effect = f"unbiased coin - biased coin, chance {chance:g}"
        found[effect] = text, margin, f"{reading}; unbiased: {comparisons[unbiased].reading}"
    return found


def smallest_weight(readings: Mapping[float, str]) -> show.Decision:
    """The weight from which on, up to 1, ordinary training is recovered; the weights at which it is not."""
    first = smallest_sufficient(list(readings), [reading == "recovered" for reading in readings.values()])
    parts = [] if first is not None else ["none below 1 is shown to recover from there on"]
    for word in ("undecided", "falls short"):
        which = [f"{weight:g}" for weight, reading in sorted(readings.items()) if reading == word]
        parts += [f"{word} at {', '.join(which)}"] * bool(which)
    return "-" if first is None else f"{first:g}", f"loss x 2, {MARGIN}", "; ".join(parts)


if __name__ == "__main__":
    run_script("experiments.dose_and_timing")
