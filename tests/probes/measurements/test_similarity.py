"""CKA: on paper, invariants, against the definition, what unrelated activations have, and refusals."""

import math
from typing import Any

import pandas as pd
import pytest
import torch
import torchvision
from torch import Tensor, nn

from models import ARMS, cifar_resnet
from probes import Recording, record, similarity
from tests.support.networks import FLOAT64, Residual, chain, images, linear, perceptron


class Fixed(nn.Module):
    """x + (value - x) + 0 w: a junction whose sum is this value."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value, self.w = value, nn.Parameter(torch.zeros((), dtype=value.dtype))

    def forward(self, x: Tensor) -> Tensor:
        return x + (self.value + self.w * x)


def of(*values: Tensor) -> Recording:
    """A recording whose junctions have these sums, (n, ...): the stream is 0, and each branch its value."""
    model = nn.ModuleList(map(Fixed, values))

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = model

        def forward(self, x: Tensor) -> Tensor:
            return sum(block(torch.zeros_like(block.value) + 0 * x).sum() for block in self.blocks)  # type: ignore

    with record(net := Network(), keep=True) as recording:
        net(torch.zeros((), dtype=values[0].dtype))
    assert len(recording.junctions) == len(values)
    return recording


def cka(x: Tensor, y: Tensor, **options: Any) -> float:
    (value,) = similarity(of(x), of(y), **options)["value"]
    return value


def slow(x: Tensor, y: Tensor, *, debiased: bool) -> float:
    """From the definitions: HSIC of centred kernels, or Song et al.'s HSIC_1, term by term."""

    def hsic(k: Tensor, m: Tensor) -> Tensor:
        n = len(k)
        if not debiased:
            H = torch.eye(n, dtype=FLOAT64) - 1 / n
            return (k @ H @ m @ H).trace()
        k, m = k - k.diag().diag(), m - m.diag().diag()
        one = torch.ones(n, dtype=FLOAT64)
        middle = (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
        return (k @ m).trace() + middle - 2 / (n - 2) * (one @ k @ m @ one)

    K, L = x.flatten(1) @ x.flatten(1).T, y.flatten(1) @ y.flatten(1).T
    return (hsic(K, L) / (hsic(K, K) * hsic(L, L)).sqrt()).item()


# On paper.


def test_two_by_hand() -> None:
    """Centred x = (-1, 0, 1) and y = (1, -2, 1): orthogonal, 0; with z = (-1, 0, 1), (1, -2, 1): |x^T z|² = 4, |x^T x|
    = 2, |z^T z| = √(4 + 36), so 4 / (2 √40)."""
    x, y = (torch.tensor(column, dtype=FLOAT64)[:, None] for column in ([-1, 0, 1], [1, -2, 1]))
    z = torch.cat([x, y], 1)
    assert cka(x, y) == pytest.approx(0, abs=1e-15)
    assert cka(x, z) == pytest.approx(2 / math.sqrt(40), rel=1e-14)
    # A mean is no similarity.
    assert cka(x + 5, z - 7) == pytest.approx(2 / math.sqrt(40), rel=1e-13)


def test_the_table() -> None:
    x, y, z = torch.randn(3, 8, 5, dtype=FLOAT64)
    found = similarity(of(x, y), of(z))
    assert list(found.columns) == ["block", "depth", "other_block", "other_depth", "quantity", "value"]
    assert found["quantity"].unique().tolist() == ["cka"]
    assert list(zip(found["block"], found["other_block"], strict=True)) == [
        ("blocks.0#1", "blocks.0#1"), ("blocks.1#1", "blocks.0#1")
    ]  # fmt: skip
    assert found["depth"].tolist() == [0, 1]
    assert found["other_depth"].tolist() == [0, 0]
    assert found["value"].tolist() == pytest.approx([slow(x, z, debiased=False), slow(y, z, debiased=False)], rel=1e-12)


# Invariants.


@pytest.mark.parametrize("debiased", [False, True])
@pytest.mark.parametrize("features", [5, 60])
@pytest.mark.parametrize("gram", [True, False])
def test_rotations_and_scales_change_nothing(
    debiased: bool, features: int, gram: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not gram:
        monkeypatch.setattr("probes.measurements.similarity.GRAM", 0)
    x, y = torch.randn(12, features, dtype=FLOAT64), torch.randn(12, 9, dtype=FLOAT64)
    Q, _ = torch.linalg.qr(torch.randn(features, features, dtype=FLOAT64))
    assert cka(x, 1e3 * x @ Q + 2, debiased=debiased) == pytest.approx(1, rel=1e-11)
    assert cka(x, y, debiased=debiased) == pytest.approx(slow(x, y, debiased=debiased), rel=1e-10, abs=1e-13)
    assert cka(1e-200 * x, 1e200 * y @ torch.eye(9, dtype=FLOAT64), debiased=debiased) == pytest.approx(
        cka(x, y, debiased=debiased), rel=1e-10, abs=1e-13
    )
    # Another linear map is not forgotten.
    stretched = x * torch.linspace(0.1, 3, features, dtype=FLOAT64)
    assert cka(x, stretched, debiased=debiased) < 1 - 1e-4


@pytest.mark.parametrize("arm", ARMS)
def test_a_network_with_itself(arm: str) -> None:
    model, x = cifar_resnet(14, width=2, flow=ARMS[arm]).double(), images(10)
    with record(model, keep=True) as recording:
        model(x)
    found = similarity(recording, recording).pivot(index="depth", columns="other_depth", values="value")
    matrix = torch.tensor(found.to_numpy(), dtype=FLOAT64)
    assert matrix.diagonal().tolist() == pytest.approx([1] * 6, rel=1e-12)
    assert torch.allclose(matrix, matrix.T, rtol=1e-12)
    assert matrix.min() > 0
    for i, a in enumerate(recording.junctions):
        for j, b in enumerate(recording.junctions):
            wanted = slow((a.shortcut + a.branch).detach(), (b.shortcut + b.branch).detach(), debiased=False)
            assert matrix[i, j] == pytest.approx(wanted, rel=1e-9)
    for value in ("branch", "shortcut"):
        of_value = similarity(recording, recording, of=value)  # type: ignore[arg-type]
        a, b = (getattr(recording.junctions[i], value).detach() for i in (1, 4))
        one = of_value[(of_value["depth"] == 1) & (of_value["other_depth"] == 4)]["value"].item()
        wanted = slow(a, b, debiased=False)
        assert one == pytest.approx(wanted, rel=1e-9, nan_ok=True)


# What unrelated activations have.


def test_the_plain_form_is_high_for_unrelated_activations_and_the_debiased_one_is_not() -> None:
    """Of 20 rows of 50 and 100 Gaussian features: independent Wishart matrices have a mean cosine of about
    1 / √((1 + n/p) (1 + n/q)); the debiased one is 0 within four standard errors of 50 draws."""
    plain, debiased = [], []
    for _ in range(50):
        x, y = torch.randn(20, 50, dtype=FLOAT64), torch.randn(20, 100, dtype=FLOAT64)
        plain.append(cka(x, y))
        debiased.append(cka(x, y, debiased=True))
    wanted = 1 / math.sqrt((1 + 20 / 50) * (1 + 20 / 100))
    assert sum(plain) / 50 == pytest.approx(wanted, rel=0.03)
    values = torch.tensor(debiased)
    assert abs(values.mean()) < 4 * values.std() / math.sqrt(50)
    assert values.min() < 0


def test_constant_and_infinite_activations_are_nan() -> None:
    x = torch.randn(6, 4)
    # A rounding off a constant is noise, which would have a similarity.
    for constant in (torch.ones(6, 4), torch.ones(6, 4) * (1 + 1e-7 * torch.randn(6, 4)), torch.zeros(6, 4)):
        assert math.isnan(cka(x, constant))
    assert math.isnan(cka(x, torch.full((6, 4), math.inf)))
    assert math.isnan(cka(x, torch.full((6, 4), math.nan)))


def test_tokens_as_rows() -> None:
    """(N, T, D) has N T rows of D features; (N, C, H, W) N H W of C."""
    x, y = torch.randn(3, 4, 5, dtype=FLOAT64), torch.randn(3, 6, 2, 2, dtype=FLOAT64)
    wanted = slow(x.reshape(12, 5), y.permute(0, 2, 3, 1).reshape(12, 6), debiased=True)
    assert cka(x, y, per="token", debiased=True) == pytest.approx(wanted, rel=1e-11)
    assert cka(x, y) == pytest.approx(slow(x, y, debiased=False), rel=1e-11)


# Other models; refusals.


def test_torchvisions_resnet18_beside_one_of_ours() -> None:
    x = images(6, 32, dtype=torch.float32)
    model, ours = torchvision.models.resnet18(num_classes=3), cifar_resnet(8, width=4)
    with record(model, keep=True) as a:
        model(x)
    with record(ours, keep=True) as b:
        ours(x).sum().backward()
    found = similarity(a, b)
    assert len(found) == 8 * 3
    assert found["value"].between(0, 1).all()
    pd.testing.assert_frame_equal(similarity(a, b), found)


def kept(model: nn.Module, x: Tensor, **options: Any) -> Recording:
    with record(model, **options) as recording:
        model(x)
    return recording


def test_bad_input() -> None:
    x = torch.randn(5, 3, dtype=FLOAT64)
    a, b = kept(chain(2), x, keep=True), kept(chain(1), x[:4], keep=True)
    with pytest.raises(ValueError, match=r"similarity needs the tensors themselves.*: record\(model, keep=True\)"):
        similarity(a, kept(chain(1), x))
    with pytest.raises(ValueError, match="activations have 4 and 5 rows; give recordings of the same inputs"):
        similarity(a, b)
    few = kept(chain(1), x[:3], keep=True)
    with pytest.raises(ValueError, match="have 3 rows; give recordings of the same inputs, at least 4"):
        similarity(few, few, debiased=True)
    with pytest.raises(ValueError, match="of is 'values': give 'sum' or 'branch' or 'shortcut'"):
        similarity(a, a, of="values")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="per is 'row': give 'example' or 'token'"):
        similarity(a, a, per="row")  # type: ignore[arg-type]
    plain = perceptron()
    with pytest.raises(ValueError, match="no residual junctions"):
        similarity(a, kept(plain, x, keep=True, blocks=[plain[0]]))


def test_what_was_added_counts() -> None:
    """x + 2x: the sum has the similarity of x; and a mean over the batch aside, a rotation of it too."""
    x = torch.randn(6, 2, dtype=FLOAT64)
    recording = kept(nn.Sequential(Residual(linear([[2.0, 0], [0, 2]]))), x, keep=True)
    assert similarity(recording, of(x), of="sum")["value"].item() == pytest.approx(1, rel=1e-13)
