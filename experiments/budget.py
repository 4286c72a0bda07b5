"""Which arms fail to fit, which fail to generalise, if they are trained for longer?

Trains every arm for 1, 3 and 10 times the epochs (He et al. 2015 tried 3 times), with the schedule stretched, at the
learning rate that is best at once the epochs, chosen by validation on other seeds. It tells the steps to given training
losses, censored where a run does not get there, and final training and test accuracy.

Writes tables, figures and the search to OUT/budget, cells to OUT/answer, and repeats none of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

import figures
from experiments.engine.answer import AS_THEY_ARE
from experiments.engine.budgets import outcomes_of, sentence, show_budgets, show_steps_to, verdict_table
from experiments.engine.command import BadInput, make_folder, run_script
from experiments.engine.condition_ending import SEARCHED, left_out
from experiments.engine.conditions import Bench, ConditionSettings
from experiments.engine.data import load
from experiments.engine.ending import nothing_came_out, show_files, terminal
from experiments.engine.grid import Cell, write_aside
from experiments.engine.settings import check_each_once
from experiments.engine.speed import steps_to_loss
from experiments.engine.steps_recovery import show_steps_recovery, steps_recovery_table
from experiments.engine.training import Training

EXPERIMENT = "budget"


@dataclass(frozen=True)
class Settings(ConditionSettings):
    """Every setting of the experiment."""

    depths: tuple[int, ...] = (56,)
    """Layers, each 6n + 2."""
    budgets: tuple[int, ...] = (1, 3, 10)
    """How many times the epochs each arm is trained."""
    targets: tuple[float, ...] = (1.0, 0.3, 0.1)
    """Training losses, mean of an epoch's steps, to which steps are counted."""

    def check(self) -> None:
        super().check()
        check_each_once("--budgets", self.budgets)
        check_each_once("--targets", self.targets)
        if min(self.budgets) < 1:
            raise BadInput(f"--budgets {min(self.budgets)}: give whole numbers from 1")
        if min(self.targets) <= 0:
            raise BadInput(f"--targets {min(self.targets):g}: give losses above 0")


QUICK = Settings(depths=(8,), seeds=(0, 1), tuning_seeds=(100,), budgets=(1, 3), training=Training(epochs=2))


def main(settings: Settings) -> None:
    """Run the grid and report it."""
    settings.check()
    bench = Bench(settings, load(settings.data))
    folder = make_folder(settings.out / EXPERIMENT)
    make_folder(folder / "figures")
    rates = bench.best_rates(AS_THEY_ARE, settings.depths, folder / "tuning")
    cells = [
        cell
        for budget in settings.budgets
        for cell in bench.cells(AS_THEY_ARE, settings.depths, settings.seeds, rates, budget)
    ]
    tables, diverged = bench.run(cells, AS_THEY_ARE, folder)
    finish(tables, diverged, bench, settings)


def finish(tables: dict[str, pd.DataFrame], diverged: Sequence[Cell], bench: Bench, settings: Settings) -> None:
    """Draw the figures, and print what came out."""
    console, folder = terminal(), settings.out / EXPERIMENT
    if nothing_came_out(console, tables, folder, advice=SEARCHED):
        return
    window = settings.training.steps_an_epoch(len(bench.dataset.splits["train"][1]))
    steps = steps_to_loss(tables["losses"], settings.targets, window=window)
    ends = outcomes_of(tables["outcomes"])
    write_aside(folder / "steps.csv", steps)
    write_aside(folder / "steps_scores.csv", steps_recovery_table(steps))
    write_aside(folder / "verdicts.csv", verdict_table(ends))
    figures.save(figures.budget(tables["outcomes"]), tables["outcomes"], folder / "figures", EXPERIMENT)
    show_budgets(console, ends)
    show_steps_to(console, steps, len(settings.seeds))
    show_steps_recovery(console, steps)
    show_files(console, folder)
    console.print(sentence(ends, depth=max(settings.depths), title=bench.dataset.title) + left_out(diverged))


if __name__ == "__main__":
    run_script("experiments.budget")
