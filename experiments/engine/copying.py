"""A stack of blocks that is asked to give back its input, and how far it is from that."""

from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.engine.block_changes import changes_at_ends, some_images
from experiments.engine.cells import train_cell
from experiments.engine.data import Batches, Dataset
from experiments.engine.grid import Cell, Outcome
from experiments.engine.training import Training
from models import ARMS, Flow, ResidualBlock, residual_blocks
from models.branches import Scalar, basic_branch, skipinit_branch

BRANCHES = {"resnet": basic_branch, "skipinit": skipinit_branch}  # by the name of the network that has them


class Stack(nn.Module):
    """Blocks behind a fixed layer, (N, in_channels, H, W) -> (N, width, H, W): the target is that layer's output.

    The fixed layer is a random 3x3 convolution with ReLU: its output is not negative, so that ReLU after a
    block does it no harm, and the identity lies in the function space of every arm. A residual block is the identity
    with its residual at 0. A plain one is with convolutions that pass each channel on, and BatchNorm's weight and bias
    at the deviation and mean of what it normalises: exactly so in eval mode, in train mode up to the difference between
    a batch's statistics and all images'.
    """

    variance: Tensor

    def __init__(self, blocks: int, *, network: str, flow: Flow, width: int, in_channels: int) -> None:
        super().__init__()
        self.lift = nn.Sequential(nn.Conv2d(in_channels, width, 3, padding=1, bias=False), nn.ReLU())
        self.lift.requires_grad_(False)
        branch = BRANCHES[network]
        self.blocks = nn.Sequential(*(ResidualBlock(branch(width, width, 1), flow=flow) for _ in range(blocks)))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        open_branches(self)
        self.register_buffer("variance", torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        return self.blocks(self.lift(images))

    def measure_target(self, images: Tensor) -> None:
        """Take the variance that errors are relative to: of the target over images and places, mean over channels."""
        self.variance.copy_(self.lift(images).var((0, 2, 3), correction=0).mean())

    def relative_error(self, outputs: Tensor, images: Tensor) -> Tensor:
        """Mean squared error over the target's variance: 0 for a copy, 1 for each channel's mean alone."""
        return F.mse_loss(outputs, self.lift(images)) / self.variance

    def loss(self, outputs: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """The relative error; labels play no part."""
        return self.relative_error(outputs, images)


def open_branches(model: nn.Module) -> None:
    """Begin a branch's learned factor at 1 in blocks without the shortcut's value: at 0 nothing would come through."""
    for block in residual_blocks(model):
        for module in block.branch.modules():
            if isinstance(module, Scalar) and block.flow.shortcut == 0:
                nn.init.ones_(module.alpha)


@torch.no_grad()
def copy_error(stack: nn.Module, batches: Batches, split: str) -> dict[str, float]:
    """A stack's relative error over a split, in eval mode and without augmentation."""
    assert isinstance(stack, Stack)
    stack.eval()
    total, size = 0.0, batches.size(split)
    for start in range(0, size, 512):
        images, _ = batches.get(split, slice(start, start + 512))
        total += stack.relative_error(stack(images), images).item() * len(images)
    return {"error": total / size}


def copy_input(cell: Cell, dataset: Dataset, training: Training) -> Outcome:
    """Train a stack of half as many blocks as the cell has layers to give back its input.

    The cell's settings tell network, width, device, and its own epochs and learning_rate.
    """
    of, device = cell.settings, torch.device(str(cell.settings["device"]))
    torch.manual_seed(cell.seed)
    stack = Stack(
        cell.depth // 2,
        network=str(of["network"]),
        flow=ARMS[cell.arm],
        width=int(str(of["width"])),
        in_channels=dataset.shape[0],
    ).to(device)
    stack.measure_target(some_images(Batches(dataset, device)))
    own = replace(training, epochs=int(str(of["epochs"])), learning_rate=float(str(of["learning_rate"])))
    measure = partial(changes_at_ends, evaluate=copy_error)
    return train_cell(cell, dataset, own, model=stack, loss=stack.loss, evaluate=copy_error, measure=measure)
