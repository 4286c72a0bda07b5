"""What the networks are built by: checks of their sizes, a flow for each block, first weights."""

from collections.abc import Iterable, Sequence
from typing import TypeVar

from torch import nn

from models.flow import Flow

Network = TypeVar("Network", bound=nn.Module)


def check_sizes(**sizes: int) -> None:
    """Raise ValueError for a number of channels, features or classes under 1."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} {size}: give at least 1")


def flow_per_block(flow: Flow | Sequence[Flow], blocks: int, *, name: str = "flow") -> list[Flow]:
    """One flow for all blocks, or one for each, as a list; raises ValueError, under the argument's name, for a wrong
    number of them, or for what is no Flow (such as an arm's name)."""
    flows = [flow] * blocks if isinstance(flow, Flow) else list(flow) if isinstance(flow, Iterable) else []
    if not flows or not all(isinstance(given, Flow) for given in flows):
        raise ValueError(f"{name} is {flow!r}: give a Flow, such as STOP_GRADIENT, or a list with one for each block")
    if len(flows) != blocks:
        raise ValueError(
            f"{name}: got {len(flows)} flows for {blocks} blocks: give one Flow for all, or one for each block"
        )
    return flows


def blocks_per_stage(depth: int, *, layers: int, others: int, kind: str) -> int:
    """The n of a depth of layers * n + others; raises ValueError, with the two nearest depths, where there is none."""
    n, rest = divmod(depth - others, layers)
    if n < 1 or rest:
        near = [layers * k + others for k in (max(1, n), max(1, n) + 1)]
        raise ValueError(
            f"depth {depth} is not {layers}n + {others}, as {kind} blocks need: the nearest are {near[0]} and {near[1]}"
        )
    return n


def initialise_convolutions(model: Network) -> Network:
    """The network, its convolutions at He et al.'s normal initialisation (2015, arXiv 1502.01852; fan-out)."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return model
