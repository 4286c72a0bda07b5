"""The CIFAR ResNet of He et al. 2015 (arXiv 1512.03385, sec. 4.2), at any depth and with any flow."""

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn

from models.block import ResidualBlock
from models.flow import RESIDUAL, Flow, one_a_block
from models.kinds import KINDS, Block
from models.shortcut import Projection, gate_of, shortcut
from models.sizes import check_sizes
from models.variants import VARIANTS, Parts, Variant


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

    block: "preactivation" normalises before each convolution, and not after the sum (He et al. 2016, arXiv 1603.05027);
    "norm-after-sum" behind the sum, and not at the branch's end (there, "BN after addition"). "dirac" convolves by the
    identity and a small change (Zagoruyko and Komodakis 2017, arXiv 1706.00388). Two kinds normalise nowhere (but in
    projections B and C) and begin as their shortcuts: "skipinit" multiplies each branch by a learned number, first 0
    (De and Smith 2020, arXiv 2002.10444); "fixup" begins with zeros in each branch's last convolution and in the
    classifier (Zhang et al. 2019, arXiv 1901.09321). Without the shortcut's value these two begin, and stay, at zero.
    variant: what else is done to the shortcut, as in Table 1 of He et al. 2016: dropout (half), shortcut-gate
    ((1 - g) x + F) or exclusive-gate ((1 - g) x + g F); g is a 1x1 convolution's sigmoid, whose bias begins at
    gate_bias. Its constant scaling is `Flow(shortcut=0.5)`, its 1x1 convolutions are projection="C". Or to the branch:
    stochastic-depth keeps that of block l of L with probability 1 - l / 2L in training (Huang et al. 2016, arXiv
    1603.09382).

    Raises ValueError for a depth that does not fit, a width that option A cannot pad, a size under 1, an unknown
    option, or a wrong number of flows.
    """
    for name, given, options in (("block", block, tuple(KINDS)), ("variant", variant, tuple(VARIANTS))):
        if given not in options:
            raise ValueError(f"unknown {name} {given!r}: choose {', '.join(options[:-1])} or {options[-1]}")
    check_sizes(width=width, in_channels=in_channels, num_classes=num_classes)
    kind = KINDS[block]
    n = blocks_a_stage(depth, each=3 * kind.layers, beside=2, kind=block)
    flows = one_a_block(flow, 3 * n)
    stem = nn.Sequential(nn.Conv2d(in_channels, width, 3, padding=1, bias=False), *kind.after_stem(width))
    channels, blocks = width, []
    for index, each in enumerate(flows):
        stage, within = divmod(index, n)
        size = {"in_channels": channels, "out_channels": width * 2**stage * kind.expansion}
        size["stride"] = 2 if stage and not within else 1
        channels = size["out_channels"]
        parts = Parts(
            kind.branch(**size),
            shortcut(**size, projection=projection),
            gate=partial(gate_of, **size, bias=gate_bias),
            survival=1 - (index + 1) / (2 * len(flows)),
        )
        blocks.append(VARIANTS[variant](parts, activation=kind.after_sum(channels), flow=each))
    after, classifier = nn.Sequential(*kind.after_blocks(channels)), nn.Linear(channels, num_classes)
    stages = [nn.Sequential(*blocks[stage * n : (stage + 1) * n]) for stage in range(3)]
    model = initialise(CifarResNet(stem, stages, after, classifier))
    kind.first_weights(model.blocks, model.classifier)
    return model


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
