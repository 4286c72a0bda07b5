"""What does a trained network lose when blocks are deleted, permuted or swapped: an ensemble's little, or all?

Trains CIFAR ResNets (or takes --weights) and damages them, as Veit et al. (2016) did: one block deleted; several, at
random; pairs of blocks of one shape permuted at random; neighbours swapped. To delete a block is to leave its shortcut
alone; in the arms whose shortcut carries no signal (plain, gradient-only) the whole block is skipped. Every lesion is
measured twice: with the BatchNorm statistics of the whole network, and with statistics estimated anew.

Writes tables, figures and every cell's run.json to OUT/lesions, and repeats no cell that is already there.
"""

from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path

import pandas as pd
import torch
from torch import nn

import figures
from experiments.engine.cells import Tables, make_network, train_cell
from experiments.engine.command import BadInput, make_folder, run_script
from experiments.engine.damage import damaged, show_lesions
from experiments.engine.data import Batches, Dataset, load
from experiments.engine.ending import clear_figures, show_files, terminal
from experiments.engine.foreign import load_weights
from experiments.engine.grid import Cell, Outcome, run_grid
from experiments.engine.settings import NetworkSettings, check_arms
from experiments.engine.training import Training
from probes.tables import table

EXPERIMENT = "lesions"


@dataclass(frozen=True)
class Settings(NetworkSettings):
    """Every setting of the experiment."""

    depth: int = 56
    """Layers, 6n + 2."""
    arms: tuple[str, ...] = ("residual", "stop-gradient", "plain")
    """Any of residual, stop-gradient, gradient-only, plain, shortest-path."""
    counts: tuple[int, ...] = (1, 2, 4, 8, 16)
    """How many blocks are deleted at once, and how many pairs change places."""
    draws: int = 5
    """Random choices of each count in each network; the same for all arms of a seed."""
    weights: Path | None = None
    """Instead of training: a public CIFAR ResNet of that depth and width, as the residual arm (see --normalise)."""


QUICK = Settings(depth=20, seeds=(0, 1), counts=(1, 2, 4), draws=2, training=Training(epochs=3))


def main(settings: Settings) -> None:
    """Run the grid and report it."""
    settings.check()
    settings.check_depths("--depth", settings.depth)
    check_arms(settings.arms)
    if settings.draws < 1 or not settings.counts or min(settings.counts) < 1:
        raise BadInput(f"--draws {settings.draws}, --counts {settings.counts}: give at least 1 of each")
    dataset = load(settings.data)
    folder = make_folder(settings.out / EXPERIMENT)
    recipe = {**settings.recipe(dataset), "counts": settings.counts, "draws": settings.draws}
    arms, seeds = settings.arms, settings.seeds
    if settings.weights is not None:
        arms, seeds = ("residual",), (0,)
        recipe["weights"] = _fingerprint(settings.weights)
    cells = [
        Cell(EXPERIMENT, arm, settings.depth, seed, recipe, settings.about(dataset)) for arm in arms for seed in seeds
    ]
    run = partial(run_cell, dataset=dataset, settings=settings)
    tables, _ = run_grid(cells, run, folder, workers=settings.workers)
    finish(tables, len(dataset.splits["test"][1]), folder)


def run_cell(cell: Cell, dataset: Dataset, settings: Settings) -> Outcome:
    """Train a network, or load one, and damage it in every way."""

    def measure(model: nn.Module, batches: Batches, epoch: int, last: bool) -> Tables:
        lesions = damaged(model, batches, counts=settings.counts, draws=settings.draws, seed=cell.seed)
        return {"lesions": table(lesions)} if last else {}

    if settings.weights is None:
        return train_cell(cell, dataset, settings.training, measure=measure)
    model = make_network(cell, dataset)
    load_weights(model, settings.weights)
    batches = Batches(dataset, torch.device(settings.device))
    return Outcome(measure(model, batches, 0, True))


def finish(tables: dict[str, pd.DataFrame], images: int, folder: Path) -> None:
    """Draw the figures, and print what came out."""
    console = terminal()
    clear_figures(folder)
    if "lesions" not in tables:
        console.print("Every cell diverged: there is nothing to damage. A lower --learning-rate may help.")
        return
    found = tables["lesions"]
    for name, lesion, draw in (
        ("lesions_delete", "delete", figures.lesions_by_block),
        ("lesions_swap", "swap", figures.lesions_by_block),
        ("lesions_delete_at_random", "delete at random", figures.lesions_by_count),
        ("lesions_permute", "permute", figures.lesions_by_count),
    ):
        rows = found[found["lesion"].isin(["none", lesion])]
        if lesion in set(rows["lesion"]):
            figures.save(draw(rows), rows, folder / "figures", name)
    show_lesions(console, found, images)
    show_files(console, folder)


def _fingerprint(file: Path) -> str:
    try:
        return sha256(file.read_bytes()).hexdigest()[:16]
    except OSError as error:
        raise BadInput(f"--weights {file}: {error.strerror}") from None


if __name__ == "__main__":
    run_script("experiments.lesions")
