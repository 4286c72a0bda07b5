"""`iterative_inference` where a branch is a step of gradient descent, and against plain cosines."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from models import ARMS, cifar_resnet
from probes import iterative_inference, record
from tests.support.networks import (
    FLOAT64,
    Residual,
    chain,
    images,
    left_as_it_was,
    linear,
    one,
    recorded,
    scalars,
    values,
)


class Descent(nn.Module):
    """A branch that is a step against the gradient of ½ |h - target|², the same for every example."""

    def __init__(self, rate: float, size: int) -> None:
        super().__init__()
        self.layer = nn.Linear(size, size, dtype=FLOAT64)
        self.layer.weight.data = -rate * torch.eye(size, dtype=FLOAT64)
        self.layer.bias.data = rate * torch.arange(size, dtype=FLOAT64)

    def forward(self, h: Tensor) -> Tensor:
        return self.layer(h)


def distance(h: Tensor) -> Tensor:
    return 0.5 * (h - torch.arange(h.shape[-1], dtype=h.dtype)).square().sum()


@pytest.mark.parametrize(("rate", "cosine"), [(0.1, 1), (-0.1, -1)])
def test_steps_of_gradient_descent_have_cosine_1(rate: float, cosine: float) -> None:
    """F = -η ∂L/∂h: each block divides the distance by the same number, so gradients at all forks are parallel."""
    model = nn.Sequential(*(Residual(Descent(rate, 4)) for _ in range(5)))
    recording = recorded(model, torch.randn(6, 4, dtype=FLOAT64), distance, keep=True)
    table = iterative_inference(recording)
    assert list(table.columns) == ["block", "depth", "quantity", "value"]
    assert table["block"].tolist() == list("01234")
    assert table["depth"].tolist() == list(range(5))
    assert table["quantity"].tolist() == ["cosine"] * 5
    assert table["value"].tolist() == pytest.approx([cosine] * 5, rel=1e-13)


def test_an_angle_as_on_paper() -> None:
    """F(h) = (-4, 3) of h = (3, 4); the loss is (1, 2) · (h + F(h)), whose gradient at h is (1 + 2, 2 - 1) = (3, 1):
    cosine -(-12 + 3) / (5 √10)."""
    model = Residual(linear([[0.0, -1.0], [1.0, 0.0]]))
    x = torch.tensor([[3.0, 4.0]], dtype=FLOAT64)
    recording = recorded(model, x, lambda y: (y * torch.tensor([1.0, 2.0])).sum(), keep=True)
    assert values(iterative_inference(recording), "cosine") == pytest.approx([9 / (5 * math.sqrt(10))], rel=1e-14)


@pytest.mark.parametrize("arm", ARMS)
def test_against_plain_cosines(arm: str) -> None:
    """Of the batch and of each example; none where a stage begins, whose fork has another shape."""
    recording = recorded(cifar_resnet(14, flow=ARMS[arm], width=4).double(), images(), distance, keep=True)
    whole, by_example = iterative_inference(recording), iterative_inference(recording, per="example")
    for site in recording.junctions:
        got = whole[whole["depth"] == site.depth]["value"].tolist()
        each = by_example[by_example["depth"] == site.depth]["value"].tolist()
        if site.name in ("layer2.0", "layer3.0"):
            assert all(map(math.isnan, got + each))
            assert len(each) == 4
            continue
        gradient = -recording.gradient(site, "total")
        wanted = torch.cosine_similarity(site.branch.flatten(), gradient.flatten(), dim=0).item()
        assert got == pytest.approx([wanted], rel=1e-12)
        assert each == pytest.approx(
            torch.cosine_similarity(site.branch.flatten(1), gradient.flatten(1)).tolist(), rel=1e-12
        )


def test_tokens_and_vanished_gradients() -> None:
    model, x = chain(2), torch.randn(2, 4, 3, dtype=FLOAT64)
    tables = []
    for scale in (1.0, 1e-200):
        recording = recorded(model, x, lambda y, scale=scale: scale * distance(y), keep=True)
        tables.append(iterative_inference(recording, per="token")["value"].tolist())
    assert len(tables[0]) == 2 * 2 * 4
    assert tables[1] == pytest.approx(tables[0], rel=1e-12)


def test_a_branch_of_zero_has_no_angle() -> None:
    (value,) = values(iterative_inference(recorded(scalars(0.0), one(), keep=True)), "cosine")
    assert math.isnan(value)


def test_errors_say_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"iterative_inference needs the tensors.*record\(model, keep=True\)"):
        iterative_inference(recorded(scalars(), one()))
    with record(model := scalars(), keep=True) as recording:
        model(one())
    with pytest.raises(ValueError, match=r"no gradient reached '0': .*run the backward"):
        iterative_inference(recording)
    wrong: Any = "head"
    with pytest.raises(ValueError, match="iterative_inference: per is 'head'"):
        iterative_inference(recording, per=wrong)


def test_measuring_changes_nothing() -> None:
    model = chain(2)
    recording = recorded(model, torch.randn(2, 3, dtype=FLOAT64), keep=True)
    before = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    with left_as_it_was(model):
        iterative_inference(recording)
    assert all(torch.equal(a, p.grad) for a, p in zip(before, model.parameters(), strict=True) if p.grad is not None)


# A published fact.


def trained_on_digits(seed: int) -> tuple[nn.Module, Tensor, Tensor]:
    """A network of 20 layers after 300 steps, in eval mode and float64, and the held-out images and labels."""
    torch.manual_seed(seed)
    digits: Any = load_digits()
    x = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 8 - 1
    y = torch.tensor(digits.target)
    held_out, fitted = torch.randperm(len(x)).split([297, len(x) - 297])
    model = cifar_resnet(20, width=8, in_channels=1)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 300)
    for _ in range(300):
        batch = fitted[torch.randint(len(fitted), (128,))]
        optimiser.zero_grad()
        F.cross_entropy(model(x[batch]), y[batch]).backward()
        optimiser.step()
        schedule.step()
    return model.eval().double(), x[held_out].double(), y[held_out]


@pytest.mark.slow
def test_late_blocks_of_a_trained_network_move_along_the_descent_direction_more_than_early_ones() -> None:
    """Jastrzębski et al. (2018, arXiv:1710.04773). Fixed before the first run: ResNet-20 of width 8 on digits, 1,500
    images for 300 steps, three seeds; the cosine of each of the 297 held-out images, averaged over images, then over
    the blocks of a stage that have one (those with an identity shortcut). In every seed the last stage's mean is to be
    positive, and to lie above the first stage's by 0.02 at least; the network is to have learned (90 % right)."""
    found = []
    for seed in range(3):
        model, x, y = trained_on_digits(seed)
        with record(model, keep=True) as recording:
            output = model(x)
            F.cross_entropy(output, y).backward()
        table = iterative_inference(recording, per="example")
        stage = table["block"].str.split(".").str[0]
        by_block = table.groupby([stage.rename("stage"), "block"])["value"].mean().dropna()
        means = by_block.groupby("stage").mean()
        found.append((means["layer1"], means["layer3"], (output.argmax(1) == y).double().mean().item()))
    assert all(right > 0.9 for _, _, right in found), found
    assert all(late > 0 and late - early > 0.02 for early, late, _ in found), found
