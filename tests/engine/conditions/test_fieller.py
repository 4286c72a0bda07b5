"""R, the part of a gap that an arm closes: by construction, on paper, against a search, and in simulated seeds."""

import math

import numpy as np
import pytest
from scipy import optimize, stats

from experiments.engine.score import NONE_TO_EXPLAIN, coverage, fieller, recovery

PLAIN, RESIDUAL = np.array([0.8, 0.7, 0.9, 0.75]), np.array([0.1, 0.2, 0.1, 0.05])


def test_plain_recovers_nothing_and_residual_all() -> None:
    for arm, wanted in ((PLAIN, 0), (RESIDUAL, 1)):
        found = recovery(PLAIN, arm, RESIDUAL)
        assert (found.mean, found.low, found.high) == pytest.approx((wanted,) * 3, abs=1e-7)
        assert not found.note


def test_half_way_of_every_seed_is_half() -> None:
    """The interval has no width; its ends are roots of what is 0 to rounding, 1e-16, which leaves 1e-8."""
    found = recovery(PLAIN, (PLAIN + RESIDUAL) / 2, RESIDUAL)
    assert (found.mean, found.low, found.high) == pytest.approx((0.5,) * 3, abs=1e-7)


def test_the_interval_holds_what_a_paired_t_test_does_not_reject() -> None:
    """The slow obvious twin: where does the test of above - R below change its mind?"""
    above, below = np.array([0.5, 0.3, 0.6, 0.35]), PLAIN - RESIDUAL

    def rejects(ratio: float) -> float:
        return float(stats.ttest_1samp(above - ratio * below, 0).pvalue) - 0.05

    middle = above.mean() / below.mean()
    wanted = optimize.brentq(rejects, middle - 1, middle), optimize.brentq(rejects, middle, middle + 1)
    assert fieller(above, below) == pytest.approx(wanted, abs=1e-9)


def test_without_degradation_there_is_no_r() -> None:
    found = recovery(RESIDUAL + np.array([0.1, -0.1, 0.1, -0.1]), RESIDUAL, RESIDUAL)
    assert found.note == NONE_TO_EXPLAIN
    assert math.isnan(found.mean)
    assert recovery(PLAIN[:2], PLAIN[:2], RESIDUAL[:2]).note == "fewer than three seeds"


@pytest.mark.parametrize("n", [3, 5])
@pytest.mark.parametrize("true", [0.0, 0.5, 1.0])
def test_the_interval_covers_as_often_as_it_says(n: int, true: float) -> None:
    """4,000 simulated experiments: 0.95 to four standard errors of 0.0034."""
    covered = coverage(n, true=true)
    print(f"Fieller at n = {n}, R = {true}: covers {covered:.3f}")
    assert covered == pytest.approx(0.95, abs=0.014)
