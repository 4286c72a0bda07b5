"""A backward that carries only some path lengths."""

import math
from collections.abc import Callable, Sequence
from weakref import ref

import torch
from torch import Tensor
from torch.autograd.graph import Node

from ..discovery.classify import JunctionMatch
from ..discovery.graph import Edge
from ..norms import scaled_norm
from .chain import (
    LIMITED,
    NO_CHAIN,
    accumulate,
    backpropagate,
    hook_parts,
    inside_probe_backward,
    mark,
    through_junction,
    tolerance,
)


class LimitedBackward:
    """Replaces the gradient at each junction's sum, and at its fork, by that of the admitted lengths.

    Beside the backward, the gradients by path length at the place that it has reached are kept: `lengths`, of 0 to
    `high`; or, without it, of 0 to `low`, the last of which stands for all from there on. While `is_active` says no, a
    backward passes as it is.
    """

    def __init__(
        self,
        chain: Sequence[tuple[str, Node, JunctionMatch]],
        low: int,
        high: int | None,
        is_active: Callable[[], bool],
    ) -> None:
        self.chain, self.low, self.high, self.is_active = chain, low, high, is_active
        self.task: int | None = None
        self.lengths: list[Tensor] = []
        self.parts: dict[str, Tensor] = {}
        self.hooked_parts: set[int] = set()
        self.rounded = any(map(torch.is_autocast_enabled, ("cpu", "cuda")))
        for index in reversed(range(len(chain))):  # where a sum is the next fork, that fork's hook comes first
            _, add, match = chain[index]
            _replace((add, 0), ref(self), LimitedBackward.at_sum, index)
            _replace(match.fork, ref(self), LimitedBackward.at_fork, index)
            mark(add, LIMITED)

    def at_sum(self, index: int, gradient: Tensor) -> Tensor:
        name, add, match = self.chain[index]
        if index == len(self.chain) - 1:
            self.task, self.lengths = torch._C._current_graph_task_id(), [gradient]
        if self.task != torch._C._current_graph_task_id():
            raise ValueError(f"limit_paths: this backward does not pass the last junction, {self.chain[-1][0]!r}")
        admitted = self.admitted()
        self.check(name, gradient, admitted if index < len(self.chain) - 1 else gradient)
        self.lengths = through_junction(name, add, match, self.lengths)
        self.drop_longest()
        self.parts.clear()
        if index not in self.hooked_parts:  # only now, so that these hooks run after a gate's on the same nodes
            self.hooked_parts.add(index)
            _hook_parts_of(match, ref(self))
        return admitted

    def at_fork(self, index: int, gradient: Tensor) -> Tensor:
        name, _, match = self.chain[index]
        self.check(name, gradient, sum(self.parts.values(), torch.zeros_like(gradient)))
        admitted = self.admitted()
        if index:
            before, add, _ = self.chain[index - 1]
            where = f"{before!r} to {name!r}"
            self.lengths = [backpropagate(length, match.fork, (add, 0), where) for length in self.lengths]
        else:
            self.lengths = []
        return admitted

    def drop_longest(self) -> None:
        """Drop the lengths beyond the highest, or without one add them to the last."""
        most = (self.low if self.high is None else self.high) + 1
        beyond = self.lengths[most:]
        del self.lengths[most:]
        if self.high is None:
            self.lengths[-1] = sum(beyond, self.lengths[-1])

    def admitted(self) -> Tensor:
        """The gradient of the admitted lengths."""
        admitted = self.lengths[self.low :]
        return sum(admitted[1:], admitted[0]) if admitted else torch.zeros_like(self.lengths[0])

    def check(self, name: str, arrived: Tensor, expected: Tensor) -> None:
        """Raise where part of what arrives has not come through junctions."""
        other = scaled_norm(arrived - expected)
        largest = max(map(scaled_norm, [arrived, *self.lengths]))
        if math.isfinite(largest) and other > tolerance(arrived, rounded=self.rounded) * largest:
            raise ValueError(NO_CHAIN.format(name, other, scaled_norm(arrived)))


def _replace(
    place: Edge,
    backward: "ref[LimitedBackward]",
    replacement: Callable[[LimitedBackward, int, Tensor], Tensor],
    index: int,
) -> None:
    """Replace the gradient that arrives at a place. Hooks must not own the backward, which owns the hooked nodes."""
    node, output = place

    def hook(arriving: Sequence[Tensor | None]) -> tuple[Tensor | None, ...] | None:
        gradient = arriving[output]
        if inside_probe_backward() or gradient is None:
            return None
        limited = backward()
        if limited is None:
            raise RuntimeError("limit_paths: run each backward inside the context, before the model's next forward")
        if not limited.is_active():
            return None
        if gradient.requires_grad:
            raise RuntimeError("limit_paths: a backward with create_graph=True cannot be limited")
        return (*arriving[:output], replacement(limited, index, gradient), *arriving[output + 1 :])

    node.register_prehook(hook)


def _hook_parts_of(match: JunctionMatch, backward: "ref[LimitedBackward]") -> None:
    def keep(name: str, gradient: Tensor) -> None:
        limited = backward()
        if limited is not None and limited.is_active() and not inside_probe_backward():
            accumulate(limited.parts, name, gradient)

    hook_parts(match, keep)
