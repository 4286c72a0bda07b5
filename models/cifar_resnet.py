"""The CIFAR ResNet of He et al. 2015 (arXiv 1512.03385, sec. 4.2), at any depth and with any flow."""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from models.block import ResidualBlock, basic_branch, bottleneck_branch
from models.flow import RESIDUAL, Flow
from models.shortcut import Projection, shortcut

BRANCHES = {"basic": (basic_branch, 2, 1), "bottleneck": (bottleneck_branch, 3, 4)}  # its layers, its expansion


class CifarResNet(nn.Module):
    """A stem, three stages of n residual blocks (the second and third halve the map and double the channels), average
    pooling and a linear classifier: (N, in_channels, H, W) -> (N, num_classes)."""

    def __init__(self, stem: nn.Module, stages: Sequence[nn.Sequential], classifier: nn.Linear) -> None:
        super().__init__()
        self.stem = stem
        self.layer1, self.layer2, self.layer3 = stages
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.classifier = classifier

    @property
    def blocks(self) -> list[ResidualBlock]:
        """The residual blocks in order of depth."""
        stages = (self.layer1, self.layer2, self.layer3)
        return [block for stage in stages for block in stage if isinstance(block, ResidualBlock)]

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(self.stem(x))))
        return self.classifier(self.pool(x))


def cifar_resnet(
    depth: int,
    *,
    flow: Flow | Sequence[Flow] = RESIDUAL,
    block: Literal["basic", "bottleneck"] = "basic",
    width: int = 16,
    in_channels: int = 3,
    num_classes: int = 10,
    projection: Projection = "A",
) -> CifarResNet:
    """A CIFAR ResNet with `depth` weighted layers on the longest way: 6n + 2 for basic blocks, 9n + 2 for bottlenecks.

    flow: one for all blocks (an arm), or one a block. width: channels of the first stage (He et al.: 16), before a
    bottleneck's expansion by 4. projection: the shortcut where the shape changes. Flow changes no shape and no weight:
    under one random seed all flows begin with the same parameters. Convolutions begin with He et al.'s normal
    initialisation (2015, arXiv 1502.01852; fan-out), all other parameters with PyTorch's.

    Raises ValueError for a depth that does not fit, a width that option A cannot pad, or a wrong number of flows.
    """
    if block not in BRANCHES:
        raise ValueError(f"unknown block {block!r}: choose {' or '.join(BRANCHES)}")
    branch, layers, expansion = BRANCHES[block]
    n, rest = divmod(depth - 2, 3 * layers)
    if n < 1 or rest:
        near = [3 * layers * k + 2 for k in (max(1, n), max(1, n) + 1)]
        raise ValueError(
            f"depth {depth} is not {3 * layers}n + 2, as {block} blocks need: the nearest are {near[0]} and {near[1]}"
        )
    flows = [flow] * (3 * n) if isinstance(flow, Flow) else list(flow)
    if len(flows) != 3 * n:
        raise ValueError(f"got {len(flows)} flows for {3 * n} blocks: give one Flow for all, or one for each block")

    stem = nn.Sequential(nn.Conv2d(in_channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
    stages, channels = [], width
    for stage in range(3):
        blocks = []
        for index in range(n):
            out, stride = width * 2**stage * expansion, 2 if stage and not index else 1
            blocks.append(
                ResidualBlock(
                    branch(channels, out, stride),
                    shortcut=shortcut(channels, out, stride=stride, projection=projection),
                    flow=flows[stage * n + index],
                )
            )
            channels = out
        stages.append(nn.Sequential(*blocks))
    model = CifarResNet(stem, stages, nn.Linear(channels, num_classes))
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return model
