"""Does a network use its shallower blocks more than its deeper ones, with shortcuts and without?

Trains CIFAR ResNets (He et al. 2015) in five arms and asks of every block: how far its weights moved, which share of
the gradient it gets, what its reset to the first weights costs (Zhang, Bengio and Singer 2019), what its deletion
costs, how well the classifier reads what it gives, and how much of the class score goes through its branch.

Each answer becomes one number, its centre of mass over depth: 0 all in the first block, 1 all in the last, 0.5 even.

Writes tables, figures and every cell's run.json to OUT/layer_use, and repeats no cell that is already there.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import nn

import figures
from experiments.engine.block_use import attributions, errors, gradient_shares, movements, read_outs
from experiments.engine.cells import Tables, make_network, train_cell
from experiments.engine.command import BadInput, make_folder, run_script
from experiments.engine.data import Batches, Dataset, load
from experiments.engine.depth_centres import DEFINITION, MEASURES, centres, estimate_table, estimates, sentence
from experiments.engine.effects import Estimate, flags, outcome_table
from experiments.engine.ending import clear_figures, show_estimate, show_files, show_outcomes, terminal
from experiments.engine.grid import Cell, Outcome, run_grid, write_aside
from experiments.engine.saliency import chosen_images, saliency
from experiments.engine.settings import NetworkSettings, check_arms
from experiments.engine.training import Training
from models import ARMS
from probes.tables import table

EXPERIMENT = "layer_use"


@dataclass(frozen=True)
class Settings(NetworkSettings):
    """Every setting of the experiment."""

    depth: int = 56
    """Layers, 6n + 2."""
    arms: tuple[str, ...] = tuple(ARMS)
    """Any of residual, stop-gradient, gradient-only, plain, shortest-path."""
    attributed: int = 64
    """Test images whose class score is shared out among shortcuts and branches."""
    steps: int = 16
    """Steps of that attribution's integral; its error is reported."""

    def check(self) -> None:
        super().check()
        self.check_depths("--depth", self.depth)
        check_arms(self.arms)
        if self.attributed < 1 or self.steps < 1:
            raise BadInput(f"--attributed {self.attributed}, --steps {self.steps}: give at least 1 of each")


QUICK = Settings(depth=20, seeds=(0, 1), attributed=16, training=Training(epochs=3))


def main(settings: Settings) -> None:
    """Run the grid and report it."""
    settings.check()
    dataset = load(settings.data)
    folder = make_folder(settings.out / EXPERIMENT)
    make_folder(folder / "figures")
    recipe = {**settings.recipe(dataset), "attributed": settings.attributed, "steps": settings.steps}
    cells = [
        Cell(EXPERIMENT, arm, settings.depth, seed, recipe, settings.about(dataset))
        for arm in settings.arms
        for seed in settings.seeds
    ]
    run = partial(run_cell, dataset=dataset, settings=settings)
    tables, diverged = run_grid(cells, run, folder, workers=settings.workers)
    clear_figures(folder)
    draw_saliency([cell for cell in cells if cell not in diverged], dataset, folder)
    finish(tables, diverged, dataset, settings, folder)


def run_cell(cell: Cell, dataset: Dataset, settings: Settings) -> Outcome:
    """Train a network, and ask of every block how much it is used."""
    first, arrays = make_network(cell, dataset), dict[str, np.ndarray]()

    def measure(model: nn.Module, batches: Batches, epoch: int, last: bool) -> Tables:
        if not last:
            return {"blocks": table(gradient_shares(model, batches))} if epoch == 0 else {}
        rows = [*movements(model, first), *gradient_shares(model, batches)]
        rows += [*errors(model, first, batches), *read_outs(model, batches)]
        shared = attributions(model, batches, images=settings.attributed, steps=settings.steps)
        arrays.update(saliency(model, batches, chosen_images(dataset)))
        return {"blocks": pd.concat([table(rows), shared], ignore_index=True)}

    outcome = train_cell(cell, dataset, settings.training, measure=measure)
    outcome.arrays = arrays
    return outcome


def draw_saliency(cells: list[Cell], dataset: Dataset, folder: Path) -> None:
    """The same test images in all arms of the first seed that is there."""
    of_seed = [cell for cell in cells if cell.seed == cells[0].seed]
    if not of_seed:
        return
    stored = [np.load(folder / "cells" / cell.name / "arrays.npz") for cell in of_seed]
    images, labels = (np.asarray(array[chosen_images(dataset)]) for array in dataset.splits["test"])
    classes = np.array(dataset.classes)
    arrays = {
        "images": images.transpose(0, 2, 3, 1),
        "labels": classes[labels],
        "arms": np.array([cell.arm for cell in of_seed]),
        "maps": np.stack([each["maps"] for each in stored]),
        "predictions": np.stack([classes[each["predictions"]] for each in stored]),
        "scores": np.stack([each["scores"] for each in stored]),
        "delta": np.stack([each["delta"] for each in stored]),
    }
    figures.save(figures.saliency_maps(arrays), arrays, folder / "figures", "saliency_maps")


def finish(
    tables: dict[str, pd.DataFrame], diverged: list[Cell], dataset: Dataset, settings: Settings, folder: Path
) -> None:
    """Draw the figures, and print what came out."""
    console = terminal()
    if "outcomes" not in tables:
        show_files(console, folder)
        console.print("Every cell diverged: there is nothing to measure. A lower --learning-rate may help.")
        return
    blocks, outcomes, classes = tables["blocks"], tables["outcomes"], len(dataset.classes)
    ended = {(cell.arm, cell.seed) for cell in diverged}
    lasting = [pair not in ended for pair in zip(blocks["arm"], blocks["seed"], strict=True)]
    by_seed = centres(blocks[lasting], classes=classes)
    found = estimates(by_seed)
    both = pd.concat([by_seed, estimate_table(found, settings.depth)], ignore_index=True)
    write_aside(folder / "centres.csv", both)
    figures.save(figures.layer_use(blocks), blocks, folder / "figures", "layer_use")
    figures.save(figures.depth_centres(both), both, folder / "figures", "depth_centres")
    cells = outcome_table(outcomes, len(dataset.splits["test"][1]))
    marks = {settings.depth: flags(cells, settings.depth, classes)}
    show_outcomes(console, outcomes, settings.arms, diverged, marks)
    show_centres(console, found, settings.arms)
    show_completeness(console, blocks)
    show_files(console, folder)
    arms = [arm for arm in ("residual", "stop-gradient") if arm in settings.arms] or list(settings.arms)
    console.print(sentence(found, arms, title=dataset.title, depth=settings.depth))


def show_centres(console: Console, found: dict[tuple[str, str], Estimate], arms: tuple[str, ...]) -> None:
    """Measure x arm: the centre of mass with its interval."""
    shown = Table(title="Centre of mass over depth: mean (n) [95 % t interval]", box=SIMPLE_HEAD, pad_edge=False)
    for column in ("", *arms):
        shown.add_column(column)
    for measure in MEASURES:
        cells = []
        for arm in arms:
            each = found.get((arm, measure.name))
            mean, *interval = show_estimate(each, sign=False).split(" ", 1) if each else ("-",)
            cells.append(f"{mean} ({len(each.values)})\n{''.join(interval)}" if each else mean)
        shown.add_row(measure.name, *cells)
    console.print(shown)
    console.print(f"{DEFINITION}.\nIntervals are cut at 0 and 1, and not corrected for their number\n")


def show_completeness(console: Console, blocks: pd.DataFrame) -> None:
    """By how much the attributions miss the score that they share out."""
    if "score" not in set(blocks["quantity"]):
        return
    wide = blocks.pivot_table(index=["arm", "seed", "depth"], columns="quantity", values="value")
    missed = (100 * wide["delta"] / wide["score"].abs()).dropna().groupby(level="arm", sort=False)
    parts = [f"{arm} {each.mean():.2g} % (at worst {each.max():.2g} %)" for arm, each in missed]
    console.print(f"The attribution misses the class score, on the mean over junctions, by: {', '.join(parts)}\n")


if __name__ == "__main__":
    run_script("experiments.layer_use")
