"""The rows that `cifar_resnet` chooses from: kinds of residual block, and what else is done to shortcut or branch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from models.block import ExclusiveGateBlock, ResidualBlock
from models.branches import (
    Bias,
    basic_branch,
    bottleneck_branch,
    dirac_branch,
    fixup_branch,
    fixup_weights,
    open_branch,
    preactivation_branch,
    skipinit_branch,
    unnormalised_branch,
)

BlockName = Literal[
    "basic", "bottleneck", "preactivation", "norm-after-sum", "unnormalised", "skipinit", "fixup", "dirac"
]
Variant = Literal["identity", "dropout", "shortcut-gate", "exclusive-gate", "stochastic-depth"]
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
class BlockKind:
    """A kind of block, and what its networks have around their blocks."""

    branch: Callable[..., nn.Sequential]
    """Of in_channels, out_channels and stride."""
    layers: int = 2
    """Weighted layers of a branch."""
    expansion: int = 1
    """Channels of a block's output for each of a stage's width."""
    after_stem: Layers = norm_relu
    """What follows the stem's convolution."""
    after_sum: Callable[[int], nn.Module] = lambda channels: nn.ReLU()
    """What follows each sum."""
    after_blocks: Layers = nothing
    """What follows the last block."""
    first_weights: Callable[[Sequence[ResidualBlock], nn.Linear], None] = keep_weights
    """What is done to the weights that He et al.'s initialisation gave to the blocks and the classifier."""
    has_own_weights: bool = False
    """Whether it defines how a network begins, so that other first weights would be another kind."""


BLOCK_KINDS: dict[str, BlockKind] = {
    "basic": BlockKind(basic_branch),
    "bottleneck": BlockKind(bottleneck_branch, layers=3, expansion=4),
    "preactivation": BlockKind(preactivation_branch, after_stem=nothing, after_sum=nn.Identity, after_blocks=norm_relu),
    "norm-after-sum": BlockKind(open_branch, after_sum=lambda channels: nn.Sequential(*norm_relu(channels))),
    "unnormalised": BlockKind(unnormalised_branch, after_stem=lambda channels: [nn.ReLU()]),
    "skipinit": BlockKind(skipinit_branch, after_stem=lambda channels: [nn.ReLU()], has_own_weights=True),
    "fixup": BlockKind(
        fixup_branch,
        after_stem=lambda channels: [Bias(), nn.ReLU()],
        after_blocks=lambda channels: [Bias()],
        first_weights=fixup_weights,
        has_own_weights=True,
    ),
    "dirac": BlockKind(dirac_branch, has_own_weights=True),
}


class ShortcutGate(nn.Module):
    """(1 - g(x)) inner(x), with g = sigmoid(gate(x)): He et al. 2016's "shortcut-only gating"."""

    def __init__(self, inner: nn.Module, gate: nn.Module) -> None:
        super().__init__()
        self.inner, self.gate = inner, gate

    def forward(self, x: Tensor) -> Tensor:
        return (1 - torch.sigmoid(self.gate(x))) * self.inner(x)


def make_gate(in_channels: int, out_channels: int, *, stride: int, bias: float) -> nn.Conv2d:
    """A gate's 1x1 convolution. Its bias begins at `bias`: the more negative, the wider open is the shortcut."""
    gate = nn.Conv2d(in_channels, out_channels, 1, stride=stride)
    nn.init.constant_(gate.bias, bias)  # type: ignore[arg-type]
    return gate


@dataclass(frozen=True)
class Parts:
    """What a block is made of."""

    branch: nn.Sequential
    shortcut: nn.Module
    gate: Callable[[], nn.Module]
    """Makes a gate, with weights of its own."""
    survival: float
    """How probably stochastic depth keeps the branch."""


def identity(parts: Parts, **options: Any) -> ResidualBlock:
    """The shortcut as it is."""
    return ResidualBlock(parts.branch, shortcut=parts.shortcut, **options)


def dropout(parts: Parts, **options: Any) -> ResidualBlock:
    """Half of the shortcut's values are dropped (He et al. 2016, arXiv 1603.05027, Fig. 2f)."""
    return ResidualBlock(parts.branch, shortcut=nn.Sequential(parts.shortcut, nn.Dropout(0.5)), **options)


def shortcut_gate(parts: Parts, **options: Any) -> ResidualBlock:
    """(1 - g) x + F (He et al. 2016, Fig. 2d)."""
    return ResidualBlock(parts.branch, shortcut=ShortcutGate(parts.shortcut, parts.gate()), **options)


def exclusive_gate(parts: Parts, **options: Any) -> ResidualBlock:
    """(1 - g) x + g F (He et al. 2016, Fig. 2c)."""
    return ExclusiveGateBlock(parts.branch, parts.gate(), shortcut=parts.shortcut, **options)


def stochastic_depth(parts: Parts, **options: Any) -> ResidualBlock:
    """In training the whole branch is kept with probability p, for all images of a batch alike, and then divided by p;
    in evaluation it is whole (Huang et al. 2016, arXiv 1603.09382, who divide nothing and multiply by p in evaluation).

    The draws are of torch's global random state, one a block and forward: arms that were made under one seed, and ran
    as many forwards, drop the same branches. A dropped branch is computed all the same; its gradients are zeros.
    """
    parts.branch.add_module("survival", StochasticDepth(1 - parts.survival, mode="batch"))
    return ResidualBlock(parts.branch, shortcut=parts.shortcut, **options)


VARIANTS: dict[str, Callable[..., ResidualBlock]] = {
    "identity": identity,
    "dropout": dropout,
    "shortcut-gate": shortcut_gate,
    "exclusive-gate": exclusive_gate,
    "stochastic-depth": stochastic_depth,
}
