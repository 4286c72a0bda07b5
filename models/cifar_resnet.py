"""The CIFAR ResNet of He et al. 2015 (arXiv 1512.03385, sec. 4.2), at any depth and with any flow."""

from collections.abc import Callable, Sequence
from typing import Literal

from torch import Tensor, nn

from models.block import (
    ExclusiveGateBlock,
    ResidualBlock,
    basic_branch,
    bottleneck_branch,
    preactivation_branch,
    skipinit_branch,
)
from models.flow import RESIDUAL, Flow, one_a_block
from models.shortcut import Projection, ShortcutGate, gate_of, shortcut

BRANCHES = {  # its layers, its expansion
    "basic": (basic_branch, 2, 1),
    "bottleneck": (bottleneck_branch, 3, 4),
    "preactivation": (preactivation_branch, 2, 1),
    "skipinit": (skipinit_branch, 2, 1),
}
Block = Literal["basic", "bottleneck", "preactivation", "skipinit"]
Variant = Literal["identity", "dropout", "shortcut-gate", "exclusive-gate"]
VARIANTS = ("identity", "dropout", "shortcut-gate", "exclusive-gate")


class CifarResNet(nn.Module):
    """A stem, three stages of n residual blocks (the second and third halve the map and double the channels), what
    follows the last block, average pooling and a linear classifier: (N, in_channels, H, W) -> (N, num_classes)."""

    def __init__(
        self, stem: nn.Module, stages: Sequence[nn.Sequential], after: nn.Sequential, classifier: nn.Linear
    ) -> None:
        super().__init__()
        self.stem = stem
        self.layer1, self.layer2, self.layer3 = stages
        self.pool = nn.Sequential(*after, nn.AdaptiveAvgPool2d(1), nn.Flatten())
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
    block: Block = "basic",
    width: int = 16,
    in_channels: int = 3,
    num_classes: int = 10,
    projection: Projection = "A",
    variant: Variant = "identity",
    gate_bias: float = 0.0,
) -> CifarResNet:
    """A CIFAR ResNet with `depth` weighted layers on the longest way: 6n + 2 for blocks of two layers, 9n + 2 for
    bottlenecks.

    flow: one for all blocks (an arm), or one a block. width: channels of the first stage (He et al.: 16), before a
    bottleneck's expansion by 4. projection: the shortcut where the shape changes. Flow changes no shape and no weight:
    under one random seed all flows begin with the same parameters. Convolutions begin with He et al.'s normal
    initialisation (2015, arXiv 1502.01852; fan-out), all other parameters with PyTorch's.

    block: "preactivation" normalises before each convolution, and not after the sum (He et al. 2016, arXiv 1603.05027).
    "skipinit" normalises nowhere (but in projections B and C), and multiplies each branch by a learned number that
    begins at 0 (De and Smith 2020, arXiv 2002.10444): without the shortcut's value such a network begins, and stays, at
    zero.
    variant: what else is done to the shortcut, as in Table 1 there: dropout (half), shortcut-gate ((1 - g) x + F) or
    exclusive-gate ((1 - g) x + g F); g is a 1x1 convolution's sigmoid, whose bias begins at gate_bias. Its constant
    scaling is `Flow(shortcut=0.5)`, its 1x1 convolutions are projection="C".

    Raises ValueError for a depth that does not fit, a width that option A cannot pad, an unknown option, or a wrong
    number of flows.
    """
    for name, given, options in (("block", block, tuple(BRANCHES)), ("variant", variant, VARIANTS)):
        if given not in options:
            raise ValueError(f"unknown {name} {given!r}: choose {', '.join(options[:-1])} or {options[-1]}")
    branch, layers, expansion = BRANCHES[block]
    n = blocks_a_stage(depth, each=3 * layers, beside=2, kind=block)
    flows = one_a_block(flow, 3 * n)

    before_activation = block == "preactivation"
    stem: list[nn.Module] = [nn.Conv2d(in_channels, width, 3, padding=1, bias=False)]
    if not before_activation:
        stem += [nn.ReLU()] if block == "skipinit" else [nn.BatchNorm2d(width), nn.ReLU()]
    stages, channels = [], width
    for stage in range(3):
        blocks = []
        for index in range(n):
            out, stride = width * 2**stage * expansion, 2 if stage and not index else 1
            activation = nn.Identity() if before_activation else nn.ReLU()
            connected = connect(
                branch(channels, out, stride),
                shortcut(channels, out, stride=stride, projection=projection),
                variant=variant,
                gate=lambda size=(channels, out), stride=stride: gate_of(*size, stride=stride, bias=gate_bias),
                activation=activation,
                flow=flows[stage * n + index],
            )
            blocks.append(connected)
            channels = out
        stages.append(nn.Sequential(*blocks))
    after: list[nn.Module] = [nn.BatchNorm2d(channels), nn.ReLU()] if before_activation else []
    classifier = nn.Linear(channels, num_classes)
    return initialise(CifarResNet(nn.Sequential(*stem), stages, nn.Sequential(*after), classifier))


def blocks_a_stage(depth: int, *, each: int, beside: int, kind: str) -> int:
    """The n of a depth of each * n + beside layers; raises ValueError, with the two nearest, where there is none."""
    n, rest = divmod(depth - beside, each)
    if n < 1 or rest:
        near = [each * k + beside for k in (max(1, n), max(1, n) + 1)]
        raise ValueError(
            f"depth {depth} is not {each}n + {beside}, as {kind} blocks need: the nearest are {near[0]} and {near[1]}"
        )
    return n


def initialise(model: CifarResNet) -> CifarResNet:
    """The network, its convolutions at He et al.'s normal initialisation (fan-out)."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return model


def connect(
    branch: nn.Module,
    shortcut: nn.Module,
    *,
    variant: Variant,
    gate: Callable[[], nn.Module],
    activation: nn.Module,
    flow: Flow,
) -> ResidualBlock:
    """A block of that branch and that shortcut, with the variant's gate or dropout on them."""
    if variant == "exclusive-gate":
        return ExclusiveGateBlock(branch, gate(), shortcut=shortcut, activation=activation, flow=flow)
    if variant == "shortcut-gate":
        shortcut = ShortcutGate(shortcut, gate())
    if variant == "dropout":
        shortcut = nn.Sequential(shortcut, nn.Dropout(0.5))
    return ResidualBlock(branch, shortcut=shortcut, activation=activation, flow=flow)
