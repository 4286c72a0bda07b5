"""Which path lengths carry the gradient, and do the paths of one length agree?

Trains CIFAR ResNets (He et al. 2015) in the five arms and takes the gradient at the first block's input apart at
initialisation, early in training, and at its end, in two ways that are never put on one axis. Exact: the norm and the
signed share of the sum over all paths of each length. Sampled, after Veit et al. (2016): the mean norm along single
paths of each length, and its product with their number, the mass. The first over the second is the cancellation.

Writes tables, figures and every cell's run.json to OUT/path_lengths, and repeats no cell that is already there. For
any other network, trained ones too: experiments/probe_model.py --samples.
"""

from dataclasses import dataclass
from functools import partial

import pandas as pd
import torch.nn.functional as F
from torch import nn

import figures
from experiments.engine.cells import Tables, probing, train_cell
from experiments.engine.command import BadInput, make_folder, run_script
from experiments.engine.data import Batches, Dataset, load
from experiments.engine.ending import clear_figures, show_files, terminal
from experiments.engine.grid import Cell, Outcome, run_grid
from experiments.engine.settings import NetworkSettings, check_arms
from experiments.engine.spectra import spectra
from experiments.engine.spectra_ending import sentence, show_bands
from experiments.engine.training import Training
from models import ARMS
from probes import record

EXPERIMENT = "path_lengths"


@dataclass(frozen=True)
class Settings(NetworkSettings):
    """Every setting of the experiment."""

    depths: tuple[int, ...] = (56,)
    """Layers, each 6n + 2: 3n blocks."""
    arms: tuple[str, ...] = tuple(ARMS)
    """Any of residual, stop-gradient, gradient-only, plain, shortest-path."""
    early: int = 2
    """Measure also after this many epochs, between the start and the end."""
    samples: int = 40
    """Single paths drawn of each length (Veit et al.: 1000)."""
    probe_size: int = 64
    """Training images, always the same ones, whose gradient is taken apart."""


QUICK = Settings(depths=(20,), seeds=(0, 1), early=1, samples=20, training=Training(epochs=3))


def main(settings: Settings) -> None:
    """Run the grid and report it."""
    settings.check()
    settings.check_depths("--depths", *settings.depths)
    check_arms(settings.arms)
    for flag, value, least in (
        ("--early", settings.early, 1),
        ("--samples", settings.samples, 2),
        ("--probe-size", settings.probe_size, 2),
    ):
        if value < least:
            raise BadInput(f"{flag} {value}: give at least {least}")
    dataset = load(settings.data)
    folder = make_folder(settings.out / EXPERIMENT)
    make_folder(folder / "figures")
    probed = {name: getattr(settings, name) for name in ("early", "samples", "probe_size")}
    cells = settings.cells(EXPERIMENT, dataset, arms=settings.arms, depths=settings.depths, **probed)
    run = partial(run_cell, dataset=dataset, training=settings.training, probed=probed)
    tables, diverged = run_grid(cells, run, folder, workers=settings.workers)
    finish(tables, diverged, settings, title=dataset.title)


def run_cell(cell: Cell, *, dataset: Dataset, training: Training, probed: dict[str, int]) -> Outcome:
    """Train a network and measure it. Each seed draws paths of its own: the errors of seeds are independent."""
    return train_cell(cell, dataset, training, measure=partial(measure, seed=cell.seed, **probed))


def measure(
    model: nn.Module,
    batches: Batches,
    epoch: int,
    last: bool,
    *,
    early: int,
    samples: int,
    probe_size: int,
    seed: int,
) -> Tables:
    """The spectra's tables on one fixed batch of training images."""
    if epoch not in (0, early) and not last:
        return {}
    copied, images, labels = probing(model, batches, most=probe_size)
    with record(copied) as recording:
        F.cross_entropy(copied(images), labels).backward(retain_graph=True)
    return spectra(recording, samples=samples, seed=seed)


def finish(tables: dict[str, pd.DataFrame], diverged: list[Cell], settings: Settings, *, title: str) -> None:
    """Draw the figures, and print what came out."""
    console, folder = terminal(), settings.out / EXPERIMENT
    clear_figures(folder)
    figures.save(figures.path_lengths(tables["paths"]), tables["paths"], folder / "figures", "path_lengths")
    together = pd.concat([tables["sampled"], tables["bands"]], ignore_index=True)
    figures.save(figures.sampled_paths(together), together, folder / "figures", "sampled_paths")
    show_bands(console, tables["bands"], settings.arms)
    for cell in diverged:
        console.print(f"diverged, so that it has no end: {cell.arm}, depth {cell.depth}, seed {cell.seed}")
    show_files(console, folder)
    for depth in sorted(settings.depths):
        console.print(sentence(tables, depth, title=title))


if __name__ == "__main__":
    run_script("experiments.path_lengths")
