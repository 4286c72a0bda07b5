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
    block_of,
    dense,
    gradients_at,
    images,
    linear,
    one,
    perceptron,
    recorded,
    relative_error,
    rows,
    scalars,
    squares,
    values,
)

# No weight but 0 is small, so that no product of sixteen of them comes near the end of float64's range.
HUNDREDTHS = st.integers(-300, 300).map(lambda number: number / 100)


@pytest.mark.parametrize("scale", [1, 1e-200, 1e-300, 1e200])
def test_three_scalar_blocks_give_what_is_multiplied_on_paper(scale: float) -> None:
    """(1 + 2t)(1 + 3t)(1 + 5t) = 1 + 10t + 31t² + 30t³; the gradient is 72; also where squares leave the range."""
    table = path_contributions(recording := recorded(scalars(), one(), lambda y: scale * y.sum()))
    wanted, rounding = [1, 10, 31, 30], 0 if scale == 1 else 1e-14
    scaled = pytest.approx([w * scale for w in wanted], rel=rounding, abs=0)
    assert path_gradients(recording).flatten().tolist() == scaled
    assert list(table.columns) == ["path_length", "quantity", "value"]
    assert table["path_length"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert values(table, "norm") == scaled
    assert values(table, "share") == pytest.approx([w / 72 for w in wanted], rel=rounding or 1e-15)


@pytest.mark.parametrize(
    ("scale", "norms", "shares"),
    [(1, [1, 2, 3], [-0.25, 0.5, 0.75]), (0, [0, 0, 0], [math.nan] * 3)],
    ids=["signed", "of a gradient of zero"],
)
def test_shares(scale: float, norms: list[float], shares: list[float]) -> None:
    """(1 - 3t)(1 + t) = 1 - 2t - 3t²; the gradient is -4, which the empty path opposes."""
    table = path_contributions(recorded(scalars(-3.0, 1.0), one(), lambda y: scale * y.sum()))
    assert values(table, "norm") == norms
    assert values(table, "share") == pytest.approx(shares, nan_ok=True)


BLOCKS: dict[str, tuple[Callable[..., Tensor], list[float]]] = {
    "f + x": (lambda block, x: block.f(x) + x, [1, 2]),
    "a fork that is read twice": (lambda block, x: x + block.f(x) * block.g(x), [1, 12]),  # at x = 1
    "alpha": (lambda block, x: torch.add(x, block.f(x), alpha=2), [1, 4]),
}


@pytest.mark.parametrize(("block", "wanted"), BLOCKS.values(), ids=BLOCKS)
def test_ways_to_write_a_block(block: Callable[..., Tensor], wanted: list[float]) -> None:
    model = Apply(block, f=linear(2.0), g=linear(3.0))
    assert path_gradients(recorded(model, one())).flatten().tolist() == wanted


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
    got = path_gradients(recorded(model, one())).flatten()
    assert got.tolist() == pytest.approx(padded, rel=0, abs=1e-14 * scale)


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
    lengths = path_gradients(recorded(model, x, squares))
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
    recording = recorded(model, x, squares)
    lengths = path_gradients(recording)
    assert lengths.shape == (9, *wanted.shape)
    assert relative_error(lengths.sum(0), wanted) < 1e-12
    assert relative_error(recording.gradient(recording.junctions[0], "total"), wanted) < 1e-14
    assert sum(values(path_contributions(recording), "share")) == pytest.approx(1, abs=1e-12)


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
    model, x = nn.Sequential(dense(), block_of(body), block_of(body), dense()), rows()
    junctions = find_junctions(model, x)
    assert len(junctions) == 2
    recording = recorded(model, x, squares)
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
