"""Do shortcuts help by carrying the signal forward, or by carrying the gradient back?

Trains CIFAR ResNets (He et al. 2015) in five arms from the same weights, on the same batches:

residual: the shortcut carries both. stop-gradient: the signal, no gradient. gradient-only: the gradient, no signal.
plain: neither. shortest-path: residual, but no gradient enters a branch's input.

Writes tables, figures and every run's run.json to OUT/stopgrad_shortcut; finished runs are not repeated.
"""

from dataclasses import dataclass
from functools import partial

import pandas as pd
import torch.nn.functional as F
from torch import nn

import figures
from experiments.engine.reporting import show
from experiments.engine.reporting.factorial import decide_factorial, show_effects, show_outcomes
from experiments.engine.running.cli import run_script
from experiments.engine.running.grid import run_grid
from experiments.engine.running.output import Output
from experiments.engine.running.run import Run, Tables
from experiments.engine.statistics.factorial import effect_table, outcome_table
from experiments.engine.training.data import Batches, Dataset, load
from experiments.engine.training.optimisation import Training
from experiments.engine.training.settings import NetworkSettings, check_arms
from experiments.engine.training.train_run import probing_batch, train_run
from models import ARMS
from probes import gradient_norms, path_contributions, record, residual_magnitudes

EXPERIMENT = "stopgrad_shortcut"
LIMITS = "One data set, one learning rate, one budget."


@dataclass(frozen=True)
class Settings(NetworkSettings):
    """Every setting of the experiment."""

    depths: tuple[int, ...] = (20, 56)
    """Layers, each 6n + 2."""
    arms: tuple[str, ...] = tuple(ARMS)
    """Arms by name; effects need residual, stop-gradient, gradient-only and plain."""


QUICK = Settings(depths=(8, 20), seeds=(0, 1), training=Training(epochs=3))


def main(settings: Settings) -> None:
    """Run the grid and report it."""
    settings.check()
    settings.check_depths("--depths", *settings.depths)
    check_arms(settings.arms)
    dataset = load(settings.data)
    output = settings.output(EXPERIMENT)
    outputs = ("gradients", "magnitudes", "paths")
    runs = settings.runs(EXPERIMENT, dataset, arms=settings.arms, depths=settings.depths, outputs=outputs)
    task = partial(train_run, dataset=dataset, measure=measure)
    tables, diverged = run_grid(runs, task, output, execution=settings.execution)
    report(tables, diverged, dataset, settings, output)


def measure(model: nn.Module, batches: Batches, epoch: int, last: bool) -> Tables:
    """The probes' tables on one fixed batch of training images; path lengths before training and at its end."""
    copied, images, labels = probing_batch(model, batches)
    paths = epoch == 0 or last
    with record(copied) as recording:
        F.cross_entropy(copied(images), labels).backward(retain_graph=paths)
    tables = {"gradients": gradient_norms(recording), "magnitudes": residual_magnitudes(recording)}
    return tables | ({"paths": path_contributions(recording)} if paths else {})


def report(tables: Tables, diverged: list[Run], dataset: Dataset, settings: Settings, output: Output) -> None:
    """Write the effects, draw the figures, and print the results."""
    console, classes = show.terminal(), len(dataset.classes)
    finished = "outcomes" in tables
    runs = outcome_table(tables["outcomes"], dataset.size("test")) if finished else pd.DataFrame()
    if finished:
        output.table("effects", effect_table(runs))
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
            show.save_figure(output, draw(tables[name]), tables[name], draw.__name__)
    if show.all_diverged(console, tables, output):
        return
    show_outcomes(console, tables["outcomes"], runs, settings.arms, diverged, classes)
    for depth in sorted(settings.depths):
        show_effects(console, runs, depth)
    show.files(console, output)
    for depth in sorted(settings.depths):
        decide_factorial(console, runs, depth, title=dataset.title, limits=LIMITS, classes=classes)


if __name__ == "__main__":
    run_script("experiments.stopgrad_shortcut")
