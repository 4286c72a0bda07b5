"""The budget experiment: its decisions and its steps on paper, and a run at toy size."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from experiments.budget import (
    comparison_table,
    decide,
    final_accuracies,
    fitting,
    generalising,
    steps_gap,
    steps_gap_table,
)
from tests.support.conditions import short_search
from tests.support.drawings import pick
from tests.support.scripts import drawn, toy_run

Pairs = Mapping[str, Sequence[tuple[float, float]]]  # arm: training and test accuracy of each seed
FITS: Pairs = {"residual": [(1.0, 0.95), (0.999, 0.96), (0.998, 0.97)]}


def outcomes(pairs: Pairs, times: int = 10) -> pd.DataFrame:
    return pd.DataFrame(
        {"arm": arm, "depth_total": 8, "budget": times, "seed": seed, "split": split, "quantity": quantity, "value": v}
        for arm, values in pairs.items()
        for seed, pair in enumerate(values)
        for split, value in (*zip(("train", "test"), pair, strict=True), ("validation", 0.5))
        for quantity, v in (("accuracy", value), ("loss", 7.0))
    )


def moved(train: float, test: float, spread: float = 0.0) -> list[tuple[float, float]]:
    """Residual's accuracies and these differences, which are wider by `spread` from seed to seed."""
    shifts = zip(FITS["residual"], (-spread, 0, spread), strict=True)
    return [(own_train + train + more, own_test + test + more) for (own_train, own_test), more in shifts]


def test_ends_are_accuracies_and_their_gap() -> None:
    ends = final_accuracies(pd.concat([outcomes(FITS), outcomes({"residual": [(0.8, 0.9)] * 3}, times=1)]))
    assert pick(ends, budget=10, seed=2)[["train", "test"]].to_numpy().tolist() == [[0.998, 0.97]]
    assert pick(ends, budget=1)["gap"].to_numpy() == pytest.approx([-0.1] * 3)


@pytest.mark.parametrize(
    ("train", "spread", "word"),
    [(0.0, 0.0, "fits"), (-0.1, 0.0, "does not fit"), (-0.009, 0.0, "undecided"), (-0.1, 0.1, "undecided")],
)
def test_fitting_needs_the_whole_interval(train: float, spread: float, word: str) -> None:
    ends = final_accuracies(outcomes({"plain": moved(train, 0.0, spread)}))
    found, reading = fitting(ends, 8, 10, "plain")
    assert reading == word
    assert found.mean == pytest.approx(0.999 + train)


@pytest.mark.parametrize(
    ("test", "spread", "word"),
    [
        (0.03, 0.0, "better"), (-0.03, 0.0, "worse"), (0.01, 0.0, "as well"), (-0.01, 0.0, "as well"),
        (0.0, 0.02, "undecided"), (-0.03, 0.02, "undecided"),
    ],
)  # fmt: skip
def test_generalising_is_against_residual_by_seed(test: float, spread: float, word: str) -> None:
    ends = final_accuracies(outcomes({**FITS, "plain": moved(0.0, test, spread)}))
    found, reading = generalising(ends, 8, 10, "plain")
    assert reading == word
    assert found.values == pytest.approx((test - spread, test, test + spread))
    assert generalising(ends, 8, 10, "stop-gradient")[1] == "no seed in common with residual"


def decisions(pairs: Pairs) -> dict[str, str]:
    """Of the largest budget, beside arms that finished at a smaller one alone: estimate and reading, as one text."""
    both = pd.concat([outcomes(pairs), outcomes({"shortest-path": [(0.5, 0.5)] * 3}, times=3)])
    found = decide(final_accuracies(both), 8, 10)
    assert {margin for _, margin, _ in found.values()} <= {"0.99", "0.02"}
    return {effect: f"{text} {reading}" for effect, (text, _, reading) in found.items()}


def test_the_arms_of_the_largest_budget_are_decided_on() -> None:
    ends = {"stop-gradient": moved(0.0, -0.1), "gradient-only": moved(-0.1, 0.0), "plain": moved(-0.1, 0.0, 0.1)}
    found = decisions({**FITS, **ends})
    readings = {effect: text.split("] ")[-1] for effect, text in found.items()}
    assert readings == {
        "residual: training accuracy": "fits",
        "stop-gradient: training accuracy": "fits",
        "stop-gradient: test accuracy - residual's": "worse",
        "gradient-only: training accuracy": "does not fit",
        "plain: training accuracy": "undecided",
        "shortest-path: training accuracy": "- diverged",
    }
    assert found["stop-gradient: test accuracy - residual's"] == "-0.100 [-0.100, -0.100] worse"
    alone = decisions({"stop-gradient": moved(0.0, 0.0)})
    assert alone["residual: training accuracy"] == "- diverged"
    assert alone["stop-gradient: test accuracy - residual's"] == "- no seed in common with residual"


def test_the_table_of_comparisons_holds_every_estimate() -> None:
    both = pd.concat([outcomes({**FITS, "plain": moved(-0.1, -0.2)}), outcomes(FITS, 1)])
    rows = comparison_table(final_accuracies(both))
    own = pick(rows, arm="plain", budget=10, quantity="mean").set_index("outcome")["value"]
    assert own.to_dict() == pytest.approx({"training accuracy": 0.899, "test accuracy - residual's": -0.2})
    assert len(rows) == 3 * 2 * 4


def test_the_gap_closed_in_steps_on_paper_and_none_where_a_step_is_censored() -> None:
    """Plain takes 100 steps more than residual in each seed, the arm 25: R = 0.75. One seed that does not get there
    leaves no R for its arm, and where it is plain's for none."""
    first = {"plain": (120.0, 130.0, 140.0), "residual": (20.0, 30.0, 40.0), "shortest-path": (45.0, 55.0, 65.0)}
    steps = pd.DataFrame(
        {"depth_total": 8, "budget": 1, "arm": arm, "seed": seed, "target": 0.3, "value": value}
        for arm, values in first.items()
        for seed, value in enumerate(values)
    )
    found = steps_gap(steps, "shortest-path", 0.3)
    assert found is not None
    assert (found.mean, found.low, found.high) == pytest.approx((0.75, 0.75, 0.75))
    for arm, r in (("plain", 0), ("residual", 1)):
        assert steps_gap(steps, arm, 0.3).mean == pytest.approx(r)  # type: ignore[union-attr]
    assert steps_gap(steps, "stop-gradient", 0.3) is None
    censored = steps.assign(value=steps["value"].where((steps["arm"] != "shortest-path") | (steps["seed"] != 1)))
    assert steps_gap(censored, "shortest-path", 0.3) is None
    assert steps_gap(censored, "residual", 0.3) is not None
    rows = steps_gap_table(censored)
    assert rows[rows["arm"] == "shortest-path"]["value"].isna().all()
    assert rows[(rows["arm"] == "residual") & (rows["quantity"] == "R")]["value"].tolist() == pytest.approx([1])
    none = steps.assign(value=steps["value"].where((steps["arm"] != "plain") | (steps["seed"] != 1)))
    assert all(steps_gap(none, arm, 0.3) is None for arm in first)


def test_a_toy_run_trains_longer_at_the_rate_of_once_the_epochs(tmp_path: Path) -> None:
    arguments = ["--depths", 8, "--seeds", 0, 1, "--tuning-seeds", 100, "--epochs", 1, "--width", 2]
    arguments += ["--train-limit", 256, "--budgets", 1, 2, "--targets", 100, 1e-9]
    with short_search():
        folder, shown = toy_run("budget", *arguments, cwd=tmp_path)
    found, losses, steps, verdicts = (
        pd.read_csv(folder / f"{name}.csv") for name in ("outcomes", "losses", "steps", "verdicts")
    )
    sizes = losses.groupby(["arm", "seed", "budget"])["step"].max().unstack("budget")
    assert (sizes.to_numpy() == [2, 4]).all()  # 256 images, 128 a step
    assert len(sizes) == 5 * 2
    rates = found.groupby(["arm", "budget"])["learning_rate"].agg(["min", "max"]).unstack("budget")
    assert all(len(set(of_arm)) == 1 for of_arm in rates.to_numpy().tolist())
    assert set(pd.read_csv(folder / "tuning" / "tuning.csv")["seed"]) == {100}
    assert not (folder / "tuning" / "verdicts.csv").exists()
    assert (pick(steps, target=100.0)["value"] == 2).all()  # an epoch's mean, at the earliest
    assert pick(steps, target=1e-9)["value"].isna().all()
    assert len(steps) == 2 * 5 * 2 * 2
    test = pick(found, budget=2, split="test", quantity="accuracy").pivot(index="seed", columns="arm", values="value")
    mean = pick(verdicts, budget=2, arm="plain", outcome="test accuracy - residual's", quantity="mean")["value"].item()
    assert mean == pytest.approx((test["plain"] - test["residual"]).mean())
    assert np.isnan(pick(verdicts, quantity="low")["value"]).all()  # two seeds
    assert drawn(folder) == {"budget"}
    assert "0 of 2" in shown
    assert "Decisions: digits 8x8, depth 8, 2 times the steps, n = 2" in shown
