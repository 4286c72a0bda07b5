"""Residual networks whose shortcuts can be switched, forwards and backwards independently."""

from models.block import ResidualBlock
from models.cifar_resnet import CifarResNet, cifar_resnet, rename_public_weights
from models.feedback import permuted_shortcuts, random_feedback
from models.first_weights import FirstWeights, set_first_weights
from models.flow import ARMS, GRADIENT_ONLY, PLAIN, RESIDUAL, SHORTEST_PATH, STOP_GRADIENT, Flow, rescale
from models.gpt import GPT, convert_gpt2_weights, gpt
from models.imagenet_resnet import imagenet_resnet
from models.inception import inception_resnet
from models.residual_blocks import residual_blocks, set_flows
from models.residual_mlp import ResidualMLP, residual_mlp
from models.transformer import TransformerBlock
from models.vit import ViT, vit

__all__ = [
    "ARMS",
    "GPT",
    "GRADIENT_ONLY",
    "PLAIN",
    "RESIDUAL",
    "SHORTEST_PATH",
    "STOP_GRADIENT",
    "CifarResNet",
    "FirstWeights",
    "Flow",
    "ResidualBlock",
    "ResidualMLP",
    "TransformerBlock",
    "ViT",
    "cifar_resnet",
    "convert_gpt2_weights",
    "gpt",
    "imagenet_resnet",
    "inception_resnet",
    "permuted_shortcuts",
    "random_feedback",
    "rename_public_weights",
    "rescale",
    "residual_blocks",
    "residual_mlp",
    "set_first_weights",
    "set_flows",
    "vit",
]
