"""Do shortcuts help by carrying the signal forward, or by carrying the gradient back?

Trains CIFAR ResNets (He et al. 2015) in five arms from the same weights, on the same batches:

residual: the shortcut carries both. stop-gradient: the signal, no gradient. gradient-only: the gradient, no signal.
plain: neither. shortest-path: residual, but no gradient enters a branch's input.

Writes tables, figures and every cell's run.json to OUT/stopgrad_shortcut, and repeats no cell that is already there.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd
import torch.nn.functional as F
from torch import nn

import figures
from experiments.engine.cells import Tables, probing, train_cell
from experiments.engine.command import make_folder, run_script
from experiments.engine.data import Batches, Dataset, load
from experiments.engine.effects import effect_table, flags, outcome_table
from experiments.engine.ending import clear_figures, sentence, show_effects, show_files, show_outcomes, terminal
from experiments.engine.grid import Cell, run_grid, write_aside
from experiments.engine.settings import NetworkSettings, check_arms
from experiments.engine.training import Training
from models import ARMS
from probes import gradient_norms, path_contributions, record, residual_magnitudes

EXPERIMENT = "stopgrad_shortcut"


@dataclass(frozen=True)
class Settings(NetworkSettings):
    """Every setting of the experiment."""

    depths: tuple[int, ...] = (20, 56)
    """Layers, each 6n + 2."""
    arms: tuple[str, ...] = tuple(ARMS)
    """Any of residual, stop-gradient, gradient-only, plain, shortest-path; effects need the first four."""


QUICK = Settings(depths=(8, 20), seeds=(0, 1), training=Training(epochs=3))


def main(settings: Settings) -> None:
    """Run the grid and report it."""
    settings.check()
    settings.check_depths("--depths", *settings.depths)
    check_arms(settings.arms)
    dataset = load(settings.data)
    folder = make_folder(settings.out / EXPERIMENT)
    make_folder(folder / "figures")
    cells = settings.cells(EXPERIMENT, dataset, arms=settings.arms, depths=settings.depths)
    run = partial(train_cell, dataset=dataset, training=settings.training, measure=measure)
    tables, diverged = run_grid(cells, run, folder, workers=settings.workers)
    finish(tables, diverged, dataset, settings, folder)


def measure(model: nn.Module, batches: Batches, epoch: int, last: bool) -> Tables:
    """The probes' tables on one fixed batch of training images; path lengths at the first and the last."""
    copied, images, labels = probing(model, batches)
    paths = epoch == 0 or last
    with record(copied) as recording:
        F.cross_entropy(copied(images), labels).backward(retain_graph=paths)
    tables = {"gradients": gradient_norms(recording), "magnitudes": residual_magnitudes(recording)}
    return tables | ({"paths": path_contributions(recording)} if paths else {})


def finish(
    tables: dict[str, pd.DataFrame], diverged: list[Cell], dataset: Dataset, settings: Settings, folder: Path
) -> None:
    """Draw the figures, and print what came out."""
    console = terminal()
    test_size, classes = len(dataset.splits["test"][1]), len(dataset.classes)
    clear_figures(folder)
    for draw, name in (
        (figures.learning_curves, "curves"),
        (figures.accuracy_by_depth, "outcomes"),
        (figures.interaction, "outcomes"),
        (figures.gradient_norms, "gradients"),
        (figures.gradient_split, "gradients"),
        (figures.path_lengths, "paths"),
        (figures.residual_magnitudes, "magnitudes"),
    ):
        if name in tables:
            figures.save(draw(tables[name]), tables[name], folder / "figures", draw.__name__)
    if "outcomes" not in tables:
        show_files(console, folder)
        console.print("Every cell diverged: there are no outcomes. A lower --learning-rate may help.")
        return
    cells = outcome_table(tables["outcomes"], test_size)
    write_aside(folder / "effects.csv", effect_table(cells))
    show_outcomes(
        console,
        tables["outcomes"],
        settings.arms,
        diverged,
        {depth: flags(cells, depth, classes) for depth in settings.depths},
    )
    for depth in sorted(settings.depths):
        show_effects(console, cells, depth)
    show_files(console, folder)
    for depth in sorted(settings.depths):
        console.print(sentence(cells, depth, title=dataset.title, classes=classes))


if __name__ == "__main__":
    run_script("experiments.stopgrad_shortcut")
