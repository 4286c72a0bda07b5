"""Intervals over seeds, and on which side of a margin they lie."""

import dataclasses
import math

import numpy as np
import pytest

from experiments.engine.conditions.gap_closed import NOTHING
from experiments.engine.reporting import show
from experiments.engine.statistics.equivalence import Comparison
from experiments.engine.statistics.estimates import MARGIN, NO_ESTIMATE, Estimate, classify, clip, estimate, exceeds


def test_intervals_cover_what_they_promise() -> None:
    values = np.random.default_rng(0).normal(0.3, 0.1, (4000, 3))
    covered = [found.low <= 0.3 <= found.high for found in map(estimate, values)]
    # 4,000 trials of a 95 % event: a standard error of 0.0034
    assert np.mean(covered) == pytest.approx(0.95, abs=4 * 0.0034)


def test_no_interval_under_three_seeds() -> None:
    two = estimate(np.array([0.3, 0.3]))
    assert math.isnan(two.low)
    assert show.estimate(two) == "+0.30 (+0.30, +0.30)"
    assert estimate(np.array([])) == NO_ESTIMATE
    assert show.estimate(NO_ESTIMATE) == show.estimate(None) == "-"
    assert math.isnan(estimate(np.array([0.9, 0.1, math.inf]), max_abs=1).low)


def test_an_interval_beyond_the_scale_is_clipped_and_marked() -> None:
    """0.5 ± 4.303 * 0.4 / sqrt(3), which is 0.994: both ends of [-0.494, 1.494], or one."""
    values = np.array([0.9, 0.1, 0.5])
    whole, clipped = estimate(values), estimate(values, max_abs=1)
    assert (whole.low, whole.high) == pytest.approx((0.5 - 0.99365, 0.5 + 0.99365), abs=1e-5)
    assert (clipped.low, clipped.high, clipped.mean) == (whole.low, 1, whole.mean)
    assert (whole.clipped, clipped.clipped) == (False, True)
    assert show.estimate(whole) == "+0.50 [-0.49, +1.49]"
    assert show.estimate(clipped) == "+0.50 [-0.49, +1.00]*"
    both = clip(whole, 0, 1)
    assert (both.low, both.high, both.clipped) == (0, 1, True)
    assert estimate(-values, max_abs=1).low == -1
    for end in (1.0, -1.0):  # the scale's own ends belong to it
        at_end = estimate(np.full(3, end), max_abs=1)
        assert (at_end.low, at_end.high, at_end.clipped) == (end, end, False)


def test_a_clipped_interval_is_read_like_any_other() -> None:
    above = estimate(np.array([0.9, 0.6, 0.99]), max_abs=1)
    assert above.clipped
    assert (exceeds(above, 0.2), classify(above, 0.2)) == ("yes", "above")
    assert exceeds(above, 0.5) == "undecided"
    # what is cut off is impossible: wherever in the scale the truth is, the same seeds cover it
    values = np.random.default_rng(0).normal(0.95, 0.1, (500, 3))
    for row in values:
        whole, clipped = estimate(row), estimate(row, max_abs=1)
        if clipped.low <= clipped.high:  # a mean beyond the scale, as only a normal distribution has
            assert (whole.low <= 0.95 <= whole.high) == (clipped.low <= 0.95 <= clipped.high)


@pytest.mark.parametrize(
    ("result", "field"),
    [(NO_ESTIMATE, "mean"), (NOTHING, "mean"), (Comparison("arm", 1, {}, "undecided"), "reading")],
)
def test_results_cannot_be_changed(result: object, field: str) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(result, field, 0.0)


@pytest.mark.parametrize(
    ("low", "high", "more", "side"),
    [
        (0.03, 0.05, "yes", "above"),
        (-0.01, 0.01, "no", "within"),
        (-0.02, 0.02, "no", "within"),
        (-0.05, 0.01, "no", "undecided"),
        (-0.05, -0.03, "no", "below"),
        (0.01, 0.05, "undecided", "undecided"),
        (0.02, 0.05, "undecided", "undecided"),
        (-0.05, -0.02, "no", "undecided"),
        (math.nan, math.nan, "undecided", "undecided"),
    ],
)
def test_the_whole_interval_counts(low: float, high: float, more: str, side: str) -> None:
    found = Estimate((0.0,) * 3, (low + high) / 2, low, high)
    assert (exceeds(found, MARGIN), classify(found, MARGIN)) == (more, side)


def test_what_counts_as_no_difference_may_lie_anywhere() -> None:
    found = Estimate((0.0,) * 3, 1.05, 1.01, 1.09)
    assert classify(found, 1.1, low=1.0) == "within"
    assert classify(found, 1.2, low=1.1) == "below"
    assert exceeds(found, 1.0) == "yes"
