"""Use of blocks: what the script writes at toy size, and each measure's invariants."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from experiments.engine.block_use import errors, gradient_shares, movements, reset, with_true_gradient
from experiments.engine.cells import make_network
from experiments.engine.command import BadInput
from experiments.engine.data import Batches, Data, load
from experiments.engine.grid import Cell
from experiments.engine.training import Training
from experiments.engine.workers import Workers
from experiments.layer_use import Settings, main
from models import RESIDUAL, residual_blocks
from tests.scripts import print_of

ARMS = ("residual", "stop-gradient", "plain")
DATA = Data(train_limit=128)


def settings(out: Path, **changes: Any) -> Settings:
    given: dict[str, Any] = {"depth": 8, "arms": ARMS, "seeds": (0, 1), "width": 2, "workers": Workers(1)}
    given |= {"training": Training(epochs=2, batch_size=32), "data": DATA, "steps": 4, "attributed": 8}
    return Settings(out=out, **(given | changes))


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    main(settings(folder))
    return folder / "layer_use"


@pytest.fixture(scope="module")
def blocks(toy: Path) -> pd.DataFrame:
    return pd.read_csv(toy / "blocks.csv")


@pytest.fixture
def network() -> tuple[nn.Module, Batches]:
    dataset = load(DATA)
    return make_network(cell("residual"), dataset), Batches(dataset, torch.device("cpu"))


def cell(arm: str) -> Cell:
    return Cell("toy", arm, 8, 0, {"network": "resnet", "width": 2, "device": "cpu"})


def test_gradient_shares_sum_to_one_at_both_ends(blocks: pd.DataFrame) -> None:
    sums = blocks[blocks["quantity"] == "gradient"].groupby(["arm", "seed", "epoch"])["value"].sum()
    assert len(sums) == 3 * 2 * 2
    assert sums.to_numpy() == pytest.approx(1)


def test_arms_of_one_function_begin_with_one_error_and_all_move(blocks: pd.DataFrame) -> None:
    moved = blocks[blocks["quantity"] == "movement"]
    assert len(moved) == 3 * 2 * 3
    assert (moved["value"] > 0).all()


def test_the_read_out_after_the_last_block_is_the_whole_network(toy: Path, blocks: pd.DataFrame) -> None:
    last = blocks[(blocks["quantity"] == "read-out") & (blocks["depth"] == 2)].set_index(["arm", "seed"])["value"]
    whole = blocks[(blocks["quantity"] == "whole") & (blocks["statistics"] == "kept")]
    whole = whole.set_index(["arm", "seed"])["value"]
    accuracy = pd.read_csv(toy / "outcomes.csv").query("split == 'test' and quantity == 'accuracy'")
    assert set(last.index.get_level_values("arm")) == {"residual", "stop-gradient"}
    pd.testing.assert_series_equal(last, whole.loc[last.index])
    assert (1 - accuracy.set_index(["arm", "seed"])["value"]).loc[whole.index].to_numpy() == pytest.approx(whole)


def test_deleting_the_last_block_is_the_read_out_before_it(blocks: pd.DataFrame) -> None:
    kept = blocks[(blocks["quantity"] == "deleted") & (blocks["statistics"] == "kept") & (blocks["depth"] == 2)]
    before = blocks[(blocks["quantity"] == "read-out") & (blocks["depth"] == 1)]
    both = kept.merge(before, on=["arm", "seed"], suffixes=("", "_read"))
    assert len(both) == 4
    assert (both["value"] == both["value_read"]).all()


def test_attribution_is_complete_up_to_its_own_delta(blocks: pd.DataFrame) -> None:
    wide = blocks.pivot_table(index=["arm", "seed", "depth"], columns="quantity", values="value").dropna(subset="score")
    assert len(wide) == 2 * 2 * 3
    assert ((wide["shortcut"] + wide["branch"] - wide["score"]).abs() <= wide["delta"] + 1e-5).all()
    assert wide.groupby(["arm", "seed"])["score"].nunique().eq(1).all()
    assert wide["attribution"].to_numpy() == pytest.approx(wide["branch"] / (wide["branch"] + wide["shortcut"]))


def test_plain_blocks_that_change_the_shape_cannot_be_skipped(blocks: pd.DataFrame) -> None:
    deleted = blocks[(blocks["quantity"] == "deleted") & (blocks["statistics"] == "kept") & (blocks["seed"] == 0)]
    assert deleted.groupby("arm")["depth"].apply(list).to_dict() == {
        "residual": [0, 1, 2], "stop-gradient": [0, 1, 2], "plain": [0],
    }  # fmt: skip


def test_figures_lie_beside_what_they_were_drawn_from(toy: Path) -> None:
    names = {path.name for path in (toy / "figures").iterdir()}
    assert names == {
        *(f"{name}.{end}" for name in ("layer_use", "depth_centres") for end in ("csv", "pdf", "png")),
        *(f"saliency_maps.{end}" for end in ("npz", "pdf", "png")),
    }
    stored = np.load(toy / "figures" / "saliency_maps.npz")
    assert stored["maps"].shape == (3, 4, 8, 8)
    assert stored["labels"].tolist() == ["0", "1", "2", "3"]
    missed = np.abs(stored["maps"].sum((2, 3)) - stored["scores"])
    assert missed == pytest.approx(np.abs(stored["delta"]), abs=1e-4)


def test_a_second_call_repeats_no_cell_and_says_the_same(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in toy.glob("cells/*/*")}
    main(settings(toy.parent))
    shown = capsys.readouterr()
    assert "6 of 6 cells are already done" in shown.err
    assert {path: path.stat().st_mtime_ns for path in toy.glob("cells/*/*")} == before
    ending = " ".join(shown.out.split())
    assert "digits 8x8, depth 8, n = " in ending
    assert "fewer than three seeds decide nothing. One data set, one learning rate, one budget." in ending
    assert "The attribution misses the class score" in ending


# Each measure


def test_an_untrained_network_has_not_moved_and_resets_to_itself(network: tuple[nn.Module, Batches]) -> None:
    model, batches = network
    first = copy.deepcopy(model)
    assert [row["value"] for row in movements(model, first)] == [0, 0, 0]
    found = pd.DataFrame(errors(model, first, batches))
    for _, rows in found.groupby("statistics"):
        whole = rows[rows["quantity"] == "whole"]["value"].item()
        assert (rows[rows["quantity"] == "reset"]["value"] == whole).all()


def test_reset_changes_one_block_and_leaves_statistics(network: tuple[nn.Module, Batches]) -> None:
    first, _ = network
    trained = copy.deepcopy(first)
    with torch.no_grad():
        for tensor in (*trained.parameters(), *trained.buffers()):
            tensor.add_(1)
    after, there, here = reset(trained, first, 1).state_dict(), trained.state_dict(), first.state_dict()
    parameters = {name for name, _ in first.named_parameters()}
    for name, tensor in after.items():
        expected = here if name.startswith("layer2.0.") and name in parameters else there
        assert torch.equal(tensor, expected[name]), name


def test_movement_is_relative_to_the_first_weights(network: tuple[nn.Module, Batches]) -> None:
    first, _ = network
    moved = copy.deepcopy(first)
    with torch.no_grad():
        for name, weight in moved.named_parameters():
            if "conv" in name and "layer3" in name:
                weight.mul_(1.5)
            if "bn" in name:
                weight.add_(100)  # does not count
    assert [row["value"] for row in movements(moved, first)] == pytest.approx([0, 0, 0.5])


def test_shares_are_those_of_the_gradient_that_the_arm_trains_with(network: tuple[nn.Module, Batches]) -> None:
    model, batches = network
    stopped = make_network(cell("stop-gradient"), load(DATA))
    shares, of_stopped = ([row["value"] for row in gradient_shares(each, batches)] for each in (model, stopped))
    assert shares != pytest.approx(of_stopped)
    assert all(parameter.grad is None for parameter in model.parameters())
    images, labels = batches.get("train", slice(0, 8))
    gradients = []
    for each in (model.eval(), with_true_gradient(stopped)):
        assert residual_blocks(each)[0].flow == RESIDUAL
        torch.nn.functional.cross_entropy(each(images), labels).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in each.parameters() if p.grad is not None]))
    assert torch.equal(*gradients)  # an attribution does not see the arm's backward


# Mistakes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth": 21}, "--depth 21: depth 21 is not 6n"),
        ({"arms": ("residual", "dense")}, "unknown 'dense'; choose from residual"),
        ({"attributed": 0}, "--attributed 0, --steps 4: give at least 1 of each"),
        ({"steps": 0}, "--attributed 8, --steps 0: give at least 1 of each"),
    ],
)
def test_a_users_mistake_writes_nothing(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message.replace("+", r"\+")):
        main(settings(tmp_path, **changes))
    assert not list(tmp_path.iterdir())


def test_when_every_cell_diverges_that_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wild = Training(epochs=1, batch_size=32, learning_rate=1e30)
    main(settings(tmp_path, arms=("residual",), seeds=(0,), training=wild))
    assert "Every cell diverged: there is nothing to measure." in capsys.readouterr().out
    assert set(pd.read_csv(tmp_path / "layer_use" / "blocks.csv")["epoch"]) == {0}


def test_flags_reach_the_settings(capsys: pytest.CaptureFixture[str]) -> None:
    shown = print_of("layer_use", ["--quick", "--steps", "0"], capsys, status=2)
    assert shown == "error: --attributed 16, --steps 0: give at least 1 of each\n"
