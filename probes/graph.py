"""What autograd's graph says of an add: where do its two addends come from?

An add is a residual junction when its addends reconverge on one earlier activation, the *fork*, one of them by a
shortcut (nothing, or something linear) and the other by a branch that holds parameters. The verdict reads only the
nodes between the add and the fork: a node's ancestors carry smaller sequence numbers, so the walk takes the youngest
node first and stops at the first place that both addends have reached.
"""

import heapq
from collections import defaultdict
from dataclasses import dataclass, field
from functools import reduce
from operator import or_
from typing import Literal

from torch.autograd.graph import Node
from torch.nn import Parameter

from probes.scaling import ScaleGradient

Edge = tuple[Node, int]  # a tensor's place in the graph: the node that made it, and which of its outputs
Entry = tuple[Node, int]  # where a gradient enters a tensor: the node that used it, and as which of its inputs

BOTH = 0b11
SAME_VALUES = {"AliasBackward0", "ViewBackward0", "CloneBackward0", "ToCopyBackward0"}
LINEAR = SAME_VALUES | {
    "ConvolutionBackward0", "AddmmBackward0", "MmBackward0", "TBackward0", "UnsafeViewBackward0",
    "NativeBatchNormBackward0", "CudnnBatchNormBackward0", "MiopenBatchNormBackward0",
    "NativeGroupNormBackward0", "NativeLayerNormBackward0",
    "AvgPool2DBackward0", "MaxPool2DWithIndicesBackward0", "AdaptiveAvgPool2DBackward0", "MeanBackward1",
    "ConstantPadNdBackward0", "SliceBackward0", "CatBackward0", "PermuteBackward0", "TransposeBackward0",
    "ReshapeAliasBackward0", "SqueezeBackward1", "UnsqueezeBackward0", "ExpandBackward0",
}  # fmt: skip


@dataclass
class Side:
    """What lies between one addend and the fork."""

    nodes: set[Node] = field(default_factory=set)  # empty: the addend is the fork itself
    entries: list[Entry] = field(default_factory=list)  # where this side's gradient enters the fork
    has_parameters: bool = False

    def only(self, names: set[str]) -> bool:
        return all(node.name() in names or _is_gradient_scaling(node) for node in self.nodes)


@dataclass
class Residual:
    """An add found to be a junction: the fork, and which addend is which."""

    kind: Literal["identity", "projection"]
    fork: Edge
    shortcut: int  # index of the shortcut among the add's inputs: 0 or 1
    sides: tuple[Side, Side]


def residual(add: Node, junctions: set[Node]) -> Residual | None:
    """The verdict on one add (its `AddBackward0` node), or None if it joins no shortcut and branch.

    junctions: the nodes of the adds found so far. A projection beside them is a merge of features (a pyramid's lateral
    connection, say), not a shortcut.
    """
    walk = _Walk(add)
    fork = walk.fork()
    sides = walk.sides(fork) if fork else None
    if fork is None or sides is None:
        return None
    for shortcut, (side, other) in enumerate((sides, sides[::-1])):
        if side.only(SAME_VALUES) and not other.only(SAME_VALUES) and other.has_parameters:
            return Residual("identity", fork, shortcut, sides)
    for shortcut, (side, other) in enumerate((sides, sides[::-1])):
        nodes = side.nodes | other.nodes
        merge = nodes & junctions or any("Upsample" in node.name() for node in nodes)
        if side.only(LINEAR) and not other.only(LINEAR) and other.has_parameters and not merge:
            return Residual("projection", fork, shortcut, sides)
    return None


def _is_gradient_scaling(node: Node) -> bool:
    return getattr(node, "_forward_cls", None) is ScaleGradient


class _Walk:
    """The walk back from an add: which nodes its addends were made from, and who used them."""

    def __init__(self, add: Node) -> None:
        self.add = add
        self.users: dict[Edge, list[Entry]] = defaultdict(list)
        self.reached: dict[Node, dict[int, int]] = {}  # node -> its output -> the addends made from it, as bits
        self.parameters = 0  # the addends that parameters went into, as bits
        self.waiting: list[tuple[int, int, Node]] = []  # a heap, youngest node first

    def fork(self) -> Edge | None:
        """The latest tensor that both addends were made from."""
        for index in range(len(self.add.next_functions)):
            self._reach(self.add, index, 1 << index)
        while self.waiting:
            node = heapq.heappop(self.waiting)[-1]
            for output, addends in self.reached[node].items():
                if addends == BOTH:
                    return node, output
            for index in range(len(node.next_functions)):
                self._reach(node, index, self._addends(node))
        return None

    def sides(self, fork: Edge) -> tuple[Side, Side] | None:
        """What lies between each addend and the fork; None if the two ways touch before it."""
        sides = (Side(has_parameters=bool(self.parameters & 1)), Side(has_parameters=bool(self.parameters & 2)))
        for user, index in self.users[fork]:
            addends = 1 << index if user is self.add else self._addends(user)
            if addends == BOTH:
                return None
            side = sides[addends >> 1]
            side.entries.append((user, index))
            self._climb(user, side.nodes)
        return sides

    def _reach(self, user: Node, index: int, addends: int) -> None:
        node, output = user.next_functions[index]
        if node is None:
            return
        if node.name() == "torch::autograd::AccumulateGrad":  # a leaf, whose sequence number says nothing of its age
            self.parameters |= addends if isinstance(getattr(node, "variable", None), Parameter) else 0
            return
        if node not in self.reached:
            self.reached[node] = {}
            heapq.heappush(self.waiting, (-node._sequence_nr(), len(self.reached), node))
        self.reached[node][output] = self.reached[node].get(output, 0) | addends
        self.users[node, output].append((user, index))

    def _addends(self, node: Node) -> int:
        return reduce(or_, self.reached[node].values())

    def _climb(self, node: Node, seen: set[Node]) -> None:
        if node is self.add or node in seen:
            return
        seen.add(node)
        for output in self.reached[node]:
            for user, _ in self.users[node, output]:
                self._climb(user, seen)
