"""A control's update against the true gradient: on paper, and on a network at its first weights."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.engine.conditions.block_gradients import flat, gradients, groups
from experiments.engine.conditions.controls import NO_CONTROL, Control
from experiments.engine.conditions.gradient_alignment import NETWORK, alignment, measure_alignment, path_part_cosines
from experiments.engine.training.data import Batches, Data, load
from experiments.engine.training.loop import Moment
from models import ARMS, ResidualBlock, cifar_resnet
from probes import limit_paths
from tests.support.drawings import pick
from tests.support.networks import Apply, images, left_as_it_was, linear


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


def test_a_placebo_and_limited_paths_are_measured_against_the_true_gradient() -> None:
    """Each control's update, of three blocks: the last has no path of two branches, and of no path is it wrong in the
    classifier; a placebo of the residual arm has its norms, that is, the true ones."""
    torch.manual_seed(0)
    model, x, start = cifar_resnet(8, width=4).double(), images(), Moment(step=0, epoch=0)
    for control in (Control(at_most=1), Control(at_most=1, rule="true-norm"), Control(rule="placebo")):
        control.prepare(model, seed=0)
        with left_as_it_was(model):
            found = alignment(model, control, x, torch.arange(4), seed=0, moment=start)
        by_block = found.set_index(["quantity", "block"])["value"]
        cosines, ratios = by_block["cosine"], by_block["norm ratio"]
        assert cosines["layer3.0"] == pytest.approx(1, abs=1e-12)
        assert cosines["layer1.0"] < 0.99
        ordinary = control.rule == "own"
        assert (ratios["layer1.0"] == pytest.approx(1, abs=1e-12)) != ordinary


@pytest.mark.parametrize("at_most", [0, 1, 3])
def test_cosines_of_short_and_long_paths_against_limited_backwards(at_most: int) -> None:
    """The same two gradients by another way; sums in another order round at 1e-13 of float64."""
    torch.manual_seed(0)
    model, x, labels = cifar_resnet(14, width=4).double(), images(), torch.arange(4)
    state = torch.get_rng_state()
    with left_as_it_was(model):
        found = path_part_cosines(model, x, labels, at_most=at_most)
    assert torch.equal(torch.get_rng_state(), state)
    parts, limits = [], list[dict[str, Any]]([{"at_most": at_most}, {"at_least": at_most + 1}])
    for limit in limits:
        with limit_paths(model, **limit):
            parts.append(gradients(F.cross_entropy(model(x), labels), list(model.parameters()), retain_graph=False))
    by_block = found.set_index("block")["value"]
    assert found["depth"].tolist() == list(range(6))
    for depth, (name, group) in enumerate(list(groups(model).items())[1:-1]):
        short, long = (flat(group, part) for part in parts)
        wanted = (short @ long / short.norm() / long.norm()).item()
        assert by_block[name] == pytest.approx(wanted, abs=1e-12, nan_ok=True)
        assert math.isnan(by_block[name]) == (5 - depth <= at_most)


def test_cosines_of_path_parts_on_paper() -> None:
    """Of one weight in each block, short and long parts are parallel; the last has no longer path. Stop-gradient's only
    path through two blocks takes both branches, so that at most 0 branches are none."""
    x = torch.ones(1, 1, dtype=torch.float64)
    found = {arm: path_part_cosines(scalars(arm), x, torch.tensor([1]), at_most=0)["value"] for arm in ARMS}
    assert found["residual"].tolist() == pytest.approx([1, math.nan], nan_ok=True)
    assert found["stop-gradient"].isna().all()
