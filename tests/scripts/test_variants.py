"""The networks compared: differences and decisions on paper, equal draws, and a run at toy size."""

from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from experiments.engine.running.output import Output
from experiments.engine.statistics.estimates import MARGIN
from experiments.engine.statistics.factorial import errors_and_losses
from experiments.engine.training.data import Batches, Data, load
from experiments.engine.training.loop import recompute_bn_statistics, train
from experiments.engine.training.networks import make, nearest_depth
from experiments.engine.training.optimisation import Training
from experiments.variants import between_arms, decisions, difference_table, error_table, from_reference, report
from models import ARMS
from tests.support.drawings import pick
from tests.support.scripts import drawn, toy_run

ERRORS = {  # by seed
    ("resnet", "residual"): (0.10, 0.20, 0.30),
    ("resnet", "stop-gradient"): (0.11, 0.20, 0.32),
    ("resnet", "plain"): (0.40, 0.51, 0.59),
    ("halved-shortcut", "residual"): (0.30, 0.41, 0.49),
    ("halved-shortcut", "stop-gradient"): (0.10, 0.60, 0.90),
    ("halved-shortcut", "plain"): (0.30, 0.42, 0.49),
}


def outcomes() -> pd.DataFrame:
    return pd.DataFrame(
        {"network": network, "arm": arm, "depth_total": 8, "seed": seed, **about}
        for (network, arm), errors in ERRORS.items()
        for seed, error in enumerate(errors)
        for about in (
            {"split": "test", "quantity": "accuracy", "value": 1 - error},
            {"split": "train", "quantity": "accuracy", "value": 0.77},
            {"split": "train", "quantity": "loss", "value": 10 * error},
            {"split": "test", "quantity": "loss", "value": 0.88},
        )
    )


def test_differences_on_paper() -> None:
    """Plain minus residual: 0.30, 0.31, 0.29, so 0.30 +- 4.303 * 0.01 / sqrt(3)."""
    errors = error_table(outcomes())
    found, against = between_arms(errors), from_reference(errors)
    assert len(found) == 2 * 3
    plain = found["resnet", "plain - residual"]
    assert plain.values == pytest.approx((0.30, 0.31, 0.29))
    assert plain.high - plain.mean == pytest.approx(4.3026527 * 0.01 / np.sqrt(3))
    assert found["resnet", "plain - stop-gradient"].values == pytest.approx((0.29, 0.31, 0.27))
    assert found["resnet", "stop-gradient - residual"].mean == pytest.approx(0.01)
    assert set(against) == {("halved-shortcut", "residual - resnet")}
    assert against["halved-shortcut", "residual - resnet"].values == pytest.approx((0.20, 0.21, 0.19))
    rows = difference_table(found | against, {"resnet": 8, "halved-shortcut": 11})
    row = pick(rows, network="halved-shortcut", effect="residual - resnet", quantity="mean")
    assert (row["value"].item(), row["depth_total"].item()) == (pytest.approx(0.2), 11)


def test_a_seed_that_diverged_in_one_arm_is_left_out() -> None:
    table = outcomes()
    gone = (table["network"] == "resnet") & (table["arm"] == "plain") & (table["seed"] == 1)
    errors = error_table(table[~gone])
    found = between_arms(errors)
    assert found["resnet", "plain - residual"].values == pytest.approx((0.30, 0.29))
    assert len(found["resnet", "stop-gradient - residual"].values) == 3
    assert len(from_reference(errors)["halved-shortcut", "residual - resnet"].values) == 3


def test_decisions_need_the_whole_interval() -> None:
    errors = error_table(outcomes())
    found, against = between_arms(errors), from_reference(errors)
    edge = found["resnet", "stop-gradient - residual"]
    assert edge.low < MARGIN < edge.high
    decided = decisions(found, against)
    assert {question: reading for question, (_, _, reading) in decided.items()} == {
        "resnet: residual better than plain": "yes",
        "resnet: stop-gradient better than plain": "yes",
        "resnet: stop-gradient worse than residual": "undecided",
        "halved-shortcut: residual better than plain": "no",
        "halved-shortcut: stop-gradient better than plain": "undecided",
        "halved-shortcut: stop-gradient worse than residual": "undecided",
        "halved-shortcut: worse than the identity": "yes",
    }
    assert decided["resnet: residual better than plain"][:2] == ("+0.300 [+0.275, +0.325]", "0.02")
    other = error_table(outcomes().replace("halved-shortcut", "dirac"))  # He et al. have no such network
    assert "dirac: worse than the identity" not in decisions(between_arms(other), from_reference(other))
    assert decisions({}, {}) == {}


def test_one_arm_alone_is_not_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alone, depths = outcomes().query("arm == 'plain'"), {"resnet": 8, "halved-shortcut": 8}
    report({"outcomes": alone}, [], depths, ["plain"], Output(tmp_path), title="paper")
    assert (
        "paper: nothing to compare; give two or more of residual, stop-gradient and plain." in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("name", "wanted", "nearest"),
    [("resnet", 32, 32), ("resnet", 29, 26), ("bottleneck", 32, 29), ("mlp", 1, 3), ("fixup", -4, 8)],
)
def test_nearest_depth(name: str, wanted: int, nearest: int) -> None:
    assert nearest_depth(name, wanted, width=8) == nearest


def test_a_width_that_no_depth_suits_leaves_the_depth() -> None:
    assert nearest_depth("imagenet", 32, width=64) == 34
    assert nearest_depth("imagenet", 32, width=8) == 32


def keep_random_state(states: list[Tensor], module: nn.Module, args: object) -> None:
    states.append(torch.get_rng_state())


def test_all_arms_of_a_seed_draw_the_same_dropped_branches() -> None:
    """The random state before every draw of a training, statistics recomputed after each epoch as `train_run` does."""
    dataset = load(Data(train_limit=64))
    batches = Batches(dataset, torch.device("cpu"))
    drawn: dict[str, Tensor] = {}
    for arm in ("residual", "stop-gradient", "plain"):
        torch.manual_seed(3)
        model = make("stochastic-depth", 8, flow=ARMS[arm], width=2, shape=dataset.shape, num_classes=10)
        states: list[Tensor] = []
        keep = partial(keep_random_state, states)
        for module in model.modules():
            if isinstance(module, StochasticDepth):
                module.register_forward_pre_hook(keep)
        for _ in train(model, batches, Training(epochs=2, batch_size=32), seed=3):
            recompute_bn_statistics(model, batches)
        drawn[arm] = torch.stack(states)
    assert len(drawn["residual"]) == 3 * (2 * 2 + 2)  # blocks; steps and recomputing of two epochs
    assert torch.equal(drawn["residual"], drawn["stop-gradient"])
    assert torch.equal(drawn["residual"], drawn["plain"])
    assert not torch.equal(drawn["residual"][0], drawn["residual"][-1])


@pytest.mark.slow
def test_a_run_at_toy_size(tmp_path: Path) -> None:
    networks = ["resnet", "norm-after-sum", "bottleneck", "halved-shortcut"]
    arguments = ["--networks", *networks, "--depth", 8, "--epochs", 1, "--width", 4, "--train-limit", 256]
    folder, _ = toy_run("variants", *arguments, cwd=tmp_path)
    rows = pd.read_csv(folder / "outcomes.csv")
    assert list(dict.fromkeys(rows["network"])) == networks
    assert (rows["depth_total"] == np.where(rows["network"] == "bottleneck", 11, 8)).all()
    assert (rows.groupby(["network", "arm", "seed"]).size() == 3 * 2).all()
    plain = rows[rows["arm"] == "plain"].groupby("network")["value"].apply(list)
    assert plain["halved-shortcut"] == plain["resnet"] == plain["norm-after-sum"]  # one function, one training
    found = pd.read_csv(folder / "differences.csv")
    assert len(found) == (4 * 3 + 3) * 4  # differences between arms and from resnet; mean, ends, n
    assert (found.query("quantity == 'n'")["value"] == 3).all()
    error = 1 - rows.query("split == 'test' and quantity == 'accuracy'").pivot_table(
        index=["network", "seed"], columns="arm", values="value"
    )
    wanted = (error["plain"] - error["residual"]).groupby("network").mean()
    means = found.query("effect == 'plain - residual' and quantity == 'mean'").set_index("network")["value"]
    np.testing.assert_allclose(means.sort_index(), wanted.sort_index(), atol=1e-12)
    points = pd.read_csv(folder / "figures" / "variants.csv")
    np.testing.assert_allclose(points["value"], errors_and_losses(rows)["value"], atol=1e-12)
    assert "variants" in drawn(folder)
