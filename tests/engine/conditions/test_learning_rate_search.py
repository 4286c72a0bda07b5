"""Conditions: what a run of one is made of, and how its learning rate is chosen."""

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from experiments.engine.conditions.catalogue import UNMODIFIED_ARMS
from experiments.engine.conditions.conditions import Condition, ConditionSettings
from experiments.engine.conditions.controls import Control, Cut
from experiments.engine.conditions.learning_rate_search import (
    ConditionRunner,
    Effort,
    effort_by_kind,
    exponent_of,
    next_exponent,
    rate_of,
    validation,
)
from experiments.engine.running.messages import BadInput
from experiments.engine.running.output import Output
from experiments.engine.running.run import Outcome, Run
from experiments.engine.running.workers import Execution
from experiments.engine.training.data import Data, load, load_splits
from experiments.engine.training.optimisation import Training
from models import PLAIN, Flow

RESIDUAL = Condition("residual", "residual")
COIN = Condition("coin", "residual", Control(Cut(chance=0.5)))


def runner(out: Path, **changes: Any) -> ConditionRunner:
    """At toy size. changes: of its own fields, and of its settings."""
    own = {name: changes.pop(name) for name in ("splits", "effort", "outputs", "task") if name in changes}
    given: dict[str, Any] = {"depths": (8,), "seeds": (0, 1), "width": 2, "execution": Execution(1), "out": out}
    settings = ConditionSettings(**(given | {"training": Training(epochs=1), "data": Data(train_limit=256)} | changes))
    return ConditionRunner(settings, load(settings.data), **own)


def outcome(outcomes: pd.DataFrame) -> Outcome:
    return Outcome({"outcomes": outcomes, "alignment": pd.DataFrame({"value": [1.0]})})


def test_exponents_are_half_decades() -> None:
    assert [rate_of(exponent) for exponent in (-4, -3, -2, -1)] == [0.01, 0.0316, 0.1, 0.316]
    assert [exponent_of(rate_of(exponent)) for exponent in range(-12, 4)] == list(range(-12, 4))


def test_a_best_at_an_end_extends_the_range_but_not_for_ever() -> None:
    first = range(-4, 0)
    assert next_exponent({-4, -3, -2, -1}, -2, first) is None
    assert next_exponent({-4, -3, -2, -1}, -1, first) == 0
    assert next_exponent({-4, -3, -2, -1}, -4, first) == -5
    assert next_exponent({-8, -7, -6, -5, -4}, -8, first) is None


def test_a_conditions_runs_differ_by_whatever_decides_their_outcome(tmp_path: Path) -> None:
    here = runner(tmp_path)
    first = here.run_of(RESIDUAL, 8, 0, 0.1)
    assert first.name == here.run_of(Condition("another name", "residual"), 8, 0, 0.1).name
    others = [
        here.run_of(COIN, 8, 0, 0.1),
        here.run_of(RESIDUAL, 8, 0, 0.2),
        here.run_of(RESIDUAL, 8, 0, 0.1, budget=3),
    ]
    others.append(here.run_of(Condition("residual", "residual", optimiser="adam"), 8, 0, 0.1))
    others.append(here.run_of(Condition("residual", "residual", network="skipinit"), 8, 0, 0.1))
    others.append(here.run_of(Condition("residual", "residual", flow=Flow(0.6, 0.8)), 8, 0, 0.1))
    others.append(here.run_of(Condition("residual", "residual", first_weights="near-identity"), 8, 0, 0.1))
    others.append(here.run_of(RESIDUAL, 8, 0, 0.1, tuning=True))
    assert len({run.name for run in [first, *others]}) == 9
    assert others[2].recipe.training.epochs == 3


def test_the_best_rate_is_found_by_validation_beyond_the_first_range(tmp_path: Path) -> None:
    """Networks that are best at 1.0, which only an extended range holds; a rate of 3.16 diverges."""

    def train(run: Run, checkpoint: Path, **_: object) -> Outcome:
        rate = run.recipe.training.learning_rate
        accuracy = 1 - abs(math.log10(rate)) / 10
        rows = [
            {"split": split, "quantity": "accuracy", "value": value}
            for split, value in (("validation", accuracy), ("test", 1 - accuracy))  # test must play no part
        ]
        rows.append({"split": "validation", "quantity": "loss", "value": 1.0})
        return outcome(pd.DataFrame(rows)) if rate < 3 else Outcome({}, diverged_at=3)

    assert runner(tmp_path, task=train).best_rates([RESIDUAL], [8], Output(tmp_path).below("x")) == {
        ("residual", 8): 1.0
    }
    tried = pd.read_csv(tmp_path / "x" / "tuning.csv")
    assert sorted(set(tried["learning_rate"])) == [0.01, 0.0316, 0.1, 0.316, 1.0, 3.16]
    assert set(tried["seed"]) == {100, 101}


def test_rates_at_which_nothing_is_learned_are_no_best(tmp_path: Path) -> None:
    """At the three rates tried first the network stays at chance, a little better at the middle one: the search goes
    down to where it learns."""

    def train(run: Run, checkpoint: Path, **_: object) -> Outcome:
        accuracy = {0.1: 0.11, 0.00316: 0.8, 0.001: 0.7}.get(run.recipe.training.learning_rate, 0.1)
        rows = [("accuracy", accuracy), ("loss", 2.3)]
        table = pd.DataFrame(rows, columns=["quantity", "value"]).assign(split="validation")
        return outcome(table)

    assert runner(tmp_path, task=train).best_rates([COIN], [8], Output(tmp_path).below("x")) == {("coin", 8): 0.00316}


@pytest.mark.parametrize(
    ("control", "said"),
    [
        (Control(feedback=True), "'it' on mlp: random feedback needs convolutions inside residual branches"),
        (Control(Cut(stage=2)), "'it' on mlp: there is no stage 2 to cut, only 1; leave it out"),
    ],
)
def test_a_control_that_the_network_does_not_know_is_refused(tmp_path: Path, control: Control, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        runner(tmp_path, network="mlp").best_rates(
            [Condition("it", "residual", control)], [8], Output(tmp_path).below("x")
        )
    assert not any(tmp_path.iterdir())  # before anything is trained


def test_conditions_train_at_their_own_rate_budget_and_control(tmp_path: Path) -> None:
    here = runner(tmp_path)
    runs = [here.run_of(c, 8, 0, rate, budget) for c in (RESIDUAL, COIN) for rate in (0.1, 0.01) for budget in (1, 2)]
    tables, diverged = here.train(runs, Output(tmp_path / "x"))
    losses = tables["losses"].groupby(["control", "learning_rate", "budget"])["value"].agg(["size", "last"])
    assert losses["size"].tolist() == [2, 4] * 4
    assert losses["last"].nunique() == 8
    assert not diverged
    assert len(list((tmp_path / "answer" / "runs").iterdir())) == 8
    found = validation(tables, runs)
    assert len(found) == 8
    assert found["accuracy"].between(0, 1).all()


def test_a_tuning_seed_is_never_reported(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="--tuning-seeds 1: that seed is reported; choose learning rates on others"):
        runner(tmp_path, tuning_seeds=(1,)).settings.check()


def test_only_the_arms_as_they_are_are_searched_for_long() -> None:
    def rates(condition: Condition) -> tuple[bool, int | None, list[float]]:
        effort = effort_by_kind(condition)
        return condition.is_arm, effort.seeds, [rate_of(exponent) for exponent in effort.exponents]

    for arm in (*UNMODIFIED_ARMS, Condition("another name", "plain")):
        assert rates(arm) == (True, None, [0.01, 0.0316, 0.1, 0.316])
    for changed in (
        Condition("frozen", "plain", Control(frozen=0.5)),
        Condition("skipinit", "plain", network="skipinit"),
        Condition("weighted", "plain", flow=Flow(0.6, 0.8)),
        Condition("near", "plain", first_weights="near-identity"),
        Condition("delta", "plain", first_weights=0.0),
    ):
        assert rates(changed) == (False, 1, [0.0316, 0.1, 0.316])
    adam, adamw, sign = (Condition(name, "residual", optimiser=name) for name in ("adam", "adamw", "sign"))
    assert rates(adam) == rates(adamw) == (False, 1, [0.00316, 0.01, 0.0316])
    assert rates(sign) == (False, 1, [0.000316, 0.001, 0.00316])


def test_a_script_may_search_with_another_effort(tmp_path: Path) -> None:
    """Two rates on one of two seeds, for an arm, too; at another budget, and extended by the same rule."""
    seen: list[Run] = []

    def train(run: Run, checkpoint: Path, **_: object) -> Outcome:
        seen.append(run)
        accuracy = 1 - abs(math.log10(run.recipe.training.learning_rate) + 2)
        return outcome(
            pd.DataFrame({"split": "validation", "quantity": ["accuracy", "loss"], "value": [accuracy, 1.0]})
        )

    here = runner(tmp_path, tuning_seeds=(100, 101), effort=lambda _: Effort((-3, -2), 1), task=train)
    rates, _ = here.search([RESIDUAL], [8], Output(tmp_path / "x"), budget=3)
    assert rates == {("residual", 8): 0.01}
    assert sorted(run.labels["learning_rate"] for run in seen) == [0.00316, 0.01, 0.0316, 0.1]
    assert {(run.seed, run.recipe.training.epochs, run.labels["budget"]) for run in seen} == {(100, 3, 3)}


def test_a_run_that_chooses_a_rate_is_not_evaluated_on_test_images(tmp_path: Path) -> None:
    """Nowhere in its files; a reported one is, and gives the further tables."""
    here = runner(tmp_path, tuning_seeds=(100,), effort=lambda _: Effort((-2,)))
    here.train_at_best_rates([RESIDUAL, COIN], Output(tmp_path / "x"))
    splits: dict[bool, set[str]] = {True: set(), False: set()}
    tables: dict[bool, set[str]] = {True: set(), False: set()}
    for file in (tmp_path / "answer" / "runs").glob("*/*.csv"):
        found = pd.read_csv(file)
        tuning = set(found["seed"]) == {100}
        assert tuning or set(found["seed"]) <= {0, 1}
        splits[tuning] |= set(found["split"]) if "split" in found else set()
        tables[tuning].add(file.stem)
    assert splits == {True: {"train", "validation"}, False: {"train", "validation", "test"}}
    assert tables == {True: {"outcomes", "losses", "curves"}, False: {"outcomes", "losses", "curves", "alignment"}}
    joined = [pd.read_csv(file) for file in (tmp_path / "x" / "tuning").glob("*.csv")]
    assert joined
    assert all("split" not in found or "test" not in set(found["split"]) for found in joined)


@pytest.mark.parametrize("changes", [{"network": "fixup"}, {"first_weights": 0.5}])
def test_first_weights_that_a_condition_s_network_cannot_have_are_refused(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    """Whether they are the condition's or the settings'."""
    near = Condition("near", "plain", first_weights=None if "first_weights" in changes else 0.5, network="fixup")
    message = "'near' on fixup: first_weights 0.5: fixup blocks begin with weights of their own; leave it out"
    with pytest.raises(BadInput, match=message):
        runner(tmp_path, **changes).best_rates([near], [8], Output(tmp_path).below("x"))
    assert not any(tmp_path.iterdir())  # before anything is trained


def test_a_condition_has_a_flow_and_first_weights_of_its_own(tmp_path: Path) -> None:
    here = runner(tmp_path, first_weights=0.5)
    usual = here.run_of(Condition("plain", "plain"), 8, 0, 0.1).recipe
    assert (usual.flow, usual.first_weights) == (PLAIN, 0.5)
    other = Condition("other", "plain", flow=Flow(0.6, 0.8), first_weights="looks-linear")
    recipe = here.run_of(other, 8, 0, 0.1, tuning=True).recipe
    assert (recipe.flow, recipe.first_weights) == (Flow(0.6, 0.8), "looks-linear")
    assert here.run_of(Condition("zero", "plain", first_weights=0.0), 8, 0, 0.1).recipe.first_weights == 0


def test_each_seed_may_have_its_own_split(tmp_path: Path) -> None:
    """Its run is trained on that split, and says so; seeds without one have the settings' split."""
    splits = load_splits(Data(train_limit=256), (0, 1, 100))
    here = runner(tmp_path, splits=splits, seeds=(0, 1, 2), tuning_seeds=(100,), effort=lambda _: Effort((-2,)))
    runs = here.runs([RESIDUAL], (8,), {("residual", 8): 0.1})
    assert [run.recipe.data for run in runs] == [splits[0].digest, splits[1].digest, here.dataset.digest]
    assert [run.about["split_seed"] for run in runs] == [0, 1, 0]
    assert len({run.recipe.data for run in runs}) == 2
    assert here.run_of(RESIDUAL, 8, 100, 0.1, tuning=True).recipe.data == splits[100].digest
    tables, diverged, _ = here.train_at_best_rates([RESIDUAL], Output(tmp_path).below("x"))
    assert not diverged
    assert set(tables["outcomes"]["seed"]) == {0, 1, 2}


def test_a_search_s_size_is_that_of_its_condition(tmp_path: Path) -> None:
    """Networks that are best at 0.1: four rates on two seeds, or three on the first."""

    def train(run: Run, checkpoint: Path, **_: object) -> Outcome:
        accuracy = 1 - abs(math.log10(run.recipe.training.learning_rate) + 1)
        row = {"split": "validation", "quantity": ["accuracy", "loss"], "value": [accuracy, 1.0]}
        return outcome(pd.DataFrame(row))

    found = runner(tmp_path, tuning_seeds=(101, 100), task=train).best_rates(
        [RESIDUAL, COIN], [8, 14], Output(tmp_path / "x")
    )
    assert found == {(name, depth): 0.1 for name in ("residual", "coin") for depth in (8, 14)}
    tried = pd.read_csv(tmp_path / "x" / "tuning.csv")
    tried = tried[tried["quantity"] == "accuracy"]
    sizes = tried.groupby(["control", "depth_total", "seed"]).size().to_dict()
    long = {("residual", depth, seed): 4 for depth in (8, 14) for seed in (100, 101)}
    assert sizes == long | {("coin", depth, 101): 3 for depth in (8, 14)}


def test_runs_are_each_conditions_at_its_rate_there(tmp_path: Path) -> None:
    rates = {("residual", 8): 0.1, ("coin", 8): 0.2, ("residual", 14): 0.3, ("coin", 14): 0.4}
    runs = runner(tmp_path, seeds=(5, 6)).runs([RESIDUAL, COIN], (8, 14), rates, budget=3)
    found = [(run.labels["control"], run.depth, run.seed, run.labels["learning_rate"]) for run in runs]
    assert found == [
        (name, depth, seed, rates[name, depth]) for depth in (8, 14) for name in ("residual", "coin") for seed in (5, 6)
    ]
    assert all(run.recipe.training.learning_rate == run.labels["learning_rate"] for run in runs)
    assert [run.recipe.treatment for run in runs[:4]] == [Control()] * 2 + [COIN.control] * 2
    assert {(run.recipe.training.epochs, run.labels["budget"]) for run in runs} == {(3, 3)}
    ordinary = runner(tmp_path).runs([RESIDUAL], (8,), rates)
    assert (ordinary[0].recipe.training.epochs, ordinary[0].labels["budget"]) == (1, 1)
