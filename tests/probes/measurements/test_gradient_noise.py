"""Noise and confusion of gradients: a known covariance, orthogonal and equal batches, other libraries' sums."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

import models
from models import GRADIENT_ONLY, PLAIN, SHORTEST_PATH, STOP_GRADIENT, cifar_resnet
from probes import gate, gradient_noise, limit_paths, record
from tests.support.networks import (
    FLOAT64,
    Apply,
    Raising,
    Residual,
    Tag,
    chain,
    images,
    left_as_it_was,
    linear,
    perceptron,
    squares,
)

QUANTITIES = [
    "norm", "noise", "signal_to_noise", "noise_scale", "confusion", "smallest_cosine", "mean_cosine"
]  # fmt: skip


def numbers(table: pd.DataFrame, block: str | None = None) -> list[float]:
    """All quantities of one block (the first)."""
    chosen = table[table["block"] == (block or table["block"].iloc[0])]
    assert chosen["quantity"].tolist() == QUANTITIES
    return chosen["value"].tolist()


class Shift(nn.Module):
    """x + 0 x + w: a loss <x's row, output> has the gradient c at w, whatever it is."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(width, dtype=FLOAT64))

    def forward(self, x: Tensor) -> Tensor:
        return x + (0 * x + self.w)


def chosen_gradients(model: nn.Module, batch: Tensor) -> Tensor:
    """The mean over the batch of <c, w>: its gradient is the mean of the c."""
    return (model(torch.zeros_like(batch)) * batch).sum(1).mean()


def of(rows: list[list[float]], **options: Any) -> list[float]:
    """Of batches of one example, whose gradients are written down."""
    batches = [torch.tensor([row], dtype=FLOAT64) for row in rows]
    return numbers(gradient_noise(nn.Sequential(Shift(len(rows[0]))), chosen_gradients, batches, **options))


# On paper.


def test_two_gradients() -> None:
    """(3, 0) and (3, 4): mean (3, 2); deviations (0, ±2), tr S = 8; |G|² = 13 - 4 = 9; <g, h> = 9, a cosine of 3/5."""
    assert of([[3, 0], [3, 4]]) == pytest.approx([math.sqrt(13), math.sqrt(8), 9 / 8, 8 / 9, 0, 0.6, 0.6], rel=1e-14)
    assert of([[3, 0], [3, 4]], batch_size=50)[3] == pytest.approx(50 * 8 / 9, rel=1e-14)
    table = gradient_noise(nn.Sequential(Shift(1)), chosen_gradients, torch.ones(2, 1, 1, dtype=FLOAT64))
    assert list(table.columns) == ["block", "depth", "quantity", "value"]
    assert set(zip(table["block"], table["depth"], strict=True)) == {("0#1", 0)}


def test_equal_batches_have_no_noise_and_agree() -> None:
    """Also where thirds round: 0.1 + 0.1 + 0.1 is not 3 * 0.1."""
    assert of([[0.1, 0.7]] * 3) == pytest.approx([math.sqrt(0.5), 0, math.inf, 0, 0, 1, 1], rel=1e-14)


def test_orthogonal_batches_have_no_signal_and_do_not_disagree() -> None:
    """Three unit vectors: mean² 1/3, tr S = (3 - 1) / 2 = 1: an estimate of |G|² of exactly 0, up to rounding."""
    found = of([[1, 0, 0], [0, 1, 0], [0, 0, 1]])
    assert found[:3] == pytest.approx([math.sqrt(1 / 3), 1, 0], rel=1e-14, abs=1e-15)
    assert found[4:] == pytest.approx([0, 0, 0], abs=1e-15)


def test_opposite_batches_are_confused() -> None:
    """(1, 0), (-2, 0), (0, 1): the smallest inner product is -2, a cosine of -1; the mean cosine -1/3."""
    found = of([[1, 0], [-2, 0], [0, 1]])
    assert found[3:] == pytest.approx([math.inf, 2, -1, -1 / 3], rel=1e-14)
    assert found[2] < 0


def test_zeros_and_infinities() -> None:
    assert of([[0.0, 0], [0, 0]]) == pytest.approx([0, 0, *[math.nan] * 2, 0, *[math.nan] * 2], nan_ok=True)
    # One gradient of 0: it has no angle.
    assert of([[0.0, 0], [1, 0], [1, 0]])[5:] == [1, 1]
    assert all(map(math.isnan, of([[math.nan, 0], [1, 0]])))


@pytest.mark.parametrize("power", [-130, 130])
def test_vanished_and_exploded_gradients_only_move_the_scale(power: int) -> None:
    """1e±39: in float32 their squares are 0 and infinite, and the gradients nearly so."""
    model, batches = chain(2).float(), [torch.randn(4, 3) for _ in range(3)]
    before, after = (
        numbers(gradient_noise(model, lambda m, x, f=factor: f * squares(m(x)), batches))
        for factor in (1.0, 2.0 ** (power - 6))
    )
    factors = [2.0 ** (power - 6)] * 2 + [1, 1, 4.0 ** (power - 6), 1, 1]
    if power > 0:  # below, float32's own numbers have lost digits
        assert after == pytest.approx([x * f for x, f in zip(before, factors, strict=True)], rel=1e-12)
    assert after[0] == pytest.approx(before[0] * factors[0], rel=1e-2)
    assert after[4] == pytest.approx(before[4] * factors[4], rel=1e-2)


# Against theory.


def test_a_known_covariance() -> None:
    """Gradients of examples c ~ N(G, diag(s²)): S is diag(s²) / b. With 200 batches and 64 parameters tr S and ``|G|²``
    have errors of 1 to 2 %; whatever the batch size, the noise scale is tr diag(s²) / ``|G|²``."""
    G, s = torch.randn(64, dtype=FLOAT64), torch.linspace(0.5, 3, 64, dtype=FLOAT64)
    trace, square = s.square().sum().item(), G.square().sum().item()
    for size in (2, 8):
        batches = (G + s * torch.randn(200, size, 64, dtype=FLOAT64)).unbind()
        norm, noise, ratio, scale, *_ = numbers(gradient_noise(nn.Sequential(Shift(64)), chosen_gradients, batches))
        assert noise**2 == pytest.approx(trace / size, rel=0.06)
        assert norm**2 == pytest.approx(square, rel=0.06)
        assert ratio == pytest.approx(square / (trace / size), rel=0.08)
        assert scale == pytest.approx(trace / square, rel=0.08)


def test_the_estimate_of_the_signal_has_no_bias() -> None:
    """Of 3 batches: over 400 draws the mean of signal x noise² is |G|² = 1 within four standard errors, while the
    mean's own square is 1 + tr S / 3."""
    found = []
    for draw in torch.randn(400, 3, 1, 4, dtype=FLOAT64) + 0.5:
        norm, noise, ratio, *_ = numbers(gradient_noise(nn.Sequential(Shift(4)), chosen_gradients, [*draw], of="model"))
        found.append((ratio * noise**2, norm**2))
    signal, square = torch.tensor(found, dtype=FLOAT64).unbind(1)
    assert abs(signal.mean() - 1) < 4 * signal.std() / math.sqrt(len(found))
    assert square.mean() > 2


# Against single backwards.


def slow(gradients: Tensor, size: int) -> list[float]:
    """All quantities from the gradients as rows, term by term."""
    n, mean = len(gradients), gradients.mean(0)
    trace = sum((g - mean).square().sum().item() for g in gradients) / (n - 1)
    signal = mean.square().sum().item() - trace / n
    pairs = [(g, h) for i, g in enumerate(gradients) for h in gradients[:i]]
    cosines = [torch.cosine_similarity(g, h, dim=0, eps=0).item() for g, h in pairs]
    confusion = max(0.0, -min((g @ h).item() for g, h in pairs))
    scale = size * trace / signal if signal > 0 else math.inf
    return [
        mean.norm().item(), math.sqrt(trace), signal / trace, scale, confusion, min(cosines), sum(cosines) / len(pairs)
    ]  # fmt: skip


def cross_entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def some_batches(count: int, *, dtype: torch.dtype = FLOAT64) -> list[tuple[Tensor, Tensor]]:
    return [(images(5, dtype=dtype), torch.randint(10, (5,))) for _ in range(count)]


NETWORKS: dict[str, dict[str, Any]] = {
    "residual": {},
    "projection B": {"projection": "B"},
    "plain": {"flow": PLAIN},
    "stop-gradient": {"flow": STOP_GRADIENT},
    "gradient-only": {"flow": GRADIENT_ONLY, "projection": "B"},
    "shortest-path": {"flow": SHORTEST_PATH},
    "pre-activation": {"block": "preactivation"},
    "exclusive gate": {"variant": "exclusive-gate"},
    "norm after sum": {"block": "norm-after-sum"},
}


@pytest.mark.parametrize("options", NETWORKS.values(), ids=NETWORKS)
def test_equals_one_backward_for_each_batch(options: dict[str, Any]) -> None:
    model, batches = cifar_resnet(8, width=2, **options).double(), some_batches(4)
    twin = copy.deepcopy(model)
    found = gradient_noise(model, cross_entropy, batches)
    whole = gradient_noise(model, cross_entropy, batches, of="model")
    assert found["block"].unique().tolist() == ["layer1.0", "layer2.0", "layer3.0"]
    names = [name for name, _ in twin.named_parameters()]
    gradients = [
        torch.autograd.grad(cross_entropy(twin, b), [*twin.parameters()], materialize_grads=True) for b in batches
    ]

    def wanted(belongs: Callable[[str], bool]) -> list[float]:
        rows = [
            torch.cat([g.flatten() for n, g in zip(names, of_all, strict=True) if belongs(n)]) for of_all in gradients
        ]
        return slow(torch.stack(rows), 5)

    for block in found["block"].unique():
        # A normalisation behind the sum stands in neither addend.
        inside = wanted(lambda name, block=block: name.startswith(f"{block}.") and ".activation." not in name)
        assert numbers(found, block) == pytest.approx(inside, rel=1e-9, abs=1e-12)
    assert numbers(whole, "(model)") == pytest.approx(wanted(lambda name: True), rel=1e-9, abs=1e-12)


def test_two_junctions_of_one_module_share_out_its_parameters() -> None:
    """A transformer's layer adds twice: attention and its norm, feedforward and its norm."""
    layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=0, batch_first=True, norm_first=True, dtype=FLOAT64)
    model = nn.Sequential(layer)
    batches = [torch.randn(3, 5, 4, dtype=FLOAT64) for _ in range(3)]
    found = gradient_noise(model, lambda m, x: squares(m(x)), batches)
    gradients = [torch.autograd.grad(squares(model(x)), [*model.parameters()]) for x in batches]
    names = [name for name, _ in model.named_parameters()]
    for block, parts in zip(found["block"].unique(), (("self_attn", "norm1"), ("linear", "norm2")), strict=True):
        rows = [
            torch.cat([g.flatten() for n, g in zip(names, g_all, strict=True) if n[2:].startswith(parts)])
            for g_all in gradients
        ]
        assert numbers(found, block) == pytest.approx(slow(torch.stack(rows), 3), rel=1e-9)


def test_another_modules_output_does_not_bring_its_parameters() -> None:
    """A branch that also reads what blocks beside its fork gave (as cross-attention does) holds its own alone; blocks
    within a branch keep theirs, the rest of the branch on both sides is its own; a shared weight is the first's."""
    shared = linear([[0.5, 0.1], [0.2, -0.3]])

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.encoder = perceptron(2), Residual(perceptron(2))
            self.outer = nn.ModuleDict({"f": perceptron(2), "inner": Residual(perceptron(2)), "shared": shared})
            self.last = Residual(shared)

        def forward(self, x: Tensor) -> Tensor:
            memory = self.encoder(self.stem(x))
            x = x.tanh()
            x = x + self.outer["shared"](self.outer["inner"](self.outer["f"](x))) * memory
            return self.last(x)

    model, batches = Network(), [torch.randn(3, 2, dtype=FLOAT64) for _ in range(3)]
    found = gradient_noise(model, lambda m, x: squares(m(x)), batches)
    names = [name for name, _ in model.named_parameters()]
    gradients = [
        dict(zip(names, torch.autograd.grad(squares(model(x)), [*model.parameters()]), strict=True)) for x in batches
    ]
    for block, starts in (
        ("encoder", ("encoder",)),
        ("outer.inner", ("outer.inner",)),
        ("(model)", ("outer.f", "outer.s")),
    ):
        rows = [torch.cat([g.flatten() for n, g in of_all.items() if n.startswith(starts)]) for of_all in gradients]
        assert numbers(found, block) == pytest.approx(slow(torch.stack(rows), 3), rel=1e-9)
    assert "last" not in found["block"].tolist()


def test_modules_of_a_plain_network() -> None:
    parts = [nn.Sequential(nn.Linear(3, 3), nn.ReLU(inplace=True)) for _ in range(2)]
    model, batches = (
        nn.Sequential(*parts, nn.Linear(3, 2)).double(),
        [torch.randn(4, 3, dtype=FLOAT64) for _ in range(3)],
    )
    found = gradient_noise(model, lambda m, x: squares(m(x)), batches, blocks=parts)
    gradients = [torch.autograd.grad(squares(model(x)), [*parts[1].parameters()]) for x in batches]
    rows = torch.stack([torch.cat([g.flatten() for g in pair]) for pair in gradients])
    assert numbers(found, "1") == pytest.approx(slow(rows, 4), rel=1e-9)


def test_a_gate_counts_as_the_network_of_its_weights() -> None:
    model, batches = cifar_resnet(8, width=2).double(), some_batches(3)
    twin = copy.deepcopy(model)
    models.set_flows(twin, STOP_GRADIENT)
    with gate(model, shortcut_gradient=0.0):
        found = gradient_noise(model, cross_entropy, batches)
    pd.testing.assert_frame_equal(found, gradient_noise(twin, cross_entropy, batches), rtol=1e-9)


# Nothing changes; refusals.


def test_torchvisions_resnet18_is_left_as_it_was() -> None:
    model, batches = torchvision.models.resnet18(num_classes=10), some_batches(2, dtype=torch.float32)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random = torch.get_rng_state()
    with left_as_it_was(model):
        found = gradient_noise(model, cross_entropy, batches)
    assert len(found["block"].unique()) == 8
    assert found["value"].notna().all()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    with torch.no_grad(), record(model):
        pd.testing.assert_frame_equal(gradient_noise(model, cross_entropy, batches), found)


def test_dropouts_masks_are_noise_and_frozen_parameters_do_not_count() -> None:
    model = nn.Sequential(Residual(nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5))), Residual(nn.Linear(3, 3)))
    batch = torch.randn(8, 3)
    found = gradient_noise(model, lambda m, x: squares(m(x)), [batch] * 3)
    assert numbers(found)[1] > 0
    assert numbers(gradient_noise(model.eval(), lambda m, x: squares(m(x)), [batch] * 3))[1] == 0
    model[0].requires_grad_(False)
    assert gradient_noise(model, lambda m, x: squares(m(x)), [batch] * 3)["block"].unique().tolist() == ["1"]


def test_an_error_of_the_model_and_the_graph_leave_nothing_behind() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), Residual(nn.Linear(3, 3)), Raising())
    with left_as_it_was(model), pytest.raises(ZeroDivisionError):
        gradient_noise(model, lambda m, x: squares(m(x)), [torch.randn(4, 3)] * 2)
    model = nn.Sequential(chain(1), tag := Tag(), *chain(2))
    gradient_noise(model, lambda m, x: squares(m(x)), [torch.randn(3, 3, dtype=FLOAT64)] * 2)
    assert tag.newest() is None


def loss(model: nn.Module, batch: Tensor) -> Tensor:
    return squares(model(batch))


X = torch.randn(4, 3, dtype=FLOAT64)
BAD: dict[str, tuple[nn.Module, Any, Any, dict[str, Any], str]] = {
    "of": (chain(1), loss, [X, X], {"of": "layers"}, 'of is \'layers\': give "blocks" or "model"'),
    "batch size": (chain(1), loss, [X, X], {"batch_size": 0}, "batch_size is 0: give a whole number of at least 1"),
    "one": (chain(1), loss, [X], {}, "1 batches; give at least two, of examples drawn independently"),
    "none": (chain(1), loss, [], {}, "0 batches; give at least two"),
    "sizes": (chain(1), loss, [X, X[:2]], {}, "batches of 2, 4 examples; gradients have one.*drop the last"),
    "no tensors": (chain(1), lambda m, b: loss(m, X), [1, 2], {}, "batches without tensors.*or give batch_size"),
    "plain": (perceptron(), loss, [X, X], {}, "gradient_noise: the model ran without a residual junction"),
    "shape": (chain(1), lambda m, x: m(x), [X, X], {}, r"loss gives a tensor of shape \(4, 3\); give a function"),
    "detached": (chain(1), lambda m, x: m(x).sum().detach(), [X, X], {}, "no gradient leads from the loss"),
    "frozen": (chain(1).requires_grad_(False), loss, [X, X], {}, "no parameter requires a gradient"),
}  # fmt: skip


@pytest.mark.parametrize(("model", "function", "batches", "options", "text"), BAD.values(), ids=BAD)
def test_bad_input(model: nn.Module, function: Any, batches: Any, options: dict[str, Any], text: str) -> None:
    with left_as_it_was(model), pytest.raises(ValueError, match=text):
        gradient_noise(model, function, batches, **options)


@pytest.mark.parametrize("of", ["blocks", "model"])
def test_under_limit_paths(of: Any) -> None:
    model = chain(2)
    with (
        limit_paths(model, at_most=1),
        pytest.raises(ValueError, match=r"gradient_noise: under limit_paths.*without it"),
    ):
        gradient_noise(model, loss, [X, X], of=of)


def test_apply_is_not_needed() -> None:
    """The model may be called with anything: keyword arguments, dictionaries."""
    model = nn.Sequential(Apply(lambda m, x: x["a"] + m.f(x["a"]), f=perceptron()))
    found = gradient_noise(model, lambda m, batch: squares(m(batch)), [{"a": X}, {"a": X + 1}])
    assert found["value"].notna().all()
