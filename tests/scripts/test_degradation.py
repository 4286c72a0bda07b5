"""The degradation experiment: its changes on paper, and a run at toy size."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from torch import nn

from experiments.degradation import Settings, change_table, changes, decide, gaps, main, responding
from experiments.engine.running.workers import Execution
from experiments.engine.statistics.estimates import estimate
from experiments.engine.training.data import Data
from experiments.engine.training.optimisation import Training
from models import cifar_resnet, imagenet_resnet, residual_mlp
from tests.support.scripts import drawn

ERRORS = {  # of plain and residual networks at depths 8 and 20, by seed
    ("plain", 8): (0.10, 0.20, 0.30),
    ("plain", 20): (0.40, 0.51, 0.59),
    ("residual", 8): (0.10, 0.20, 0.30),
    ("residual", 20): (0.05, 0.16, 0.24),
}
TOY = Settings(width=2, training=Training(epochs=1), data=Data(train_limit=256), execution=Execution(1))


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
    rows = change_table(found).set_index(["arm", "depth_total", "split", "quantity"])["value"]
    assert rows["plain", 20, "test", "mean"] == pytest.approx(0.30)


def test_a_seed_that_diverged_at_one_depth_is_left_out() -> None:
    table = outcomes()
    gone = (table["arm"] == "plain") & (table["depth_total"] == 20) & (table["seed"] == 1)
    assert changes(table[~gone])["plain", 20, "train"].values == pytest.approx((0.30, 0.29))


def test_it_is_decided_which_arm_degrades() -> None:
    found = decide(changes(outcomes()), {})
    assert {effect: (margin, reading) for effect, (_, margin, reading) in found.items()} == {
        "plain, train error, growth to depth 20, n = 3": ("0.02", "degrades"),
        "plain, test error, growth to depth 20, n = 3": ("", ""),
        "residual, train error, growth to depth 20, n = 3": ("0.02", "does not degrade"),
        "residual, test error, growth to depth 20, n = 3": ("", ""),
    }
    assert found["plain, train error, growth to depth 20, n = 3"][0].startswith("+0.300 [+0.275, +0.325]")
    one = outcomes().query("seed == 0")
    assert decide(changes(one), {})["plain, train error, growth to depth 20, n = 1"][2] == "undecided"  # no interval
    wide = estimate(np.array([0.0, 0.3, 0.6]))  # its interval reaches below 0
    assert [reading for _, _, reading in decide({("plain", 20, "train"): wide}, {}).values()] == ["undecided"]


def test_plain_and_residual_are_compared_at_the_smallest_depth_on_paper() -> None:
    """At depth 20 they are 0.35 apart in each seed; at depth 8 alike."""
    found = gaps(outcomes())
    assert set(found) == {("plain", depth, split) for depth in (8, 20) for split in ("train", "test")}
    assert found["plain", 20, "test"].values == pytest.approx((0.35, 0.35, 0.35))
    assert gaps(outcomes().query("arm == 'plain'")) == {}
    by_depth = {("plain", 20, "train"): estimate(np.zeros(3))}

    def reading(table: pd.DataFrame, split: str, depth: int, n: int) -> str:
        return decide(by_depth, gaps(table))[f"plain - residual, {split} error, depth {depth}, n = {n}"][2]

    assert reading(outcomes(), "test", 8, 3) == "comparable"
    assert reading(outcomes(), "train", 8, 3) == ""
    assert reading(outcomes().query("depth_total == 20"), "test", 20, 3) == "plain is worse"
    swapped = outcomes().replace({"arm": {"plain": "residual", "residual": "plain"}}).query("depth_total == 20")
    assert reading(swapped, "test", 20, 3) == "plain is better"
    assert reading(outcomes().query("seed == 0"), "test", 8, 1) == "undecided"  # one seed has no interval


def test_responses_are_those_of_normalisations_or_without_any_of_all_layers_but_the_classifier() -> None:
    stem, *branches = responding(model := cifar_resnet(8, projection="B"))  # whose projections do not count
    assert stem is model.get_submodule("stem.1")
    assert branches == [m for b in model.blocks for m in b.branch.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(branches) == 6
    assert len(responding(imagenet_resnet(18))) == 17
    model = residual_mlp(4, in_features=4)
    assert responding(model) == [model.get_submodule(name) for name in ("stem.0", "blocks.0.branch", "blocks.1.branch")]
    assert len(responding(cifar_resnet(8, block="skipinit"))) == 7


def test_a_run_at_toy_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(replace(TOY, depths=(8, 20), seeds=(0, 1, 2), out=tmp_path))
    folder = tmp_path / "degradation"
    errors, responses = pd.read_csv(folder / "errors.csv"), pd.read_csv(folder / "responses.csv")
    assert len(errors) == 2 * 2 * 3 * 2  # arms, depths, seeds, splits
    assert errors["value"].between(0, 1).all()
    final = pd.read_csv(folder / "outcomes.csv").query("quantity == 'accuracy' and split == 'test'")
    np.testing.assert_allclose(errors.query("split == 'test'")["value"], 1 - final["value"], atol=1e-12)
    counts = responses.groupby(["arm", "depth_total", "seed"]).size()
    assert (counts.xs(8, level="depth_total") == 7).all()
    assert (counts.xs(20, level="depth_total") == 19).all()
    assert drawn(folder) == {"degradation", "layer_responses"}
    shown = " ".join(capsys.readouterr().out.split())
    for text in ("Response (standard deviation) of the median layer", "growth to depth 20, n = 3", "plain - residual"):
        assert text in shown


def test_one_depth_alone_decides_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(replace(TOY, depths=(8,), seeds=(0,), out=tmp_path))
    assert "one depth alone says nothing of degradation; give two or more --depths" in capsys.readouterr().out
