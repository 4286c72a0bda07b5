"""Copying: the error on paper, the identity in every arm's reach, effects on paper, and a run at toy size."""

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from experiments.engine.reporting import show
from experiments.engine.statistics.estimates import Estimate, estimate
from experiments.engine.training.data import Batches, Data, load
from experiments.engine.training.loop import train
from experiments.engine.training.optimisation import Training
from experiments.identity_mapping import (
    CopyInput,
    Settings,
    Stack,
    best_rates,
    copy_error,
    copying_table,
    decide,
    factor,
    harder,
    make_runs,
    show_copying,
)
from experiments.inserted_identities import pass_on, silence
from experiments.questions.distance_from_identity import BRANCHES, block_changes, mean_changes, some_images
from models import ARMS, ResidualBlock
from tests.support.scripts import drawn, toy_run


@pytest.fixture(scope="module")
def batches() -> Batches:
    return Batches(load(Data()), torch.device("cpu"))


def stack(arm: str, batches: Batches, *, blocks: int = 2, network: str = "resnet") -> Stack:
    torch.manual_seed(0)
    made = Stack(blocks, network=network, flow=ARMS[arm], width=4, in_channels=1)
    made.measure_target(some_images(batches))
    return made


def test_the_error_is_0_for_a_copy_and_1_for_the_channels_means(batches: Batches) -> None:
    model, images = stack("plain", batches), some_images(batches)
    target = model.lift(images)
    assert (target >= 0).all()
    assert target.std() > 0
    assert model.relative_error(target, images).item() == 0
    means = target.mean((0, 2, 3), keepdim=True).expand_as(target)
    assert model.relative_error(means, images).item() == pytest.approx(1, rel=1e-5)
    # doubled values: the mean square over the variance, which holds the squared means too
    wanted = (target.square().mean() / target.var((0, 2, 3), correction=0).mean()).item()
    assert model.loss(2 * target, images, torch.tensor([])).item() == pytest.approx(wanted, rel=1e-5)


def test_the_error_of_a_split_is_the_mean_over_its_images(batches: Batches) -> None:
    model = stack("residual", batches).eval()
    images, _ = batches.get("train", slice(None))  # 1,077: three parts of different size
    with torch.no_grad():
        whole = F.mse_loss(model(images), model.lift(images)) / model.variance
    assert copy_error(model, batches, "train")["error"] == pytest.approx(whole.item(), rel=1e-5)


@pytest.mark.parametrize("network", list(BRANCHES))
@pytest.mark.parametrize("arm", list(ARMS))
def test_every_arm_can_copy(batches: Batches, arm: str, network: str) -> None:
    model, images = stack(arm, batches, network=network).eval(), some_images(batches)
    assert copy_error(model, batches, "test")["error"] > 0.01 or (network == "skipinit" and ARMS[arm].shortcut)
    for block in model.blocks:
        assert isinstance(block, ResidualBlock)
        if block.flow.shortcut:
            silence(block.branch)
        else:
            with torch.no_grad():
                pass_on(block.branch, model.lift(images))
    assert copy_error(model, batches, "test")["error"] < 1e-10  # float32: rounding, squared
    with torch.no_grad():  # in train mode the images' own statistics are the ones that pass_on took
        assert model.relative_error(model.train()(images), images).item() < 1e-10


def test_arms_share_weights_and_target_and_training_leaves_the_target(batches: Batches) -> None:
    first, images = stack("residual", batches), some_images(batches, 8)
    state = {name: value.clone() for name, value in first.state_dict().items()}
    for arm in ARMS:
        assert all(torch.equal(state[name], value) for name, value in stack(arm, batches).state_dict().items())
    target = first.lift(images)
    losses = torch.cat(list(train(first, batches, Training(epochs=2), seed=0, loss=first.loss)))
    assert torch.equal(first.lift(images), target)
    assert losses[-1] < 0.5 * losses[0]
    assert not torch.equal(first.blocks[0].branch[0].weight, state["blocks.0.branch.conv1.weight"])  # pyright: ignore


def test_without_normalisation_residual_stacks_begin_as_copies_and_plain_ones_open(batches: Batches) -> None:
    errors = {arm: copy_error(stack(arm, batches, network="skipinit"), batches, "test")["error"] for arm in ARMS}
    assert errors["residual"] == errors["stop-gradient"] == errors["shortest-path"] == 0
    assert errors["plain"] == errors["gradient-only"] > 0.1
    parameters = stack("plain", batches, network="skipinit").named_parameters()
    assert [scale.item() for name, scale in parameters if "alpha" in name] == [1, 1]


@pytest.mark.parametrize("arm", list(ARMS))
def test_the_first_block_behind_the_fixed_layer_is_measured_too(batches: Batches, arm: str) -> None:
    found = block_changes(stack(arm, batches), some_images(batches, 16))
    assert set(found["block"]) == {"blocks.0", "blocks.1"}
    assert np.isfinite(found["value"]).all()
    assert set(found["quantity"]) == ({"ratio", "distance"} if ARMS[arm].shortcut else {"distance"})


def test_a_stack_has_the_first_weights_of_its_run(tmp_path: Path) -> None:
    """The arm that begins near the identity is plain with other first weights: it begins near a copy."""
    arguments = ["--blocks", 2, "--rates", 0.1, "--epochs", 1, "--seeds", 0, "--width", 4]
    folder, _ = toy_run("identity_mapping", *arguments, "--arms", "plain", "near-identity", cwd=tmp_path)
    starts = pd.read_csv(folder / "starts.csv").query("split == 'test'").set_index("arm")["value"]
    assert starts["near-identity"] < 0.5 * starts["plain"]


# Effects on paper

ERRORS = {  # of copies by arm and rate, a seed each
    ("residual", 0.1): (1e-3, 1e-3, 1e-3),
    ("residual", 0.01): (1e-2, 1e-2, 1e-2),
    ("plain", 0.1): (0.5, 0.5, 0.5),
    ("plain", 0.01): (1e-1, 2e-2, 5e-2),
}


def copying_tables(depths: tuple[int, ...] = (2, 8)) -> dict[str, pd.DataFrame]:
    """What the runs write: validation and test alike at the end, ten times as much at the start."""
    tables: dict[str, list[dict[str, Any]]] = {"outcomes": [], "starts": [], "curves": [], "blocks": []}
    for depth, ((arm, rate), errors) in product(depths, ERRORS.items()):
        for seed, error in enumerate(errors):
            about = {"arm": arm, "depth_total": depth, "seed": seed, "learning_rate": rate}
            row = about | {"quantity": "error", "value": error}
            for split in ("train", "validation", "test"):
                tables["outcomes"].append(row | {"split": split})
                tables["starts"].append(row | {"split": split, "epoch": 0, "value": 10 * error})
            tables["curves"] += [row | {"split": "validation", "epoch": epoch} for epoch in (1, 2)]
            for epoch, block in product((0, 2), range(depth // 2)):
                row = about | {"epoch": epoch, "block": f"blocks.{block}", "depth": block}
                tables["blocks"].append(row | {"quantity": "distance", "value": 0.1 + block})
                tables["blocks"] += [row | {"quantity": "ratio", "value": 0.2 + epoch}] * (arm == "residual")
    return {name: pd.DataFrame(rows) for name, rows in tables.items()}


def test_each_arm_takes_the_rate_that_validation_chooses() -> None:
    outcomes = copying_tables()["outcomes"]
    found = best_rates(outcomes).set_index(["arm", "depth_total"])["learning_rate"]
    assert found["residual", 2] == found["residual", 8] == 0.1
    assert found["plain", 2] == 0.01
    test = (outcomes["split"] == "test") & (outcomes["learning_rate"] == 0.01)
    outcomes.loc[test, "value"] = 9.0  # test plays no part
    assert best_rates(outcomes).set_index(["arm", "depth_total"])["learning_rate"]["plain", 2] == 0.01
    lost = (outcomes["learning_rate"] == 0.1) & (outcomes["seed"] == 2)  # diverged
    assert set(best_rates(outcomes[~lost])["learning_rate"]) == {0.01}


def test_harder_on_paper() -> None:
    """log10 of 100, 20, 50: mean 5 / 3, deviation of 2, 1.30103, 1.69897."""
    found = harder(copying_table(copying_tables()))
    assert set(found) == {2, 8}
    logs = np.log10([100, 20, 50])
    assert found[8].mean == pytest.approx(5 / 3)
    assert found[8].high - found[8].mean == pytest.approx(4.3026527 * np.std(logs, ddof=1) / np.sqrt(3))
    assert list(decide(found)) == ["1 block", "4 blocks"]
    text, margin, reading = decide(found)["4 blocks"]
    assert text.startswith("46.4 [")
    assert (margin, reading) == ("2 times", "harder")
    assert factor(estimate(np.array([1.0, 2.0]))) == "31.6 (10, 100)"


@pytest.mark.parametrize(
    ("found", "reading"),
    [
        (Estimate((0.1, 0.1, 0.1), 0.1, 0.0, 0.2), "not harder"),  # a factor of 1.6 at the most
        (estimate(np.array([0.0, 0.3, 0.9])), "undecided"),
        (estimate(np.array([2.0, 2.0])), "undecided"),  # two seeds have no interval
    ],
)
def test_what_an_interval_decides(found: Estimate, reading: str) -> None:
    assert decide({2: found})["1 block"][2] == reading


def test_the_table_is_whole_where_the_output_is_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    show_copying(show.terminal(), copying_table(copying_tables()), ("residual", "plain"))
    shown = capsys.readouterr().out
    assert "…" not in shown  # cut
    for text in ("0.567 ± 0.404", "0.0567 ± 0.0404", "1.600 ± 0.000", "4 blocks", "0.01"):
        assert text in shown


def test_an_error_of_exactly_0_is_the_smallest_that_is_compared() -> None:
    tables = copying_tables()
    for name in ("outcomes", "curves"):
        tables[name].loc[tables[name]["arm"] == "residual", "value"] = 0.0
    assert harder(copying_table(tables))[2].mean == pytest.approx(np.mean(np.log10([1e11, 2e10, 5e10])))


def test_mean_changes_take_the_residual_where_there_is_one() -> None:
    changes = mean_changes(copying_tables((8,))["blocks"], by="learning_rate")
    found = changes.set_index(["arm", "epoch", "seed"])["value"]
    assert found["plain", 0, 0].iloc[0] == pytest.approx(1.6)  # 0.1, 1.1, 2.1, 3.1
    assert found["residual", 0, 0].iloc[0] == pytest.approx(0.2)
    assert found["residual", 2, 0].iloc[0] == pytest.approx(2.2)


# The script

TOY = ["--seeds", 0, 1, 2, "--arms", "residual", "plain", "--epochs", 2, "--width", 2, "--train-limit", 256]
TOY += ["--blocks", 1, 2]


@pytest.mark.slow
def test_a_run_at_toy_size(tmp_path: Path) -> None:
    folder, shown = toy_run("identity_mapping", *TOY, cwd=tmp_path)
    assert len(pd.read_csv(folder / "starts.csv")) == 2 * 2 * 2 * 3 * 3  # rates, blocks, arms, seeds, splits
    outcomes = pd.read_csv(folder / "outcomes.csv").query("quantity == 'error' and split == 'test'")
    copied = outcomes.set_index(["arm", "depth_total", "seed", "learning_rate"])["value"]
    assert len(copied) == len(copied.round(6).unique()) == 24  # each rate is trained with
    table = pd.read_csv(folder / "copying.csv").query("quantity == 'error' and split == 'test'")
    ends = table[table["epoch"] == 2].set_index(copied.index.names)["value"]
    assert len(ends)
    assert copied.loc[ends.index].tolist() == pytest.approx(ends.tolist())
    assert len(table) == 2 * 2 * 2 * 3  # first and last, blocks, arms, seeds
    assert "copying" in drawn(folder)
    assert "1 block " in shown[shown.index("Decisions") :]


def test_without_plain_stacks_nothing_is_compared_and_a_rate_that_diverges_is_named(tmp_path: Path) -> None:
    few = ["--seeds", 0, "--arms", "residual", "--epochs", 2, "--width", 2, "--train-limit", 128, "--blocks", 1]
    _, shown = toy_run("identity_mapping", *few, "--rates", 0.1, 1e30, cwd=tmp_path)
    assert "diverged: identity_mapping, residual, depth 2, seed 0, learning_rate 1e+30" in shown
    assert "No comparison: it needs the arms plain and residual" in shown
    found = pd.read_csv(tmp_path / "results" / "identity_mapping" / "copying.csv")
    assert set(found["learning_rate"]) == {0.1}


def test_a_runs_recipe_says_all_that_it_does() -> None:
    settings = Settings(seeds=(0,), arms=("plain",), blocks=(1,), rates=(0.1, 0.2))
    first, second = make_runs(settings, load(Data(train_limit=128)))
    assert first.name != second.name
    assert [run.recipe.training.learning_rate for run in (first, second)] == [0.1, 0.2]
    assert [run.labels for run in (first, second)] == [{"learning_rate": 0.1}, {"learning_rate": 0.2}]
    assert first.recipe.treatment == CopyInput()
