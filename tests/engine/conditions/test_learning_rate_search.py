"""Conditions: what a run of one is made of, and how its learning rate is chosen."""

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from experiments.engine.conditions import learning_rate_search as module
from experiments.engine.conditions.catalogue import UNMODIFIED_ARMS
from experiments.engine.conditions.conditions import Condition, ConditionSettings
from experiments.engine.conditions.controls import Control, Cut
from experiments.engine.conditions.learning_rate_search import (
    ConditionRunner,
    exponent_of,
    first_exponents,
    next_exponent,
    rate_of,
    validation,
)
from experiments.engine.running.messages import BadInput
from experiments.engine.running.output import Output
from experiments.engine.running.run import Outcome, Run
from experiments.engine.running.workers import Execution
from experiments.engine.training.data import Data, load
from experiments.engine.training.optimisation import Training

RESIDUAL = Condition("residual", "residual")
COIN = Condition("coin", "residual", Control(Cut(chance=0.5)))


def runner(out: Path, **changes: Any) -> ConditionRunner:
    given: dict[str, Any] = {"depths": (8,), "seeds": (0, 1), "width": 2, "execution": Execution(1), "out": out}
    settings = ConditionSettings(**(given | {"training": Training(epochs=1), "data": Data(train_limit=256)} | changes))
    return ConditionRunner(settings, load(settings.data))


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
    assert len({run.name for run in [first, *others]}) == 6
    assert others[2].recipe.training.epochs == 3


def test_the_best_rate_is_found_by_validation_beyond_the_first_range(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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

    monkeypatch.setattr(module, "train_condition", train)
    assert runner(tmp_path).best_rates([RESIDUAL], [8], tmp_path / "x") == {("residual", 8): 1.0}
    tried = pd.read_csv(tmp_path / "x" / "tuning.csv")
    assert sorted(set(tried["learning_rate"])) == [0.01, 0.0316, 0.1, 0.316, 1.0, 3.16]
    assert set(tried["seed"]) == {100, 101}


def test_rates_at_which_nothing_is_learned_are_no_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the three rates tried first the network stays at chance, a little better at the middle one: the search goes
    down to where it learns."""

    def train(run: Run, checkpoint: Path, **_: object) -> Outcome:
        accuracy = {0.1: 0.11, 0.00316: 0.8, 0.001: 0.7}.get(run.recipe.training.learning_rate, 0.1)
        rows = [("accuracy", accuracy), ("loss", 2.3)]
        table = pd.DataFrame(rows, columns=["quantity", "value"]).assign(split="validation")
        return outcome(table)

    monkeypatch.setattr(module, "train_condition", train)
    assert runner(tmp_path).best_rates([COIN], [8], tmp_path / "x") == {("coin", 8): 0.00316}


@pytest.mark.parametrize(
    ("control", "said"),
    [
        (Control(feedback=True), "'it' on mlp: random feedback needs convolutions inside residual branches"),
        (Control(Cut(stage=2)), "'it' on mlp: there is no stage 2 to cut, only 1; leave it out"),
    ],
)
def test_a_control_that_the_network_does_not_know_is_refused(tmp_path: Path, control: Control, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        runner(tmp_path, network="mlp").best_rates([Condition("it", "residual", control)], [8], tmp_path / "x")
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
    arms = [*UNMODIFIED_ARMS, Condition("another name", "plain")]
    assert all((c.is_arm, first_exponents(c)) == (True, range(-4, 0)) for c in arms)
    assert (COIN.is_arm, [rate_of(exponent) for exponent in first_exponents(COIN)]) == (False, [0.0316, 0.1, 0.316])
    assert not Condition("frozen", "plain", Control(frozen=0.5)).is_arm
    assert not Condition("skipinit", "plain", network="skipinit").is_arm
    adam, sign = (Condition(name, "residual", optimiser=name) for name in ("adam", "sign"))
    assert (adam.is_arm, [rate_of(exponent) for exponent in first_exponents(adam)]) == (False, [0.00316, 0.01, 0.0316])
    assert (sign.is_arm, [rate_of(exponent) for exponent in first_exponents(sign)]) == (
        False,
        [0.000316, 0.001, 0.00316],
    )


def test_a_search_s_size_is_that_of_its_condition(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks that are best at 0.1: four rates on two seeds, or three on the first."""

    def train(run: Run, checkpoint: Path, **_: object) -> Outcome:
        accuracy = 1 - abs(math.log10(run.recipe.training.learning_rate) + 1)
        row = {"split": "validation", "quantity": ["accuracy", "loss"], "value": [accuracy, 1.0]}
        return outcome(pd.DataFrame(row))

    monkeypatch.setattr(module, "train_condition", train)
    found = runner(tmp_path, tuning_seeds=(101, 100)).best_rates([RESIDUAL, COIN], [8, 14], tmp_path / "x")
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
