"""An arm's gradient against the true one: on paper, and while a network is trained."""

import copy
import math

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from experiments.engine.alignment import NETWORK, alignment, measure_alignment
from experiments.engine.block_gradients import set_flows
from experiments.engine.continuation import go_on, true_arm
from experiments.engine.controls import NO_CONTROL, Backward, Moment, backpropagation
from experiments.engine.data import Batches, Data, Dataset, load
from experiments.engine.first_order import Watch, uphill
from experiments.engine.grid import Cell
from experiments.engine.training import Training, evaluate, settle_statistics, train
from models import ARMS, RESIDUAL, STOP_GRADIENT, ResidualBlock, cifar_resnet, residual_blocks
from tests.networks import Apply, linear
from tests.test_figures import pick

PLAIN_SGD = Training(epochs=1, batch_size=64, learning_rate=0.05, momentum=0, weight_decay=0, schedule="step")
RATES = (0.05, 0.05, 0.005, 0.0005)  # of its four steps


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


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load(Data(train_limit=256))


def network(arm: str = "stop-gradient") -> nn.Module:
    torch.manual_seed(0)
    return cifar_resnet(8, flow=ARMS[arm], width=4, in_channels=1).double()


def images_of(dataset: Dataset) -> Batches:
    batches = Batches(dataset, torch.device("cpu"))
    batches.mean = batches.mean.double()  # and so are the images
    return batches


def learn(model: nn.Module, dataset: Dataset, backward: Backward, training: Training = PLAIN_SGD) -> None:
    for _ in train(model, images_of(dataset), training, seed=0, backward=backward):
        pass


def test_it_is_measured_after_every_epoch_on_demand(digits: Dataset) -> None:
    batches, model = images_of(digits), network("residual")
    about = {"control": NO_CONTROL, "seed": 0}
    found = measure_alignment(model, batches, 1, False, throughout=True, **about)["alignment"]
    assert pick(found, quantity="cosine")["value"].to_numpy() == pytest.approx(1, abs=1e-12)
    assert pick(found, quantity="norm ratio")["value"].to_numpy() == pytest.approx(1, abs=1e-12)
    assert measure_alignment(model, batches, 1, False, **about) == {}


def test_of_plain_sgd_the_change_is_minus_rate_times_both_gradients(digits: Dataset) -> None:
    """Against the two gradients taken apart, by hand, inside the step."""
    products: list[float] = []

    def by_hand(model: nn.Module, loss: Tensor, moment: Moment) -> None:
        found = []
        for flow in (STOP_GRADIENT, RESIDUAL):
            set_flows(model, [flow] * 3)
            grads = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
            found.append(torch.cat([grad.flatten() for grad in grads]))
        products.append((found[0] @ found[1]).item())
        set_flows(model, [STOP_GRADIENT] * 3)
        loss.backward()

    model, watch = network(), Watch()
    learn(model, digits, watch(by_hand))
    rows = watch.table(model)
    assert rows["step"].tolist() == [1, 2, 3, 4]
    assert rows["epoch"].tolist() == [1] * 4
    wanted = [-rate * product for rate, product in zip(RATES, products, strict=True)]
    assert rows["value"].to_numpy() == pytest.approx(wanted, rel=1e-9)  # of differences of weights, in float64
    assert len(watch.table(model)) == 4  # the last step is taken once


def test_watching_changes_nothing(digits: Dataset) -> None:
    watched, alone = network(), network()
    learn(watched, digits, Watch()(backpropagation), Training(epochs=2))
    learn(alone, digits, backpropagation, Training(epochs=2))
    assert all(torch.equal(a, b) for a, b in zip(watched.parameters(), alone.parameters(), strict=True))
    assert all(block.flow == STOP_GRADIENT for block in residual_blocks(watched))


@pytest.mark.parametrize(("sign", "share"), [(1, 0.0), (-1, 1.0)])
def test_the_true_gradient_never_goes_uphill_and_its_negative_always(digits: Dataset, sign: int, share: float) -> None:
    def signed(model: nn.Module, loss: Tensor, moment: Moment) -> None:
        (sign * loss).backward()

    model, watch = network("residual"), Watch()
    learn(model, digits, watch(signed))
    assert uphill(watch.table(model), "epoch")["value"].tolist() == [share]


def test_shares_leave_out_what_is_not_finite() -> None:
    steps = pd.DataFrame({"epoch": [1, 1, 1, 2, 2], "value": [1.0, -1.0, math.nan, 0.0, -math.inf]})
    assert uphill(steps, "epoch")["value"].tolist() == [0.5, 0.0]


def test_each_arm_s_true_one() -> None:
    wanted = {"gradient-only": "plain", "plain": "plain"}
    assert {arm: true_arm(arm) for arm in ARMS} == {arm: wanted.get(arm, "residual") for arm in ARMS}


def test_a_network_goes_on_from_where_it_is(digits: Dataset) -> None:
    """As a copy whose flows are set by hand and that is trained by itself; the network stays as it is."""
    torch.manual_seed(3)
    model = cifar_resnet(8, flow=STOP_GRADIENT, width=4, in_channels=1)
    twin, before = copy.deepcopy(model), copy.deepcopy(model.state_dict())
    set_flows(twin, [RESIDUAL] * 3)
    batches = Batches(digits, torch.device("cpu"))
    for _ in train(twin, batches, PLAIN_SGD, seed=0):
        pass
    settle_statistics(twin, batches)
    cell = Cell("toy", "residual", 8, 0, {"network": "resnet", "width": 4, "device": "cpu"})
    ended = go_on(model, cell, digits, PLAIN_SGD)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert set(ended["effect"]) == {"then residual"}
    for split in ("train", "test"):
        for quantity, value in evaluate(twin, batches, split).items():
            assert pick(ended, split=split, quantity=quantity)["value"].item() == value
