"""Steps to a loss: on paper, against a slow twin, censored where it is not reached; ratios and the claim."""

import math

import numpy as np
import pandas as pd
import pytest

from experiments.engine.effects import Estimate
from experiments.engine.speed import Comparison, compare, comparison_table, ratio, steps_to_loss, trailing_means
from experiments.engine.speed_ending import judge, lowest, sentence, show_steps


def losses(values: list[float], **about: object) -> pd.DataFrame:
    steps = range(1, len(values) + 1)
    return pd.DataFrame({**about, "step": steps, "split": "train", "quantity": "loss", "value": values})


def test_steps_on_paper() -> None:
    """Means of two: 3.5, 2, 0.75, 0.5, 0.75; the single 0.5 at step 3 does not count, a mean of exactly 0.5 does."""
    table = losses([4, 3, 1, 0.5, 0.5, 1], seed=7)
    assert trailing_means(table, window=2)["value"].tolist() == [3.5, 2, 0.75, 0.5, 0.75]
    assert trailing_means(table, window=2)["step"].tolist() == [2, 3, 4, 5, 6]
    found = steps_to_loss(table, (2.0, 0.5, 0.4), window=2)
    assert found["target"].tolist() == [2.0, 0.5, 0.4]
    assert found["value"].tolist()[:2] == [3, 5]
    assert math.isnan(found["value"].iloc[2])  # censored, not the last step
    assert (set(found["quantity"]), set(found["seed"])) == ({"steps"}, {7})
    assert steps_to_loss(table, (3.0,), window=1)["value"].item() == 2


def test_against_a_loop_over_runs() -> None:
    generator = np.random.default_rng(0)
    runs = {
        (arm, seed): (3 * np.exp(-np.arange(40) / 15) + generator.random(40) / 2).tolist()
        for arm in ("residual", "plain")
        for seed in (0, 1, 2)
    }
    table = pd.concat([losses(values, arm=arm, seed=seed) for (arm, seed), values in runs.items()])
    shuffled = table.sample(frac=1, random_state=0)  # neither rows nor index in order
    for window in (1, 5):
        found = steps_to_loss(shuffled, (2.0, 1.0, 0.3), window=window).set_index(["arm", "seed", "target"])["value"]
        assert len(found) == 6 * 3
        for (arm, seed, target), step in found.items():  # type: ignore[misc]
            values = runs[arm, seed]
            reached = [end for end in range(window, 41) if np.mean(values[end - window : end]) <= target]
            assert step == reached[0] if reached else math.isnan(step)
    assert found.isna().any()
    assert found.notna().any()


def test_a_run_shorter_than_the_window_reaches_nothing() -> None:
    both = pd.concat([losses([0.1, 0.1], seed=0), losses([0.1, 0.1, 0.1], seed=1)])
    assert steps_to_loss(both, (1.0,), window=3).set_index("seed")["value"].isna().tolist() == [True, False]


def series(*values: float) -> "pd.Series[float]":
    return pd.Series(values, dtype=float)


def test_a_ratio_on_paper() -> None:
    """Twice, four times and eight times the steps: 4 times, logarithms 2, 4, 8 apart by log 2."""
    found = ratio(series(20, 80, 400), series(10, 20, 50))
    assert found is not None
    assert found.values == pytest.approx((2, 4, 8))
    assert found.mean == pytest.approx(4)
    half = 4.3026527 * math.log(2) / math.sqrt(3)
    assert (found.low, found.high) == pytest.approx((4 * math.exp(-half), 4 * math.exp(half)))
    assert ratio(series(20, math.nan, 400), series(10, 20, 50)) is None
    assert ratio(series(20, 30, 400), series(10, 20, math.nan)) is None


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
    assert found.ratios[0.1] is None
    at = lowest(found)
    assert at is not None
    assert (at[0], at[1].mean) == (0.3, pytest.approx(2))
    assert found.error is not None
    assert found.error.mean == pytest.approx(0.02)
    rows = comparison_table([found], 20)
    assert rows["outcome"].tolist() == ["steps ratio"] * 3 + ["test error"] * 3
    assert rows["target"].tolist()[:3] == [0.3] * 3
    gone = compared((20, 20), (0.1, 0.1))  # the third seed diverged at once: it has no row
    assert (gone.ratios[0.3], gone.error) == (None, None)
    lost = compared((20, 20, 20), (0.1, 0.1, 0.1), seeds=(0, 1, 2, 3))  # the fourth in both arms
    assert (lost.ratios[0.3], lost.error) == (None, None)
    assert comparison_table([gone], 20).empty


def between(low: float, high: float) -> Estimate:
    return Estimate((), (low + high) / 2, low, high)


def test_the_claim_is_judged_at_the_lowest_loss_that_both_reach() -> None:
    ratios = {1.0: between(1, 2), 0.3: between(2, 3), 0.1: None}
    assert lowest(Comparison("net", "plain", ratios, None)) == (0.3, between(2, 3))
    assert lowest(Comparison("net", "plain", {0.1: None}, None)) is None


@pytest.mark.parametrize(
    ("steps", "error", "verdict"),
    [
        (between(1.2, 2), between(-0.01, 0.01), "holds"),
        (between(1.0, 2), between(-0.01, 0.01), "is undecided"),
        (between(0.8, 1.05), between(-0.01, 0.01), "does not hold"),
        (between(1.2, 2), between(0.01, 0.03), "is undecided"),
        (between(1.2, 2), between(0.03, 0.05), "does not hold"),
        (between(1.2, 2), between(-0.05, -0.03), "does not hold"),
        (None, between(-0.01, 0.01), "is undecided"),
        (None, between(0.03, 0.05), "does not hold"),
        (between(1.2, 2), None, "is undecided"),
        (between(math.nan, math.nan), between(math.nan, math.nan), "is undecided"),
    ],
)
def test_the_claim_is_judged_by_margins(steps: Estimate | None, error: Estimate | None, verdict: str) -> None:
    assert judge(steps, error) == verdict


def test_the_sentence_tells_what_was_and_what_was_not_reached() -> None:
    errors = pd.DataFrame({"network": "net", "arm": ["residual", "plain"], "seed": 0, "value": [0.04, 0.05]})
    said = sentence([compared((20, 20, 20), (0.1, 0.1, 0.1))], errors, seeds=3, title="paper")
    assert "in net it holds (to a loss of 0.3, the lowest that all seeds of both reach, plain takes 2.00 [2.00" in said
    assert "differs by +0.000 [+0.000, +0.000], both at the ceiling" in said
    lost = compared((20, math.nan, 20), (0.1, 0.1, 0.1))
    said = sentence([lost], errors.assign(value=0.5), seeds=3, title="paper")
    assert "in net it is undecided (no loss asked for is reached by all seeds of both" in said
    assert "ceiling" not in said
    assert "the plain arm was left out" in sentence([], errors, seeds=3, title="paper")


def test_censored_steps_are_shown_as_such() -> None:
    assert show_steps(series(50, 60, 70), 3) == "60 ± 10"
    assert show_steps(series(50, math.nan, 70), 3) == "2 of 3"
    assert show_steps(series(50, 70), 3) == "2 of 3"
    assert show_steps(series(), 3) == "0 of 3"
