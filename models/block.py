"""The residual block, in which the shortcut is switched."""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call

from models.flow import RESIDUAL, Flow
from probes import scale_gradient


class SwitchedBlock(Protocol):
    """A block whose shortcut and branch are weighted by its flow."""

    @property
    def flow(self) -> Flow: ...
    @property
    def shortcut(self) -> nn.Module: ...
    @property
    def branch(self) -> nn.Module: ...


def addends(block: SwitchedBlock, x: Tensor) -> tuple[Tensor, Tensor]:
    """The weighted values of a block's shortcut and of its branch. Forward weights are read now, gradient weights when
    the backward runs. Raises ValueError for addends of two shapes: a sum would broadcast some."""
    flow = block.flow
    carried = weigh(block.shortcut, x, value=flow.shortcut, gradient=lambda: block.flow.shortcut_gradient)
    residual = weigh(block.branch, x, value=flow.branch, gradient=lambda: block.flow.branch_gradient)
    shapes = [tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__ for y in (carried, residual)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"a block adds tensors of one shape, but its shortcut gives {shapes[0]} and its branch {shapes[1]}: give "
            "it a shortcut that projects x to what the branch gives"
        )
    return carried, residual


def weigh(function: nn.Module, x: Tensor, *, value: float, gradient: Callable[[], float]) -> Tensor:
    """`value * function(x)`; a gradient g at it reaches x as `gradient() * J^T g`, parameters as `value * J^T g`.

    The weight of x's gradient acts where x enters (the fork), so what lies behind it still learns at weight 0.
    """
    x = scale_gradient(x, gradient)
    if value == 1:
        return function(x)
    parameters = {name: scale_gradient(p, value) for name, p in function.named_parameters()}
    return scale_gradient(functional_call(function, parameters, (x,)), 1.0, value=value)


class ResidualBlock(nn.Module):
    """y = activation(shortcut(x) + branch(x)), each addend weighted forwards and backwards by `flow`.

    `flow` may be replaced at any time: forward weights are read when the forward runs, gradient weights when the
    backward runs (He et al. 2015, arXiv 1512.03385; the weights are ours).

    Args:
        branch: The residual branch F, a module from one tensor to one tensor.
        shortcut: The shortcut S, whose output has the shape of the branch's; None for the identity.
        activation: What follows the sum; None for ReLU.
        flow: The weights of both addends.

    Raises:
        ValueError: In the forward, where shortcut and branch give tensors of two shapes.
    """

    def __init__(
        self,
        branch: nn.Module,
        *,
        shortcut: nn.Module | None = None,
        activation: nn.Module | None = None,
        flow: Flow = RESIDUAL,
    ) -> None:
        super().__init__()
        self.branch = branch
        self.shortcut = nn.Identity() if shortcut is None else shortcut
        self.activation = nn.ReLU() if activation is None else activation
        self.flow = flow

    def forward(self, x: Tensor) -> Tensor:
        """x -> y, of the shape that the branch gives."""
        carried, residual = addends(self, x)
        return self.activation(carried + residual)

    def extra_repr(self) -> str:
        """The flow, for the module's repr."""
        return repr(self.flow)


class ExclusiveGateBlock(ResidualBlock):
    """y = activation((1 - g(x)) shortcut(x) + g(x) branch(x)), with g = sigmoid(gate(x)): a highway block (Srivastava
    et al. 2015, arXiv 1505.00387; He et al. 2016, "exclusive gating").

    gate: a module whose output has the sum's shape. Its own gradient into x counts as the shortcut's: it is whole where
    the shortcut's gradient is that of its value, and cut where that is cut, in plain networks too.
    """

    def __init__(
        self, branch: nn.Module, gate: nn.Module, *, shortcut: nn.Module | None = None, **options: Any
    ) -> None:
        super().__init__(branch, shortcut=shortcut, **options)
        self.gate = gate

    def forward(self, x: Tensor) -> Tensor:
        """x -> y, of the shape that the branch gives."""
        carried, residual = addends(self, x)
        # `carried` has the forward weight in it already: what arrives at the gate is the gradient of the value.
        value = self.flow.shortcut or 1.0
        g = torch.sigmoid(self.gate(scale_gradient(x, lambda: self.flow.shortcut_gradient / value)))
        return self.activation((1 - g) * carried + g * residual)
