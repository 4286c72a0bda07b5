"""Robustness: its rows, which were fixed before any was run, and what it writes at toy size."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from experiments import robustness
from experiments.engine.conditions import learning_rate_search as search
from experiments.engine.conditions.learning_rate_search import train_condition
from experiments.engine.running.messages import BadInput
from experiments.engine.running.run import Outcome, Run
from experiments.engine.statistics.shares import condition_means, read_shares
from experiments.engine.training.recipe import Recipe
from experiments.questions.answer.plan import PLAIN, PLAIN_LOOKS_LINEAR, PLAIN_NEAR, RESIDUAL, closed
from experiments.robustness import ROWS, Row, Settings, by_condition, unnormalised
from models import Flow
from tests.support.conditions import run_small
from tests.support.drawings import pick

ONE_RATE = "learning rate 0.1 for all"
SEEDS, TUNING_SEED = (1100, 1101, 1102), 2100
SMALL: dict[str, Any] = {"seeds": SEEDS, "tuning_seeds": (TUNING_SEED,), "most_layers": 8}
SMALL |= {name: getattr(Settings(), name) for name in ("depths", "width")}  # rows have their own


def row(name: str) -> Row:
    (found,) = (row for row in ROWS if row.name == name)
    return found


def test_the_rows_are_those_that_were_fixed() -> None:
    """The one thing in which each differs from a row of no name."""
    differences = {
        row.name: {key: value for key, value in vars(row).items() if key != "name" and value != vars(Row(""))[key]}
        for row in ROWS
    }
    doses = differences.pop("doses").pop("conditions")
    (mirrored,) = differences.pop("mirrored He").pop("conditions")
    assert (mirrored.arm, mirrored.first_weights) == ("plain", "mirrored-he")
    assert [(dose.arm, dose.first_weights) for dose in doses] == [("plain", t) for t in (0.1, 0.25, 0.75)]
    assert differences == {
        "width 16": {"width": 16}, "depth 20": {"depth": 20}, "depth 110": {"depth": 110},
        "AdamW": {"optimiser": "adamw", "exponents": (-5, -4, -3)},
        "no normalisation": {"network": "unnormalised", "residual": unnormalised(27)},
        "pre-activation": {"network": "preactivation"}, "schedule of steps": {"schedule": "step"},
        "learning rate 0.0316 for all": {"exponents": (-3,)}, ONE_RATE: {"exponents": (-2,)},
    }  # fmt: skip
    assert unnormalised(27).flow == Flow(1, 27**-0.5)


def test_settings_of_a_row() -> None:
    settings = Settings()
    of_steps, deep = settings.of(row("schedule of steps")), settings.of(row("depth 110"))
    assert (of_steps.training.schedule, of_steps.depths, of_steps.width) == ("step", (56,), 8)
    assert (deep.training.schedule, deep.depths) == ("one-cycle", (110,))
    assert settings.of(row("no normalisation")).network == "unnormalised"
    assert settings.of(row("width 16")).width == 16
    for most, depth in ((8, 8), (13, 8), (14, 14), (55, 50), (1000, 56)):
        assert Settings(most_layers=most).of(row("AdamW")).depths == (depth,)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": ("depth 21",)}, "--rows: unknown 'depth 21'; choose from width 16, depth 20, depth 110, AdamW, no n"),
        ({"most_layers": 7}, "--most-layers 7: give at least 8"),
        ({"depths": (20,)}, "--depths: each row has its own; choose among them with --rows"),
    ],
)
def test_mistakes(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=f"^{re.escape(message)}"):
        Settings(**changes).check()


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, list[Run]]:
    """The out folder of two rows, what was printed, and the runs; a reported plain one diverges."""
    out, runs = tmp_path_factory.mktemp("robustness"), list[Run]()

    def train(run: Run, checkpoint: Path | None = None, **options: Any) -> Outcome:
        runs.append(run)
        diverges = (run.labels["control"], run.labels["learning_rate"], run.seed) == (PLAIN.name, 0.1, SEEDS[2])
        return Outcome(diverged_at=1) if diverges else train_condition(run, checkpoint, **options)

    rows = (ONE_RATE, "AdamW")
    with pytest.MonkeyPatch.context() as patch:
        runner = search.ConditionRunner
        patch.setattr(robustness, "ConditionRunner", lambda *given, **more: runner(*given, **more, task=train))
        _, shown = run_small(robustness, out, rows=rows, **SMALL)
    return out, shown, runs


def test_one_rate_for_all_is_not_searched_for(toy: tuple[Path, str, list[Run]]) -> None:
    out, _, runs = toy
    folder = out / "robustness" / "rows"
    assert {path.name for path in folder.iterdir()} == {"learning-rate-0.1-for-all", "AdamW"}
    assert not (folder / "learning-rate-0.1-for-all" / "tuning").exists()
    searched = pd.read_csv(folder / "AdamW" / "tuning" / "tuning.csv")
    assert set(searched["seed"]) == {TUNING_SEED}
    assert set(searched["learning_rate"]) == {0.00316, 0.01, 0.0316}
    of_sgd = [run for run in runs if run.recipe.training.optimiser == "sgd"]
    assert {(run.labels["learning_rate"], run.seed) for run in of_sgd} == {(0.1, seed) for seed in SEEDS}
    assert len(of_sgd) == 4 * 3


def test_runs_are_those_of_their_row(toy: tuple[Path, str, list[Run]]) -> None:
    out, _, runs = toy
    assert {run.depth for run in runs} == {8}
    recipes: list[Recipe] = [run.recipe for run in runs]
    assert {recipe.training.optimiser for recipe in recipes} == {"sgd", "adamw"}
    assert {recipe.width for recipe in recipes} == {8}
    tuning = [run for run in runs if run.seed == TUNING_SEED]
    assert len(tuning) == 4 * 3
    assert {run.recipe.evaluated for run in tuning} == {("train", "validation")}
    for run in tuning:
        assert "test" not in (out / "answer" / "runs" / run.name / "outcomes.csv").read_text()
    assert len({run.recipe.data for run in runs}) == 4  # a split for each seed
    assert {path.name for path in (out / "answer" / "runs").iterdir()} == {run.name for run in runs}


def test_the_table_is_of_test_errors_with_chance_for_a_run_that_diverged(toy: tuple[Path, str, list[Run]]) -> None:
    out, _, runs = toy
    found = pd.read_csv(out / "robustness" / "robustness.csv")
    assert found[["setting", "condition", "n"]].to_numpy().tolist() == [
        [setting, condition.name, 3]
        for setting in ("AdamW", ONE_RATE)
        for condition in (PLAIN_NEAR, PLAIN_LOOKS_LINEAR)
    ]
    ends: dict[str, list[float]] = {}
    for run in runs:
        if run.recipe.training.optimiser == "sgd":
            file = out / "answer" / "runs" / run.name / "outcomes.csv"
            rows = pick(pd.read_csv(file), split="test", quantity="accuracy") if file.exists() else None
            error = 0.9 if rows is None else 1 - rows["value"].item()
            ends.setdefault(run.labels["control"], []).append(error)
    assert ends[PLAIN.name].count(0.9) >= 1
    errors = {name: np.array(values) for name, values in ends.items()}
    for row in pick(found, setting=ONE_RATE).to_dict("records"):
        own = {"residual": RESIDUAL.name, "plain": PLAIN.name, "this": row["condition"]}
        assert {key: row[key] for key in own} == pytest.approx({key: errors[name].mean() for key, name in own.items()})
        condition = PLAIN_NEAR if row["condition"] == PLAIN_NEAR.name else PLAIN_LOOKS_LINEAR
        (share,) = read_shares(condition_means(errors), [closed(condition)])
        wanted = [share.value, share.low, share.high]
        assert [row["closed"], row["low"], row["high"]] == pytest.approx(wanted, nan_ok=True)
        assert {row[f"rate of {word}"] for word in own} == {0.1}
    for row in pick(found, setting="AdamW").to_dict("records"):
        rate = [
            run.labels["learning_rate"]
            for run in runs
            if (run.labels["control"], run.seed, run.recipe.training.optimiser) == (row["condition"], 1100, "adamw")
        ]
        assert rate == [row["rate of this"]]


def test_what_is_printed(toy: tuple[Path, str, list[Run]]) -> None:
    out, shown, _ = toy
    found = pd.read_csv(out / "robustness" / "robustness.csv")
    short = [f"{r['condition']} ({r['setting']})" for r in found.to_dict("records") if not r["low"] > 0.5]
    assert shown.endswith(f"Not shown to close more than half of the gap: {'; '.join(short) or 'none'}.")
    assert "test errors, n = 3" in shown


def test_a_seed_without_an_outcome_has_chance() -> None:
    outcomes = pd.DataFrame(
        {"control": ["plain", "plain"], "seed": [5, 7], "split": "test", "quantity": "accuracy", "value": [0.25, 0.5]}
    )
    found = by_condition({"outcomes": outcomes}, [PLAIN, RESIDUAL], [7, 6, 5], chance=0.9)
    assert {name: values.tolist() for name, values in found.items()} == {
        "plain": [0.5, 0.9, 0.75], "residual": [0.9] * 3,
    }  # fmt: skip
    assert by_condition({}, [PLAIN], [7], chance=0.5)["plain"].tolist() == [0.5]
