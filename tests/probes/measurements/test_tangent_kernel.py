"""Tangent kernels: closed forms of linear networks, against torch's own Jacobian, biased backwards, and refusals."""

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pandas as pd
import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.func import functional_call

import models
from models import ARMS, PLAIN, RESIDUAL, SHORTEST_PATH, STOP_GRADIENT, Flow, ResidualBlock, cifar_resnet, set_flows
from probes import gate, limit_paths, record, tangent_kernel
from tests.support.networks import (
    FLOAT64,
    Raising,
    Residual,
    Tag,
    chain,
    images,
    left_as_it_was,
    linear,
    network,
    perceptron,
)

SCALARS = ["trace", "effective_rank", "negative", "antisymmetric", "cosine"]


def numbers(table: pd.DataFrame, block: str | None = None) -> tuple[list[float], list[float]]:
    """The eigenvalues, and the other quantities in their order."""
    chosen = table[table["block"] == (block or table["block"].iloc[0])]
    spectrum, rest = (chosen[chosen["quantity"].eq("eigenvalue") == keep] for keep in (True, False))
    assert spectrum["order"].tolist() == [*range(len(spectrum))]
    assert rest["quantity"].tolist() == SCALARS
    assert set(rest["order"]) == {0}
    return spectrum["value"].tolist(), rest["value"].tolist()


def of_matrix(theta: Tensor, kernel: Tensor) -> tuple[list[float], list[float]]:
    """The same from written-out matrices."""
    symmetric = (theta + theta.T) / 2
    eigenvalues = torch.linalg.eigvalsh(symmetric)
    sigma = torch.linalg.svdvals(theta)
    shares = sigma[sigma > 0] / sigma.sum()
    negative = eigenvalues[eigenvalues < -1e-13 * eigenvalues.abs().max()].abs().sum() / eigenvalues.abs().sum()
    scalars = [
        theta.trace(), torch.exp(-(shares * shares.log()).sum()), negative,
        (theta - symmetric).square().sum() / theta.square().sum(),
        (theta * kernel).sum() / theta.norm() / kernel.norm(),
    ]  # fmt: skip
    return eigenvalues.flip(0).tolist(), [float(x) for x in scalars]


def close(found: tuple[list[float], list[float]], wanted: tuple[list[float], list[float]], rel: float = 1e-9) -> None:
    """Eigenvalues round at 1e-16 of the largest one, sums of hundreds of products a little above."""
    assert found[0] == pytest.approx(wanted[0], rel=rel, abs=1e-12 * max(map(abs, wanted[0])))
    assert found[1] == pytest.approx(wanted[1], rel=rel, abs=1e-12)


# On paper.


def test_one_number_and_two_weights() -> None:
    """(1 + a)(1 + b) x at a = 1, b = 2, x = 1 and 2: gradients (3, 2) x: Θ = 13 (1 2; 2 4), of eigenvalues 65 and 0.
    Without the shortcuts' gradient a learns by b alone: (2, 2) x, and J J_arm^T = 10 (1 2; 2 4)."""
    model = nn.Sequential(*(ResidualBlock(linear(w), activation=nn.Identity()) for w in (1.0, 2.0)))
    x = torch.tensor([[1.0], [2]], dtype=FLOAT64)
    found = tangent_kernel(model, x)
    assert list(found.columns) == ["block", "depth", "order", "quantity", "value"]
    assert set(zip(found["block"], found["depth"], strict=True)) == {("(model)", 0)}
    close(numbers(found), ([65, 0], [65, 1, 0, 0, 1]), rel=1e-14)
    arm = copy.deepcopy(model)
    set_flows(arm, STOP_GRADIENT)
    close(numbers(tangent_kernel(model, x, biased=arm)), ([50, 0], [50, 1, 0, 0, 1]), rel=1e-14)
    by_block = tangent_kernel(model, x, biased=arm, of="blocks")
    close(numbers(by_block, "0"), ([30, 0], [30, 1, 0, 0, 1]), rel=1e-14)
    close(numbers(by_block, "1"), ([20, 0], [20, 1, 0, 0, 1]), rel=1e-14)
    # b = -2/3: the arm's gradient of a has another sign than the true one, and all goes uphill.
    for each in (model, arm):
        each[1].branch.weight.data.fill_(-2 / 3)  # type: ignore[union-attr]
    eigenvalues, (trace, _, negative, antisymmetric, cosine) = numbers(
        tangent_kernel(model, x, biased=arm, of="blocks"), "0"
    )
    assert trace == pytest.approx(-10 / 9)
    assert eigenvalues == pytest.approx([0, -10 / 9], abs=1e-14)
    assert [negative, antisymmetric, cosine] == pytest.approx([1, 0, -1], abs=1e-14)


def matrices(depth: int, width: int) -> list[Tensor]:
    return [(torch.randn(width, width) / math.sqrt(width)).double() for _ in range(depth)]  # written down in float32


def linear_network(weights: list[Tensor], flow: Flow) -> nn.Sequential:
    return nn.Sequential(
        *(ResidualBlock(linear(w.tolist()), activation=nn.Identity(), flow=flow) for w in weights)
    )  # fmt: skip


@pytest.mark.parametrize("flow", [STOP_GRADIENT, SHORTEST_PATH, Flow(shortcut_gradient=0.3, branch_gradient=-1.0)])
def test_the_closed_form_of_a_linear_network(flow: Flow) -> None:
    """y = A_L ... A_1 x with A_l = 1 + W_l. Its derivative by W_l is P_l ⊗ h_l, with P_l the product of the A above and
    h_l the input: Θ = Σ_l P_l P_l^T ⊗ H_l H_l^T. A biased backward has the products of s + b W_l instead."""
    weights, x = matrices(4, 3), torch.randn(5, 3, dtype=FLOAT64)
    one = torch.eye(3, dtype=FLOAT64)
    theta, kernel = torch.zeros(2, 15, 15, dtype=FLOAT64)
    true, arm = one, one
    inputs = [x]
    for w in weights:
        inputs.append(inputs[-1] @ (one + w).T)
    for w, h in zip(reversed(weights), reversed(inputs[:-1]), strict=True):
        kernel += torch.kron(h @ h.T, true @ true.T)
        theta += torch.kron(h @ h.T, true @ arm.T)
        true, arm = true @ (one + w), arm @ (flow.shortcut_gradient * one + flow.branch_gradient * w)
    model, biased = linear_network(weights, RESIDUAL), linear_network(weights, flow)
    close(numbers(tangent_kernel(model, x)), of_matrix(kernel, kernel))
    found = numbers(tangent_kernel(model, x, biased=biased))
    close(found, of_matrix(theta, kernel))
    assert found[1][3] > 1e-3  # not symmetric


# Against torch's own Jacobian.


def jacobian(model: nn.Module, *inputs: Any, names: Callable[[str], bool] = lambda name: True) -> Tensor:
    """(outputs, parameters), by torch.autograd.functional."""
    chosen = {name: p.detach() for name, p in model.named_parameters() if names(name)}

    def function(*values: Tensor) -> Tensor:
        return functional_call(model, dict(zip(chosen, values, strict=True)), inputs).flatten()

    J: Any = torch.autograd.functional.jacobian(function, tuple(chosen.values()))
    return torch.cat([part.flatten(1) for part in J], 1).detach()


@pytest.mark.parametrize("arm", ARMS)
def test_a_network_in_every_arm(arm: str) -> None:
    """What `model` gives is its own backward's kernel; beside its exact twin, the pseudo-kernel of the arm."""
    model, x = cifar_resnet(8, width=2, num_classes=3, flow=ARMS[arm], projection="B").double(), images(3, 6)
    model(images(8, 6))
    model.eval()
    exact = copy.deepcopy(model)
    set_flows(exact, ARMS[arm].exact)
    true = jacobian(exact, x)
    close(numbers(tangent_kernel(exact, x)), of_matrix(true @ true.T, true @ true.T))
    own = torch.stack(
        [
            torch.cat([g.flatten() for g in torch.autograd.grad(y, [*model.parameters()], retain_graph=True)])
            for y in (model(x).flatten())
        ]
    )
    close(numbers(tangent_kernel(model, x)), of_matrix(own @ own.T, own @ own.T))
    found = tangent_kernel(exact, x, biased=model)
    close(numbers(found), of_matrix(true @ own.T, true @ true.T), rel=1e-8)
    if ARMS[arm] == ARMS[arm].exact:
        _, (_, _, negative, antisymmetric, cosine) = numbers(found)
        assert [negative, antisymmetric, cosine] == pytest.approx([0, 0, 1], abs=1e-12)


def test_blocks_and_the_rest_sum_to_the_model() -> None:
    model, x = cifar_resnet(8, width=2, num_classes=3).double().eval(), images(2, 6)
    found = tangent_kernel(model, x, of="blocks")
    assert found["block"].unique().tolist() == ["layer1.0", "layer2.0", "layer3.0"]
    for name in found["block"].unique():
        J = jacobian(model, x, names=lambda n, name=name: n.startswith(f"{name}."))
        close(numbers(found, name), of_matrix(J @ J.T, J @ J.T))


# Biased backwards: contexts.


def test_a_gate_a_context_of_flows_and_a_twin_are_one() -> None:
    model, x = cifar_resnet(8, width=2, num_classes=3).double(), images(2, 6)
    twin = copy.deepcopy(model)
    set_flows(twin, STOP_GRADIENT)

    @contextmanager
    def flows() -> Iterator[None]:
        set_flows(model, STOP_GRADIENT)
        try:
            yield
        finally:
            set_flows(model, RESIDUAL)

    by_twin = tangent_kernel(model, x, biased=twin)
    for context in (flows, lambda: gate(model, shortcut_gradient=0.0)):
        # Eigenvalues are compared beside the largest one.
        close(numbers(tangent_kernel(model, x, biased=context)), numbers(by_twin), rel=1e-8)
    antisymmetric, cosine = numbers(by_twin)[1][3:]
    assert antisymmetric > 0
    assert cosine < 1
    # What changes nothing changes nothing, train-mode BatchNorm and dropout included.
    same = numbers(tangent_kernel(model, x, biased=lambda: gate(model, shortcut_gradient=1.0, branch_gradient=1.0)))
    close(same, numbers(tangent_kernel(model, x)), rel=1e-10)


def test_the_second_forward_draws_the_same_masks() -> None:
    model, x = network().double(), torch.randn(4, 3, dtype=FLOAT64)
    close(numbers(tangent_kernel(model, x, biased=copy.deepcopy(model))), numbers(tangent_kernel(model, x)))


def test_a_step_of_gradient_descent_moves_outputs_as_the_kernel_says() -> None:
    """With dL/df = v and a step of ε along the arm's gradient, f changes by -ε Θ v, and L by -ε v^T Θ v: with the most
    negative eigenvalue's direction for v it rises. Steps of 1e-6 leave an error of 1e-5."""
    weights, x = matrices(3, 2), torch.randn(3, 2, dtype=FLOAT64)
    model, arm = linear_network(weights, RESIDUAL), linear_network(weights, STOP_GRADIENT)
    eigenvalues, _ = numbers(tangent_kernel(model, x, biased=arm))
    J = jacobian(model, x)
    rows = [torch.autograd.grad(y, [*arm.parameters()], retain_graph=True) for y in arm(x).flatten()]
    theta = J @ torch.stack([torch.cat([g.flatten() for g in row]) for row in rows]).T
    values, vectors = torch.linalg.eigh((theta + theta.T) / 2)
    assert values.flip(0).tolist() == pytest.approx(eigenvalues, rel=1e-9, abs=1e-12)
    v = vectors[:, 0]
    (arm(x).flatten() @ v).backward()
    before = model(x).flatten() @ v
    with torch.no_grad():
        for p, q in zip(model.parameters(), arm.parameters(), strict=True):
            p -= 1e-6 * q.grad  # type: ignore[operator]
    assert ((model(x).flatten() @ v - before) / -1e-6).item() == pytest.approx(eigenvalues[-1], rel=1e-4, abs=1e-5)


# Extremes.


@pytest.mark.parametrize("dtype", [torch.float32, FLOAT64])
def test_eigenvalues_that_are_roundings_of_0_are_no_negative_part(dtype: torch.dtype) -> None:
    """Two weights move twelve outputs: ten eigenvalues are 0, and come out on both of its sides."""
    x = torch.randn(12, 2, dtype=dtype)
    found, (_, _, negative, _, _) = numbers(tangent_kernel(nn.Linear(2, 1, bias=False, dtype=dtype), x))
    assert sum(value < 0 for value in found) > 2
    assert negative == 0


@pytest.mark.parametrize("factor", [1e-60, 1e60])
def test_scales_only_move_the_eigenvalues_and_the_trace(factor: float) -> None:
    model, x = chain(2), torch.randn(2, 3, dtype=FLOAT64)
    twin = copy.deepcopy(model)
    before = numbers(tangent_kernel(model, x, biased=twin))
    after = numbers(tangent_kernel(model, x, biased=twin, outputs=lambda y: factor * y))
    assert after[0] == pytest.approx([factor**2 * value for value in before[0]], rel=1e-9)
    assert after[1] == pytest.approx([factor**2 * before[1][0], *before[1][1:]], rel=1e-9, abs=1e-14)


def test_zero_and_infinite_gradients() -> None:
    model, x = nn.Sequential(Residual(linear([[1.0, 0], [0, 1]]))), torch.zeros(2, 2, dtype=FLOAT64)
    eigenvalues, (trace, *rest) = numbers(tangent_kernel(model, x))
    assert eigenvalues == [0] * 4
    assert trace == 0
    assert all(map(math.isnan, rest))
    found = tangent_kernel(model, torch.full((2, 2), math.inf, dtype=FLOAT64))
    assert found["value"].isna().all()


# Nothing changes; refusals.


def test_torchvisions_resnet18_is_left_as_it_was() -> None:
    model, x = torchvision.models.resnet18(num_classes=2), images(2, 32, dtype=torch.float32)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random = torch.get_rng_state()
    with left_as_it_was(model), torch.no_grad(), record(model):
        found = tangent_kernel(model, x, biased=lambda: gate(model, shortcut_gradient=0.0), outputs=lambda y: y[:, 0])
    assert len(numbers(found)[0]) == 2
    assert found["value"].notna().all()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)


def test_named_modules_and_frozen_parameters() -> None:
    parts = [nn.Sequential(nn.Linear(3, 3), nn.ReLU(inplace=True)) for _ in range(2)]
    model, x = nn.Sequential(*parts, nn.Linear(3, 2)).double(), torch.randn(4, 3, dtype=FLOAT64)
    parts[0].requires_grad_(False)
    found = tangent_kernel(model, x, of="blocks", blocks=parts)
    assert found["block"].unique().tolist() == ["1"]
    J = jacobian(model, x, names=lambda name: name.startswith("1."))
    close(numbers(found), of_matrix(J @ J.T, J @ J.T))


def test_an_error_of_the_model_and_the_graph_leave_nothing_behind() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), Residual(nn.Linear(3, 3)), Raising())
    with left_as_it_was(model), pytest.raises(ZeroDivisionError):
        tangent_kernel(model, torch.randn(4, 3))
    model = nn.Sequential(chain(1), tag := Tag(), *chain(2))
    tangent_kernel(model, torch.randn(2, 3, dtype=FLOAT64), biased=lambda: torch.enable_grad())
    assert tag.newest() is None


X = torch.randn(2, 3, dtype=FLOAT64)
MODEL = chain(2)
BAD: dict[str, tuple[nn.Module, dict[str, Any], str]] = {
    "of": (MODEL, {"of": "layers"}, 'of is \'layers\': give "model" or "blocks"'),
    "plain": (perceptron(), {"of": "blocks"}, "tangent_kernel: the model ran without a residual junction"),
    "output": (MODEL, {"outputs": lambda y: (y, 1)}, "the outputs are tuple: say which tensor counts"),
    "empty": (MODEL, {"outputs": lambda y: y[:0]}, r"the outputs are a tensor of shape \(0, 3\): say which"),
    "detached": (MODEL, {"outputs": torch.detach}, "no gradient leads from the outputs to the model"),
    "frozen": (chain(1).requires_grad_(False), {}, "no parameter requires a gradient: call requires_grad_"),
    "other names": (MODEL, {"biased": perceptron()}, r"no trainable parameters \['0.branch.0.weight', .* of"),
    "frozen twin": (
        MODEL, {"biased": copy.deepcopy(MODEL).requires_grad_(False)}, "the biased model has no trainable parameters"
    ),
    "other weights": (MODEL, {"biased": chain(2)}, "gives other outputs .by up to .*must compute the same function"),
}  # fmt: skip


@pytest.mark.parametrize(("model", "options", "text"), BAD.values(), ids=BAD)
def test_bad_input(model: nn.Module, options: dict[str, Any], text: str) -> None:
    with left_as_it_was(model), pytest.raises(ValueError, match=text):
        tangent_kernel(model, X, **options)


def test_another_function_of_ours_and_limit_paths_are_refused() -> None:
    model, x = cifar_resnet(8, width=2).double(), images(2, 6)
    plain = copy.deepcopy(model)
    models.set_flows(plain, PLAIN)
    with pytest.raises(ValueError, match="the biased model gives other outputs"):
        tangent_kernel(model, x, biased=plain)
    with (
        limit_paths(model, at_most=1),
        pytest.raises(ValueError, match=r"tangent_kernel: under limit_paths.*without it"),
    ):
        tangent_kernel(model, x)
