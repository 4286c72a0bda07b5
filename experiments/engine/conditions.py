"""Conditions: an arm under a control, each at its own best learning rate; one store of cells for all of them."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from experiments.engine.alignment import measure_alignment
from experiments.engine.cells import train_cell
from experiments.engine.command import BadInput
from experiments.engine.controls import NO_CONTROL, Control
from experiments.engine.data import Dataset
from experiments.engine.grid import Cell, Outcome, run_grid, write_aside
from experiments.engine.networks import outline
from experiments.engine.settings import NetworkSettings, check_seeds
from experiments.engine.training import Training
from probes.tables import table

FAMILY = "answer"  # whose store holds the cells of all these experiments
LEVELS = range(-4, 0)  # half decades: the arms as they are are tried at 0.01, 0.0316, 0.1 and 0.316
SHORT = {"sgd": range(-3, 0), "sign": range(-7, -4), "adam": range(-5, -2)}  # every other condition, at three rates
FURTHEST = 4  # so many half decades beyond either end, no further
LEARNED = 0.03  # above chance: what validates no better has learned nothing, and its rate is no best among others
Rates = dict[tuple[str, int], float]


@dataclass(frozen=True)
class Condition:
    """What is done to an arm. name: the value of the column `control`, one for each condition of an experiment."""

    name: str
    arm: str
    control: Control = NO_CONTROL
    optimiser: str = "sgd"
    network: str | None = None
    """Another than the settings'."""

    @property
    def levels(self) -> range:
        """The levels of the learning rates that are tried at first."""
        return LEVELS if self.is_arm else SHORT[self.optimiser]

    @property
    def is_arm(self) -> bool:
        """Whether it is an arm as it is: nothing is done to it."""
        return (self.control, self.optimiser, self.network) == (NO_CONTROL, "sgd", None)


@dataclass(frozen=True)
class ConditionSettings(NetworkSettings):
    """The settings of experiments on conditions."""

    depths: tuple[int, ...] = (20, 32, 56)
    """Layers, each 6n + 2."""
    tuning_seeds: tuple[int, ...] = (100, 101)
    """Seeds whose runs choose learning rates, by validation, and are never reported: all for the arms as they are, the
    first alone for every other condition."""

    def check(self) -> None:
        self.computing.refuse_compile()
        super().check()
        self.check_depths("--depths", *self.depths)
        check_seeds("--tuning-seeds", self.tuning_seeds)
        if both := sorted(set(self.seeds) & set(self.tuning_seeds)):
            raise BadInput(f"--tuning-seeds {both[0]}: that seed is reported; choose learning rates on others")

    @property
    def store(self) -> Path:
        """Where the cells of all experiments on conditions lie."""
        return self.out / FAMILY / "cells"


@dataclass(frozen=True)
class Bench:
    """What trains conditions: the settings and the data of one experiment."""

    settings: ConditionSettings
    dataset: Dataset

    def cell(self, condition: Condition, depth: int, seed: int, rate: float, budget: int = 1) -> Cell:
        """One run of a condition. budget: how many times the settings' epochs it is trained."""
        training = replace(
            self.settings.training,
            optimiser=condition.optimiser,
            learning_rate=rate,
            epochs=budget * self.settings.training.epochs,
        )
        network = condition.network or self.settings.network
        settings = replace(self.settings, training=training, network=network)
        recipe = settings.recipe(self.dataset) | {"control": asdict(condition.control)}
        labels = {"network": network, "control": condition.name, "learning_rate": rate, "budget": budget}
        return Cell(FAMILY, condition.arm, depth, seed, recipe, settings.about(self.dataset), labels)

    def cells(
        self,
        conditions: Sequence[Condition],
        depths: Sequence[int],
        seeds: Sequence[int],
        rates: Rates,
        budget: int = 1,
    ) -> list[Cell]:
        """A cell for each depth, condition and seed, at the condition's learning rate there."""
        return [
            self.cell(condition, depth, seed, rates[condition.name, depth], budget)
            for depth in depths
            for condition in conditions
            for seed in seeds
        ]

    def run(
        self, cells: Sequence[Cell], conditions: Iterable[Condition], folder: Path, *, then: str = ""
    ) -> tuple[dict[str, pd.DataFrame], list[Cell]]:
        """Train what the store lacks; all tables, which also go to `folder`, and the cells that diverged."""
        controls = {condition.name: condition.control for condition in conditions}
        run = partial(run_condition, dataset=self.dataset, training=self.settings.training, controls=controls)
        return run_grid(cells, run, folder, workers=self.settings.workers, store=self.settings.store, then=then)

    def best_rates(self, conditions: Sequence[Condition], depths: Sequence[int], folder: Path) -> Rates:
        """Each condition's learning rate at each depth: highest mean validation accuracy over its tuning seeds (of
        equals, lowest mean validation loss), or the lowest tried while nothing has learned at any: a network at chance
        tells no rates apart. A best at an end of its range extends the range, by at most two decades.

        The whole search goes to `folder`/tuning.csv, where nothing else of an experiment lies.
        """
        self.check(conditions, depths)
        tried = {(c, depth): set(c.levels) for c in conditions for depth in depths}
        while True:
            cells = [
                self.cell(condition, depth, seed, rate_of(level))
                for (condition, depth), levels in tried.items()
                for level in sorted(levels)
                for seed in self.settings.tuning_seeds[: None if condition.is_arm else 1]
            ]
            tables, _ = self.run(cells, conditions, folder, then="further rates if need be, and cells at the best")
            found = validation(tables, cells)
            best = {key: self._best(found, *key) for key in tried}
            further = {key: beyond(levels, best[key], key[0].levels) for key, levels in tried.items()}
            if all(level is None for level in further.values()):
                break
            for key, level in further.items():
                tried[key] |= set() if level is None else {level}
        write_aside(folder / "tuning.csv", table(tuning_rows(found)))
        return {(condition.name, depth): rate_of(level) for (condition, depth), level in best.items()}

    def check(self, conditions: Sequence[Condition], depths: Sequence[int]) -> None:
        """Raise BadInput for a condition whose control the network does not know: random feedback without convolutions,
        a stage that is not there."""
        for condition in conditions:
            network = condition.network or self.settings.network
            for depth in depths if condition.control != NO_CONTROL else ():
                try:
                    condition.control.prepare(outline(network, depth, width=self.settings.width), seed=0)
                except ValueError as error:
                    raise BadInput(f"{condition.name!r} on {network}: {error}; leave it out (--conditions)") from None

    def _best(self, found: pd.DataFrame, condition: Condition, depth: int) -> int:
        rows = found[(found["control"] == condition.name) & (found["depth_total"] == depth)]
        means = rows.groupby("learning_rate")[["accuracy", "loss"]].mean().reset_index()
        best = means.sort_values(["accuracy", "loss"], ascending=[False, True]).iloc[0]
        learned = best["accuracy"] > 1 / len(self.dataset.classes) + LEARNED
        return level_of(float(best["learning_rate"] if learned else means["learning_rate"].min()))


def run_condition(cell: Cell, *, dataset: Dataset, training: Training, controls: dict[str, Control]) -> Outcome:
    """Train one cell as its settings say, and measure how its updates lie to the true gradient: always, since a cell
    that the store has is not measured again."""
    control = controls[str(cell.labels["control"])]
    measure = partial(measure_alignment, control=control, seed=cell.seed)
    return train_cell(cell, dataset, training_of(cell, training), control=control, measure=measure, validate=False)


def training_of(cell: Cell, training: Training) -> Training:
    """The training, as the cell's settings have it."""
    keys = ("optimiser", "learning_rate", "epochs")
    return replace(training, **{key: cell.settings[key] for key in keys})  # type: ignore[arg-type]


def rate_of(level: int) -> float:
    """The learning rate of a level, 10^(level / 2), to three digits."""
    return float(f"{10 ** (level / 2):.3g}")


def level_of(rate: float) -> int:
    """The level of a learning rate."""
    return round(2 * np.log10(rate))


def beyond(tried: set[int], best: int, first: range) -> int | None:
    """The level to try next: beyond the end at which the best lies, unless that is too far from the first ones."""
    if best not in (min(tried), max(tried)):
        return None
    level = best + 1 if best == max(tried) else best - 1
    return level if first[0] - FURTHEST <= level <= first[-1] + FURTHEST else None


def validation(tables: dict[str, pd.DataFrame], cells: Sequence[Cell]) -> pd.DataFrame:
    """One row a cell: control, depth_total, learning_rate, seed, and validation accuracy and loss at the end; 0 and
    infinity for a cell that diverged."""
    keys = ["control", "depth_total", "learning_rate", "seed"]
    every = pd.DataFrame(
        [(c.labels["control"], c.depth, c.labels["learning_rate"], c.seed) for c in cells], columns=keys
    )
    if "outcomes" not in tables:
        return every.assign(accuracy=0.0, loss=np.inf)
    rows = tables["outcomes"][tables["outcomes"]["split"] == "validation"]
    wide = rows.pivot_table(index=keys, columns="quantity", values="value").reset_index()
    return every.merge(wide, how="left", on=keys).fillna({"accuracy": 0.0, "loss": np.inf})


def tuning_rows(found: pd.DataFrame) -> Iterator[dict[str, object]]:
    """The search as rows of a long table."""
    for row in found.to_dict("records"):
        about = {key: row[key] for key in ("control", "depth_total", "learning_rate", "seed")}
        for quantity in ("accuracy", "loss"):
            yield {**about, "split": "validation", "quantity": quantity, "value": row[quantity]}
