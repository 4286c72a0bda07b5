"""A block's shortcut: the identity, or a projection where the shape changes (He et al. 2015, options A, B, C)."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

Projection = Literal["A", "B", "C"]


class ZeroPad(nn.Module):
    """Option A, without parameters: every `stride`-th pixel, and new channels of zeros, equally many on both sides."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        extra = out_channels - in_channels
        if extra < 0 or extra % 2:
            raise ValueError(
                f"projection A pads channels equally on both sides, which {in_channels} -> {out_channels} does not "
                "allow; choose an even width, or projection B"
            )
        self.pad, self.stride = extra // 2, stride

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C + 2 pad, ceil(H / stride), ceil(W / stride))."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.pad, self.pad))


def make_shortcut(in_channels: int, out_channels: int, *, stride: int, projection: Projection) -> nn.Module:
    """The shortcut of one block: A pads where the shape changes, B convolves there (1x1, BatchNorm), C everywhere.

    Raises ValueError where option A cannot pad equally, or for an unknown option.
    """
    if projection not in ("A", "B", "C"):
        raise ValueError(f"unknown projection {projection!r}: choose A (zero-padding), B or C (1x1 convolutions)")
    if projection != "C" and in_channels == out_channels and stride == 1:
        return nn.Identity()
    if projection == "A":
        return ZeroPad(in_channels, out_channels, stride)
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False), nn.BatchNorm2d(out_channels)
    )
