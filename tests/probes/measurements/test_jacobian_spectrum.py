"""Spectra of Jacobians: on paper, against torch's own Jacobian, invariants, estimates; nothing is left behind."""

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import models
from models import PLAIN, RESIDUAL, STOP_GRADIENT, Flow, ResidualBlock, cifar_resnet, residual_mlp
from probes import gate, jacobian_spectrum, limit_paths, record
from tests.support.networks import (
    FLOAT64,
    Apply,
    Raising,
    Residual,
    Tag,
    block_of,
    chain,
    dense,
    images,
    left_as_it_was,
    linear,
    perceptron,
    rows,
    values,
)

QUANTITIES = ["mean_square", "spread", "largest", "smallest", "condition", "distance"]
# Rows of J and singular values round at about 1e-16 of the largest one; conditions up to 1e3 leave three digits more.
TIGHT: dict[str, Any] = {"rel": 1e-11, "abs": 1e-13}


def of_matrix(matrix: Tensor, *, same_shape: bool = True) -> list[float]:
    """The six quantities, from the written-out matrix."""
    sigma = torch.linalg.svdvals(matrix)
    squares = sigma.square()
    distance = (matrix - torch.eye(len(matrix))).norm() / math.sqrt(len(matrix)) if same_shape else math.nan
    return [
        float(x)
        for x in (
            squares.mean(), squares.square().mean() / squares.mean() ** 2, sigma[0], sigma[-1], sigma[0] / sigma[-1],
            distance,
        )
    ]  # fmt: skip


def jacobian(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The slow twin: torch's own, flattened."""
    J: Any = torch.autograd.functional.jacobian(function, x)
    return J.reshape(-1, x.numel())


def inputs_of(model: nn.Module, parts: Sequence[nn.Module], x: Tensor) -> list[Tensor]:
    """What these parts of the model are given."""
    found: dict[nn.Module, Tensor] = {}
    handles = [p.register_forward_pre_hook(lambda p, args: found.update({p: args[0].clone()})) for p in parts]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return [found[part] for part in parts]


def numbers(table: pd.DataFrame, name: str | None = None) -> list[float]:
    """The six quantities of one block (the first)."""
    chosen = table[table["block"] == (table["block"].iloc[0] if name is None else name)]
    assert chosen["quantity"].tolist() == QUANTITIES
    return chosen["value"].tolist()


def estimated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no Jacobian be small enough to be written out."""
    monkeypatch.setattr("probes.measurements.jacobian_spectrum.EXACT", 0)


def rotation() -> nn.Linear:
    """By a right angle in the plane of two of four axes, and in that of the other two: no value stays in its place."""
    return linear([[0.0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 0, -1], [0, 0, 1, 0]])


def scaled(factor: float, matrix: list[list[float]]) -> nn.Module:
    """A block factor * (x + W x)."""
    return Apply(lambda block, x: factor * (x + block.f(x)), f=linear(matrix))


# On paper.


def test_a_linear_block() -> None:
    """x + Wx with W = diag(1, -1/2, 2) has the singular values 2, 1/2, 3, once for each image of the batch."""
    model = nn.Sequential(Residual(linear([[1.0, 0, 0], [0, -0.5, 0], [0, 0, 2]])))
    found = jacobian_spectrum(model, torch.randn(2, 3, dtype=FLOAT64))
    assert list(found.columns) == ["block", "depth", "quantity", "value"]
    assert found["block"].unique().tolist() == ["0"]
    assert found["depth"].unique().tolist() == [0]
    squares = [4, 0.25, 9]
    mean = sum(squares) / 3
    spread = sum(s**2 for s in squares) / 3 / mean**2
    assert numbers(found) == pytest.approx([mean, spread, 3, 0.5, 6, math.sqrt((1 + 0.25 + 4) / 3)], rel=1e-14)


@pytest.mark.parametrize("exact", [True, False])
def test_a_rotation_is_an_isometry_at_distance_root_2(exact: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """|R - I|² = 2n - 2 tr R and tr R = 0. On the sphere even a single pair of vectors says so without error."""
    block = ResidualBlock(rotation(), activation=nn.Identity(), flow=PLAIN)
    if not exact:
        estimated(monkeypatch)
    wanted = [1, 1, 1, 1, 1, math.sqrt(2)] if exact else [1, 1, math.nan, math.nan, math.nan, math.sqrt(2)]
    found = jacobian_spectrum(nn.Sequential(block, block), rows(), probes=2)
    assert numbers(found) == pytest.approx(wanted, rel=1e-14, nan_ok=True)
    # Two right angles are a half turn: -I, at distance 2.
    half_turn = [*wanted[:5], 2]
    of_stream = jacobian_spectrum(nn.Sequential(block, block), rows(), of="stream", probes=2)
    assert numbers(of_stream) == pytest.approx(half_turn, rel=1e-14, nan_ok=True)


def test_what_is_behind_the_sum_counts() -> None:
    """relu(x + 2x) at 1 and -1: 3 and 0; of the last block too, but not where the model itself is the block."""
    block, x = ResidualBlock(linear(2.0)), torch.tensor([[1.0], [-1.0]], dtype=FLOAT64)
    wanted = [4.5, 2, 3, 0, math.inf, math.sqrt((4 + 1) / 2)]
    assert numbers(jacobian_spectrum(nn.Sequential(block), x)) == pytest.approx(wanted)
    twice = jacobian_spectrum(nn.Sequential(block, copy.deepcopy(block)), x)
    assert numbers(twice, "0") == pytest.approx(wanted)
    assert numbers(twice, "1") == pytest.approx(wanted)
    assert numbers(jacobian_spectrum(block, x)) == pytest.approx([9, 1, 3, 3, 1, 2])


@pytest.mark.parametrize(
    "function",
    [
        lambda block, x: (block.f(x) + x, "more"),
        lambda block, x: (block.f(x) + x, block.g(x))[1],
    ],
    ids=["no tensor", "made from something else"],
)
def test_a_block_whose_module_gives_no_more_ends_at_its_sum(function: Callable[..., object]) -> None:
    class Dropping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Apply(function, f=linear(2.0), g=linear(7.0))

        def forward(self, x: Tensor) -> Tensor:
            output = self.inner(x)
            return output[0] if isinstance(output, tuple) else output

    found = jacobian_spectrum(Dropping(), torch.ones(1, 1, dtype=FLOAT64))
    assert numbers(found) == [9, 1, 3, 3, 1, 2]


def test_two_sums_in_one_call_and_a_module_that_runs_twice() -> None:
    """x + 2x, then that + 3 of it (one module adds twice): the first block ends where the second begins."""

    def two(block: Any, x: Tensor) -> Tensor:
        x = x + block.f(x)
        return 10 * (x + block.g(x))

    block = Apply(two, f=linear(2.0), g=linear(3.0))
    found = jacobian_spectrum(nn.Sequential(block, block), torch.ones(1, 1, dtype=FLOAT64))
    assert found["block"].unique().tolist() == ["0", "0#1", "0@1", "0@1#1"]
    assert values(found, "largest") == pytest.approx([3, 40, 3, 40])


# Against the slow twin.

NETWORKS: dict[str, dict[str, Any]] = {
    "identity A": {},
    "projection B": {"projection": "B"},
    "plain": {"flow": PLAIN},
    "weights": {"flow": Flow(0.7, 0.6)},
    "pre-activation": {"block": "preactivation"},
    "norm after the sum": {"block": "norm-after-sum"},
    "exclusive gate": {"variant": "exclusive-gate"},
}


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("options", NETWORKS.values(), ids=NETWORKS)
def test_equals_torchs_own_jacobian(options: dict[str, Any], training: bool) -> None:
    model, x = cifar_resnet(14, width=2, **options).double(), images(2, 4)
    model(images(8, 4))  # running statistics that are not 0 and 1
    model.train(training)
    twin = copy.deepcopy(model)
    stages: list[nn.Module] = [twin.layer1, twin.layer2, twin.layer3]
    spans = {"blocks": twin.blocks, "stages": stages, "stream": [nn.Sequential(*stages)]}
    for of, parts in spans.items():
        found = jacobian_spectrum(model, x, of=of)  # type: ignore[arg-type]
        assert len(found) == 6 * len(parts)
        starts = inputs_of(twin, [*twin.blocks] if of == "blocks" else stages, x)
        for index, (part, start) in enumerate(zip(parts, starts, strict=False)):
            J = jacobian(part, start)
            wanted = of_matrix(J, same_shape=part(start).shape == start.shape)
            got = found["value"].iloc[6 * index : 6 * index + 6].tolist()
            assert got[:3] == pytest.approx(wanted[:3], **TIGHT)
            # The smallest singular value rounds at 1e-16 of the largest: many are 0 behind a ReLU.
            assert got[3] == pytest.approx(wanted[3], rel=1e-9, abs=1e-13 * wanted[2])
            assert got[5] == pytest.approx(wanted[5], nan_ok=True, **TIGHT)
            if wanted[3] > 1e-9 * wanted[2]:
                assert got[4] == pytest.approx(wanted[4], rel=1e-6)


def test_names_and_depths_of_stages() -> None:
    model, x = cifar_resnet(14, width=2), images(2, 4, dtype=torch.float32)
    found = jacobian_spectrum(model, x, of="stages").drop_duplicates("block")
    assert found["block"].tolist() == ["layer1.0 to layer1.1", "layer2.0 to layer2.1", "layer3.0 to layer3.1"]
    assert found["depth"].tolist() == [0, 2, 4]
    found = jacobian_spectrum(cifar_resnet(8, width=2), x, of="stages")
    assert found["block"].unique().tolist() == ["layer1.0", "layer2.0", "layer3.0"]
    found = jacobian_spectrum(model, x, of="stream")
    assert set(zip(found["block"], found["depth"], strict=True)) == {("layer1.0 to layer3.1", 0)}


def test_backward_weights_count() -> None:
    """No gradient through the shortcut: the Jacobian is that of relu(x.detach() + F(x)); a gate does the same."""
    torch.manual_seed(0)
    model, x = residual_mlp(5, in_features=4, width=6, flow=STOP_GRADIENT).double(), rows()
    twin = copy.deepcopy(model)
    starts = inputs_of(twin, [*twin.blocks], x)
    found = jacobian_spectrum(model, x)
    for index, (block, start) in enumerate(zip(twin.blocks, starts, strict=True)):
        J = jacobian(lambda z, block=block: block.activation(z.detach() + block.branch(z)), start)  # type: ignore[operator]
        assert found["value"].iloc[6 * index] == pytest.approx(of_matrix(J)[0], **TIGHT)
        assert found["value"].iloc[6 * index + 5] == pytest.approx(of_matrix(J)[5], **TIGHT)
    models.set_flows(model, RESIDUAL)
    ungated = jacobian_spectrum(model, x, of="stream")
    with gate(model, shortcut_gradient=0.0):
        pd.testing.assert_frame_equal(jacobian_spectrum(model, x), found, rtol=1e-12)
    pd.testing.assert_frame_equal(jacobian_spectrum(model, x, of="stream"), ungated)


# Invariants.


def test_one_stage_is_the_stream_and_frozen_parameters_change_nothing() -> None:
    model, x = chain(4), torch.randn(5, 3, dtype=FLOAT64)
    stream = jacobian_spectrum(model, x, of="stream")
    pd.testing.assert_frame_equal(jacobian_spectrum(model, x, of="stages"), stream)
    pd.testing.assert_frame_equal(jacobian_spectrum(model.requires_grad_(False), x, of="stream"), stream)


MATRIX = [[0.5, 0.25, 0.0], [0.0, -0.5, 1.0], [1.0, 0.0, 0.25]]


@pytest.mark.parametrize("dtype", [FLOAT64, torch.float32])
@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("power", [-100, 100])
def test_gains_of_1e30_a_block_only_move_the_scale(
    power: int, exact: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Powers of 2: numbers stay the same to the last bit, also where float32 ends long before the product does."""
    if not exact:
        estimated(monkeypatch)
    x = torch.zeros(2, 3, dtype=dtype)
    plain = nn.Sequential(*(scaled(1.0, MATRIX) for _ in range(3))).to(dtype)
    model = nn.Sequential(*(scaled(2.0**power, MATRIX) for _ in range(3))).to(dtype)
    before, after = (numbers(jacobian_spectrum(m, x, of="stream", probes=4)) for m in (plain, model))
    total = 3 * power  # 2^±300, 1e±90
    assert after[0] == math.ldexp(before[0], 2 * total)
    assert [after[1], after[4]] == pytest.approx([before[1], before[4]], rel=1e-12, nan_ok=True)
    assert after[2] == pytest.approx(before[2] * 2.0**total, rel=1e-12, nan_ok=True)
    # |cJ - I|: beside 1e90 the identity is nothing, beside 1e-90 J is.
    assert after[5] == pytest.approx(math.sqrt(after[0]) if total > 0 else 1, rel=1e-6)


@pytest.mark.parametrize(("power", "end"), [(-100, 0.0), (100, math.inf)])
def test_beyond_float64_says_so(power: int, end: float) -> None:
    """2^±1200: the scale-free numbers are still right."""
    x, deep = torch.zeros(1, 3, dtype=FLOAT64), [scaled(2.0**power, MATRIX) for _ in range(12)]
    wanted = numbers(jacobian_spectrum(nn.Sequential(*(scaled(1.0, MATRIX) for _ in range(12))), x, of="stream"))
    with pytest.warns(RuntimeWarning, match="outside of float64's range"):
        got = numbers(jacobian_spectrum(nn.Sequential(*deep), x, of="stream"))
    assert got[:1] + got[2:4] == [end] * 3
    assert [got[1], got[4]] == pytest.approx([wanted[1], wanted[4]], rel=1e-12)
    assert got[5] == (1 if end == 0 else math.inf)


@pytest.mark.parametrize("exact", [True, False])
def test_zero_and_not_finite(exact: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not exact:
        estimated(monkeypatch)
    unknown = [0, 0, math.inf] if exact else [math.nan] * 3
    zero = ResidualBlock(linear([[0.0, 0], [0, 0]]), flow=PLAIN)
    x = torch.ones(2, 2, dtype=FLOAT64)
    found = numbers(jacobian_spectrum(nn.Sequential(zero), x))
    assert found == pytest.approx([0, math.nan, *unknown, 1], nan_ok=True)
    infinite = nn.Sequential(Residual(linear([[math.inf, 0], [0, 1]])))
    assert all(map(math.isnan, numbers(jacobian_spectrum(infinite, x))))


# Estimates.


def spectrum_of(sigma: Sequence[float], n_in: int, n_out: int) -> nn.Linear:
    """A linear map with these singular values, between random directions."""
    U, V = (torch.linalg.qr(torch.randn(n, n, dtype=FLOAT64))[0] for n in (n_out, n_in))
    layer = nn.Linear(n_in, n_out, bias=False, dtype=FLOAT64)
    layer.weight.data = U[:, : len(sigma)] @ torch.tensor(sigma, dtype=FLOAT64).diag() @ V[:, : len(sigma)].T
    return layer


@pytest.mark.parametrize(("n_in", "n_out"), [(24, 24), (40, 24), (24, 40)], ids=["square", "narrower", "wider"])
def test_estimates_have_no_bias_and_the_error_that_they_say(
    n_in: int, n_out: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over 150 seeds the mean lies within four of its own standard errors."""
    sigma = torch.linspace(0.2, 1.8, 24).tolist()
    layer = spectrum_of(sigma, n_in, n_out)
    model, x = nn.Sequential(layer), torch.zeros(1, n_in, dtype=FLOAT64)
    wanted = of_matrix(layer.weight.detach(), same_shape=False)
    exact = numbers(jacobian_spectrum(model, x, blocks=[layer]))
    assert exact[:5] == pytest.approx(wanted[:5], rel=1e-11)
    estimated(monkeypatch)
    k = 12
    runs = [numbers(jacobian_spectrum(model, x, blocks=[layer], probes=k, seed=seed)) for seed in range(150)]
    found = torch.tensor(runs, dtype=FLOAT64)
    mean, error = found.mean(0), found.std(0) / math.sqrt(len(runs))
    assert abs(mean[0] - wanted[0]) < 4 * error[0]
    said = math.sqrt(2 * (wanted[1] - 24 / n_out) / (24 * k))  # relative, of mean_square
    assert (found[:, 0].std() / wanted[0]).item() == pytest.approx(said, rel=0.2)
    bias = said**2 * wanted[1]
    assert abs(mean[1] - wanted[1]) < 4 * error[1] + 2 * bias
    # 2/k is the error of the pairs alone; that of the two factors of a pair comes on top in so small a map.
    assert 1 < found[:, 1].std().item() / (2 / k * (wanted[1] - 24 / n_out)) < 2
    if n_in == n_out:
        square = found[:, 5].square()
        truth = (layer.weight.detach() - torch.eye(24)).square().sum().item() / 24
        assert abs(square.mean() - truth) < 4 * square.std() / math.sqrt(len(runs))


def test_estimates_of_a_network_are_near_its_exact_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = cifar_resnet(14, width=4).double(), images(2, 6)  # 288 dimensions
    exact = {of: jacobian_spectrum(model, x, of=of)["value"].tolist() for of in ("blocks", "stages", "stream")}
    estimated(monkeypatch)
    for of, wanted in exact.items():
        got = jacobian_spectrum(model, x, of=of, probes=64)["value"].tolist()  # type: ignore[arg-type]
        for first in range(0, len(wanted), 6):
            # Errors of a few percent are expected: 2 / 64 of the spread, and more of the stream's few directions.
            assert got[first] == pytest.approx(wanted[first], rel=0.15)
            assert got[first + 1] == pytest.approx(wanted[first + 1], rel=0.25)
            assert got[first + 5] == pytest.approx(wanted[first + 5], rel=0.15, nan_ok=True)
            assert all(map(math.isnan, got[first + 2 : first + 5]))


def test_512_dimensions_are_the_limit() -> None:
    layer = nn.Linear(256, 256, bias=False)
    nn.init.orthogonal_(layer.weight)
    model = nn.Sequential(layer)
    exact, beyond = (numbers(jacobian_spectrum(model, torch.zeros(n, 256), blocks=[layer])) for n in (2, 3))
    # Float32 rows.
    assert exact[:5] == pytest.approx([1] * 5, rel=1e-5)
    assert beyond[:2] == pytest.approx([1] * 2, rel=1e-5)
    assert math.isnan(beyond[2])


def test_a_seed_gives_the_same_and_another_something_else() -> None:
    model, x = cifar_resnet(8, width=4), images(4, dtype=torch.float32)
    a, b, c = (jacobian_spectrum(model, x, seed=seed, probes=3) for seed in (0, 0, 1))
    pd.testing.assert_frame_equal(a, b)
    assert not a.equals(c)


# Modules named by hand.


def test_modules_of_a_plain_network() -> None:
    """In-place ReLUs, each convolution with its ReLU a block; stages by shape, what lies between them included."""

    def part(channels: int, out: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(channels, out, 3, padding=1), nn.ReLU(inplace=True))

    model = nn.Sequential(part(3, 4), part(4, 4), nn.MaxPool2d(2), part(4, 4), part(4, 4)).double()
    x, parts = images(2, 6), [model[1], model[3], model[4]]
    starts = inputs_of(model, parts, x)
    found = jacobian_spectrum(model, x, blocks=parts)
    assert found["block"].unique().tolist() == ["1", "3", "4"]
    for name, block, start in zip(("1", "3", "4"), parts, starts, strict=True):
        assert numbers(found, name)[:3] == pytest.approx(of_matrix(jacobian(block, start))[:3], **TIGHT)
    found = jacobian_spectrum(model, x, blocks=parts, of="stages")
    assert found["block"].unique().tolist() == ["1", "3 to 4"]
    assert numbers(found, "3 to 4")[:3] == pytest.approx(of_matrix(jacobian(model[3:], starts[1]))[:3], **TIGHT)
    found = jacobian_spectrum(model, x, blocks=parts, of="stream")
    wanted = of_matrix(jacobian(model[1:], starts[0]), same_shape=False)
    assert numbers(found, "1 to 4")[:3] == pytest.approx(wanted[:3], **TIGHT)


def test_the_network_itself_and_a_module_that_runs_twice() -> None:
    layer = linear(3.0)
    model, x = nn.Sequential(layer, layer), torch.ones(1, 1, dtype=FLOAT64)
    found = jacobian_spectrum(model, x, blocks=[model, layer])
    assert found["block"].drop_duplicates().tolist() == ["(model)", "0", "0@1"]
    assert values(found, "largest") == [9, 3, 3]


# Nothing changes.


@pytest.mark.parametrize("of", ["blocks", "stages", "stream"])
def test_torchvisions_resnet18_is_left_as_it_was(of: Any) -> None:
    """In-place ReLUs and train-mode BatchNorm, whose statistics a forward moves."""
    model, x = torchvision.models.resnet18(num_classes=3), images(2, 32, dtype=torch.float32).requires_grad_()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random = torch.get_rng_state()
    with left_as_it_was(model):
        buffers = [*model.buffers()]
        found = jacobian_spectrum(model, x, of=of, probes=4)
        assert all(a is b for a, b in zip(buffers, model.buffers(), strict=True))
    assert all(0 < value < math.inf for value in values(found, "mean_square"))
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert x.grad is None
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            pd.testing.assert_frame_equal(jacobian_spectrum(model, x, of=of, probes=4), found)


class Checkpointed(nn.Module):
    """Runs its part again during the backward."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, x: Tensor) -> Any:
        return checkpoint(self.part, x, use_reentrant=False)


def test_under_checkpointing_the_backward_changes_nothing_either() -> None:
    """There the part's dropout is drawn, and its statistics are moved, a second time."""
    parts = [nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(0.3), nn.Linear(3, 3)]
    plain = nn.Sequential(*(Residual(nn.Sequential(*copy.deepcopy(parts))) for _ in range(2)))
    model = nn.Sequential(*(Residual(Checkpointed(block.branch)) for block in copy.deepcopy(plain)))  # type: ignore[arg-type]
    state = copy.deepcopy(model.state_dict())
    x, random = torch.randn(6, 3), torch.get_rng_state()
    found = jacobian_spectrum(model, x, of="stream")
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert numbers(found) == pytest.approx(numbers(jacobian_spectrum(plain, x, of="stream")), rel=1e-4)


@pytest.mark.parametrize("named", [False, True])
def test_an_error_of_the_model_leaves_nothing_behind(named: bool) -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), Residual(nn.Linear(3, 3)), Raising())
    buffers = [*model.buffers()]
    before = [b.clone() for b in buffers]
    with left_as_it_was(model), pytest.raises(ZeroDivisionError):
        jacobian_spectrum(model, torch.randn(4, 3), blocks=[model[1]] if named else None)
    assert all(a is b for a, b in zip(buffers, model.buffers(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(before, buffers, strict=True))


def test_the_graph_is_released() -> None:
    model = nn.Sequential(tag := Tag(), *chain(2))
    jacobian_spectrum(model, torch.randn(2, 3, dtype=FLOAT64), of="stream")
    assert tag.newest() is None


def test_a_pending_backward_of_the_user_still_runs() -> None:
    model, x = cifar_resnet(8, width=2), images(2, dtype=torch.float32)
    loss = model(x).sum()
    jacobian_spectrum(model, x, probes=2)
    loss.backward()


# Refusals.


class LongSkip(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(ResidualBlock(perceptron(), activation=nn.Tanh()) for _ in range(3)))
        self.after = perceptron()

    def forward(self, x: Tensor) -> Tensor:
        first = self.blocks[0](x)
        return self.after(self.blocks[2](self.blocks[1](first) * first.sigmoid()))


def nested() -> nn.Module:
    return nn.Sequential(Residual(nn.Sequential(nn.Linear(3, 3), Residual(perceptron()), nn.Linear(3, 3))).double())


@pytest.mark.parametrize("model", [LongSkip(), nested()], ids=["long skip", "nested"])
@pytest.mark.parametrize("of", ["stages", "stream"])
def test_no_chain(model: nn.Module, of: Any) -> None:
    x = torch.randn(2, 3, dtype=FLOAT64)
    with left_as_it_was(model), pytest.raises(ValueError, match=r'are no chain.*of="blocks" needs no chain'):
        jacobian_spectrum(model, x, of=of)
    assert not jacobian_spectrum(model, x)["value"].isna().any()


def test_a_route_from_a_sum_around_the_next_fork_is_no_chain() -> None:
    """The first sum is used by its activation, the second block's fork, and once more behind that block."""

    def function(m: Any, x: Tensor) -> Tensor:
        first = x + m.f(x)
        fork = first.tanh()
        third = first * (fork + m.g(fork))
        return third + m.h(third)

    model = Apply(function, f=perceptron(), g=perceptron(), h=perceptron())
    with pytest.raises(ValueError, match=r"leads around '\(model\)#1'"):
        jacobian_spectrum(model, torch.randn(2, 3, dtype=FLOAT64), of="stages")


def test_parallel_streams_are_no_chain() -> None:
    model = Apply(lambda m, x: m.a(x) + m.b(x), a=Residual(perceptron()), b=Residual(perceptron()))
    with pytest.raises(ValueError, match="are no chain"):
        jacobian_spectrum(model, torch.randn(2, 3, dtype=FLOAT64), of="stream")


def test_the_inner_block_ends_where_its_module_does() -> None:
    """(1 + 5 (1 + 2) 7) x, whose inner block is executed first: 3 and 106."""
    inner = Residual(linear(2.0))
    model = nn.Sequential(Residual(nn.Sequential(linear(7.0), inner, linear(5.0))))
    found = jacobian_spectrum(model, torch.ones(1, 1, dtype=FLOAT64))
    assert values(found, "largest") == [3, 106]


def test_under_limit_paths_and_inside_a_recording() -> None:
    model, x = chain(2), torch.randn(2, 3, dtype=FLOAT64)
    with limit_paths(model, at_most=1), pytest.raises(ValueError, match=r"under limit_paths.*without it"):
        jacobian_spectrum(model, x)
    with record(model):
        inside = jacobian_spectrum(model, x)
    pd.testing.assert_frame_equal(inside, jacobian_spectrum(model, x))


BAD: dict[str, tuple[nn.Module, dict[str, Any], type[Exception], str]] = {
    "of": (chain(1), {"of": "layers"}, ValueError, 'of is \'layers\': give "blocks", "stages" or "stream"'),
    "probes": (chain(1), {"probes": 1}, ValueError, "probes is 1: give a whole number of at least 2"),
    "seed": (chain(1), {"seed": None}, ValueError, "seed is None: give a whole number of at least 0"),
    "plain": (perceptron(), {}, ValueError, "without a residual junction.*blocks=\\[model"),
    "none": (perceptron(), {"blocks": []}, ValueError, "blocks must be modules of the model.*got \\[\\]"),
    "foreign": (perceptron(), {"blocks": [nn.ReLU()]}, ValueError, "blocks must be modules of the model.*ReLU"),
}


@pytest.mark.parametrize(("model", "options", "error", "text"), BAD.values(), ids=BAD)
def test_bad_input(model: nn.Module, options: dict[str, Any], error: type[Exception], text: str) -> None:
    with left_as_it_was(model), pytest.raises(error, match=text):
        jacobian_spectrum(model, torch.randn(2, 3, dtype=FLOAT64), **options)


@pytest.mark.parametrize(
    ("function", "error", "text"),
    [
        (lambda m, x: (m.g(x), 1), TypeError, "'part' gives a tuple; choose blocks that give a tensor"),
        (lambda m, x: m.g(x.detach()), ValueError, "no gradient leads from the output of 'part' to its"),
        (lambda m, x: x.detach(), ValueError, "no gradient leads from the output of 'part' to its"),
    ],
    ids=["tuple", "detached inside", "detached"],
)
def test_blocks_that_cannot_be_measured(function: Callable[..., object], error: type[Exception], text: str) -> None:
    model = Apply(lambda m, x: m.part(x), part=block_of(function))
    with left_as_it_was(model), pytest.raises(error, match=text):
        jacobian_spectrum(model, rows(), blocks=[model.part])  # type: ignore[list-item]


def test_blocks_that_carry_no_gradient_or_do_not_run() -> None:
    model = Apply(lambda m, x: m.f(m.i(x.detach().long().double())), f=dense(), g=dense(), i=nn.Identity())
    with pytest.raises(ValueError, match="none of the tensors that 'i' is given carries a gradient: choose later"):
        jacobian_spectrum(model, rows(), blocks=[model.i])  # type: ignore[list-item]
    with pytest.raises(ValueError, match=r"ran without \['g'\]"):
        jacobian_spectrum(model, rows(), blocks=[model.g])  # type: ignore[list-item]
