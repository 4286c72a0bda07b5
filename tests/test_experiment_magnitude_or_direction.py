"""Magnitude or direction: each word of its sentence on paper, bad input and a toy run."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from experiments import magnitude_or_direction
from experiments.engine.answer import AS_THEY_ARE, MAGNITUDE
from experiments.engine.condition_scores import scores
from experiments.engine.explanation import FROZEN, NOISE, TRUE_DIRECTION, TRUE_NORMS, bias, learning, sentence
from experiments.magnitude_or_direction import CONDITIONS, GROUPS, subtractions
from tests.conditions import Ran, cells_of, run_twice
from tests.scripts import print_of
from tests.support.drawings import pick

EVERY = (*AS_THEY_ARE, *MAGNITUDE)
# R of stop-gradient 0.25, with true norms 0.1, the true direction at its norms 0.9.
ERRORS = {
    "residual": 0.1, "stop-gradient": 0.7, "plain": 0.9, TRUE_NORMS: 0.82, TRUE_DIRECTION: 0.18, NOISE: 0.4,
    FROZEN: 0.75,
}  # fmt: skip
SHIFTS = np.array([-0.01, 0.0, 0.01])


def by_seed(**changes: Sequence[float] | float) -> dict[str, Sequence[float]]:
    """The errors above, with others by the conditions' names (true_norms=...), a little apart from seed to seed."""
    names = {"true_norms": TRUE_NORMS, "true_direction": TRUE_DIRECTION, "noise": NOISE, "frozen": FROZEN}
    names |= {"stop": "stop-gradient", "plain": "plain"}
    errors = {**ERRORS, **{names[name]: value for name, value in changes.items()}}
    return {name: np.ravel(value + SHIFTS * np.isscalar(value)).tolist() for name, value in errors.items()}


def said(errors: dict[str, Sequence[float]]) -> str:
    cells = cells_of(errors)
    conditions = [condition for condition in EVERY if condition.name in errors]
    return sentence(cells, scores(cells, conditions, [8]), depth=8, title="paper")


def test_the_sentence_on_paper() -> None:
    text = said(by_seed())
    assert text.startswith("paper, depth 8, n = 3: it is the gradient's direction (R of stop-gradient as it is 0.25 [")
    assert "with true norms 0.10 [0.10, 0.10], the true direction at its norms 0.90 [0.90, 0.90])" in text
    assert (
        "; it is a structured bias, not a weak signal (true gradient and noise, minus stop-gradient: +0.300 [" in text
    )
    assert "; stop-gradient beats networks whose early blocks never learn (+0.050 [+0.050, +0.050]). The whole" in text


SCATTERED = (0.2, 0.5, 0.8)  # R from nearly 0 to nearly 1


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"stop": 0.2}, "stop-gradient recovers as it is, and nothing is left to explain ("),
        ({"true_norms": 0.2}, "it is the gradient's size ("),
        ({"true_norms": 0.2, "true_direction": 0.8}, "it is the gradient's size ("),
        ({}, "it is the gradient's direction ("),
        ({"true_direction": 0.8}, "size or direction is undecided ("),
        ({"true_norms": SCATTERED}, "size or direction is undecided ("),
        ({"true_direction": SCATTERED}, "size or direction is undecided ("),
        ({"plain": 0.1}, "size or direction cannot be told (no degradation to explain)"),
        ({"true_norms": (math.nan,) * 3}, "size or direction is undecided ("),
    ],
)
def test_size_or_direction(changes: dict[str, float | Sequence[float]], word: str) -> None:
    assert f"n = 3: {word}" in said(by_seed(**changes))


def test_what_was_not_run_is_not_asked() -> None:
    text = said({name: by_seed()[name] for name in ("residual", "stop-gradient", "plain")})
    assert f"size or direction is not asked without {TRUE_NORMS}, {TRUE_DIRECTION}; bias is not asked without" in text
    assert "frozen early blocks are not compared without a seed of both them and stop-gradient" in text
    assert "cannot be told (fewer than three seeds)" in said({n: errors[:2] for n, errors in by_seed().items()})


@pytest.mark.parametrize(
    ("noise", "word"),
    [
        (0.4, "it is a structured bias, not a weak signal"),
        (0.69, "it is no structured bias"),
        (0.8, "it is no structured bias"),
        (SCATTERED, "whether it is a structured bias is undecided"),
    ],
)
def test_bias(noise: float | Sequence[float], word: str) -> None:
    assert bias(cells_of(by_seed(noise=noise)), 8).startswith(f"{word} (true gradient and noise, minus stop-gradient:")


@pytest.mark.parametrize(
    ("frozen", "word"),
    [
        (0.8, "stop-gradient beats networks"),
        (0.71, "stop-gradient does not beat networks"),
        (0.2, "stop-gradient does not beat networks"),
        (SCATTERED, "it is undecided whether stop-gradient beats networks"),
    ],
)
def test_learning(frozen: float | Sequence[float], word: str) -> None:
    text = learning(cells_of(by_seed(frozen=frozen)), 8)
    assert text.startswith(f"{word} whose early blocks never learn (")
    assert text.endswith("), and so says nothing of early blocks") == ("does not" in word)


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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--conditions", "dropout"], "--conditions: unknown 'dropout'; choose from residual, stop-gradient, gr"),
        (["--conditions", "plain", "plain"], "--conditions: got plain plain; give one or more, each once"),
        (["--depths", "9"], "--depths 9: depth 9 is not 6n + 2"),
        (["--seeds", "100"], "--tuning-seeds 100: that seed is reported; choose learning rates on others"),
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
    shown = print_of("magnitude_or_direction", arguments, capsys, status=2)
    assert (message in shown, len(shown.splitlines())) == (True, 1)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    chosen = (TRUE_NORMS, FROZEN)
    return run_twice(magnitude_or_direction, tmp_path_factory.mktemp("out"), conditions=chosen)


def test_a_toy_run_exchanges_what_it_says(ran: Ran) -> None:
    found = pd.read_csv(ran.folder / "alignment.csv")
    exchanged = pick(found, control=TRUE_NORMS, epoch=1)
    assert pick(exchanged, quantity="norm ratio")["value"].to_numpy() == pytest.approx(1, abs=1e-5)
    assert pick(exchanged, quantity="cosine")["value"].min() < 0.99
    frozen = pick(found, control=FROZEN, quantity="norm ratio").groupby("block")["value"].max()
    assert (frozen["layer1.0"], frozen["layer2.0"]) == (0, 0)
    assert frozen["layer3.0"] > 0
    results = pd.read_csv(ran.folder / "outcomes.csv")
    assert set(results["control"]) == {"residual", "stop-gradient", "plain", TRUE_NORMS, FROZEN}
    assert len(pick(results, split="test", quantity="accuracy")) == 5 * 2
    rates = pd.read_csv(ran.folder / "scores.csv")
    assert set(rates["control"]) == set(results["control"])
    drawn = {file.stem for file in (ran.folder / "figures").iterdir()}
    assert drawn == {"magnitude_or_direction", "recovery_scores"}
    assert "n = 2: size or direction is not asked without true direction, stop-gradient norms; bias is" in ran.shown


def test_a_second_call_repeats_no_cell(ran: Ran) -> None:
    assert not ran.repeated
    assert "10 of 10 cells are already done" in ran.log
    assert ran.again == ran.shown
