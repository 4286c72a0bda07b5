"""What a block adds to its shortcut: the branches of the literature, of some channels in and out and a stride."""

from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.block import ResidualBlock


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


def unnormalised_branch(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    """conv-ReLU-conv. With the shortcut's value, activations grow with depth unless a `Flow` weights the branch by one
    over the root of the number of blocks, say."""
    layers = [
        ("conv1", nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1)),
        ("relu", nn.ReLU()),
        ("conv2", nn.Conv2d(out_channels, out_channels, 3, padding=1)),
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
    open_layers = unnormalised_branch(in_channels, out_channels, stride).named_children()
    return nn.Sequential(OrderedDict([*open_layers, ("scale", Scalar(0.0))]))


class Bias(nn.Module):
    """x + beta, with one learned number beta that begins at 0."""

    def __init__(self) -> None:
        super().__init__()
        self.beta = nn.Parameter(torch.tensor(0.0))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.beta


def fixup_branch(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    """conv-ReLU-conv with a learned bias before each of the three and behind, and a learned factor (Zhang et al. 2019,
    arXiv 1901.09321, Fig. 1 right); no normalisation. `fixup_weights` gives it its first weights."""
    layers = [
        ("bias1", Bias()),
        ("conv1", nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)),
        ("bias2", Bias()),
        ("relu", nn.ReLU()),
        ("bias3", Bias()),
        ("conv2", nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)),
        ("scale", Scalar(1.0)),
        ("bias4", Bias()),
    ]
    return nn.Sequential(OrderedDict(layers))


@torch.no_grad()
def fixup_weights(blocks: Sequence[ResidualBlock], classifier: nn.Linear) -> None:
    """Fixup's first weights, from those of He et al.: of L branches of m convolutions each, the last is 0 and the
    others are multiplied by L^(-1 / (2m - 2)); the classifier is 0 (Zhang et al. 2019, arXiv 1901.09321, sec. 3).

    So every block begins as its shortcut. The paper's tenth of the learning rate for biases and factors is not here.
    """
    for block in blocks:
        *first, last = [module for module in block.branch.modules() if isinstance(module, nn.Conv2d)]
        last.weight.zero_()
        for convolution in first:
            convolution.weight *= len(blocks) ** (-1 / (2 * len(first)))
    classifier.weight.zero_()
    classifier.bias.zero_()


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

    def forward(self, input: Tensor) -> Tensor:
        return F.conv2d(input, self.filters, stride=self.stride, padding=self.padding)


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
