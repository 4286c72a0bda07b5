"""Wrong ways back, with the values unchanged: random feedback weights, permuted shortcuts."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input, conv2d_weight

from models.residual_blocks import residual_blocks


class _FeedbackConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, feedback: Tensor, how: tuple[Any, ...]) -> Tensor:
        ctx.save_for_backward(x, weight, feedback)
        ctx.how = how
        return F.conv2d(x, weight, None, *how)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, weight, feedback = ctx.saved_tensors
        x, gradient = x.to(weight.dtype), gradients[0].to(weight.dtype)  # under autocast they came in another
        into_x = conv2d_input(x.shape, feedback, gradient, *ctx.how)
        return into_x, conv2d_weight(x, weight.shape, gradient, *ctx.how), None, None


class FeedbackConv2d(nn.Conv2d):
    """A convolution that passes the gradient back through `feedback` in the place of its weight (Lillicrap et al. 2016,
    arXiv 1411.0247); its own weight learns from the gradient that arrives. Values are those of `nn.Conv2d`."""

    feedback: Tensor

    def forward(self, input: Tensor) -> Tensor:
        how = (self.stride, self.padding, self.dilation, self.groups)
        output = _FeedbackConvolution.apply(input, self.weight, self.feedback, how)
        return output if self.bias is None else output + self.bias.view(-1, 1, 1)


def random_feedback(model: nn.Module, draws: torch.Generator) -> None:
    """Give every convolution inside a branch fixed random feedback weights (Lillicrap et al. 2016, arXiv 1411.0247).

    They take the place of its own weights in the backward, and have their standard deviation. Parameters, their names
    and all values stay.

    Args:
        model: A network of this package; its convolutions change class.
        draws: What the feedback weights are drawn from, on the CPU.

    Raises:
        ValueError: No branch has a convolution.
    """
    branches = (block.branch for block in residual_blocks(model))
    found = [module for branch in branches for module in branch.modules() if type(module) is nn.Conv2d]
    if not found:
        raise ValueError("random feedback needs convolutions inside residual branches; this network has none")
    for convolution in found:
        drawn = torch.randn(convolution.weight.shape, generator=draws).to(convolution.weight)
        convolution.__class__ = FeedbackConv2d
        convolution.register_buffer("feedback", drawn * convolution.weight.detach().std(), persistent=False)


@dataclass
class PermutedShortcuts:
    """The switch that `permuted_shortcuts` returns."""

    active: bool = False
    """Whether a backward permutes; read while it runs."""


class _PermutedEntry:
    """A forward pre-hook: its module's input x, unchanged, and a gradient g into x with its channels permuted."""

    def __init__(self, permutation: Tensor, switch: PermutedShortcuts) -> None:
        self.permutation, self.switch = permutation, switch

    def __call__(self, module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        (x,) = inputs
        self.permutation = self.permutation.to(x.device)
        entered = x.view_as(x)
        if entered.requires_grad:
            entered.register_hook(self.permuted)
        return (entered,)

    def permuted(self, gradient: Tensor) -> Tensor:
        features = -1 if gradient.dim() == 3 else 1  # of (N, T, D), or of (N, C, H, W) and (N, D)
        return gradient.index_select(features, self.permutation) if self.switch.active else gradient


def permuted_shortcuts(model: nn.Module, draws: torch.Generator) -> PermutedShortcuts:
    """Let the gradient through each shortcut arrive at the fork with its channels permuted: a placebo for the identity.

    Each block has one permutation, drawn at random, without fixed points where it has two channels or more. It acts on
    the gradient that the shortcut passes into x (behind a projection, whose own parameters learn as before), and keeps
    its norm. Values, parameters and their names stay, and so does every gradient until the switch is active. What
    permutes is a forward pre-hook on the shortcut's module, which a deep copy of the network copies, with a switch of
    its own.

    Args:
        model: A network of blocks with a flow, but `imagenet_resnet`'s. In transformers features are permuted, alike in
            all tokens.
        draws: What the permutations are drawn from, on the CPU.

    Returns:
        The switch of all blocks, off.

    Raises:
        ValueError: The network has no blocks with a flow, or some (`imagenet_resnet`'s) have no module as shortcut.
    """
    blocks = residual_blocks(model)
    held = [block for block in blocks if block.shortcut is block.shortcut]  # torchvision's make one for each use
    if not blocks or len(held) < len(blocks):
        raise ValueError(
            "permuted shortcuts need blocks that hold a module as shortcut (those of cifar_resnet, residual_mlp, gpt): "
            f"got {len(held)} among the {len(blocks)} blocks of {type(model).__name__}"
        )
    switch = PermutedShortcuts()
    for block in blocks:
        channels = next(parameter.shape[1] for parameter in block.branch.parameters() if parameter.dim() > 1)
        block.shortcut.register_forward_pre_hook(_PermutedEntry(cyclic_permutation(channels, draws), switch))
    return switch


def cyclic_permutation(size: int, draws: torch.Generator) -> Tensor:
    """A random permutation of 0 to size - 1 that is one cycle: it has no fixed points, unless size is 1."""
    order = torch.randperm(size, generator=draws)
    permutation = torch.empty_like(order)
    permutation[order] = order.roll(1)
    return permutation
