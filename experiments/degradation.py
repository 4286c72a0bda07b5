"""Do plain networks become worse with depth, on their training data too, and do shortcuts cure it?

Trains CIFAR ResNets (He et al. 2015) and their plain twins at growing depth, and measures training and test error over
time (their Fig. 1 and 6) and how strongly each layer responds in the end (their Fig. 7).

Writes tables, figures and every run's run.json to OUT/degradation; finished runs are not repeated.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import pandas as pd
from rich.console import Console
from torch import nn

import figures
from experiments.engine.reporting import show
from experiments.engine.reporting.factorial import show_outcomes
from experiments.engine.running.cli import run_script
from experiments.engine.running.grid import run_grid
from experiments.engine.running.output import Output
from experiments.engine.running.run import Run, Tables
from experiments.engine.statistics.estimates import MARGIN, Estimate, estimate
from experiments.engine.statistics.factorial import outcome_table
from experiments.engine.statistics.long_tables import select
from experiments.engine.training.data import Batches, Dataset, load
from experiments.engine.training.loop import evaluate
from experiments.engine.training.optimisation import Training
from experiments.engine.training.settings import NetworkSettings
from experiments.engine.training.train_run import train_run
from models import residual_blocks
from probes import layer_responses
from probes.tables import table

EXPERIMENT = "degradation"
Changes = dict[tuple[str, int, str], Estimate]
"""Of errors, by arm, depth and split."""


@dataclass(frozen=True)
class Settings(NetworkSettings):
    """Every setting of the experiment."""

    depths: tuple[int, ...] = (8, 20, 32, 56)
    """Layers, each 6n + 2; the smallest is what the others are compared with."""
    arms: tuple[str, ...] = ("plain", "residual")
    """Any of residual, stop-gradient, gradient-only, plain, shortest-path, near-identity."""

    def check(self) -> None:
        super().check()
        self.check_depths("--depths", *self.depths)
        self.check_arms("--arms", *self.arms)


QUICK = Settings(depths=(8, 20), seeds=(0, 1), training=Training(epochs=3))


def main(settings: Settings) -> None:
    """Run the grid and report it."""
    settings.check()
    dataset = load(settings.data)
    output = show.live(settings.output(EXPERIMENT))
    outputs = ("errors", "responses")
    runs = settings.runs(EXPERIMENT, dataset, arms=settings.arms, depths=settings.depths, outputs=outputs)
    task = partial(train_run, dataset=dataset, measure=measure)
    tables, diverged = run_grid(runs, task, output, execution=settings.execution)
    report(tables, diverged, dataset, settings, output)


def measure(model: nn.Module, batches: Batches, epoch: int, last: bool) -> Tables:
    """Error on training and test images; in the end, how strongly each layer responds to (at most 512) test images."""
    if epoch == 0:  # before any step the errors are chance
        return {}
    rows = [
        {"split": split, "quantity": "error", "value": 1 - evaluate(model, batches, split)["accuracy"]}
        for split in ("train", "test")
    ]
    tables = {"errors": table(rows)}
    if last:
        images, _ = batches.get("test", slice(0, 512))
        tables["responses"] = layer_responses(model, images, layers=responding(model))
    return tables


def responding(model: nn.Module) -> Sequence[nn.Module]:
    """The layers whose responses count: the normalisations, or where there is none all layers but the classifier.

    A shortcut's own are left out: a projection is no layer of depth, and adds nothing in a plain network.
    """
    shortcuts = {module for block in residual_blocks(model) for module in block.shortcut.modules()}
    layers = [module for module in model.modules() if module not in shortcuts]
    norms = [layer for layer in layers if isinstance(layer, nn.BatchNorm2d)]
    return norms or [layer for layer in layers if isinstance(layer, nn.Conv2d | nn.Linear)][:-1]


def report(tables: Tables, diverged: list[Run], dataset: Dataset, settings: Settings, output: Output) -> None:
    """Write the changes with depth, draw the figures, and print the results."""
    console = show.terminal()
    if show.all_diverged(console, tables, output):
        return
    outcomes, errors, responses = tables["outcomes"], tables["errors"], tables["responses"]
    by_depth, by_arm = changes(outcomes), gaps(outcomes)
    output.table("changes", change_table(by_depth))
    output.table("gaps", change_table(by_arm))
    show.save_figure(output, figures.degradation(errors), errors, "degradation")
    show.save_figure(output, figures.layer_responses(responses), responses, "layer_responses")
    runs = outcome_table(outcomes, dataset.size("test"))
    show_outcomes(console, outcomes, runs, settings.arms, diverged, len(dataset.classes))
    show_responses(console, responses)
    if not by_depth:
        show.files(console, output)
        answer = f"{dataset.title}: one depth alone says nothing of degradation; give two or more --depths."
        show.end(console, output, answer=answer)
        return
    remark = "An arm degrades if its training error grows with depth. One learning rate, one budget."
    title = f"{dataset.title}, errors by depth"
    show.conclusion(console, output, decide(by_depth, by_arm), title=title, remark=remark)


def errors_by_depth(outcomes: pd.DataFrame) -> pd.DataFrame:
    """Final errors: a row for each arm, split and seed, a column for each depth."""
    accuracy = select(outcomes, quantity="accuracy")
    return 1 - accuracy.pivot_table(index=["arm", "split", "seed"], columns="depth_total", values="value")


def changes(outcomes: pd.DataFrame) -> Changes:
    """The error of each arm, depth and split minus that at the smallest depth, paired by seed."""
    errors = errors_by_depth(outcomes)
    shallow = min(errors.columns)
    found: Changes = {}
    for (arm, split), wide in errors.groupby(level=["arm", "split"]):
        for depth in sorted(set(errors.columns) - {shallow}):
            if len(paired := (wide[depth] - wide[shallow]).dropna().to_numpy()):
                found[str(arm), int(depth), str(split)] = estimate(paired)
    return found


def gaps(outcomes: pd.DataFrame) -> Changes:
    """Plain's error minus residual's for each depth and split, paired by seed (under the arm plain)."""
    errors = errors_by_depth(outcomes)
    found: Changes = {}
    if {"plain", "residual"} <= set(errors.index.get_level_values("arm")):
        difference = errors.xs("plain", level="arm") - errors.xs("residual", level="arm")
        for split, wide in difference.groupby(level="split"):
            for depth in sorted(errors.columns):
                if len(paired := wide[depth].dropna().to_numpy()):
                    found["plain", int(depth), str(split)] = estimate(paired)
    return found


def change_table(found: Changes) -> pd.DataFrame:
    """The changes as a long table: the mean, and the ends of its interval."""
    return table(
        {"arm": arm, "depth_total": depth, "split": split, "quantity": quantity, "value": value}
        for (arm, depth, split), change in found.items()
        for quantity, value in (("mean", change.mean), ("low", change.low), ("high", change.high))
    )


def decide(by_depth: Changes, by_arm: Changes) -> dict[str, show.Decision]:
    """Whether each arm's training error grows up to the deepest networks, and whether plain and residual networks of
    the smallest depth are comparable by their test errors, as He et al. 2015 say; the other errors beside them."""
    decisions: dict[str, show.Decision] = {}
    deepest, shallow = max(depth for _, depth, _ in by_depth), min((depth for _, depth, _ in by_arm), default=0)
    grows = {"above": "degrades", "within": "does not degrade"}
    for (arm, depth, split), change in by_depth.items():
        if depth == deepest and split != "validation":
            effect = f"{arm}, {split} error, growth to depth {depth}, n = {len(change.values)}"
            decisions[effect] = (
                show.decision(change, MARGIN, grows, one_sided=True) if split == "train" else beside(change)
            )
    differs = {"within": "comparable", "above": "plain is worse", "below": "plain is better"}
    for (_, depth, split), gap in by_arm.items():
        if depth == shallow and split != "validation":
            effect = f"plain - residual, {split} error, depth {depth}, n = {len(gap.values)}"
            decisions[effect] = show.decision(gap, MARGIN, differs) if split == "test" else beside(gap)
    return decisions


def beside(change: Estimate) -> show.Decision:
    """A change that is shown and decides nothing."""
    return show.estimate(change, digits=3), "", ""


def show_responses(console: Console, responses: pd.DataFrame) -> None:
    """Arm x depth: the median over layers of the standard deviation, as a range over seeds."""
    medians = responses.groupby(["arm", "depth_total", "seed"], sort=False)["value"].median().reset_index()
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for (arm, depth), part in medians.groupby(["arm", "depth_total"], sort=False):
        low, high = part["value"].min(), part["value"].max()
        rows.setdefault(("", str(arm)), {})[f"depth {depth}"] = f"{low:.2f} to {high:.2f}"
    show.table(console, rows, title="Response (standard deviation) of the median layer: range over seeds")


if __name__ == "__main__":
    run_script("experiments.degradation")
