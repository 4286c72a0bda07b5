"""Does the answer depend on the block?

Trains networks of different make in the same arms, with the same budget and learning rate (which suits some of them
better than others), and compares each network's arms: where does the shortcut help, and does its value help without its
gradient? Those of He et al. 2016 (arXiv 1603.05027), Table 1, are compared with the ordinary ResNet, too: there the
plain identity was the best shortcut.

Writes tables, a figure and every cell's run.json to OUT/variants, and repeats no cell that is already there.
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import pandas as pd
import tyro

import figures
from experiments.engine.cells import train_cell
from experiments.engine.command import BadInput, check_choice, make_folder, run_script
from experiments.engine.data import Dataset, load
from experiments.engine.ending import nothing_came_out, show_files, terminal
from experiments.engine.grid import Cell, run_grid, write_aside
from experiments.engine.network_effects import between_arms, effect_table, final_errors, from_reference, measured
from experiments.engine.network_ending import sentence, show_against_paper, show_differences, show_errors
from experiments.engine.networks import NETWORKS, nearest_depth
from experiments.engine.settings import NetworkSettings, check_arms, check_each_once
from experiments.engine.training import Training

EXPERIMENT = "variants"


@dataclass(frozen=True)
class Settings(NetworkSettings):
    """Every setting of the experiment."""

    network: Annotated[str, tyro.conf.Fixed, tyro.conf.Suppress] = "resnet"
    networks: tuple[str, ...] = (
        "resnet", "projection-c", "halved-shortcut", "dropout-shortcut", "shortcut-gate", "exclusive-gate",
    )  # fmt: skip
    """The networks, by the names of the README's list, which has more."""
    depth: int = 32
    """Layers; a network that cannot have so many has the nearest number that it can."""
    arms: tuple[str, ...] = ("residual", "stop-gradient", "plain")
    """Any of residual, stop-gradient, gradient-only, plain, shortest-path."""

    def check(self) -> None:
        super().check()
        check_each_once("--networks", self.networks)
        check_arms(self.arms)
        if self.depth < 1:
            raise BadInput(f"--depth {self.depth}: give at least 1 layer")
        for network in self.networks:
            check_choice("--networks", network, tuple(NETWORKS))
            self.of(network).check_depths("--depth", self.depth_of(network))

    def of(self, network: str) -> "Settings":
        """The settings of one of the networks."""
        return replace(self, network=network)

    def depth_of(self, network: str) -> int:
        """The depth at which a network is asked."""
        return nearest_depth(network, self.depth, width=self.width)


QUICK = Settings(networks=("resnet", "norm-after-sum", "dirac"), depth=8, seeds=(0, 1), training=Training(epochs=3))


def main(settings: Settings) -> None:
    """Run the grid and report it."""
    settings.check()
    dataset = load(settings.data)
    folder = make_folder(settings.out / EXPERIMENT)
    make_folder(folder / "figures")
    cells = [
        cell
        for network in settings.networks
        for cell in settings.of(network).cells(
            EXPERIMENT,
            dataset,
            arms=settings.arms,
            depths=(settings.depth_of(network),),
            labels=("network",),
        )
    ]
    run = partial(train_cell, dataset=dataset, training=settings.training)
    tables, diverged = run_grid(cells, run, folder, workers=settings.workers)
    finish(tables, diverged, dataset, settings, folder)


def finish(
    tables: dict[str, pd.DataFrame], diverged: list[Cell], dataset: Dataset, settings: Settings, folder: Path
) -> None:
    """Draw the figure, and print what came out."""
    console = terminal()
    if nothing_came_out(console, tables, folder):
        return
    drawn = measured(tables["outcomes"])
    figures.save(figures.variants(drawn), drawn, folder / "figures", "variants")
    errors = final_errors(tables["outcomes"])
    found, against = between_arms(errors), from_reference(errors)
    depths = {network: settings.depth_of(network) for network in settings.networks}
    write_aside(folder / "differences.csv", effect_table(found | against, depths))
    show_errors(console, drawn, settings.arms, depths, diverged)
    show_differences(console, found)
    show_against_paper(console, against)
    show_files(console, folder)
    console.print(sentence(found, against, dataset.title))


if __name__ == "__main__":
    run_script("experiments.variants")
