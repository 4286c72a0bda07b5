"""Does an arm's gradient point where the true one does?

An arm that cuts a gradient, or adds one, learns from what need not be the gradient of any loss. While it is trained,
its gradient is compared with the true one of the same weights: block by block and in all, on one fixed batch, before
the first step and after every epoch; and in each step, whether the weights move uphill on the true loss of that step's
batch, to first order. The arms that learn from the true gradient of the same function (residual, plain) are trained
beside them. Then the training of every network is continued for some epochs, at the same learning rate and with a fresh
schedule: with the true gradient, and with the arm's. Each arm has its own best learning rate, chosen by validation on
other seeds.

Writes tables, figures and every run's run.json to OUT/alignment, the search's runs to OUT/answer; finished runs are not
repeated.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from torch import nn

import figures
from experiments.engine.conditions.conditions import Condition, ConditionSettings
from experiments.engine.conditions.controls import NO_CONTROL
from experiments.engine.conditions.gradient_alignment import NETWORK, measure_alignment
from experiments.engine.conditions.learning_rate_search import ConditionRunner
from experiments.engine.reporting import show
from experiments.engine.reporting.factorial import outcome_row
from experiments.engine.running.cli import run_script
from experiments.engine.running.grid import run_grid
from experiments.engine.running.messages import BadInput
from experiments.engine.running.output import Output
from experiments.engine.running.run import Outcome, Run, Tables
from experiments.engine.statistics.estimates import Estimate, estimate
from experiments.engine.statistics.long_tables import select
from experiments.engine.training.data import Dataset, load
from experiments.engine.training.loop import backpropagation
from experiments.engine.training.optimisation import Training
from experiments.engine.training.settings import flow_of
from experiments.engine.training.train_run import make_network, train_run
from experiments.questions.alignment.first_order import FirstOrderChanges, uphill_share
from models import ARMS, Flow
from probes.tables import table

EXPERIMENT = "alignment"
# Margins, fixed before any result was seen.
TURN = 0.1  # of the cosine: a smaller change is none
OFTEN = 0.05  # of the share of steps that go uphill
DOUBLED = math.log(2)  # of the log train loss
RUN = ["arm", "depth_total", "seed"]
SHOWN = (("train", "loss"), ("test", "accuracy"))
Effects = dict[tuple[str, int, str], Estimate]
"""By arm, depth and effect."""
# Of each arm by its seeds' numbers `own`, and those of the arm with the true gradient, `true` (see `numbers`).
EFFECTS = {
    "cosine, first": lambda own, true: own["cosine, first"],
    "cosine, last": lambda own, true: own["cosine, last"],
    "cosine, last - first": lambda own, true: own["cosine, last"] - own["cosine, first"],
    "log10 norm ratio, first": lambda own, true: own["log10 ratio, first"],
    "log10 norm ratio, last": lambda own, true: own["log10 ratio, last"],
    "log10 true norm, last - first": lambda own, true: own["log10 true, last"] - own["log10 true, first"],
    "uphill share": lambda own, true: own["uphill"],
    "uphill share, own - true": lambda own, true: own["uphill"] - true["uphill"],
    "log train loss from its end, own - true": lambda own, true: own["loss, own"] - own["loss, true"],
    "test accuracy from its end, own - true": lambda own, true: own["accuracy, own"] - own["accuracy, true"],
    "log train loss from the true end, own - true": lambda own, true: true["loss, own"] - true["loss, true"],
    "test accuracy from the true end, own - true": lambda own, true: true["accuracy, own"] - true["accuracy, true"],
}


@dataclass(frozen=True)
class Settings(ConditionSettings):
    """Every setting of the experiment."""

    depths: tuple[int, ...] = (20, 56)
    """Layers, each 6n + 2."""
    arms: tuple[str, ...] = ("stop-gradient", "gradient-only", "shortest-path")
    """Arms whose gradient is not the true one; beside them, those that learn from the true gradient of the same
    function."""
    further: int = 3
    """Epochs for which the training of every network is continued."""

    def check(self) -> None:
        super().check()
        self.check_arms("--arms", *self.arms)
        others = [arm for arm, flow in ARMS.items() if flow != flow.exact and flow.exact in ARMS.values()]
        for arm in self.arms:
            if arm not in others:
                true = flow_of(arm) == flow_of(arm).exact
                reason = "its gradient is the true one" if true else "no arm has its true gradient"
                raise BadInput(f"--arms {arm}: {reason}; give some of {', '.join(others)}")
        if self.further < 1:
            raise BadInput(f"--further {self.further}: give at least 1 epoch")

    def trained(self) -> list[str]:
        """The arms, and those of the same functions that learn from the true gradient."""
        wanted = {*self.arms, *map(true_arm, self.arms)}
        return [arm for arm in ARMS if arm in wanted]

    def continuation(self, arm: str) -> "Continuation":
        """How training continues: in the arm of the true gradient, and in those that are compared with it."""
        true = true_arm(arm)
        others = [other for other in self.arms if true_arm(other) == true and arm in (true, other)]
        return Continuation({other: ARMS[other] for other in (true, *others)}, self.further)


@dataclass(frozen=True)
class Continuation:
    """A run's treatment: its gradient is compared with the true one, and its training is continued in other arms."""

    arms: Mapping[str, Flow]
    """The arms in which training continues, from the same weights."""
    epochs: int
    """Epochs of continued training."""


QUICK = Settings(
    depths=(8,),
    arms=("stop-gradient", "gradient-only"),
    seeds=(0, 1),
    tuning_seeds=(100,),
    further=1,
    training=Training(epochs=2),
)


def main(settings: Settings) -> None:
    """Run the grid and report it."""
    settings.check()
    runner = ConditionRunner(settings, load(settings.data))
    output = show.live(settings.output(EXPERIMENT))
    conditions = [Condition(arm, arm) for arm in settings.trained()]
    rates = runner.best_rates(conditions, settings.depths, output.below("tuning"))
    runs = [
        replace(
            run,
            experiment=EXPERIMENT,
            outputs=("alignment", "steps", "continued"),
            recipe=replace(run.recipe, treatment=settings.continuation(run.arm)),
        )
        for run in runner.runs(conditions, settings.depths, rates)
    ]
    task = partial(train_and_continue, dataset=runner.dataset)
    tables, diverged = run_grid(runs, task, output, execution=settings.execution)
    report(tables, diverged, runner.dataset, settings, output)


# What a run does


def true_arm(arm: str) -> str:
    """The arm that computes the same function and learns from its true gradient; ValueError where there is none."""
    exact = ARMS[arm].exact
    for name, flow in ARMS.items():
        if flow == exact:
            return name
    raise ValueError(f"no arm of models.ARMS has the true gradient of {arm!r}: add one with {exact}")


def train_and_continue(run: Run, checkpoint_file: Path | None = None, *, dataset: Dataset) -> Outcome:
    """Train a run while its gradient is compared with the true one, then continue its training in other arms.

    Tables beside those of `train_run`: alignment (after every epoch), steps (the true loss's first-order changes),
    continued. No checkpoint is kept: an interrupted run starts over.
    """
    model, changes = make_network(run, dataset), FirstOrderChanges()
    backward = changes.wrap_backward(backpropagation)
    measure = partial(measure_alignment, control=NO_CONTROL, seed=run.seed, throughout=True)
    outcome = train_run(run, dataset=dataset, model=model, backward=backward, validate=False, measure=measure)
    outcome.tables["steps"] = changes.table(model)
    if outcome.diverged_at is None:
        before = outcome.tables["outcomes"].assign(effect="before")
        ends = [continue_training(model, run, arm, dataset) for arm in run.recipe.treatment.arms]
        outcome.tables["continued"] = pd.concat([before, *(end for end in ends if len(end))], ignore_index=True)
    return outcome


def continue_training(model: nn.Module, run: Run, arm: str, dataset: Dataset) -> pd.DataFrame:
    """The outcomes of further training in an arm from a network's weights, with the arm in the column `then`; none
    where it diverges. The network itself does not change.

    The schedule starts again, and the batches come in the order of the run's seed again.
    """
    training = replace(run.recipe.training, epochs=run.recipe.treatment.epochs)
    flow = run.recipe.treatment.arms[arm]
    further = replace(run, arm=arm, recipe=replace(run.recipe, training=training, flow=flow))
    twin = make_network(further, dataset)
    twin.load_state_dict(model.state_dict())
    outcomes = train_run(further, dataset=dataset, model=twin, validate=False).tables.get("outcomes", pd.DataFrame())
    return outcomes.assign(effect=f"then {arm}", then=arm)


# Effects


def over_epochs(alignment: pd.DataFrame, steps: pd.DataFrame) -> pd.DataFrame:
    """The whole network's cosine after every epoch, and the share of each epoch's steps that go uphill."""
    cosines = select(alignment, block=NETWORK, quantity="cosine")
    columns = [*RUN, "epoch", "quantity", "value"]
    return pd.concat([cosines[columns], uphill_share(steps, *RUN, "epoch")[columns]], ignore_index=True)


def effects_of(tables: Tables, arms: Sequence[str], depths: Sequence[int]) -> Effects:
    """Every effect on every arm at every depth, over the seeds that have it."""
    found: Effects = {}
    for arm in arms:
        by_run = numbers(tables, arm)
        for depth in depths:
            own, true = (of_arm(by_run, name, depth) for name in (arm, true_arm(arm)))
            for effect, take in EFFECTS.items():
                values = take(own, true).replace([np.inf, -np.inf], np.nan).dropna()
                found[arm, depth, effect] = estimate(values.to_numpy())
    return found


def numbers(tables: Tables, arm: str) -> pd.DataFrame:
    """One row a run (arm, depth_total, seed): the numbers of `EFFECTS`. own, true: after continued training in the arm,
    and in that of the true gradient."""
    rows = select(tables["alignment"], block=NETWORK)
    moments = {"first": 0, "last": rows["epoch"].max()}
    wide = rows.set_index([*RUN, "epoch", "quantity"])["value"].unstack(["quantity", "epoch"])
    found: dict[str, Any] = {"uphill": uphill_share(tables["steps"], *RUN).set_index(RUN)["value"]}
    with np.errstate(divide="ignore"):
        for word, epoch in moments.items():
            found[f"cosine, {word}"] = wide["cosine", epoch]
            found[f"log10 ratio, {word}"] = np.log10(wide["norm ratio", epoch])
            found[f"log10 true, {word}"] = np.log10(wide["true norm", epoch])
        for word, then in {"own": arm, "true": true_arm(arm)}.items():
            found[f"loss, {word}"] = np.log(ended(tables, then, "train", "loss"))
            found[f"accuracy, {word}"] = ended(tables, then, "test", "accuracy")
    return pd.DataFrame(found)


def ended(tables: Tables, then: str, split: str, quantity: str) -> "pd.Series[float]":
    """An outcome of the networks whose training was continued in an arm, by run."""
    rows = tables.get("continued", pd.DataFrame(columns=[*RUN, "then", "split", "quantity", "value"]))
    return select(rows, then=then, split=split, quantity=quantity).set_index(RUN)["value"].astype(float)


def of_arm(by_run: pd.DataFrame, arm: str, depth: int) -> pd.DataFrame:
    """The rows of an arm at a depth, by seed."""
    levels = by_run.index.get_level_values
    return by_run[(levels("arm") == arm) & (levels("depth_total") == depth)].droplevel(["arm", "depth_total"])


def effect_table(found: Effects) -> pd.DataFrame:
    """The effects as a long table: mean, ends of the interval where there is one, n."""
    return table(
        row
        for (arm, depth, effect), of_effect in found.items()
        for row in of_effect.rows(arm=arm, depth_total=depth, effect=effect)
    )


def decide(found: Effects, arms: Sequence[str], depth: int) -> dict[str, show.Decision]:
    """What each arm's gradient does, and what it costs."""
    turns = {"above": "turns towards the true gradient", "below": "turns away from it", "within": "keeps its angle"}
    often = {"above": "uphill more often than the true gradient", "within": "no more often than the true gradient"}
    further = {"above": "the true gradient goes further than its own", "within": "the true gradient goes no further"}
    stays = {"above": "it does not stay", "within": "it stays"}
    decisions: dict[str, show.Decision] = {}
    for arm in arms:
        for name, effect, margin, words in (
            ("cosine, last - first", "cosine, last - first", TURN, turns),
            ("uphill share", "uphill share, own - true", OFTEN, often),
            ("loss from its end", "log train loss from its end, own - true", DOUBLED, further),
            ("loss from the true end", "log train loss from the true end, own - true", DOUBLED, stays),
        ):
            rule = {"one_sided": words is not turns, "digits": 2, "missing": "no seed has finished"}
            decisions[f"{arm}: {name}"] = show.decision(found[arm, depth, effect], margin, words, **rule)
    return decisions


# Report


def report(tables: Tables, diverged: list[Run], dataset: Dataset, settings: Settings, output: Output) -> None:
    """Write the effects, draw the figures, and print the results."""
    console, depths = show.terminal(), sorted(settings.depths)
    own = tables["alignment"][tables["alignment"]["arm"].isin(settings.arms)]
    course = over_epochs(own, tables["steps"])
    found = effects_of(tables, settings.arms, depths)
    output.table("effects", effect_table(found))
    show.save_figure(output, figures.alignment(own), own, "alignment")
    show.save_figure(output, figures.alignment_over_epochs(course), course, "alignment_over_epochs")
    if "continued" in tables:
        show_continued(console, tables["continued"], settings.trained())
    show_effects(console, found, diverged)
    counts = sorted({len(found[arm, depths[-1], "cosine, last - first"].values) for arm in settings.arms})
    title = f"{dataset.title}, depth {depths[-1]}, n = {' to '.join(map(str, counts))}"
    decisions = decide(found, settings.arms, depths[-1])
    remark = (
        "Uphill share, and loss (log train loss after the further epochs): the arm's minus the true gradient's. "
        f"{len(decisions)} decisions; one data set, one budget, each arm's best rate."
    )
    show.conclusion(console, output, decisions, title=title, remark=remark)


def show_effects(console: Console, found: Effects, diverged: Sequence[Run]) -> None:
    """Depth x effect: every arm's."""
    arms = dict.fromkeys(arm for arm, _, _ in found)
    rows = {
        (f"depth {depth}", effect): {arm: show.estimate(found[arm, depth, effect]) for arm in arms}
        for depth in dict.fromkeys(depth for _, depth, _ in found)
        for effect in EFFECTS
    }
    lost = f"; {len(diverged)} runs diverged" if diverged else ""
    caption = (
        "first, last: on one batch of training images, before the first step and after the last epoch; true: the arm "
        "that learns from the true gradient of the same function. Mean [95 % t interval], (seeds' values) where there "
        f"is none; not corrected for their number, {len(found)}{lost}"
    )
    show.table(console, rows, title="The arm's gradient against the true one", caption=caption)


def show_continued(console: Console, continued: pd.DataFrame, arms: Sequence[str]) -> None:
    """Depth x arm x arm of the continued training: train loss and test accuracy, mean ± sd over seeds."""
    rows = {}
    for depth in sorted(continued["depth_total"].unique()):
        for arm in arms:
            at = select(continued, depth_total=depth, arm=arm)
            for then, ended in at.groupby("then", dropna=False, sort=False):
                name = arm if pd.isna(then) else f"{arm}, then {then}"
                rows[f"depth {depth}", name] = outcome_row(ended, SHOWN)
    show.table(console, rows, title="At the end of training, and of the continued training: mean ± sd over n seeds")


if __name__ == "__main__":
    run_script("experiments.alignment")
