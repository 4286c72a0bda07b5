"""The networks compared: differences on paper, equal draws, and a run at toy size."""

from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from experiments.engine.data import Batches, Data, load
from experiments.engine.network_effects import MARGIN, between_arms, effect_table, final_errors, from_reference, verdict
from experiments.engine.network_ending import sentence
from experiments.engine.networks import NETWORKS, make, nearest_depth
from experiments.engine.training import Training, settle_statistics, train
from experiments.variants import measured
from models import ARMS
from tests.scripts import print_of, run
from tests.support.drawings import pick

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
    errors = final_errors(outcomes())
    found, against = between_arms(errors), from_reference(errors)
    assert len(found) == 2 * 3
    plain = found["resnet", "plain - residual"]
    assert plain.values == pytest.approx((0.30, 0.31, 0.29))
    assert plain.high - plain.mean == pytest.approx(4.3026527 * 0.01 / np.sqrt(3))
    assert found["resnet", "plain - stop-gradient"].values == pytest.approx((0.29, 0.31, 0.27))
    assert found["resnet", "stop-gradient - residual"].mean == pytest.approx(0.01)
    assert set(against) == {("halved-shortcut", "residual - resnet")}
    assert against["halved-shortcut", "residual - resnet"].values == pytest.approx((0.20, 0.21, 0.19))
    rows = effect_table(found | against, {"resnet": 8, "halved-shortcut": 11})
    row = pick(rows, network="halved-shortcut", effect="residual - resnet", quantity="mean")
    assert (row["value"].item(), row["depth_total"].item()) == (pytest.approx(0.2), 11)


def test_a_seed_that_diverged_in_one_arm_is_left_out() -> None:
    table = outcomes()
    gone = (table["network"] == "resnet") & (table["arm"] == "plain") & (table["seed"] == 1)
    errors = final_errors(table[~gone])
    found = between_arms(errors)
    assert found["resnet", "plain - residual"].values == pytest.approx((0.30, 0.29))
    assert len(found["resnet", "stop-gradient - residual"].values) == 3
    assert len(from_reference(errors)["halved-shortcut", "residual - resnet"].values) == 3


def test_the_sentence_answers_for_each_network() -> None:
    errors = final_errors(outcomes())
    said = sentence(between_arms(errors), from_reference(errors), "paper")
    assert "Residual better than plain: yes in resnet; no in halved-shortcut." in said
    assert "Stop-gradient better than plain: yes in resnet; undecided in halved-shortcut." in said
    assert "Stop-gradient worse than residual: undecided in resnet, halved-shortcut." in said
    assert "Worse than the identity, as in He et al. 2016 all are: yes in halved-shortcut." in said
    assert "nothing to compare" in sentence({}, {}, "paper")
    other = final_errors(outcomes().replace("halved-shortcut", "dirac"))
    assert "He et al." not in sentence(between_arms(other), from_reference(other), "paper")  # they have no such network


def test_a_verdict_needs_the_whole_interval() -> None:
    found = between_arms(final_errors(outcomes()))
    edge = found["resnet", "stop-gradient - residual"]
    assert edge.low < MARGIN < edge.high
    assert [verdict(found[key, "plain - residual"]) for key in ("resnet", "halved-shortcut")] == ["above", "below"]
    assert verdict(edge) == "undecided"


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
    """The random state before every draw of a training, statistics settled after each epoch as `train_cell` does."""
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
            settle_statistics(model, batches)
        drawn[arm] = torch.stack(states)
    assert len(drawn["residual"]) == 3 * (2 * 2 + 2)  # blocks; steps and settling of two epochs
    assert torch.equal(drawn["residual"], drawn["stop-gradient"])
    assert torch.equal(drawn["residual"], drawn["plain"])
    assert not torch.equal(drawn["residual"][0], drawn["residual"][-1])


@pytest.mark.slow
def test_a_run_at_toy_size_resumes(tmp_path: Path) -> None:
    networks = ["resnet", "norm-after-sum", "bottleneck", "halved-shortcut"]
    arguments = ["--networks", *networks, "--depth", 8, "--epochs", 1, "--width", 4, "--train-limit", 256]
    done = run("variants", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "results" / "variants"
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
    drawn = pd.read_csv(folder / "figures" / "variants.csv")
    np.testing.assert_allclose(drawn["value"], measured(rows)["value"], atol=1e-12)
    assert {file.suffix for file in (folder / "figures").glob("variants.*")} == {".csv", ".pdf", ".png"}
    again = run("variants", *arguments, cwd=tmp_path)
    assert "36 of 36 cells are already done" in again.stderr
    assert again.stdout == done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--networks", "densenet"], f"--networks: unknown 'densenet'; choose from {', '.join(NETWORKS)}"),
        (["--networks", "imagenet"], "--depth 32: an imagenet network begins with 64 channels, not 8: add --width 64"),
        (["--depth", "0"], "--depth 0: give at least 1 layer"),
        (["--networks", "mlp", "mlp"], "--networks: got mlp mlp; give one or more, each once"),
    ],
)
def test_a_network_that_cannot_be_is_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert print_of("variants", arguments, capsys, status=2).strip() == f"error: {message}"
    assert not list(tmp_path.iterdir())


def test_one_network_alone_is_named_by_the_flag_of_several(capsys: pytest.CaptureFixture[str]) -> None:
    shown = print_of("variants", ["--network", "mlp"], capsys, status=2)
    assert "Unrecognized options: --network" in shown
    assert "--network " not in print_of("variants", ["--help"], capsys, status=0)
