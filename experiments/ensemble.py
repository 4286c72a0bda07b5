"""How much better than its best member is an ensemble of networks of different depth?

Trains CIFAR ResNets (He et al. 2015) of several depths, and averages the class probabilities that the networks of one
seed give to each test image, as He et al. did with six networks: top-1 and top-5 error of each member, of the ensemble,
and of the member that is best on validation images.

Writes tables, a figure and every cell's run.json to OUT/ensemble, and repeats no cell that is already there.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table
from torch import nn

import figures
from experiments.engine.cells import Tables, train_cell
from experiments.engine.command import BadInput, check_choice, make_folder, run_script
from experiments.engine.data import Batches, Dataset, load
from experiments.engine.effects import estimate
from experiments.engine.ending import clear_figures, mean_sd, show_estimate, show_files, terminal
from experiments.engine.grid import Cell, Outcome, run_grid, write_aside
from experiments.engine.settings import NetworkSettings
from experiments.engine.training import Training
from models import ARMS
from probes.tables import table

EXPERIMENT = "ensemble"


@dataclass(frozen=True)
class Settings(NetworkSettings):
    """Every setting of the experiment."""

    depths: tuple[int, ...] = (8, 14, 20, 26, 32, 38)
    """Layers of the members, each 6n + 2."""
    arm: str = "residual"
    """residual, stop-gradient, gradient-only, plain or shortest-path."""

    def check(self) -> None:
        super().check()
        self.check_depths("--depths", *self.depths)
        check_choice("--arm", self.arm, tuple(ARMS))
        if len(self.depths) < 2:
            raise BadInput(f"--depths {' '.join(map(str, self.depths))}: an ensemble has two members or more")


QUICK = Settings(depths=(8, 14), seeds=(0, 1), training=Training(epochs=3))


def main(settings: Settings) -> None:
    """Run the grid and report it."""
    settings.check()
    dataset = load(settings.data)
    folder = make_folder(settings.out / EXPERIMENT)
    make_folder(folder / "figures")
    cells = settings.cells(EXPERIMENT, dataset, arms=(settings.arm,), depths=settings.depths)
    run = partial(run_cell, dataset=dataset, training=settings.training)
    tables, diverged = run_grid(cells, run, folder, workers=settings.workers)
    finish(tables, diverged, cells, dataset, folder)


def run_cell(cell: Cell, dataset: Dataset, training: Training) -> Outcome:
    """Train a network, and keep the probabilities that it gives to the test images."""
    arrays: dict[str, np.ndarray] = {}

    def measure(model: nn.Module, batches: Batches, epoch: int, last: bool) -> Tables:
        if last:
            arrays["probabilities"] = probabilities(model, batches)
        return {}

    outcome = train_cell(cell, dataset, training, measure=measure)
    outcome.arrays = arrays
    return outcome


@torch.no_grad()
def probabilities(model: nn.Module, batches: Batches) -> np.ndarray:
    """Of each test image, of each class: (N, classes), in float64."""
    model.eval()
    parts = [
        model(batches.get("test", slice(start, start + 512))[0]).double().softmax(1)
        for start in range(0, batches.size("test"), 512)
    ]
    return torch.cat(parts).cpu().numpy()


def top_error(given: np.ndarray, labels: np.ndarray, k: int) -> float:
    """The share of images whose class is not among the k most probable; of those that tie its own is last."""
    own = given[np.arange(len(labels)), labels][:, None]
    return float(((given >= own).sum(axis=1) > k).mean())


def errors(members: dict[tuple[int, int], np.ndarray], labels: np.ndarray, arm: str) -> pd.DataFrame:
    """Top-1 and top-5 error of each member (depth, seed) and of each seed's ensemble, whose rows have no depth; count
    is the number of networks. No top-5 where there are five classes or fewer."""
    rows: list[dict[str, object]] = []
    for seed in sorted({seed for _, seed in members}):
        of_seed = {depth: given for (depth, s), given in members.items() if s == seed}
        mean = np.mean(list(of_seed.values()), axis=0)
        for depth, given in [*of_seed.items(), (None, mean)]:
            about = {"arm": arm, "depth_total": depth, "seed": seed, "count": len(of_seed) if depth is None else 1}
            for k in (1, 5) if given.shape[1] > 5 else (1,):
                rows.append({**about, "quantity": f"top-{k} error", "value": top_error(given, labels, k)})
    return table(rows)


def finish(
    tables: dict[str, pd.DataFrame], diverged: list[Cell], cells: list[Cell], dataset: Dataset, folder: Path
) -> None:
    """Draw the figure, and print what came out. A seed of which a member has diverged has no ensemble."""
    console = terminal()
    clear_figures(folder)
    lost = {cell.seed for cell in diverged}
    whole = [cell for cell in cells if cell.seed not in lost]
    if not whole:
        show_files(console, folder)
        console.print("Of every seed a network diverged: there is no ensemble. A lower --learning-rate may help.")
        return
    members = {(c.depth, c.seed): np.load(folder / "cells" / c.name / "arrays.npz")["probabilities"] for c in whole}
    found = errors(members, dataset.splits["test"][1], cells[0].arm)
    write_aside(folder / "errors.csv", found)
    figures.save(figures.ensemble(found), found, folder / "figures", "ensemble")
    shown = Table(title="Test error: mean ± sd over n seeds", box=SIMPLE_HEAD, pad_edge=False)
    for column in ("", *found["quantity"].unique(), "n"):
        shown.add_column(column)
    for depth in [*sorted(found["depth_total"].dropna().unique()), None]:
        rows = found[found["depth_total"].isna() if depth is None else found["depth_total"] == depth]
        by_quantity = [mean_sd(rows[rows["quantity"] == q]["value"]) for q in found["quantity"].unique()]
        name = f"ensemble of {rows['count'].iloc[0]}" if depth is None else f"depth {int(depth)}"
        shown.add_row(name, *by_quantity, str(rows["seed"].nunique()))
    console.print(shown)
    if lost:
        console.print(f"Without seeds {', '.join(map(str, sorted(lost)))}, of which a network diverged\n")
    show_files(console, folder)
    console.print(sentence(found, tables["outcomes"], dataset.title))


def sentence(found: pd.DataFrame, outcomes: pd.DataFrame, title: str) -> str:
    """The ensemble against the member that validation images choose, and against the members' mean; paired by seed."""
    top1 = found[found["quantity"] == "top-1 error"]
    ensemble = top1[top1["depth_total"].isna()].set_index("seed")["value"]
    members = top1.dropna().pivot_table(index="seed", columns="depth_total", values="value")
    validation = outcomes[(outcomes["split"] == "validation") & (outcomes["quantity"] == "accuracy")]
    accuracy = validation.pivot_table(index="seed", columns="depth_total", values="value").loc[members.index]
    best = pd.Series({seed: members.loc[seed, accuracy.loc[seed].idxmax()] for seed in members.index})
    against_best = estimate((ensemble - best).to_numpy())
    against_mean = estimate((ensemble - members.mean(axis=1)).to_numpy())
    return (
        f"{title}, n = {len(ensemble)}: the ensemble's top-1 error differs by {show_estimate(against_best, digits=3)} "
        "from that of the member which is best on validation images, and by "
        f"{show_estimate(against_mean, digits=3)} from its members' mean."
    )


if __name__ == "__main__":
    run_script("experiments.ensemble")
