"""Intervals over seeds, and on which side of a margin they lie."""

import dataclasses
import math

import numpy as np
import pytest

from experiments.engine.conditions.gap_closed import NOTHING
from experiments.engine.reporting import show
from experiments.engine.statistics.equivalence import Comparison
from experiments.engine.statistics.estimates import MARGIN, NO_ESTIMATE, Estimate, classify, estimate, exceeds


def test_intervals_cover_what_they_promise() -> None:
    values = np.random.default_rng(0).normal(0.3, 0.1, (4000, 3))
    covered = [found.low <= 0.3 <= found.high for found in map(estimate, values)]
    # 4,000 trials of a 95 % event: a standard error of 0.0034
    assert np.mean(covered) == pytest.approx(0.95, abs=4 * 0.0034)


def test_no_interval_under_three_seeds_or_beyond_the_scale() -> None:
    two = estimate(np.array([0.3, 0.3]))
    assert math.isnan(two.low)
    assert show.estimate(two) == "+0.30 (+0.30, +0.30)"
    assert estimate(np.array([])) == NO_ESTIMATE
    assert show.estimate(NO_ESTIMATE) == show.estimate(None) == "-"
    assert math.isnan(estimate(np.array([0.9, 0.1, 0.5]), max_abs=1).low)
    assert not math.isnan(estimate(np.array([0.9, 0.1, 0.5])).low)
    assert math.isnan(estimate(np.array([0.9, 0.1, math.inf])).low)
    for end in (1.0, -1.0):  # the scale's own ends belong to it
        at_end = estimate(np.full(3, end), max_abs=1)
        assert (at_end.low, at_end.high) == (end, end)


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
