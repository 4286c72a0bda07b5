"""The networks that a script can be asked about: the names of --network."""

from collections.abc import Callable
from functools import partial
from math import prod
from typing import Any

import torch
from torch import nn

from models import RESIDUAL, Flow, cifar_resnet, imagenet_resnet, inception_resnet, residual_mlp

Shape = tuple[int, int, int]  # of an image: channels, height, width


def cifar(depth: int, *, shape: Shape, **options: Any) -> nn.Module:
    """A CIFAR ResNet of some block, projection and variant."""
    return cifar_resnet(depth, in_channels=shape[0], **options)


def imagenet(depth: int, *, shape: Shape, width: int, **options: Any) -> nn.Module:
    """An ImageNet ResNet, whose width is not ours to choose."""
    if width != 64:
        raise ValueError(f"an imagenet network begins with 64 channels, not {width}: add --width 64")
    return imagenet_resnet(depth, in_channels=shape[0], **options)


def inception(depth: int, *, shape: Shape, **options: Any) -> nn.Module:
    """An Inception-ResNet, with or without residual scaling."""
    return inception_resnet(depth, in_channels=shape[0], **options)


def mlp(depth: int, *, shape: Shape, width: int, **options: Any) -> nn.Module:
    """A residual MLP of 8 features for each channel that a convolutional network would have in its first stage."""
    return residual_mlp(depth, in_features=prod(shape), width=8 * width, **options)


NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "resnet": cifar,
    "bottleneck": partial(cifar, block="bottleneck"),
    "preactivation": partial(cifar, block="preactivation"),
    "skipinit": partial(cifar, block="skipinit"),
    "projection-b": partial(cifar, projection="B"),
    "projection-c": partial(cifar, projection="C"),
    "dropout-shortcut": partial(cifar, variant="dropout"),
    "shortcut-gate": partial(cifar, variant="shortcut-gate"),
    "exclusive-gate": partial(cifar, variant="exclusive-gate"),
    "inception": inception,
    "inception-scaled": partial(inception, scaling=0.2),
    "mlp": mlp,
    "imagenet": imagenet,
}


def make(name: str, depth: int, *, flow: Flow, width: int, shape: Shape, num_classes: int) -> nn.Module:
    """A network at its first weights; raises ValueError for a depth or width that it cannot have."""
    return NETWORKS[name](depth, flow=flow, width=width, shape=shape, num_classes=num_classes)


def outline(name: str, depth: int, *, width: int) -> nn.Module:
    """A network's modules without memory for their weights; raises ValueError as `make` does."""
    with torch.device("meta"):
        return make(name, depth, flow=RESIDUAL, width=width, shape=(3, 32, 32), num_classes=10)
