"""Trains conditions, each at its own best learning rate, which is chosen here."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd

from experiments.engine.conditions.conditions import FAMILY, Condition, ConditionSettings
from experiments.engine.conditions.controls import NO_CONTROL
from experiments.engine.conditions.gradient_alignment import measure_alignment
from experiments.engine.running.grid import run_grid
from experiments.engine.running.messages import BadInput
from experiments.engine.running.output import Output
from experiments.engine.running.run import Outcome, Run, Tables
from experiments.engine.statistics.long_tables import select
from experiments.engine.training.data import Dataset
from experiments.engine.training.networks import outline
from experiments.engine.training.train_run import Measure, make_network, train_run
from models import FirstWeights
from probes.tables import table

LR_EXPONENTS = range(-4, 0)
"""In half decades: unmodified arms are tried at 0.01, 0.0316, 0.1 and 0.316 first."""
LR_EXPONENTS_SHORT = {
    "sgd": range(-3, 0),
    "sign": range(-7, -4),
    "adam": range(-5, -2),
    "adamw": range(-5, -2),
}
"""Every other condition is tried at three rates first."""
MAX_EXTENSION = 4
"""So many half decades beyond either end, no further."""
LEARNED = 0.03
"""Above chance: what validates no better has learned nothing, and its rate is no best among others."""
Rates = dict[tuple[str, int], float]
"""By condition and depth."""


@dataclass(frozen=True)
class Effort:
    """How much a condition's learning rate is searched for."""

    exponents: tuple[int, ...]
    """Of the rates that are tried first, in half decades."""
    seeds: int | None = None
    """How many of the tuning seeds are used; None: all."""


def effort_by_kind(condition: Condition) -> Effort:
    """Four rates on all tuning seeds for an unmodified arm, three on the first seed for every other condition."""
    return (
        Effort(tuple(LR_EXPONENTS)) if condition.is_arm else Effort(tuple(LR_EXPONENTS_SHORT[condition.optimiser]), 1)
    )


def train_condition(
    run: Run, checkpoint: Path | None = None, *, datasets: Mapping[str, Dataset], measure: Measure | None = None
) -> Outcome:
    """Train a run under the control of its recipe.

    datasets: by digest, the run's among them. measure: of a run that has outputs; by default cosine and norm ratio
    between its updates and the exact gradient.
    """
    dataset, control = datasets[run.recipe.data], run.recipe.treatment
    model = make_network(run, dataset)
    backward = control.prepare(model, seed=run.seed)
    measure = measure or partial(measure_alignment, control=control, seed=run.seed)
    asked: dict[str, Any] = {"measure": measure} if run.outputs else {}
    return train_run(run, checkpoint, dataset=dataset, model=model, backward=backward, validate=False, **asked)


@dataclass(frozen=True)
class ConditionRunner:
    """Trains conditions with the settings and the data of one experiment."""

    settings: ConditionSettings
    dataset: Dataset
    splits: Mapping[int, Dataset] = field(default_factory=dict)
    """The data set under the split that belongs to a seed; `dataset` for seeds without one."""
    effort: Callable[[Condition], Effort] = effort_by_kind
    outputs: tuple[str, ...] = ("alignment",)
    """What each reported run must give; the same for all scripts that share a store, or they rerun each other's."""
    task: Callable[..., Outcome] = train_condition
    """What each run does: called as `train_condition` is."""

    def run_of(
        self, condition: Condition, depth: int, seed: int, rate: float, budget: int = 1, *, tuning: bool = False
    ) -> Run:
        """One run of a condition.

        budget: how many times the settings' epochs it is trained. tuning: whether it chooses a learning rate; then it
        gives nothing but curves and outcomes, and none on test images.
        """
        training = replace(
            self.settings.training,
            optimiser=condition.optimiser,
            learning_rate=rate,
            epochs=budget * self.settings.training.epochs,
        )
        network = condition.network or self.settings.network
        first_weights = first_weights_of(condition, self.settings)
        data = replace(self.settings.data, split_seed=seed) if seed in self.splits else self.settings.data
        changed = replace(self.settings, training=training, network=network, first_weights=first_weights, data=data)
        (run,) = changed.runs(
            FAMILY,
            self.splits.get(seed, self.dataset),
            arms=(condition.arm,),
            depths=(depth,),
            seeds=(seed,),
            outputs=() if tuning else self.outputs,
            labels={"network": network, "control": condition.name, "learning_rate": rate, "budget": budget},
            treatment=condition.control,
        )
        recipe = run.recipe if condition.flow is None else replace(run.recipe, flow=condition.flow)
        return replace(run, recipe=replace(recipe, evaluated=("train", "validation")) if tuning else recipe)

    def runs(self, conditions: Sequence[Condition], depths: Sequence[int], rates: Rates, budget: int = 1) -> list[Run]:
        """A run for each depth, condition and reported seed, at the condition's learning rate there."""
        return [
            self.run_of(condition, depth, seed, rates[condition.name, depth], budget)
            for depth in depths
            for condition in conditions
            for seed in self.settings.seeds
        ]

    def train(self, runs: Sequence[Run], output: Output, *, then: str = "") -> tuple[Tables, list[Run]]:
        """Train what the store lacks; all tables, which also go to the output, and the runs that diverged."""
        task = partial(self.task, datasets={of.digest: of for of in (self.dataset, *self.splits.values())})
        execution, store = self.settings.execution, self.settings.store
        return run_grid(runs, task, output, execution=execution, store=store, then=then)

    def train_at_best_rates(self, conditions: Sequence[Condition], output: Output) -> tuple[Tables, list[Run], Rates]:
        """Choose each condition's learning rate at every depth of the settings, and train the reported seeds at it."""
        depths = self.settings.depths
        rates = self.best_rates(conditions, depths, output.below("tuning"))
        return *self.train(self.runs(conditions, depths, rates), output), rates

    def best_rates(self, conditions: Sequence[Condition], depths: Sequence[int], output: Output) -> Rates:
        """Each condition's learning rate at each depth, as `search` chooses it."""
        return self.search(conditions, depths, output)[0]

    def search(
        self, conditions: Sequence[Condition], depths: Sequence[int], output: Output, budget: int = 1
    ) -> tuple[Rates, pd.DataFrame]:
        """Choose each condition's learning rate at each depth and budget; the rates, and the search as a long table.

        The best has the highest mean validation accuracy over its tuning seeds (of equals, the lowest mean validation
        loss). It is the lowest tried while nothing has learned at any: a network at chance tells no rates apart. A best
        at an end of its range extends the range, by at most two decades. The whole search goes to tuning.csv.
        """
        check_conditions(self.settings, conditions, depths)
        tried = {(one, depth): set(self.effort(one).exponents) for one in conditions for depth in depths}
        while True:
            runs = [
                self.run_of(condition, depth, seed, rate_of(exponent), budget, tuning=True)
                for (condition, depth), exponents in tried.items()
                for exponent in sorted(exponents)
                for seed in self.settings.tuning_seeds[: self.effort(condition).seeds]
            ]
            tables, _ = self.train(runs, output, then="further rates if need be, and runs at the best")
            found = validation(tables, runs)
            best = {key: self._best(found, *key) for key in tried}
            further = {
                key: next_exponent(exponents, best[key], self.effort(key[0]).exponents)
                for key, exponents in tried.items()
            }
            if all(exponent is None for exponent in further.values()):
                break
            for key, exponent in further.items():
                tried[key] |= set() if exponent is None else {exponent}
        output.table("tuning", searched := table(tuning_rows(found)))
        rates = {(condition.name, depth): rate_of(exponent) for (condition, depth), exponent in best.items()}
        return rates, searched

    def _best(self, found: pd.DataFrame, condition: Condition, depth: int) -> int:
        tried = select(found, control=condition.name, depth_total=depth)
        means = tried.groupby("learning_rate")[["accuracy", "loss"]].mean().reset_index()
        best = means.sort_values(["accuracy", "loss"], ascending=[False, True]).iloc[0]
        learned = best["accuracy"] > 1 / len(self.dataset.classes) + LEARNED
        return exponent_of(float(best["learning_rate"] if learned else means["learning_rate"].min()))


def check_conditions(
    settings: ConditionSettings,
    conditions: Sequence[Condition],
    depths: Sequence[int],
    *,
    advice: str = "leave it out (--conditions)",
) -> None:
    """Raise BadInput, which ends in the advice, for a condition that the network cannot have: random feedback without
    convolutions, a stage or a path that is not there, first weights that it does not know."""
    for condition in conditions:
        network, first_weights = condition.network or settings.network, first_weights_of(condition, settings)
        for depth in depths if (condition.control, first_weights) != (NO_CONTROL, "he") else ():
            try:
                model = outline(network, depth, width=settings.width, first_weights=first_weights)
                condition.control.prepare(model, seed=0)
            except ValueError as error:
                raise BadInput(f"{condition.name!r} on {network}: {error}; {advice}") from None


def first_weights_of(condition: Condition, settings: ConditionSettings) -> FirstWeights:
    """The condition's own, or those of the settings."""
    given = settings.first_weights if condition.first_weights is None else condition.first_weights
    return cast(FirstWeights, given)


def rate_of(exponent: int) -> float:
    """The learning rate 10^(exponent / 2), to three digits."""
    return float(f"{10 ** (exponent / 2):.3g}")


def exponent_of(rate: float) -> int:
    """The exponent of a learning rate."""
    return round(2 * np.log10(rate))


def next_exponent(tried: set[int], best: int, first: Sequence[int]) -> int | None:
    """The exponent to try next: beyond the end at which the best is, unless that is too far from the first ones."""
    if best not in (min(tried), max(tried)):
        return None
    exponent = best + 1 if best == max(tried) else best - 1
    return exponent if first[0] - MAX_EXTENSION <= exponent <= first[-1] + MAX_EXTENSION else None


def validation(tables: Tables, runs: Sequence[Run]) -> pd.DataFrame:
    """One row a run: control, depth_total, learning_rate, seed, and validation accuracy and loss at the end; 0 and
    infinity for a run that diverged."""
    keys = ["control", "depth_total", "learning_rate", "seed"]
    rows = [(run.labels["control"], run.depth, run.labels["learning_rate"], run.seed) for run in runs]
    every = pd.DataFrame(rows, columns=keys)
    if "outcomes" not in tables:
        return every.assign(accuracy=0.0, loss=np.inf)
    outcomes = select(tables["outcomes"], split="validation")
    wide = outcomes.pivot_table(index=keys, columns="quantity", values="value").reset_index()
    return every.merge(wide, how="left", on=keys).fillna({"accuracy": 0.0, "loss": np.inf})


def tuning_rows(found: pd.DataFrame) -> Iterator[dict[str, object]]:
    """The search as rows of a long table."""
    for row in found.to_dict("records"):
        about = {key: row[key] for key in ("control", "depth_total", "learning_rate", "seed")}
        for quantity in ("accuracy", "loss"):
            yield {**about, "split": "validation", "quantity": quantity, "value": row[quantity]}
