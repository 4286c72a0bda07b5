"""How much better than its best member is an ensemble of networks of different depth?

Trains CIFAR ResNets (He et al. 2015) of several depths, and averages the class probabilities that the networks of one
seed give to each test image, as He et al. did with six networks: top-1 and top-5 error of each member, of the ensemble,
and of the member that is best on validation images.

Writes tables, figures and every run's run.json to OUT/ensemble; finished runs are not repeated.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from rich.console import Console
from torch import nn

import figures
from experiments.engine.reporting import show
from experiments.engine.running.cli import run_script
from experiments.engine.running.grid import run_grid
from experiments.engine.running.messages import BadInput
from experiments.engine.running.output import Output
from experiments.engine.running.run import Outcome, Run, Tables
from experiments.engine.statistics.estimates import Estimate, estimate
from experiments.engine.statistics.long_tables import select
from experiments.engine.training.data import Batches, Dataset, load
from experiments.engine.training.optimisation import Training
from experiments.engine.training.settings import NetworkSettings
from experiments.engine.training.train_run import train_run
from probes.tables import table

EXPERIMENT = "ensemble"


@dataclass(frozen=True)
class Settings(NetworkSettings):
    """Every setting of the experiment."""

    depths: tuple[int, ...] = (8, 14, 20, 26, 32, 38)
    """Layers of the members, each 6n + 2."""
    arm: str = "residual"
    """residual, stop-gradient, gradient-only, plain, shortest-path or near-identity."""

    def check(self) -> None:
        super().check()
        self.check_depths("--depths", *self.depths)
        self.check_arms("--arm", self.arm)
        if len(self.depths) < 2:
            raise BadInput(f"--depths {' '.join(map(str, self.depths))}: an ensemble has two members or more")


QUICK = Settings(depths=(8, 14), seeds=(0, 1), training=Training(epochs=3))


def main(settings: Settings) -> None:
    """Run the grid and report it."""
    settings.check()
    dataset = load(settings.data)
    output = show.live(settings.output(EXPERIMENT))
    runs = settings.runs(EXPERIMENT, dataset, arms=(settings.arm,), depths=settings.depths, outputs=("probabilities",))
    tables, diverged = run_grid(runs, partial(train_member, dataset=dataset), output, execution=settings.execution)
    report(tables, diverged, runs, dataset, output)


def train_member(run: Run, checkpoint_file: Path | None = None, *, dataset: Dataset) -> Outcome:
    """Train a network, and keep the probabilities that it gives to the test images."""
    arrays: dict[str, np.ndarray] = {}

    def measure(model: nn.Module, batches: Batches, epoch: int, last: bool) -> Tables:
        if last:
            arrays["probabilities"] = probabilities(model, batches)
        return {}

    outcome = train_run(run, checkpoint_file, dataset=dataset, measure=measure)
    outcome.arrays = arrays
    return outcome


@torch.no_grad()
def probabilities(model: nn.Module, batches: Batches) -> np.ndarray:
    """The probability of each class for each test image, (N, classes), in float64."""
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


def differences(found: pd.DataFrame, outcomes: pd.DataFrame) -> dict[str, Estimate]:
    """The ensemble's top-1 error minus that of the member that validation images choose, and minus its members' mean,
    paired by seed."""
    top1 = select(found, quantity="top-1 error")
    ensemble = top1[top1["depth_total"].isna()].set_index("seed")["value"]
    members = top1.dropna().pivot_table(index="seed", columns="depth_total", values="value")
    validation = select(outcomes, split="validation", quantity="accuracy")
    accuracy = validation.pivot_table(index="seed", columns="depth_total", values="value").loc[members.index]
    best = pd.Series({seed: members.loc[seed, accuracy.loc[seed].idxmax()] for seed in members.index})
    return {
        "the member that is best on validation images": estimate((ensemble - best).to_numpy()),
        "its members' mean": estimate((ensemble - members.mean(axis=1)).to_numpy()),
    }


def report(tables: Tables, diverged: list[Run], runs: list[Run], dataset: Dataset, output: Output) -> None:
    """Write the errors, draw them, and print the results. A seed of which a member has diverged has no ensemble."""
    console = show.terminal()
    lost = {run.seed for run in diverged}
    whole = [run for run in runs if run.seed not in lost]
    if not whole:
        show.files(console, output)
        answer = "Of every seed a network diverged: there is no ensemble. A lower --learning-rate may help."
        show.end(console, output, answer=answer)
        return
    members = {
        (run.depth, run.seed): np.load(output.folder / "runs" / run.name / "arrays.npz")["probabilities"]
        for run in whole
    }
    found = errors(members, dataset.splits["test"][1], runs[0].arm)
    output.table("errors", found)
    show.save_figure(output, figures.ensemble(found), found, "ensemble")
    show_errors(console, found)
    if lost:
        console.print(f"Without seeds {', '.join(map(str, sorted(lost)))}, of which a network diverged\n")
    show.files(console, output)
    changes = {
        ("", name): {"mean [95 % t interval]": show.estimate(change, digits=3), "n": str(len(change.values))}
        for name, change in differences(found, tables["outcomes"]).items()
    }
    title = f"{dataset.title}: the ensemble's top-1 error minus that of"
    show.table(console, changes, title=title, caption="Paired by seed. One data set, one budget.", decides=True)
    said = "; ".join(f"{name}: {row['mean [95 % t interval]']}" for (_, name), row in changes.items())
    show.end(console, output, answer=f"{title} {said}.")


def show_errors(console: Console, found: pd.DataFrame) -> None:
    """Each member's errors, and the ensemble's."""
    rows = {}
    for depth in [*sorted(found["depth_total"].dropna().unique()), None]:
        part = found[found["depth_total"].isna() if depth is None else found["depth_total"] == depth]
        name = f"ensemble of {part['count'].iloc[0]}" if depth is None else f"depth {int(depth)}"
        by_quantity = {name: show.mean_sd(select(part, quantity=name)["value"]) for name in found["quantity"].unique()}
        rows["", name] = {**by_quantity, "n": str(part["seed"].nunique())}
    show.table(console, rows, title="Test error: mean ± sd over n seeds")


if __name__ == "__main__":
    run_script("experiments.ensemble")
