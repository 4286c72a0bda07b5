"""One primitive: a tensor whose value and whose gradient are weighted independently."""

import math
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

Weight = float | Callable[[], float]


class ScaleGradient(torch.autograd.Function):
    """`value * x` forwards, `weight * gradient` backwards; a weight of 0 gives zeros and never multiplies."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Weight, value: float) -> Tensor:
        ctx.weight, ctx.value = weight, value
        if value == 1:
            return x.view_as(x)
        return torch.zeros_like(x) if value == 0 else value * x

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        weight = cast(float, ctx.weight() if callable(ctx.weight) else ctx.weight)
        if weight == 1:
            return gradient, None, None
        # 0 * inf is nan, and a detached tensor would leave parameters without a gradient: return zeros.
        return (torch.zeros_like(gradient) if weight == 0 else weight * gradient), None, None


def scale_gradient(x: Tensor, weight: Weight, *, value: float = 1.0) -> Tensor:
    """``value * x``, through which a gradient g travels back as ``weight * g``.

    The two weights are independent: ``value=0, weight=1`` adds nothing to a sum and still carries the sum's gradient to
    x. At weight 0 the gradient is exactly zero, even where it arrives as inf or nan, and never missing.

    Args:
        x: A tensor of any shape.
        weight: A finite number, or a function without arguments that is called each time the backward runs, so that one
            forward can be followed by backwards of different weights.
        value: A finite number. At 1 the values of x are returned unchanged to the last bit; at 0 the result is exactly
            zero even where x is inf or nan.

    Returns:
        A tensor of x's shape.

    Raises:
        ValueError: A weight or value is not finite.

    Example::

        y = scale_gradient(x, 0.0) + branch(x)     # a shortcut that carries the value, not the gradient
    """
    for name, number in (("weight", weight), ("value", value)):
        if not callable(number) and not math.isfinite(number):
            raise ValueError(f"scale_gradient: {name} is {number}; give a finite number")
    return cast(Tensor, ScaleGradient.apply(x, weight, value))
