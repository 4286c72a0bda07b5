"""Do shortcuts help by carrying the signal forward, or by carrying the gradient back?

Trains CIFAR ResNets (He et al. 2015) in five arms from the same weights, on the same batches:

residual: the shortcut carries both. stop-gradient: the signal, no gradient. gradient-only: the gradient, no signal.
plain: neither. shortest-path: residual, but no gradient enters a branch's input.

Writes tables, figures and every cell's run.json to OUT/stopgrad_shortcut, and repeats no cell that is already there.
"""

import copy
import os
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F

import figures
from experiments.engine.command import BadInput, check_choice, check_device, make_folder, run_script
from experiments.engine.data import Batches, Data, Dataset, load
from experiments.engine.effects import effect_table, flags, outcome_table
from experiments.engine.ending import sentence, show_effects, show_files, show_outcomes, terminal
from experiments.engine.grid import Cell, Outcome, run_grid, write_aside
from experiments.engine.training import Diverged, Training, evaluate, settle_statistics, train
from models import ARMS, CifarResNet, cifar_resnet
from probes import gradient_norms, path_contributions, record, residual_magnitudes

EXPERIMENT = "stopgrad_shortcut"


@dataclass(frozen=True)
class Settings:
    """Every setting of the experiment."""

    depths: tuple[int, ...] = (20, 56)
    """Layers, each 6n + 2."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Random seeds, by number; one decides the first weights and the order of the data, alike in all arms."""
    arms: tuple[str, ...] = tuple(ARMS)
    """Any of residual, stop-gradient, gradient-only, plain, shortest-path; effects need the first four."""
    width: int = 8
    """Channels of the first stage (He et al.: 16)."""
    training: Training = field(default_factory=Training)
    data: Data = field(default_factory=Data)
    device: str = "cpu"
    """cpu, cuda, cuda:1."""
    workers: int = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    """Cells that run at once, one thread each."""
    out: Path = Path("results")
    """The folder of all results."""
    quick: bool = False
    """A first look within half a minute: other defaults (depths 8 and 20, 2 seeds, 3 epochs)."""


QUICK = Settings(depths=(8, 20), seeds=(0, 1), training=Training(epochs=3))


def main(settings: Settings) -> None:
    """Run the grid and report it."""
    check(settings)
    dataset = load(settings.data)
    folder = make_folder(settings.out / EXPERIMENT)
    make_folder(folder / "figures")
    about = {"title": dataset.title, **asdict(settings.data)}
    recipe = {"width": settings.width, "device": settings.device, "data": dataset.digest, **asdict(settings.training)}
    cells = [
        Cell(EXPERIMENT, arm, depth, seed, recipe, about)
        for depth in settings.depths
        for arm in settings.arms
        for seed in settings.seeds
    ]
    run = partial(run_cell, dataset=dataset, training=settings.training)
    tables, diverged = run_grid(cells, run, folder, workers=settings.workers)
    finish(tables, diverged, dataset, settings, folder)


def check(settings: Settings) -> None:
    """Raise BadInput for settings that cannot run, before anything is read or written."""
    for flag, values in (("--depths", settings.depths), ("--seeds", settings.seeds), ("--arms", settings.arms)):
        if not values or len(set(values)) < len(values):
            raise BadInput(f"{flag}: got {' '.join(map(str, values)) or 'none'}; give one or more, each once")
    for arm in settings.arms:
        check_choice("--arms", arm, tuple(ARMS))
    if min(settings.seeds) < 0 or max(settings.seeds) >= 2**32:
        raise BadInput(f"--seeds {' '.join(map(str, settings.seeds))}: give numbers from 0 to {2**32 - 1}")
    if settings.workers < 1:
        raise BadInput(f"--workers {settings.workers}: give at least 1")
    settings.training.check()
    check_device(settings.device)
    if settings.width < 2 or settings.width % 2:
        raise BadInput(
            f"--width {settings.width}: give an even number from 2, since shortcuts pad channels on both sides"
        )
    for depth in settings.depths:
        try:
            with torch.device("meta"):
                cifar_resnet(depth)
        except ValueError as error:
            raise BadInput(f"--depths {depth}: {error}") from None


def run_cell(cell: Cell, dataset: Dataset, training: Training) -> Outcome:
    """Train one network, measuring it before the first step and after every epoch."""
    device = torch.device(str(cell.settings["device"]))
    torch.manual_seed(cell.seed)
    model = cifar_resnet(
        cell.depth,
        flow=ARMS[cell.arm],
        width=int(str(cell.settings["width"])),
        in_channels=dataset.channels,
        num_classes=len(dataset.classes),
    ).to(device)
    batches = Batches(dataset, device)
    measured = [measure(model, batches, epoch=0, step=0, paths=True)]
    curves: list[dict[str, object]] = []
    outcome = Outcome()
    try:
        for epoch, step, loss in train(model, batches, training, seed=cell.seed):
            moment = {"step": step, "epoch": epoch}
            curves.append({**moment, "split": "train", "quantity": "loss", "value": loss})
            settle_statistics(model, batches)
            for quantity, value in evaluate(model, batches, "validation").items():
                curves.append({**moment, "split": "validation", "quantity": quantity, "value": value})
            measured.append(measure(model, batches, epoch=epoch, step=step, paths=epoch == training.epochs))
        outcome.tables["outcomes"] = pd.DataFrame(
            {"split": split, "quantity": quantity, "value": value}
            for split in ("train", "validation", "test")
            for quantity, value in evaluate(model, batches, split).items()
        )
    except Diverged as end:
        outcome.diverged_at = end.step
    if curves:
        outcome.tables["curves"] = pd.DataFrame(curves)
    for name in ("gradients", "magnitudes", "paths"):
        outcome.tables[name] = pd.concat([tables[name] for tables in measured if name in tables], ignore_index=True)
    return outcome


def measure(model: CifarResNet, batches: Batches, *, epoch: int, step: int, paths: bool) -> dict[str, pd.DataFrame]:
    """The probes' tables on one fixed batch of training images, taken on a copy in train mode."""
    size = batches.size("train")
    indices = torch.randperm(size, generator=torch.Generator().manual_seed(0))[:128]
    images, labels = batches.get("train", indices)
    copied = copy.deepcopy(model).train()  # its BatchNorm statistics move, the trained network's do not
    with record(copied) as recording:
        F.cross_entropy(copied(images), labels).backward(retain_graph=paths)
    tables = {"gradients": gradient_norms(recording), "magnitudes": residual_magnitudes(recording)}
    if paths:
        tables["paths"] = path_contributions(recording)
    return {name: table.assign(step=step, epoch=epoch) for name, table in tables.items()}


def finish(
    tables: dict[str, pd.DataFrame], diverged: list[Cell], dataset: Dataset, settings: Settings, folder: Path
) -> None:
    """Draw the figures, and print what came out."""
    console = terminal()
    test_size, classes = len(dataset.splits["test"][1]), len(dataset.classes)
    for stale in (folder / "figures").iterdir():
        stale.unlink()
    for draw, name in (
        (figures.learning_curves, "curves"),
        (figures.accuracy_by_depth, "outcomes"),
        (figures.interaction, "outcomes"),
        (figures.gradient_norms, "gradients"),
        (figures.gradient_split, "gradients"),
        (figures.path_lengths, "paths"),
        (figures.residual_magnitudes, "magnitudes"),
    ):
        if name in tables:
            figures.save(draw(tables[name]), tables[name], folder / "figures", draw.__name__)
    if "outcomes" not in tables:
        show_files(console, folder)
        console.print("Every cell diverged: there are no outcomes. A lower --learning-rate may help.")
        return
    cells = outcome_table(tables["outcomes"], test_size)
    write_aside(folder / "effects.csv", effect_table(cells))
    show_outcomes(
        console,
        tables["outcomes"],
        settings.arms,
        diverged,
        {depth: flags(cells, depth, classes) for depth in settings.depths},
    )
    for depth in sorted(settings.depths):
        show_effects(console, cells, depth)
    show_files(console, folder)
    for depth in sorted(settings.depths):
        console.print(sentence(cells, depth, title=dataset.title, classes=classes))


if __name__ == "__main__":
    run_script("experiments.stopgrad_shortcut")
