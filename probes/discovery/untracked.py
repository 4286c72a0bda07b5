"""Tensors that autograd does not track by itself: a model's inputs, and parameters that require no gradient.

Inputs are given a node in autograd's graph, so that a fork may be the model's input. Frozen parameters leave no leaf in
the graph: the nodes that act with them are noted while the model runs.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.graph import Node
from torch.utils._pytree import tree_leaves, tree_map


class _Anchored(torch.autograd.Function):
    """Gives a tensor a node in autograd's graph, without a copy; the model may overwrite it like any activation."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, anchor: Tensor) -> Tensor:
        ctx.mark_dirty(x)
        return x

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None]:
        return None, None


class _Passed(torch.autograd.Function):
    """Passes on a tensor that requires a gradient; its own gradient is a copy, which the user may change."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, fresh: bool) -> Tensor:
        if not fresh:
            return x.view_as(x)
        ctx.mark_dirty(x)
        return x

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0].clone(), None


def differentiable(inputs: Any, *, fresh: bool = False) -> Any:
    """Inputs, nested or not, with a node in autograd's graph for every floating tensor; values and gradients stay.

    fresh: nobody else holds these tensors, so that the model may overwrite also those that require a gradient.
    """

    def with_node(x: Any) -> Any:
        if not isinstance(x, Tensor) or not x.is_floating_point() or not torch.is_grad_enabled():
            return x
        if forward_ad._current_level >= 0 and forward_ad.unpack_dual(x).tangent is not None:
            return x  # forward-mode differentiation goes on
        if x.requires_grad:
            return _Passed.apply(x, fresh)
        # `.data` has a version of its own, so that the user's graphs which wait for their backward do not see a change.
        return _Anchored.apply(x.clone() if x.is_inference() else x.data, torch.zeros((), requires_grad=True))

    return tree_map(with_node, inputs)


def is_input(node: Node) -> bool:
    """Whether a node of autograd's graph was made by `differentiable` for an input."""
    return getattr(node, "_forward_cls", None) in (_Anchored, _Passed)


def is_quantised(parameter: Tensor | None) -> bool:
    """Whether a parameter holds whole numbers: a weight of 4 or 8 bits, which no gradient can reach."""
    return parameter is not None and not (parameter.is_floating_point() or parameter.is_complex())


class FrozenParameters:
    """Notes which nodes act with a model's frozen parameters, or with what was made of these alone (a cast, a norm)."""

    def __init__(self, parameters: Iterable[Tensor] = (), buffers: Iterable[Tensor] = ()) -> None:
        frozen = [p for p in parameters if not p.requires_grad and p.is_floating_point()]
        self._made_of_them: dict[int, Tensor] = {id(tensor): tensor for tensor in frozen}
        self._buffers = {id(buffer) for buffer in buffers} if frozen else set[int]()
        self.nodes: set[Node] = set()
        """The nodes of autograd's graph that act with them."""

    def __bool__(self) -> bool:
        return bool(self._made_of_them)

    def on_operation(self, inputs: Any, outputs: Any) -> None:
        """Note the node of an operation that has a frozen parameter among its inputs."""
        given = [x for x in tree_leaves(inputs) if isinstance(x, Tensor)]
        frozen = [id(x) in self._made_of_them for x in given]
        if not any(frozen):
            return
        for tensor in (x for x in tree_leaves(outputs) if isinstance(x, Tensor)):
            if tensor.grad_fn is not None:
                self.nodes.add(tensor.grad_fn)
            elif all(known or id(x) in self._buffers for known, x in zip(frozen, given, strict=True)):
                self._made_of_them[id(tensor)] = tensor

    def on_quantised_layer(self, outputs: Any) -> None:
        """Note the node of what a layer with quantised weights gives: its kernel is an autograd function of its own, in
        which operations have no node yet."""
        self.nodes.update(x.grad_fn for x in tree_leaves(outputs) if isinstance(x, Tensor) and x.grad_fn is not None)
