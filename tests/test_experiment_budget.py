"""The budget experiment: its words on paper, bad input and a toy run."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from experiments import budget
from experiments.engine.budgets import fitting, generalising, outcomes_of, sentence, verdict_table
from experiments.engine.steps_recovery import steps_recovery, steps_recovery_table
from tests.conditions import Ran, run_twice
from tests.scripts import print_of
from tests.support.drawings import pick

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
    ends = outcomes_of(pd.concat([outcomes(FITS), outcomes({"residual": [(0.8, 0.9)] * 3}, times=1)]))
    assert pick(ends, budget=10, seed=2)[["train", "test"]].to_numpy().tolist() == [[0.998, 0.97]]
    assert pick(ends, budget=1)["gap"].to_numpy() == pytest.approx([-0.1] * 3)


@pytest.mark.parametrize(
    ("train", "spread", "word"),
    [(0.0, 0.0, "fits"), (-0.1, 0.0, "does not fit"), (-0.009, 0.0, "undecided"), (-0.1, 0.1, "undecided")],
)
def test_fitting_needs_the_whole_interval(train: float, spread: float, word: str) -> None:
    ends = outcomes_of(outcomes({"plain": moved(train, 0.0, spread)}))
    found, said = fitting(ends, 8, 10, "plain")
    assert said == word
    assert found.mean == pytest.approx(0.999 + train)


@pytest.mark.parametrize(
    ("test", "spread", "word"),
    [
        (0.03, 0.0, "better"), (-0.03, 0.0, "worse"), (0.01, 0.0, "as well"), (-0.01, 0.0, "as well"),
        (0.0, 0.02, "undecided"), (-0.03, 0.02, "undecided"),
    ],
)  # fmt: skip
def test_generalising_is_against_residual_by_seed(test: float, spread: float, word: str) -> None:
    ends = outcomes_of(outcomes({**FITS, "plain": moved(0.0, test, spread)}))
    found, said = generalising(ends, 8, 10, "plain")
    assert said == word
    assert found.values == pytest.approx((test - spread, test, test + spread))
    assert generalising(ends, 8, 10, "stop-gradient")[1] == "undecided"


def said(pairs: Pairs, *earlier: str) -> str:
    ends = [outcomes(pairs), outcomes({arm: [(0.5, 0.5)] * 3 for arm in earlier}, times=3)]
    return sentence(outcomes_of(pd.concat(ends)), depth=8, title="paper")


def test_the_sentence_sorts_the_arms_of_the_largest_budget() -> None:
    text = said(
        {
            **FITS,
            "stop-gradient": moved(0.0, -0.1),
            "gradient-only": moved(-0.1, 0.0),
            "plain": moved(-0.1, 0.0, 0.1),
        },
        "shortest-path",
    )
    assert text.startswith("paper, depth 8, n = 3: with 10 times the steps, fits: residual, stop-gradient; does not ")
    assert "does not fit: gradient-only; undecided: plain; diverged: shortest-path (training accuracy ag" in text
    assert "Of those that fit: stop-gradient generalises worse (-0.100 [-0.100, -0.100]) (test accuracy minus" in text
    assert "Of those that fit: none beside residual (test" in said(FITS)


def test_the_sentence_tells_how_each_arm_that_fits_generalises() -> None:
    text = said(
        {
            **FITS,
            "stop-gradient": moved(0.0, 0.03),
            "gradient-only": moved(0.0, 0.01),
            "plain": [(1.0, 0.95), (1.0, 0.90), (1.0, 0.99)],
        }
    )
    assert "stop-gradient generalises better (+0.030 [" in text
    assert "gradient-only generalises as well (+0.010 [" in text
    assert "plain is undecided (-0.013 [-0." in text
    alone = said({"stop-gradient": moved(0.0, 0.0)})
    assert "fits: stop-gradient; diverged: residual, gradient-only" in alone
    assert "stop-gradient has no seed in common with residual" in alone
    with_none = sentence(outcomes_of(outcomes(FITS)), depth=14, title="paper")
    assert with_none == "paper, depth 14: nothing can be said, since every cell diverged."


def test_the_verdicts_table_holds_every_estimate() -> None:
    rows = verdict_table(outcomes_of(pd.concat([outcomes({**FITS, "plain": moved(-0.1, -0.2)}), outcomes(FITS, 1)])))
    its = pick(rows, arm="plain", budget=10, quantity="mean").set_index("outcome")["value"]
    assert its.to_dict() == pytest.approx({"training accuracy": 0.899, "test accuracy - residual's": -0.2})
    assert len(rows) == 3 * 2 * 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--budgets", "0", "1"], "--budgets 0: give whole numbers from 1"),
        (["--budgets", "3", "3"], "--budgets: got 3 3; give one or more, each once"),
        (["--targets", "0.1", "-1"], "--targets -1: give losses above 0"),
        (["--targets", "0"], "--targets 0: give losses above 0"),
        (["--targets"], "--targets: got none; give one or more, each once"),
        (["--seeds", "100"], "--tuning-seeds 100: that seed is reported"),
    ],
)
def test_a_users_mistake_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    shown = print_of("budget", arguments, capsys, status=2)
    assert (message in shown, len(shown.splitlines())) == (True, 1)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    return run_twice(budget, tmp_path_factory.mktemp("out"), budgets=(1, 2), targets=(100.0, 1e-9))


def test_a_toy_run_trains_longer_at_the_rate_of_once_the_epochs(ran: Ran) -> None:
    found = pd.read_csv(ran.folder / "outcomes.csv")
    losses = pd.read_csv(ran.folder / "losses.csv")
    sizes = losses.groupby(["arm", "seed", "budget"])["step"].max().unstack("budget")
    assert (sizes.to_numpy() == [2, 4]).all()  # 256 images, 128 a step
    assert len(sizes) == 5 * 2
    rates = found.groupby(["arm", "budget"])["learning_rate"].agg(["min", "max"]).unstack("budget")
    assert all(len(set(of_arm)) == 1 for of_arm in rates.to_numpy().tolist())
    search = pd.read_csv(ran.folder / "tuning" / "tuning.csv")
    assert set(search["seed"]) == {100}
    assert not (ran.folder / "tuning" / "verdicts.csv").exists()


def test_a_toy_run_counts_steps_and_judges(ran: Ran) -> None:
    steps = pd.read_csv(ran.folder / "steps.csv")
    assert (pick(steps, target=100.0)["value"] == 2).all()  # an epoch's mean, at the earliest
    assert pick(steps, target=1e-9)["value"].isna().all()
    assert len(steps) == 2 * 5 * 2 * 2
    verdicts, found = (pd.read_csv(ran.folder / f"{name}.csv") for name in ("verdicts", "outcomes"))
    test = pick(found, budget=2, split="test", quantity="accuracy").pivot(index="seed", columns="arm", values="value")
    mean = pick(verdicts, budget=2, arm="plain", outcome="test accuracy - residual's", quantity="mean")["value"].item()
    assert mean == pytest.approx((test["plain"] - test["residual"]).mean())
    assert np.isnan(pick(verdicts, quantity="low")["value"]).all()  # two seeds
    assert {file.name for file in (ran.folder / "figures").iterdir()} == {f"budget.{e}" for e in ("csv", "pdf", "png")}
    assert "0 of 2" in ran.shown
    assert "depth 8, n = 2: with 2 times the steps, undecided: residual, stop-gradient, gradient-only" in ran.shown


def test_a_second_call_repeats_no_cell(ran: Ran) -> None:
    assert not ran.repeated
    assert "20 of 20 cells are already done" in ran.log
    assert ran.again == ran.shown


def test_r_of_steps_on_paper_and_none_where_a_step_is_censored() -> None:
    """Plain takes 100 steps more than residual in each seed, the arm 25: R = 0.75. One seed that does not get there
    leaves no R for its arm, and where it is plain's for none."""
    first = {"plain": (120.0, 130.0, 140.0), "residual": (20.0, 30.0, 40.0), "shortest-path": (45.0, 55.0, 65.0)}
    steps = pd.DataFrame(
        {"depth_total": 8, "budget": 1, "arm": arm, "seed": seed, "target": 0.3, "value": value}
        for arm, values in first.items()
        for seed, value in enumerate(values)
    )
    found = steps_recovery(steps, "shortest-path", 0.3)
    assert found is not None
    assert (found.mean, found.low, found.high) == pytest.approx((0.75, 0.75, 0.75))
    for arm, r in (("plain", 0), ("residual", 1)):
        assert steps_recovery(steps, arm, 0.3).mean == pytest.approx(r)  # type: ignore[union-attr]
    assert steps_recovery(steps, "stop-gradient", 0.3) is None
    censored = steps.assign(value=steps["value"].where((steps["arm"] != "shortest-path") | (steps["seed"] != 1)))
    assert steps_recovery(censored, "shortest-path", 0.3) is None
    assert steps_recovery(censored, "residual", 0.3) is not None
    rows = steps_recovery_table(censored)
    assert rows[rows["arm"] == "shortest-path"]["value"].isna().all()
    assert rows[(rows["arm"] == "residual") & (rows["quantity"] == "R")]["value"].tolist() == pytest.approx([1])
    none = steps.assign(value=steps["value"].where((steps["arm"] != "plain") | (steps["seed"] != 1)))
    assert all(steps_recovery(none, arm, 0.3) is None for arm in first)
