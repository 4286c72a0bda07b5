"""The one training loop, the same for every arm, on cross-entropy or another loss."""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.engine import processes
from experiments.engine.checkpoints import Checkpoint
from experiments.engine.command import BadInput, check_choice
from experiments.engine.computing import AS_WRITTEN, Computing
from experiments.engine.controls import Backward, Moment, backpropagation
from experiments.engine.data import Batches
from models import residual_blocks

SCHEDULES = ("one-cycle", "step")
OPTIMISERS = ("sgd", "sign", "adam")
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Of a batch's outputs, images and labels: the mean over the batch."""


@dataclass(frozen=True)
class Training:
    """How it is learned, alike for every arm."""

    epochs: int = 10
    """Passes through the training images."""
    batch_size: int = 128
    """Images a step; an epoch's incomplete last batch is left out."""
    learning_rate: float = 0.1
    """The highest learning rate of the schedule."""
    optimiser: str = "sgd"
    """sgd; sign (SGD on the gradient's signs, Bernstein et al. 2018's signSGD); adam (Kingma and Ba 2015)."""
    momentum: float = 0.9
    """Momentum of SGD and of signs; Adam's beta_1."""
    weight_decay: float = 1e-4
    """L2 penalty on all parameters that the loss depends on."""
    schedule: str = "one-cycle"
    """one-cycle (Smith & Topin 2017), or step (He et al. 2015: a tenth after 1/2 and again after 3/4 of the steps)."""

    def check(self) -> None:
        """Raise BadInput for a value that makes no sense."""
        check_choice("--schedule", self.schedule, SCHEDULES)
        check_choice("--optimiser", self.optimiser, OPTIMISERS)
        for flag, value, ok, wanted in (
            ("--epochs", self.epochs, self.epochs >= 1, "at least 1"),
            ("--batch-size", self.batch_size, self.batch_size >= 2, "at least 2"),
            ("--learning-rate", self.learning_rate, 0 < self.learning_rate < math.inf, "a number above 0"),
            ("--momentum", self.momentum, 0 <= self.momentum < 1, "at least 0 and less than 1"),
            ("--weight-decay", self.weight_decay, 0 <= self.weight_decay < math.inf, "at least 0"),
        ):
            if not ok:
                raise BadInput(f"{flag} {value}: give {wanted}")
        share(self.batch_size)

    def steps_an_epoch(self, images: int) -> int:
        """The batches that so many training images fill; one, if they do not fill any."""
        return max(1, images // self.batch_size)


def share(images: int) -> slice:
    """This process's part of a batch, an equal one; BadInput where that is none or under two images."""
    if images % processes.count() or images < 2 * processes.count():
        least = 2 * processes.count()
        raise BadInput(
            f"{processes.count()} processes cannot share a batch of {images} images evenly: give a --batch-size, and "
            f"as many training images or more, that is a multiple of {processes.count()}, at least {least}"
        )
    return processes.share(images)


class Diverged(Exception):
    """The loss was not finite at `step` (counted from 0): the end of a cell, and a result."""

    def __init__(self, step: int) -> None:
        super().__init__(f"diverged at step {step}")
        self.step = step


def cross_entropy(outputs: Tensor, images: Tensor, labels: Tensor) -> Tensor:
    """The loss of a classifier."""
    return F.cross_entropy(outputs, labels)


def train(
    model: nn.Module,
    batches: Batches,
    training: Training,
    *,
    seed: int,
    backward: Backward = backpropagation,
    loss: Loss = cross_entropy,
    computing: Computing = AS_WRITTEN,
    around: Callable[[nn.Module], AbstractContextManager[object]] | None = None,
    checkpoint: Checkpoint | None = None,
) -> Iterator[Tensor]:
    """Train, yielding after each epoch its batches' losses, in the order of steps.

    The seed decides the order of the data and its augmentation, nothing else: all arms of a seed see the same batches.
    backward: leaves the update in `.grad`. computing: how, on the device; the network's weights may be laid out anew in
    memory. around: a context for an epoch's forwards and backwards. checkpoint: where the training goes on, and what
    keeps its state once the caller is done with an epoch. Raises Diverged at the end of the epoch in which the loss
    stopped being finite: within an epoch nothing waits for a GPU.

    With several processes (torchrun), each takes its share of every batch, and all take the same step, by the mean of
    their gradients (DistributedDataParallel); the losses are of whole batches. BatchNorm normalises each share by
    itself, and what a network draws in its forward (dropout) is drawn alike for each share.
    """
    if around or backward is not backpropagation:
        computing.refuse_compile()
    computing.lay_out(model)
    forward = computing.compiled(processes.distributed(model))
    generator = torch.Generator().manual_seed(seed)
    size = batches.size("train")
    steps = training.steps_an_epoch(size)
    optimiser = make_optimiser(model, training)
    scheduler = make_schedule(optimiser, training, steps * training.epochs)
    checkpoint = checkpoint or Checkpoint()
    parts = {"model": model, "optimiser": optimiser, "scheduler": scheduler}
    generators = [generator, *getattr(backward, "generators", ()), *torchs_own(batches.device)]
    for epoch in range(checkpoint.restore(parts, generators), training.epochs):
        model.train()
        losses: list[Tensor] = []
        with around(model) if around else nullcontext():
            order = torch.randperm(size, generator=generator).split(training.batch_size)[:steps]
            shares = batches.epoch(order, generator, share=share(len(order[0])))
            for index, (images, labels) in enumerate(shares):
                with computing.forward(images.device):
                    of_batch = loss(forward(computing.laid_out(images)), images, labels)
                optimiser.zero_grad()
                backward(model, of_batch, Moment(step=epoch * steps + index, epoch=epoch))
                optimiser.step()
                scheduler.step()
                losses.append(of_batch.detach())
        of_epoch = processes.mean(torch.stack(losses))
        if not of_epoch.isfinite().all():
            raise Diverged(epoch * steps + int(of_epoch.isfinite().logical_not().nonzero()[0]))
        if not torch.stack([parameter.isfinite().all() for parameter in model.parameters()]).all():
            raise Diverged((epoch + 1) * steps)  # the next step's loss
        processes.check_alike(model)
        yield of_epoch
        if epoch + 1 < training.epochs:
            checkpoint.save(epoch + 1, parts, generators)


def torchs_own(device: torch.device) -> list[torch.Generator]:
    """Of what a network draws in its forward: on the CPU, and on the GPU that it is trained on, if it is one."""
    if device.type == "cpu":
        return [torch.default_generator]
    index = torch.cuda.current_device() if device.index is None else device.index
    return [torch.default_generator, torch.cuda.default_generators[index]]


@torch.no_grad()
def settle_statistics(model: nn.Module, batches: Batches, *, batch_size: int = 128, most: int = 16) -> None:
    """Take BatchNorm's running statistics anew from training images (at most 16 batches, always the same ones), of the
    network that is evaluated: nothing is dropped meanwhile. Leaves it in eval mode.

    In a short training the running averages lag behind the weights, more in some arms than in others; without this, an
    evaluation would measure that lag.
    """
    model.eval()
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train().reset_running_stats()
        norm.momentum = None  # the plain average over batches
    order = torch.randperm(batches.size("train"), generator=torch.Generator().manual_seed(0))
    for images, _ in batches.in_turn("train", order.split(batch_size)[:most] if norms else ()):
        model(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.eval()


@torch.no_grad()
def evaluate(model: nn.Module, batches: Batches, split: str) -> dict[str, float]:
    """Mean loss and accuracy (0..1) over a split, in eval mode and without augmentation."""
    model.eval()
    loss, correct, size = 0.0, 0, batches.size(split)
    for images, labels in batches.in_turn(split, torch.arange(size).split(512)):
        outputs = model(images)
        loss += F.cross_entropy(outputs, labels, reduction="sum").item()
        correct += int((outputs.argmax(1) == labels).sum())
    return {"loss": loss / size, "accuracy": correct / size}


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Weight decay for all parameters but those of an addend with forward weight 0: the loss does not depend on them,
    so they stay as they began, a fixed feedback path."""
    fixed = {
        parameter
        for block in residual_blocks(model)
        for weight, addend in ((block.flow.shortcut, block.shortcut), (block.flow.branch, block.branch))
        if weight == 0
        for parameter in addend.parameters()
    }
    return [
        {"params": [p for p in model.parameters() if p not in fixed], "weight_decay": weight_decay},
        {"params": [p for p in model.parameters() if p in fixed], "weight_decay": 0.0},
    ]


class SignSGD(torch.optim.SGD):
    """SGD to which every gradient is its sign (Bernstein et al. 2018, arXiv 1802.04434): no scale is left in it."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad.sign_()
        super().step()


def make_optimiser(model: nn.Module, training: Training) -> torch.optim.Optimizer:
    """The optimiser of a training, at its highest learning rate."""
    parameters = parameter_groups(model, training.weight_decay)
    if training.optimiser == "adam":
        return torch.optim.Adam(parameters, lr=training.learning_rate, betas=(training.momentum, 0.999))
    kind = SignSGD if training.optimiser == "sign" else torch.optim.SGD
    return kind(parameters, lr=training.learning_rate, momentum=training.momentum)


def make_schedule(
    optimiser: torch.optim.Optimizer, training: Training, steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """The learning rate's course over that many steps."""
    if training.schedule == "one-cycle":
        return torch.optim.lr_scheduler.OneCycleLR(
            optimiser, training.learning_rate, total_steps=max(steps, 2), cycle_momentum=False
        )
    return torch.optim.lr_scheduler.MultiStepLR(optimiser, [steps // 2, steps * 3 // 4])
