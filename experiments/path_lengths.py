"""Which path lengths carry the gradient, and do the paths of one length agree?

Trains CIFAR ResNets (He et al. 2015) in the five arms and decomposes the gradient at the first block's input at
initialisation, early in training, and at its end, in two ways that are never put on one axis. Exact: the norm and the
signed share of the sum over all paths of each length. Sampled, after Veit et al. (2016): the mean norm along single
paths of each length, and its product with their number, the mass. The first over the second is the cancellation.

Writes tables, figures and every run's run.json to OUT/path_lengths; finished runs are not repeated. For any other
network, trained ones too: experiments/probe_model.py --samples.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pandas as pd
import torch.nn.functional as F
from rich.console import Console
from torch import nn

import figures
from experiments.engine.reporting import show
from experiments.engine.running.cli import run_script
from experiments.engine.running.grid import run_grid
from experiments.engine.running.messages import check_at_least
from experiments.engine.running.output import Output
from experiments.engine.running.run import Outcome, Run, Tables
from experiments.engine.statistics.long_tables import select
from experiments.engine.training.data import Batches, Dataset, load
from experiments.engine.training.optimisation import Training
from experiments.engine.training.settings import NetworkSettings
from experiments.engine.training.train_run import probing_batch, train_run
from experiments.questions.path_spectra import VEIT, format_band, spectra
from models import ARMS
from probes import record

EXPERIMENT = "path_lengths"


@dataclass(frozen=True)
class Probing:
    """When and on what the gradient is decomposed."""

    early: int = 2
    """Measure also after this many epochs, between the start and the end."""
    samples: int = 40
    """Single paths drawn of each length (Veit et al.: 1000)."""
    probe_size: int = 64
    """Training images, always the same ones, whose gradient is decomposed."""


@dataclass(frozen=True)
class Settings(NetworkSettings):
    """Every setting of the experiment."""

    depths: tuple[int, ...] = (56,)
    """Layers, each 6n + 2: 3n blocks."""
    arms: tuple[str, ...] = tuple(ARMS)
    """Any of residual, stop-gradient, gradient-only, plain, shortest-path, near-identity."""
    probing: Probing = field(default_factory=Probing)

    def check(self) -> None:
        super().check()
        self.check_depths("--depths", *self.depths)
        self.check_arms("--arms", *self.arms)
        for flag, value, least in (
            ("--early", self.probing.early, 1),
            ("--samples", self.probing.samples, 2),
            ("--probe-size", self.probing.probe_size, 2),
        ):
            check_at_least(flag, value, least)


QUICK = Settings(depths=(20,), seeds=(0, 1), probing=Probing(early=1, samples=20), training=Training(epochs=3))


def main(settings: Settings) -> None:
    """Run the grid and report it."""
    settings.check()
    dataset = load(settings.data)
    output = show.live(settings.output(EXPERIMENT))
    given, outputs = {"arms": settings.arms, "depths": settings.depths}, ("paths", "sampled", "bands")
    runs = settings.runs(EXPERIMENT, dataset, **given, outputs=outputs, treatment=settings.probing)
    tables, diverged = run_grid(runs, partial(train_probed, dataset=dataset), output, execution=settings.execution)
    report(tables, diverged, settings, output)


def train_probed(run: Run, checkpoint_file: Path | None = None, *, dataset: Dataset) -> Outcome:
    """Train a network and measure it. Each seed draws paths of its own: the errors of seeds are independent."""
    return train_run(run, checkpoint_file, dataset=dataset, measure=partial(measure, run=run))


def measure(model: nn.Module, batches: Batches, epoch: int, last: bool, *, run: Run) -> Tables:
    """The spectra's tables on one fixed batch of training images, at the start, early, and at the end."""
    probing: Probing = run.recipe.treatment
    if epoch not in (0, probing.early) and not last:
        return {}
    copied, images, labels = probing_batch(model, batches, most=probing.probe_size)
    with record(copied) as recording:
        F.cross_entropy(copied(images), labels).backward(retain_graph=True)
    return spectra(recording, samples=probing.samples, seed=run.seed)


def report(tables: Tables, diverged: list[Run], settings: Settings, output: Output) -> None:
    """Draw the figures, and print the bands. A run that diverged has no end, but its beginning counts."""
    console = show.terminal()
    show.save_figure(output, figures.path_lengths(tables["paths"]), tables["paths"], "path_lengths")
    sampled = pd.concat([tables["sampled"], tables["bands"]], ignore_index=True)
    show.save_figure(output, figures.sampled_paths(sampled), sampled, "sampled_paths")
    for depth in sorted(settings.depths):
        show_bands(console, tables, settings.arms, depth)
    show.diverged(console, diverged)
    show.files(console, output)
    remark = f"For comparison: {VEIT}; another network and data set, no target."
    show.end(console, output, answer=where_the_mass_is(tables, settings), remark=remark)


def where_the_mass_is(tables: Tables, settings: Settings) -> str:
    """A sentence: the path lengths that hold most of the sampled mass of each arm in the end, at the largest depth."""
    bands = select(tables["bands"], depth_total=(depth := max(settings.depths)))
    blocks = select(tables["sampled"], depth_total=depth)["path_length"].max()
    last = bands["epoch"].max()
    wide = {
        arm: select(bands, arm=arm, epoch=last).pivot(index="seed", columns="quantity", values="value")
        for arm in settings.arms
    }
    said = "; ".join(f"{arm} {format_band(of, 'mass')}" for arm, of in wide.items() if len(of))
    where = f"depth {depth}, epoch {last}, {blocks} blocks"
    return f"Branches of the paths that hold 95 % of the sampled mass ({where}): {said}."


def show_bands(console: Console, tables: Tables, arms: Sequence[str], depth: int) -> None:
    """Arm x epoch: the bands of lengths that hold 95 %, and how the norms of single paths fall."""
    sampled, bands = (select(tables[name], depth_total=depth) for name in ("sampled", "bands"))
    rows = {
        (arm, f"epoch {epoch}"): band_row(part)
        for arm in arms
        for epoch, part in select(bands, arm=arm).groupby("epoch")
    }
    walked = select(sampled, quantity="samples")["value"].max()
    caption = (
        f"{sampled['path_length'].max()} blocks, {walked:.0f} paths of a length. Sampled mass: mean norm along single "
        "paths times their number, which ignores that paths cancel; the norms of exact sums do not add up to the "
        "gradient's norm either: two bands of two quantities. Slope: of log10 of the mean norm along single paths, per "
        "branch"
    )
    title = f"Path lengths that hold 95 % at depth {depth}: ends of the central band, mean over n seeds"
    show.table(console, rows, title=title, caption=caption)


def band_row(bands: pd.DataFrame) -> dict[str, str]:
    """The bands of one arm and epoch, over seeds."""
    wide = bands.pivot(index="seed", columns="quantity", values="value")
    mean, deviation = wide.mean(), wide.std()
    slope = f"{mean['slope']:+.3f}" + (f" ± {deviation['slope']:.3f}" if len(wide) > 1 else "")
    falls = mean["slope"] == mean["slope"]
    return {
        "sampled mass": format_band(wide, "mass"),
        "norms of exact sums": format_band(wide, "norm"),
        "slope": slope if falls else "-",
        "R²": f"{mean['fit']:.2f}" if falls else "-",
        "n": f"{len(wide)}",
    }


if __name__ == "__main__":
    run_script("experiments.path_lengths")
