"""Do shortcuts help by carrying the signal forward, or by carrying the gradient back?

Trains CIFAR ResNets (He et al. 2015) in five arms from the same weights, on the same batches, and in a sixth:

residual: the shortcut carries both. stop-gradient: the signal, no gradient. gradient-only: the gradient, no signal.
plain: neither. shortest-path: residual, but no gradient enters a branch's input. near-identity: plain, but its
convolutions begin near the identity; all else is as in the others.

Writes tables, figures and every run's run.json to OUT/stopgrad_shortcut; finished runs are not repeated.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import pandas as pd
import torch.nn.functional as F
from rich.console import Console
from torch import nn

import figures
from experiments.engine.conditions.gap_closed import GapClosed, by_seed, gap_closed
from experiments.engine.reporting import show
from experiments.engine.reporting.factorial import decide_factorial, show_effects, show_outcomes
from experiments.engine.running.cli import run_script
from experiments.engine.running.grid import run_grid
from experiments.engine.running.messages import logger
from experiments.engine.running.output import Output
from experiments.engine.running.run import Run, Tables
from experiments.engine.statistics.factorial import effect_table, outcome_table
from experiments.engine.training.data import Batches, Dataset, load
from experiments.engine.training.optimisation import Training
from experiments.engine.training.settings import NetworkSettings, arm_names
from experiments.engine.training.train_run import probing_batch, train_run
from probes import gradient_norms, path_contributions, record, residual_magnitudes
from probes.tables import table

EXPERIMENT = "stopgrad_shortcut"
LIMITS = "One data set, one learning rate, one budget."
NEAR_IDENTITY = "near-identity"
GAP = ("plain", NEAR_IDENTITY, "residual")
"""The ends of the gap, and between them the arm that closes a part of it without a shortcut."""
UNSEEN = (
    "One learning rate for all; first weights are what sets near-identity apart from plain. The factorial alone cannot "
    "see this: its four arms begin alike."
)


@dataclass(frozen=True)
class Settings(NetworkSettings):
    """Every setting of the experiment."""

    depths: tuple[int, ...] = (20, 56)
    """Layers, each 6n + 2."""
    arms: tuple[str, ...] = arm_names()
    """Arms by name; effects need residual, stop-gradient, gradient-only and plain."""

    def possible(self) -> tuple[str, ...]:
        """The arms, without those as which the network cannot begin; these are logged."""
        reasons = {arm: self.unable(arm) for arm in self.arms}
        for arm, reason in reasons.items():
            if reason and not all(reasons.values()):
                logger.warning(f"the arm {arm} is left out: {reason}")
        return tuple(arm for arm in self.arms if not reasons[arm]) or self.arms


QUICK = Settings(depths=(8, 20), seeds=(0, 1), training=Training(epochs=3))


def main(settings: Settings) -> None:
    """Run the grid and report it."""
    settings.check()
    settings.check_depths("--depths", *settings.depths)
    settings = replace(settings, arms=settings.possible())
    settings.check_arms("--arms", *settings.arms)
    dataset = load(settings.data)
    output = show.live(settings.output(EXPERIMENT))
    outputs = ("gradients", "magnitudes", "paths")
    runs = settings.runs(EXPERIMENT, dataset, arms=settings.arms, depths=settings.depths, outputs=outputs)
    runs = [replace(run, labels={"first_weights": run.recipe.first_weights}) for run in runs]
    task = partial(train_run, dataset=dataset, measure=measure)
    tables, diverged = run_grid(runs, task, output, execution=settings.execution)
    report(tables, diverged, dataset, settings, output)


def measure(model: nn.Module, batches: Batches, epoch: int, last: bool) -> Tables:
    """The probes' tables on one fixed batch of training images; path lengths before training and at its end."""
    copied, images, labels = probing_batch(model, batches)
    paths = epoch == 0 or last
    with record(copied) as recording:
        F.cross_entropy(copied(images), labels).backward(retain_graph=paths)
    tables = {"gradients": gradient_norms(recording), "magnitudes": residual_magnitudes(recording)}
    return tables | ({"paths": path_contributions(recording)} if paths else {})


def report(tables: Tables, diverged: list[Run], dataset: Dataset, settings: Settings, output: Output) -> None:
    """Write the effects, draw the figures, and print the results."""
    console, classes = show.terminal(), len(dataset.classes)
    finished = "outcomes" in tables
    runs = outcome_table(tables["outcomes"], dataset.size("test")) if finished else pd.DataFrame()
    gaps = gaps_closed(runs, settings) if finished else {}
    if finished:
        output.table("effects", effect_table(runs))
    if gaps:
        output.table("scores", gap_rows(gaps))
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
            show.save_figure(output, draw(tables[name]), tables[name], draw.__name__)
    if show.all_diverged(console, tables, output):
        return
    show_outcomes(console, tables["outcomes"], runs, settings.arms, diverged, classes)
    for depth in sorted(settings.depths):
        show_effects(console, runs, depth)
    show.files(console, output)
    for depth in sorted(settings.depths):
        decide_factorial(console, runs, depth, title=dataset.title, limits=LIMITS, classes=classes)
    if gaps:
        show_gaps(console, runs, gaps, title=dataset.title)
    show.end(console, output)


# The sixth arm


def gaps_closed(runs: pd.DataFrame, settings: Settings) -> dict[int, GapClosed]:
    """By depth, how much of the gap in test accuracy between plain and residual is closed by plain networks that begin
    near the identity; none where no seed has finished all three."""
    accuracies = {depth: by_seed(runs, depth, GAP, "test accuracy", by="arm") for depth in sorted(settings.depths)}
    return {depth: gap_closed(*(1 - found)) for depth, found in accuracies.items() if found.size}


def gap_rows(gaps: Mapping[int, GapClosed]) -> pd.DataFrame:
    """A long table: arm, depth_total, outcome, quantity (R, R low, R high, gap, gap low, gap high, n), value."""
    return table(
        {"arm": NEAR_IDENTITY, "depth_total": depth, "outcome": "test error", "quantity": quantity, "value": value}
        for depth, closed in gaps.items()
        for quantity, value in closed.numbers.items()
    )


def show_gaps(console: Console, runs: pd.DataFrame, gaps: Mapping[int, GapClosed], *, title: str) -> None:
    """What the factorial cannot see: a part of the gap is closed without a shortcut."""
    console.print()
    for depth, closed in gaps.items():
        means = by_seed(runs, depth, GAP, "test accuracy", by="arm").mean(1)
        accuracies = ", ".join(f"{arm} {mean:.3f}" for arm, mean in zip(GAP, means, strict=True))
        about = f"{title}, depth {depth}, n = {len(closed.gap.values)}: mean test accuracy {accuracies}."
        if closed.note:
            console.print(f"{about} No part of a gap can be named: {closed.note}.")
        else:
            console.print(
                f"{about} Without any shortcut, a plain network that begins near the identity closes {closed.mean:.2f} "
                f"[{closed.low:.2f}, {closed.high:.2f}] of the gap between plain and residual (95 % Fieller interval, "
                "paired by seed)."
            )
    console.print(UNSEEN)


if __name__ == "__main__":
    run_script("experiments.stopgrad_shortcut")
