"""Does the answer depend on the learning rate?

A rate that suits one arm ruins another: published errors of one and the same plain network of 110 layers range from
16 % to above 60 %. Here every arm is tried at learning rates half a decade apart, on seeds that are never reported; the
best is chosen by validation, beyond the first range where it lies at an end; and on other seeds each arm is trained at
its own best rate.

Writes tables, figures and the search to OUT/learning_rates, cells to OUT/answer, and repeats none of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

import figures
from experiments.engine.answer import AS_THEY_ARE
from experiments.engine.command import make_folder, run_script
from experiments.engine.condition_ending import SEARCHED, left_out, show_conditions, show_scores
from experiments.engine.condition_scores import condition_table, score_table, scores
from experiments.engine.conditions import Bench, ConditionSettings, Rates
from experiments.engine.data import load
from experiments.engine.effects import effect_table
from experiments.engine.ending import nothing_came_out, show_effects, show_files, terminal
from experiments.engine.grid import Cell, write_aside
from experiments.engine.rates import sentence, show_search
from experiments.engine.training import Training

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
    bench = Bench(settings, load(settings.data))
    folder = make_folder(settings.out / EXPERIMENT)
    make_folder(folder / "figures")
    rates = bench.best_rates(AS_THEY_ARE, settings.depths, folder / "tuning")
    cells = bench.cells(AS_THEY_ARE, settings.depths, settings.seeds, rates)
    tables, diverged = bench.run(cells, AS_THEY_ARE, folder)
    finish(tables, diverged, rates, bench)


def finish(tables: dict[str, pd.DataFrame], diverged: Sequence[Cell], rates: Rates, bench: Bench) -> None:
    """Draw the figures, and print what came out."""
    console, folder, depths = terminal(), bench.settings.out / EXPERIMENT, sorted(bench.settings.depths)
    search = pd.read_csv(folder / "tuning" / "tuning.csv")
    if nothing_came_out(console, tables, folder, advice=SEARCHED):
        return
    outcomes, dataset = tables["outcomes"], bench.dataset
    cells = condition_table(outcomes, len(dataset.splits["test"][1]))
    found = scores(cells, AS_THEY_ARE, depths)
    write_aside(folder / "scores.csv", score_table(found, AS_THEY_ARE))
    write_aside(folder / "effects.csv", effect_table(cells))
    figures.save(figures.learning_rates(search), search, folder / "figures", EXPERIMENT)
    figures.save(figures.accuracy_by_depth(outcomes), outcomes, folder / "figures", "accuracy_by_depth")
    show_search(console, search, rates)
    show_conditions(console, outcomes, cells, AS_THEY_ARE, diverged, len(dataset.classes))
    show_scores(console, found, rates)
    for depth in depths:
        show_effects(console, cells, depth)
    show_files(console, folder)
    console.print(sentence(search, cells, rates, depth=depths[-1], title=dataset.title) + left_out(diverged))


if __name__ == "__main__":
    run_script("experiments.learning_rates")
