"""Does the answer depend on the learning rate?

A rate that suits one arm ruins another: published errors of one and the same plain network of 110 layers range from
16 % to above 60 %. Here every arm is tried at learning rates half a decade apart, on seeds that are never reported; the
best is chosen by validation, beyond the first range where it lies at an end; and on other seeds each arm is trained at
its own best rate.

Writes tables, figures and the search to OUT/learning_rates, runs to OUT/answer; finished runs are not repeated.
"""

from dataclasses import dataclass

import pandas as pd
from rich.console import Console

import figures
from experiments.engine.conditions.catalogue import UNMODIFIED_ARMS
from experiments.engine.conditions.conditions import ConditionSettings
from experiments.engine.conditions.gap_closed import condition_table, gap_table, gaps_closed
from experiments.engine.conditions.learning_rate_search import ConditionRunner, Rates
from experiments.engine.reporting import show
from experiments.engine.reporting.conditions import SEARCHED, diverged_note, show_gaps_closed
from experiments.engine.reporting.factorial import decide_factorial, show_effects, show_outcomes
from experiments.engine.running.cli import run_script
from experiments.engine.running.output import Output
from experiments.engine.running.run import Run, Tables
from experiments.engine.statistics.factorial import effect_table
from experiments.engine.statistics.long_tables import select
from experiments.engine.training.data import load
from experiments.engine.training.optimisation import Training

EXPERIMENT = "learning_rates"


@dataclass(frozen=True)
class Settings(ConditionSettings):
    """Every setting of the experiment."""

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Random seeds, by number, of what is reported; one decides the first weights and the order of the data."""


QUICK = Settings(depths=(8,), seeds=(0, 1), tuning_seeds=(100,), training=Training(epochs=2))


def main(settings: Settings) -> None:
    """Run the grid and report it."""
    settings.check()
    runner = ConditionRunner(settings, load(settings.data))
    output = show.live(settings.output(EXPERIMENT))
    rates, search = runner.search(UNMODIFIED_ARMS, settings.depths, output.below("tuning"))
    tables, diverged = runner.train(runner.runs(UNMODIFIED_ARMS, settings.depths, rates), output)
    report(tables, diverged, rates, search, runner, output)


def report(
    tables: Tables, diverged: list[Run], rates: Rates, search: pd.DataFrame, runner: ConditionRunner, output: Output
) -> None:
    """Write gaps and effects, draw the figures, and print the results."""
    console, dataset, depths = show.terminal(), runner.dataset, sorted(runner.settings.depths)
    if show.all_diverged(console, tables, output, advice=SEARCHED):
        return
    outcomes, names = tables["outcomes"], [condition.name for condition in UNMODIFIED_ARMS]
    runs = condition_table(outcomes, dataset.size("test"))
    gaps = gap_table(gaps_closed(runs, UNMODIFIED_ARMS, depths), UNMODIFIED_ARMS)
    output.table("scores", gaps)
    output.table("effects", effect_table(runs, by="control"))
    show.save_figure(output, figures.learning_rates(search), search, EXPERIMENT)
    show.save_figure(output, figures.accuracy_by_depth(outcomes), outcomes, "accuracy_by_depth")
    show_search(console, search, rates)
    show_outcomes(console, outcomes, runs, names, diverged, len(dataset.classes), by="control")
    show_gaps_closed(console, gaps, rates)
    for depth in depths:
        show_effects(console, runs, depth, by="control")
    show.files(console, output)
    limits, classes = "One data set, one budget, each arm's best learning rate.", len(dataset.classes)
    decide_factorial(console, runs, depths[-1], title=dataset.title, limits=limits, classes=classes, by="control")
    remark = f"Each arm at its own best learning rate. {span(search, depths[-1])}{diverged_note(diverged)}"
    show.end(console, output, remark=remark)


def curves(search: pd.DataFrame, depth: int) -> pd.DataFrame:
    """Mean validation accuracy over the tuning seeds: a row for each arm, a column for each learning rate."""
    wide = select(search, depth_total=depth, quantity="accuracy").pivot_table(
        index="control", columns="learning_rate", values="value"
    )
    return wide.reindex([condition.name for condition in UNMODIFIED_ARMS if condition.name in wide.index])


def show_search(console: Console, search: pd.DataFrame, rates: Rates) -> None:
    """Depth x arm x learning rate: validation accuracy, the best in brackets."""
    rows = {
        (f"depth {depth}", str(arm)): {
            f"{rate:g}": "" if value != value else f"[{value:.3f}]" if rate == best else f"{value:.3f}"
            for best in [rates[str(arm), depth]]
            for rate, value in curve.items()
        }
        for depth in sorted(search["depth_total"].unique().tolist())
        for arm, curve in curves(search, depth).reindex(columns=sorted(search["learning_rate"].unique())).iterrows()
    }
    caption = f"[best], by the mean over n = {search['seed'].nunique()} tuning seeds, never reported; 0: diverged"
    show.table(console, rows, title="Validation accuracy by learning rate, tuning seeds", caption=caption)


def span(search: pd.DataFrame, depth: int) -> str:
    """The range of each arm's validation accuracy over the rates at which all were tried."""
    every = curves(search, depth).dropna(axis="columns")
    ranges = [f"{arm} {curve.min():.2f} to {curve.max():.2f}" for arm, curve in every.iterrows()]
    ends = f"{every.columns.min():g} to {every.columns.max():g}"
    return f"Over rates from {ends} validation accuracy ranges over {', '.join(ranges)}."


if __name__ == "__main__":
    run_script("experiments.learning_rates")
