"""The residual block, in which the shortcut is switched."""

from typing import Any

import torch
from torch import Tensor, nn

from models.flow import RESIDUAL, Flow, addends
from probes import scale_gradient


class ResidualBlock(nn.Module):
    """y = activation(shortcut(x) + branch(x)), each addend weighted forwards and backwards by `flow`.

    branch and shortcut may be any modules whose outputs are tensors of one shape (ValueError otherwise). `flow` may be
    replaced at any time: forward weights are read when the forward runs, gradient weights when the backward runs.
    """

    def __init__(
        self,
        branch: nn.Module,
        *,
        shortcut: nn.Module | None = None,
        activation: nn.Module | None = None,
        flow: Flow = RESIDUAL,
    ) -> None:
        super().__init__()
        self.branch = branch
        self.shortcut = nn.Identity() if shortcut is None else shortcut
        self.activation = nn.ReLU() if activation is None else activation
        self.flow = flow

    def forward(self, x: Tensor) -> Tensor:
        shortcut, branch = addends(self, x)
        return self.activation(shortcut + branch)

    def extra_repr(self) -> str:
        return repr(self.flow)


class ExclusiveGateBlock(ResidualBlock):
    """y = activation((1 - g(x)) shortcut(x) + g(x) branch(x)), with g = sigmoid(gate(x)): a highway block (Srivastava
    et al. 2015, arXiv 1505.00387; He et al. 2016, "exclusive gating").

    gate: a module whose output has the sum's shape. Its own gradient into x counts as the shortcut's.
    """

    def __init__(
        self, branch: nn.Module, gate: nn.Module, *, shortcut: nn.Module | None = None, **options: Any
    ) -> None:
        super().__init__(branch, shortcut=shortcut, **options)
        self.gate = gate

    def forward(self, x: Tensor) -> Tensor:
        shortcut, branch = addends(self, x)
        g = torch.sigmoid(self.gate(scale_gradient(x, lambda: self.flow.shortcut_gradient)))
        return self.activation((1 - g) * shortcut + g * branch)
