"""The residual block, in which the shortcut is switched, and the branches that it adds to it."""

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from models.flow import RESIDUAL, Flow, addend
from probes import scale_gradient


class ResidualBlock(nn.Module):
    """y = activation(shortcut(x) + branch(x)), each addend weighted forwards and backwards by `flow`.

    branch and shortcut may be any modules whose outputs have one shape. `flow` may be replaced at any time: its forward
    weights are read when the forward runs, its gradient weights when the backward runs.
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
        shortcut, branch = self.addends(x)
        return self.activation(shortcut + branch)

    def addends(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The two weighted addends, (shortcut, branch)."""
        flow = self.flow
        shortcut = addend(self.shortcut, x, value=flow.shortcut, gradient=lambda: self.flow.shortcut_gradient)
        return shortcut, addend(self.branch, x, value=flow.branch, gradient=lambda: self.flow.branch_gradient)

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
        shortcut, branch = self.addends(x)
        g = torch.sigmoid(self.gate(scale_gradient(x, lambda: self.flow.shortcut_gradient)))
        return self.activation((1 - g) * shortcut + g * branch)


def basic_branch(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    """Two 3x3 convolutions: conv-BN-ReLU-conv-BN (He et al. 2015, Fig. 5 left)."""
    layers = [
        ("conv1", nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)),
        ("bn1", nn.BatchNorm2d(out_channels)),
        ("relu", nn.ReLU()),
        ("conv2", nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)),
        ("bn2", nn.BatchNorm2d(out_channels)),
    ]
    return nn.Sequential(OrderedDict(layers))


def preactivation_branch(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    """Normalisation and ReLU before each of two 3x3 convolutions: BN-ReLU-conv-BN-ReLU-conv (He et al. 2016, arXiv
    1603.05027, Fig. 4e); the block then has no activation after the sum."""
    layers = [
        ("bn1", nn.BatchNorm2d(in_channels)),
        ("relu1", nn.ReLU()),
        ("conv1", nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)),
        ("bn2", nn.BatchNorm2d(out_channels)),
        ("relu2", nn.ReLU()),
        ("conv2", nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)),
    ]
    return nn.Sequential(OrderedDict(layers))


class Scalar(nn.Module):
    """alpha * x, with one learned number alpha."""

    def __init__(self, first: float) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.tensor(first))

    def forward(self, x: Tensor) -> Tensor:
        return self.alpha * x


def skipinit_branch(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    """No normalisation: conv-ReLU-conv and a learned factor that begins at 0, so that a block begins as its shortcut
    (SkipInit: De and Smith 2020, arXiv 2002.10444; ReZero: Bachlechner et al. 2021, arXiv 2003.04887)."""
    layers = [
        ("conv1", nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1)),
        ("relu", nn.ReLU()),
        ("conv2", nn.Conv2d(out_channels, out_channels, 3, padding=1)),
        ("scale", Scalar(0.0)),
    ]
    return nn.Sequential(OrderedDict(layers))


def bottleneck_branch(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    """1x1 reduces to a quarter of the output's channels, 3x3 computes (and strides), 1x1 expands (Fig. 5 right)."""
    inner = out_channels // 4
    layers = [
        ("conv1", nn.Conv2d(in_channels, inner, 1, bias=False)),
        ("bn1", nn.BatchNorm2d(inner)),
        ("relu1", nn.ReLU()),
        ("conv2", nn.Conv2d(inner, inner, 3, stride=stride, padding=1, bias=False)),
        ("bn2", nn.BatchNorm2d(inner)),
        ("relu2", nn.ReLU()),
        ("conv3", nn.Conv2d(inner, out_channels, 1, bias=False)),
        ("bn3", nn.BatchNorm2d(out_channels)),
    ]
    return nn.Sequential(OrderedDict(layers))
