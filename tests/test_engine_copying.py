"""Stacks that copy their input: the error on paper, the identity in every arm's reach, and what stays fixed."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from experiments.engine.block_changes import block_changes, some_images
from experiments.engine.copying import BRANCHES, Stack, copy_error
from experiments.engine.data import Batches, Data, load
from experiments.engine.insertion import pass_on, silence
from experiments.engine.training import Training, train
from models import ARMS, ResidualBlock


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
    scales = [
        value for name, value in stack("plain", batches, network="skipinit").named_parameters() if "alpha" in name
    ]
    assert [scale.item() for scale in scales] == [1, 1]


@pytest.mark.parametrize("arm", list(ARMS))
def test_the_first_block_behind_the_fixed_layer_is_measured_too(batches: Batches, arm: str) -> None:
    found = block_changes(stack(arm, batches), some_images(batches, 16))
    assert set(found["block"]) == {"blocks.0", "blocks.1"}
    assert np.isfinite(found["value"]).all()
    assert set(found["quantity"]) == ({"ratio", "distance"} if ARMS[arm].shortcut else {"distance"})
