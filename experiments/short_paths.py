"""How short may the gradient's paths be, if the forward stays as it is?

Trains residual CIFAR ResNets (He et al. 2015) whose gradient comes from paths of at most K branches alone. A path's
length counts the branches between the loss and the addend that holds a parameter, its own block not counted: at K = 0
each block learns through the shortcuts above it only (the shortest-path arm), and K of all blocks is ordinary training,
`residual`. Beside them: stop-gradient and plain, trained without a limit, and Veit et al.'s (2016, arXiv 1605.06431)
sampled branches, 23 of 54 drawn again in each step, with the forward unchanged.

A step costs about one more backward for each length below the limit. Writes tables, figures and every run's run.json to
OUT/short_paths; finished runs are not repeated.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn

import figures
from experiments.engine.reporting import show
from experiments.engine.reporting.factorial import show_outcomes
from experiments.engine.running.cli import run_script
from experiments.engine.running.grid import run_grid
from experiments.engine.running.messages import BadInput, check_unique
from experiments.engine.running.output import Output
from experiments.engine.running.run import Outcome, Run, Tables
from experiments.engine.statistics.equivalence import Comparison, compare, comparison_table, smallest_sufficient
from experiments.engine.statistics.factorial import outcome_table
from experiments.engine.training.data import Dataset, load
from experiments.engine.training.networks import outline
from experiments.engine.training.optimisation import Training
from experiments.engine.training.settings import NetworkSettings
from experiments.engine.training.train_run import make_network, train_run
from models import residual_blocks
from probes import limit_paths

EXPERIMENT = "short_paths"
REFERENCES = ("residual", "stop-gradient", "plain")
Paths = Literal["at-most", "at-least", "exactly", "sampled"]
PATHS: tuple[Paths, ...] = get_args(Paths)


@dataclass(frozen=True)
class Limit:
    """The paths that a residual network's gradient is taken from, by their number of branches."""

    paths: Paths
    branches: int
    """sampled: how many are drawn in each step; else the bound of a path's length."""

    @property
    def arm(self) -> str:
        """Its name, such as at-most-3."""
        return f"{self.paths}-{self.branches}"

    def context(self, model: nn.Module, *, generator: torch.Generator) -> AbstractContextManager[object]:
        """A context in which forwards and backwards are limited."""
        given: dict[str, Any] = {self.paths.replace("-", "_"): self.branches}
        return limit_paths(model, **given, generator=generator)


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
    """Also train with that many branches, drawn again in each step; if not given, 23 of 54 in proportion."""

    def check(self) -> None:
        self.computing.refuse_compile()
        super().check()
        self.check_depths("--depth", self.depth)
        check_unique("--at-most", self.at_most)
        blocks = self.blocks
        if min(self.at_most) < 0:
            raise BadInput(f"--at-most {min(self.at_most)}: give numbers from 0; from {blocks} on, nothing is limited")
        for flag, values, low in (
            ("--at-least", self.at_least, 1),
            ("--exactly", self.exactly, 0),
            ("--sampled", self.sampled or (), 0),
        ):
            if values:
                check_unique(flag, values)
            for value in values:
                if not low <= value <= blocks:
                    raise BadInput(f"{flag} {value}: depth {self.depth} has {blocks} blocks; give {low} to {blocks}")

    @property
    def blocks(self) -> int:
        """The blocks of the network: the length of its longest path."""
        return len(residual_blocks(outline(self.network, self.depth, width=self.width)))

    def limits(self) -> list[Limit]:
        """Every limit; of each kind long ones first, since they take longest."""
        at_most = [most for most in self.at_most if most < self.blocks]  # the others are the residual arm
        sampled = (round(self.blocks * 23 / 54),) if self.sampled is None else self.sampled
        numbers = zip(PATHS, (at_most, self.at_least, self.exactly, sampled), strict=True)
        return [Limit(paths, branches) for paths, given in numbers for branches in sorted(given, reverse=True)]


QUICK = Settings(depth=20, at_most=(0, 1, 2, 4), seeds=(0, 1), training=Training(epochs=3))


def main(settings: Settings) -> None:
    """Run the grid and report it."""
    settings.check()
    dataset = load(settings.data)
    output = show.live(settings.output(EXPERIMENT))
    task = partial(train_limited, dataset=dataset)
    tables, diverged = run_grid(make_runs(settings, dataset), task, output, execution=settings.execution)
    report(tables, diverged, dataset, settings, output)


def make_runs(settings: Settings, dataset: Dataset) -> list[Run]:
    """A run for each limit and seed, then for each reference arm and seed.

    Columns of their tables: treatment, the kind of limit if there is one, and path_length, K, or else all blocks.
    """
    runs = partial(settings.runs, EXPERIMENT, dataset, depths=(settings.depth,))
    limited = [
        runs(arms=(limit.arm,), treatment=limit, labels={"treatment": limit.paths, "path_length": limit.branches})
        for limit in settings.limits()
    ]
    references = runs(arms=REFERENCES, labels={"path_length": settings.blocks})
    return [run for group in (*limited, references) for run in group]


def train_limited(run: Run, checkpoint_file: Path | None = None, *, dataset: Dataset) -> Outcome:
    """Train a run under its limit, if it has one."""
    limit = run.recipe.treatment
    if limit is None:
        return train_run(run, checkpoint_file, dataset=dataset)
    draws = torch.Generator().manual_seed(run.seed)  # continues from epoch to epoch; the data's order has its own
    model = make_network(run, dataset)
    return train_run(run, dataset=dataset, model=model, gradient_context=partial(limit.context, generator=draws))


def report(tables: Tables, diverged: list[Run], dataset: Dataset, settings: Settings, output: Output) -> None:
    """Compare every limit with ordinary training, draw the figures, and print the results."""
    console = show.terminal()
    if show.all_diverged(console, tables, output):
        return
    outcomes = tables["outcomes"]
    limits = sorted(settings.limits(), key=lambda limit: (PATHS.index(limit.paths), limit.branches))
    runs = outcome_table(outcomes, dataset.size("test"))
    comparisons = {limit: compare(runs, limit.arm, limit.branches) for limit in limits}
    changes = comparison_table(list(comparisons.values()), settings.depth)
    if len(changes):
        changes.insert(1, "treatment", changes["arm"].map({limit.arm: limit.paths for limit in limits}))
        output.table("changes", changes)
    show.save_figure(output, figures.short_paths(outcomes), outcomes, "short_paths")
    if len(changes):
        show.save_figure(output, figures.short_path_changes(changes), changes, "short_path_changes")
    arms = [*REFERENCES, *(limit.arm for limit in limits)]
    show_outcomes(console, outcomes, runs, arms, diverged, len(dataset.classes))
    show.changes(console, list(comparisons.values()))
    show.files(console, output)
    at_most = [found for limit, found in comparisons.items() if limit.paths == "at-most"]
    answer = f"{dataset.title}, depth {settings.depth} ({settings.blocks} blocks): {conclusion(at_most)}"
    show.end(console, output, answer=answer)


def conclusion(comparisons: Sequence[Comparison]) -> str:
    """The K from which on paths of at most K branches recover ordinary training, or their mean changes do."""

    def from_which(sufficient: list[bool]) -> str:
        first = smallest_sufficient([found.limit for found in comparisons], sufficient)
        return "from no tested K on" if first is None else f"from K = {first} on"

    recovered = from_which([found.reading == "recovered" for found in comparisons])
    ordinary = from_which([found.mean_is_ordinary for found in comparisons])
    few = max((found.pairs for found in comparisons), default=0) < 3
    return (
        f"paths of at most K branches are shown to recover ordinary training {recovered}; their mean changes stay "
        f"within the margins {ordinary}{'; fewer than three seeds decide nothing' if few else ''}. One data set, one "
        "learning rate, one budget."
    )


if __name__ == "__main__":
    run_script("experiments.short_paths")
