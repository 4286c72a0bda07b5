"""A control's update against the true gradient: on paper, and on a network at its first weights."""

import math

import pytest
import torch
from torch import Tensor, nn

from experiments.engine.conditions.controls import NO_CONTROL
from experiments.engine.conditions.gradient_alignment import NETWORK, alignment, measure_alignment
from experiments.engine.training.data import Batches, Data, load
from experiments.engine.training.loop import Moment
from models import ARMS, ResidualBlock, cifar_resnet
from tests.support.drawings import pick
from tests.support.networks import Apply, linear


def scalars(arm: str) -> nn.Module:
    """Two blocks x + w x with w = 2 and 3, then the logits (y, 0)."""
    blocks = [ResidualBlock(linear(w), activation=nn.Identity(), flow=ARMS[arm]) for w in (2.0, 3.0)]

    def logits(self: nn.Module, x: Tensor) -> Tensor:
        y = self.get_submodule("blocks")(x)
        return torch.cat([y, torch.zeros_like(y)], 1)

    return Apply(logits, blocks=nn.Sequential(*blocks))


@pytest.mark.parametrize(
    ("arm", "own", "true", "y"),
    [  # gradients of y by the two weights, at x = 1
        ("residual", (4, 3), (4, 3), 12),
        ("stop-gradient", (3, 3), (4, 3), 12),
        ("shortest-path", (1, 3), (4, 3), 12),
        ("plain", (3, 2), (3, 2), 6),
        ("gradient-only", (4, 2), (3, 2), 6),
    ],
)
def test_two_scalar_blocks_on_paper(arm: str, own: tuple[int, int], true: tuple[int, int], y: int) -> None:
    model, x = scalars(arm), torch.ones(1, 1, dtype=torch.float64)
    start = Moment(step=0, epoch=0)
    found = alignment(model, NO_CONTROL, x, torch.tensor([1]), seed=0, moment=start).set_index(["block", "quantity"])
    value = found["value"]
    for index in (0, 1):
        assert value[f"blocks.{index}", "cosine"] == pytest.approx(1, rel=1e-12)
        assert value[f"blocks.{index}", "norm ratio"] == pytest.approx(own[index] / true[index], rel=1e-12)
    inner = own[0] * true[0] + own[1] * true[1]
    assert value[NETWORK, "cosine"] == pytest.approx(inner / math.hypot(*own) / math.hypot(*true), rel=1e-12)
    assert value[NETWORK, "norm ratio"] == pytest.approx(math.hypot(*own) / math.hypot(*true), rel=1e-12)
    slope = 1 / (1 + math.exp(-y))  # of the loss, by y
    assert value[NETWORK, "true norm"] == pytest.approx(slope * math.hypot(*true), rel=1e-12)
    assert found["depth"].isna().tolist() == [False] * 4 + [True] * 3


def test_it_is_measured_after_every_epoch_on_demand() -> None:
    batches = Batches(load(Data(train_limit=256)), torch.device("cpu"))
    batches.mean = batches.mean.double()  # and so are the images
    torch.manual_seed(0)
    model = cifar_resnet(8, flow=ARMS["residual"], width=4, in_channels=1).double()
    about = {"control": NO_CONTROL, "seed": 0}
    found = measure_alignment(model, batches, 1, False, throughout=True, **about)["alignment"]
    assert pick(found, quantity="cosine")["value"].to_numpy() == pytest.approx(1, abs=1e-12)
    assert pick(found, quantity="norm ratio")["value"].to_numpy() == pytest.approx(1, abs=1e-12)
    assert measure_alignment(model, batches, 1, False, **about) == {}
