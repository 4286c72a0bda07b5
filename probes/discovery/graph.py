"""Autograd's graph, walked back from an add: what were its two addends made from, and by which nodes?

Only the nodes between the add and what its addends share are read: a node's ancestors carry smaller sequence numbers,
so the walk takes the youngest node first and stops there.
"""

import heapq
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import reduce
from operator import or_
from typing import Any, Literal, cast

from torch import Tensor
from torch.autograd.graph import Node

from ..scaling import ScaleGradient
from .untracked import is_input

Edge = tuple[Node, int]  # a tensor's place in the graph: the node that made it, and which of its outputs
Entry = tuple[Node, int]  # where a gradient enters a tensor: the node that used it, and as which of its inputs

Term = tuple[Node, int, int]  # where a sum's gradient enters its addends: a node, as which input, the addends as bits

BOTH = 0b11
COPY = "torch::autograd::CopyBackwards"
WRITTEN = "residual-probes: written"
SUMS = {"AddBackward0", "AddcmulBackward0", "LerpBackward0", "LerpBackward1", "SubBackward0"}
OPERANDS = {"AddcmulBackward0": (0b01, 0b10, 0b10), "LerpBackward1": (0b01, 0b10, BOTH)}  # else one input for each
LAYOUT = {  # where a user's backward hook sits on a module, too
    "AliasBackward0", "BackwardHookFunctionBackward", "CloneBackward0", "PermuteBackward0", "ReshapeAliasBackward0",
    "SqueezeBackward0", "SqueezeBackward1", "ToCopyBackward0", "TransposeBackward0", "UnsafeViewBackward0",
    "UnsqueezeBackward0", "ViewBackward0",
}  # fmt: skip
FACTOR = {"DivBackward0", "MulBackward0", "NativeDropoutBackward0", "NegBackward0"}
LINEAR = LAYOUT | {
    "AdaptiveAvgPool2DBackward0", "AddBackward0", "AddmmBackward0", "AmaxBackward0", "AvgPool2DBackward0",
    "AvgPool3DBackward0", "CatBackward0", "ConstantPadNdBackward0", "ConvolutionBackward0", "CudnnBatchNormBackward0",
    "ExpandBackward0", "MatMul4BitBackward", "MatMul8bitFpBackward", "MatMul8bitLtBackward",  # bitsandbytes
    "MaxPool2DWithIndicesBackward0", "MaxPool3DWithIndicesBackward0",
    "MeanBackward1", "MiopenBatchNormBackward0", "MmBackward0", "NativeBatchNormBackward0", "NativeGroupNormBackward0",
    "NativeLayerNormBackward0", "PixelShuffleBackward0", "PixelUnshuffleBackward0", "SliceBackward0", "SubBackward0",
    "TBackward0", "UpsampleBicubic2DBackward0", "UpsampleBilinear2DBackward0", "UpsampleNearest2DBackward0",
    "torch::autograd::CopyBackwards",
}  # fmt: skip
INPUT = {  # which of their inputs these nodes act on; the others are weights
    "AddmmBackward0": 1, "ConvolutionBackward0": 0, "CudnnBatchNormBackward0": 0, "MiopenBatchNormBackward0": 0,
    "MatMul4BitBackward": 0, "MatMul8bitFpBackward": 0, "MatMul8bitLtBackward": 0,
    "MmBackward0": 0, "NativeBatchNormBackward0": 0, "NativeGroupNormBackward0": 0, "NativeLayerNormBackward0": 0,
}  # fmt: skip
GATES = {"ExpBackward0", "HardsigmoidBackward0", "SigmoidBackward0", "SoftplusBackward0", "TanhBackward0"}


def hidden_by(roots: Iterable[Node | None]) -> str | None:
    """What hides adds behind one of these nodes: torch.compile, reentrant checkpointing, or None."""
    for node in ancestors(roots):
        if "CheckpointFunction" in node.name():
            return "reentrant activation checkpointing"
        if "CompiledFunction" in node.name():
            return "torch.compile"
    return None


def made_of_inputs(fork: Node) -> bool:
    """Whether a fork was made of inputs alone (which is seen only while inputs have nodes in the graph)."""
    return not any(is_parameter(node, 0) for node in ancestors([fork]))


def passes_for_parameter(roots: Iterable[Node | None]) -> bool:
    """Whether something was made of inputs and a parameter that would look as if made of the parameter alone if inputs
    had no nodes in the graph: an input times a learned factor, or positions added to it."""

    def mixes(node: Node) -> bool:
        made_from = [n for n, _ in node.next_functions if n is not None]
        parameters = [n for n in made_from if is_parameter(n)]
        return 0 < len(parameters) < len(made_from) and all(made_of_inputs(n) for n in made_from if n not in parameters)

    return any(mixes(node) for node in ancestors(roots) if node.name() not in INPUT)


def ancestors(roots: Iterable[Node | None], end: Node | None = None, *, through_inputs: bool = False) -> Iterator[Node]:
    """These nodes and all that they were made from, up to `end` without it; what is behind inputs if asked."""
    seen: set[Node | None] = {end, None}
    waiting = list(roots)
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            waiting += [n for n, _ in node.next_functions] if through_inputs or not is_input(node) else []


def terms_of(add: Node) -> list[Term]:
    """Where the gradient of a sum enters its addends."""
    bits = OPERANDS.get(add.name(), (0b01, 0b10))
    return [(add, index, bits[index]) for index in range(len(add.next_functions))]


def terms_of_stack(stack: Node) -> list[Term]:
    """Where the gradient of a sum over a stack enters its addends: the last tensor, and the others from the last on."""
    last = len(stack.next_functions) - 1
    return [*((stack, index, 0b01) for index in reversed(range(last))), (stack, last, 0b10)]


def stack_behind(node: Node | None) -> Node | None:
    """The stack that a tensor is, perhaps taken apart, weighted by `scale_gradient` and put together again."""
    while node is not None and (node.name() in ("CatBackward0", "SliceBackward0") or scales_gradient(node)):
        node = node.next_functions[0][0]
    return node if node is not None and node.name() == "StackBackward0" else None


def mixes(node: Node, stack: Node) -> bool:
    """Whether a sum over a stack's tensors is over this very one."""
    waiting, seen = [node], {node}
    while waiting:
        node = waiting.pop()
        if node is stack:
            return True
        if node.name() in LAYOUT | FACTOR | {"BmmBackward0", "ExpandBackward0", "MmBackward0", "SumBackward1"}:
            found = {n for n, _ in node.next_functions if n is not None} - seen
            seen |= found
            waiting += found
    return False


def carried_tensors(terms: Sequence[Term], operand: int, *, mixed: bool = False) -> Iterator[tuple[Edge, bool]]:
    """The tensors that an addend carries, at most reshaped or multiplied by a factor; itself first. With each, whether
    it is one of several factors of a product.

    mixed: those that it carries multiplied by a matrix, of parameters or computed ones, over other axes than a linear
    layer's: what hyper-connections do to their streams.
    """
    own = [(node, index) for node, index, addends in terms if addends == 1 << operand]
    waiting = [(*node.next_functions[index], False) for node, index in own]
    seen: set[tuple[Node, int, bool]] = set()
    is_product = len(own) > 1 and own[0][0].name() in OPERANDS  # the sum computes it itself, as addcmul does
    factors: set[tuple[Node | None, int]] = {node.next_functions[index] for node, index in own} if is_product else set()
    while waiting:
        node, output, by_matrix = place = waiting.pop(0)
        if node is None or place in seen or node.name() == "torch::autograd::AccumulateGrad":
            continue
        seen.add((node, output, by_matrix))
        if by_matrix == mixed:
            yield (node, output), (node, output) in factors
        name, before = node.name(), node.next_functions
        if name in LAYOUT or scales_gradient(node):
            before = before[output : output + 1]
        elif name == COPY:
            before = before[1:2]
        elif name == "AddBackward0" and None in [n for n, _ in before]:
            pass  # a constant was added
        elif name in FACTOR:
            before = before[:1] if name == "DivBackward0" else before
            factors.update(before if len(_activations(node)) > 1 else ())
        elif mixed and name == "ExpandBackward0":
            pass
        elif mixed and name == "BmmBackward0":
            by_matrix = True
        else:
            continue
        waiting += [(*edge, by_matrix) for edge in before]


def shape_of(edge: Edge) -> tuple[int, ...]:
    """The shape of the tensor at a place in the graph."""
    node, output = edge
    return tuple(cast(Any, node)._input_metadata[output].shape)


def scales_gradient(node: Node) -> bool:
    """Whether a node was made by `scale_gradient`."""
    return getattr(node, "_forward_cls", None) is ScaleGradient


def overwrite(x: Tensor, value: Tensor) -> Tensor:
    """Write a value into a tensor, perhaps a view, in place, so that `written` knows where it was computed."""
    x.copy_(value)
    if x.grad_fn is not None:
        cast(dict[str, bool], x.grad_fn.metadata)[WRITTEN] = True
    return x


def written(edge: tuple[Node | None, int]) -> tuple[Node | None, int]:
    """Where the value of a tensor was computed, if it was then copied into another one, or written by `overwrite`."""
    node, _ = edge
    if node is None or node.name() == COPY:
        return edge if node is None else node.next_functions[1]
    if WRITTEN not in cast(dict[str, bool], node.metadata):
        return edge
    copied = cast(Node, node.next_functions[0][0])  # a view's node is made anew behind what was written into its base
    return copied.next_functions[1]


def takes_a_part(node: Node) -> bool:
    """Whether a node gives its input or a part of it: some channels, tokens or streams, next to each other."""
    name = node.name()
    in_one_piece = name == "SliceBackward0" and cast(Any, node)._saved_step == 1
    return name in LAYOUT or in_one_piece or scales_gradient(node)


def _through_layout(node: Node) -> Node:
    """The node that computes a tensor, before it is reshaped, its gradient is scaled or a constant is added."""
    while node.name() in LAYOUT or node.name() == "AddBackward0" or scales_gradient(node):
        made_from = [n for n, _ in node.next_functions if n is not None]
        if len(made_from) != 1:
            return node
        node = made_from[0]
    return node


def _activations(node: Node) -> list[Node]:
    """What a node was made from, without constants and parameters."""
    return [n for n, _ in node.next_functions if n is not None and not is_parameter(n)]


def is_gate(node: Node) -> bool:
    """Whether a node gives a gate g, or 1 - g."""
    node = _through_layout(node)
    if node.name() == "RsubBackward1" and node.next_functions[0][0] is not None:
        node = _through_layout(node.next_functions[0][0])
    return node.name() in GATES


def _behind_gate(user: Node, index: int) -> tuple[Node, int]:
    """Where an addend comes in; if it is the product of something and a gate, where that comes in."""
    node = user.next_functions[index][0]
    product = node and _through_layout(node)
    if product is None or product.name() != "MulBackward0" or len(_activations(product)) < 2:
        return user, index
    content = [i for i, (n, _) in enumerate(product.next_functions) if n is not None and not is_gate(n)]
    return (product, content[0]) if len(content) == 1 else (user, index)


def is_parameter(node: Node, depth: int = 8, *, chosen: bool = False) -> bool:
    """Whether a node gives a parameter, perhaps transposed, cast or normalised, and nothing else.

    chosen: or an input, or rows that an input may have chosen.
    """
    if node.name() == "torch::autograd::AccumulateGrad":
        return True
    if is_input(node) or node.name() == "EmbeddingBackward0":  # chosen by the input: an activation
        return chosen
    place = INPUT.get(node.name())
    if place is not None and node.next_functions[place][0] is None:  # acts on an input that has no place in the graph
        return False
    made_from = [n for n, _ in node.next_functions if n is not None]
    return depth > 0 and bool(made_from) and all(is_parameter(n, depth - 1, chosen=chosen) for n in made_from)


class Walk:
    """The walk back from an add: the nodes that its addends were made from, and the nodes that used them.

    terms: where its gradient enters its addends, where they are not the add's own inputs. behind_gates: begin behind
    gates that scale a whole addend, as if they were not there.
    """

    def __init__(
        self, add: Node, frozen: set[Node], terms: Sequence[Term] | None = None, *, behind_gates: bool = False
    ) -> None:
        self.add, self.frozen = add, frozen
        self.terms = terms_of(add) if terms is None else terms
        self.users: dict[Edge, list[Entry]] = defaultdict(list)
        self.reached: dict[Node, dict[int, int]] = {}  # node -> its output -> the addends made from it, as bits
        self.waiting: list[tuple[int, int, Node]] = []  # a heap, youngest node first
        for node, index, addends in self.terms:
            user, place = _behind_gate(node, index) if behind_gates and addends != BOTH else (node, index)
            self._visit(user, place, addends)

    def meets_at(self, fork: Edge) -> bool:
        """Walk as far as that tensor; whether both addends were made from it."""
        node, output = fork
        while self.waiting and self.waiting[0][-1] is not node and -self.waiting[0][0] > node._sequence_nr():
            self._step()
        return self.reached.get(node, {}).get(output) == BOTH

    def latest_common(self) -> Edge | None:
        """Walk as far as the latest tensor that both addends were made from, if there is one."""
        while self.waiting:
            node = self.waiting[0][-1]
            for output, addends in self.reached[node].items():
                if addends == BOTH:
                    return node, output
            self._step()
        return None

    def entries(
        self, fork: Edge, shortcut_operand: int
    ) -> tuple[dict[Literal["shortcut", "branch"], list[Entry]], bool]:
        """Where the gradient of either addend enters the fork, and whether an entry belongs to both (a gate): that is
        counted as the shortcut's."""
        found: dict[Literal["shortcut", "branch"], list[Entry]] = {"shortcut": [], "branch": []}
        shared = False
        of_terms = {(node, index): addends for node, index, addends in self.terms}
        for user, index in self.users[fork]:
            addends = of_terms[user, index] if (user, index) in of_terms else self._addends(user)
            found["shortcut" if addends & 1 << shortcut_operand else "branch"].append((user, index))
            shared |= addends == BOTH
        return found, shared

    def between(self, fork: Edge, operand: int) -> set[Node]:
        """The nodes on the ways from one operand to the fork."""
        seen: set[Node] = set()
        waiting = [user for user, _ in self.users[fork]]
        while waiting:
            node = waiting.pop()
            if node not in self.reached or node in seen or not self._addends(node) & 1 << operand:
                continue
            seen.add(node)
            waiting += [user for output in self.reached[node] for user, _ in self.users[node, output]]
        return seen

    def parameter_role(self, fork: Edge, operand: int) -> Literal["weight", "factor"] | None:
        """How parameters act between the fork and an operand: not at all, only as factors of it, or otherwise."""
        nodes = self.between(fork, operand)
        on_the_way = nodes | {fork[0]}
        acting = {
            node.name() in FACTOR
            for node in nodes
            if node in self.frozen
            or any(n is not None and n not in on_the_way and is_parameter(n) for n, _ in node.next_functions)
        }
        is_product = sum(bool(addends & 1 << operand) for _, _, addends in self.terms) > 1
        if is_product and (self.add in self.frozen or any(map(is_parameter, self._made_from(operand)))):
            acting.add(True)
        return None if not acting else "factor" if all(acting) else "weight"

    def gated_from_elsewhere(self, fork: Edge, operand: int) -> Node | None:
        """The factor of an addend that was made from the fork, where it is a product with a tensor that was not."""
        on_the_way = self.between(fork, operand) | {fork[0]}
        factors = self._made_from(operand)
        if len(factors) == 1:
            product = _through_layout(factors[0])
            factors = _activations(product) if product.name() == "MulBackward0" else []
        factors = [node for node in factors if not is_parameter(node)]
        from_fork = [node for node in factors if node in on_the_way]
        return from_fork[0] if len(factors) == 2 and len(from_fork) == 1 else None

    def _made_from(self, operand: int) -> list[Node]:
        """What the sum itself makes an addend from: one node, or the factors of a product."""
        edges = [node.next_functions[index] for node, index, addends in self.terms if addends & 1 << operand]
        return [node for node, _ in dict.fromkeys(edges) if node is not None]

    def only_gates(self, fork: Edge, operand: int) -> bool:
        """Whether what was made from the fork is in an addend only a gate of something else (a scan)."""
        factor = self.gated_from_elsewhere(fork, operand)
        return factor is not None and is_gate(factor)

    def biases_attention(self, fork: Edge, operand: int) -> bool:
        """Whether a fork that was made of parameters, embeddings or inputs alone enters that operand only where it is
        added to something whose softmax is taken: position biases that all layers share."""
        if not is_parameter(fork[0], chosen=True):
            return False
        inside, found, passed_on = self.between(fork, operand), set[str](), [fork]
        for edge in passed_on:  # which grows, by each edge once
            for node in {user for user, _ in self.users[edge]} & inside:
                if node.name() in LAYOUT | {"AddBackward0"}:
                    further = [(node, output) for output in self.reached[node]]
                    passed_on += [edge for edge in further if edge not in passed_on]
                else:
                    found.add(node.name())
        return found == {"SoftmaxBackward0"}

    def linear(self, fork: Edge, *, computed: bool = False) -> tuple[bool, bool]:
        """Whether each addend is linear in the fork: a product counts if its other factor is constant or learned.

        computed: or computed from elsewhere; and parts of what is split count.
        """

        def is_linear_at(node: Node, on_the_way: set[Node]) -> bool:
            name, factors = node.name(), [n in on_the_way for n in _activations(node)]
            if computed and name in ("SplitBackward0", "SplitWithSizesBackward0"):
                return True
            if name in FACTOR:
                return sum(factors) == 1 if computed else factors == [True]
            return name in LINEAR or scales_gradient(node)

        def is_linear(nodes: set[Node]) -> bool:
            return all(is_linear_at(node, nodes | {fork[0]}) for node in nodes)

        return is_linear(self.between(fork, 0)), is_linear(self.between(fork, 1))

    def _step(self) -> None:
        node = heapq.heappop(self.waiting)[-1]
        # What is copied overwrites the first input whole.
        for index in range(node.name() == COPY, len(node.next_functions)):
            self._visit(node, index, self._addends(node))

    def _visit(self, user: Node, index: int, addends: int) -> None:
        node, output = user.next_functions[index]
        if node is None or node.name() == "torch::autograd::AccumulateGrad":  # a leaf: its number tells no age
            return
        if node not in self.reached:
            self.reached[node] = {}
            heapq.heappush(self.waiting, (-node._sequence_nr(), len(self.reached), node))
        self.reached[node][output] = self.reached[node].get(output, 0) | addends
        self.users[node, output].append((user, index))

    def _addends(self, node: Node) -> int:
        return reduce(or_, self.reached[node].values())
