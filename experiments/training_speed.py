"""Do shortcuts change what a network reaches, or only how fast?

Trains a CIFAR ResNet (He et al. 2015) and an Inception-ResNet (Szegedy et al. 2016) with shortcuts, without, and with
shortcuts that carry no gradient; counts the steps to given training losses, and compares the final test errors.

Writes tables, a figure and every cell's run.json to OUT/training_speed, and repeats no cell that is already there.
"""

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import pandas as pd
import tyro

import figures
from experiments.engine.cells import train_cell
from experiments.engine.command import BadInput, check_choice, make_folder, run_script
from experiments.engine.data import Dataset, load
from experiments.engine.effects import errors_on_test
from experiments.engine.ending import nothing_came_out, show_files, terminal
from experiments.engine.grid import Cell, ordered, run_grid, write_aside
from experiments.engine.networks import NETWORKS
from experiments.engine.settings import NetworkSettings, check_arms, check_each_once
from experiments.engine.speed import REFERENCE, compare, comparison_table, steps_to_loss, trailing_means
from experiments.engine.speed_ending import sentence, show_comparisons, show_speed
from experiments.engine.training import Training

EXPERIMENT = "training_speed"


@dataclass(frozen=True)
class Settings(NetworkSettings):
    """Every setting of the experiment."""

    networks: tuple[str, ...] = ("resnet", "inception")
    """Any of resnet (He et al. 2015, for CIFAR), inception (Szegedy et al. 2016), and the README's others."""
    network: tyro.conf.Suppress[str] = "resnet"  # not asked for: each of `networks` in turn
    arms: tuple[str, ...] = ("residual", "plain", "stop-gradient")
    """residual, which the others are compared with, and any of plain, stop-gradient, gradient-only, shortest-path."""
    depth: int = 20
    """Layers; resnet has 6n + 2, inception 12n + 8, so 20, 32, 44 and 56 fit both."""
    losses: tuple[float, ...] = (1.0, 0.3, 0.1)
    """Training losses (nats), as the mean over the steps of one epoch, whose first step is told."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Random seeds, by number; one decides the first weights and the order of the data, alike in all arms."""
    training: Training = field(default_factory=lambda: Training(epochs=30))

    def each(self) -> list["Settings"]:
        """The settings of each network."""
        return [replace(self, network=name) for name in self.networks]

    def check(self) -> None:
        super().check()
        check_each_once("--networks", self.networks)
        check_arms(self.arms)
        check_each_once("--losses", self.losses)
        for name in self.networks:
            check_choice("--networks", name, tuple(NETWORKS))
        for settings in self.each():
            settings.check_depths("--depth", self.depth)
        if REFERENCE not in self.arms:
            raise BadInput(f"--arms {' '.join(self.arms)}: add {REFERENCE}, which the others are compared with")
        if not all(0 < loss < float("inf") for loss in self.losses):
            raise BadInput(f"--losses {' '.join(f'{loss:g}' for loss in self.losses)}: give positive numbers")


QUICK = Settings(seeds=(0, 1), training=Training(epochs=4))


def main(settings: Settings) -> None:
    """Run the grid and report it."""
    settings.check()
    dataset = load(settings.data)
    folder = make_folder(settings.out / EXPERIMENT)
    make_folder(folder / "figures")
    cells = [
        cell
        for each in settings.each()
        for cell in each.cells(EXPERIMENT, dataset, arms=settings.arms, depths=(settings.depth,), labels=("network",))
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
    window = settings.training.steps_an_epoch(len(dataset.splits["train"][1]))
    steps = steps_to_loss(tables["losses"], settings.losses, window=window)
    errors = errors_on_test(tables["outcomes"])
    write_aside(folder / "steps.csv", ordered(steps))
    drawn = ordered(pd.concat([trailing_means(tables["losses"], window=window), errors, steps], ignore_index=True))
    figures.save(figures.training_speed(drawn), drawn, folder / "figures", "training_speed")
    compared = compare(steps, errors, networks=settings.networks, arms=settings.arms, seeds=settings.seeds)
    write_aside(folder / "comparisons.csv", comparison_table(compared, settings.depth))
    show_speed(console, steps, errors, networks=settings.networks, arms=settings.arms, seeds=len(settings.seeds))
    for cell in diverged:
        console.print(f"{cell.settings['network']}, {cell.arm}, seed {cell.seed}: diverged")
    show_comparisons(console, compared)
    show_files(console, folder)
    console.print(
        sentence(compared, errors, seeds=len(settings.seeds), title=f"{dataset.title}, depth {settings.depth}")
    )


if __name__ == "__main__":
    run_script("experiments.training_speed")
