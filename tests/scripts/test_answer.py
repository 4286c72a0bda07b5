"""answer.py at toy size: what it writes, and that no run that chooses a learning rate sees test images."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from experiments import answer
from experiments.engine.running.workers import Execution
from experiments.engine.training.data import Data
from experiments.engine.training.optimisation import Training
from experiments.questions.answer.plan import FIRST_WEIGHTS, PARTS, PRIMARY, Part

pytestmark = pytest.mark.slow
PARTS_HERE = (
    Part("digits", 1, PRIMARY, (-2,), 1, 3),
    Part("digits", 1, FIRST_WEIGHTS[:1], (-2,), 1, 3),
)


def toy(folder: Path) -> answer.Settings:
    return replace(
        answer.QUICK, budgets=(1,), width=2, out=folder, training=Training(epochs=1), execution=Execution(workers=1),
        data=Data(train_limit=256), log_level="warning",
    )  # fmt: skip


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("answer")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(answer, "PARTS", PARTS_HERE)
        patch.setattr("experiments.engine.conditions.learning_rate_search.MAX_EXTENSION", 0)
        answer.main(toy(folder))
    return folder / "answer"


def test_every_table_and_figure_is_there(written: Path) -> None:
    tables = {path.stem for path in written.glob("*.csv")}
    assert tables >= {
        "replicates", "conditions", "shares", "power", "correct", "tuning", "losses", "profiles", "jacobians",
        "text_outcomes", "text_shares", "text_jacobians",
    }  # fmt: skip
    assert (written / "figures" / "answer.png").exists()
    profiles = pd.read_csv(written / "profiles.csv")
    assert {"alignment", "gradients", "movement", "parts", "paths"} == set(profiles["outcome"])


def test_no_run_that_chooses_a_learning_rate_has_a_test_row(written: Path) -> None:
    tuning = reported = 0
    for file in written.glob("runs/*/run.json"):
        evaluated = json.loads(file.read_text())["run"]["recipe"]["evaluated"]
        splits = set(pd.read_csv(file.parent / "outcomes.csv")["split"])
        assert splits == set(evaluated)
        tuning, reported = tuning + ("test" not in evaluated), reported + ("test" in evaluated)
    assert (tuning, reported) == (8, 24)


def test_shares_are_those_of_the_bits(written: Path) -> None:
    correct, shares = pd.read_csv(written / "correct.csv"), pd.read_csv(written / "shares.csv")
    errors = {}
    for name, rows in correct.groupby("control"):
        bits = [np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8))[:360] for text in rows["correct"]]
        errors[name] = 1 - np.mean(bits)
    found = shares[(shares["outcome"] == "test error") & (shares["quantity"] == "gap")]
    assert found["value"].tolist() == pytest.approx([errors["plain"] - errors["residual"]] * len(found), abs=1e-12)
    replicates = pd.read_csv(written / "replicates.csv")
    means = replicates[replicates["outcome"] == "test error"].groupby("control")["value"].mean()
    assert means.to_dict() == pytest.approx(errors, abs=1e-12)  # one number by two ways


def test_a_second_call_trains_nothing(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {file: file.stat().st_mtime_ns for file in written.glob("runs/*/run.json")}
    monkeypatch.setattr(answer, "PARTS", PARTS_HERE[1:])
    monkeypatch.setattr("experiments.engine.conditions.learning_rate_search.MAX_EXTENSION", 0)
    answer.train_part(PARTS_HERE[1], toy(written.parent), written / "again")
    assert {file: file.stat().st_mtime_ns for file in written.glob("runs/*/run.json")} == before


def test_the_default_is_the_plan() -> None:
    settings = answer.Settings()
    assert [part for part in PARTS if part.data == "digits"] == settings.parts()
    assert replace(settings, cifar10=Path()).parts() == list(PARTS)
