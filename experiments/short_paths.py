"""How short may the gradient's paths be, if the forward stays as it is?

Trains residual CIFAR ResNets (He et al. 2015) whose gradient comes from paths of at most K branches alone. A path's
length counts the branches between the loss and the addend that holds a parameter, its own block not counted: at K = 0
each block learns through the shortcuts above it only (the shortest-path arm), and K of all blocks is ordinary training,
`residual`. Beside them: stop-gradient and plain, trained as ever, and Veit et al.'s (2016, arXiv 1605.06431) sampled
branches, 23 of 54 drawn anew in each step, with the forward unchanged.

A step costs about one more backward for each length below the limit. Writes tables, a figure and every cell's run.json
to OUT/short_paths, and repeats no cell that is already there.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

import figures
from experiments.engine.cells import train_cell
from experiments.engine.command import BadInput, make_folder, run_script
from experiments.engine.data import Dataset, load
from experiments.engine.effects import flags, outcome_table
from experiments.engine.ending import nothing_came_out, show_files, show_outcomes, terminal
from experiments.engine.grid import Cell, Outcome, run_grid, write_aside
from experiments.engine.networks import outline
from experiments.engine.recovery import compare, comparison_table, sentence
from experiments.engine.recovery_ending import show_changes
from experiments.engine.settings import NetworkSettings, check_each_once
from experiments.engine.training import Training
from models import residual_blocks
from probes import limit_paths

EXPERIMENT = "short_paths"
REFERENCES = ("residual", "stop-gradient", "plain")
LIMITS = ("at_most", "at_least", "exactly", "sampled")


@dataclass(frozen=True)
class Settings(NetworkSettings):
    """Every setting of the experiment."""

    depth: int = 56
    """Layers, 6n + 2; the network has 3n blocks."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4, 5)
    """Random seeds, by number; one decides the first weights and the order of the data, alike in all arms."""
    at_most: tuple[int, ...] = (0, 1, 2, 3, 4, 8)
    """Train on paths of at most so many branches, K; as many as there are blocks, or more, is ordinary training."""
    at_least: tuple[int, ...] = ()
    """Also train on paths of at least so many branches."""
    exactly: tuple[int, ...] = ()
    """Also train on paths of exactly so many branches."""
    sampled: tuple[int, ...] | None = None
    """Also train with so many branches, drawn anew in each step; if not given, 23 of 54 in proportion."""

    def check(self) -> None:
        self.computing.refuse_compile()
        super().check()
        self.check_depths("--depth", self.depth)
        check_each_once("--at-most", self.at_most)
        blocks = self.blocks
        if min(self.at_most) < 0:
            raise BadInput(f"--at-most {min(self.at_most)}: give numbers from 0; from {blocks} on, nothing is limited")
        for flag, values, low in (
            ("--at-least", self.at_least, 1),
            ("--exactly", self.exactly, 0),
            ("--sampled", self.sampled or (), 0),
        ):
            if values:
                check_each_once(flag, values)
            for value in values:
                if not low <= value <= blocks:
                    raise BadInput(f"{flag} {value}: depth {self.depth} has {blocks} blocks; give {low} to {blocks}")

    @property
    def blocks(self) -> int:
        """The blocks of the network: the length of its longest path."""
        return len(residual_blocks(outline(self.network, self.depth, width=self.width)))

    def limits(self) -> list[tuple[str, int]]:
        """Every limit, as `limit_paths` calls it, with its number; long ones first, since they take longest."""
        sampled = (round(self.blocks * 23 / 54),) if self.sampled is None else self.sampled
        at_most = [most for most in self.at_most if most < self.blocks]  # the others are the residual arm
        numbers = zip(LIMITS, (at_most, self.at_least, self.exactly, sampled), strict=True)
        return [(limit, number) for limit, given in numbers for number in sorted(given, reverse=True)]


QUICK = Settings(depth=20, at_most=(0, 1, 2, 4), seeds=(0, 1), training=Training(epochs=3))


def main(settings: Settings) -> None:
    """Run the grid and report it."""
    settings.check()
    dataset = load(settings.data)
    folder = make_folder(settings.out / EXPERIMENT)
    make_folder(folder / "figures")
    run = partial(train_limited, dataset=dataset, settings=settings)
    tables, diverged = run_grid(make_cells(settings, dataset), run, folder, workers=settings.workers)
    finish(tables, diverged, dataset, settings, folder)


def make_cells(settings: Settings, dataset: Dataset) -> list[Cell]:
    """A cell for each limit and seed, then for each reference arm and seed."""
    conditions = [(arm_of(limit, number), {limit: number}) for limit, number in settings.limits()]
    conditions += [(arm, {}) for arm in REFERENCES]
    recipe, about = settings.recipe(dataset), settings.about(dataset)
    return [
        Cell(EXPERIMENT, arm, settings.depth, seed, {**recipe, **limit}, about)
        for arm, limit in conditions
        for seed in settings.seeds
    ]


def arm_of(limit: str, number: int) -> str:
    """`at-most-3`, for at_most=3."""
    return f"{limit.replace('_', '-')}-{number}"


def train_limited(cell: Cell, dataset: Dataset, settings: Settings) -> Outcome:
    """Train one cell under its limit; its tables tell the limit as path_length: all blocks where there is none."""
    limit: dict[str, Any] = {name: cell.settings[name] for name in LIMITS if name in cell.settings}
    draws = torch.Generator().manual_seed(cell.seed)  # goes on from epoch to epoch, and leaves the data's order alone

    def around(model: nn.Module) -> AbstractContextManager[object]:
        return limit_paths(model, **limit, generator=draws) if limit else nullcontext()

    network = replace(cell, arm="residual" if limit else cell.arm)
    outcome = train_cell(network, dataset, settings.training, around=around)
    length = next(iter(limit.values()), settings.blocks)
    outcome.tables = {name: table.assign(path_length=length) for name, table in outcome.tables.items()}
    return outcome


def finish(
    tables: dict[str, pd.DataFrame], diverged: list[Cell], dataset: Dataset, settings: Settings, folder: Path
) -> None:
    """Draw the figure, and print what came out."""
    console = terminal()
    if nothing_came_out(console, tables, folder):
        return
    outcomes = tables["outcomes"]
    limits = sorted(settings.limits(), key=lambda each: (LIMITS.index(each[0]), each[1]))
    figures.save(figures.short_paths(outcomes), outcomes, folder / "figures", "short_paths")
    cells = outcome_table(outcomes, len(dataset.splits["test"][1]))
    comparisons = {limit: compare(cells, arm_of(*limit), limit[1]) for limit in limits}
    if any(found.changes for found in comparisons.values()):
        changes = comparison_table(list(comparisons.values()), settings.depth)
        write_aside(folder / "changes.csv", changes)
        figures.save(figures.short_path_changes(changes), changes, folder / "figures", "short_path_changes")
    arms = [*REFERENCES, *(arm_of(*limit) for limit in limits)]
    marks = {settings.depth: flags(cells, settings.depth, len(dataset.classes))}
    show_outcomes(console, outcomes, arms, diverged, marks)
    show_changes(console, list(comparisons.values()))
    show_files(console, folder)
    at_most = [found for (limit, _), found in comparisons.items() if limit == "at_most"]
    console.print(sentence(at_most, title=dataset.title, depth=settings.depth, blocks=settings.blocks))


if __name__ == "__main__":
    run_script("experiments.short_paths")
