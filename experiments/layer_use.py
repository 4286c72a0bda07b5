"""Does a network use its shallower blocks more than its deeper ones, with shortcuts and without?

Trains CIFAR ResNets (He et al. 2015) in five arms and asks of every block: how far its weights moved, which share of
the gradient it gets, what its reset to the first weights costs (Zhang, Bengio and Singer 2019), what its deletion
costs, how well the classifier reads what it gives, and how much of the class score goes through its branch.

Each answer becomes one number, its centre of mass over depth: 0 all in the first block, 1 all in the last, 0.5 even.

Writes tables, figures and every run's run.json to OUT/layer_use; finished runs are not repeated.
"""

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console
from torch import nn

import figures
from experiments.engine.conditions.block_gradients import movement
from experiments.engine.reporting import show
from experiments.engine.reporting.factorial import show_outcomes
from experiments.engine.running.cli import run_script
from experiments.engine.running.grid import run_grid
from experiments.engine.running.messages import BadInput
from experiments.engine.running.output import Output
from experiments.engine.running.run import Outcome, Run, Tables
from experiments.engine.statistics.estimates import Estimate, clip, estimate
from experiments.engine.statistics.factorial import FLOOR, outcome_table
from experiments.engine.statistics.long_tables import select
from experiments.engine.training.data import Batches, Dataset, load
from experiments.engine.training.optimisation import Training
from experiments.engine.training.settings import NetworkSettings
from experiments.engine.training.train_run import make_network, train_run
from experiments.questions.layer_use.measures import (
    attributions,
    errors,
    gradient_shares,
    read_outs,
    saliency,
)
from models import ARMS
from probes.tables import table

EXPERIMENT = "layer_use"
OUTPUTS = ("blocks", "maps", "predictions", "scores", "delta")
EVEN = 0.5
"""The centre of mass of an even use."""
DEFINITION = (
    "centre of mass over depth, 0 the first block, 1 the last: 0.5 is an even use (or noise), below it shallow. Costs: "
    "what a test error exceeds the whole network's by, negative ones counted as 0; gain: by how much a block betters "
    f"the best read-out before it. A network whose accuracy is within {FLOOR} of chance has no costs and no gain"
)


@dataclass(frozen=True)
class Settings(NetworkSettings):
    """Every setting of the experiment."""

    depth: int = 56
    """Layers, 6n + 2."""
    arms: tuple[str, ...] = tuple(ARMS)
    """Any of residual, stop-gradient, gradient-only, plain, shortest-path, near-identity."""
    attributed: int = 64
    """Test images whose class score is attributed to shortcuts and branches."""
    steps: int = 16
    """Steps of that attribution's integral; its error is reported."""

    def check(self) -> None:
        super().check()
        self.check_depths("--depth", self.depth)
        self.check_arms("--arms", *self.arms)
        if self.attributed < 1 or self.steps < 1:
            raise BadInput(f"--attributed {self.attributed}, --steps {self.steps}: give at least 1 of each")


QUICK = Settings(depth=20, seeds=(0, 1), attributed=16, training=Training(epochs=3))


@dataclass(frozen=True)
class Attribution:
    """How a trained network's class scores are attributed to its shortcuts and branches."""

    images: int
    """Test images."""
    steps: int
    """Of the integral."""


def main(settings: Settings) -> None:
    """Run the grid and report it."""
    settings.check()
    dataset = load(settings.data)
    output = show.live(settings.output(EXPERIMENT))
    attribution = Attribution(settings.attributed, settings.steps)
    given = {"arms": settings.arms, "depths": (settings.depth,), "outputs": OUTPUTS}
    runs = settings.runs(EXPERIMENT, dataset, **given, treatment=attribution)
    task = partial(train_and_measure, dataset=dataset)
    tables, diverged = run_grid(runs, task, output, execution=settings.execution)
    report(tables, [run for run in runs if run not in diverged], diverged, dataset, settings, output)


# What a run does


def train_and_measure(run: Run, checkpoint_file: Path | None = None, *, dataset: Dataset) -> Outcome:
    """Train a network, and measure how much it uses each of its blocks."""
    attribution: Attribution = run.recipe.treatment
    first, arrays = make_network(run, dataset), dict[str, np.ndarray]()

    def measure(model: nn.Module, batches: Batches, epoch: int, last: bool) -> Tables:
        if not last:
            return {"blocks": table(gradient_shares(model, batches))} if epoch == 0 else {}
        moved = movement(first.state_dict(), model)
        rows = [*gradient_shares(model, batches), *errors(model, first, batches), *read_outs(model, batches)]
        shared = attributions(model, batches, images=attribution.images, steps=attribution.steps)
        arrays.update(saliency(model, batches, chosen_images(dataset)))
        return {"blocks": pd.concat([moved, table(rows), shared], ignore_index=True)}

    outcome = train_run(run, checkpoint_file, dataset=dataset, measure=measure)
    outcome.arrays = arrays
    return outcome


def chosen_images(dataset: Dataset, *, most: int = 4) -> list[int]:
    """The first test image of each of the first classes: a choice made without a look at them."""
    labels = dataset.splits["test"][1]
    return [int(np.flatnonzero(labels == label)[0]) for label in np.unique(labels)[:most]]


# Analysis


@dataclass(frozen=True)
class Measure:
    """One use of the blocks: a quantity of the table of blocks, under these statistics, at the first or last epoch."""

    name: str
    quantity: str
    statistics: str = ""
    at_start: bool = False

    @property
    def needs_skill(self) -> bool:
        """Whether it compares test errors, which tell nothing of a network at chance."""
        return self.quantity in ("reset", "deleted", "read-out")


MEASURES = (
    Measure("weight movement", "movement"),
    Measure("gradient at initialisation", "gradient", at_start=True),
    Measure("gradient after training", "gradient"),
    Measure("reset cost", "reset", "re-estimated"),
    Measure("reset cost, BatchNorm kept", "reset", "kept"),
    Measure("lesion cost", "deleted", "re-estimated"),
    Measure("lesion cost, BatchNorm kept", "deleted", "kept"),
    Measure("read-out gain", "read-out"),
    Measure("attribution to branches", "attribution"),
)


def centre_of_mass(values: "pd.Series[float]", blocks: int) -> float:
    """sum(q_l * l / (blocks - 1)) / sum(q_l) of a quantity q by depth l, negative ones counted as 0.

    nan where that has no meaning: nothing is left, or a third of the blocks or more has no value.
    """
    mass = values.clip(lower=0).dropna()
    if blocks < 2 or len(mass) <= 2 / 3 * blocks or not np.isfinite(mass).all() or mass.sum() == 0:
        return math.nan
    return float((mass * mass.index).sum() / mass.sum() / (blocks - 1))


def used(rows: pd.DataFrame, measure: Measure, *, classes: int) -> "pd.Series[float]":
    """One network's quantity by depth, in which more is more use; empty where it has none."""
    if measure.needs_skill and _whole(rows, "kept") >= 1 - 1 / classes - FLOOR:
        return pd.Series(dtype=float)
    wanted = {"statistics": measure.statistics} if measure.statistics else {}
    found = select(rows, quantity=measure.quantity, **wanted)
    start = found["epoch"] == 0
    found = found[start if measure.at_start else ~start].set_index("depth")["value"].sort_index()
    if measure.quantity == "read-out":
        return -found.cummin().diff().loc[0:]
    return found - _whole(rows, measure.statistics) if measure.statistics else found


def _whole(rows: pd.DataFrame, statistics: str) -> float:
    found = select(rows, quantity="whole", statistics=statistics)["value"]
    return float(found.iloc[0]) if len(found) else math.inf


def centres(blocks: pd.DataFrame, *, classes: int) -> pd.DataFrame:
    """Every network's centres of mass, where it has one: arm, depth_total, seed, outcome (the measure), quantity
    ("centre"), value."""
    rows: list[dict[str, object]] = []
    for (arm, depth_total, seed), network in blocks.groupby(["arm", "depth_total", "seed"], sort=False):
        count = int(network["depth"].max()) + 1
        about = {"arm": arm, "depth_total": depth_total, "seed": seed}
        for measure in MEASURES:
            value = centre_of_mass(used(network, measure, classes=classes), count)
            if math.isfinite(value):
                rows.append({**about, "outcome": measure.name, "quantity": "centre", "value": value})
    return table(rows)


def estimates(found: pd.DataFrame) -> dict[tuple[str, str], Estimate]:
    """Mean and 95 % t interval over seeds, by (arm, measure), cut at 0 and 1: no centre lies beyond."""
    result = {}
    for (arm, name), values in found.groupby(["arm", "outcome"], sort=False)["value"]:
        result[str(arm), str(name)] = clip(estimate(values.to_numpy()), 0, 1)
    return result


def estimate_table(found: dict[tuple[str, str], Estimate], depth: int) -> pd.DataFrame:
    """The estimates as a long table: arm, depth_total, outcome, quantity (mean | low | high | n), value."""
    return table(
        row for (arm, name), centre in found.items() for row in centre.rows(arm=arm, depth_total=depth, outcome=name)
    )


def decide(found: dict[tuple[str, str], Estimate], arms: tuple[str, ...]) -> dict[str, show.Decision]:
    """Which blocks the given arms use most, by each measure (costs with re-estimated BatchNorm statistics)."""
    words = {"above": "deep", "within": "shallow"}
    names = [measure.name for measure in MEASURES if measure.statistics != "kept"]
    return {
        f"{arm}, {name}": show.decision(centre, EVEN, words, one_sided=True, digits=2, sign=False)
        for arm in arms
        for name in names
        if (centre := found.get((arm, name)))
    }


# Report


def report(
    tables: Tables, finished: list[Run], diverged: list[Run], dataset: Dataset, settings: Settings, output: Output
) -> None:
    """Write the centres of mass, draw the figures, and print the results."""
    console = show.terminal()
    if show.all_diverged(console, tables, output):
        return
    blocks, outcomes, classes = tables["blocks"], tables["outcomes"], len(dataset.classes)
    pairs = {(run.arm, run.seed) for run in finished}
    lasting = [pair in pairs for pair in zip(blocks["arm"], blocks["seed"], strict=True)]
    by_seed = centres(blocks[lasting], classes=classes)
    found = estimates(by_seed)
    both = pd.concat([by_seed, estimate_table(found, settings.depth)], ignore_index=True)
    output.table("centres", both)
    show.save_figure(output, figures.layer_use(blocks), blocks, "layer_use")
    show.save_figure(output, figures.depth_centres(both), both, "depth_centres")
    arrays = saliency_arrays(finished, dataset, output)
    show.save_figure(output, figures.saliency_maps(arrays), arrays, "saliency_maps")
    runs = outcome_table(outcomes, dataset.size("test"))
    show_outcomes(console, outcomes, runs, settings.arms, diverged, classes)
    show_centres(console, found, settings.arms)
    show_completeness(console, blocks)
    arms = tuple(arm for arm in ("residual", "stop-gradient") if arm in settings.arms) or settings.arms
    title = f"{dataset.title}, depth {settings.depth}, centres of mass"
    remark = "Fewer than three seeds decide nothing. One data set, one learning rate, one budget."
    show.conclusion(console, output, decide(found, arms), title=title, remark=remark)


def saliency_arrays(finished: list[Run], dataset: Dataset, output: Output) -> dict[str, np.ndarray]:
    """The same test images, and their maps by all arms, of the first seed that has any."""
    of_seed = [run for run in finished if run.seed == finished[0].seed]
    stored = [np.load(output.folder / "runs" / run.name / "arrays.npz") for run in of_seed]
    images, labels = (np.asarray(array[chosen_images(dataset)]) for array in dataset.splits["test"])
    classes = np.array(dataset.classes)
    return {
        "images": images.transpose(0, 2, 3, 1),
        "labels": classes[labels],
        "arms": np.array([run.arm for run in of_seed]),
        "maps": np.stack([arrays["maps"] for arrays in stored]),
        "predictions": np.stack([classes[arrays["predictions"]] for arrays in stored]),
        "scores": np.stack([arrays["scores"] for arrays in stored]),
        "delta": np.stack([arrays["delta"] for arrays in stored]),
    }


def show_centres(console: Console, found: dict[tuple[str, str], Estimate], arms: tuple[str, ...]) -> None:
    """Measure x arm: the centre of mass with its interval."""
    rows = {
        ("", measure.name): {arm: format_centre(found.get((arm, measure.name))) for arm in arms} for measure in MEASURES
    }
    caption = f"{DEFINITION}.\nIntervals are cut at 0 and 1, and not corrected for their number"
    show.table(console, rows, title="Centre of mass over depth: mean (n) [95 % t interval]", caption=caption)


def format_centre(found: Estimate | None) -> str:
    """`0.45 (3)`, and the interval or the seeds' values below it."""
    mean, *interval = show.estimate(found, sign=False).split(" ", 1)
    return f"{mean} ({len(found.values)})\n{''.join(interval)}" if found else mean


def show_completeness(console: Console, blocks: pd.DataFrame) -> None:
    """Print the difference between the attributions' sum and the score."""
    if "score" not in set(blocks["quantity"]):
        return
    wide = blocks.pivot_table(index=["arm", "seed", "depth"], columns="quantity", values="value")
    missed = (100 * wide["delta"] / wide["score"].abs()).dropna().groupby(level="arm", sort=False)
    parts = [f"{arm} {of_arm.mean():.2g} % (at worst {of_arm.max():.2g} %)" for arm, of_arm in missed]
    console.print(f"The attribution misses the class score, on the mean over junctions, by: {', '.join(parts)}\n")


if __name__ == "__main__":
    run_script("experiments.layer_use")
