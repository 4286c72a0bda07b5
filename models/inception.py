"""Inception-ResNet (Szegedy et al. 2016, arXiv 1602.07261) at CIFAR's scale, with any flow: its blocks are towers."""

import math
from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.block import ResidualBlock
from models.cifar_resnet import CifarResNet
from models.construction import blocks_per_stage, check_sizes, flow_per_block, initialise_convolutions
from models.flow import RESIDUAL, Flow

Kernel = tuple[int, int]  # height, width
# The towers of a block of each stage, by the kernels of their convolutions (Szegedy et al., Fig. 16, 17 and 19).
TOWERS: tuple[tuple[tuple[Kernel, ...], ...], ...] = (
    (((1, 1),), ((1, 1), (3, 3)), ((1, 1), (3, 3), (3, 3))),  # Inception-ResNet-A
    (((1, 1),), ((1, 1), (1, 7), (7, 1))),  # B
    (((1, 1),), ((1, 1), (1, 3), (3, 1))),  # C
)


class Towers(nn.ModuleList):
    """Modules side by side on one input, their outputs one behind the other in the channels."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([tower(x) for tower in self], dim=1)


class Scaling(nn.Module):
    """factor * x, with a fixed factor."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x

    def extra_repr(self) -> str:
        return f"{self.factor:g}"


def convolution(in_channels: int, out_channels: int, kernel: Kernel, stride: int = 1) -> nn.Sequential:
    """Convolution, BatchNorm, ReLU, padded so that stride 1 keeps the map."""
    padding = (kernel[0] // 2, kernel[1] // 2)
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, stride=stride, padding=padding, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    )


def tower(channels: int, kernels: Sequence[Kernel], *, stride: int = 1) -> nn.Sequential:
    """Convolutions one after another, each of half the `channels` that come in; the last one strides."""
    inner = channels // 2
    return nn.Sequential(
        *(
            convolution(inner if index else channels, inner, kernel, stride if index == len(kernels) - 1 else 1)
            for index, kernel in enumerate(kernels)
        )
    )


def inception_branch(channels: int, towers: Sequence[Sequence[Kernel]], scaling: float) -> nn.Sequential:
    """Towers, a 1x1 convolution back to all channels with neither normalisation nor activation, the scaling."""
    layers = [
        ("towers", Towers(tower(channels, kernels) for kernels in towers)),
        ("expand", nn.Conv2d(len(towers) * (channels // 2), channels, 1)),
        ("scaling", Scaling(scaling)),
    ]
    return nn.Sequential(OrderedDict(layers))


def reduction(channels: int) -> Towers:
    """Between two stages, without a shortcut: pooling | strided 3x3 | 1x1, 3x3, strided 3x3. Halves the map, doubles
    the channels."""
    pool = nn.MaxPool2d(3, stride=2, padding=1)
    return Towers([pool, *(tower(channels, kernels, stride=2) for kernels in (((3, 3),), ((1, 1), (3, 3), (3, 3))))])


def inception_resnet(
    depth: int,
    *,
    flow: Flow | Sequence[Flow] = RESIDUAL,
    width: int = 16,
    in_channels: int = 3,
    num_classes: int = 10,
    scaling: float = 1.0,
) -> CifarResNet:
    """A small Inception-ResNet (Szegedy et al. 2016, arXiv 1602.07261): its branches are towers side by side.

    A stem, n Inception-ResNet-A, n B and n C blocks with a reduction before B and before C, average pooling and a
    linear classifier. Convolutions begin as those of `cifar_resnet`; under one random seed all flows begin with the
    same parameters. Without shortcuts (``flow=PLAIN``) it is this very network, blocks ending in relu(expansion), and
    not Inception-v4, whose blocks end in the towers.

    Args:
        depth: Weighted layers on the longest way, 12n + 8: four a block, three a reduction, stem and classifier.
        flow: One for all blocks (an arm), or one a block in order of depth.
        width: Channels of the first stage, even; each reduction doubles them.
        in_channels: Channels of the images.
        num_classes: Outputs of the classifier.
        scaling: What every branch is multiplied by before the sum, whatever the flow. Szegedy et al. (sec. 3.3) take
            0.1 to 0.3 where a network with over 1,000 filters dies in training. Here it is 1: these have far fewer,
            and a factor holds the plain twin back most, in which nothing unscaled stands beside the branch (on digits,
            at 0.2, by 2.4 times the steps to a loss of 1, the residual network by 1.2): the arms would differ by more
            than the shortcut.

    Returns:
        A network (N, in_channels, H, W) -> (N, num_classes) in train mode.

    Raises:
        ValueError: A depth that does not fit, an odd width, a size under 1, a scaling that is not positive and finite,
            or a wrong number of flows.
    """
    n = blocks_per_stage(depth, layers=12, others=8, kind="inception")
    if width < 2 or width % 2:
        raise ValueError(f"width {width}: give an even number from 2, since a tower has half a block's channels")
    if not 0 < scaling < math.inf:
        raise ValueError(f"scaling {scaling}: give a positive number (Szegedy et al.: 0.1 to 0.3; 1 leaves it out)")
    check_sizes(in_channels=in_channels, num_classes=num_classes)
    flows = flow_per_block(flow, 3 * n)

    stages = []
    for stage, towers in enumerate(TOWERS):
        channels = 2**stage * width
        blocks: list[nn.Module] = [
            ResidualBlock(inception_branch(channels, towers, scaling), flow=block_flow)
            for block_flow in flows[stage * n : (stage + 1) * n]
        ]
        stages.append(nn.Sequential(*([reduction(channels // 2)] if stage else []), *blocks))
    stem = convolution(in_channels, width, (3, 3))
    return initialise_convolutions(CifarResNet(stem, stages, nn.Sequential(), nn.Linear(4 * width, num_classes)))
