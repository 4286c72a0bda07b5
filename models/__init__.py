"""Residual networks whose shortcuts can be switched, forwards and backwards independently."""

from models.block import ResidualBlock
from models.cifar_resnet import CifarResNet, cifar_resnet
from models.flow import ARMS, GRADIENT_ONLY, PLAIN, RESIDUAL, SHORTEST_PATH, STOP_GRADIENT, Flow
from models.imagenet_resnet import imagenet_resnet
from models.public_weights import rename_public_weights

__all__ = [
    "ARMS",
    "GRADIENT_ONLY",
    "PLAIN",
    "RESIDUAL",
    "SHORTEST_PATH",
    "STOP_GRADIENT",
    "CifarResNet",
    "Flow",
    "ResidualBlock",
    "cifar_resnet",
    "imagenet_resnet",
    "rename_public_weights",
]
