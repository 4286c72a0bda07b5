"""Comparisons with ordinary training, on numbers written down by hand."""

import math

import numpy as np
import pandas as pd
import pytest

from experiments.engine.statistics.equivalence import (
    MARGINS,
    WORSE,
    Comparison,
    compare,
    comparison_table,
    read,
    smallest_sufficient,
)
from experiments.engine.statistics.estimates import Estimate


def runs(**changes: list[tuple[float, float]]) -> pd.DataFrame:
    """Residual at log loss -4 and accuracy 0.95 for three seeds, and arms that differ from it by so much."""
    rows = [
        {"arm": arm, "seed": seed, "log train loss": -4 + loss, "test accuracy": 0.95 + accuracy}
        for arm, seeds in {"residual": [(0.0, 0.0)] * 3, **changes}.items()
        for seed, (loss, accuracy) in enumerate(seeds)
    ]
    return pd.DataFrame(rows).assign(depth_total=8)


@pytest.mark.parametrize(
    ("change", "reading", "ordinary"),
    [
        ([(0.1, -0.01)] * 3, "recovered", True),
        ([(-1.0, 0.02)] * 3, "recovered", True),  # better is not worse
        ([(0.1, -0.03)] * 3, "falls short", False),
        ([(0.8, 0.0)] * 3, "falls short", False),  # a loss more than doubled
        ([(0.0, 0.01), (0.0, -0.01), (0.0, -0.03)], "undecided", True),
        ([(0.1, -0.01)] * 2, "falls short", True),  # the third seed diverged
        ([(0.1, -0.01)] * 2 + [(math.inf, -0.01)], "falls short", True),
    ],
)
def test_readings(change: list[tuple[float, float]], reading: str, ordinary: bool) -> None:
    found = compare(runs(arm=change), "arm", 3)
    assert (found.reading, found.mean_is_ordinary) == (reading, ordinary)


def test_two_seeds_decide_nothing_and_no_ordinary_training_neither() -> None:
    table = runs(arm=[(0.0, 0.0)] * 3)
    assert compare(table[table["seed"] < 2], "arm", 3).reading == "undecided"
    alone = compare(table[table["arm"] == "arm"], "arm", 3)
    assert alone == Comparison("arm", 3, {}, "undecided")
    assert (alone.pairs, alone.mean_is_ordinary) == (0, False)
    assert read(Estimate((0.0,), 0.0, math.nan, math.nan), "test accuracy") == "undecided"


def test_only_accuracies_have_a_scale_that_ends() -> None:
    """Changes of the log loss by 2, and of the accuracy by -0.6 with a half width of 1.3."""
    found = compare(runs(arm=[(2.0, -0.9), (2.0, 0.0), (2.0, -0.9)]), "arm", 3).changes
    assert found["log train loss"].low == pytest.approx(2)
    assert (found["test accuracy"].low, found["test accuracy"].clipped) == (-1, True)


def test_a_mean_at_the_margin_is_ordinary() -> None:
    at_margins = {outcome: Estimate((), WORSE[outcome] * MARGINS[outcome], math.nan, math.nan) for outcome in MARGINS}
    assert Comparison("arm", 3, at_margins, "undecided").mean_is_ordinary


def test_the_interval_is_the_paired_t_interval() -> None:
    compared = compare(runs(arm=[(0.0, -0.01), (0.0, -0.02), (0.0, -0.03)]), "arm", 3)
    found = compared.changes["test accuracy"]
    half = 4.302653 * 0.01 / np.sqrt(3)
    assert (found.mean, found.low, found.high) == pytest.approx((-0.02, -0.02 - half, -0.02 + half), abs=1e-6)
    table = comparison_table([compared], 8).set_index(["outcome", "quantity"])
    assert table.loc["test accuracy", "value"].to_dict() == {  # type: ignore[union-attr]
        "mean": found.mean, "low": found.low, "high": found.high, "n": 3, "margin": -0.02,
    }  # fmt: skip
    assert table["value"]["log train loss", "margin"] == pytest.approx(math.log(2))
    assert set(table["path_length"]) == {3}


def test_sufficient_means_from_there_on() -> None:
    assert smallest_sufficient([0, 1, 2, 3], [False, True, False, True]) == 3
    assert smallest_sufficient([3, 1, 2], [True, False, True]) == 2
    assert smallest_sufficient([1, 2], [True, False]) is None
