"""Where path lengths are not defined, the path functions say why, and what to do."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from probes import Recording, gradient_norms, path_contributions, path_gradients, record, residual_magnitudes
from tests.support.networks import Apply, Residual, chain, perceptron

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


@both_functions
def test_no_backward(function: Callable[[Recording], object]) -> None:
    model = chain(3)
    with record(model) as recording:
        model(torch.randn(4, 3, dtype=torch.float64))
    with pytest.raises(ValueError, match="no gradient reached '0'"):
        function(recording)


@both_functions
def test_no_forward(function: Callable[[Recording], object]) -> None:
    with record(chain(3)) as recording:
        pass
    with pytest.raises(ValueError, match=r"nothing was recorded: .* call the model itself with gradients enabled"):
        function(recording)


@both_functions
def test_no_junctions(function: Callable[[Recording], object]) -> None:
    with pytest.raises(ValueError, match=r"nothing was recorded: .* record\(model, blocks="):
        function(run(perceptron()))


@both_functions
def test_blocks_named_by_hand(function: Callable[[Recording], object]) -> None:
    model = perceptron()
    with record(model, blocks=[model[0], model[2]]) as recording:
        model(torch.randn(4, 3, dtype=torch.float64)).sum().backward(retain_graph=True)
    with pytest.raises(ValueError, match=r"no residual junctions .* only gradient_norms can be taken of it"):
        function(recording)


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
