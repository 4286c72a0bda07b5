"""Where an addend comes from: the module that gives it, and by what it was multiplied on its way to the sum."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, is_dataclass
from itertools import chain
from typing import Any, cast

from torch import Tensor
from torch.autograd.graph import Node
from torch.utils._pytree import tree_leaves

from ..norms import norm
from .graph import LAYOUT, Edge, is_gate, is_parameter, scales_gradient


@dataclass(frozen=True)
class Origin:
    """Where an addend comes from."""

    module: str | None
    """The qualified name of the module whose output it is, at most reshaped or cast; None where it is no module's
    output. Of a module and its last part, which both return it, the one that returned last."""
    factor: float
    """What it was multiplied by behind the last module that does more than multiply: 1 where by nothing."""


class ModuleCalls:
    """The tensors that the module calls of one forward were given and returned, by their place in autograd's graph."""

    def __init__(self) -> None:
        self._modules: list[str] = []  # of each call
        self._inputs: list[set[Edge]] = []
        self._open: list[int] = []
        self._outputs: dict[Edge, list[int]] = {}  # the calls that returned it, in order
        self._values: dict[Edge, tuple[Tensor, int]] = {}
        self._products: dict[Node, list[tuple[Any, int]]] = {}

    def start(self, module: str, given: Any) -> None:
        """A module is called with these arguments, nested or not."""
        self._open.append(len(self._modules))
        self._modules.append(module)
        self._inputs.append({self.note(x) for x in tensors(given) if x.grad_fn is not None})

    def end(self, output: Any) -> None:
        """The module that was called last gives this."""
        call = self._open.pop()
        for x in tensors(output):
            if x.grad_fn is not None:
                self._outputs.setdefault(self.note(x), []).append(call)

    def multiply(self, operands: tuple[Any, ...], result: Any) -> None:
        """A product (or quotient) of these operands was computed."""
        # Not read from what the node has saved: under checkpointing, that computes the forward again.
        if isinstance(result, Tensor) and result.grad_fn is not None and len(operands) == 2:
            versions = [version_of(x) for x in operands]
            self._products[result.grad_fn] = list(zip(operands, versions, strict=True))

    def note(self, x: Tensor) -> Edge:
        """Remember a tensor's value while nothing overwrites it; its place in the graph."""
        edge = cast(Edge, (x.grad_fn, x.output_nr))
        self._values[edge] = (x, version_of(x))
        return edge

    def value(self, edge: Edge) -> Tensor | None:
        """The tensor that was at a place in the graph, if a module took or gave it and it was not overwritten since."""
        x, version = self._values.get(edge, (None, 0))
        return x.detach() if x is not None and version_of(x) == version else None

    def origin(self, edge: Edge) -> Origin:
        """Where the addend at a place in the graph comes from.

        The walk goes back through reshapes and factors. A factor inside a module counts only if the walk comes out at
        that module's input: LayerScale's are factors, the weights of a normalisation are none. Dropout is none either.
        """
        module, reshaped = None, True
        factor = accepted = 1.0
        inside: set[int] = set()
        while True:
            returned = self._outputs.get(edge, [])
            if module is None and reshaped and returned:
                module = self._modules[returned[-1]]
            inside = {call for call in inside if edge not in self._inputs[call]}
            if not inside:
                accepted = factor
            inside |= {call for call in returned if edge not in self._inputs[call]}
            step = self._behind(edge, outside=not inside)
            if step is None:
                return Origin(module, accepted)
            edge, times = step
            reshaped = reshaped and times is None
            factor *= 1.0 if times is None else times

    def origin_of_addend(self, place: tuple[Node | None, int], factor: Any) -> Origin:
        """Where an addend comes from that is what is at a place in the graph, times a factor."""
        node, output = place
        origin = Origin(None, 1.0) if node is None else self.origin((node, output))
        if isinstance(factor, int | float) and factor == 1:
            return origin
        return Origin(None, _size(factor, version_of(factor)) * origin.factor)

    def _behind(self, edge: Edge, *, outside: bool) -> tuple[Edge, float | None] | None:
        """What a tensor is but for its shape, or but for a factor; and that factor. outside: of all modules."""
        node, _ = edge
        made_from, name = node.next_functions, node.name()
        if name in LAYOUT:
            index, times = 0, None
        elif scales_gradient(node):
            weight = cast(Any, node).value
            index, times = 0, None if weight == 1 else float(weight)
        elif name == "NegBackward0":
            index, times = 0, -1.0
        elif name in ("MulBackward0", "DivBackward0") and node in self._products:
            active = [i for i, (n, _) in enumerate(made_from) if n is not None and not is_parameter(n)]
            index = self._multiplied(made_from, active, outside=outside)
            if index is None or (index == 1 and name == "DivBackward0"):
                return None
            size = _size(*self._products[node][1 - index])
            times = size if name == "MulBackward0" else 1 / size if size else math.inf
        else:
            return None
        before, place = made_from[index]
        return None if before is None else ((before, place), times)

    def _multiplied(self, made_from: Sequence[Any], active: list[int], *, outside: bool) -> int | None:
        """Which operand of a product is the one that the other multiplies, if that can be told."""
        not_gates = [i for i in active if not is_gate(made_from[i][0])]
        outputs = [i for i in active if self._is_output(made_from[i])] if outside else []
        for chosen in (active, not_gates, outputs):
            if len(chosen) == 1:
                return chosen[0]
        return None

    def _is_output(self, edge: Edge) -> bool:
        """Whether a module gave it, at most reshaped."""
        node, output = edge
        while (node, output) not in self._outputs:
            if node is None or node.name() not in LAYOUT:
                return False
            node, output = node.next_functions[0]
        return True


def version_of(x: Any) -> int:
    """How often a tensor was overwritten."""
    return x._version if isinstance(x, Tensor) and not x.is_inference() else 0


def _size(factor: Any, version: int) -> float:
    """A factor's value, or the root mean square of its elements; nan if it was overwritten since."""
    if not isinstance(factor, Tensor):
        return float(factor)
    if version_of(factor) != version or not factor.numel():
        return math.nan
    return float(factor.item()) if factor.numel() == 1 else norm(factor.detach()).item() / math.sqrt(factor.numel())


def tensors(value: Any) -> Iterator[Tensor]:
    """The tensors of a module's arguments or of its output: a tensor, or nested containers or dataclasses of them."""
    leaves = tree_leaves(value)
    inner = [tree_leaves(vars(leaf)) for leaf in leaves if is_dataclass(leaf)]
    return (x for x in (*leaves, *chain.from_iterable(inner)) if isinstance(x, Tensor))
