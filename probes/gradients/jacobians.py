"""Blocks as linear maps, which carry a vector back through the graph of one forward from a block's end to its fork."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..discovery.graph import Edge
from .blocks import Block, find_blocks, unchanged
from .chain import backpropagate

Span = Literal["blocks", "stages", "stream"]


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
            carried = backpropagate(carried, start, end, name)
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
    with unchanged(model, (inputs, kwargs)):
        _, found = find_blocks(model, lambda: model(*inputs, **kwargs), blocks=blocks, caller="jacobian_spectrum")
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
