"""What a block adds to its shortcut: the branches of the literature, of some channels in and out and a stride."""

from collections import OrderedDict

import torch
from torch import Tensor, nn


def basic_branch(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    """Two 3x3 convolutions: conv-BN-ReLU-conv-BN (He et al. 2015, arXiv 1512.03385, Fig. 5 left)."""
    layers = [*open_branch(in_channels, out_channels, stride).named_children(), ("bn2", nn.BatchNorm2d(out_channels))]
    return nn.Sequential(OrderedDict(layers))


def open_branch(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    """conv-BN-ReLU-conv, whose last normalisation stands behind the sum (He et al. 2016, arXiv 1603.05027, Fig. 4b)."""
    layers = [
        ("conv1", nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)),
        ("bn1", nn.BatchNorm2d(out_channels)),
        ("relu", nn.ReLU()),
        ("conv2", nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)),
    ]
    return nn.Sequential(OrderedDict(layers))


def preactivation_branch(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    """Normalisation and ReLU before each of two 3x3 convolutions: BN-ReLU-conv-BN-ReLU-conv (He et al. 2016, arXiv
    1603.05027, Fig. 4e); the block then has no activation after the sum.

    Their first block normalises and activates before the fork (their appendix), here as all others behind it.
    """
    layers = [
        ("bn1", nn.BatchNorm2d(in_channels)),
        ("relu1", nn.ReLU()),
        ("conv1", nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)),
        ("bn2", nn.BatchNorm2d(out_channels)),
        ("relu2", nn.ReLU()),
        ("conv2", nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)),
    ]
    return nn.Sequential(OrderedDict(layers))


def bottleneck_branch(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    """1x1 reduces to a quarter of the output's channels, 3x3 computes (and strides), 1x1 expands (He et al. 2015, Fig.
    5 right)."""
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
