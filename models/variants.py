"""What else is done to a block's shortcut or branch: one function a variant."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn
from torchvision.ops import StochasticDepth

from models.block import ExclusiveGateBlock, ResidualBlock
from models.shortcut import ShortcutGate

Variant = Literal["identity", "dropout", "shortcut-gate", "exclusive-gate", "stochastic-depth"]


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
    """Nothing."""
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
