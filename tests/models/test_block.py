"""One block's flow: what x receives, and what the parameters inside the shortcut and the branch receive."""

import copy
import dataclasses
import math

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.functional import vjp

from models import ARMS, GRADIENT_ONLY, PLAIN, RESIDUAL, SHORTEST_PATH, STOP_GRADIENT, Flow, ResidualBlock, cifar_resnet
from models.block import ExclusiveGateBlock
from models.projections import Projection
from tests.support.networks import FLOAT64, Apply, linear, relative_error

FLOWS = {
    **ARMS,
    "fractional": Flow(shortcut=0.5, branch=2.0, shortcut_gradient=0.3, branch_gradient=0.7),
    "negative": Flow(shortcut=-1.0, branch=0.5, shortcut_gradient=2.0, branch_gradient=-0.1),
    "defaults": Flow(shortcut=0.5, branch=0.25),
    "no branch": Flow(branch=0.0, branch_gradient=1.0),
}
# Float64 rounding of sums over some hundred products, eps = 2e-16 each; a wrong weight is off by more than 1e-2.
CLOSE = 1e-12


def block_of(flow: Flow, projection: Projection = "B", *, changes_shape: bool = True) -> ResidualBlock:
    return cifar_resnet(8, flow=flow, width=4, projection=projection).double().blocks[1 if changes_shape else 0]


def fork() -> Tensor:
    return torch.randn(3, 4, 6, 6, dtype=FLOAT64, requires_grad=True)


def pull_back(side: nn.Module, x: Tensor, g: Tensor) -> Tensor:
    """The side's vector-Jacobian product at x, its parameters held fixed."""
    _, product = vjp(side, x, g)
    assert isinstance(product, Tensor)
    return product


def gradient(x: Tensor) -> Tensor:
    assert x.grad is not None
    return x.grad


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("projection", ["A", "B", "C"])
@pytest.mark.parametrize("changes_shape", [True, False], ids=["projecting", "keeping"])
@pytest.mark.parametrize("flow", FLOWS.values(), ids=FLOWS)
def test_the_fork_and_the_parameters_receive_what_is_written_by_hand(
    flow: Flow, changes_shape: bool, projection: Projection, training: bool
) -> None:
    block, x = block_of(flow, projection, changes_shape=changes_shape).train(training), fork()
    shortcut, branch = copy.deepcopy(block.shortcut), copy.deepcopy(block.branch)
    y = block(x)
    upstream = torch.randn_like(y)
    y.backward(upstream)

    held = x.detach()
    total = flow.shortcut * shortcut(held) + flow.branch * branch(held)
    at_sum = upstream * (total > 0)
    through_shortcut, through_branch = (pull_back(side, held, at_sum) for side in (shortcut, branch))
    wanted = flow.shortcut_gradient * through_shortcut + flow.branch_gradient * through_branch
    assert torch.equal(y, total.relu())
    assert relative_error(gradient(x), wanted) < CLOSE

    if total.requires_grad:
        total.backward(at_sum)
    for got, by_hand in zip([*block.shortcut.parameters(), *block.branch.parameters()],
                            [*shortcut.parameters(), *branch.parameters()], strict=True):  # fmt: skip
        torch.testing.assert_close(gradient(got), gradient(by_hand), rtol=CLOSE, atol=CLOSE)


@pytest.mark.parametrize("projection", ["B", "C"])
def test_a_projection_still_learns_where_its_gradient_into_the_fork_is_cut(projection: Projection) -> None:
    block = block_of(STOP_GRADIENT, projection)
    block(fork()).sum().backward()
    assert all(gradient(parameter).any() for parameter in block.shortcut.parameters())


def test_a_branch_still_learns_where_its_gradient_into_the_fork_is_cut() -> None:
    block = block_of(SHORTEST_PATH)
    block(fork()).square().sum().backward()
    assert all(gradient(parameter).any() for parameter in block.branch.parameters())


@pytest.mark.parametrize("arm", [PLAIN, GRADIENT_ONLY], ids=["plain", "gradient-only"])
@pytest.mark.parametrize("upstream", [1.0, math.inf, math.nan])
def test_a_projection_of_forward_weight_0_gets_exact_zeros(arm: Flow, upstream: float) -> None:
    block, x = block_of(arm), fork()
    y = block(x)
    y.backward(torch.full_like(y, upstream))
    assert all(torch.equal(gradient(p), torch.zeros_like(p)) for p in block.shortcut.parameters())


@pytest.mark.parametrize("upstream", [1.0, math.inf, math.nan])
@pytest.mark.parametrize("changes_shape", [True, False], ids=["projecting", "keeping"])
def test_weight_0_gives_the_fork_exact_zeros_whatever_arrives(changes_shape: bool, upstream: float) -> None:
    block, x = block_of(Flow(shortcut_gradient=0, branch_gradient=0), changes_shape=changes_shape), fork()
    y = block(x)
    y.backward(torch.full_like(y, upstream))
    assert torch.equal(gradient(x), torch.zeros_like(x))


def test_a_branch_that_is_cut_adds_no_nan_to_an_infinite_gradient() -> None:
    block, x = block_of(SHORTEST_PATH, changes_shape=False), fork()
    y = block(x)
    y.backward(torch.full_like(y, math.inf))
    assert torch.equal(gradient(x), torch.where(y > 0, math.inf, 0.0))


@pytest.mark.parametrize("flow", [GRADIENT_ONLY, PLAIN], ids=["gradient-only", "plain"])
@pytest.mark.parametrize("shortcut", [nn.Identity(), nn.Linear(3, 3, dtype=FLOAT64)], ids=["identity", "projection"])
def test_a_shortcut_of_forward_weight_0_adds_nothing_even_where_x_is_not_finite(
    shortcut: nn.Module, flow: Flow
) -> None:
    branch = Apply(lambda self, x: self.linear(x.nan_to_num(1.0, 2.0, -3.0)), linear=nn.Linear(3, 3, dtype=FLOAT64))
    block = ResidualBlock(branch, shortcut=shortcut, flow=flow)
    x = torch.tensor([[math.inf, -math.inf, math.nan], [1.0, math.inf, 0.0]], dtype=FLOAT64)
    assert torch.equal(block(x), branch(x).relu())


def test_gradient_weights_are_read_when_the_backward_runs() -> None:
    block, x = block_of(RESIDUAL, changes_shape=False), fork()
    y = block(x)
    upstream = torch.randn_like(y)
    gradients = {}
    for name, weights in {"both": (1, 1), "shortcut": (1, 0), "branch": (0, 1), "half": (0.5, 0.5)}.items():
        block.flow = dataclasses.replace(block.flow, shortcut_gradient=weights[0], branch_gradient=weights[1])
        (gradients[name],) = torch.autograd.grad(y, x, upstream, retain_graph=True)
    assert torch.equal(gradients["shortcut"], upstream * (y > 0))
    assert torch.equal(gradients["shortcut"] + gradients["branch"], gradients["both"])
    assert relative_error(2 * gradients["half"], gradients["both"]) < CLOSE


def test_forward_weights_are_read_when_the_forward_runs() -> None:
    block, x = block_of(PLAIN, changes_shape=False).eval(), fork()
    plain = block(x)
    block.flow = RESIDUAL
    assert torch.equal(block(x), (x + block.branch(x)).relu())
    assert torch.equal(plain, block.branch(x).relu())


def test_an_empty_sequential_is_an_identity_as_activation_and_as_shortcut() -> None:
    block = ResidualBlock(nn.Linear(1, 1), shortcut=nn.Sequential(), activation=nn.Sequential())
    x = torch.tensor([[-100.0]])
    assert torch.equal(block(x), x + block.branch(x))


def test_addends_of_two_shapes_are_refused_rather_than_broadcast() -> None:
    with pytest.raises(
        ValueError, match=r"its shortcut gives \(5, 4\) and its branch \(5, 1\): give it a shortcut that"
    ):
        ResidualBlock(nn.Linear(4, 1))(torch.randn(5, 4))


def test_exclusive_gating_on_paper() -> None:
    """y = (1 - g) x + g · 3x with g = sigmoid(0 · x + 0) = 1/2, whose derivative is 1/4 of the gate's weight, here 2:
    dy/dx = 1/2 · 1 + 1/2 · 3 + (3x - x) · 1/4 · 2, at x = 0 the last is 0, at x = 1 with g = sigmoid(2 - 2) it is 1."""
    gate_module = nn.Linear(1, 1, dtype=FLOAT64)
    nn.init.constant_(gate_module.weight, 2.0)
    nn.init.constant_(gate_module.bias, -2.0)
    for flow, wanted in ((RESIDUAL, 3.0), (STOP_GRADIENT, 1.5), (SHORTEST_PATH, 1.5)):
        block = ExclusiveGateBlock(linear(3.0), gate_module, activation=nn.Identity(), flow=flow)
        x = torch.ones(1, 1, dtype=FLOAT64, requires_grad=True)
        y = block(x)
        y.backward()
        assert y.item() == 2
        assert x.grad is not None
        assert x.grad.item() == wanted


@pytest.mark.parametrize("weight", [0.5, 2.0, -1.0])
def test_exclusive_gating_of_a_weighted_shortcut_has_the_gradient_of_its_value(weight: float) -> None:
    """y = (1 - g) w x + g F(x), differentiated by autograd from this very formula; then cut, then in parts."""
    branch, gate_module = nn.Linear(3, 3, dtype=FLOAT64), nn.Linear(3, 3, dtype=FLOAT64)
    x = torch.randn(4, 3, dtype=FLOAT64, requires_grad=True)
    block = ExclusiveGateBlock(branch, gate_module, activation=nn.Identity(), flow=Flow(shortcut=weight))
    y, g = block(x), gate_module(x).sigmoid()
    by_hand = (1 - g) * weight * x + g * branch(x)
    assert torch.equal(y, by_hand)
    upstream = torch.randn_like(y)
    every = [x, *gate_module.parameters(), *branch.parameters()]
    wanted = torch.autograd.grad(by_hand, every, upstream, retain_graph=True)
    for got, of in zip(torch.autograd.grad(y, every, upstream, retain_graph=True), wanted, strict=True):
        assert relative_error(got, of) < CLOSE
    (by_branch,) = torch.autograd.grad(g.detach() * branch(x), x, upstream)
    for part in (0.0, 0.25, 1.0):
        block.flow = Flow(shortcut=weight, shortcut_gradient=part * weight)
        (got,) = torch.autograd.grad(y, x, upstream, retain_graph=True)
        assert relative_error(got, by_branch + part * (wanted[0] - by_branch)) < CLOSE


def test_any_module_is_a_branch() -> None:
    """One layer, y = W x + x; a recurrent network's output would do as well."""
    block, x = ResidualBlock(nn.Linear(3, 3), activation=nn.Identity()), torch.randn(2, 3)
    assert torch.equal(block(x), x + block.branch(x))
