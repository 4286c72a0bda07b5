"""The residual MLP: its gradients on paper, its arms, and its junctions."""

import pytest
import torch
import torch.nn.functional as F

from models import ARMS, PLAIN, STOP_GRADIENT, Flow, ResidualMLP, residual_mlp
from probes import find_junctions, gate, path_contributions, record
from tests.support.networks import FLOAT64


def network(flow: Flow, depth: int = 6) -> ResidualMLP:
    torch.manual_seed(0)
    return residual_mlp(depth, in_features=12, width=8, flow=flow).double()


IMAGES, LABELS = torch.randn(5, 3, 2, 2, dtype=FLOAT64), torch.arange(5)


def gradients(model: ResidualMLP) -> list[torch.Tensor]:
    F.cross_entropy(model(IMAGES), LABELS).backward()
    return [p.grad for p in model.parameters() if p.grad is not None]


def test_path_lengths_on_paper() -> None:
    """Three scalar blocks x + w x with w = 2, 3, 5, all positive so that ReLU is silent: the gradient 72 has
    parts 1, 2 + 3 + 5, 2 * 3 + 2 * 5 + 3 * 5, 2 * 3 * 5 by path length."""
    model = residual_mlp(5, in_features=1, width=1, num_classes=1).double()
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), (1, 0, 2, 0, 3, 0, 5, 0, 1, 0), strict=True):
            parameter.fill_(value)
    with record(model) as recording:
        model(torch.ones(1, 1, dtype=FLOAT64)).sum().backward(retain_graph=True)
    found = path_contributions(recording)
    assert found[found["quantity"] == "norm"]["value"].tolist() == [1, 10, 31, 30]


def test_arms_begin_alike_and_are_the_gated_network() -> None:
    outputs = {arm: network(flow)(IMAGES) for arm, flow in ARMS.items()}
    assert torch.equal(outputs["residual"], outputs["stop-gradient"])
    assert torch.equal(outputs["plain"], outputs["gradient-only"])
    wanted, model = gradients(network(STOP_GRADIENT)), network(Flow())
    with gate(model, shortcut_gradient=0.0):
        got = gradients(model)
    assert len(got) == len(wanted) == 12
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


@pytest.mark.parametrize("flow", ARMS.values(), ids=list(ARMS))
def test_every_block_is_a_junction(flow: Flow) -> None:
    assert [junction.name for junction in find_junctions(network(flow), IMAGES)] == [f"blocks.{i}" for i in range(4)]


def test_a_plain_layer_is_a_linear_layer() -> None:
    """At forward weight 0 the shortcut adds exactly nothing."""
    model, x = network(PLAIN), torch.randn(5, 8, dtype=FLOAT64)
    block = model.blocks[0]
    assert torch.equal(block(x), F.relu(model.get_submodule("blocks.0.branch")(x)))


def test_a_size_under_1_is_refused() -> None:
    with pytest.raises(ValueError, match="in_features 0: give at least 1"):
        residual_mlp(8, in_features=0)


@pytest.mark.parametrize(
    ("depth", "flow", "message"),
    [(2, Flow(), "depth 2 leaves no block"), (6, [Flow()] * 3, "got 3 flows for 4 blocks")],
)
def test_bad_input(depth: int, flow: Flow | list[Flow], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        residual_mlp(depth, in_features=4, flow=flow)
