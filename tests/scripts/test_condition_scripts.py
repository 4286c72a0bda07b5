"""Scripts on conditions where runs go wrong: each ends in a clear sentence."""

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from experiments import budget, dose_and_timing, learning_rates, magnitude_or_direction
from experiments.engine.running.run import Run
from tests.support.conditions import run_made_up

SCRIPTS = (learning_rates, budget, magnitude_or_direction, dose_and_timing)
ERRORS = {"residual": 0.1, "stop-gradient": 0.4, "gradient-only": 0.7, "plain": 0.8, "shortest-path": 0.2}
FEW: dict[str, dict[str, Any]] = {
    "learning_rates": {},
    "budget": {"budgets": (1, 3)},
    "magnitude_or_direction": {"conditions": ("residual, first two thirds frozen",)},
    "dose_and_timing": {"conditions": ("weight 0.5",)},
}
LEFT_OUT = "Diverged, and left out of means and differences"


def ends(run: Run) -> float:
    return ERRORS[run.arm] + 0.01 * (run.seed % 3)


def run(script: ModuleType, out: Path, **changes: Any) -> str:
    return run_made_up(script, out, **{"ends": ends, "seeds": (0, 1, 2)} | FEW[script.EXPERIMENT] | changes)


def test_numbers_beside_long_names_are_whole_where_the_output_is_a_file(tmp_path: Path) -> None:
    conditions = ("true direction, stop-gradient norms",)
    shown = run(magnitude_or_direction, tmp_path, conditions=conditions, ends=lambda run: ends(run) / 100)
    assert "ceiling" in shown
    assert "…" not in shown


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.EXPERIMENT)
def test_where_all_is_well_nothing_is_left_out(script: ModuleType, tmp_path: Path) -> None:
    shown = run(script, tmp_path)
    assert "n = 3 estimate [95 % interval] margin reading" in shown
    assert "diverged and" not in shown.lower()
    assert LEFT_OUT not in shown


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.EXPERIMENT)
def test_where_every_run_diverged_the_script_says_so(script: ModuleType, tmp_path: Path) -> None:
    shown = run(script, tmp_path, ends=lambda run: None)
    assert "Every run diverged: there is nothing to compare. Learning rates are the best of the search" in shown
    assert (tmp_path / script.EXPERIMENT / "tuning" / "tuning.csv").is_file()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.EXPERIMENT)
def test_a_seed_that_diverged_is_named(script: ModuleType, tmp_path: Path) -> None:
    shown = run(script, tmp_path, ends=lambda run: None if (run.arm, run.seed) == ("plain", 1) else ends(run))
    times = "; plain at depth 8, 3 times the epochs (1 seed)" * (script is budget)
    assert shown.endswith(f" {LEFT_OUT}: plain at depth 8 (1 seed){times}.")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.EXPERIMENT)
def test_the_deepest_networks_may_all_have_diverged(script: ModuleType, tmp_path: Path) -> None:
    shown = run(script, tmp_path, depths=(8, 14), ends=lambda run: None if run.depth == 14 else ends(run))
    ending = {
        learning_rates: "digits 8x8, depth 14: no effects; no seed has finished residual, stop-gradient",
        budget: "residual: training accuracy - 0.99 diverged",
        magnitude_or_direction: "R of stop-gradient no seed 0.5 undecided",
        dose_and_timing: "none below 1 is shown to suffices recover from there on",  # two columns' lines
    }
    assert ending[script] in shown
    assert f"{LEFT_OUT}: residual at depth 14 (3 seeds); stop-gradient at depth 14 (3 seeds)" in shown
    assert script is budget or "depth 14 residual - - - 0 3 diverged" in shown


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.EXPERIMENT)
def test_one_seed_decides_nothing(script: ModuleType, tmp_path: Path) -> None:
    shown = run(script, tmp_path, seeds=(0,))
    decisions = shown[shown.index("Decisions: digits 8x8, depth 8") :].split("One data set")[0]
    assert "n = 1 estimate [95 % interval] margin reading" in decisions
    assert "[" not in decisions.replace("[95 % interval]", "")
    assert "undecided" in decisions


@pytest.mark.parametrize("script", [magnitude_or_direction, dose_and_timing], ids=lambda script: script.EXPERIMENT)
def test_without_degradation_there_is_no_r(script: ModuleType, tmp_path: Path) -> None:
    shown = run(script, tmp_path, ends=lambda run: 0.1 + 0.01 * (run.seed % 3))
    assert "plain 0.1 no degradation no degradation" in shown
