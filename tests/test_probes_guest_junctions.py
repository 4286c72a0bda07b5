"""`find_junctions` leaves a model, its graphs and the random state as they were, also when the forward raises."""

import pytest
import torch
from torch import Tensor, nn

from probes import find_junctions
from tests.support.networks import Raising, Residual, branch, left_as_it_was, network


@pytest.mark.parametrize("with_gradients", [False, True])
def test_finding_junctions_changes_nothing(with_gradients: bool) -> None:
    model, x = network(), torch.randn(4, 3)
    if with_gradients:
        model(x).sum().backward()
    buffers, random = [buffer.clone() for buffer in model.buffers()], torch.get_rng_state()
    gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    with left_as_it_was(model):
        assert len(find_junctions(model, x)) == 3
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), buffers, strict=True))
    assert torch.equal(torch.get_rng_state(), random)
    for parameter, before in zip(model.parameters(), gradients, strict=True):
        assert parameter.grad is before is None or torch.equal(parameter.grad, before)  # pyright: ignore[reportArgumentType]
    model(x)
    assert not all(torch.equal(a, b) for a, b in zip(model.buffers(), buffers, strict=True)), "a forward changes these"
    assert not torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_finding_junctions_changes_nothing_where_the_forward_raises(error: type[BaseException]) -> None:
    model, x = network(Raising(error)), torch.randn(4, 3)
    buffers, random = [buffer.clone() for buffer in model.buffers()], torch.get_rng_state()
    with left_as_it_was(model), pytest.raises(error):
        find_junctions(model, x)
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), buffers, strict=True))
    assert torch.equal(torch.get_rng_state(), random)


def test_the_model_s_mode_stays() -> None:
    model = network()
    model[1].eval()
    find_junctions(model, torch.randn(4, 3))
    assert [block.training for block in model] == [True, False, True]


def test_a_buffer_that_the_forward_replaces_is_put_back() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls = self.calls + 1
            return x

    model = network(Counting())
    find_junctions(model, torch.randn(4, 3))
    assert dict(model.named_buffers())["1.branch.2.calls"] == 0


def test_a_graph_of_the_user_s_that_waits_for_its_backward_is_not_disturbed() -> None:
    model, x = Residual(branch()).eval(), torch.randn(4, 3)
    loss = model(x).sum()
    find_junctions(model, x)
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
