"""What a run does: one network made from its seed, trained by its recipe, and measured on the way."""

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn

from experiments.engine.running import distributed
from experiments.engine.running.checkpoints import Checkpoint, from_lists, to_lists
from experiments.engine.running.run import Outcome, Run, Tables
from experiments.engine.training.data import Batches, Dataset
from experiments.engine.training.loop import (
    Backward,
    Diverged,
    Loss,
    MakeOptimiser,
    backpropagation,
    cross_entropy,
    evaluate,
    recompute_bn_statistics,
    train,
)
from experiments.engine.training.networks import make
from experiments.engine.training.optimisation import make_optimiser

Measure = Callable[[nn.Module, Batches, int, bool], Tables]
Evaluate = Callable[[nn.Module, Batches, str], dict[str, float]]


def make_network(run: Run, dataset: Dataset) -> nn.Module:
    """The run's network at its first weights."""
    torch.manual_seed(run.seed)
    model = make(
        run.recipe.network,
        run.depth,
        flow=run.recipe.flow,
        width=run.recipe.width,
        shape=dataset.shape,
        num_classes=len(dataset.classes),
        first_weights=run.recipe.first_weights,
    )
    return model.to(run.recipe.device)


def train_run(
    run: Run,
    checkpoint_file: Path | None = None,
    *,
    dataset: Dataset,
    model: nn.Module | None = None,
    backward: Backward = backpropagation,
    loss: Loss = cross_entropy,
    make_optimiser: MakeOptimiser = make_optimiser,
    evaluate: Evaluate = evaluate,
    validate: bool = True,
    measure: Measure = lambda model, batches, epoch, last: {},
    gradient_context: Callable[[nn.Module], AbstractContextManager[object]] | None = None,
) -> Outcome:
    """Train the run's network, and give curves, each step's loss, final outcomes, and the tables of `measure`.

    Args:
        run: Whose recipe says how.
        checkpoint_file: Where a killed training resumes; None for one that starts over, as it must where `backward` or
            `gradient_context` keep a state of their own (beside `backward.generators`).
        dataset: That of the recipe.
        model: Another network than `make_network` gives; it is trained in place.
        backward: What fills the gradients in each step, prepared for this network.
        loss: Of a batch.
        make_optimiser: Another than the training names, such as one with a constant of its own.
        evaluate: Quantities of a split by name; with `loss`, another task than classification.
        validate: After every epoch, which takes time, or at the end alone.
        measure: Called as (model, batches, epoch, last) before the first step and after every epoch. Its tables, all
            named in the run's outputs, are joined by name, with columns step and epoch. It keeps nothing from epoch to
            epoch.
        gradient_context: A context for the training's forwards and backwards.

    Raises:
        ValueError: The data set or the number of processes is not the recipe's, or `measure` gives a table that is not
            among the run's outputs.
    """
    check_circumstances(run, dataset)
    model = make_network(run, dataset) if model is None else model
    batches = Batches(dataset, torch.device(run.recipe.device))
    checkpoint = Checkpoint(checkpoint_file, outputs=run.outputs)
    curves: list[dict[str, object]] = checkpoint.restored_state.get("curves", [])
    losses: list[float] = checkpoint.restored_state.get("losses", [])
    measured = [
        {name: from_lists(lists) for name, lists in tables.items()}
        for tables in checkpoint.restored_state.get("measured", [])
    ]

    def measure_at(epoch: int, *, last: bool) -> None:
        tables = measure(model, batches, epoch, last)
        if unknown := sorted(set(tables) - set(run.outputs)):
            raise ValueError(f"measured {', '.join(unknown)}, not among the run's outputs {run.outputs}: name it there")
        measured.append({name: table.assign(step=len(losses), epoch=epoch) for name, table in tables.items()})

    if not measured:
        measure_at(0, last=False)
    begun = len(measured)  # epochs that are over, and the moment before the first
    checkpoint.caller_state = lambda: {
        "curves": curves,
        "losses": losses,
        "measured": [{name: to_lists(table) for name, table in tables.items()} for tables in measured],
    }
    outcome = Outcome()
    epochs = train(
        model,
        batches,
        run.recipe.training,
        seed=run.seed,
        loss=loss,
        make_optimiser=make_optimiser,
        backward=backward,
        computing=run.recipe.computing,
        gradient_context=gradient_context,
        checkpoint=checkpoint,
    )
    try:
        for epoch, epoch_losses in enumerate(epochs, begun):
            last = epoch == run.recipe.training.epochs
            losses += epoch_losses.tolist()
            moment = {"step": len(losses), "epoch": epoch}
            curves.append({**moment, "split": "train", "quantity": "loss", "value": epoch_losses.mean().item()})
            if validate or last:
                recompute_bn_statistics(model, batches)
                for quantity, value in evaluate(model, batches, "validation").items():
                    curves.append({**moment, "split": "validation", "quantity": quantity, "value": value})
            measure_at(epoch, last=last)
        outcome.tables["outcomes"] = evaluations(model, batches, evaluate, splits=run.recipe.evaluated)
    except Diverged as end:
        outcome.diverged_at = end.step
    outcome.tables |= join(curves, losses, measured)
    return outcome


def join(curves: list[dict[str, object]], losses: list[float], measured: list[Tables]) -> Tables:
    """One table of curves, one of every step's loss, and one of each name that was measured, epoch after epoch."""
    tables = {}
    if curves:
        by_step = pd.DataFrame({"step": range(1, len(losses) + 1), "value": losses})
        tables = {"curves": pd.DataFrame(curves), "losses": by_step.assign(split="train", quantity="loss")}
    for name in dict.fromkeys(name for at_epoch in measured for name in at_epoch):
        tables[name] = pd.concat([at_epoch[name] for at_epoch in measured if name in at_epoch], ignore_index=True)
    return tables


def check_circumstances(run: Run, dataset: Dataset) -> None:
    """Raise ValueError unless the data set and the processes are those of the run's recipe."""
    here = {"data": dataset.digest, "processes": distributed.count()}
    for name, value in here.items():
        if value != (wanted := getattr(run.recipe, name)):
            raise ValueError(f"{run.name}: its recipe says {name} {wanted!r}, and here it is {value!r}")


def evaluations(
    model: nn.Module,
    batches: Batches,
    evaluate: Evaluate,
    *,
    splits: Sequence[str] = ("train", "validation", "test"),
) -> pd.DataFrame:
    """Loss and accuracy (or what else `evaluate` gives) on each split: split, quantity, value."""
    return pd.DataFrame(
        {"split": split, "quantity": quantity, "value": value}
        for split in splits
        for quantity, value in evaluate(model, batches, split).items()
    )


def probing_batch(model: nn.Module, batches: Batches, *, most: int = 128) -> tuple[nn.Module, Tensor, Tensor]:
    """A copy of the network in train mode (its BatchNorm statistics move, the trained network's do not), and one fixed
    batch of training images with labels, to probe it on."""
    indices = torch.randperm(batches.size("train"), generator=torch.Generator().manual_seed(0))[:most]
    return copy.deepcopy(model).train(), *batches.get("train", indices)
