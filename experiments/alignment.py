"""Does an arm's gradient point where the true one does?

An arm that cuts a gradient, or adds one, learns from what need not be the gradient of any loss. While it is trained,
its gradient is compared with the true one of the same weights: block by block and in all, on one fixed batch, before
the first step and after every epoch; and in each step, whether the weights move uphill on the true loss of that step's
batch, to first order. The arms that learn from the true gradient of the same function (residual, plain) are trained
beside them. In the end every network goes on for some epochs, at the same learning rate and with a fresh schedule: with
the true gradient, and with the arm's. Each arm has its own best learning rate, chosen by validation on other seeds.

Writes tables, figures and every cell's run.json to OUT/alignment, the search's cells to OUT/answer, and repeats none of
them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import pandas as pd

import figures
from experiments.engine.alignment_effects import effect_table, effects_of, over_epochs, sentence
from experiments.engine.alignment_ending import show_continued, show_effects
from experiments.engine.answer import AS_THEY_ARE
from experiments.engine.command import BadInput, make_folder, run_script
from experiments.engine.conditions import Bench, ConditionSettings, Rates
from experiments.engine.continuation import true_arm, watch_and_go_on
from experiments.engine.data import load
from experiments.engine.ending import clear_figures, show_files, terminal
from experiments.engine.grid import Cell, run_grid, write_aside
from experiments.engine.settings import check_arms
from experiments.engine.training import Training
from models import ARMS

EXPERIMENT = "alignment"


@dataclass(frozen=True)
class Settings(ConditionSettings):
    """Every setting of the experiment."""

    depths: tuple[int, ...] = (20, 56)
    """Layers, each 6n + 2."""
    arms: tuple[str, ...] = ("stop-gradient", "gradient-only", "shortest-path")
    """Some of these three; beside them, those that learn from the true gradient of the same function."""
    further: int = 3
    """Epochs that follow from where each network ends."""

    def check(self) -> None:
        super().check()
        check_arms(self.arms)
        for arm in self.arms:
            if true_arm(arm) == arm:
                others = [other for other in ARMS if true_arm(other) != other]
                raise BadInput(f"--arms {arm}: its gradient is the true one; give some of {', '.join(others)}")
        if self.further < 1:
            raise BadInput(f"--further {self.further}: give at least 1 epoch")

    def trained(self) -> list[str]:
        """The arms, and those of the same functions that learn from the true gradient."""
        wanted = {*self.arms, *map(true_arm, self.arms)}
        return [arm for arm in ARMS if arm in wanted]

    def then(self, arm: str) -> list[str]:
        """The arms in which a network goes on: that of the true gradient, and those that are compared with it."""
        true = true_arm(arm)
        return [true, *(other for other in self.arms if true_arm(other) == true and arm in (true, other))]


QUICK = Settings(
    depths=(8,),
    arms=("stop-gradient", "gradient-only"),
    seeds=(0, 1),
    tuning_seeds=(100,),
    further=1,
    training=Training(epochs=2),
)


def main(settings: Settings) -> None:
    """Run the grid and report it."""
    settings.check()
    bench = Bench(settings, load(settings.data))
    folder = make_folder(settings.out / EXPERIMENT)
    make_folder(folder / "figures")
    conditions = [condition for condition in AS_THEY_ARE if condition.arm in settings.trained()]
    rates = bench.best_rates(conditions, settings.depths, folder / "tuning")
    run = partial(watch_and_go_on, dataset=bench.dataset, training=settings.training)
    tables, diverged = run_grid(make_cells(bench, settings, rates), run, folder, workers=settings.workers)
    finish(tables, diverged, bench, settings)


def make_cells(bench: Bench, settings: Settings, rates: Rates) -> list[Cell]:
    """A cell for each depth, arm and seed: another one than a condition's, since it is watched and goes on."""
    return [
        replace(
            cell,
            experiment=EXPERIMENT,
            settings=cell.settings | {"further": settings.further, "then": settings.then(condition.arm)},
        )
        for depth in settings.depths
        for condition in AS_THEY_ARE
        if condition.arm in settings.trained()
        for seed in settings.seeds
        for cell in (bench.cell(condition, depth, seed, rates[condition.name, depth]),)
    ]


def finish(tables: dict[str, pd.DataFrame], diverged: Sequence[Cell], bench: Bench, settings: Settings) -> None:
    """Draw the figures, and print what came out."""
    console, folder, drawn = terminal(), settings.out / EXPERIMENT, tables["alignment"]
    clear_figures(folder)
    own = drawn[drawn["arm"].isin(settings.arms)]
    figures.save(figures.alignment(own), own, folder / "figures", "alignment")
    course = over_epochs(own, tables["steps"])
    figures.save(figures.alignment_over_epochs(course), course, folder / "figures", "alignment_over_epochs")
    found = effects_of(tables, settings.arms, sorted(settings.depths))
    write_aside(folder / "effects.csv", effect_table(found))
    if "continued" in tables:
        show_continued(console, tables["continued"], settings.trained())
    show_effects(console, found, diverged)
    show_files(console, folder)
    console.print(sentence(found, settings.arms, max(settings.depths), bench.dataset.title))


if __name__ == "__main__":
    run_script("experiments.alignment")
