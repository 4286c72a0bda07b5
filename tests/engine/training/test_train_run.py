"""One description of a run: every field of it decides the run's name and what the run does."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn

from experiments.engine.conditions.controls import Control, Cut
from experiments.engine.conditions.learning_rate_search import train_condition
from experiments.engine.running.run import Run
from experiments.engine.training import compute, loop
from experiments.engine.training.data import Batches, Data, Dataset, load
from experiments.engine.training.optimisation import Training
from experiments.engine.training.settings import NetworkSettings
from experiments.engine.training.train_run import train_run
from models import STOP_GRADIENT

CHANGES: dict[str, Any] = {  # another value of every field
    "depth": 14,
    "seed": 1,
    "recipe.network": "preactivation",
    "recipe.width": 4,
    "recipe.data": "another digest",
    "recipe.training.epochs": 3,
    "recipe.training.batch_size": 128,
    "recipe.training.learning_rate": 0.05,
    "recipe.training.optimiser": "adam",
    "recipe.training.momentum": 0.5,
    "recipe.training.weight_decay": 0.1,
    "recipe.training.schedule": "step",
    "recipe.computing.autocast": True,
    "recipe.computing.channels_last": True,
    "recipe.computing.compile": True,
    "recipe.computing.capture": True,
    "recipe.device": "cuda:99",
    "recipe.flow": STOP_GRADIENT,
    "recipe.first_weights": "near-identity",
    "recipe.evaluated": ("train", "validation"),
    "recipe.processes": 2,
    "recipe.treatment": Control(Cut(stage=2)),
}
NO_OUTCOME = {"experiment", "outputs", "labels", "about", "work", "pace"}
"""Fields of a run that say whose it is, what is asked of it and how it is shown."""


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return load(Data(train_limit=256))


@pytest.fixture(scope="module")
def run(dataset: Dataset) -> Run:
    settings = NetworkSettings(width=2, seeds=(0,), training=Training(epochs=2, batch_size=64))
    about: dict[str, Any] = {"arms": ("residual",), "depths": (8,), "outputs": ("alignment",)}
    (made,) = settings.runs("toy", dataset, treatment=Control(), **about)
    return made


def paths(value: object, prefix: str = "") -> Iterator[str]:
    """The dotted names of all fields of dataclasses; a flow's and a treatment's have their own tests."""
    for field in fields(value):  # type: ignore[arg-type]
        inner, path = getattr(value, field.name), prefix + field.name
        if is_dataclass(inner) and field.name not in ("treatment", "flow"):
            yield from paths(inner, f"{path}.")
        elif path not in NO_OUTCOME | {"arm"}:  # the arm names the flow, and stands in the run's name
            yield path


def changed(value: Any, path: str, to: object) -> Any:
    name, _, rest = path.partition(".")
    return replace(value, **{name: changed(getattr(value, name), rest, to) if rest else to})


def behaviour(run: Run, dataset: Dataset) -> object:
    """What a run does: its losses and updates, the splits it is evaluated on, the layout of its weights, whether it was
    compiled, what it warns of; or how it fails."""
    compiled, warnings = list[object](), list[str]()

    def note(graph: torch.fx.GraphModule, inputs: object) -> object:
        compiled.append(graph)
        return graph.forward

    layouts: list[bool] = []
    lay_out = compute.Computing.lay_out

    def noted(computing: compute.Computing, model: nn.Module) -> None:
        lay_out(computing, model)
        weights = [p for p in model.parameters() if p.ndim == 4 and p.shape[2] > 1]
        layouts.append(all(p.is_contiguous(memory_format=torch.channels_last) for p in weights))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compute, "BACKEND", note)
        patch.setattr(loop.logger, "warning", warnings.append)
        patch.setattr(compute.Computing, "lay_out", noted)
        try:
            outcome = train_condition(run, datasets={run.recipe.data: dataset})
        except (ValueError, AssertionError, RuntimeError) as error:
            return type(error), str(error)
    evaluated = outcome.tables["outcomes"]["split"].unique().tolist()
    return outcome.tables["losses"]["value"].tolist(), evaluated, layouts, len(compiled), warnings


def test_every_field_has_another_value_here(run: Run) -> None:
    assert set(paths(run)) == set(CHANGES)


@pytest.fixture(scope="module")
def usual(run: Run, dataset: Dataset) -> object:
    found = behaviour(run, dataset)
    assert behaviour(run, dataset) == found
    return found


@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.parametrize("path", CHANGES)
def test_every_field_changes_the_name_and_what_the_run_does(
    path: str, run: Run, dataset: Dataset, usual: object
) -> None:
    other = changed(run, path, CHANGES[path])
    assert other.name != run.name
    assert behaviour(other, dataset) != usual


@pytest.mark.parametrize("name", sorted(NO_OUTCOME))
def test_what_decides_no_outcome_is_not_in_the_name(name: str, run: Run) -> None:
    given = {"experiment": "x", "outputs": ("x",), "labels": {"x": 1}, "about": {"x": 1}, "work": 2.0, "pace": "x"}
    assert replace(run, **{name: given[name]}).name == run.name


def test_another_data_set_or_number_of_processes_is_refused(run: Run, dataset: Dataset) -> None:
    for path, message in (
        ("recipe.data", f"its recipe says data 'another digest', and here it is '{dataset.digest}'"),
        ("recipe.processes", "its recipe says processes 2, and here it is 1"),
    ):
        with pytest.raises(ValueError, match=message):
            train_run(changed(run, path, CHANGES[path]), dataset=dataset)


def test_a_table_that_is_not_among_the_outputs_is_refused_before_training(run: Run, dataset: Dataset) -> None:
    def measure(model: nn.Module, batches: Batches, epoch: int, last: bool) -> dict[str, pd.DataFrame]:
        assert epoch == 0
        return {"norms": pd.DataFrame({"value": [1.0]})}

    with pytest.raises(
        ValueError, match=r"measured norms, not among the run's outputs \('alignment',\): name it there"
    ):
        train_run(run, dataset=dataset, measure=measure)
