"""Dirac convolutions: a residual in weight space, which needs no shortcut."""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DiracConv2d(nn.Conv2d):
    """A 3x3 convolution by diag(alpha) delta + diag(beta) W / |W|, where delta is the identity's filters, the norm is
    that of each filter, and alpha (first 1), beta (first 0.1) and W are learned (Zagoruyko and Komodakis 2017, arXiv
    1706.00388): alpha times its input and a small change.

    Where there are more channels out than in, the identity fills the first of them; a stride takes every second pixel.
    """

    delta: Tensor

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1) -> None:
        super().__init__(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.alpha = nn.Parameter(torch.ones(out_channels))
        self.beta = nn.Parameter(torch.full((out_channels,), 0.1))
        self.register_buffer("delta", nn.init.dirac_(torch.empty_like(self.weight.data)), persistent=False)

    @property
    def filters(self) -> Tensor:
        """What x is convolved with: (out_channels, in_channels, 3, 3). A filter W of zeros stays one."""
        alpha, beta = (scale.view(-1, 1, 1, 1) for scale in (self.alpha, self.beta))
        return alpha * self.delta + beta * F.normalize(self.weight.flatten(1)).view_as(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.filters, stride=self.stride, padding=self.padding)


def dirac_branch(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    """conv-BN-ReLU-conv-BN, both of them Dirac convolutions: without the shortcut (`flow=PLAIN`) a DiracNet.

    The paper's networks differ: each convolution follows a concatenation of x's positive and negative part in place of
    ReLU, pooling in place of a stride halves the maps, and alpha and beta are free of weight decay.
    """
    layers = [
        ("conv1", DiracConv2d(in_channels, out_channels, stride=stride)),
        ("bn1", nn.BatchNorm2d(out_channels)),
        ("relu", nn.ReLU()),
        ("conv2", DiracConv2d(out_channels, out_channels)),
        ("bn2", nn.BatchNorm2d(out_channels)),
    ]
    return nn.Sequential(OrderedDict(layers))
