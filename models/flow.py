"""Flow: how much of each addend goes forward, and how much of its gradient comes back."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Protocol, cast

from torch import Tensor, nn
from torch.func import functional_call

from probes import scale_gradient


@dataclass(frozen=True)
class Flow:
    """The weights at a junction: value = shortcut * S(x) + branch * F(x), while x receives, for a gradient g at the
    sum, shortcut_gradient * J_S^T g + branch_gradient * J_F^T g.

    A gradient weight defaults to its forward weight, which is ordinary backpropagation. Parameters inside S or F
    receive the gradient of the value (times the *forward* weight), whatever the gradient weights are. Raises ValueError
    for a weight that is not finite.
    """

    shortcut: float = 1.0
    branch: float = 1.0
    shortcut_gradient: float = cast(float, None)
    branch_gradient: float = cast(float, None)

    def __post_init__(self) -> None:
        if self.shortcut_gradient is None:
            object.__setattr__(self, "shortcut_gradient", self.shortcut)
        if self.branch_gradient is None:
            object.__setattr__(self, "branch_gradient", self.branch)
        for field in fields(self):
            if not math.isfinite(weight := getattr(self, field.name)):
                raise ValueError(f"Flow: {field.name} is {weight}; give a finite number (0 cuts, 1 leaves untouched)")


RESIDUAL = Flow()
STOP_GRADIENT = Flow(shortcut_gradient=0.0)
GRADIENT_ONLY = Flow(shortcut=0.0, shortcut_gradient=1.0)
PLAIN = Flow(shortcut=0.0)
SHORTEST_PATH = Flow(branch_gradient=0.0)

ARMS = {
    "residual": RESIDUAL,
    "stop-gradient": STOP_GRADIENT,
    "gradient-only": GRADIENT_ONLY,
    "plain": PLAIN,
    "shortest-path": SHORTEST_PATH,
}


def one_a_block(flow: Flow | Sequence[Flow], blocks: int) -> list[Flow]:
    """One flow for all blocks, or one for each, as a list; raises ValueError for a wrong number of them, or for what is
    no Flow (such as an arm's name)."""
    flows = [flow] * blocks if isinstance(flow, Flow) else list(flow) if isinstance(flow, Iterable) else []
    if not flows or not all(isinstance(each, Flow) for each in flows):
        raise ValueError(f"flow is {flow!r}: give a Flow, such as STOP_GRADIENT, or a list with one for each block")
    if len(flows) != blocks:
        raise ValueError(f"got {len(flows)} flows for {blocks} blocks: give one Flow for all, or one for each block")
    return flows


def rescale(flow: Flow, *, shortcut: float = 1.0, branch: float = 1.0) -> Flow:
    """The flow of a sum whose addends are multiplied by these numbers, forwards and backwards: a cut stays a cut."""
    return Flow(
        shortcut=shortcut * flow.shortcut,
        branch=branch * flow.branch,
        shortcut_gradient=shortcut * flow.shortcut_gradient,
        branch_gradient=branch * flow.branch_gradient,
    )


def addend(function: nn.Module, x: Tensor, *, value: float, gradient: Callable[[], float]) -> Tensor:
    """`value * function(x)`; a gradient g at it reaches x as `gradient() * J^T g`, parameters as `value * J^T g`.

    The weight of x's gradient acts where x enters (the fork), so what lies behind it still learns at weight 0.
    """
    x = scale_gradient(x, gradient)
    if value == 1:
        return function(x)
    parameters = {name: scale_gradient(p, value) for name, p in function.named_parameters()}
    return scale_gradient(functional_call(function, parameters, (x,)), 1.0, value=value)


class Switched(Protocol):
    """A block whose shortcut and branch are weighted by its flow."""

    @property
    def flow(self) -> Flow: ...
    @property
    def shortcut(self) -> nn.Module: ...
    @property
    def branch(self) -> nn.Module: ...


def addends(block: Switched, x: Tensor) -> tuple[Tensor, Tensor]:
    """A block's two weighted addends, (shortcut, branch). Forward weights are read now, gradient weights when the
    backward runs. Raises ValueError for addends of two shapes: a sum would broadcast some."""
    flow = block.flow
    shortcut = addend(block.shortcut, x, value=flow.shortcut, gradient=lambda: block.flow.shortcut_gradient)
    branch = addend(block.branch, x, value=flow.branch, gradient=lambda: block.flow.branch_gradient)
    shapes = [tuple(each.shape) if isinstance(each, Tensor) else type(each).__name__ for each in (shortcut, branch)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"a block adds tensors of one shape, but its shortcut gives {shapes[0]} and its branch {shapes[1]}: give "
            "it a shortcut that projects x to what the branch gives"
        )
    return shortcut, branch
