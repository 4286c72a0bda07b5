"""The degradation experiment: its changes on paper, and a run at toy size."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from torch import nn

from experiments.degradation import responding
from experiments.engine.depth_changes import change_table, changes, comparison, gaps, sentence
from experiments.engine.effects import estimate
from models import cifar_resnet, imagenet_resnet, residual_mlp
from tests.scripts import run
from tests.support.drawings import pick

ERRORS = {  # of plain and residual networks at depths 8 and 20, by seed
    ("plain", 8): (0.10, 0.20, 0.30),
    ("plain", 20): (0.40, 0.51, 0.59),
    ("residual", 8): (0.10, 0.20, 0.30),
    ("residual", 20): (0.05, 0.16, 0.24),
}


def outcomes() -> pd.DataFrame:
    return pd.DataFrame(
        {"arm": arm, "depth_total": depth, "seed": seed, "split": split, "quantity": "accuracy", "value": 1 - error}
        for (arm, depth), errors in ERRORS.items()
        for split in ("train", "test")
        for seed, error in enumerate(errors)
    )


def test_changes_on_paper() -> None:
    """Plain: 0.30, 0.31, 0.29, so 0.30 +- 4.303 * 0.01 / sqrt(3)."""
    found = changes(outcomes())
    assert set(found) == {(arm, 20, split) for arm in ("plain", "residual") for split in ("train", "test")}
    plain = found["plain", 20, "train"]
    assert plain.mean == pytest.approx(0.30)
    assert plain.high - plain.mean == pytest.approx(4.3026527 * 0.01 / np.sqrt(3))
    assert found["residual", 20, "test"].mean == pytest.approx(-0.05)
    rows = change_table(found)
    assert pick(rows, arm="plain", split="test", quantity="mean")["value"].item() == pytest.approx(0.30)


def test_a_seed_that_diverged_at_one_depth_is_left_out() -> None:
    table = outcomes()
    gone = (table["arm"] == "plain") & (table["depth_total"] == 20) & (table["seed"] == 1)
    assert changes(table[~gone])["plain", 20, "train"].values == pytest.approx((0.30, 0.29))


def test_the_sentence_says_which_arm_degrades() -> None:
    said = sentence(changes(outcomes()), gaps(outcomes()), "paper")
    assert "plain degrades (training error +0.300" in said
    assert "residual does not (training error -0.050" in said
    two = pick(outcomes(), seed=0)
    assert "plain is undecided" in sentence(changes(two), {}, "paper")  # one seed has no interval
    wide = estimate(np.array([0.0, 0.3, 0.6]))  # its interval reaches below 0
    assert "plain is undecided" in sentence({("plain", 20, split): wide for split in ("train", "test")}, {}, "paper")
    assert "one depth alone" in sentence({}, {}, "paper")


def test_plain_and_residual_are_compared_at_the_smallest_depth_on_paper() -> None:
    """At depth 20 they are 0.35 apart in each seed; at depth 8 alike."""
    found = gaps(outcomes())
    assert set(found) == {("plain", depth, split) for depth in (8, 20) for split in ("train", "test")}
    assert found["plain", 20, "test"].values == pytest.approx((0.35, 0.35, 0.35))
    assert "At depth 8 plain networks are comparable (plain minus residual: training error +0.000" in comparison(found)
    deep = {key: each for key, each in found.items() if key[1] == 20}
    assert "At depth 20 plain networks are worse" in comparison(deep)
    assert "may differ or not" in comparison(gaps(pick(outcomes(), seed=0)))  # one seed has no interval
    assert comparison(gaps(pick(outcomes(), arm="plain"))) == ""


def test_responses_are_those_of_normalisations_or_without_any_of_all_layers_but_the_classifier() -> None:
    stem, *branches = responding(model := cifar_resnet(8, projection="B"))  # whose projections do not count
    assert stem is model.get_submodule("stem.1")
    assert branches == [m for b in model.blocks for m in b.branch.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(branches) == 6
    assert len(responding(imagenet_resnet(18))) == 17
    model = residual_mlp(4, in_features=4)
    assert responding(model) == [model.get_submodule(name) for name in ("stem.0", "blocks.0.branch", "blocks.1.branch")]
    assert len(responding(cifar_resnet(8, block="skipinit"))) == 7


def test_a_run_at_toy_size_resumes(tmp_path: Path) -> None:
    arguments = ["--depths", 8, 20, "--seeds", 0, 1, 2, "--epochs", 1, "--width", 2, "--train-limit", 256]
    done = run("degradation", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "results" / "degradation"
    errors, responses = pd.read_csv(folder / "errors.csv"), pd.read_csv(folder / "responses.csv")
    assert len(errors) == 2 * 2 * 3 * 2  # arms, depths, seeds, splits
    assert errors["value"].between(0, 1).all()
    final = pd.read_csv(folder / "outcomes.csv").query("quantity == 'accuracy' and split == 'test'")
    np.testing.assert_allclose(errors.query("split == 'test'")["value"], 1 - final["value"], atol=1e-12)
    counts = responses.groupby(["arm", "depth_total", "seed"]).size()
    assert (counts.xs(8, level="depth_total") == 7).all()
    assert (counts.xs(20, level="depth_total") == 19).all()
    for name in ("degradation", "layer_responses"):
        assert {file.suffix for file in (folder / "figures").glob(f"{name}.*")} == {".csv", ".pdf", ".png"}
    again = run("degradation", *arguments, cwd=tmp_path)
    assert "12 of 12 cells are already done" in again.stderr
    assert again.stdout == done.stdout


def test_a_depth_that_does_not_fit_is_named(tmp_path: Path) -> None:
    done = run("degradation", "--depths", 9, cwd=tmp_path)
    assert (done.returncode, "depth 9 is not 6n + 2" in done.stderr, "Traceback" in done.stderr) == (2, True, False)
    assert not (tmp_path / "results").exists()
