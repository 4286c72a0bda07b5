"""Optimisers and learning-rate schedules."""

import math
from dataclasses import dataclass

import torch
from torch import nn

from experiments.engine.running import distributed
from experiments.engine.running.messages import BadInput, check_choice
from models import residual_blocks

SCHEDULES = ("one-cycle", "step")
OPTIMISERS = ("sgd", "sign", "adam", "adamw")


@dataclass(frozen=True)
class Training:
    """How a network is trained, alike for every arm."""

    epochs: int = 10
    """Passes through the training images."""
    batch_size: int = 128
    """Images a step; an epoch's incomplete last batch is left out."""
    learning_rate: float = 0.1
    """The highest learning rate of the schedule."""
    optimiser: str = "sgd"
    """sgd; sign (SGD on the gradient's signs, Bernstein et al. 2018's signSGD); adam (Kingma and Ba 2015); adamw
    (Loshchilov and Hutter 2019, whose weight decay is apart from the gradient)."""
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

    def steps_per_epoch(self, images: int) -> int:
        """The batches that so many training images fill; one, if they do not fill any."""
        return max(1, images // self.batch_size)


def share(images: int) -> slice:
    """This process's equal part of a batch; BadInput where it would have less than two images."""
    processes = distributed.count()
    if images % processes or images < 2 * processes:
        raise BadInput(
            f"{processes} processes cannot share a batch of {images} images evenly: give a --batch-size, and as many "
            f"training images or more, that is a multiple of {processes}, at least {2 * processes}"
        )
    return distributed.share(images)


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
    """SGD on the gradients' signs (Bernstein et al. 2018, arXiv 1802.04434), which have no scale."""

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
    if training.optimiser in ("adam", "adamw"):
        adam = torch.optim.AdamW if training.optimiser == "adamw" else torch.optim.Adam
        return adam(parameters, lr=training.learning_rate, betas=(training.momentum, 0.999))
    kind = SignSGD if training.optimiser == "sign" else torch.optim.SGD
    return kind(parameters, lr=training.learning_rate, momentum=training.momentum)


def make_schedule(
    optimiser: torch.optim.Optimizer, training: Training, steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """The learning-rate schedule over that many steps."""
    if training.schedule == "one-cycle":
        return torch.optim.lr_scheduler.OneCycleLR(
            optimiser, training.learning_rate, total_steps=max(steps, 2), cycle_momentum=False
        )
    return torch.optim.lr_scheduler.MultiStepLR(optimiser, [math.ceil(steps / 2), math.ceil(steps * 3 / 4)])
