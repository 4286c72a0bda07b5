"""Gradients against those in float64: on paper, against a copy in float64, chaos, and refusals."""

import copy
import math
from typing import Any

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from models import GRADIENT_ONLY, PLAIN, RESIDUAL, SHORTEST_PATH, STOP_GRADIENT, cifar_resnet, set_flows
from probes import gate, precision, record
from tests.support.networks import (
    FLOAT64,
    Apply,
    Raising,
    Residual,
    Tag,
    chain,
    images,
    left_as_it_was,
    network,
    perceptron,
    squares,
    values,
)

QUANTITIES = ["difference", "cosine", "parameter_difference", "parameter_cosine"]


class Step(nn.Module):
    """w x, plus a gradient of its own in low precision: x is 1 + e, rounded to 1 in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([2.0, 3.0]))

    def forward(self, x: Tensor) -> Tensor:
        factor = torch.tensor([0.0, 1.0] if x.dtype == FLOAT64 else [1.0, 1.0], dtype=x.dtype)
        return self.w * x * factor


def test_a_gradient_that_differs_by_half() -> None:
    """x + f w x with f = (1, 1) as it is and (0, 1) in float64, at x = (1, 1): the gradients (3, 4) and (1, 4) at the
    fork, (1, 1) and (0, 1) at w."""
    found = precision(nn.Sequential(Residual(Step())), torch.ones(1, 2))
    assert list(found.columns) == ["block", "depth", "quantity", "value"]
    assert set(zip(found["block"], found["depth"], strict=True)) == {("0", 0)}
    assert found["quantity"].tolist() == QUANTITIES
    wanted = [2 / math.sqrt(17), 19 / (5 * math.sqrt(17)), 1, 1 / math.sqrt(2)]
    assert found["value"].tolist() == pytest.approx(wanted, rel=1e-14)


def test_a_gradient_that_points_the_other_way() -> None:
    """The loss has the other sign in float32."""
    found = precision(
        nn.Sequential(Residual(Step())), torch.ones(1, 2), loss=lambda y: (1 if y.dtype == FLOAT64 else -1) * y[0, 1]
    )
    assert found["value"].tolist() == pytest.approx([2, -1, 2, -1], rel=1e-14)


def test_zeros_and_infinities() -> None:
    """A gradient of 1e-50 is 0 in float32, and 1e50 infinite, or the difference of two infinities."""
    model, x = nn.Sequential(Residual(nn.Linear(2, 2))), torch.ones(1, 2)
    small = precision(model, x, loss=lambda y: (1e-30 * y).sum() * 1e-20)
    assert values(small, "difference") == [1]
    assert math.isnan(values(small, "cosine")[0])
    large = precision(model, x, loss=lambda y: (1e30 * y).sum() * 1e20)
    assert not math.isfinite(values(large, "difference")[0])
    assert math.isnan(values(large, "cosine")[0])
    none = precision(model, x, loss=lambda y: 0 * y.sum())
    assert all(map(math.isnan, none["value"]))


def test_a_benign_network_differs_by_roundings() -> None:
    """Four blocks of width 3: some tens of roundings of 6e-8."""
    found = precision(chain(4).float(), torch.randn(5, 3), loss=squares)
    assert all(1e-9 < x < 5e-6 for x in (*values(found, "difference"), *values(found, "parameter_difference")))
    assert values(found, "cosine") == pytest.approx([1] * 4, abs=1e-11)


NETWORKS: dict[str, dict[str, Any]] = {
    "residual": {},
    "projection B": {"projection": "B"},
    "plain": {"flow": PLAIN},
    "stop-gradient": {"flow": STOP_GRADIENT},
    "gradient-only": {"flow": GRADIENT_ONLY},
    "shortest-path": {"flow": SHORTEST_PATH},
}


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("options", NETWORKS.values(), ids=NETWORKS)
def test_equals_a_copy_in_float64(options: dict[str, Any], training: bool) -> None:
    model, x, labels = cifar_resnet(14, width=4, **options), images(4, dtype=torch.float32), torch.tensor([1, 5, 0, 9])
    model(images(8, dtype=torch.float32))
    model.train(training)

    def of(twin: nn.Module, x: Tensor) -> tuple[list[Tensor], dict[str, Tensor]]:
        forks: list[Tensor] = []
        for block in twin.blocks:  # type: ignore[union-attr]
            block.register_forward_pre_hook(lambda _, args: forks.append(args[0]))
        loss = F.cross_entropy(twin(x), labels)
        names = [name for name, _ in twin.named_parameters()]
        found = torch.autograd.grad(loss, [*forks, *twin.parameters()], materialize_grads=True)
        return [*found[: len(forks)]], dict(zip(names, found[len(forks) :], strict=True))

    low, high = of(copy.deepcopy(model), x.clone().requires_grad_()), of(copy.deepcopy(model).double(), x.double())
    found = precision(model, x, loss=lambda output: F.cross_entropy(output, labels))
    names = [f"layer{stage}.{block}" for stage in (1, 2, 3) for block in (0, 1)]
    assert found["block"].unique().tolist() == names
    for index, name in enumerate(names):
        g, h = low[0][index].double(), high[0][index]
        of_block = [n for n in low[1] if n.startswith(f"{name}.")]
        p, q = (torch.cat([side[1][n].double().flatten() for n in of_block]) for side in (low, high))
        row = found[found["block"] == name]
        # The same two gradients: only the order of a norm's sum differs.
        wanted = [((g - h).norm() / h.norm()).item(), F.cosine_similarity(g.flatten(), h.flatten(), dim=0).item()]
        wanted += [((p - q).norm() / q.norm()).item(), F.cosine_similarity(p, q, dim=0).item()]
        assert row["quantity"].tolist() == [*QUANTITIES[: 4 if of_block else 2]]
        assert row["value"].tolist() == pytest.approx(wanted[: len(row)], rel=1e-6, abs=1e-9)


def test_bfloat16_and_autocast_are_coarser_than_float32() -> None:
    model, x = chain(3).float(), torch.randn(5, 3)
    single = values(precision(model, x, loss=squares), "difference")[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = values(precision(model, x, loss=squares), "difference")[0]
    half = values(precision(model.bfloat16(), x.bfloat16(), loss=squares), "difference")[0]
    assert all(1e3 * single < coarse < 0.2 for coarse in (cast, half))


def test_dropout_draws_the_same_masks_and_statistics_start_alike() -> None:
    model = network()
    model(torch.randn(8, 3))
    found = precision(model, torch.randn(6, 3))
    assert all(x < 1e-4 for x in values(found, "difference"))


def test_a_gate_counts_in_both() -> None:
    model, x = cifar_resnet(8, width=2), images(4, dtype=torch.float32)
    twin = copy.deepcopy(model)
    set_flows(twin, STOP_GRADIENT)
    wanted = precision(twin, x, loss=squares)
    with gate(model, shortcut_gradient=0.0):
        found = precision(model, x, loss=squares)
    assert found["block"].tolist() == wanted["block"].tolist()
    assert all(x < 1e-4 for x in found["value"][found["quantity"] == "difference"])


def test_deep_plain_networks_are_chaotic_and_residual_ones_are_not() -> None:
    """Depth 56, width 4, 8 x 8, as initialised: the plain network's gradient at its first block has lost more than ten
    times as many digits as the residual one's."""
    x, differences = images(8, dtype=torch.float32), {}
    for arm, flow in (("residual", RESIDUAL), ("plain", PLAIN)):
        torch.manual_seed(0)
        found = precision(cifar_resnet(56, width=4, flow=flow), x, loss=squares)
        differences[arm] = values(found, "difference")[0]
    assert differences["residual"] < 1e-3
    assert differences["plain"] > 10 * differences["residual"]


def test_modules_of_a_plain_network_and_frozen_parameters() -> None:
    parts = [nn.Sequential(nn.Linear(3, 3), nn.ReLU(inplace=True)) for _ in range(2)]
    model = nn.Sequential(*parts, nn.Linear(3, 2))
    found = precision(model, torch.randn(4, 3), blocks=parts)
    assert found["block"].unique().tolist() == ["0", "1"]
    assert found["quantity"].tolist() == QUANTITIES * 2
    frozen = precision(chain(2).float().requires_grad_(False), torch.randn(4, 3))
    assert frozen["quantity"].tolist() == QUANTITIES[:2] * 2
    assert all(x < 1e-5 for x in values(frozen, "difference"))


# Nothing changes; refusals.


def test_torchvisions_resnet18_is_left_as_it_was() -> None:
    model, x = torchvision.models.resnet18(num_classes=3), images(2, 32, dtype=torch.float32)
    state, kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}, x.clone()
    random = torch.get_rng_state()
    with left_as_it_was(model), torch.no_grad(), record(model):
        found = precision(model, x)
    assert len(found) == 8 * 4
    assert found["value"].notna().all()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.equal(x, kept)


def test_a_transformer() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.3)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    # Not the squares: behind a LayerNorm their sum is constant, and its gradient is nothing but rounding.
    found = precision(model, torch.randn(5, 4, 8), loss=lambda y: y.pow(3).sum())
    assert found["quantity"].tolist() == QUANTITIES * 4
    assert all(x < 1e-4 for x in values(found, "difference"))


def test_an_error_of_the_model_and_the_graph_leave_nothing_behind() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), Residual(nn.Linear(3, 3)), Raising())
    with left_as_it_was(model), pytest.raises(ZeroDivisionError):
        precision(model, torch.randn(4, 3))
    model = nn.Sequential(tag := Tag(), *chain(2)).float()
    precision(model, torch.randn(3, 3))
    assert tag.newest() is None


X = torch.randn(4, 3)
BAD: dict[str, tuple[nn.Module, dict[str, Any], type[Exception], str]] = {
    "float64": (chain(1), {}, ValueError, "all parameters are float64: there is nothing to compare"),
    "none": (nn.ReLU(), {}, ValueError, "no parameter is a floating tensor: there is nothing to compare"),
    "plain": (perceptron().float(), {}, ValueError, "precision: the model ran without a residual junction"),
    "shape": (chain(1).float(), {"loss": torch.square}, ValueError, r"precision: loss gives a tensor of shape"),
    "tuple": (
        nn.Sequential(chain(1).float(), Apply(lambda m, x: (x, 1))), {}, TypeError, "precision: the model gives a tuple"
    ),
    "other in float64": (
        Apply(lambda m, x: m.f(m.f(x)) if x.dtype == FLOAT64 else m.f(x), f=Residual(nn.Linear(3, 3))), {}, ValueError,
        "in float64 other junctions are found",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("model", "options", "error", "text"), BAD.values(), ids=BAD)
def test_bad_input(model: nn.Module, options: dict[str, Any], error: type[Exception], text: str) -> None:
    with left_as_it_was(model), pytest.raises(error, match=text):
        precision(model, X, **options)


def test_twice_the_same() -> None:
    model, x = network(), torch.randn(6, 3)
    pd.testing.assert_frame_equal(precision(model, x), precision(model, x))
