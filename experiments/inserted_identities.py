"""Do blocks that are inserted into a trained network as identities stay near the identity, and do no harm?

He et al. (2015) argue that a deeper network could copy a shallower one if its further blocks were identities. Here
blocks are inserted into a trained shallow network, as identities or at random weights, and all is trained for as long
again; beside it, the shallow network itself is.

Writes tables, figures and every run's run.json to OUT/inserted_identities; finished runs are not repeated.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from rich.console import Console
from torch import Tensor, nn

import figures
from experiments.engine.reporting import show
from experiments.engine.running.cli import run_script
from experiments.engine.running.grid import run_grid
from experiments.engine.running.messages import BadInput, check_choice
from experiments.engine.running.output import Output
from experiments.engine.running.run import Outcome, Run, Tables
from experiments.engine.statistics.equivalence import MARGINS, Comparison, compare, comparison_table
from experiments.engine.statistics.estimates import Estimate, estimate
from experiments.engine.statistics.factorial import outcome_table
from experiments.engine.training.data import Batches, Dataset, load
from experiments.engine.training.loop import Diverged, evaluate, recompute_bn_statistics, train
from experiments.engine.training.optimisation import Training
from experiments.engine.training.settings import NetworkSettings
from experiments.engine.training.train_run import check_circumstances, make_network, train_run
from experiments.questions.distance_from_identity import (
    BRANCHES,
    changes_at_ends,
    mean_changes,
    open_branches,
    some_images,
)
from models import CifarResNet, ResidualBlock
from models.branches import Scalar
from probes.tables import table

EXPERIMENT = "inserted_identities"
KINDS = ("identity", "random")
NEAR_ZERO = 0.1  # of its input's norm: a smaller change by a block is near the identity
READINGS = {"recovered": "keeps up", "falls short": "is worse", "undecided": "is undecided"}
DEFINITION = (
    "worse: the whole 95 % paired t interval of the change lies beyond a doubled train loss, or beyond a test accuracy "
    f"lower by {MARGINS['test accuracy']}, or a seed diverged; keeps up: both lie within"
)
CLOSED = (
    "stop-gradient, identity: initially no gradient passes a block whose branch gives zeros, so that the layers below "
    "it do not learn, while those of the shallow network do.\n"
)
Inserted = tuple[str, str, int]
"""Arm, kind, layers with the inserted blocks."""


@dataclass(frozen=True)
class Settings(NetworkSettings):
    """Every setting of the experiment."""

    arms: tuple[str, ...] = ("residual", "stop-gradient", "plain")
    """Any of residual, stop-gradient, gradient-only, plain, shortest-path, near-identity."""
    depth: int = 8
    """Layers of the shallow network, 6n + 2."""
    deeper: tuple[int, ...] = (20,)
    """Layers with the inserted blocks. Training before and after has the budget of --epochs each."""

    def check(self) -> None:
        super().check()
        check_choice("--network", self.network, tuple(BRANCHES))
        self.check_arms("--arms", *self.arms)
        self.check_depths("--depth", self.depth)
        self.check_depths("--deeper", *self.deeper)
        if min(self.deeper) <= self.depth:
            raise BadInput(f"--deeper {min(self.deeper)}: give more layers than --depth, {self.depth}")


QUICK = Settings(seeds=(0, 1), training=Training(epochs=3))


@dataclass(frozen=True)
class Insertion:
    """The blocks that are inserted into a trained shallow network before it is trained for as long again."""

    kind: str
    """How the inserted blocks, up to the run's depth, are initialised: identity or random; none: no blocks."""
    shallow: int
    """Layers of the shallow network."""


def main(settings: Settings) -> None:
    """Run the grid and report it."""
    settings.check()
    dataset = load(settings.data)
    output = show.live(settings.output(EXPERIMENT))
    task = partial(insert_and_train, dataset=dataset)
    tables, diverged = run_grid(make_runs(settings, dataset), task, output, execution=settings.execution)
    report(tables, diverged, dataset, output)


def make_runs(settings: Settings, dataset: Dataset) -> list[Run]:
    """A run for each kind, depth, arm and seed, their tables with the kind as `effect`; none: the shallow network."""
    return [
        run
        for kind, depths in (("none", (settings.depth,)), *((kind, settings.deeper) for kind in KINDS))
        for run in settings.runs(
            EXPERIMENT,
            dataset,
            arms=settings.arms,
            depths=depths,
            outputs=("starts",) if kind == "none" else ("starts", "blocks"),
            labels={"effect": kind},
            treatment=Insertion(kind, settings.depth),
        )
    ]


# What a run does


def insert_and_train(run: Run, checkpoint_file: Path | None = None, *, dataset: Dataset) -> Outcome:
    """Train the shallow network, insert blocks, and train for as long again, on the same batches.

    A killed run repeats the first training, and resumes the second.
    """
    check_circumstances(run, dataset)
    insertion: Insertion = run.recipe.treatment
    batches = Batches(dataset, torch.device(run.recipe.device))
    shallow = first_network(replace(run, depth=insertion.shallow), dataset)
    try:
        for _ in train(shallow, batches, run.recipe.training, seed=run.seed, computing=run.recipe.computing):
            pass
    except Diverged as end:
        return Outcome(diverged_at=end.step)
    recompute_bn_statistics(shallow, batches)
    model, inserted = shallow, []
    if insertion.kind != "none":
        model = first_network(run, dataset)
        inserted = insert_blocks(shallow, model)
    if insertion.kind == "identity":
        make_identities(shallow, model, inserted, some_images(batches))
    measure = partial(changes_at_ends, evaluate=evaluate, blocks=inserted)
    return train_run(run, checkpoint_file, dataset=dataset, model=model, measure=measure)


def first_network(run: Run, dataset: Dataset) -> CifarResNet:
    """The run's network at its first weights."""
    model = make_network(run, dataset)
    assert isinstance(model, CifarResNet)
    open_branches(model)
    return model


def insert_blocks(shallow: CifarResNet, deep: CifarResNet) -> list[str]:
    """Give `deep` the weights of `shallow`; its further blocks, at the end of each stage, keep their own.

    Returns the names of those inserted blocks. Raises ValueError where `deep` has no place for all of `shallow`.
    """
    unexpected = deep.load_state_dict(shallow.state_dict(), strict=False).unexpected_keys
    if unexpected or len(deep.blocks) <= len(shallow.blocks):
        raise ValueError(
            f"a network of {len(shallow.blocks)} blocks cannot be continued as one of {len(deep.blocks)}: give a "
            "deeper one"
        )
    own = {name for name, _ in shallow.named_modules()}
    return [name for name, module in deep.named_modules() if isinstance(module, ResidualBlock) and name not in own]


@torch.no_grad()
def make_identities(shallow: CifarResNet, deep: CifarResNet, inserted: Sequence[str], images: Tensor) -> None:
    """Make the inserted blocks identities, so that `deep` in eval mode computes what `shallow` does.

    images: training images, from which a plain block's BatchNorm takes the mean and variance of its input.
    """
    x, outputs = shallow.eval().stem(images), {}
    for name in ("layer1", "layer2", "layer3"):
        outputs[name] = x = getattr(shallow, name)(x)
    for name in inserted:
        block = deep.get_submodule(name)
        assert isinstance(block, ResidualBlock)
        if block.flow.shortcut:
            silence(block.branch)
        else:
            pass_on(block.branch, outputs[name.split(".")[0]])


def silence(branch: nn.Module) -> None:
    """Make a branch output zeros: its last layer, a BatchNorm or a learned factor, becomes 0."""
    for parameter in list(branch.children())[-1].parameters():
        nn.init.zeros_(parameter)


def pass_on(branch: nn.Module, x: Tensor) -> None:
    """Make a branch copy x (N, C, H, W), which is not negative.

    Convolutions pass each channel on (Dirac). BatchNorm's running statistics are those of x, its weight and bias the
    deviation and mean that undo them: in eval mode nothing changes but by rounding. In train mode the first BatchNorm
    gives every batch the mean and deviation of x, which moves values by the difference of the batch's own to those
    (and ReLU cuts what falls below 0); the next ones then find nearly what they give.
    """
    variance, mean = torch.var_mean(x, (0, 2, 3), correction=0)
    for module in branch.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.dirac_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.copy_(mean)
            module.running_var.copy_(variance)
            module.weight.copy_((variance + module.eps).sqrt())
            module.bias.copy_(mean)
        elif isinstance(module, Scalar):
            nn.init.ones_(module.alpha)


# Analysis


def insertions(outcomes: pd.DataFrame, test_size: int) -> dict[Inserted, Comparison]:
    """Each deeper network against the shallow one that was trained further as well, paired by seed."""
    found: dict[Inserted, Comparison] = {}
    for arm, of_arm in outcomes.groupby("arm", sort=False):
        runs = outcome_table(of_arm, test_size, by="effect")
        shallow = runs["effect"] == "none"
        deeper = of_arm.loc[of_arm["effect"] != "none", ["effect", "depth_total"]].drop_duplicates()
        for kind, depth in sorted(deeper.itertuples(index=False, name=None)):
            deep = (runs["effect"] == kind) & (runs["depth_total"] == depth)
            found[str(arm), kind, depth] = compare(runs[shallow | deep], kind, depth, ordinary="none", by="effect")
    return found


def inserted_changes(blocks: pd.DataFrame) -> dict[Inserted, tuple[Estimate, Estimate]]:
    """Mean change by an inserted block, first and last, over the seeds that have both."""
    found: dict[Inserted, tuple[Estimate, Estimate]] = {}
    changes = mean_changes(blocks, by="effect")
    for (arm, depth, kind), rows in changes.groupby(["arm", "depth_total", "effect"], sort=False):
        wide = rows.pivot_table(index="seed", columns="epoch", values="value").dropna()
        if len(wide.columns) == 2 and len(wide):
            first, last = (estimate(wide[epoch].to_numpy()) for epoch in sorted(wide.columns))
            found[str(arm), str(kind), int(str(depth))] = first, last
    return found


def insertion_table(
    found: dict[Inserted, Comparison], changes: dict[Inserted, tuple[Estimate, Estimate]]
) -> pd.DataFrame:
    """Both as a long table: arm, depth_total, outcome, effect, draw, quantity (mean, low, high, n, margin, or seed with
    its draw), value. outcome: log train loss, test accuracy (each a change); change first, change last."""
    parts = []
    for (arm, kind, depth), comparison in found.items():
        if comparison.changes:
            rows = comparison_table([comparison], depth).drop(columns="path_length")
            parts.append(rows.assign(arm=arm, effect=kind))
        parts += [seed_rows(arm, kind, depth, outcome, change) for outcome, change in comparison.changes.items()]
    for (arm, kind, depth), both in changes.items():
        for outcome, change in zip(("change first", "change last"), both, strict=True):
            about = {"arm": arm, "depth_total": depth, "effect": kind, "outcome": outcome}
            parts.append(table([*change.rows(**about), {**about, "quantity": "margin", "value": NEAR_ZERO}]))
            parts.append(seed_rows(arm, kind, depth, outcome, change))
    return table(pd.concat(parts).to_dict("records")) if parts else pd.DataFrame()


def seed_rows(arm: str, kind: str, depth: int, outcome: str, found: Estimate) -> pd.DataFrame:
    """The seeds' own values of an estimate."""
    about = {"arm": arm, "depth_total": depth, "effect": kind, "outcome": outcome, "quantity": "seed"}
    return table({**about, "draw": draw, "value": value} for draw, value in enumerate(found.values))


def decide(changes: dict[Inserted, tuple[Estimate, Estimate]]) -> dict[str, show.Decision]:
    """Whether the residuals of inserted blocks end near zero, in networks with shortcuts."""
    words = {"above": "not near zero", "within": "near zero"}
    return {
        f"‖F(x)‖/‖x‖, {kind}, {depth}": show.decision(last, NEAR_ZERO, words, one_sided=True, digits=2, sign=False)
        for (arm, kind, depth), (_, last) in changes.items()
        if arm == "residual"
    }


# Report


def report(tables: Tables, diverged: list[Run], dataset: Dataset, output: Output) -> None:
    """Write the table of insertions, draw it, and print the results."""
    console = show.terminal()
    show.diverged(console, diverged)
    if show.all_diverged(console, tables, output):
        return
    found = insertions(tables["outcomes"], dataset.size("test"))
    changes = inserted_changes(tables["blocks"]) if "blocks" in tables else {}
    rows = insertion_table(found, changes)
    if len(rows):
        output.table("insertion", rows)
        show.save_figure(output, figures.insertion(rows), rows, "insertion")
    show_insertions(console, found, changes)
    show.files(console, output)
    answer = "" if (residual := decide(changes)) else "No blocks were inserted into residual networks."
    if residual:
        show.decisions(console, residual, title=f"{dataset.title}, inserted blocks of residual networks")
    show.end(console, output, answer=answer, remark="One data set, one budget.")


def show_insertions(
    console: Console, found: dict[Inserted, Comparison], changes: dict[Inserted, tuple[Estimate, Estimate]]
) -> None:
    """Each deeper network against the shallow one, and what its inserted blocks change."""
    rows = {}
    for (arm, kind, depth), comparison in found.items():
        both = changes.get((arm, kind, depth))
        rows[arm, f"{kind}, {depth}"] = {
            **{outcome: show.estimate(comparison.changes.get(outcome)) for outcome in MARGINS},
            "n": str(comparison.pairs),
            "it": READINGS[comparison.reading],
            "a block changes": f"{both[0].mean:.3f} to {both[1].mean:.3f}" if both else "-",
        }
    note = CLOSED if ("stop-gradient", "identity") in {(arm, kind) for arm, kind, _ in found} else ""
    show.table(
        console,
        rows,
        title="Change from the shallow network that was trained further: mean [95 % t interval], paired by seed",
        caption=f"{DEFINITION}.\n{note}Intervals are not corrected for their number",
    )


if __name__ == "__main__":
    run_script("experiments.inserted_identities")
