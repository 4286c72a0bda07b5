"""Every network that --network names: the question can be asked of it."""

import math
from itertools import combinations
from pathlib import Path

import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from experiments.engine.training.networks import NETWORKS, make, outline
from experiments.engine.training.optimisation import parameter_groups
from models import ARMS, residual_blocks
from models.residual_blocks import Block
from probes import find_junctions, gate
from tests.support.scripts import toy_run

DEPTHS = {"bottleneck": 11, "imagenet": 18, "inception": 20, "inception-scaled": 20}
SHAPE = (1, 8, 8)
# The others are `models`' own, whose tests ask the same of them.
every_rescaled = pytest.mark.parametrize("name", ["halved-shortcut", "halved-sum", "rescaled-sum", "depth-scaled"])


def network(name: str, arm: str) -> torch.nn.Module:
    torch.manual_seed(0)
    width = 64 if name == "imagenet" else 4
    return make(name, DEPTHS.get(name, 8), flow=ARMS[arm], width=width, shape=SHAPE, num_classes=10)


@every_rescaled
def test_arms_share_weights_junctions_and_parameters_with_gradients(name: str) -> None:
    images = torch.randn(4, *SHAPE)
    weights = network(name, "residual").state_dict()
    for arm in ARMS:
        model = network(name, arm)
        assert all(torch.equal(weights[key], value) for key, value in model.state_dict().items())
        assert len(find_junctions(model, images)) == len(residual_blocks(model)) > 0
        F.cross_entropy(model(images), torch.arange(4)).backward()
        assert all(parameter.grad is not None for parameter in model.parameters())


@every_rescaled
def test_stop_gradient_is_the_gated_residual_network(name: str) -> None:
    images, gradients = torch.randn(4, *SHAPE), []
    for arm, weight in (("stop-gradient", 1.0), ("residual", 0.0)):
        model = network(name, arm)
        torch.manual_seed(1)  # dropout
        with gate(model, shortcut_gradient=weight):
            F.cross_entropy(model(images), torch.arange(4)).backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", NETWORKS)
def test_what_the_loss_does_not_depend_on_gets_no_weight_decay(name: str) -> None:
    _, fixed = parameter_groups(network(name, "plain"), 0.1)
    shortcuts = [p for block in residual_blocks(network(name, "plain")) for p in block.shortcut.parameters()]
    assert len(fixed["params"]) == len(shortcuts)  # type: ignore[arg-type]


def test_no_two_names_are_one_network() -> None:
    """Away from the first weights, where some are alike, all names give other outputs in training."""
    images, outputs = torch.randn(4, *SHAPE), {}
    for name in NETWORKS:
        model = network(name, "residual")
        for parameter in model.parameters():
            parameter.data += 0.1
        torch.manual_seed(1)  # dropout, stochastic depth
        outputs[name] = model(images)
    equal = [(one, other) for one, other in combinations(outputs, 2) if torch.equal(outputs[one], outputs[other])]
    assert equal == []


def test_an_outline_holds_no_weights() -> None:
    assert {parameter.device.type for parameter in outline("resnet", 1202, width=16).parameters()} == {"meta"}


@pytest.mark.slow
def test_an_experiment_asks_of_another_network(tmp_path: Path) -> None:
    arguments = ["--network", "mlp", "--depths", 5, "--seeds", 0, "--epochs", 1, "--width", 2, "--train-limit", 256]
    folder, _ = toy_run("stopgrad_shortcut", *arguments, cwd=tmp_path)
    gradients = pd.read_csv(folder / "gradients.csv")
    assert set(gradients["block"]) == {"blocks.0", "blocks.1", "blocks.2"}


@pytest.mark.parametrize(
    ("name", "shortcut", "branch"),
    [
        ("halved-shortcut", 1 / 2, 1),
        ("halved-sum", 1 / 2, 1 / 2),
        ("rescaled-sum", 1 / math.sqrt(2), 1 / math.sqrt(2)),
        ("depth-scaled", 1, 1 / 3),  # of 9 blocks
    ],
)
def test_rescaled_networks_on_paper(name: str, shortcut: float, branch: float) -> None:
    def blocks(arm: str) -> list[Block]:
        return residual_blocks(make(name, 20, flow=ARMS[arm], width=4, shape=SHAPE, num_classes=10).double())

    block, x = blocks("residual")[1].eval(), torch.rand(2, 4, 6, 6).double()  # not negative: ReLU leaves it as it is
    wanted = (shortcut * x + branch * block.branch(x)).clamp(min=0)
    torch.testing.assert_close(block(x), wanted, rtol=1e-14, atol=1e-14)
    for arm, flow in ARMS.items():
        got = blocks(arm)[8].flow
        assert (got.shortcut, got.shortcut_gradient) == pytest.approx(
            (shortcut * flow.shortcut, shortcut * flow.shortcut_gradient)
        )
        assert (got.branch, got.branch_gradient) == pytest.approx((branch * flow.branch, branch * flow.branch_gradient))
