"""Do plain networks become worse with depth, on their training data too, and do shortcuts cure it?

Trains CIFAR ResNets (He et al. 2015) and their plain twins at growing depth, and measures training and test error over
time (their Fig. 1 and 6) and how strongly each layer responds in the end (their Fig. 7).

Writes tables, figures and every cell's run.json to OUT/degradation, and repeats no cell that is already there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd
from rich.console import Console
from torch import nn

import figures
from experiments.engine.cells import Tables, train_cell
from experiments.engine.command import make_folder, run_script
from experiments.engine.data import Batches, Dataset, load
from experiments.engine.depth_changes import change_table, changes, gaps, sentence
from experiments.engine.effects import flags, outcome_table
from experiments.engine.ending import nothing_came_out, show_files, show_outcomes, terminal
from experiments.engine.grid import Cell, run_grid, write_aside
from experiments.engine.settings import NetworkSettings, check_arms
from experiments.engine.training import Training, evaluate
from models import residual_blocks
from probes import layer_responses
from probes.tables import table

EXPERIMENT = "degradation"


@dataclass(frozen=True)
class Settings(NetworkSettings):
    """Every setting of the experiment."""

    depths: tuple[int, ...] = (8, 20, 32, 56)
    """Layers, each 6n + 2; the smallest is what the others are compared with."""
    arms: tuple[str, ...] = ("plain", "residual")
    """Any of residual, stop-gradient, gradient-only, plain, shortest-path."""

    def check(self) -> None:
        super().check()
        self.check_depths("--depths", *self.depths)
        check_arms(self.arms)


QUICK = Settings(depths=(8, 20), seeds=(0, 1), training=Training(epochs=3))


def main(settings: Settings) -> None:
    """Run the grid and report it."""
    settings.check()
    dataset = load(settings.data)
    folder = make_folder(settings.out / EXPERIMENT)
    make_folder(folder / "figures")
    cells = settings.cells(EXPERIMENT, dataset, arms=settings.arms, depths=settings.depths)
    run = partial(train_cell, dataset=dataset, training=settings.training, measure=measure)
    tables, diverged = run_grid(cells, run, folder, workers=settings.workers)
    finish(tables, diverged, dataset, settings, folder)


def measure(model: nn.Module, batches: Batches, epoch: int, last: bool) -> Tables:
    """Error on training and test images; in the end, how strongly each layer responds to (at most 512) test images."""
    if epoch == 0:  # before any step the errors are chance
        return {}
    rows = [
        {"split": split, "quantity": "error", "value": 1 - evaluate(model, batches, split)["accuracy"]}
        for split in ("train", "test")
    ]
    tables = {"errors": table(rows)}
    if last:
        images, _ = batches.get("test", slice(0, 512))
        tables["responses"] = layer_responses(model, images, layers=responding(model))
    return tables


def responding(model: nn.Module) -> Sequence[nn.Module]:
    """The layers whose responses count: the normalisations, or where there is none all layers but the classifier.

    A shortcut's own are left out: a projection is no layer of depth, and in a plain network nothing comes of it.
    """
    aside = {module for block in residual_blocks(model) for module in block.shortcut.modules()}
    layers = [module for module in model.modules() if module not in aside]
    norms = [layer for layer in layers if isinstance(layer, nn.BatchNorm2d)]
    return norms or [layer for layer in layers if isinstance(layer, nn.Conv2d | nn.Linear)][:-1]


def finish(
    tables: dict[str, pd.DataFrame], diverged: list[Cell], dataset: Dataset, settings: Settings, folder: Path
) -> None:
    """Draw the figures, and print what came out."""
    console = terminal()
    if nothing_came_out(console, tables, folder):
        return
    figures.save(figures.degradation(tables["errors"]), tables["errors"], folder / "figures", "degradation")
    responses = tables["responses"]
    figures.save(figures.layer_responses(responses), responses, folder / "figures", "layer_responses")
    found, apart = changes(tables["outcomes"]), gaps(tables["outcomes"])
    write_aside(folder / "changes.csv", change_table(found))
    write_aside(folder / "gaps.csv", change_table(apart))
    cells = outcome_table(tables["outcomes"], len(dataset.splits["test"][1]))
    marks = {depth: flags(cells, depth, len(dataset.classes)) for depth in settings.depths}
    show_outcomes(console, tables["outcomes"], settings.arms, diverged, marks)
    show_responses(console, responses)
    show_files(console, folder)
    console.print(sentence(found, apart, dataset.title))


def show_responses(console: Console, responses: pd.DataFrame) -> None:
    """Each network's typical layer: the median over layers of the standard deviation, as a range over seeds."""
    parts: list[str] = []
    for arm in responses["arm"].unique():
        for depth in sorted(responses["depth_total"].unique()):
            rows = responses[(responses["arm"] == arm) & (responses["depth_total"] == depth)]
            if len(rows):
                median = rows.groupby("seed")["value"].median()
                parts.append(f"{arm} {depth}: {median.min():.2f}-{median.max():.2f}")
    console.print(f"Response of the median layer (range over seeds): {'; '.join(parts)}\n")


if __name__ == "__main__":
    run_script("experiments.degradation")
