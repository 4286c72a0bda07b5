"""The first-order change of the true loss in each step, against both gradients taken apart by hand."""

import math

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from experiments.engine.training.data import Batches, Data, Dataset, load
from experiments.engine.training.loop import Backward, Moment, backpropagation, train
from experiments.engine.training.optimisation import Training
from experiments.questions.alignment.first_order import FirstOrderChanges, uphill_share
from models import ARMS, RESIDUAL, STOP_GRADIENT, cifar_resnet, residual_blocks, set_flows

PLAIN_SGD = Training(epochs=1, batch_size=64, learning_rate=0.05, momentum=0, weight_decay=0, schedule="step")
RATES = (0.05, 0.05, 0.005, 0.0005)  # of its four steps


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

    model, changes = network(), FirstOrderChanges()
    learn(model, digits, changes.wrap_backward(by_hand))
    rows = changes.table(model)
    assert rows["step"].tolist() == [1, 2, 3, 4]
    assert rows["epoch"].tolist() == [1] * 4
    wanted = [-rate * product for rate, product in zip(RATES, products, strict=True)]
    assert rows["value"].to_numpy() == pytest.approx(wanted, rel=1e-9)  # of differences of weights, in float64
    assert len(changes.table(model)) == 4  # the last step is taken once


def test_measuring_changes_nothing(digits: Dataset) -> None:
    measured, alone = network(), network()
    learn(measured, digits, FirstOrderChanges().wrap_backward(backpropagation), Training(epochs=2))
    learn(alone, digits, backpropagation, Training(epochs=2))
    assert all(torch.equal(a, b) for a, b in zip(measured.parameters(), alone.parameters(), strict=True))
    assert all(block.flow == STOP_GRADIENT for block in residual_blocks(measured))


@pytest.mark.parametrize(("sign", "share"), [(1, 0.0), (-1, 1.0)])
def test_the_true_gradient_never_goes_uphill_and_its_negative_always(digits: Dataset, sign: int, share: float) -> None:
    def signed(model: nn.Module, loss: Tensor, moment: Moment) -> None:
        (sign * loss).backward()

    model, changes = network("residual"), FirstOrderChanges()
    learn(model, digits, changes.wrap_backward(signed))
    assert uphill_share(changes.table(model), "epoch")["value"].tolist() == [share]


def test_shares_leave_out_what_is_not_finite() -> None:
    steps = pd.DataFrame({"epoch": [1, 1, 1, 2, 2], "value": [1.0, -1.0, math.nan, 0.0, -math.inf]})
    assert uphill_share(steps, "epoch")["value"].tolist() == [0.5, 0.0]
