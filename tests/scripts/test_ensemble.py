"""The ensemble: errors on paper, and a run at toy size."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from experiments.ensemble import differences, errors, top_error
from tests.support.scripts import drawn, toy_run

LABELS = np.array([0, 1])
# Two networks, each wrong about another image; together they are right about both.
MEMBERS = {(8, 0): np.array([[0.9, 0.1], [0.6, 0.4]]), (14, 0): np.array([[0.4, 0.6], [0.1, 0.9]])}


def test_on_paper_an_ensemble_is_right_where_its_members_are_sure() -> None:
    found = errors(MEMBERS, LABELS, "residual")
    assert found["value"].tolist() == [0.5, 0.5, 0.0]
    assert found["count"].tolist() == [1, 1, 2]
    assert found["depth_total"].isna().tolist() == [False, False, True]
    assert set(found["quantity"]) == {"top-1 error"}  # two classes have no top-5


def test_top_k_against_a_sort() -> None:
    generator = np.random.default_rng(0)
    given, labels = generator.random((50, 10)), generator.integers(10, size=50)
    for k in (1, 5):
        wrong = [label not in np.argsort(-row)[:k] for row, label in zip(given, labels, strict=True)]
        assert top_error(given, labels, k) == np.mean(wrong)
    assert top_error(np.full((3, 10), 0.1), np.array([0, 1, 2]), 1) == 1  # whoever says nothing is not right


def test_it_is_compared_with_the_member_that_validation_chooses() -> None:
    outcomes = pd.DataFrame(
        {"depth_total": [8, 14], "seed": 0, "split": "validation", "quantity": "accuracy", "value": [0.4, 0.6]}
    )
    members = {(8, 0): np.array([[0.4, 0.6], [0.6, 0.4]]), (14, 0): MEMBERS[14, 0]}  # wrong about both, about one
    best, mean = differences(errors(members, LABELS, "residual"), outcomes).values()
    assert (best.values, mean.values) == ((0.0,), (-0.25,))  # together they are wrong about one


@pytest.mark.slow
def test_a_run_at_toy_size(tmp_path: Path) -> None:
    arguments = ["--depths", 8, 14, "--seeds", 0, 1, 2, "--epochs", 1, "--width", 2, "--train-limit", 256]
    folder, shown = toy_run("ensemble", *arguments, cwd=tmp_path)
    found = pd.read_csv(folder / "errors.csv")
    assert len(found) == 3 * 3 * 2  # seeds, two members and the ensemble, top-1 and top-5
    outcomes = pd.read_csv(folder / "outcomes.csv").query("split == 'test' and quantity == 'accuracy'")
    members = found.query("quantity == 'top-1 error'").dropna().set_index(["depth_total", "seed"])["value"]
    accuracy = outcomes.set_index(["depth_total", "seed"])["value"].loc[members.index]
    np.testing.assert_allclose(members, 1 - accuracy, atol=1e-12)
    assert "ensemble" in drawn(folder)
    text = shown[shown.index("the ensemble's top-1 error minus that of") :]
    top1 = found.query("quantity == 'top-1 error'")
    together = top1[top1["depth_total"].isna()].set_index("seed")["value"]
    assert f"{(together - members.groupby('seed').mean()).mean():+.3f}" in text
