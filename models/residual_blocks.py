"""The residual blocks of a network, whatever its make."""

from torch import nn

from models.block import ResidualBlock
from models.imagenet_resnet import SwitchedBasicBlock, SwitchedBottleneck

Block = ResidualBlock | SwitchedBasicBlock | SwitchedBottleneck


def residual_blocks(model: nn.Module) -> list[Block]:
    """The blocks in order of depth; each has a `flow`, a `shortcut` and a `branch`."""
    return [module for module in model.modules() if isinstance(module, Block)]
