"""The CIFAR ResNet of He et al. 2015 (arXiv 1512.03385, sec. 4.2), at any depth and with any flow."""

import re
from collections.abc import Mapping, Sequence
from functools import partial

from torch import Tensor, nn

from models.block import ResidualBlock
from models.construction import blocks_per_stage, check_sizes, flow_per_block, initialise_convolutions
from models.first_weights import FirstWeights, set_first_weights
from models.flow import RESIDUAL, Flow
from models.projections import Projection, make_shortcut
from models.variants import BLOCK_KINDS, VARIANTS, BlockName, Parts, Variant, make_gate


class CifarResNet(nn.Module):
    """A stem, three stages of residual blocks, average pooling and a linear classifier; made by `cifar_resnet`.

    The second and third stage halve the map and double the channels: (N, in_channels, H, W) -> (N, num_classes).

    Args:
        stem: From images to the first stage's input.
        stages: The three stages, of blocks and whatever stands between them.
        after: What follows the last block, before pooling.
        classifier: From the pooled channels to the classes.
    """

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
        """(N, in_channels, H, W) -> (N, num_classes)."""
        x = self.layer3(self.layer2(self.layer1(self.stem(x))))
        return self.classifier(self.pool(x))


def cifar_resnet(
    depth: int,
    *,
    flow: Flow | Sequence[Flow] = RESIDUAL,
    block: BlockName = "basic",
    width: int = 16,
    in_channels: int = 3,
    num_classes: int = 10,
    projection: Projection = "A",
    variant: Variant = "identity",
    gate_bias: float = 0.0,
    first_weights: FirstWeights = "he",
) -> CifarResNet:
    """A CIFAR ResNet (He et al. 2015, arXiv 1512.03385, sec. 4.2) of any depth, flow and kind of block.

    Flow changes no shape and no weight: under one random seed all flows begin with the same parameters. Convolutions
    begin with He et al.'s normal initialisation (2015, arXiv 1502.01852; fan-out), all other parameters with PyTorch's.

    Args:
        depth: Weighted layers on the longest way: 6n + 2 for blocks of two layers, 9n + 2 for bottlenecks.
        flow: One for all blocks (an arm), or one a block in order of depth.
        block: The kind of block. ``"basic"`` and ``"bottleneck"`` are He et al.'s. ``"preactivation"`` normalises
            before each convolution, and not after the sum (He et al. 2016, arXiv 1603.05027); ``"norm-after-sum"``
            behind the sum, and not at the branch's end (there, "BN after addition"). ``"dirac"`` convolves by the
            identity and a small change (Zagoruyko and Komodakis 2017, arXiv 1706.00388). Two kinds normalise nowhere
            (but in projections B and C) and begin as their shortcuts: ``"skipinit"`` multiplies each branch by a
            learned number, first 0 (De and Smith 2020, arXiv 2002.10444); ``"fixup"`` begins with zeros in each
            branch's last convolution and in the classifier (Zhang et al. 2019, arXiv 1901.09321). Without the
            shortcut's value these two begin, and stay, at zero.
        width: Channels of the first stage (He et al.: 16), before a bottleneck's expansion by 4.
        in_channels: Channels of the images.
        num_classes: Outputs of the classifier.
        projection: The shortcut where the shape changes: ``"A"`` pads with zeros, ``"B"`` convolves there (1x1 and
            BatchNorm), ``"C"`` convolves in every block.
        variant: What else is done to the shortcut, as in Table 1 of He et al. 2016: ``"dropout"`` (half),
            ``"shortcut-gate"`` ((1 - g) x + F) or ``"exclusive-gate"`` ((1 - g) x + g F), where g is a 1x1
            convolution's sigmoid. Its constant scaling is ``Flow(shortcut=0.5)``, its 1x1 convolutions are projection
            C. Or to the branch: ``"stochastic-depth"`` keeps that of block l of L with probability 1 - l / 2L in
            training (Huang et al. 2016, arXiv 1603.09382).
        gate_bias: What a gate's bias begins at; the more negative, the wider open is the shortcut.
        first_weights: Of the convolutions in branches: ``"he"``, ``"near-identity"`` (the identity and a tenth of
            noise), ``"delta-orthogonal"`` (Xiao et al. 2018, arXiv 1806.05393) or a number t for (1 - t) delta + t He
            (see `models.first_weights`). Without the shortcut (``flow=PLAIN``) a network that begins near the identity
            is a conditioned plain one. All other parameters are those of ``"he"`` under the same random seed.

    Returns:
        A network (N, in_channels, H, W) -> (N, num_classes) in train mode.

    Raises:
        ValueError: A depth that does not fit, a width that option A cannot pad, a size under 1, an unknown option, a
            wrong number of flows, or first weights for a kind of block that has its own (skipinit, fixup, dirac).
    """
    for name, given, options in (("block", block, tuple(BLOCK_KINDS)), ("variant", variant, tuple(VARIANTS))):
        if given not in options:
            raise ValueError(f"unknown {name} {given!r}: choose {', '.join(options[:-1])} or {options[-1]}")
    check_sizes(width=width, in_channels=in_channels, num_classes=num_classes)
    kind = BLOCK_KINDS[block]
    if first_weights != "he" and kind.has_own_weights:
        raise ValueError(
            f"first_weights {first_weights!r}: {block} blocks begin with weights of their own; leave it out"
        )
    n = blocks_per_stage(depth, layers=3 * kind.layers, others=2, kind=block)
    flows = flow_per_block(flow, 3 * n)
    stem = nn.Sequential(nn.Conv2d(in_channels, width, 3, padding=1, bias=False), *kind.after_stem(width))
    channels, blocks = width, []
    for index, block_flow in enumerate(flows):
        stage, within = divmod(index, n)
        size = {"in_channels": channels, "out_channels": width * 2**stage * kind.expansion}
        size["stride"] = 2 if stage and not within else 1
        channels = size["out_channels"]
        parts = Parts(
            kind.branch(**size),
            make_shortcut(**size, projection=projection),
            gate=partial(make_gate, **size, bias=gate_bias),
            survival=1 - (index + 1) / (2 * len(flows)),
        )
        blocks.append(VARIANTS[variant](parts, activation=kind.after_sum(channels), flow=block_flow))
    after, classifier = nn.Sequential(*kind.after_blocks(channels)), nn.Linear(channels, num_classes)
    stages = [nn.Sequential(*blocks[stage * n : (stage + 1) * n]) for stage in range(3)]
    model = initialise_convolutions(CifarResNet(stem, stages, after, classifier))
    kind.first_weights(model.blocks, model.classifier)
    set_first_weights([block.branch for block in model.blocks], first_weights)
    return model


PUBLIC_NAMES = (
    (r"^module\.", ""),  # left by DataParallel
    (r"^conv1\.", "stem.0."),
    (r"^bn1\.", "stem.1."),
    (r"^(layer\d\.\d+)\.(conv\d|bn\d)\.", r"\1.branch.\2."),
    (r"^(layer\d\.\d+)\.(shortcut|downsample)\.", r"\1.shortcut."),
    (r"^(linear|fc)\.", "classifier."),
)


def rename_public_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of a public CIFAR ResNet with basic blocks, under the names of `cifar_resnet`.

    Expects the names that go back to torchvision: conv1, bn1, layer1.0.conv1 ... layer3.8.bn2, linear or fc, with or
    without ``module.`` before them, such as akamaster/pytorch_resnet_cifar10's. Then::

        stored = torch.load(FILE, weights_only=True)
        cifar_resnet(56).load_state_dict(rename_public_weights(stored["state_dict"]))

    Args:
        state: Tensors by their public names.

    Returns:
        The same tensors by our names; `load_state_dict` names what does not fit.

    Raises:
        ValueError: Nothing looks like such a network.
    """
    renamed = {}
    for name, value in state.items():
        for pattern, replacement in PUBLIC_NAMES:
            name = re.sub(pattern, replacement, name)
        renamed[name] = value
    if "stem.0.weight" not in renamed:
        raise ValueError(
            f"got a state dict with names such as {', '.join(list(state)[:3]) or '(none)'}; wanted conv1, bn1, "
            "layer1.0.conv1, ..., linear: if the weights lie inside a checkpoint, pass its state_dict"
        )
    return renamed
