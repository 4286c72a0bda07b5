"""Can a stack of blocks learn to copy its input?

He et al. (2015) argue that a deeper network could copy a shallower one if its further blocks were identities, so that
solvers must find it hard to fit an identity by several nonlinear layers, and easier to push a residual to zero. Here
stacks of blocks, with shortcuts and without, are trained to give back their input, a fixed layer's features of the
images.

Writes tables, figures and every run's run.json to OUT/identity_mapping; finished runs are not repeated.
"""

import math
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor, nn

import figures
from experiments.engine.reporting import show
from experiments.engine.running.cli import run_script
from experiments.engine.running.grid import run_grid
from experiments.engine.running.messages import BadInput, check_at_least, check_choice, check_unique
from experiments.engine.running.output import Output
from experiments.engine.running.run import Outcome, Run, Tables
from experiments.engine.statistics.estimates import Estimate, estimate, exceeds
from experiments.engine.statistics.long_tables import select
from experiments.engine.training.data import Batches, Dataset, load
from experiments.engine.training.optimisation import Training
from experiments.engine.training.settings import NetworkSettings
from experiments.engine.training.train_run import train_run
from experiments.questions.distance_from_identity import (
    BRANCHES,
    changes_at_ends,
    mean_changes,
    open_branches,
    some_images,
)
from models import FirstWeights, Flow, ResidualBlock, set_first_weights

EXPERIMENT = "identity_mapping"
FACTOR = 2.0  # errors of copies that differ by less are alike
LEAST_ERROR = 1e-12  # relative and squared: float32 tells none below from 0
KEYS = ["arm", "learning_rate", "depth_total"]


@dataclass(frozen=True)
class Settings(NetworkSettings):
    """Every setting of the experiment."""

    arms: tuple[str, ...] = ("residual", "stop-gradient", "plain")
    """Any of residual, stop-gradient, gradient-only, plain, shortest-path, near-identity."""
    blocks: tuple[int, ...] = (1, 2, 4, 8, 16)
    """Blocks in a stack."""
    rates: tuple[float, ...] = (0.01, 0.1)
    """Highest learning rates, instead of --learning-rate: each arm and number of blocks takes the one that is best on
    validation images."""

    def check(self) -> None:
        super().check()
        check_choice("--network", self.network, tuple(BRANCHES))
        self.check_arms("--arms", *self.arms)
        check_unique("--blocks", self.blocks)
        check_unique("--rates", self.rates)
        for count in self.blocks:
            check_at_least("--blocks", count, 1)
        for rate in self.rates:
            if not 0 < rate < math.inf:
                raise BadInput(f"--rates {rate}: give finite numbers above 0")


QUICK = Settings(seeds=(0, 1), blocks=(1, 4), rates=(0.1,), training=Training(epochs=5))


@dataclass(frozen=True)
class CopyInput:
    """The task, instead of classification: a stack of half as many blocks as the run has layers copies its input."""


def main(settings: Settings) -> None:
    """Run the grid and report it."""
    settings.check()
    dataset = load(settings.data)
    output = show.live(settings.output(EXPERIMENT))
    task = partial(copy_input, dataset=dataset)
    tables, diverged = run_grid(make_runs(settings, dataset), task, output, execution=settings.execution)
    report(tables, diverged, dataset, settings.arms, output)


def make_runs(settings: Settings, dataset: Dataset) -> list[Run]:
    """A run for each rate, number of blocks (of two layers), arm and seed."""
    return [
        run
        for rate in settings.rates
        for run in replace(settings, training=replace(settings.training, learning_rate=rate)).runs(
            EXPERIMENT,
            dataset,
            arms=settings.arms,
            depths=[2 * blocks for blocks in settings.blocks],
            outputs=("starts", "blocks"),
            labels={"learning_rate": rate},
            treatment=CopyInput(),
        )
    ]


# What a run does


class Stack(nn.Module):
    """Blocks behind a fixed layer, (N, in_channels, H, W) -> (N, width, H, W): the target is that layer's output.

    The fixed layer is a random 3x3 convolution with ReLU: its output is not negative, so that ReLU after a
    block does it no harm, and the identity lies in the function space of every arm. A residual block is the identity
    with its residual at 0. A plain one is with convolutions that pass each channel on, and BatchNorm's weight and bias
    at the deviation and mean of what it normalises: exactly so in eval mode, in train mode up to the difference between
    a batch's statistics and all images'.
    """

    variance: Tensor

    def __init__(
        self, blocks: int, *, network: str, flow: Flow, width: int, in_channels: int, first_weights: FirstWeights = "he"
    ) -> None:
        super().__init__()
        self.lift = nn.Sequential(nn.Conv2d(in_channels, width, 3, padding=1, bias=False), nn.ReLU())
        self.lift.requires_grad_(False)
        branch = BRANCHES[network]
        self.blocks = nn.Sequential(*(ResidualBlock(branch(width, width, 1), flow=flow) for _ in range(blocks)))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        set_first_weights(self.blocks, first_weights)
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


def copy_input(run: Run, checkpoint_file: Path | None = None, *, dataset: Dataset) -> Outcome:
    """Train a stack on the task of `CopyInput`."""
    device = torch.device(run.recipe.device)
    torch.manual_seed(run.seed)
    stack = Stack(
        run.depth // 2,
        network=run.recipe.network,
        flow=run.recipe.flow,
        width=run.recipe.width,
        in_channels=dataset.shape[0],
        first_weights=run.recipe.first_weights,
    ).to(device)
    stack.measure_target(some_images(Batches(dataset, device)))
    measure = partial(changes_at_ends, evaluate=copy_error)
    return train_run(
        run, checkpoint_file, dataset=dataset, model=stack, loss=stack.loss, evaluate=copy_error, measure=measure
    )


# Analysis


def best_rates(outcomes: pd.DataFrame) -> pd.DataFrame:
    """The rate of each arm and depth with the least validation error: arm, learning_rate, depth_total.

    The mean over seeds is geometric. A rate at which a seed diverged comes after those with more seeds.
    """
    rows = select(outcomes, split="validation", quantity="error")
    logs = rows.assign(value=np.log10(rows["value"].clip(lower=LEAST_ERROR)))
    by_rate = logs.groupby(KEYS)["value"].agg(["mean", "count"]).reset_index()
    ordered = by_rate.sort_values(["count", "mean"], ascending=[False, True])
    return ordered.drop_duplicates(["arm", "depth_total"])[KEYS]


def copying_table(tables: Tables) -> pd.DataFrame:
    """Copying at the best rates: arm, learning_rate, depth_total, seed, epoch, split, quantity, value.

    quantity: `error`, relative, on validation images after each epoch and on test images first and last; `change`,
    first and last, as `mean_changes` gives it.
    """
    ends = tables["outcomes"].assign(epoch=tables["curves"]["epoch"].max())
    errors = pd.concat([tables["starts"], tables["curves"], ends[ends["split"] == "test"]])
    errors = errors[(errors["quantity"] == "error") & (errors["split"] != "train")]
    whole = pd.concat([errors, mean_changes(tables["blocks"], by="learning_rate")], ignore_index=True)
    columns = [*KEYS, "seed", "epoch", "split", "quantity", "value"]
    return whole.merge(best_rates(tables["outcomes"]), on=KEYS)[columns]


def harder(copying: pd.DataFrame) -> dict[int, Estimate]:
    """By depth: log10 of the plain stack's test error over the residual stack's at the end, paired by seed."""
    rows = select(copying, quantity="error", split="test")
    rows = rows[rows["epoch"] > 0]
    logs = rows.assign(value=np.log10(rows["value"].clip(lower=LEAST_ERROR)))
    wide = logs.pivot_table(index=["depth_total", "seed"], columns="arm", values="value")
    paired = wide.reindex(columns=["plain", "residual"]).dropna()
    return {
        int(str(depth)): estimate((at_depth["plain"] - at_depth["residual"]).to_numpy())
        for depth, at_depth in paired.groupby(level="depth_total")
    }


def decide(found: dict[int, Estimate]) -> dict[str, show.Decision]:
    """For which numbers of blocks the identity is harder for plain stacks than for residual ones."""
    words = {"yes": "harder", "no": "not harder", "undecided": "undecided"}
    return {
        count(depth): (factor(of_depth), f"{FACTOR:g} times", words[exceeds(of_depth, math.log10(FACTOR))])
        for depth, of_depth in sorted(found.items())
    }


# Report


def report(tables: Tables, diverged: list[Run], dataset: Dataset, arms: tuple[str, ...], output: Output) -> None:
    """Write the table of copies, draw it, and print the results."""
    console = show.terminal()
    show.diverged(console, diverged)
    if show.all_diverged(console, tables, output, advice="Lower --rates may help."):
        return
    copying = copying_table(tables)
    output.table("copying", copying)
    show.save_figure(output, figures.copying(copying), copying, "copying")
    show_copying(console, copying, arms)
    if found := harder(copying):
        title = f"{dataset.title}, error of plain / residual"
        show.conclusion(console, output, decide(found), title=title, remark="One data set, one budget.")
    else:
        show.files(console, output)
        answer = "No comparison: it needs the arms plain and residual, and a seed that both have finished."
        show.end(console, output, answer=answer)


def show_copying(console: Console, copying: pd.DataFrame, arms: tuple[str, ...]) -> None:
    """Arm x number of blocks: test error and change by a block, before training and at its end; the rate."""
    last, rows = copying["epoch"].max(), {}
    for arm in arms:
        for depth in sorted(select(copying, arm=arm)["depth_total"].unique()):
            stacks = select(copying, arm=arm, depth_total=depth)
            numbers = {
                f"{quantity} {word}": show.mean_sd(select(stacks, quantity=quantity, epoch=epoch, **of)["value"])
                for quantity, of in (("error", {"split": "test"}), ("change", {}))
                for word, epoch in (("first", 0), ("last", last))
            }
            rate, n = stacks["learning_rate"].iloc[0], stacks["seed"].nunique()
            rows[arm, count(depth)] = {**numbers, "rate": f"{rate:g}", "n": str(n)}
    show.table(
        console,
        rows,
        title="Copying the input: mean ± sd over n seeds",
        caption="error: mean squared, relative to the target's variance, on test images; change: by a block, "
        "‖F(x)‖/‖x‖ where the shortcut's value goes forward, else ‖B(x)-x‖/‖x‖; mean over blocks; rates chosen on "
        "validation images",
    )


def count(depth: int) -> str:
    """`1 block`, `4 blocks`, of two layers each."""
    return "1 block" if depth == 2 else f"{depth // 2} blocks"


def factor(found: Estimate) -> str:
    """An estimate of a log10 as a factor: `85 [40, 181]`, or the seeds' own factors where there is no interval."""
    if found.low == found.low:
        return f"{10**found.mean:.3g} [{10**found.low:.3g}, {10**found.high:.3g}]"
    return f"{10**found.mean:.3g} ({', '.join(f'{value:.3g}' for value in np.power(10, found.values))})"


if __name__ == "__main__":
    run_script("experiments.identity_mapping")
