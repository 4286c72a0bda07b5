"""Is it the size of the gradient, its direction, its bias, or that early blocks do not learn?

A stop-gradient network computes what a residual network computes, and learns from the longest gradient path alone. That
gradient differs from the true one in each block's norm and in its direction. Here each is exchanged for the true one;
the true gradient is blurred by noise to the same cosine and norm; the early blocks are frozen; the way back is random
(Lillicrap et al. 2016, arXiv 1411.0247); and the optimiser is one that does not see the gradient's scale: Adam, and SGD
on signs. Each condition is trained at its own best learning rate, chosen by validation on other seeds.

Writes tables, figures and the search to OUT/magnitude_or_direction, cells to OUT/answer, and repeats none of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

import figures
from experiments.engine.answer import AS_THEY_ARE, MAGNITUDE, PLAIN, RESIDUAL, SCALE_FREE, STOP
from experiments.engine.command import make_folder, run_script
from experiments.engine.condition_ending import (
    SEARCHED,
    left_out,
    show_alignment,
    show_conditions,
    show_differences,
    show_scores,
)
from experiments.engine.condition_scores import choose, condition_table, score_table, scores
from experiments.engine.conditions import Bench, Condition, ConditionSettings, Rates
from experiments.engine.controls import NO_CONTROL
from experiments.engine.data import load
from experiments.engine.ending import nothing_came_out, show_files, terminal
from experiments.engine.explanation import FROZEN, NOISE, TRUE_DIRECTION, TRUE_NORMS, sentence
from experiments.engine.grid import Cell, write_aside
from experiments.engine.training import Training

EXPERIMENT = "magnitude_or_direction"
CONDITIONS = (*AS_THEY_ARE, *MAGNITUDE, *SCALE_FREE)
GROUPS = {
    "as they are": [condition.name for condition in AS_THEY_ARE],
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
        return choose(self.conditions, CONDITIONS, always=(PLAIN, RESIDUAL, STOP))


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
    if nothing_came_out(console, tables, folder, advice=SEARCHED):
        return
    outcomes = tables["outcomes"]
    cells = condition_table(outcomes, len(dataset.splits["test"][1]))
    found = scores(cells, conditions, depths)
    write_aside(folder / "scores.csv", of_all := score_table(found, conditions))
    figures.save(figures.conditions(outcomes, groups=GROUPS), outcomes, folder / "figures", EXPERIMENT)
    figures.save(figures.gap_closed(of_all, groups=GROUPS), of_all, folder / "figures", "recovery_scores")
    show_conditions(console, outcomes, cells, conditions, diverged, len(dataset.classes))
    if "alignment" in tables:
        show_alignment(console, tables["alignment"], conditions, depths[-1])
    show_scores(console, found, rates)
    show_differences(console, cells, depths, subtractions(conditions))
    show_files(console, folder)
    console.print(sentence(cells, found, depth=depths[-1], title=dataset.title) + left_out(diverged))


def subtractions(conditions: Sequence[Condition]) -> dict[str, dict[str, str]]:
    """What each condition is compared with: stop-gradient under the same optimiser, and early blocks that never
    learn."""
    found: dict[str, dict[str, str]] = {"minus stop-gradient": {}, "minus frozen": {}}
    for condition in conditions:
        if stop := [
            c for c in conditions if (c.arm, c.control, c.optimiser) == (STOP, NO_CONTROL, condition.optimiser)
        ]:
            found["minus stop-gradient"][condition.name] = stop[0].name
        if condition.optimiser == "sgd" and FROZEN in {c.name for c in conditions}:
            found["minus frozen"][condition.name] = FROZEN
    return {title: pairs for title, pairs in found.items() if pairs}


if __name__ == "__main__":
    run_script("experiments.magnitude_or_direction")
