"""`scale_gradient`: a value and a gradient that are weighted independently."""

import math

import pytest
import torch

from probes import scale_gradient
from tests.support.networks import FLOAT64

AWKWARD = torch.tensor([0.1, -0.0, 1e-45, math.inf, -math.inf, math.nan])


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0, -2.0])
def test_values_are_unchanged_to_the_last_bit(weight: float) -> None:
    scaled = scale_gradient(AWKWARD, weight)
    assert torch.equal(scaled.view(torch.int32), AWKWARD.view(torch.int32))


def test_value_and_gradient_are_weighted_independently() -> None:
    x = torch.tensor([3.0, -5.0], requires_grad=True)
    y = scale_gradient(x, 0.25, value=2)
    y.backward(torch.tensor([4.0, 8.0]))
    assert y.tolist() == [6, -10]
    assert x.grad is not None
    assert x.grad.tolist() == [1, 2]


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_weights_0_and_1_are_exact_where_values_and_gradients_are_not_finite(weight: float, value: float) -> None:
    """1 passes all on to the last bit, 0 nothing: in the forward by the value, in the backward by the weight."""
    x = AWKWARD.clone().requires_grad_()
    y = scale_gradient(x, weight, value=value)
    y.backward(AWKWARD)
    assert x.grad is not None
    for got, factor in ((y.detach(), value), (x.grad, weight)):
        if factor == 0:
            assert torch.equal(got, torch.zeros(6))
        if factor == 1:
            assert torch.equal(got.view(torch.int32), AWKWARD.view(torch.int32))


def test_a_function_as_weight_is_read_when_the_backward_runs() -> None:
    weight, reads = 2.0, []
    x = torch.ones(1, requires_grad=True)
    y = scale_gradient(x, lambda: reads.append(weight) or weight)
    assert reads == []
    (first,) = torch.autograd.grad(y, x, retain_graph=True)
    weight = 0.0
    (second,) = torch.autograd.grad(y, x, torch.full((1,), math.inf))
    assert (first.item(), second.item(), reads) == (2, 0, [2, 0])


def test_weights_multiply_when_nested() -> None:
    x = torch.ones(1, dtype=FLOAT64, requires_grad=True)
    scale_gradient(scale_gradient(x, 0.5), 0.25).backward()
    assert x.grad is not None
    assert x.grad.item() == 0.125


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match=f"scale_gradient: weight is {bad}; give a finite number"):
        scale_gradient(torch.ones(1), bad)
    with pytest.raises(ValueError, match=f"scale_gradient: value is {bad}; give a finite number"):
        scale_gradient(torch.ones(1), 1.0, value=bad)
