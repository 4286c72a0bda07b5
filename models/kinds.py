"""The kinds of residual block that `cifar_resnet` knows: each a row of what a network of them is made of."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn

from models.block import ResidualBlock
from models.branches import basic_branch, bottleneck_branch, open_branch, preactivation_branch, skipinit_branch
from models.dirac import dirac_branch
from models.fixup import Bias, fixup_branch, fixup_weights

Block = Literal["basic", "bottleneck", "preactivation", "norm-after-sum", "skipinit", "fixup", "dirac"]
Layers = Callable[[int], Sequence[nn.Module]]  # of the channels where they stand


def nothing(channels: int) -> Sequence[nn.Module]:
    """No module."""
    return []


def norm_relu(channels: int) -> Sequence[nn.Module]:
    """BatchNorm, then ReLU."""
    return [nn.BatchNorm2d(channels), nn.ReLU()]


def keep_weights(blocks: Sequence[ResidualBlock], classifier: nn.Linear) -> None:
    """He et al.'s first weights are this kind's own."""


@dataclass(frozen=True)
class Kind:
    """A kind of block, and what its networks have around their blocks."""

    branch: Callable[..., nn.Sequential]
    """Of in_channels, out_channels and stride."""
    layers: int = 2
    """Weighted layers of a branch."""
    expansion: int = 1
    """How many times a stage's width come out of its blocks."""
    after_stem: Layers = norm_relu
    """What follows the stem's convolution."""
    after_sum: Callable[[int], nn.Module] = lambda channels: nn.ReLU()
    """What follows each sum."""
    after_blocks: Layers = nothing
    """What follows the last block."""
    first_weights: Callable[[Sequence[ResidualBlock], nn.Linear], None] = keep_weights
    """What is done to the weights that He et al.'s initialisation gave to the blocks and the classifier."""


KINDS: dict[str, Kind] = {
    "basic": Kind(basic_branch),
    "bottleneck": Kind(bottleneck_branch, layers=3, expansion=4),
    "preactivation": Kind(preactivation_branch, after_stem=nothing, after_sum=nn.Identity, after_blocks=norm_relu),
    "norm-after-sum": Kind(open_branch, after_sum=lambda channels: nn.Sequential(*norm_relu(channels))),
    "skipinit": Kind(skipinit_branch, after_stem=lambda channels: [nn.ReLU()]),
    "fixup": Kind(
        fixup_branch,
        after_stem=lambda channels: [Bias(), nn.ReLU()],
        after_blocks=lambda channels: [Bias()],
        first_weights=fixup_weights,
    ),
    "dirac": Kind(dirac_branch),
}
