"""Where path lengths are not defined, the path functions say why, and what to do."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from probes import (
    Recording,
    gradient_norms,
    limit_paths,
    path_contributions,
    path_gradients,
    record,
    residual_magnitudes,
    sample_paths,
)
from tests.support.networks import Apply, Residual, chain, dense, perceptron, relative_error, rows

both_precisions = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
both_functions = pytest.mark.parametrize("function", [path_gradients, path_contributions])


def run(model: nn.Module, dtype: torch.dtype = torch.float64, *, retain_graph: bool = True) -> Recording:
    with record(model) as recording:
        out = model(torch.randn(4, 3, dtype=dtype))
        total = out if isinstance(out, Tensor) else torch.stack(out).sum(0)
        total.square().sum().backward(retain_graph=retain_graph)
    return recording


@both_functions
def test_a_graph_that_the_backward_freed(function: Callable[[Recording], object]) -> None:
    with pytest.raises(RuntimeError, match=r"graph was freed by the backward: call loss.backward\(retain_graph=True\)"):
        function(run(chain(3), retain_graph=False))


def around(weight: float, dtype: torch.dtype) -> nn.Module:
    """A chain of three junctions, around the second of which a weighted copy of its fork leads."""

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        first = self.get_submodule("first")(x)
        return self.get_submodule("last")(self.get_submodule("second")(first) * (1 + weight * first))

    blocks = {name: Residual(perceptron(dtype=dtype)) for name in ("first", "second", "last")}
    return Apply(forward, **blocks)


@both_precisions
@pytest.mark.parametrize("weight", [1.0, 0.01])
def test_a_long_skip_around_a_junction(weight: float, dtype: torch.dtype) -> None:
    recording = run(around(weight, dtype), dtype)
    assert [site.name for site in recording.junctions] == ["first", "second", "last"]
    with pytest.raises(
        ValueError,
        match=r"no chain: at the fork of 'second' .* route around .*long skip.*gradient weights have changed",
    ):
        path_gradients(recording)


@both_precisions
def test_a_net_of_the_same_make_without_a_long_skip_passes(dtype: torch.dtype) -> None:
    assert len(path_gradients(run(around(0.0, dtype), dtype))) == 4


@both_precisions
def test_an_identity_added_around_two_junctions(dtype: torch.dtype) -> None:
    recording = run(Residual(chain(2, dtype=dtype)), dtype)
    assert len(recording.junctions) == 3
    with pytest.raises(ValueError, match="the junctions are no chain"):
        path_gradients(recording)


@both_precisions
def test_a_junction_inside_a_branch(dtype: torch.dtype) -> None:
    inner = nn.Sequential(nn.Linear(3, 3, dtype=dtype), Residual(perceptron(dtype=dtype)), nn.Tanh())
    with pytest.raises(ValueError, match="the junctions are no chain"):
        path_gradients(run(nn.Sequential(Residual(perceptron(dtype=dtype)), Residual(inner)), dtype))


@both_precisions
def test_an_auxiliary_head(dtype: torch.dtype) -> None:
    def forward(self: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        first = self.get_submodule("first")(x)
        return self.get_submodule("last")(first), self.get_submodule("head")(first)

    parts = {name: Residual(perceptron(dtype=dtype)) for name in ("first", "last")}
    with pytest.raises(ValueError, match=r"no chain: at the fork of 'last' .*auxiliary head"):
        path_gradients(run(Apply(forward, head=nn.Linear(3, 3, dtype=dtype), **parts), dtype))


@both_precisions
def test_two_chains_side_by_side(dtype: torch.dtype) -> None:
    def forward(self: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.get_submodule("left")(x), self.get_submodule("right")(x)

    with pytest.raises(ValueError, match="the junctions are no chain"):
        path_gradients(run(Apply(forward, left=chain(1, dtype=dtype), right=chain(1, dtype=dtype)), dtype))


def test_the_other_probes_still_work_there() -> None:
    recording = run(around(1.0, torch.float64))
    assert len(gradient_norms(recording)) == 12
    assert len(residual_magnitudes(recording)) == 12


class Between(nn.Module):
    """Blocks with a layer between them, whose input goes to the head as well."""

    def __init__(self, *, tap: int, weight: float) -> None:
        super().__init__()
        self.stem, self.blocks, self.tap, self.weight = dense(), chain(3, 4), tap, weight
        self.before = nn.ModuleList(dense() for _ in range(3))
        self.head = dense()

    def forward(self, x: Tensor) -> Tensor:
        x, tapped = self.stem(x), x
        for index, (residual, before) in enumerate(zip(self.blocks, self.before, strict=True)):
            x = x.tanh()
            tapped = x if index == self.tap else tapped
            x = residual(before(x))
        return self.head(x).square().sum() + self.weight * tapped.sin().sum()


@pytest.mark.parametrize("tap", [1, 2])
def test_routes_that_begin_between_junctions_are_refused(tap: int) -> None:
    torch.manual_seed(0)
    model = Between(tap=tap, weight=1e-3)
    with record(model) as recording:
        model(rows()).backward(retain_graph=True)
    for probe in (
        lambda: path_gradients(recording),
        lambda: path_gradients(recording, max_length=1),
        lambda: path_gradients(recording, max_length=3),
        lambda: sample_paths(recording, samples=3),
    ):
        with pytest.raises(ValueError, match="the junctions are no chain"):
            probe()
    with pytest.raises(ValueError, match="the junctions are no chain"), limit_paths(model, at_most=1):
        model(rows()).backward()


def test_routes_that_begin_before_the_first_fork_matter_to_parameters() -> None:
    model = Between(tap=0, weight=1.0)
    with record(model) as recording:
        model(rows()).backward(retain_graph=True)
    lengths = path_gradients(recording)
    assert relative_error(lengths.sum(0), recording.gradient(recording.sites[0], "total")) < 1e-12
    with pytest.raises(ValueError, match="also used by a route around"):
        path_gradients(recording, of="parameters")
    with pytest.raises(ValueError, match="also used by a route around"), limit_paths(model, exactly=1):
        model(rows())


def test_lengths_are_whole_numbers() -> None:
    model = chain(2, 4)
    with record(model) as recording:
        model(rows()).sum().backward(retain_graph=True)
    with pytest.raises(ValueError, match=r"max_length is 1\.5"):
        path_contributions(recording, max_length=1.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"lengths \[1.0\]"):
        sample_paths(recording, lengths=[1.0])  # type: ignore[list-item]
