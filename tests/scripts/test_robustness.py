"""robustness.py at toy size."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from experiments import robustness
from experiments.engine.running.workers import Execution
from experiments.engine.training.data import Data
from experiments.engine.training.optimisation import Training
from experiments.questions.answer.plan import PLAIN, RESIDUAL


def test_a_row_with_one_rate_for_all(tmp_path: Path) -> None:
    settings = replace(
        robustness.QUICK, rows=("learning rate 0.1 for all", "doses"), out=tmp_path, training=Training(epochs=1),
        execution=Execution(workers=1), data=Data(train_limit=256), log_level="warning",
    )  # fmt: skip
    rows = tuple(replace(row, width=2, exponents=(-2,)) for row in robustness.ROWS)
    with_rows = robustness.ROWS
    try:
        robustness.ROWS = rows
        robustness.main(settings)
    finally:
        robustness.ROWS = with_rows
    found = pd.read_csv(tmp_path / "robustness" / "robustness.csv")
    assert found["setting"].tolist() == ["learning rate 0.1 for all"] * 2 + ["doses"] * 3
    assert set(found["rate of this"]) == {0.1}
    closed = (found["plain"] - found["this"]) / (found["plain"] - found["residual"])
    read = found[found["closed"].notna()]
    assert np.allclose(read["closed"], closed[read.index])


def test_a_run_that_diverged_counts_as_chance() -> None:
    rows = [{"control": "plain", "seed": 0, "split": "test", "quantity": "accuracy", "value": 0.75}]
    errors = robustness.by_condition({"outcomes": pd.DataFrame(rows)}, [PLAIN, RESIDUAL], (0, 1), chance=0.9)
    assert {name: values.tolist() for name, values in errors.items()} == {"plain": [0.25, 0.9], "residual": [0.9, 0.9]}
