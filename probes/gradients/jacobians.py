"""Blocks as linear maps, which carry a vector back through the graph of one forward from a block's end to its fork."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node, get_gradient_edge
from torch.utils._pytree import tree_leaves

from ..discovery.adds import call_name
from ..discovery.graph import Edge, ancestors
from ..discovery.junctions import DetectedJunction, detect_junctions
from ..discovery.untracked import differentiable
from .chain import LIMITED, backpropagate, is_marked

Span = Literal["blocks", "stages", "stream"]


@dataclass(frozen=True, eq=False)
class Block:
    """A block in one forward's graph: its ends, and its sum on the way between them."""

    name: str
    depth: int
    fork: Edge
    sum: Edge
    """Where the addends meet; of a module named by hand, its output."""
    end: Edge
    """What follows the block: the next fork, or what the module that adds gives."""


class Jacobian:
    """The Jacobian J of consecutive blocks, an (n_out, n_in) matrix that is known by its products J^T v."""

    def __init__(self, blocks: Sequence[Block]) -> None:
        first, last = blocks[0], blocks[-1]
        self.name = first.name if first is last else f"{first.name} to {last.name}"
        self.depth = first.depth
        end = _metadata(last.end)
        self.shape_in, self.shape_out = tuple(_metadata(first.fork).shape), tuple(end.shape)
        self.dtype: torch.dtype = end.dtype
        self.device: torch.device = end.device
        self.n_in, self.n_out = math.prod(self.shape_in), math.prod(self.shape_out)
        places = [(block.name, place) for block in blocks for place in (block.fork, block.sum, block.end)][::-1]
        self._steps = [(a, b, name) for (_, a), (name, b) in pairwise(places) if a != b]

    def pull_back(self, vector: Tensor) -> tuple[Tensor, int]:
        """(w, e) with J^T v = 2^e w: the power is taken out on the way, so that long products stay in range.

        vector: n_out numbers; w has as many as n_in, without dimensions of its own, on the same device.
        """
        carried, exponent = vector.to(self.device, self.dtype).reshape(self.shape_out), 0
        for start, end, name in self._steps:
            carried, _ = backpropagate(carried, start, end, name)
            carried, shift = _near_one(carried)
            exponent += shift
        return carried.flatten(), exponent


def _metadata(edge: Edge) -> Any:
    node, output = edge
    return node._input_metadata[output]


def _near_one(tensor: Tensor) -> tuple[Tensor, int]:
    """A tensor whose largest element is near 1, and the power of 2 that was taken out: exact, unless tiny."""
    largest = max((abs(x.item()) for x in tensor.aminmax()), default=0.0) if tensor.numel() else 0.0
    if largest == 0 or not math.isfinite(largest):
        return tensor, 0
    most = int(math.log2(torch.finfo(tensor.dtype).max))  # larger powers are inf in that precision
    exponent = max(-most, min(most, math.frexp(largest)[1]))
    return (tensor, 0) if abs(exponent) <= 4 else (tensor * 2.0**-exponent, exponent)


@contextmanager
def linearised(
    model: nn.Module, inputs: Any, kwargs: dict[str, Any], *, blocks: Sequence[nn.Module] | None, of: Span
) -> Iterator[list[Jacobian]]:
    """The Jacobians of a model's blocks, stages or stream at some inputs, from one forward; the model stays as it was.

    They are to be used inside. Raises ValueError where there are no blocks, or for stages and stream no chain.
    """
    with _unchanged(model, (inputs, kwargs)):
        found = (
            _junction_blocks(model, inputs, kwargs) if blocks is None else _named_blocks(model, inputs, kwargs, blocks)
        )
        if of != "blocks":
            _check_chain(found)
        yield [Jacobian(span) for span in _spans(found, of)]


def _spans(blocks: Sequence[Block], of: Span) -> list[list[Block]]:
    """The blocks whose Jacobians are multiplied: each by itself, those whose sums have one shape, or all."""
    spans: list[list[Block]] = []
    for block in blocks:
        same = bool(spans) and _metadata(spans[-1][-1].sum).shape[1:] == _metadata(block.sum).shape[1:]
        if spans and (of == "stream" or (of == "stages" and same)):
            spans[-1].append(block)
        else:
            spans.append([block])
    return spans


@contextmanager
def _unchanged(model: nn.Module, inputs: Any) -> Iterator[None]:
    """Gradients are enabled; the model acts on copies of its buffers, and random state is afterwards what it was."""
    # During the backward too, in which checkpointing runs parts of the forward again.
    before = [(module, dict(module._buffers)) for module in model.modules()]
    tensors = [*model.parameters(), *model.buffers(), *tree_leaves(inputs)]
    devices = {x.device.index for x in tensors if isinstance(x, Tensor) and x.device.type == "cuda"}
    with torch.random.fork_rng(devices=sorted(devices)), torch.inference_mode(False), torch.enable_grad():
        copies = {buffer: buffer.detach().clone() for buffer in model.buffers()}
        try:
            for module, buffers in before:
                module._buffers.update({name: copies[b] for name, b in buffers.items() if b is not None})
            yield
        finally:
            for module, buffers in before:
                module._buffers.clear()
                module._buffers.update(buffers)


def _junction_blocks(model: nn.Module, inputs: Any, kwargs: dict[str, Any]) -> list[Block]:
    found: list[tuple[str, Node, Edge]] = []

    def on_junction(detected: DetectedJunction) -> None:
        del found[detected.junction.depth :]  # what was detected there was but a part of this sum
        found.append((detected.junction.name, detected.add, detected.match.fork))

    outputs: dict[str, Edge] = {}
    with detect_junctions(model, on_junction, values=False), _outputs_kept(model, outputs):
        model(*inputs, **kwargs)
    if not found:
        raise ValueError(
            "jacobian_spectrum: the model ran without a residual junction; for a network without shortcuts, name the "
            "modules that count as depth: jacobian_spectrum(model, images, blocks=[model.features[0], ...])"
        )
    if any(is_marked(add, LIMITED) for _, add, _ in found):
        raise ValueError(
            "jacobian_spectrum: under limit_paths gradients are put together from several backwards, which is no "
            "product with a Jacobian: measure the model without it"
        )
    following = [fork for _, _, fork in found[1:]]
    return [
        Block(name, depth, fork, (add, 0), _end(name, add, [*following[depth : depth + 1]], outputs))
        for depth, (name, add, fork) in enumerate(found)
    ]


def _end(name: str, add: Node, following: list[Edge], outputs: dict[str, Edge]) -> Edge:
    """Where a junction's block ends: the next fork, else what the module that adds gives, else the sum."""
    call = call_name(name)
    candidates = following + ([outputs[call]] if call in outputs and call != "(model)" else [])
    return next((edge for edge in candidates if add in ancestors([edge[0]])), (add, 0))


@contextmanager
def _outputs_kept(model: nn.Module, outputs: dict[str, Edge]) -> Iterator[None]:
    """Keep the place in the graph of what each call of a module gives, under the names that its adds have."""
    calls: Counter[str] = Counter()
    names = {module: name or "(model)" for name, module in model.named_modules()}

    def hook(module: nn.Module, _: Any, output: Any) -> None:
        call = names[module] + (f"@{calls[names[module]]}" if calls[names[module]] else "")
        calls[names[module]] += 1
        if isinstance(output, Tensor) and output.requires_grad:
            outputs[call] = _edge(output)

    handles = [module.register_forward_hook(hook) for module in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _named_blocks(model: nn.Module, inputs: Any, kwargs: dict[str, Any], blocks: Sequence[nn.Module]) -> list[Block]:
    named = _NamedBlocks({module: name or "(model)" for name, module in model.named_modules()})
    unknown = [type(block).__name__ for block in blocks if block not in named.names]
    if unknown or not blocks:
        raise ValueError(
            f"jacobian_spectrum: blocks must be modules of the model, such as model.features[0]; got {unknown}"
        )
    handles = [model.register_forward_pre_hook(lambda _, *given: differentiable(given), with_kwargs=True)]
    for block in dict.fromkeys(blocks):
        handles.append(block.register_forward_pre_hook(named.before, with_kwargs=True))
        handles.append(block.register_forward_hook(named.after))
    try:
        model(*inputs, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    if not named.found:
        raise ValueError(f"jacobian_spectrum: the model ran without {[named.names[block] for block in blocks]}")
    return [named.found[depth] for depth in sorted(named.found)]


class _NamedBlocks:
    """The hooks of blocks that are named by hand."""

    def __init__(self, names: dict[nn.Module, str]) -> None:
        self.names = names
        self.found: dict[int, Block] = {}
        self.calls: Counter[nn.Module] = Counter()
        self.running: list[tuple[int, str, Edge]] = []

    def before(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note the input of a block that starts."""
        name = self.names[block] + (f"@{self.calls[block]}" if self.calls[block] else "")
        x = next((x for x in (*args, *kwargs.values()) if isinstance(x, Tensor) and x.requires_grad), None)
        if x is None:
            raise ValueError(
                f"jacobian_spectrum: none of the tensors that {name!r} is given carries a gradient: choose later blocks"
            )
        self.running.append((self.calls.total(), name, _edge(x)))
        self.calls[block] += 1

    def after(self, block: nn.Module, _: Any, output: Any) -> None:
        """Note the output of a block that ends."""
        depth, name, fork = self.running.pop()
        if not isinstance(output, Tensor):
            raise TypeError(
                f"jacobian_spectrum: {name!r} gives a {type(output).__name__}; choose blocks that give a tensor"
            )
        if not output.requires_grad or fork[0] not in ancestors([_edge(output)[0]]):
            raise ValueError(
                f"jacobian_spectrum: no gradient leads from the output of {name!r} to its (first) input: choose blocks "
                "that can be differentiated"
            )
        self.found[depth] = Block(name, depth, fork, _edge(output), _edge(output))


def _edge(tensor: Tensor) -> Edge:
    edge = get_gradient_edge(tensor)
    return edge.node, edge.output_nr


def _check_chain(blocks: Sequence[Block]) -> None:
    """All that leads from the last block's end to the first fork must pass every fork and every sum between."""
    first, last = blocks[0].fork, blocks[-1].end
    for block in blocks:
        for place in (block.fork, block.sum):  # its end is the next fork
            if _is_bypassed(place, last, first):
                raise ValueError(
                    f"the junctions (or blocks) are no chain: a route leads around {block.name!r} (a long skip, a "
                    'nested junction), so that stages and stream are no products of blocks; of="blocks" needs no chain'
                )


def _is_bypassed(place: Edge, start: Edge, end: Edge) -> bool:
    """Whether a way back from `start` to `end` does not pass a place between."""
    waiting: list[Any] = [start]
    seen = {place}
    while waiting:
        edge = waiting.pop()
        if edge in seen or edge[0] is None:
            continue
        if edge == end:
            return True
        seen.add(edge)
        waiting += edge[0].next_functions
    return False
