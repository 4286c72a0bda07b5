"""Random feedback: convolutions whose gradient travels back through fixed random weights."""

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
