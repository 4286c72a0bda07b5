"""The networks that scripts can train: the names of --network."""

from collections.abc import Callable
from functools import partial
from math import prod, sqrt
from typing import Any

import torch
from torch import nn

from models import (
    RESIDUAL,
    FirstWeights,
    Flow,
    cifar_resnet,
    imagenet_resnet,
    inception_resnet,
    rescale,
    residual_blocks,
    residual_mlp,
    vit,
)
from models.construction import blocks_per_stage
from models.transformer import TransformerWeights

Shape = tuple[int, int, int]  # of an image: channels, height, width


def cifar(depth: int, *, shape: Shape, **options: Any) -> nn.Module:
    """A CIFAR ResNet of some block, projection and variant."""
    return cifar_resnet(depth, in_channels=shape[0], **options)


def rescaled(depth: int, *, flow: Flow, factors: Callable[[int], dict[str, float]], **options: Any) -> nn.Module:
    """A CIFAR ResNet whose shortcuts and branches are multiplied by the factors that belong to its number of blocks."""
    model = cifar(depth, **options)
    blocks = residual_blocks(model)
    for block in blocks:
        block.flow = rescale(flow, **factors(len(blocks)))
    return model


def imagenet(depth: int, *, shape: Shape, width: int, **options: Any) -> nn.Module:
    """An ImageNet ResNet, whose width is not ours to choose."""
    if width != 64:
        raise ValueError(f"an imagenet network begins with 64 channels, not {width}: add --width 64")
    return imagenet_resnet(depth, in_channels=shape[0], **options)


def inception(depth: int, *, shape: Shape, first_weights: FirstWeights, **options: Any) -> nn.Module:
    """An Inception-ResNet, with or without residual scaling."""
    if first_weights != "he":
        raise ValueError(f"first weights {first_weights!r}: towers side by side have no identity; leave them out")
    return inception_resnet(depth, in_channels=shape[0], **options)


def mlp(depth: int, *, shape: Shape, width: int, **options: Any) -> nn.Module:
    """A residual MLP of 8 features for each channel that a convolutional network would have in its first stage."""
    return residual_mlp(depth, in_features=prod(shape), width=8 * width, **options)


MOST_PATCHES = 64
"""Of an image, which a vision transformer has as tokens."""


def vision_transformer(
    depth: int, *, flow: Flow, shape: Shape, width: int, first_weights: FirstWeights, **options: Any
) -> nn.Module:
    """A vision transformer of 4n + 2 layers (four a block, patches, classifier), the same flow at attention and MLPs.

    It has 8 features for each channel that a convolutional network would have in its first stage, 4 heads, the mean of
    all tokens as what is classified, and the smallest patches, from 2 x 2 pixels, that are at most 64.
    """
    names: dict[FirstWeights, TransformerWeights] = {"he": "ordinary", "near-identity": "near-identity"}
    if first_weights not in names:
        raise ValueError(
            f"first weights {first_weights!r}: a transformer begins at its own (he) or near-identity; leave them out"
        )
    _, height, across = shape
    tiling = (
        patch
        for patch in range(2, min(height, across) + 1)
        if not height % patch and not across % patch and (height // patch) * (across // patch) <= MOST_PATCHES
    )
    patch = next(tiling, None)
    if patch is None:
        raise ValueError(
            f"no square patches tile {height} x {across} pixels in at most {MOST_PATCHES}: give --image-size"
        )
    return vit(
        blocks_per_stage(depth, layers=4, others=2, kind="transformer"),
        image_size=(height, across),
        patch=patch,
        width=8 * width,
        in_channels=shape[0],
        pooling="mean",
        attention=flow,
        mlp=flow,
        first_weights=names[first_weights],
        **options,
    )


NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "resnet": cifar,
    "bottleneck": partial(cifar, block="bottleneck"),
    "preactivation": partial(cifar, block="preactivation"),
    "projection-b": partial(cifar, projection="B"),
    "projection-c": partial(cifar, projection="C"),
    "halved-shortcut": partial(rescaled, factors=lambda blocks: {"shortcut": 0.5}),
    "halved-sum": partial(rescaled, factors=lambda blocks: {"shortcut": 0.5, "branch": 0.5}),
    "dropout-shortcut": partial(cifar, variant="dropout"),
    "shortcut-gate": partial(cifar, variant="shortcut-gate"),
    "exclusive-gate": partial(cifar, variant="exclusive-gate"),
    "norm-after-sum": partial(cifar, block="norm-after-sum"),
    "rescaled-sum": partial(rescaled, factors=lambda blocks: {"shortcut": sqrt(0.5), "branch": sqrt(0.5)}),
    "depth-scaled": partial(rescaled, factors=lambda blocks: {"branch": 1 / sqrt(blocks)}),
    "unnormalised": partial(cifar, block="unnormalised"),
    "skipinit": partial(cifar, block="skipinit"),
    "fixup": partial(cifar, block="fixup"),
    "dirac": partial(cifar, block="dirac"),
    "stochastic-depth": partial(cifar, variant="stochastic-depth"),
    "inception": inception,
    "inception-scaled": partial(inception, scaling=0.2),
    "mlp": mlp,
    "vit": vision_transformer,
    "imagenet": imagenet,
}


def make(
    name: str,
    depth: int,
    *,
    flow: Flow,
    width: int,
    shape: Shape,
    num_classes: int,
    first_weights: FirstWeights = "he",
) -> nn.Module:
    """A network at its first weights; raises ValueError for a depth, width or first weights that it cannot have."""
    sizes = {"width": width, "shape": shape, "num_classes": num_classes}
    return NETWORKS[name](depth, flow=flow, first_weights=first_weights, **sizes)


def outline(name: str, depth: int, *, width: int, first_weights: FirstWeights = "he") -> nn.Module:
    """A network's modules without memory for their weights; raises ValueError as `make` does."""
    with torch.device("meta"):
        sizes: dict[str, Any] = {"width": width, "shape": (3, 32, 32), "num_classes": 10}
        return make(name, depth, flow=RESIDUAL, first_weights=first_weights, **sizes)


def nearest_depth(name: str, depth: int, *, width: int) -> int:
    """The depth nearest to this one that the network can have, of two the smaller; the depth itself where there is none
    within 200 layers, for `make` to say why."""
    near = sorted(range(depth - 200, depth + 200), key=lambda other: (abs(other - depth), other))
    return next((other for other in near if can_have(name, other, width=width)), depth)


def can_have(name: str, depth: int, *, width: int) -> bool:
    """Whether the network can have that depth, at that width."""
    try:
        outline(name, depth, width=width)
    except ValueError:
        return False
    return True
