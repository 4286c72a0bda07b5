"""Where junctions form no chain, paths are neither sampled nor limited; the path functions say why, and what to do."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from probes import (
    Recording,
    gradient_correlation,
    gradient_norms,
    jacobian_spectrum,
    limit_paths,
    path_contributions,
    path_gradients,
    record,
    residual_magnitudes,
    sample_paths,
)
from tests.support.networks import Apply, Residual, chain, dense, perceptron, recorded, relative_error, rows

both_precisions = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def run(model: nn.Module, dtype: torch.dtype = torch.float64, *, retain_graph: bool = True) -> Recording:
    with record(model) as recording:
        out = model(torch.randn(4, 3, dtype=dtype))
        total = out if isinstance(out, Tensor) else torch.stack(out).sum(0)
        total.square().sum().backward(retain_graph=retain_graph)
    return recording


@pytest.mark.parametrize("function", [path_gradients, path_contributions, sample_paths])
def test_a_graph_that_the_backward_freed(function: Callable[[Recording], object]) -> None:
    with pytest.raises(RuntimeError, match=r"graph was freed by the backward: call loss.backward\(retain_graph=True\)"):
        function(run(chain(3), retain_graph=False))


@pytest.mark.parametrize("measure", [path_gradients, sample_paths, jacobian_spectrum, gradient_correlation])
def test_a_fork_that_is_a_view_and_was_overwritten(measure: Callable[..., object]) -> None:
    """What torch cannot do is said; the recording itself, a training's own backward, is whole."""

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        x = self.get_submodule("stem")(x).view(4, 3)
        fork = x.clone()
        x += self.get_submodule("f")(fork)
        x += self.get_submodule("f")(fork).sin()
        return x.sin()

    model = Apply(forward, stem=nn.Linear(3, 3).double(), f=nn.Linear(3, 3).double())
    recording = run(model)
    assert gradient_norms(recording)["value"].gt(0).sum() >= 3
    given = (recording,) if measure in (path_gradients, sample_paths) else (model, torch.randn(4, 3).double())
    with pytest.raises(RuntimeError, match=r"no gradient at a view that was overwritten in place .* clone the view"):
        measure(*given)


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
        match=r"no chain: at the fork of 'second' .* route around .*long skip.*sampled and limited in a chain alone "
        r"\(path_gradients and path_contributions take any graph\).*gradient weights have changed",
    ):
        sample_paths(recording)
    assert sums_to_autograd(recording)


def sums_to_autograd(recording: Recording) -> bool:
    """To rounding: that of float32 is below 1e-5 in networks as small as these."""
    lengths, total = path_gradients(recording), recording.gradient(recording.first, "total")
    return relative_error(lengths.sum(0), total) < (1e-12 if total.dtype == torch.float64 else 1e-5)


@both_precisions
def test_a_net_of_the_same_make_without_a_long_skip_passes(dtype: torch.dtype) -> None:
    assert len(path_gradients(run(around(0.0, dtype), dtype))) == 4


def within(dtype: torch.dtype) -> nn.Module:
    """A junction inside a branch."""
    inner = nn.Sequential(nn.Linear(3, 3, dtype=dtype), Residual(perceptron(dtype=dtype)), nn.Tanh())
    return nn.Sequential(Residual(perceptron(dtype=dtype)), Residual(inner))


def auxiliary_head(dtype: torch.dtype) -> nn.Module:
    parts = {name: Residual(perceptron(dtype=dtype)) for name in ("first", "last")}

    def forward(self: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.last(first := self.first(x)), self.head(first)

    return Apply(forward, head=nn.Linear(3, 3, dtype=dtype), **parts)


def side_by_side(dtype: torch.dtype) -> nn.Module:
    return Apply(lambda m, x: (m.left(x), m.right(x)), left=chain(1, dtype=dtype), right=chain(1, dtype=dtype))


@both_precisions
@pytest.mark.parametrize(
    ("make", "count", "message"),
    [
        (lambda dtype: Residual(chain(2, dtype=dtype)), 3, "the junctions are no chain"),  # an identity around two
        (within, 3, "the junctions are no chain"),
        (auxiliary_head, 2, r"no chain: at the fork of 'last' .*auxiliary head"),
        (side_by_side, 2, "the junctions are no chain"),
    ],
    ids=["an identity around", "within a branch", "an auxiliary head", "side by side"],
)
def test_what_is_no_chain(make: Callable[..., nn.Module], count: int, message: str, dtype: torch.dtype) -> None:
    recording = run(make(dtype), dtype)
    assert len(recording.junctions) == count
    with pytest.raises(ValueError, match=message):
        sample_paths(recording)
    assert sums_to_autograd(recording)


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
def test_routes_that_begin_between_junctions(tap: int) -> None:
    model = Between(tap=tap, weight=1e-3)
    recording = recorded(model, rows())
    with pytest.raises(ValueError, match="the junctions are no chain"):
        sample_paths(recording, samples=3)
    with pytest.raises(ValueError, match="the junctions are no chain"), limit_paths(model, at_most=1):
        model(rows()).backward()
    assert sums_to_autograd(recording)
    assert torch.equal(path_gradients(recording, max_length=1), path_gradients(recording)[:2])


def test_routes_that_begin_before_the_first_fork_matter_to_parameters() -> None:
    model = Between(tap=0, weight=1.0)
    recording = recorded(model, rows())
    assert sums_to_autograd(recording)
    for name, lengths in path_gradients(recording, of="parameters").items():
        wanted = model.get_parameter(name).grad
        assert wanted is not None
        assert relative_error(lengths.sum(0), wanted) < 1e-12, name
    refusal = pytest.raises(ValueError, match="at the junctions' sums, which what comes by that route does not pass")
    with refusal, limit_paths(model, exactly=1):
        model(rows())


def test_lengths_are_whole_numbers() -> None:
    recording = recorded(chain(2, 4), rows())
    with pytest.raises(ValueError, match=r"max_length is 1\.5"):
        path_contributions(recording, max_length=1.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"lengths \[1.0\]"):
        sample_paths(recording, lengths=[1.0])  # type: ignore[list-item]
