"""Inputs at a place in autograd's graph, so that a fork may be the model's input itself."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.graph import Node
from torch.utils._pytree import tree_map


class _Anchored(torch.autograd.Function):
    """A tensor at a place in autograd's graph, without a copy; the model may overwrite it like any activation."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, anchor: Tensor) -> Tensor:
        ctx.mark_dirty(x)
        return x

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None]:
        return None, None


class _Passed(torch.autograd.Function):
    """A tensor that requires a gradient, passed on; its own gradient is a copy, which the user may change."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0].clone()


def differentiable(inputs: Any) -> Any:
    """Inputs, nested or not, with every floating tensor at a place in autograd's graph; values and gradients stay."""

    def place(x: Any) -> Any:
        if not isinstance(x, Tensor) or not x.is_floating_point() or not torch.is_grad_enabled():
            return x
        if forward_ad._current_level >= 0 and forward_ad.unpack_dual(x).tangent is not None:
            return x  # forward-mode differentiation goes on
        if x.requires_grad:
            return _Passed.apply(x)
        # `.data` has a version of its own, so that the user's graphs which wait for their backward do not see a change.
        return _Anchored.apply(x.clone() if x.is_inference() else x.data, torch.zeros((), requires_grad=True))

    return tree_map(place, inputs)


def is_input(node: Node) -> bool:
    """Whether a node of autograd's graph is the place of an input."""
    return getattr(node, "_forward_cls", None) in (_Anchored, _Passed)
