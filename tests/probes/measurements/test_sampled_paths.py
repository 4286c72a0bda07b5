"""Single paths against every path taken by gates, a chain on paper, and networks that have one path."""

import math
from collections.abc import Iterable
from itertools import combinations

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from models import ARMS, CifarResNet, cifar_resnet
from probes import find_junctions, gate, path_contributions, path_gradients, sample_paths
from tests.support.networks import (
    FLOAT64,
    block_of,
    chain,
    images,
    one,
    perceptron,
    recorded,
    relative_error,
    rows,
    scalars,
    squares,
    values,
)

# Float64 rounds at 1e-16 an operation; one path more or less changes a mean by more than 1e-3.
CLOSE = 1e-12


def small(arm: str = "residual", depth: int = 20) -> CifarResNet:
    torch.manual_seed(1)
    return cifar_resnet(depth, flow=ARMS[arm], width=4, projection="B").double()


def one_path(model: nn.Module, x: Tensor, branches: Iterable[str], names: list[str], entry: str) -> Tensor:
    """The gradient at a module's input along one path, chosen by gates and taken by autograd."""
    chosen, at_entry = set(branches), []
    handle = model.get_submodule(entry).register_forward_pre_hook(lambda _, args: at_entry.append(args[0]))
    shortcut, branch = ({name: float((name in chosen) == taken) for name in names} for taken in (False, True))
    with gate(model, shortcut_gradient=shortcut, branch_gradient=branch):
        loss = model(x).square().sum()
        (gradient,) = torch.autograd.grad(loss, at_entry)
    handle.remove()
    return gradient


def brute_force(model: nn.Module, x: Tensor, *, entry: str) -> list[list[Tensor]]:
    """Every path's gradient, by length."""
    names = [junction.name for junction in find_junctions(model, x)]
    return [
        [one_path(model, x, branches, names, entry) for branches in combinations(names, length)]
        for length in range(len(names) + 1)
    ]


def leaky(depth: int) -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(3, 3, dtype=FLOAT64), *chain(depth))


def test_on_paper() -> None:
    """Blocks x + 2x, x + 3x, x + 5x: the paths of length 1 have slopes 2, 3, 5, those of length 2 have 6, 10, 15."""
    recording = recorded(scalars(), one())
    table = sample_paths(recording, samples=None)
    assert list(table.columns) == ["path_length", "quantity", "value"]
    assert values(table, "path_norm") == pytest.approx([1, 10 / 3, 31 / 3, 30], rel=1e-15)
    assert values(table, "path_norm_low") == values(table, "path_norm") == values(table, "path_norm_high")
    assert values(table, "mass") == pytest.approx([1, 10, 31, 30], rel=1e-15)
    assert values(table, "samples") == [1, 3, 3, 1]


@pytest.mark.parametrize(("model", "entry"), [(leaky(1), "1"), (leaky(6), "1"), (small(depth=14), "layer1.0")])
def test_all_paths_are_the_paths_that_gates_leave_open(model: nn.Module, entry: str) -> None:
    """2, 64 and 64 backwards of a gated network, projections included."""
    x = torch.randn(4, 3, dtype=FLOAT64) if entry == "1" else images()
    wanted = brute_force(model, x, entry=entry)
    recording = recorded(model, x, squares)
    table = sample_paths(recording, samples=None)
    means = [math.fsum(g.norm().item() for g in paths) / len(paths) for paths in wanted]
    assert values(table, "path_norm") == pytest.approx(means, rel=CLOSE)
    masses = [mean * len(paths) for mean, paths in zip(means, wanted, strict=True)]
    assert values(table, "mass") == pytest.approx(masses, rel=CLOSE)
    for summed, paths in zip(path_gradients(recording), wanted, strict=True):
        assert relative_error(summed, torch.stack(paths).sum(0)) < CLOSE


def test_the_sampled_mean_is_the_mean_of_all_paths() -> None:
    """8 blocks, 20 samples of up to 70 paths: within four standard errors, at each of five seeds."""
    recording = recorded(leaky(8), torch.randn(4, 3, dtype=FLOAT64), squares)
    wanted = values(sample_paths(recording, samples=None), "path_norm")
    for seed in range(5):
        table = sample_paths(recording, samples=20, seed=seed)
        mean, high = values(table, "path_norm"), values(table, "path_norm_high")
        assert values(table, "samples") == [1, 8, 20, 20, 20, 20, 20, 8, 1]
        for k in range(9):
            error = (high[k] - mean[k]) / 1.96
            assert (error > 0) == (k in range(2, 7))
            assert abs(mean[k] - wanted[k]) <= 4 * error + CLOSE * wanted[k]


def test_intervals_hold_the_mean_about_as_often_as_they_say() -> None:
    """Forty seeds at three lengths: 95 % of 120 are 114, less some for a normal interval of 30 skewed values."""
    recording = recorded(leaky(8), torch.randn(4, 3, dtype=FLOAT64), squares)
    wanted = values(sample_paths(recording, lengths=[3, 4, 5], samples=None), "path_norm")
    held = 0
    for seed in range(40):
        table = sample_paths(recording, lengths=[3, 4, 5], samples=30, seed=seed)
        ends = zip(values(table, "path_norm_low"), wanted, values(table, "path_norm_high"), strict=True)
        held += sum(low <= mean <= high for low, mean, high in ends)
    assert held >= 102  # 85 % of 120


def test_intervals_of_two_samples_on_paper() -> None:
    """Two of the paths of slopes 2, 3, 5: their mean says which, and the standard error is half their difference."""
    recording = recorded(scalars(), one())
    found = set()
    for seed in range(8):
        table = sample_paths(recording, lengths=[1], samples=2, seed=seed)
        low, mean, high = (values(table, f"path_norm{end}")[0] for end in ("_low", "", "_high"))
        error = {2.5: 0.5, 3.5: 1.5, 4.0: 1.0}.get(mean, 0.0)
        assert (low, high) == pytest.approx((mean - 1.96 * error, mean + 1.96 * error))
        found.add(error)
    assert len(found) > 1


def test_the_same_seed_takes_the_same_paths() -> None:
    recording = recorded(small(), images(), squares)
    one, same, other = (sample_paths(recording, lengths=[4], samples=5, seed=seed) for seed in (3, 3, 4))
    pd.testing.assert_frame_equal(one, same)
    assert values(one, "path_norm") != values(other, "path_norm")


def test_one_sample_has_no_interval() -> None:
    table = sample_paths(recorded(leaky(4), torch.randn(4, 3, dtype=FLOAT64), squares), lengths=[2, 4], samples=1)
    assert math.isnan(values(table, "path_norm_low")[0])
    assert values(table, "path_norm_low")[1] == values(table, "path_norm_high")[1]  # the only path of its length


@pytest.mark.parametrize(("arm", "only"), [("stop-gradient", 9), ("plain", 9), ("shortest-path", 0)])
def test_networks_of_a_single_path(arm: str, only: int) -> None:
    """All samples of the other lengths are zero, and the only path's norm is that of the exact spectrum."""
    recording = recorded(small(arm), images(), squares)
    exact = values(path_contributions(recording), "norm")
    table = sample_paths(recording, samples=3)
    assert [k for k, mass in enumerate(values(table, "mass")) if mass] == [only]
    assert values(table, "mass")[only] == pytest.approx(exact[only], rel=CLOSE)


@pytest.mark.parametrize("model", [leaky(5), small(depth=14)])
def test_cancellation_is_at_most_1(model: nn.Module) -> None:
    x = torch.randn(4, 3, dtype=FLOAT64) if isinstance(model, nn.Sequential) else images()
    recording = recorded(model, x, squares)
    norms = values(path_contributions(recording), "norm")
    masses = values(sample_paths(recording, samples=None), "mass")
    ratios = [norm / mass for norm, mass in zip(norms, masses, strict=True)]
    assert max(ratios) <= 1 + CLOSE
    assert ratios[0] == pytest.approx(1, rel=CLOSE)  # one path cancels nothing
    assert ratios[-1] == pytest.approx(1, rel=CLOSE)
    assert min(ratios) < 0.99
    # As many samples as the widest length has paths: the sampled cancellation is exact too.
    widest = math.comb(len(norms) - 1, (len(norms) - 1) // 2)
    assert values(path_contributions(recording, samples=widest), "cancellation") == pytest.approx(ratios, rel=CLOSE)


def test_paths_that_agree_do_not_cancel_and_opposite_ones_do() -> None:
    """(1 + 2t)(1 + 3t) has 5t of 2 and 3; (1 + 2t)(1 - 2t) has 0t of 2 and -2; without a gradient there is no ratio."""
    for weights, scale, wanted in (
        ((2.0, 3.0), 1, [1, 1, 1]),
        ((2.0, -2.0), 1, [1, 0, 1]),
        ((2.0, 3.0), 0, [math.nan] * 3),
    ):
        recording = recorded(scalars(*weights), one(), lambda y, scale=scale: scale * y.sum())
        found = values(path_contributions(recording, samples=10), "cancellation")
        assert found == pytest.approx(wanted, nan_ok=True)


def test_sampling_leaves_gradients_and_random_state_as_they_were() -> None:
    model = small()
    recording = recorded(model, images(), squares)
    before, state = [p.grad.clone() for p in model.parameters() if p.grad is not None], torch.get_rng_state()
    sample_paths(recording, samples=2)
    after = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (leaky(3), {"lengths": [0, 4]}, r"lengths \[4\] are none: give some of 0 to 3, the junctions"),
        (leaky(3), {"lengths": [-1]}, r"lengths \[-1\] are none: give some of 0 to 3"),
        (leaky(3), {"lengths": []}, "give some of 0 to 3"),
        (leaky(3), {"samples": 0}, "samples is 0; give at least 1, or None for all paths"),
        (leaky(20), {"samples": None}, r"20 junctions have 184,756 paths of length 10, too many .*at most 100,000"),
        (perceptron(), {}, r"nothing was recorded: .* record\(model, blocks="),
    ],
)
def test_errors_say_what_to_do(model: nn.Module, options: dict[str, object], message: str) -> None:
    recording = recorded(model, torch.randn(4, 3, dtype=FLOAT64), squares)
    with pytest.raises(ValueError, match=message):
        sample_paths(recording, **options)  # type: ignore[arg-type]


def test_a_length_that_has_few_paths_may_be_walked_whole_in_a_large_network() -> None:
    recording = recorded(leaky(20), torch.randn(4, 3, dtype=FLOAT64), squares)
    assert values(sample_paths(recording, lengths=[1, 19], samples=None), "samples") == [20, 20]


def test_paths_are_sampled_for_the_inputs_only() -> None:
    with pytest.raises(ValueError, match=r'paths are sampled for the gradient at the first fork: of="inputs"'):
        path_contributions(recorded(leaky(3), torch.randn(4, 3, dtype=FLOAT64), squares), of="parameters", samples=3)


def test_a_weighted_shortcut_weighs_single_paths() -> None:
    """y = f(x) + x / 2 in two blocks: the path without branches carries a quarter."""
    model, x = nn.Sequential(*(block_of(lambda m, x: torch.add(m.f(x).tanh(), x, alpha=0.5)) for _ in range(2))), rows()
    (shortest,) = values(sample_paths(recorded(model, x), lengths=[0]), "path_norm")
    assert shortest == pytest.approx(0.25 * x.numel() ** 0.5, rel=1e-12)
