"""What a cell does: one network made from its seed, trained, and measured on the way."""

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager

import pandas as pd
import torch
from torch import Tensor, nn

from experiments.engine.checkpoints import Checkpoint, framed, plain
from experiments.engine.computing import Computing
from experiments.engine.controls import NO_CONTROL, Backward, Control
from experiments.engine.data import Batches, Dataset
from experiments.engine.grid import Cell, Outcome
from experiments.engine.networks import make
from experiments.engine.training import (
    Diverged,
    Loss,
    Training,
    cross_entropy,
    evaluate,
    settle_statistics,
    train,
)
from models import ARMS

Tables = dict[str, pd.DataFrame]
Measure = Callable[[nn.Module, Batches, int, bool], Tables]
Evaluate = Callable[[nn.Module, Batches, str], dict[str, float]]


def make_network(cell: Cell, dataset: Dataset) -> nn.Module:
    """The cell's network at its first weights."""
    torch.manual_seed(cell.seed)
    model = make(
        str(cell.settings["network"]),
        cell.depth,
        flow=ARMS[cell.arm],
        width=int(str(cell.settings["width"])),
        shape=dataset.shape,
        num_classes=len(dataset.classes),
    )
    return model.to(str(cell.settings["device"]))


def train_cell(
    cell: Cell,
    dataset: Dataset,
    training: Training,
    *,
    control: Control = NO_CONTROL,
    watch: Callable[[Backward], Backward] | None = None,
    model: nn.Module | None = None,
    loss: Loss = cross_entropy,
    evaluate: Evaluate = evaluate,
    validate: bool = True,
    measure: Measure = lambda model, batches, epoch, last: {},
    around: Callable[[nn.Module], AbstractContextManager[object]] | None = None,
) -> Outcome:
    """Train the cell's network, and give curves, each step's loss, final outcomes, and what `measure` tells.

    control: how each update is made. watch: looks on while updates are made, and changes none. model: another network
    than `make_network` gives; it is trained in place. loss, evaluate: another task than classification; `evaluate`
    tells quantities of a split by name. validate: after every epoch, which takes time, or at the end alone. measure:
    called as (model, batches, epoch, last) before the first step and after every epoch; its tables are joined by name,
    with columns step and epoch. around: a context for the training's forwards and backwards. In a grid, a cell that was
    killed goes on from its last checkpoint, but with `watch` or `around`, which may keep a state of their own, it
    begins anew; `measure` keeps none from epoch to epoch.
    """
    model = make_network(cell, dataset) if model is None else model
    backward = control.prepare(model, seed=cell.seed)
    batches = Batches(dataset, torch.device(str(cell.settings["device"])))
    checkpoint = Checkpoint.take() if watch is None and around is None else Checkpoint()
    curves: list[dict[str, object]] = checkpoint.told.get("curves", [])
    losses: list[float] = checkpoint.told.get("losses", [])
    measured = [{name: framed(each) for name, each in of.items()} for of in checkpoint.told.get("measured", [])]
    begun = len(measured)  # epochs that are over, and the moment before the first
    if not begun:
        measured.append(at(measure(model, batches, 0, False), step=0, epoch=0))
    checkpoint.tell = lambda: {
        "curves": curves,
        "losses": losses,
        "measured": [{name: plain(each) for name, each in tables.items()} for tables in measured],
    }
    outcome = Outcome()
    learning = train(
        model,
        batches,
        training,
        seed=cell.seed,
        loss=loss,
        backward=watch(backward) if watch else backward,
        computing=Computing.of(cell.settings),
        around=around,
        checkpoint=checkpoint,
    )
    try:
        for epoch, of_epoch in enumerate(learning, max(1, begun)):
            last = epoch == training.epochs
            losses += of_epoch.tolist()
            moment = {"step": (step := len(losses)), "epoch": epoch}
            curves.append({**moment, "split": "train", "quantity": "loss", "value": of_epoch.mean().item()})
            if validate or last:
                settle_statistics(model, batches)
                for quantity, value in evaluate(model, batches, "validation").items():
                    curves.append({**moment, "split": "validation", "quantity": quantity, "value": value})
            measured.append(at(measure(model, batches, epoch, last), step=step, epoch=epoch))
        outcome.tables["outcomes"] = evaluations(model, batches, evaluate)
    except Diverged as end:
        outcome.diverged_at = end.step
    if curves:
        outcome.tables["curves"] = pd.DataFrame(curves)
        by_step = pd.DataFrame({"step": range(1, len(losses) + 1), "value": losses})
        outcome.tables["losses"] = by_step.assign(split="train", quantity="loss")
    for name in dict.fromkeys(name for tables in measured for name in tables):
        outcome.tables[name] = pd.concat([tables[name] for tables in measured if name in tables], ignore_index=True)
    return outcome


def at(tables: Tables, *, step: int, epoch: int) -> Tables:
    """The tables with the moment at which they were taken."""
    return {name: table.assign(step=step, epoch=epoch) for name, table in tables.items()}


def evaluations(model: nn.Module, batches: Batches, evaluate: Evaluate) -> pd.DataFrame:
    """Loss and accuracy (or what else `evaluate` tells) on every split: split, quantity, value."""
    return pd.DataFrame(
        {"split": split, "quantity": quantity, "value": value}
        for split in ("train", "validation", "test")
        for quantity, value in evaluate(model, batches, split).items()
    )


def probing(model: nn.Module, batches: Batches, *, most: int = 128) -> tuple[nn.Module, Tensor, Tensor]:
    """A copy of the network in train mode (its BatchNorm statistics move, the trained network's do not), and one fixed
    batch of training images with labels, to probe it on."""
    indices = torch.randperm(batches.size("train"), generator=torch.Generator().manual_seed(0))[:most]
    return copy.deepcopy(model).train(), *batches.get("train", indices)
