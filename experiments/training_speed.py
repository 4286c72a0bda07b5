"""Do shortcuts change what a network reaches, or only how fast?

Trains a CIFAR ResNet (He et al. 2015) and an Inception-ResNet (Szegedy et al. 2016) with shortcuts, without, and with
shortcuts that carry no gradient; counts the steps to given training losses, and compares the final test errors.

Writes tables, figures and every run's run.json to OUT/training_speed; finished runs are not repeated.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated

import numpy as np
import pandas as pd
import tyro
from rich.console import Console

import figures
from experiments.engine.reporting import show
from experiments.engine.running.cli import run_script
from experiments.engine.running.grid import run_grid
from experiments.engine.running.messages import BadInput, check_unique
from experiments.engine.running.output import Output
from experiments.engine.running.run import Run, Tables
from experiments.engine.statistics.estimates import MARGIN, NO_ESTIMATE, Estimate, classify, estimate
from experiments.engine.statistics.factorial import CEILING
from experiments.engine.statistics.long_tables import errors_on_test, select
from experiments.engine.statistics.steps_to_loss import steps_to_loss, trailing_means
from experiments.engine.training.data import Dataset, load
from experiments.engine.training.optimisation import Training
from experiments.engine.training.settings import NetworkSettings, check_networks
from experiments.engine.training.train_run import train_run
from probes.tables import ordered, table

EXPERIMENT = "training_speed"
REFERENCE = "residual"
# Fixed before any run: plain must take at least so many times residual's steps to count as slower, and may have a test
# error that is higher or lower by MARGIN to count as alike.
FASTER = 1.1
CLAIM = "Szegedy et al. (2016): shortcuts speed training up, and hardly change the final accuracy"
RULE = (
    f"That holds if the whole 95 % interval of the ratio of steps lies above {FASTER} and that of the difference of "
    f"test errors within ±{MARGIN}, and does not if one lies wholly outside. They compared Inception-v4 with "
    "Inception-ResNet-v2, of like cost and trained by RMSProp on ImageNet; the twins here are of like weights, trained "
    "by SGD with a schedule of fixed length, so that steps are steps of that schedule."
)


@dataclass(frozen=True)
class Settings(NetworkSettings):
    """Every setting of the experiment."""

    networks: tuple[str, ...] = ("resnet", "inception")
    """Any of resnet (He et al. 2015, for CIFAR), inception (Szegedy et al. 2016), and others (docs/networks.md)."""
    network: Annotated[str, tyro.conf.Fixed, tyro.conf.Suppress] = "resnet"
    arms: tuple[str, ...] = ("residual", "plain", "stop-gradient")
    """residual, which the others are compared with, and any of plain, stop-gradient, gradient-only, shortest-path."""
    depth: int = 20
    """Layers; resnet has 6n + 2, inception 12n + 8, so 20, 32, 44 and 56 fit both."""
    losses: tuple[float, ...] = (1.0, 0.3, 0.1)
    """Training losses (nats), mean of an epoch's steps, to which steps are counted."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Random seeds, by number; one decides the first weights and the order of the data, alike in all arms."""
    training: Training = field(default_factory=lambda: Training(epochs=30))

    def check(self) -> None:
        super().check()
        check_networks(self.networks)
        check_unique("--losses", self.losses)
        for network in self.networks:
            self.on(network).check_depths("--depth", self.depth)
            self.on(network).check_arms("--arms", *self.arms)
        if REFERENCE not in self.arms:
            raise BadInput(f"--arms {' '.join(self.arms)}: add {REFERENCE}, which the others are compared with")
        if not all(0 < loss < float("inf") for loss in self.losses):
            raise BadInput(f"--losses {' '.join(f'{loss:g}' for loss in self.losses)}: give positive numbers")


QUICK = Settings(seeds=(0, 1), training=Training(epochs=4))


def main(settings: Settings) -> None:
    """Run the grid and report it."""
    settings.check()
    dataset, output = load(settings.data), show.live(settings.output(EXPERIMENT))
    runs = [
        run
        for network in settings.networks
        for run in settings.on(network).runs(
            EXPERIMENT, dataset, arms=settings.arms, depths=(settings.depth,), labels={"network": network}
        )
    ]
    tables, diverged = run_grid(runs, partial(train_run, dataset=dataset), output, execution=settings.execution)
    report(tables, diverged, dataset, settings, output)


def report(tables: Tables, diverged: list[Run], dataset: Dataset, settings: Settings, output: Output) -> None:
    """Write steps and comparisons, draw the figure, and print the results."""
    console = show.terminal()
    if show.all_diverged(console, tables, output):
        return
    window = settings.training.steps_per_epoch(dataset.size("train"))
    steps = ordered(steps_to_loss(tables["losses"], settings.losses, window=window))
    errors = errors_on_test(tables["outcomes"])
    compared = compare(steps, errors, networks=settings.networks, arms=settings.arms, seeds=settings.seeds)
    output.table("steps", steps)
    output.table("comparisons", comparison_table(compared, settings.depth))
    drawn = ordered(pd.concat([trailing_means(tables["losses"], window=window), errors, steps], ignore_index=True))
    show.save_figure(output, figures.training_speed(drawn), drawn, EXPERIMENT)
    show_speed(console, steps, errors, networks=settings.networks, arms=settings.arms, seeds=len(settings.seeds))
    show.diverged(console, diverged)
    show_comparisons(console, compared)
    title = f"{dataset.title}, depth {settings.depth}, n = {len(settings.seeds)}"
    if decisions := decide(compared, errors):
        show.conclusion(console, output, decisions, title=title, remark=f"{CLAIM}. {RULE}")
    else:
        show.files(console, output)
        answer = f"{title}: nothing can be said of {CLAIM}, since the plain arm was left out."
        show.end(console, output, answer=answer)


@dataclass(frozen=True)
class Comparison:
    """An arm of a network against residual. No estimate where not every seed of both has a value: the mean of those
    that have one would flatter."""

    network: str
    arm: str
    ratios: dict[float, Estimate]
    """By target: how many times residual's steps the arm takes."""
    error: Estimate
    """Its test error minus residual's."""

    @property
    def lowest(self) -> float | None:
        """The lowest target that every seed of both arms has reached: on it the claim is judged."""
        return min((target for target, found in self.ratios.items() if found.values), default=None)


def compare(
    steps: pd.DataFrame, errors: pd.DataFrame, *, networks: Sequence[str], arms: Sequence[str], seeds: Sequence[int]
) -> list[Comparison]:
    """Every arm but residual against it, paired by seed. errors: network, arm, seed, value."""

    def values(rows: pd.DataFrame, network: str, arm: str) -> "pd.Series[float]":
        return select(rows, network=network, arm=arm).set_index("seed")["value"].reindex(list(seeds))

    found = []
    for network in networks:
        for arm in [arm for arm in arms if arm != REFERENCE]:
            ratios = {
                target: ratio(*(values(select(steps, target=target), network, name) for name in (arm, REFERENCE)))
                for target in steps["target"].unique().tolist()
            }
            change = values(errors, network, arm) - values(errors, network, REFERENCE)
            error = NO_ESTIMATE if change.isna().any() else estimate(change.to_numpy(), max_abs=1)
            found.append(Comparison(network, arm, ratios, error))
    return found


def ratio(steps: "pd.Series[float]", reference: "pd.Series[float]") -> Estimate:
    """steps / reference, paired by seed: geometric mean, and the exponentiated t interval of the logarithm."""
    logs = np.log((steps / reference).to_numpy())
    if np.isnan(logs).any():
        return NO_ESTIMATE
    found = estimate(logs)
    mean, low, high = (float(np.exp(number)) for number in (found.mean, found.low, found.high))
    return Estimate(tuple(float(np.exp(value)) for value in found.values), mean, low, high)


def comparison_table(comparisons: Sequence[Comparison], depth: int) -> pd.DataFrame:
    """The comparisons as a long table: network, arm, depth_total, outcome ("steps ratio" at its target, "test error"),
    quantity (mean | low | high), value; none where there is nothing to compare."""
    rows: list[dict[str, object]] = []
    for compared in comparisons:
        about = {"network": compared.network, "arm": compared.arm, "depth_total": depth}
        outcomes = [("steps ratio", target, found) for target, found in compared.ratios.items()]
        for outcome, target, found in [*outcomes, ("test error", None, compared.error)]:
            numbers = {"mean": found.mean, "low": found.low, "high": found.high} if found.values else {}
            about |= {"outcome": outcome, "target": target}
            rows += [{**about, "quantity": quantity, "value": value} for quantity, value in numbers.items()]
    return table(rows) if rows else pd.DataFrame(columns=["network", "arm", "outcome", "target", "quantity", "value"])


def judge(ratio: Estimate, error: Estimate) -> str:
    """Whether the claim holds; a missing interval (nan) or estimate decides nothing."""
    slower, differs = classify(ratio, FASTER, low=-math.inf), classify(error, MARGIN)
    if (slower, differs) == ("above", "within"):
        return "holds"
    return "does not hold" if slower == "within" or differs in ("above", "below") else "undecided"


def decide(comparisons: Sequence[Comparison], errors: pd.DataFrame) -> dict[str, show.Decision]:
    """What the numbers say of Szegedy et al.'s claim, network by network; nothing where plain was left out."""
    words = {"above": "slower", "within": "not slower"}
    alike = {"above": "worse", "below": "better", "within": "alike"}
    decisions: dict[str, show.Decision] = {}
    for compared in comparisons:
        if compared.arm == "plain":
            target, of = compared.lowest, compared.network
            steps = NO_ESTIMATE if target is None else compared.ratios[target]
            missing = "no loss asked for is reached by all seeds of both"
            name = f"{of}: steps, plain / residual" + (f", to loss {target:g}" if target else "")
            decisions[name] = show.decision(steps, FASTER, words, one_sided=True, digits=2, sign=False, missing=missing)
            text, margin, reading = show.decision(compared.error, MARGIN, alike, missing="not every run has one")
            reading += ceiling(errors, compared) if compared.error.values else ""
            decisions[f"{of}: test error, plain - residual"] = text, margin, reading
            decisions[f"{of}: the claim"] = "", "", judge(steps, compared.error)
    return decisions


def ceiling(errors: pd.DataFrame, comparison: Comparison) -> str:
    """A remark where both arms are so good that little room is left to differ in."""
    of_network = select(errors, network=comparison.network).groupby("arm")["value"].mean()
    both = of_network.reindex([REFERENCE, comparison.arm])
    return ", both at the ceiling, with little room to differ" if (1 - both >= CEILING).all() else ""


def show_speed(
    console: Console,
    steps: pd.DataFrame,
    errors: pd.DataFrame,
    *,
    networks: Sequence[str],
    arms: Sequence[str],
    seeds: int,
) -> None:
    """Network x arm: the first step at each target, the final test error, n."""
    rows = {}
    for network in networks:
        for arm in arms:
            own, own_errors = (select(part, network=network, arm=arm) for part in (steps, errors))
            rows[network, arm] = {
                f"loss {target:g}": show.steps(select(own, target=target)["value"], seeds)
                for target in steps["target"].unique()
            } | {"test error": show.mean_sd(own_errors["value"]), "n": str(len(own_errors))}
    title = "First step at a training loss, test error: mean ± sd over n seeds"
    caption = f"k of {seeds}: so many seeds reached that loss before the end; no mean is taken of them alone"
    show.table(console, rows, title=title, caption=caption)


def show_comparisons(console: Console, comparisons: Sequence[Comparison]) -> None:
    """Network x outcome: arms against residual, by the ratio of steps to each target and the difference of errors."""
    if not comparisons:
        return
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for compared in comparisons:
        shown = {
            f"steps to loss {target:g}, ratio": show.estimate(found, sign=False)
            for target, found in compared.ratios.items()
        }
        for outcome, text in (shown | {"test error, difference": show.estimate(compared.error, digits=3)}).items():
            rows.setdefault((compared.network, outcome), {})[compared.arm] = text
    title = f"Against {REFERENCE}, paired by seed: mean [95 % t interval]; ratios: geometric mean"
    caption = "-: not every seed of both has a value; intervals are not corrected for their number"
    show.table(console, rows, title=title, caption=caption)


if __name__ == "__main__":
    run_script("experiments.training_speed")
