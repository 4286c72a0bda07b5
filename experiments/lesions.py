"""What does a trained network lose when blocks are deleted, permuted or swapped: an ensemble's little, or all?

Trains CIFAR ResNets (or takes --weights) and damages them, as Veit et al. (2016) did: one block deleted; several, at
random; pairs of blocks of one shape permuted at random; neighbours swapped. To delete a block is to leave its shortcut
alone; in the arms whose shortcut carries no signal (plain, gradient-only) the whole block is skipped. Every lesion is
measured twice: with the BatchNorm statistics of the whole network, and with re-estimated statistics.

Writes tables, figures and every run's run.json to OUT/lesions; finished runs are not repeated.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from rich.console import Console
from scipy.stats import kendalltau
from torch import nn

import figures
from experiments.engine.reporting import show
from experiments.engine.running.cli import run_script
from experiments.engine.running.grid import run_grid
from experiments.engine.running.messages import BadInput
from experiments.engine.running.output import Output
from experiments.engine.running.run import Outcome, Run, Tables
from experiments.engine.running.store import fingerprint
from experiments.engine.statistics.estimates import clip, estimate
from experiments.engine.statistics.long_tables import select
from experiments.engine.training.data import Batches, Dataset, load
from experiments.engine.training.optimisation import Training
from experiments.engine.training.settings import NetworkSettings
from experiments.engine.training.train_run import check_circumstances, make_network, train_run
from experiments.questions.any_model import load_weights
from experiments.questions.damage import Blocks, Damage, error_after
from probes import permute
from probes.tables import table

EXPERIMENT = "lesions"


@dataclass(frozen=True)
class Settings(NetworkSettings):
    """Every setting of the experiment."""

    depth: int = 56
    """Layers, 6n + 2."""
    arms: tuple[str, ...] = ("residual", "stop-gradient", "plain")
    """Any of residual, stop-gradient, gradient-only, plain, shortest-path, near-identity."""
    counts: tuple[int, ...] = (1, 2, 4, 8, 16)
    """How many blocks are deleted at once, and how many pairs change places."""
    draws: int = 5
    """Random choices of each count in each network; the same for all arms of a seed."""
    weights: Path | None = None
    """Instead of training: a public CIFAR ResNet of that depth and width, as the residual arm (see --normalise)."""

    def check(self) -> None:
        super().check()
        self.check_depths("--depth", self.depth)
        self.check_arms("--arms", *self.arms)
        if self.draws < 1 or not self.counts or min(self.counts) < 1:
            raise BadInput(f"--draws {self.draws}, --counts {self.counts}: give at least 1 of each")


QUICK = Settings(depth=20, seeds=(0, 1), counts=(1, 2, 4), draws=2, training=Training(epochs=3))


@dataclass(frozen=True)
class Lesions:
    """What is done to a network once it is trained."""

    counts: tuple[int, ...]
    """How many blocks are deleted at once, and how many pairs change places."""
    draws: int
    """Random choices of each count."""
    weights: str | None = None
    """The fingerprint of a file of weights, which are loaded instead of training."""


def main(settings: Settings) -> None:
    """Run the grid and report it."""
    settings.check()
    dataset = load(settings.data)
    lesions = Lesions(settings.counts, settings.draws, weights_fingerprint(settings.weights))
    output = show.live(settings.output(EXPERIMENT))
    given = settings if settings.weights is None else replace(settings, arms=("residual",), seeds=(0,))
    runs = given.runs(
        EXPERIMENT, dataset, arms=given.arms, depths=(given.depth,), outputs=("lesions",), treatment=lesions
    )
    task = partial(train_and_damage, dataset=dataset, weights=settings.weights)
    tables, _ = run_grid(runs, task, output, execution=settings.execution)
    report(tables, dataset.size("test"), output)


def weights_fingerprint(file: Path | None) -> str | None:
    """Sixteen digits of the file's SHA-256; None without a file."""
    try:
        return fingerprint(file)[:16] if file else None
    except OSError as error:
        raise BadInput(f"--weights {file}: {error.strerror}") from None


# What a run does


def train_and_damage(
    run: Run, checkpoint_file: Path | None = None, *, dataset: Dataset, weights: Path | None = None
) -> Outcome:
    """Train a network, or load the weights that its recipe names, and damage it in every way."""
    lesions: Lesions = run.recipe.treatment

    def measure(model: nn.Module, batches: Batches, epoch: int, last: bool) -> Tables:
        return {"lesions": table(damaged(model, batches, lesions, seed=run.seed))} if last else {}

    if lesions.weights is None:
        return train_run(run, checkpoint_file, dataset=dataset, measure=measure)
    check_circumstances(run, dataset)
    if weights is None or weights_fingerprint(weights) != lesions.weights:
        raise ValueError(f"{run.name}: its recipe asks for weights {lesions.weights}, which {weights} does not hold")
    model = make_network(run, dataset)
    load_weights(model, weights)
    return Outcome(measure(model, Batches(dataset, torch.device(run.recipe.device)), 0, True))


def damaged(model: nn.Module, batches: Batches, lesions: Lesions, *, seed: int) -> Iterator[dict[str, object]]:
    """Test errors (0..1) of the network with every lesion, and Kendall's tau of every permutation."""
    images, _ = batches.get("test", slice(0, 2))
    blocks = Blocks(model.eval(), images)
    random = torch.Generator().manual_seed(seed)
    for about, damage in every_lesion(blocks, lesions, random):
        tau = about.pop("tau", None)
        for statistics in ("kept", "re-estimated"):
            error = error_after(model, batches, statistics=statistics, damage=damage)
            yield {**about, "statistics": statistics, "quantity": "error", "value": error}
            if tau is not None:
                yield {**about, "statistics": statistics, "quantity": "tau", "value": tau}


def every_lesion(
    blocks: Blocks, lesions: Lesions, random: torch.Generator
) -> Iterator[tuple[dict[str, object], Damage]]:
    """Every lesion with its columns of the table."""
    names, inner = blocks.names, blocks.inner
    stages = [name.split(".")[0] for name in names]
    pairs = [(i, j) for i in inner for j in inner if i < j and stages[i] == stages[j]]
    yield {"lesion": "none", "count": 0}, blocks.delete([])
    for i in blocks.deletable:
        yield {"lesion": "delete", "count": 1, "block": names[i], "depth": i}, blocks.delete([i])
    for i, j in pairs:
        if j == i + 1:
            yield (
                {"lesion": "swap", "count": 1, "block": names[i], "depth": i},
                reorder(names, exchange(names, [(i, j)])),
            )
    for count in lesions.counts:
        for draw in range(lesions.draws):
            if count <= len(inner):
                chosen = [inner[k] for k in torch.randperm(len(inner), generator=random)[:count].tolist()]
                yield {"lesion": "delete at random", "count": count, "draw": draw}, blocks.delete(chosen)
            if pairs:
                drawn = torch.randint(len(pairs), (count,), generator=random).tolist()
                order = exchange(names, [pairs[k] for k in drawn])
                tau = float(kendalltau(range(len(order)), order).statistic)
                yield {"lesion": "permute", "count": count, "draw": draw, "tau": tau}, reorder(names, order)


def exchange(names: Sequence[str], pairs: Sequence[tuple[int, int]]) -> list[int]:
    """The order of the blocks after one pair after the other has changed places."""
    order = list(range(len(names)))
    for i, j in pairs:
        order[i], order[j] = order[j], order[i]
    return order


def reorder(names: Sequence[str], order: Sequence[int]) -> Damage:
    """Put the weights of block order[i] into block i."""
    moved = {names[i]: names[j] for i, j in enumerate(order) if i != j}
    return lambda model: permute(model, moved)


# Report


def report(tables: Tables, images: int, output: Output) -> None:
    """Draw the figures, and print the errors."""
    console = show.terminal()
    if "lesions" not in tables and show.all_diverged(console, tables, output):
        return
    found = tables["lesions"]
    for name, lesion, draw in (
        ("lesions_delete", "delete", figures.lesions_by_block),
        ("lesions_swap", "swap", figures.lesions_by_block),
        ("lesions_delete_at_random", "delete at random", figures.lesions_by_count),
        ("lesions_permute", "permute", figures.lesions_by_count),
    ):
        rows = found[found["lesion"].isin(["none", lesion])]
        if lesion in set(rows["lesion"]):
            show.save_figure(output, draw(rows), rows, name)
    show_lesions(console, found, images)
    show.files(console, output)
    show.end(console, output, answer=loss_by_deletion(found))


def loss_by_deletion(found: pd.DataFrame) -> str:
    """A sentence: how much the test error of each arm changes when a block is deleted, on average."""
    errors = select(found, quantity="error", statistics="kept")
    whole, deleted = (
        select(errors, lesion=lesion).groupby("arm", sort=False)["value"].mean() for lesion in ("none", "delete")
    )
    points = ", ".join(f"{arm} {100 * change:+.1f}" for arm, change in (deleted - whole).dropna().items())
    networks = errors["seed"].nunique()
    return (
        f"Change in test error when one block is deleted, in points: {points or 'not measured'} (mean over blocks, "
        f"{networks} network{'s' * (networks != 1)} an arm, BatchNorm kept)."
    )


def show_lesions(console: Console, found: pd.DataFrame, images: int) -> None:
    """Test error by arm and lesion: mean over seeds and interval; of one network, mean over its lesions and range."""
    errors = select(found, quantity="error")
    networks = int(errors["seed"].nunique())
    spread = f"[95 % t interval] over {networks} seeds" if networks > 1 else "(range) over one network's lesions"
    rows = {}
    for (arm, kind, count), of_lesion in errors.groupby(["arm", "lesion", "count"], sort=False):
        kept, estimated = (select(of_lesion, statistics=name) for name in ("kept", "re-estimated"))
        rows[str(arm), f"{kind} {count}" if kind != "none" else "none"] = {
            "BatchNorm kept": format_errors(kept, by_seed=networks > 1),
            "re-estimated": format_errors(estimated, by_seed=networks > 1),
            "lesions": str(len(kept) // kept["seed"].nunique()),
        }
    show.table(console, rows, title=f"Test error in % of {images} images: mean {spread}")


def format_errors(part: pd.DataFrame, *, by_seed: bool) -> str:
    """The mean over seeds with its interval; of one network, the mean over its lesions with their range."""
    errors = 100 * part["value"]
    if by_seed:
        found = clip(estimate(100 * part.groupby("seed")["value"].mean().to_numpy()), 0, 100)
        return show.estimate(found, digits=1, sign=False)
    return f"{errors.mean():.1f}" + (f" ({errors.min():.1f}–{errors.max():.1f})" if len(errors) > 1 else "")


if __name__ == "__main__":
    run_script("experiments.lesions")
