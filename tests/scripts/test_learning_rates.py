"""The experiment on learning rates: its table on paper, its figure, and a toy run."""

import io
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from experiments import learning_rates
from experiments.engine.conditions.learning_rate_search import rate_of
from experiments.learning_rates import curves, show_search, span
from models import ARMS
from tests.support.conditions import is_best, run_small
from tests.support.drawings import pick
from tests.support.scripts import drawn

RATES = {(arm, 8): rate for arm, rate in zip(ARMS, (0.1, 0.0316, 0.1, 0.316, 0.1), strict=True)}


def searched(depths: tuple[int, ...] = (8,)) -> pd.DataFrame:
    """Accuracies of two seeds that differ by 0.02; residual alone is also tried at 1, plain at 0.01."""
    rows = []
    for arm, depth, rate, seed in product(ARMS, depths, (0.01, 0.0316, 0.1, 0.316, 1.0), (100, 101)):
        if (rate == 1 and arm != "residual") or (rate == 0.01 and arm != "plain"):
            continue
        at_best = 0.9 - 0.1 * list(ARMS).index(arm)
        value = at_best - 0.2 * abs(np.log10(rate / RATES[arm, 8])) + (0.01 if seed == 100 else -0.01)
        about = {"control": arm, "depth_total": depth, "learning_rate": rate, "seed": seed, "split": "validation"}
        rows += [about | {"quantity": "accuracy", "value": value}, about | {"quantity": "loss", "value": 9.0}]
    return pd.DataFrame(rows)


def test_curves_are_means_over_tuning_seeds_of_accuracy_alone() -> None:
    found = curves(searched(), 8)
    assert list(found.index) == list(ARMS)
    assert found.at["residual", 0.1] == pytest.approx(0.9)
    assert found.at["plain", 0.316] == pytest.approx(0.6)
    assert found.at["plain", 0.01] == pytest.approx(0.6 - 0.2 * 1.5, abs=1e-3)
    assert found.isna().at["plain", 1.0]


def test_the_table_brackets_the_best_and_leaves_out_what_was_not_tried() -> None:
    with io.StringIO() as text:
        show_search(Console(file=text, width=100, highlight=False), searched(), RATES)
        shown = text.getvalue()
    rows = {line.split()[0]: line.split()[1:] for line in shown.splitlines() if line.strip()}
    assert rows["residual"] == ["0.800", "[0.900]", "0.800", "0.700"]
    assert rows["plain"] == ["0.300", "0.400", "0.500", "[0.600]"]
    assert "by the mean over n = 2 tuning seeds" in shown


def test_rates_are_found_again_in_a_file(tmp_path: Path) -> None:
    rates = [rate_of(exponent) for exponent in range(-12, 4)]
    pd.DataFrame({"rate": rates}).to_csv(tmp_path / "rates.csv")
    assert pd.read_csv(tmp_path / "rates.csv")["rate"].tolist() == rates


def test_the_range_of_each_arm_is_over_the_rates_that_all_were_tried_at() -> None:
    said = span(searched(), 8)
    assert said.startswith(
        "Over rates from 0.0316 to 0.316 validation accuracy ranges over residual 0.80 to 0.90, stop-"
    )
    assert "plain 0.40 to 0.60" in said


def test_a_toy_run_reports_each_arm_at_its_best_rate(tmp_path: Path) -> None:
    folder, shown = run_small(learning_rates, tmp_path)
    outcomes, search = (pd.read_csv(folder / name) for name in ("outcomes.csv", "tuning/tuning.csv"))
    assert set(search["seed"]) == {100}
    assert set(outcomes["seed"]) == {0, 1}
    for arm in ARMS:
        own = pick(search, control=arm, quantity="accuracy").sort_values("learning_rate")
        assert own["learning_rate"].tolist() == [0.1, 0.316]
        (rate,) = set(pick(outcomes, arm=arm)["learning_rate"])
        assert is_best(rate, own)
    assert len(pick(outcomes, split="test", quantity="accuracy")) == 5 * 2
    effects = pd.read_csv(folder / "effects.csv")
    wide = pick(outcomes, split="test", quantity="accuracy").pivot(index="seed", columns="arm", values="value")
    found = pick(effects, effect="whole shortcut", outcome="test accuracy", quantity="mean")["value"].item()
    assert found == pytest.approx((wide["residual"] - wide["plain"]).mean())
    assert drawn(folder) == {"learning_rates", "accuracy_by_depth"}
    assert "Decisions: digits 8x8, depth 8, test accuracy, n = 2" in shown
