"""The experiment on training speed: ratios, comparisons and the claim on paper, and runs at toy size."""

import math
from pathlib import Path

import pandas as pd
import pytest

from experiments.engine.reporting.console import format_steps
from experiments.engine.statistics.estimates import NO_ESTIMATE, Estimate
from experiments.training_speed import Comparison, compare, comparison_table, decide, judge, ratio
from tests.support.drawings import pick
from tests.support.scripts import drawn, toy_run


def series(*values: float) -> "pd.Series[float]":
    return pd.Series(values, dtype=float)


def test_a_ratio_on_paper() -> None:
    """Twice, four times and eight times the steps: 4 times, logarithms 2, 4, 8 apart by log 2."""
    found = ratio(series(20, 80, 400), series(10, 20, 50))
    assert found.values == pytest.approx((2, 4, 8))
    assert found.mean == pytest.approx(4)
    half = 4.3026527 * math.log(2) / math.sqrt(3)
    assert (found.low, found.high) == pytest.approx((4 * math.exp(-half), 4 * math.exp(half)))
    assert ratio(series(20, math.nan, 400), series(10, 20, 50)) is NO_ESTIMATE
    assert ratio(series(20, 30, 400), series(10, 20, math.nan)) is NO_ESTIMATE


def test_censored_steps_are_shown_as_such() -> None:
    assert format_steps(series(50, 60, 70), 3) == "60 ± 10"
    assert format_steps(series(50, math.nan, 70), 3) == "2 of 3"
    assert format_steps(series(50, 70), 3) == "2 of 3"
    assert format_steps(series(), 3) == "0 of 3"


def compared(plain: tuple[float, ...], error: tuple[float, ...], seeds: tuple[int, ...] = (0, 1, 2)) -> Comparison:
    """Plain against a residual arm of 10 steps and an error of 0.1."""
    rows = [("residual", (10.0,) * 3, (0.1,) * 3), ("plain", plain, error)]
    tables = [
        pd.DataFrame({"network": "net", "arm": arm, "seed": range(len(given[place])), "value": given[place]})
        for place in (0, 1)
        for arm, *given in rows
    ]
    steps = pd.concat(tables[:2]).assign(target=0.3)
    steps = pd.concat([steps, steps.assign(target=0.1, value=math.nan)])
    (found,) = compare(steps, pd.concat(tables[2:]), networks=("net",), arms=("residual", "plain"), seeds=seeds)
    return found


def test_comparisons_are_paired_and_need_every_seed() -> None:
    found = compared((20, 20, 20), (0.1, 0.12, 0.14))
    assert not found.ratios[0.1].values
    assert found.lowest == 0.3
    assert found.ratios[0.3].mean == pytest.approx(2)
    assert found.error.mean == pytest.approx(0.02)
    rows = comparison_table([found], 20)
    assert rows["outcome"].tolist() == ["steps ratio"] * 3 + ["test error"] * 3
    assert rows["target"].tolist()[:3] == [0.3] * 3
    gone = compared((20, 20), (0.1, 0.1))  # the third seed diverged at once: it has no row
    assert (gone.ratios[0.3], gone.error) == (NO_ESTIMATE, NO_ESTIMATE)
    lost = compared((20, 20, 20), (0.1, 0.1, 0.1), seeds=(0, 1, 2, 3))  # the fourth in both arms
    assert (lost.ratios[0.3], lost.error) == (NO_ESTIMATE, NO_ESTIMATE)
    assert comparison_table([gone], 20).empty


def between(low: float, high: float) -> Estimate:
    return Estimate((low, high), (low + high) / 2, low, high)


def test_the_claim_is_judged_at_the_lowest_loss_that_both_reach() -> None:
    ratios = {1.0: between(1, 2), 0.3: between(2, 3), 0.1: NO_ESTIMATE}
    assert Comparison("net", "plain", ratios, NO_ESTIMATE).lowest == 0.3
    assert Comparison("net", "plain", {0.1: NO_ESTIMATE}, NO_ESTIMATE).lowest is None


@pytest.mark.parametrize(
    ("steps", "error", "reading"),
    [
        (between(1.2, 2), between(-0.01, 0.01), "holds"),
        (between(1.0, 2), between(-0.01, 0.01), "undecided"),
        (between(0.8, 1.05), between(-0.01, 0.01), "does not hold"),
        (between(1.2, 2), between(0.01, 0.03), "undecided"),
        (between(1.2, 2), between(0.03, 0.05), "does not hold"),
        (between(1.2, 2), between(-0.05, -0.03), "does not hold"),
        (NO_ESTIMATE, between(-0.01, 0.01), "undecided"),
        (NO_ESTIMATE, between(0.03, 0.05), "does not hold"),
        (between(1.2, 2), NO_ESTIMATE, "undecided"),
        (between(math.nan, math.nan), between(math.nan, math.nan), "undecided"),
    ],
)
def test_the_claim_is_judged_by_margins(steps: Estimate, error: Estimate, reading: str) -> None:
    assert judge(steps, error) == reading


def test_decisions_say_what_was_and_what_was_not_reached() -> None:
    errors = pd.DataFrame({"network": "net", "arm": ["residual", "plain"], "seed": 0, "value": [0.04, 0.05]})
    assert decide([compared((20, 20, 20), (0.1, 0.1, 0.1))], errors) == {
        "net: steps, plain / residual, to loss 0.3": ("2.00 [2.00, 2.00]", "1.1", "slower"),
        "net: test error, plain - residual": (
            "+0.000 [+0.000, +0.000]",
            "0.02",
            "alike, both at the ceiling, with little room to differ",
        ),
        "net: the claim": ("", "", "holds"),
    }
    lost = decide([compared((20, math.nan, 20), (0.1, 0.2, 0.2))], errors.assign(value=0.5))
    assert lost["net: steps, plain / residual"] == ("-", "1.1", "no loss asked for is reached by all seeds of both")
    assert lost["net: test error, plain - residual"][2] == "undecided"
    assert lost["net: the claim"][2] == "undecided"
    gone = decide([compared((20, 20), (0.1, 0.1))], errors)
    assert gone["net: test error, plain - residual"] == ("-", "0.02", "not every run has one")
    assert decide([], errors) == {}


@pytest.mark.slow
def test_a_run_at_toy_size(tmp_path: Path) -> None:
    arguments = ["--seeds", 0, 1, 2, "--epochs", 2, "--width", 2, "--train-limit", 256, "--losses", 100, 1e-9]
    folder, shown = toy_run("training_speed", *arguments, cwd=tmp_path)
    outcomes, losses, steps = (pd.read_csv(folder / f"{name}.csv") for name in ("outcomes", "losses", "steps"))
    assert len(losses) == 2 * 3 * 3 * 4  # networks, arms, seeds, steps
    assert set(losses["network"]) == {"resnet", "inception"}
    assert len(steps) == 2 * 3 * 3 * 2  # targets
    assert (pick(steps, target=100)["value"] == 2).all()  # of 256 images two batches, at once
    assert pick(steps, target=1e-9)["value"].isna().all()
    assert "0 of 3" in shown
    comparisons = pd.read_csv(folder / "comparisons.csv")
    assert set(comparisons[comparisons["outcome"] == "steps ratio"]["target"]) == {100}
    accuracy = outcomes.query("split == 'test' and quantity == 'accuracy'")
    wide = accuracy.pivot(index=["network", "seed"], columns="arm", values="value")
    change = pick(comparisons, outcome="test error", arm="plain", quantity="mean").set_index("network")["value"]
    wanted = (wide["residual"] - wide["plain"]).groupby("network").mean()
    pd.testing.assert_series_equal(change.sort_index(), wanted.sort_index(), check_names=False)
    points = pd.read_csv(folder / "figures" / "training_speed.csv")
    first = losses.query("network == 'resnet' and arm == 'plain' and seed == 1").set_index("step")["value"]
    at_2 = points.query("network == 'resnet' and arm == 'plain' and seed == 1 and step == 2")["value"].item()
    assert at_2 == pytest.approx(first[[1, 2]].mean())
    assert "training_speed" in drawn(folder)


def test_without_the_plain_arm_nothing_is_said_of_the_claim(tmp_path: Path) -> None:
    arguments = ["--networks", "resnet", "--arms", "residual", "--depth", 8, "--seeds", 0, "--epochs", 1, "--width", 2]
    _, shown = toy_run("training_speed", *arguments, "--train-limit", 256, cwd=tmp_path)
    assert "since the plain arm was left out" in " ".join(shown.split())
