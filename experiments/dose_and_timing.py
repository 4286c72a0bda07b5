"""How much of the shortcut's gradient is needed, when, and where?

Trains residual networks whose shortcuts carry the value forward in full and the gradient back in part: with a weight
between that of stop-gradient, 0, and that of residual, 1; all or nothing, by a coin for each block and step (h-detach:
Arpit et al. 2018, arXiv 1810.03023), biased, or unbiased by what spared shortcuts pass more; nothing until an epoch, or
from it on; nothing in one stage, or in every k-th block. Each condition is trained at its own best learning rate,
chosen by validation on other seeds.

Writes tables, figures and the search to OUT/dose_and_timing, cells to OUT/answer, and repeats none of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

import figures
from experiments.engine.answer import COINS, DOSES, PLACES, PLAIN, RESIDUAL, STOP, timing
from experiments.engine.command import make_folder, run_script
from experiments.engine.condition_ending import SEARCHED, left_out, show_conditions, show_differences, show_scores
from experiments.engine.condition_scores import choose, condition_table, score_table, scores
from experiments.engine.conditions import Bench, Condition, ConditionSettings, Rates
from experiments.engine.data import load
from experiments.engine.dose_rules import against_ordinary, pairs_of_coins, pairs_of_timing, sentence
from experiments.engine.ending import nothing_came_out, show_files, terminal
from experiments.engine.grid import Cell, write_aside
from experiments.engine.recovery_ending import show_changes
from experiments.engine.training import Training

EXPERIMENT = "dose_and_timing"
ARMS = tuple(Condition(arm, arm) for arm in (RESIDUAL, STOP, PLAIN))


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
        every = (*ARMS, *DOSES, *COINS, *timing(self.training.epochs), *PLACES)
        return choose(self.conditions, every, always=(STOP,))


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
    bench = Bench(settings, load(settings.data))
    folder = make_folder(settings.out / EXPERIMENT)
    make_folder(folder / "figures")
    conditions = settings.chosen()
    rates = bench.best_rates(conditions, settings.depths, folder / "tuning")
    cells = bench.cells(conditions, settings.depths, settings.seeds, rates)
    tables, diverged = bench.run(cells, conditions, folder)
    finish(tables, diverged, conditions, rates, bench, folder)


def finish(
    tables: dict[str, pd.DataFrame],
    diverged: Sequence[Cell],
    conditions: Sequence[Condition],
    rates: Rates,
    bench: Bench,
    folder: Path,
) -> None:
    """Draw the figures, and print what came out."""
    console, dataset, depths = terminal(), bench.dataset, sorted(bench.settings.depths)
    epochs = bench.settings.training.epochs
    if nothing_came_out(console, tables, folder, advice=SEARCHED):
        return
    outcomes = tables["outcomes"]
    cells = condition_table(outcomes, len(dataset.splits["test"][1]))
    found = scores(cells, conditions, depths)
    write_aside(folder / "scores.csv", of_all := score_table(found, conditions))
    for depth in sorted(outcomes["depth_total"].unique()):
        of_depth = outcomes[outcomes["depth_total"] == depth]
        figures.save(figures.dose_and_timing(of_depth), of_depth, folder / "figures", f"{EXPERIMENT}_{depth}")
    figures.save(figures.gap_closed(of_all), of_all, folder / "figures", "recovery_scores")
    show_conditions(console, outcomes, cells, conditions, diverged, len(dataset.classes))
    show_scores(console, found, rates)
    for depth in depths:
        comparisons = against_ordinary(cells, conditions, depth)
        show_changes(console, list(comparisons.values()), where=f" at depth {depth}")
    show_differences(console, cells, depths, differences(conditions, epochs))
    show_files(console, folder)
    verdicts = against_ordinary(cells, conditions, depths[-1])
    said = sentence(cells, verdicts, conditions, depth=depths[-1], epochs=epochs, title=dataset.title)
    console.print(said + left_out(diverged))


def differences(conditions: Sequence[Condition], epochs: int) -> dict[str, dict[str, str]]:
    """Cuts of one length, late minus early; coins of one chance, unbiased minus biased."""
    late = {late: early for early, late in pairs_of_timing(conditions, epochs).values()}
    unbiased = {unbiased: biased for biased, unbiased in pairs_of_coins(conditions).values()}
    return {"minus the early cut": late, "minus the biased coin": unbiased}


if __name__ == "__main__":
    run_script("experiments.dose_and_timing")
