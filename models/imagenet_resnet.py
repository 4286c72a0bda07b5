"""The ImageNet ResNets of He et al. 2015 (arXiv 1512.03385, Table 1) on torchvision's class, with any flow."""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from models.block import addends
from models.construction import check_sizes, flow_per_block
from models.first_weights import FirstWeights, set_first_weights
from models.flow import RESIDUAL, Flow


class SwitchedBasicBlock(BasicBlock):
    """torchvision's two-layer block, with each addend weighted forwards and backwards by `flow`."""

    flow: Flow = RESIDUAL

    @property
    def shortcut(self) -> nn.Module:
        return nn.Identity() if self.downsample is None else self.downsample

    @property
    def branch(self) -> nn.Sequential:
        return nn.Sequential(self.conv1, self.bn1, self.relu, self.conv2, self.bn2)

    def forward(self, x: Tensor) -> Tensor:
        carried, residual = addends(self, x)
        return self.relu(carried + residual)


class SwitchedBottleneck(Bottleneck):
    """torchvision's three-layer block, with each addend weighted forwards and backwards by `flow`."""

    flow: Flow = RESIDUAL

    @property
    def shortcut(self) -> nn.Module:
        return nn.Identity() if self.downsample is None else self.downsample

    @property
    def branch(self) -> nn.Sequential:
        reduce = (self.conv1, self.bn1, self.relu)
        return nn.Sequential(*reduce, self.conv2, self.bn2, self.relu, self.conv3, self.bn3)

    def forward(self, x: Tensor) -> Tensor:
        carried, residual = addends(self, x)
        return self.relu(carried + residual)


LAYERS: dict[int, tuple[type[BasicBlock | Bottleneck], list[int]]] = {
    18: (SwitchedBasicBlock, [2, 2, 2, 2]),
    34: (SwitchedBasicBlock, [3, 4, 6, 3]),
    50: (SwitchedBottleneck, [3, 4, 6, 3]),
    101: (SwitchedBottleneck, [3, 4, 23, 3]),
    152: (SwitchedBottleneck, [3, 8, 36, 3]),
}


def imagenet_resnet(
    depth: int,
    *,
    flow: Flow | Sequence[Flow] = RESIDUAL,
    in_channels: int = 3,
    num_classes: int = 1000,
    stride_in: Literal["3x3", "1x1"] = "3x3",
    first_weights: FirstWeights = "he",
) -> ResNet:
    """An ImageNet ResNet (He et al. 2015, arXiv 1512.03385, Table 1) with torchvision's names, and any flow.

    The state dict is equal key for key with torchvision's, whose weights load. ``flow=PLAIN`` is the plain twin.

    Args:
        depth: 18, 34, 50, 101 or 152 weighted layers.
        flow: One for all blocks (an arm), or one a block in order of depth.
        in_channels: Channels of the images.
        num_classes: Outputs of the classifier.
        stride_in: The layer of a bottleneck that halves the map: its 3x3 convolution (torchvision's, 4.089 GMACs at 50
            layers) or its first 1x1 (He et al.'s, 3.8).
        first_weights: Of the convolutions in branches, as in `cifar_resnet`. A bottleneck near the identity passes the
            middle quarter of its channels.

    Returns:
        torchvision's `ResNet`, (N, in_channels, 224, 224) -> (N, num_classes), in train mode.

    Raises:
        ValueError: Another depth, another stride_in, a size under 1, a wrong number of flows, or unknown first weights.
    """
    if depth not in LAYERS:
        raise ValueError(f"imagenet_resnet has no depth {depth}: choose from {', '.join(map(str, LAYERS))}")
    if stride_in not in ("3x3", "1x1"):
        raise ValueError(f'stride_in is {stride_in!r}: choose "3x3" (torchvision) or "1x1" (He et al. 2015)')
    check_sizes(in_channels=in_channels, num_classes=num_classes)
    block, layers = LAYERS[depth]
    model = ResNet(block, layers, num_classes=num_classes)
    if in_channels != 3:
        model.conv1 = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")  # as torchvision's
    blocks = [b for b in model.modules() if isinstance(b, SwitchedBasicBlock | SwitchedBottleneck)]
    for residual_block, block_flow in zip(blocks, flow_per_block(flow, len(blocks)), strict=True):
        residual_block.flow = block_flow
        if stride_in == "1x1" and isinstance(residual_block, SwitchedBottleneck):
            first, second = residual_block.conv1, residual_block.conv2
            first.stride, second.stride = second.stride, first.stride
    set_first_weights([residual_block.branch for residual_block in blocks], first_weights)
    return model
