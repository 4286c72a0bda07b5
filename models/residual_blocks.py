"""The residual blocks of a network, whatever its make, and their flows."""

from collections.abc import Sequence

from torch import nn

from models.block import ResidualBlock
from models.construction import flow_per_block
from models.flow import Flow
from models.imagenet_resnet import SwitchedBasicBlock, SwitchedBottleneck

Block = ResidualBlock | SwitchedBasicBlock | SwitchedBottleneck


def residual_blocks(model: nn.Module) -> list[Block]:
    """The residual blocks of a network, each with a `flow`, a `shortcut` and a `branch`.

    Args:
        model: A network of this package, or any module that holds one, such as DistributedDataParallel.

    Returns:
        The blocks in order of depth; none for a network of another make.
    """
    return [module for module in model.modules() if isinstance(module, Block)]


def set_flows(model: nn.Module, flows: Flow | Sequence[Flow]) -> None:
    """Replace the flow of every residual block, also between a forward and its backward (see `ResidualBlock`).

    Args:
        model: A network of this package.
        flows: One for all blocks (an arm), or one a block in order of depth.

    Raises:
        ValueError: The network has no such block, or another number of them; no block has changed then.
    """
    blocks = residual_blocks(model)
    if not blocks:
        raise ValueError(f"{type(model).__name__} has no block with a flow: give a network made by `models`")
    for block, flow in zip(blocks, flow_per_block(flows, len(blocks)), strict=True):
        block.flow = flow


def set_exact_flows(model: nn.Module) -> None:
    """Give every residual block the backward of the function that it computes: `Flow.exact` of its own flow."""
    set_flows(model, [block.flow.exact for block in residual_blocks(model)])
