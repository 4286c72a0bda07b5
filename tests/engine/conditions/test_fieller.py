"""Gap closed and its interval: by construction, on paper, against a search, and in simulated seeds."""

import math

import numpy as np
import pytest
from scipy import optimize, stats

from experiments.engine.conditions.gap_closed import NO_GAP, GapClosed, fieller, gap_closed
from experiments.engine.statistics.estimates import NO_ESTIMATE, estimate

PLAIN, RESIDUAL = np.array([0.8, 0.7, 0.9, 0.75]), np.array([0.1, 0.2, 0.1, 0.05])


def test_plain_closes_nothing_and_residual_all() -> None:
    for arm, wanted in ((PLAIN, 0), (RESIDUAL, 1)):
        found = gap_closed(PLAIN, arm, RESIDUAL)
        assert (found.mean, found.low, found.high) == pytest.approx((wanted,) * 3, abs=1e-7)
        assert not found.note


def test_half_way_of_every_seed_is_half() -> None:
    """The interval has no width; its ends are roots of what is 0 to rounding, 1e-16, which leaves 1e-8."""
    found = gap_closed(PLAIN, (PLAIN + RESIDUAL) / 2, RESIDUAL)
    assert (found.mean, found.low, found.high) == pytest.approx((0.5,) * 3, abs=1e-7)


def test_the_interval_holds_what_a_paired_t_test_does_not_reject() -> None:
    """The slow obvious twin: where does the test of above - R below change its mind?"""
    above, below = np.array([0.5, 0.3, 0.6, 0.35]), PLAIN - RESIDUAL

    def rejects(ratio: float) -> float:
        return float(stats.ttest_1samp(above - ratio * below, 0).pvalue) - 0.05

    middle = above.mean() / below.mean()
    wanted = optimize.brentq(rejects, middle - 1, middle), optimize.brentq(rejects, middle, middle + 1)
    assert fieller(above, below) == pytest.approx(wanted, abs=1e-9)


@pytest.mark.parametrize(
    ("low", "high", "recovers"), [(0.51, 0.9, "yes"), (0.1, 0.49, "no"), (0.49, 0.51, "undecided")]
)
def test_what_closes_more_than_half_recovers(low: float, high: float, recovers: str) -> None:
    assert GapClosed((low + high) / 2, low, high, NO_ESTIMATE).recovers == recovers


def test_without_degradation_there_is_no_gap_to_close() -> None:
    found = gap_closed(RESIDUAL + np.array([0.1, -0.1, 0.1, -0.1]), RESIDUAL, RESIDUAL)
    assert found.note == NO_GAP
    assert math.isnan(found.mean)
    assert gap_closed(PLAIN[:2], PLAIN[:2], RESIDUAL[:2]).note == "fewer than three seeds"


@pytest.mark.parametrize("n", [3, pytest.param(5, marks=pytest.mark.slow)])
@pytest.mark.parametrize("true", [0.0, 0.5, 1.0])
def test_the_interval_covers_as_often_as_it_says(n: int, true: float) -> None:
    """4,000 simulated experiments of n seeds, whose gap and part of it are normal and correlated; those without
    degradation do not count. 0.95 to four standard errors of 0.0034."""
    covariance = 0.2**2 * np.array([[1, 0.5], [0.5, 1]])
    samples = np.random.default_rng(0).multivariate_normal([true, 1.0], covariance, size=(4000, n))
    held = [
        low <= true <= high
        for above, below in samples.transpose(0, 2, 1)
        if estimate(below).low > 0
        for low, high in (fieller(above, below),)
    ]
    assert np.mean(held) == pytest.approx(0.95, abs=0.014)
