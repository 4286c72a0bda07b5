"""The one training loop, the same for every arm, on cross-entropy or another loss."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.engine.running import distributed
from experiments.engine.running.checkpoints import Checkpoint
from experiments.engine.running.messages import logger
from experiments.engine.training.captured_step import CapturedSteps, take_rates_from_tensors
from experiments.engine.training.compute import AS_WRITTEN, Computing
from experiments.engine.training.data import Batches
from experiments.engine.training.image_files import ImageFiles
from experiments.engine.training.optimisation import Training, make_optimiser, make_schedule, share

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Of a batch's outputs, images and labels: the mean over the batch."""
MakeOptimiser = Callable[[nn.Module, Training], torch.optim.Optimizer]
"""Of a network, at a training's highest learning rate."""


@dataclass(frozen=True)
class Moment:
    """When a step is taken, in steps and in epochs, both from 0."""

    step: int
    epoch: int


Backward = Callable[[nn.Module, Tensor, Moment], None]
"""Called as (network, loss, moment) once a step: leaves the update in the parameters' `.grad`. Generators that it draws
from stand in its attribute `generators`, if it has any, so that a training resumes with them; a context that forwards
and backwards need around them in `context`, called as (network)."""


def backpropagation(model: nn.Module, loss: Tensor, moment: Moment) -> None:
    """The gradient of the loss, unchanged."""
    loss.backward()


def context_of(backward: Backward, model: nn.Module) -> AbstractContextManager[object]:
    """The context that a backward needs around forwards and backwards of a network; an empty one if it needs none."""
    return getattr(backward, "context", nullcontext)(model)


class Diverged(Exception):
    """The loss was not finite at `step` (counted from 0): the end of a run, and a result."""

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
    make_optimiser: MakeOptimiser = make_optimiser,
    computing: Computing = AS_WRITTEN,
    gradient_context: Callable[[nn.Module], AbstractContextManager[object]] | None = None,
    checkpoint: Checkpoint | None = None,
) -> Iterator[Tensor]:
    """Train, yielding after each epoch its batches' losses, in the order of steps.

    The seed decides the order of the data and its augmentation, nothing else: all arms of a seed see the same batches.
    backward: leaves the update in `.grad`. computing: how, on the device; it may change the memory layout of the
    network's weights. gradient_context: a context for an epoch's forwards and backwards. checkpoint: from which the
    training resumes, and where its state is written once the caller is done with an epoch. Raises Diverged at the end
    of the epoch in which the loss stopped being finite: within an epoch nothing waits for a GPU.

    With several processes (torchrun), each takes its share of every batch, and all take the same step, by the mean of
    their gradients (DistributedDataParallel); the losses are of whole batches. BatchNorm normalises each share by
    itself, and what a network draws in its forward (dropout) is drawn alike for each share.
    """
    if gradient_context or backward is not backpropagation:
        computing.refuse_compile()
    plain = backward is backpropagation and gradient_context is None
    captures = computing.capture and may_capture(batches, computing, plain=plain)
    computing.lay_out(model)
    forward = computing.compiled(distributed.data_parallel(model))
    generator = torch.Generator().manual_seed(seed)
    size = batches.size("train")
    steps = training.steps_per_epoch(size)
    optimiser = make_optimiser(model, training)
    if captures:
        take_rates_from_tensors(optimiser)
    scheduler = make_schedule(optimiser, training, steps * training.epochs)
    checkpoint = checkpoint or Checkpoint()
    parts = {"model": model, "optimiser": optimiser, "scheduler": scheduler}
    generators = [generator, *getattr(backward, "generators", ()), *global_generators(batches.device)]

    def step(images: Tensor, labels: Tensor, moment: Moment) -> Tensor:
        with computing.forward(images.device):
            of_batch = loss(forward(computing.laid_out(images)), images, labels)
        optimiser.zero_grad()
        backward(model, of_batch, moment)
        optimiser.step()
        return of_batch.detach()

    captured = CapturedSteps(lambda draw: step(*batches.make(draw), Moment(0, 0)), optimiser) if captures else None
    for epoch in range(checkpoint.restore(parts, generators), training.epochs):
        model.train()
        losses: list[Tensor] = []
        with gradient_context(model) if gradient_context else nullcontext(), context_of(backward, model):
            order = torch.randperm(size, generator=generator).split(training.batch_size)[:steps]
            own = share(len(order[0]))
            if captured is not None:
                taken = map(captured, batches.draws(order, generator, share=own))
            else:
                taken = (
                    step(images, labels, Moment(step=epoch * steps + index, epoch=epoch))
                    for index, (images, labels) in enumerate(batches.epoch(order, generator, share=own))
                )
            for of_batch in taken:
                scheduler.step()
                losses.append(of_batch)
        of_epoch = distributed.mean(torch.stack(losses))
        if not of_epoch.isfinite().all():
            raise Diverged(epoch * steps + int(of_epoch.isfinite().logical_not().nonzero()[0]))
        if not torch.stack([parameter.isfinite().all() for parameter in model.parameters()]).all():
            raise Diverged((epoch + 1) * steps)  # the next step's loss
        distributed.check_alike(model)
        yield of_epoch
        if epoch + 1 < training.epochs:
            checkpoint.save(epoch + 1, parts, generators)


def may_capture(batches: Batches, computing: Computing, *, plain: bool) -> bool:
    """Whether a training step can be captured; if not, a line of the log says why. plain: whether nothing but the
    loss's own backward changes gradients."""
    reasons = {
        "it needs a GPU": batches.device.type != "cuda",
        "something changes gradients in Python": not plain,
        "images are in files": isinstance(batches.splits["train"][0], ImageFiles),
        "processes train together (torchrun)": distributed.together(),
        "compiled code is not captured (--compile)": computing.compile,
    }
    for reason, holds in reasons.items():
        if holds:
            logger.warning(f"--capture: steps are taken without it, since {reason}")
            return False
    return True


def global_generators(device: torch.device) -> list[torch.Generator]:
    """The global generators that a network's forward draws from: of the CPU, and of its GPU if it has one."""
    if device.type == "cpu":
        return [torch.default_generator]
    index = torch.cuda.current_device() if device.index is None else device.index
    return [torch.default_generator, torch.cuda.default_generators[index]]


@torch.no_grad()
def recompute_bn_statistics(model: nn.Module, batches: Batches, *, batch_size: int = 128, most: int = 16) -> None:
    """Recompute BatchNorm's running statistics from training images (at most 16 batches, always the same ones), without
    dropout, and leave the network in eval mode.

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
    parts = order.split(batch_size)[:most] if norms else ()
    for images, _ in batches.in_turn("train", [part for part in parts if len(part) > 1]):  # one alone has no variance
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
