"""Fixup: residual networks without normalisation, which first weights and a few learned numbers keep trainable."""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.block import ResidualBlock
from models.branches import Scalar


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
