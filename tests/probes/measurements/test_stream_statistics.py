"""`stream_statistics` on matrices of known rank and angle, against plain formulas, and on two published facts."""

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from models import PLAIN, RESIDUAL, Flow, ResidualBlock, cifar_resnet
from probes import record, stream_statistics
from tests.support.networks import (
    FLOAT64,
    Residual,
    chain,
    images,
    left_as_it_was,
    linear,
    perceptron,
    recorded,
    rows,
    scalars,
    values,
)

QUANTITIES = ["rms", "variance_ratio", "effective_rank", "stable_rank", "cosine"]


def of(model: nn.Module, x: Tensor, **options: Any) -> pd.DataFrame:
    with record(model, keep=True) as recording:
        model(x)
    return stream_statistics(recording, **options)


def first(x: Tensor, **options: Any) -> dict[str, float]:
    """The statistics of a stream that is x, one value a quantity."""
    table = of(Residual(nn.Linear(x.shape[-1], x.shape[-1], dtype=FLOAT64)), x, **options)
    return dict(zip(table["quantity"], table["value"], strict=True))


def test_a_stream_of_two_vectors_as_on_paper() -> None:
    """x = (3, 4), (-4, 3) at a right angle: both singular values 5; the variance of 3, 4, -4, 3 is 12.5 - 1.5²; the
    branch doubles the first column, and gives 0 for the second: 6, 0, -8, 0 with a variance of 25 - 0.5²."""
    x = torch.tensor([[3.0, 4.0], [-4.0, 3.0]], dtype=FLOAT64)
    table = of(Residual(linear([[2.0, 0.0], [0.0, 0.0]])), x)
    assert list(table.columns) == ["block", "depth", "quantity", "value"]
    assert table["block"].tolist() == ["(model)"] * 5
    assert table["depth"].tolist() == [0] * 5
    assert table["quantity"].tolist() == QUANTITIES
    wanted = [math.sqrt(12.5), (25 - 0.25) / (12.5 - 2.25), 2, 2, 0]
    assert table["value"].tolist() == pytest.approx(wanted, rel=1e-14, abs=1e-15)


def test_unequal_singular_values_as_on_paper() -> None:
    """Of diag(3, 1): shares 3/4 and 1/4, entropy ln 4 - 3/4 ln 3; (9 + 1) / 9."""
    found = first(torch.diag(torch.tensor([3.0, 1.0], dtype=FLOAT64)))
    assert found["effective_rank"] == pytest.approx(4 / 3**0.75, rel=1e-14)
    assert found["stable_rank"] == pytest.approx(10 / 9, rel=1e-14)


@pytest.mark.parametrize("shape", [(40, 8), (8, 40)], ids=["tall", "wide"])
@pytest.mark.parametrize("rank", [1, 3, 8])
def test_equal_singular_values_have_the_rank_as_both_ranks(shape: tuple[int, int], rank: int) -> None:
    """Singular values that are 0 on paper are about 1e-16 of the largest, and 40 of them weigh 40 x 1e-16 x 37."""
    left, right = (torch.linalg.qr(torch.randn(n, rank, dtype=FLOAT64)).Q for n in shape)
    found = first(left @ right.T)
    assert found["effective_rank"] == pytest.approx(rank, rel=1e-12)
    assert found["stable_rank"] == pytest.approx(rank, rel=1e-12)


@pytest.mark.parametrize("scale", [1e-200, 1.0, 1e200])
def test_against_plain_formulas_at_every_scale(scale: float) -> None:
    x = torch.randn(3, 6, 4, dtype=FLOAT64)
    model = Residual(nn.Linear(4, 4, bias=False, dtype=FLOAT64))
    branch = model.branch(x).detach()
    flat = x.reshape(-1, 4)
    sigma = torch.linalg.svdvals(flat)
    p = sigma / sigma.sum()
    cosines = [
        float(torch.cosine_similarity(sequence[i], sequence[j], dim=0))
        for sequence in x
        for i in range(6)
        for j in range(6)
        if i != j
    ]
    wanted = [
        x.square().mean().sqrt().item() * scale,
        (branch.var() / x.var()).item(),
        math.exp(-(p * p.log()).sum().item()),
        (sigma.square().sum() / sigma[0] ** 2).item(),
        np.mean(cosines),
    ]
    assert of(model, x * scale)["value"].tolist() == pytest.approx(wanted, rel=1e-12)


def test_images_have_a_row_for_each_position() -> None:
    """(N, C, H, W) is N H W rows of C features, and cosines are between positions of one image."""
    model = cifar_resnet(8, width=4).double()
    x = images(3)
    forks: list[Tensor] = []
    for block in (model.layer1[0], model.layer2[0], model.layer3[0]):
        block.register_forward_pre_hook(lambda _, args: forks.append(args[0].detach().clone()))
    table = of(model, x)
    assert len(forks) == 3
    for name, depth in (("layer1.0", 0), ("layer2.0", 1), ("layer3.0", 2)):
        fork = forks[depth]
        got = table[table["block"] == name].set_index("quantity")["value"]
        sequences = fork.movedim(1, -1).flatten(1, 2)
        sigma = torch.linalg.svdvals(sequences.flatten(0, 1))
        pairs = []
        for sequence in sequences:
            sequence = sequence[sequence.norm(dim=1) > 0]  # behind a ReLU
            units = sequence / sequence.norm(dim=1, keepdim=True)
            gram = units @ units.T
            pairs.append((gram.sum() - gram.trace()) / (len(gram) * (len(gram) - 1)))
        assert got["rms"] == pytest.approx(fork.square().mean().sqrt().item(), rel=1e-13)
        assert got["stable_rank"] == pytest.approx((sigma.square().sum() / sigma[0] ** 2).item(), rel=1e-12)
        assert got["cosine"] == pytest.approx(torch.stack(pairs).mean().item(), rel=1e-12)


def test_the_last_dimension_may_hold_the_features_of_images() -> None:
    x = torch.randn(2, 3, 3, 5, dtype=FLOAT64)
    last, flat = first(x, features=-1), first(x.reshape(2, 9, 5))
    for name in ("rms", "effective_rank", "stable_rank", "cosine"):
        assert last[name] == pytest.approx(flat[name], rel=1e-12)
    assert first(x)["effective_rank"] <= 3


def test_statistics_of_each_example_and_of_each_token() -> None:
    x = torch.randn(3, 6, 4, dtype=FLOAT64)
    model = Residual(nn.Linear(4, 4, dtype=FLOAT64))
    whole = of(model, x)
    by_example, by_token = of(model, x, per="example"), of(model, x, per="token")
    assert list(by_token.columns) == ["block", "depth", "example", "token", "quantity", "value"]
    for n in range(3):
        alone = of(model, x[n : n + 1])
        mine = by_example[by_example["example"] == n]
        assert mine["quantity"].tolist() == QUANTITIES
        assert mine["value"].tolist() == pytest.approx(alone["value"].tolist(), rel=1e-12)
    assert set(by_token["quantity"]) == {"rms", "variance_ratio", "cosine"}
    for table in (by_example, by_token):  # means over equal parts
        assert np.mean(values(table, "cosine")) == pytest.approx(values(whole, "cosine")[0], rel=1e-12)
        assert np.mean(np.square(values(table, "rms"))) == pytest.approx(values(whole, "rms")[0] ** 2, rel=1e-12)


def test_vectors_are_compared_with_each_other() -> None:
    x = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 2.0], [0.0, 0.0]], dtype=FLOAT64)
    model = Residual(nn.Linear(2, 2, dtype=FLOAT64))
    assert values(of(model, x), "cosine") == pytest.approx([1 / 3], rel=1e-14)
    by_example = values(of(model, x, per="example"), "cosine")
    assert by_example == pytest.approx([0.5, 0.5, 0, math.nan], nan_ok=True)


@pytest.mark.parametrize("projection", ["A", "B", "C"])
@pytest.mark.parametrize("flow", [RESIDUAL, PLAIN, Flow(0.5, 2)], ids=str)
def test_forks_are_those_of_every_arm_and_projection(flow: Flow, projection: Any) -> None:
    model = cifar_resnet(14, flow=flow, width=4, projection=projection).double()
    wanted: list[float] = []
    for name, module in model.named_modules():
        if name.count(".") == 1 and name.startswith("layer"):
            module.register_forward_pre_hook(lambda _, args: wanted.append(args[0].square().mean().sqrt().item()))
    table = of(model, images())
    assert values(table, "rms") == pytest.approx(wanted, rel=1e-13)
    ratios = values(table, "variance_ratio")
    assert all(map(math.isnan, ratios)) if flow.shortcut == 0 else all(ratio > 0 for ratio in ratios)


def test_a_network_without_junctions_has_the_statistics_of_its_blocks_inputs() -> None:
    model, x = perceptron(4), rows()
    table = stream_statistics(recorded(model, x, blocks=[model[0], model[2]], keep=True))
    assert table["quantity"].tolist() == [q for q in QUANTITIES if q != "variance_ratio"] * 2
    hidden = model[1](model[0](x)).detach()
    assert values(table, "rms") == pytest.approx([t.square().mean().sqrt().item() for t in (x, hidden)], rel=1e-13)


def test_a_stream_of_zeros_has_no_rank() -> None:
    found = first(torch.zeros(3, 2, dtype=FLOAT64))
    assert found.pop("rms") == 0
    assert all(map(math.isnan, found.values()))


def test_a_stream_that_is_not_finite_has_no_rank() -> None:
    found = first(torch.tensor([[1.0, math.inf], [2.0, 3.0]], dtype=FLOAT64))
    assert found["rms"] == math.inf
    assert math.isnan(found["effective_rank"])


def test_errors_say_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"stream_statistics needs the tensors.*record\(model, keep=True\)"):
        stream_statistics(recorded(scalars(), torch.ones(1, 1, dtype=FLOAT64)))
    recording = recorded(chain(1), torch.randn(2, 3, dtype=FLOAT64), keep=True)
    with pytest.raises(ValueError, match=r"stream_statistics: per is 'image': give"):
        stream_statistics(recording, per="image")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"per=\"token\" needs tensors \(N, T, D\), and '0' has \(2, 3\)"):
        stream_statistics(recording, per="token")
    for wrong, behind in ((4, ""), (0, " behind the first"), (-2, " behind the first")):
        text = rf"features is {wrong}, and the stream is \(2, 3\): give one of its dimensions{behind}"
        with pytest.raises(ValueError, match=text):
            stream_statistics(recording, features=wrong)


def test_measuring_changes_nothing() -> None:
    model, x = chain(2), torch.randn(2, 3, dtype=FLOAT64)
    with record(model, keep=True) as recording:
        model(x)
    state = torch.get_rng_state()
    with left_as_it_was(model):
        stream_statistics(recording)
    assert torch.equal(torch.get_rng_state(), state)
    pd.testing.assert_frame_equal(stream_statistics(recording), stream_statistics(recording))


# --- published facts, with tolerances that were fixed before the first run ---


class Normalised(nn.Sequential):
    """A branch whose output has the variance 1 at initialisation: BatchNorm, ReLU, and He et al.'s weights."""

    def __init__(self, width: int) -> None:
        layer = nn.Linear(width, width, bias=False)
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        super().__init__(nn.BatchNorm1d(width), nn.ReLU(), layer)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_branch_s_share_of_the_variance_is_one_over_the_depth(seed: int) -> None:
    """De and Smith (2020, arXiv:2002.10444): at the l-th junction 1 / l. 32 blocks of width 512, 256 examples of
    standard normal features; slope -1 ± 0.1 of log ratio against log l, and ratio 1 ± 0.1 at l = 1."""
    torch.manual_seed(seed)
    model = nn.Sequential(*(Residual(Normalised(512)) for _ in range(32)))
    ratios = values(of(model, torch.randn(256, 512)), "variance_ratio")
    slope = np.polyfit(np.log(np.arange(1, 33)), np.log(ratios), 1)[0]
    assert slope == pytest.approx(-1, abs=0.1)
    assert ratios[0] == pytest.approx(1, abs=0.1)


class Attention(nn.Module):
    """Softmax self-attention of one head."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(width, width, bias=False, dtype=FLOAT64) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        scores = self.query(x) @ self.key(x).transpose(1, 2) / math.sqrt(x.shape[-1])
        return scores.softmax(-1) @ self.value(x)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("flow", [PLAIN, RESIDUAL], ids=["without shortcuts", "with shortcuts"])
def test_attention_without_shortcuts_loses_its_rank(flow: Flow, seed: int) -> None:
    """Dong et al. (2021, arXiv:2103.03404): tokens become equal, faster than exponentially, and shortcuts prevent it.
    6 layers, 4 sequences of 16 tokens of width 32: at the last layer, every sequence has a stable rank below 1.001 and
    a mean cosine above 0.999; with shortcuts above 1.5 and below 0.9."""
    torch.manual_seed(seed)
    blocks = [ResidualBlock(Attention(32), activation=nn.Identity(), flow=flow) for _ in range(6)]
    table = of(nn.Sequential(*blocks), torch.randn(4, 16, 32, dtype=FLOAT64), per="example")
    last = table[table["depth"] == 5]
    ranks, cosines = values(last, "stable_rank"), values(last, "cosine")
    if flow == PLAIN:
        assert max(ranks) < 1.001
        assert min(cosines) > 0.999
    else:
        assert min(ranks) > 1.5
        assert max(cosines) < 0.9
