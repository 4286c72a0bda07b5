"""Magnitude or direction: each of its decisions on paper, and a toy run."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from experiments import magnitude_or_direction
from experiments.engine.conditions.catalogue import MAGNITUDE, UNMODIFIED_ARMS
from experiments.engine.conditions.gap_closed import condition_table, gaps_closed
from experiments.magnitude_or_direction import (
    CONDITIONS,
    FROZEN,
    GROUPS,
    NOISE,
    TRUE_DIRECTION,
    TRUE_NORMS,
    decisions,
    subtractions,
)
from tests.support.conditions import TEST_SIZE, outcomes, run_small
from tests.support.drawings import pick
from tests.support.scripts import drawn

# R of stop-gradient 0.25, with true norms 0.1, the true direction at its norms 0.9.
ERRORS = {
    "residual": 0.1, "stop-gradient": 0.7, "plain": 0.9, TRUE_NORMS: 0.82, TRUE_DIRECTION: 0.18, NOISE: 0.4,
    FROZEN: 0.75,
}  # fmt: skip
SHIFTS = np.array([-0.01, 0.0, 0.01])
SCATTERED = (0.2, 0.5, 0.8)  # R from nearly 0 to nearly 1
BIAS, EARLY = "bias: noise - stop-gradient", "stop-gradient - frozen early blocks"


def by_seed(**changes: Sequence[float] | float) -> dict[str, Sequence[float]]:
    """The errors above, with others by the conditions' names (true_norms=...), a little apart from seed to seed."""
    names = {"true_norms": TRUE_NORMS, "true_direction": TRUE_DIRECTION, "noise": NOISE, "frozen": FROZEN}
    names |= {"stop": "stop-gradient", "plain": "plain"}
    errors = {**ERRORS, **{names[name]: value for name, value in changes.items()}}
    return {name: np.ravel(value + SHIFTS * np.isscalar(value)).tolist() for name, value in errors.items()}


def decided(errors: dict[str, Sequence[float]]) -> dict[str, tuple[str, str, str]]:
    runs = condition_table(outcomes(errors), TEST_SIZE)
    conditions = [condition for condition in (*UNMODIFIED_ARMS, *MAGNITUDE) if condition.name in errors]
    return decisions(runs, gaps_closed(runs, conditions, [8]), 8)


def test_the_decisions_on_paper() -> None:
    found = decided(by_seed())
    estimate, margin, reading = found["R of stop-gradient"]
    assert (estimate[:6], margin, reading) == ("0.25 [", "0.5", "less than half")
    assert found[f"R of {TRUE_NORMS}"] == ("0.10 [0.10, 0.10]", "0.5", "less than half")
    assert found[f"R of {TRUE_DIRECTION}"] == ("0.90 [0.90, 0.90]", "0.5", "more than half")
    assert found["size or direction"] == ("", "", "the gradient's direction")
    assert found[BIAS] == ("+0.300 [+0.300, +0.300]", "0.02", "a structured bias, not a weak signal")
    assert found[EARLY] == ("+0.050 [+0.050, +0.050]", "0.02", "stop-gradient is better")


@pytest.mark.parametrize(
    ("changes", "reading"),
    [
        ({"stop": 0.2}, "stop-gradient recovers by itself: nothing is left to explain"),
        ({"true_norms": 0.2}, "the gradient's size"),
        ({"true_norms": 0.2, "true_direction": 0.8}, "the gradient's size"),
        ({}, "the gradient's direction"),
        ({"true_direction": 0.8}, "undecided"),
        ({"true_norms": SCATTERED}, "undecided"),
        ({"true_direction": SCATTERED}, "undecided"),
        ({"plain": 0.1}, "cannot be read: no degradation to explain"),
        ({"true_norms": (math.nan,) * 3}, "undecided"),
    ],
)
def test_size_or_direction(changes: dict[str, float | Sequence[float]], reading: str) -> None:
    assert decided(by_seed(**changes))["size or direction"][2] == reading


def test_what_was_not_run_is_not_asked() -> None:
    found = decided({name: by_seed()[name] for name in ("residual", "stop-gradient", "plain")})
    assert found["size or direction"][2] == f"not asked without {TRUE_NORMS}, {TRUE_DIRECTION}"
    assert found[BIAS] == found[EARLY] == ("-", "0.02", "no seed has both")
    assert f"R of {TRUE_NORMS}" not in found
    two = decided({name: errors[:2] for name, errors in by_seed().items()})
    assert two["size or direction"][2] == "cannot be read: fewer than three seeds"
    assert two["R of stop-gradient"] == ("fewer than three seeds", "0.5", "undecided")
    assert two[BIAS] == ("+0.300 (+0.300, +0.300)", "0.02", "undecided")


@pytest.mark.parametrize(
    ("noise", "reading"),
    [
        (0.4, "a structured bias, not a weak signal"),
        (0.69, "no structured bias"),
        (0.8, "no structured bias"),
        (SCATTERED, "undecided"),
    ],
)
def test_bias(noise: float | Sequence[float], reading: str) -> None:
    assert decided(by_seed(noise=noise))[BIAS][2] == reading


@pytest.mark.parametrize(
    ("frozen", "reading"),
    [
        (0.8, "stop-gradient is better"),
        (0.71, "not better: says nothing of early blocks"),
        (0.2, "not better: says nothing of early blocks"),
        (SCATTERED, "undecided"),
    ],
)
def test_early_blocks(frozen: float | Sequence[float], reading: str) -> None:
    assert decided(by_seed(frozen=frozen))[EARLY][2] == reading


def test_conditions_are_compared_with_stop_gradient_of_their_optimiser() -> None:
    found = subtractions(CONDITIONS)
    assert found["minus stop-gradient"]["plain, adam"] == "stop-gradient, adam"
    assert found["minus stop-gradient"][TRUE_NORMS] == "stop-gradient"
    assert found["minus frozen"]["stop-gradient"] == FROZEN
    assert not [name for name in found["minus frozen"] if "adam" in name or "sign" in name]
    assert list(subtractions([c for c in CONDITIONS if c.name != FROZEN])) == ["minus stop-gradient"]
    assert sorted(name for names in GROUPS.values() for name in names) == sorted(
        condition.name for condition in CONDITIONS
    )


def test_a_toy_run_exchanges_what_it_says(tmp_path: Path) -> None:
    folder, shown = run_small(magnitude_or_direction, tmp_path, conditions=(TRUE_NORMS, FROZEN))
    found = pd.read_csv(folder / "alignment.csv")
    exchanged = pick(found, control=TRUE_NORMS, epoch=1)
    assert pick(exchanged, quantity="norm ratio")["value"].to_numpy() == pytest.approx(1, abs=1e-5)
    assert pick(exchanged, quantity="cosine")["value"].min() < 0.99
    frozen = pick(found, control=FROZEN, quantity="norm ratio").groupby("block")["value"].max()
    assert (frozen["layer1.0"], frozen["layer2.0"]) == (0, 0)
    assert frozen["layer3.0"] > 0
    results = pd.read_csv(folder / "outcomes.csv")
    assert set(results["control"]) == {"residual", "stop-gradient", "plain", TRUE_NORMS, FROZEN}
    assert len(pick(results, split="test", quantity="accuracy")) == 5 * 2
    gaps = pd.read_csv(folder / "scores.csv")
    assert set(gaps["control"]) == set(results["control"])
    assert "magnitude_or_direction" in drawn(folder)
    assert "Decisions: digits 8x8, depth 8, n = 2" in shown
