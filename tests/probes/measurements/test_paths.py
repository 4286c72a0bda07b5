"""Path lengths against a chain done on paper, polynomials, and the gradient of every single path."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.polynomial import Polynomial
from torch import Tensor, nn

from models import Flow, ResidualBlock, cifar_resnet
from models.projections import Projection
from probes import (
    Recording,
    find_junctions,
    gate,
    gradient_norms,
    lesion,
    path_contributions,
    path_gradients,
    record,
    sample_paths,
)
from tests.support.networks import (
    FLOAT64,
    Apply,
    Residual,
    block_of,
    chain,
    dense,
    gradients_at,
    images,
    linear,
    perceptron,
    relative_error,
    rows,
    values,
)

# No weight but 0 is small, so that no product of sixteen of them comes near the end of float64's range.
HUNDREDTHS = st.integers(-300, 300).map(lambda number: number / 100)


def recorded(model: nn.Module, x: Tensor) -> Recording:
    with record(model) as recording:
        model(x).square().sum().backward(retain_graph=True)
    return recording


def scalar_lengths(model: nn.Module) -> Tensor:
    with record(model) as recording:
        model(torch.ones(1, 1, dtype=FLOAT64)).sum().backward(retain_graph=True)
    return path_gradients(recording).flatten()


def test_three_scalar_blocks_give_what_is_multiplied_on_paper() -> None:
    """(1 + 2t)(1 + 3t)(1 + 5t) = 1 + 10t + 31t² + 30t³; the gradient is 72."""
    model = nn.Sequential(*(Residual(linear(w)) for w in (2.0, 3.0, 5.0)))
    with record(model) as recording:
        model(torch.ones(1, 1, dtype=FLOAT64)).sum().backward(retain_graph=True)
    table = path_contributions(recording)
    assert path_gradients(recording).flatten().tolist() == [1, 10, 31, 30]
    assert list(table.columns) == ["path_length", "quantity", "value"]
    assert table["path_length"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert values(table, "norm") == [1, 10, 31, 30]
    assert values(table, "share") == pytest.approx([1 / 72, 10 / 72, 31 / 72, 30 / 72], rel=1e-15)


def test_shares_are_signed() -> None:
    """(1 - 3t)(1 + t) = 1 - 2t - 3t²; the gradient is -4, which the empty path opposes."""
    model = nn.Sequential(Residual(linear(-3.0)), Residual(linear(1.0)))
    with record(model) as recording:
        model(torch.ones(1, 1, dtype=FLOAT64)).sum().backward(retain_graph=True)
    assert values(path_contributions(recording), "norm") == [1, 2, 3]
    assert values(path_contributions(recording), "share") == [-0.25, 0.5, 0.75]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(*[HUNDREDTHS] * 4), min_size=1, max_size=8))
def test_chains_of_any_weights_are_polynomials(blocks: list[tuple[float, float, float, float]]) -> None:
    """Each block contributes (shortcut_gradient + branch_gradient · w · t), whatever its forward weights."""
    model = nn.Sequential(
        *(
            ResidualBlock(linear(w), activation=nn.Identity(), flow=Flow(forward, 1.0, shortcut, branch))
            for w, forward, shortcut, branch in blocks
        )
    )
    wanted = Polynomial([1.0])
    for w, _, shortcut, branch in blocks:
        wanted = wanted * Polynomial([shortcut, branch * w])
    padded = [*wanted.coef, *[0.0] * (len(blocks) + 1 - len(wanted.coef))]  # numpy drops trailing zeros
    # Float64 rounds each of some ten operations at 1e-16 of the largest sum that the weights allow.
    scale = math.prod(abs(s) + abs(b * w) for w, _, s, b in blocks)
    assert scalar_lengths(model).tolist() == pytest.approx(padded, rel=0, abs=1e-14 * scale)


def test_the_order_of_the_addends_does_not_matter() -> None:
    def turned(self: nn.Module, x: Tensor) -> Tensor:
        return self.get_submodule("f")(x) + x

    model = nn.Sequential(Apply(turned, f=linear(2.0)), Residual(linear(3.0)), Apply(turned, f=linear(5.0)))
    assert scalar_lengths(model).tolist() == [1, 10, 31, 30]


def test_a_branch_may_read_its_fork_more_than_once() -> None:
    """x + 2x · 3x has at x = 1 the slope 1 + 12."""

    def product(self: nn.Module, x: Tensor) -> Tensor:
        return x + self.get_submodule("f")(x) * self.get_submodule("g")(x)

    assert scalar_lengths(Apply(product, f=linear(2.0), g=linear(3.0))).tolist() == [1, 12]


def test_an_add_that_multiplies_its_addend_counts_as_it_does() -> None:
    def doubled(self: nn.Module, x: Tensor) -> Tensor:
        return torch.add(x, self.get_submodule("f")(x), alpha=2)

    model = nn.Sequential(Apply(doubled, f=linear(2.0)), Apply(doubled, f=linear(3.0)))
    assert scalar_lengths(model).tolist() == [1, 10, 24]


class Detachable(nn.Module):
    """x + branch(x), one side of which can be cut with plain `detach`: the twin that needs none of our code."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch
        self.takes: tuple[str, ...] = ("shortcut", "branch")

    def forward(self, x: Tensor) -> Tensor:
        shortcut, branch = (x if side in self.takes else x.detach() for side in ("shortcut", "branch"))
        return shortcut + self.branch(branch)


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_every_single_path_taken_by_itself_adds_up_to_the_same_lengths(depth: int) -> None:
    blocks = [Detachable(nn.Sequential(perceptron(), nn.Tanh())) for _ in range(depth)]
    model, x = nn.Sequential(*blocks), torch.randn(4, 3, dtype=FLOAT64, requires_grad=True)
    wanted = torch.zeros(depth + 1, 4, 3, dtype=FLOAT64)
    for path in itertools.product(("shortcut", "branch"), repeat=depth):
        for block, side in zip(blocks, path, strict=True):
            block.takes = (side,)
        wanted[path.count("branch")] += torch.autograd.grad(model(x).square().sum(), x)[0]
    for block in blocks:
        block.takes = ("shortcut", "branch")
    lengths = path_gradients(recorded(model, x))
    # Each of the 2^5 paths rounds at 1e-16 of its own size.
    torch.testing.assert_close(lengths, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("depth", "projection"), [(14, "B"), (20, "A")])
def test_every_single_path_of_a_convolutional_net_adds_up_to_the_same_lengths(
    depth: int, projection: Projection
) -> None:
    """64 and 512 backwards of one forward, in which each block passes its gradient by one side only."""
    model, inputs = cifar_resnet(depth, width=4, projection=projection).double(), []
    model.blocks[0].register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    with record(model) as recording:
        loss = model(images(3)).square().sum()
        loss.backward(retain_graph=True)
    lengths = path_gradients(recording)

    one_way = (Flow(branch_gradient=0), Flow(shortcut_gradient=0))
    wanted = torch.zeros_like(lengths)
    for path in itertools.product((0, 1), repeat=len(model.blocks)):
        for block, side in zip(model.blocks, path, strict=True):
            block.flow = one_way[side]
        wanted[sum(path)] += torch.autograd.grad(loss, inputs[0], retain_graph=True)[0]
    # Up to 126 paths of one length, which cancel in part, each rounding at 1e-16 of its own size.
    assert max(relative_error(a, b) for a, b in zip(lengths, wanted, strict=True)) < 1e-12


def test_a_foreign_network_s_lengths_sum_to_autograd_s_gradient() -> None:
    model = torchvision.models.resnet18(weights=None, num_classes=10).double()
    x = images(2, 32)
    (wanted,) = gradients_at(model, ["layer1.0"], x, lambda y: y.square().sum())
    recording = recorded(model, x)
    lengths = path_gradients(recording)
    assert lengths.shape == (9, *wanted.shape)
    assert relative_error(lengths.sum(0), wanted) < 1e-12
    assert relative_error(recording.gradient(recording.junctions[0], "total"), wanted) < 1e-14
    assert sum(values(path_contributions(recording), "share")) == pytest.approx(1, abs=1e-12)


def test_a_gradient_of_zero_has_norms_of_zero_and_no_shares() -> None:
    model = chain(3)
    with record(model) as recording:
        (0 * model(torch.ones(2, 3, dtype=FLOAT64))).sum().backward(retain_graph=True)
    table = path_contributions(recording)
    assert values(table, "norm") == [0, 0, 0, 0]
    assert all(math.isnan(share) for share in values(table, "share"))


@pytest.mark.parametrize("scale", [1e-200, 1e-300, 1e200])
def test_contributions_keep_their_digits_where_squares_leave_the_range(scale: float) -> None:
    model = nn.Sequential(*(Residual(linear(w)) for w in (2.0, 3.0, 5.0)))
    with record(model) as recording:
        (scale * model(torch.ones(1, 1, dtype=FLOAT64))).sum().backward(retain_graph=True)
    table = path_contributions(recording)
    assert values(table, "norm") == pytest.approx([scale, 10 * scale, 31 * scale, 30 * scale], rel=1e-14)
    assert values(table, "share") == pytest.approx([1 / 72, 10 / 72, 31 / 72, 30 / 72], rel=1e-14)


SUMS = {
    "x + f + g": lambda m, x: x + m.f(x).tanh() + m.g(x).tanh(),
    "f + x + g": lambda m, x: m.f(x).tanh() + x + m.g(x).tanh(),
    "g + (x + f)": lambda m, x: m.g(x).tanh() + (x + m.f(x).tanh()),
    "x + f - g": lambda m, x: x + m.f(x).tanh() - m.g(x).tanh(),
    "x - f - g": lambda m, x: x - m.f(x).tanh() - m.g(x).tanh(),
    "alpha": lambda m, x: torch.add(x + m.f(x).tanh(), m.g(x).tanh(), alpha=0.5),
}


@pytest.mark.parametrize("body", SUMS.values(), ids=SUMS)
def test_sums_of_three_are_one_junction_for_every_probe(body: Callable[..., object]) -> None:
    """Single paths of length 0 and L are the exact ones; without branches, the block is the identity both ways."""
    torch.manual_seed(0)
    model, x = nn.Sequential(dense(), block_of(body), block_of(body), dense()), rows()
    junctions = find_junctions(model, x)
    assert len(junctions) == 2
    with record(model) as recording:
        model(x).square().sum().backward(retain_graph=True)
    exact = path_gradients(recording)
    assert values(gradient_norms(recording), "other") == pytest.approx([0, 0], abs=1e-12)  # two ways in: rounding
    sampled = sample_paths(recording, samples=None, lengths=[0, 2])
    assert values(sampled, "path_norm") == pytest.approx([exact[0].norm().item(), exact[2].norm().item()], rel=1e-12)
    short = nn.Sequential(model[0], model[3])
    with torch.no_grad(), lesion(model, delete=junctions):
        assert torch.equal(model(x), short(x))
    model.zero_grad()
    with gate(model, branch_gradient=0.0):
        model(x).square().sum().backward()
    got = model[0].weight.grad
    upstream = 2 * model(x) @ model.get_parameter("3.weight")
    assert isinstance(got, Tensor)
    assert relative_error(got, upstream.T @ x) < 1e-12
