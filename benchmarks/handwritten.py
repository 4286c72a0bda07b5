"""The CIFAR ResNet of He et al. 2015 as one would write it by hand: nothing in it can be switched."""

import torch.nn.functional as F
from torch import Tensor, nn


def conv3(in_channels: int, channels: int, stride: int = 1) -> nn.Conv2d:
    """A 3x3 convolution."""
    return nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)


class HandwrittenBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut that pads with zeros where the shape changes, in place."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv3(in_channels, channels, stride), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = conv3(channels, channels), nn.BatchNorm2d(channels)
        self.stride, self.pad = stride, (channels - in_channels) // 2

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(out))
        out += x if self.stride == 1 else F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad))
        return F.relu(out, inplace=True)


class HandwrittenResNet(nn.Module):
    """The twin of `cifar_resnet(depth, width=width, in_channels=in_channels)`: the same weights in the same order."""

    def __init__(self, depth: int, *, width: int = 16, in_channels: int = 3) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv3(in_channels, width), nn.BatchNorm2d(width)
        blocks, channels = [], width
        for index in range((depth - 2) // 2):
            stage, within = divmod(index, (depth - 2) // 6)
            blocks.append(HandwrittenBlock(channels, width * 2**stage, 2 if stage and not within else 1))
            channels = width * 2**stage
        self.blocks, self.linear = nn.Sequential(*blocks), nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, 10)."""
        x = self.blocks(F.relu(self.bn1(self.conv1(x)), inplace=True))
        return self.linear(x.mean((2, 3)))
