"""Is the identity hard to learn?

He et al. (2015) argue that a deeper network could copy a shallower one if its further blocks were identities, so that
solvers must find it hard to fit an identity by several nonlinear layers, and easier to push a residual to zero.

Copying: stacks of blocks are trained to give back their input, a fixed layer's features of the images. Insertion:
blocks are inserted into a trained shallow network, as identities or at random weights, and training goes on; beside it,
that of the shallow network itself.

Writes tables, figures and every cell's run.json to OUT/identity_mapping, and repeats no cell that is already there.
"""

import math
from dataclasses import dataclass
from functools import partial

from experiments.engine.command import BadInput, check_choice, make_folder, run_script
from experiments.engine.copying import BRANCHES, copy_input
from experiments.engine.data import Dataset, load
from experiments.engine.grid import Cell, Outcome, run_grid
from experiments.engine.identity_ending import finish
from experiments.engine.insertion import insert_and_go_on
from experiments.engine.settings import NetworkSettings, check_arms, check_each_once
from experiments.engine.training import Training

EXPERIMENT = "identity_mapping"
KINDS = ("identity", "random")


@dataclass(frozen=True)
class Settings(NetworkSettings):
    """Every setting of the experiment."""

    arms: tuple[str, ...] = ("residual", "stop-gradient", "plain")
    """Any of residual, stop-gradient, gradient-only, plain, shortest-path."""
    blocks: tuple[int, ...] = (1, 2, 4, 8, 16)
    """Copying: blocks in a stack."""
    copying_epochs: int = 10
    """Copying: passes through the training images."""
    rates: tuple[float, ...] = (0.01, 0.1)
    """Copying: highest learning rates, of which each arm and number of blocks takes the best on validation images."""
    depth: int = 8
    """Insertion: layers of the shallow network, 6n + 2."""
    deeper: tuple[int, ...] = (20,)
    """Insertion: layers with the inserted blocks. Training before and after has the budget of --epochs each."""

    def check(self) -> None:
        super().check()
        check_choice("--network", self.network, tuple(BRANCHES))
        check_arms(self.arms)
        check_each_once("--blocks", self.blocks)
        check_each_once("--rates", self.rates)
        for flag, given in (*(("--blocks", each) for each in self.blocks), ("--copying-epochs", self.copying_epochs)):
            if given < 1:
                raise BadInput(f"{flag} {given}: give at least 1")
        for rate in self.rates:
            if not 0 < rate < math.inf:
                raise BadInput(f"--rates {rate}: give finite numbers above 0")
        self.check_depths("--depth", self.depth)
        self.check_depths("--deeper", *self.deeper)
        if min(self.deeper) <= self.depth:
            raise BadInput(f"--deeper {min(self.deeper)}: give more layers than --depth, {self.depth}")


QUICK = Settings(seeds=(0, 1), blocks=(1, 4), copying_epochs=5, rates=(0.1,), deeper=(20,), training=Training(epochs=3))


def main(settings: Settings) -> None:
    """Run the grid and report it."""
    settings.check()
    dataset = load(settings.data)
    folder = make_folder(settings.out / EXPERIMENT)
    make_folder(folder / "figures")
    run = partial(run_cell, dataset=dataset, settings=settings)
    tables, diverged = run_grid(make_cells(settings, dataset), run, folder, workers=settings.workers)
    finish(tables, diverged, dataset, settings.arms, folder)


def make_cells(settings: Settings, dataset: Dataset) -> list[Cell]:
    """Copying: a cell for each rate, number of blocks (of two layers), arm and seed. Insertion: for each kind, depth,
    arm and seed; `none` is the shallow network. Their tables tell the rate, or the kind, as effect."""
    cells = []
    for rate in settings.rates:
        recipe = {"epochs": settings.copying_epochs, "learning_rate": rate, "effect": f"learning rate {rate:g}"}
        layers = [2 * blocks for blocks in settings.blocks]
        cells += settings.cells("copying", dataset, arms=settings.arms, depths=layers, labels=("effect",), **recipe)
    for kind, depths in (("none", (settings.depth,)), *((kind, settings.deeper) for kind in KINDS)):
        recipe = {"shallow": settings.depth, "effect": kind}
        cells += settings.cells("insertion", dataset, arms=settings.arms, depths=depths, labels=("effect",), **recipe)
    return cells


def run_cell(cell: Cell, dataset: Dataset, settings: Settings) -> Outcome:
    """Run a cell of either part."""
    return (copy_input if cell.experiment == "copying" else insert_and_go_on)(cell, dataset, settings.training)


if __name__ == "__main__":
    run_script("experiments.identity_mapping")
