"""Which arms fail to fit, which fail to generalise, if they are trained for longer?

Trains every arm for 1, 3 and 10 times the epochs (He et al. 2015 tried 3 times), with the schedule stretched, at the
learning rate that is best for 1 times the epochs, chosen by validation on other seeds. Reports the steps to given
training losses, censored where a run does not reach them, and final training and test accuracy.

Writes tables, figures and the search to OUT/budget, runs to OUT/answer; finished runs are not repeated.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd
from rich.console import Console

import figures
from experiments.engine.conditions.catalogue import PLAIN, RESIDUAL, UNMODIFIED_ARMS
from experiments.engine.conditions.conditions import ConditionSettings
from experiments.engine.conditions.gap_closed import GapClosed, gap_closed
from experiments.engine.conditions.learning_rate_search import ConditionRunner
from experiments.engine.reporting import show
from experiments.engine.reporting.conditions import SEARCHED, diverged_note, format_gap
from experiments.engine.running.cli import run_script
from experiments.engine.running.messages import BadInput, check_unique
from experiments.engine.running.output import Output
from experiments.engine.running.run import Run, Tables
from experiments.engine.statistics.estimates import MARGIN, Estimate, classify, estimate, exceeds
from experiments.engine.statistics.factorial import FITTED
from experiments.engine.statistics.long_tables import select
from experiments.engine.statistics.steps_to_loss import steps_to_loss
from experiments.engine.training.data import load
from experiments.engine.training.optimisation import Training
from probes.tables import table

EXPERIMENT = "budget"
ARM_NAMES = tuple(condition.arm for condition in UNMODIFIED_ARMS)
KEYS = ["depth_total", "budget", "arm", "seed"]


@dataclass(frozen=True)
class Settings(ConditionSettings):
    """Every setting of the experiment."""

    depths: tuple[int, ...] = (56,)
    """Layers, each 6n + 2."""
    budgets: tuple[int, ...] = (1, 3, 10)
    """How many times the epochs each arm is trained."""
    targets: tuple[float, ...] = (1.0, 0.3, 0.1)
    """Training losses, mean of an epoch's steps, to which steps are counted."""

    def check(self) -> None:
        super().check()
        check_unique("--budgets", self.budgets)
        check_unique("--targets", self.targets)
        if min(self.budgets) < 1:
            raise BadInput(f"--budgets {min(self.budgets)}: give whole numbers from 1")
        if wrong := [target for target in self.targets if not 0 < target < math.inf]:
            raise BadInput(f"--targets {wrong[0]:g}: give losses above 0")


QUICK = Settings(depths=(8,), seeds=(0, 1), tuning_seeds=(100,), budgets=(1, 3), training=Training(epochs=2))


def main(settings: Settings) -> None:
    """Run the grid and report it."""
    settings.check()
    runner = ConditionRunner(settings, load(settings.data))
    output = show.live(settings.output(EXPERIMENT))
    rates = runner.best_rates(UNMODIFIED_ARMS, settings.depths, output.below("tuning"))
    runs = [run for budget in settings.budgets for run in runner.runs(UNMODIFIED_ARMS, settings.depths, rates, budget)]
    tables, diverged = runner.train(runs, output)
    report(tables, diverged, runner, settings, output)


def report(tables: Tables, diverged: list[Run], runner: ConditionRunner, settings: Settings, output: Output) -> None:
    """Write steps, gaps and comparisons, draw the figure, and print the results."""
    console, dataset = show.terminal(), runner.dataset
    if show.all_diverged(console, tables, output, advice=SEARCHED):
        return
    window = settings.training.steps_per_epoch(dataset.size("train"))
    steps = steps_to_loss(tables["losses"], settings.targets, window=window)
    ends = final_accuracies(tables["outcomes"])
    output.table("steps", steps)
    output.table("steps_scores", steps_gap_table(steps))
    output.table("verdicts", comparison_table(ends))
    show.save_figure(output, figures.budget(tables["outcomes"]), tables["outcomes"], EXPERIMENT)
    show_accuracies(console, ends)
    show_steps(console, steps, len(settings.seeds))
    show_steps_gaps(console, steps)
    depth, budget = max(settings.depths), max(settings.budgets)
    n = select(ends, depth_total=depth, budget=budget)["seed"].nunique()
    title = f"{dataset.title}, depth {depth}, {budget} times the steps, n = {n}"
    remark = f"One data set, learning rates that are best for 1 times the steps.{diverged_note(diverged)}"
    show.conclusion(console, output, decide(ends, depth, budget), title=title, remark=remark)


# Final accuracies


def final_accuracies(outcomes: pd.DataFrame) -> pd.DataFrame:
    """Final accuracies on training and test data, and the gap between them: a row for each depth, budget, arm, seed."""
    wide = select(outcomes, quantity="accuracy").pivot(index=KEYS, columns="split", values="value")[["train", "test"]]
    return wide.assign(gap=wide["train"] - wide["test"]).reset_index()


def by_budget(rows: pd.DataFrame) -> Iterator[tuple[int, int, pd.DataFrame]]:
    """The rows of each depth and budget."""
    for depth, budget in sorted(set(zip(rows["depth_total"].tolist(), rows["budget"].tolist(), strict=True))):
        yield depth, budget, select(rows, depth_total=depth, budget=budget)


def by_seed(ends: pd.DataFrame, depth: int, budget: int, arm: str) -> pd.DataFrame:
    """An arm's final accuracies at a depth and budget, by seed."""
    return select(ends, depth_total=depth, budget=budget, arm=arm).set_index("seed")


def fitting(ends: pd.DataFrame, depth: int, budget: int, arm: str) -> tuple[Estimate, str]:
    """Training accuracy, and whether its whole interval lies above or below what counts as fitted."""
    found = estimate(by_seed(ends, depth, budget, arm)["train"].to_numpy())
    words = {"yes": "fits", "no": "does not fit", "undecided": "undecided"}
    return found, words[exceeds(found, FITTED)] if found.values else "diverged"


def generalising(ends: pd.DataFrame, depth: int, budget: int, arm: str) -> tuple[Estimate, str]:
    """Test accuracy minus that of ordinary training of the same budget, paired by seed, and where its interval lies."""
    own, ordinary = (by_seed(ends, depth, budget, name)["test"] for name in (arm, RESIDUAL))
    found = estimate((own - ordinary).dropna().to_numpy(), max_abs=1)
    words = {"above": "better", "below": "worse", "within": "as well", "undecided": "undecided"}
    return found, words[classify(found, MARGIN)] if found.values else "no seed in common with residual"


def comparison_table(ends: pd.DataFrame) -> pd.DataFrame:
    """Fitting and generalising as a long table: depth_total, budget, arm, outcome, quantity (mean, low, high, n),
    value."""
    rows = []
    for depth, budget, part in by_budget(ends):
        for arm in part["arm"].unique():
            about = {"depth_total": depth, "budget": budget, "arm": arm}
            rows += fitting(ends, depth, budget, arm)[0].rows(**about, outcome="training accuracy")
            rows += generalising(ends, depth, budget, arm)[0].rows(**about, outcome="test accuracy - residual's")
    return table(rows)


def decide(ends: pd.DataFrame, depth: int, budget: int) -> dict[str, show.Decision]:
    """Which arms fit, and of those that fit, which generalise as ordinary training of the same budget does."""
    decisions = {}
    for arm in ARM_NAMES:
        found, reading = fitting(ends, depth, budget, arm)
        decisions[f"{arm}: training accuracy"] = (show.estimate(found, digits=3, sign=False), f"{FITTED}", reading)
        if reading == "fits" and arm != RESIDUAL:
            found, reading = generalising(ends, depth, budget, arm)
            decisions[f"{arm}: test accuracy - residual's"] = (show.estimate(found, digits=3), f"{MARGIN}", reading)
    return decisions


# Steps to a training loss


def steps_gap(steps: pd.DataFrame, arm: str, target: float) -> GapClosed | None:
    """The gap closed in the first step at a training loss, paired by seed, of one depth and budget; None where a seed
    of the arm, of plain or of residual does not reach it: a censored step has no mean."""
    of_target = select(steps, target=target).pivot(index="seed", columns="arm", values="value")
    needed = [PLAIN, arm, RESIDUAL]
    if not set(needed) <= set(of_target.columns) or of_target[needed].isna().any(axis=None):
        return None
    return gap_closed(*(of_target[name].to_numpy() for name in needed))


def steps_gaps(steps: pd.DataFrame) -> Iterator[tuple[int, int, str, float, GapClosed | None]]:
    """Depth, budget, arm, target, gap closed."""
    for depth, budget, rows in by_budget(steps):
        for arm in (name for name in ARM_NAMES if name in set(rows["arm"])):
            for target in steps["target"].unique():
                yield depth, budget, arm, float(target), steps_gap(rows, arm, float(target))


def steps_gap_table(steps: pd.DataFrame) -> pd.DataFrame:
    """The gap closed in steps as a long table: depth_total, budget, arm, target, quantity (R, low, high), value; nan
    for none."""
    nan = float("nan")
    return table(
        {"depth_total": depth, "budget": budget, "arm": arm, "target": target, "quantity": quantity, "value": value}
        for depth, budget, arm, target, found in steps_gaps(steps)
        for quantity, value in zip(
            ("R", "low", "high"), (found.mean, found.low, found.high) if found else (nan, nan, nan), strict=True
        )
    )


# The terminal


def show_accuracies(console: Console, ends: pd.DataFrame) -> None:
    """Depth x budget x arm: accuracies, their gap, whether it fits, and how it generalises against residual."""
    rows = {}
    for depth, budget, part in by_budget(ends):
        for arm in ARM_NAMES:
            of_arm = select(part, arm=arm)
            against, _ = generalising(ends, depth, budget, arm)
            rows[f"depth {depth}, x {budget}", arm] = {
                "train": show.mean_sd(of_arm["train"]),
                "test": show.mean_sd(of_arm["test"]),
                "gap": f"{of_arm['gap'].mean():.3f}" if len(of_arm) else "-",
                "n": str(len(of_arm)),
                "fits?": fitting(ends, depth, budget, arm)[1],
                "test - residual's": "" if arm == RESIDUAL else show.estimate(against, digits=3),
            }
    caption = (
        f"fits: the whole 95 % t interval of training accuracy lies above {FITTED}; differences: mean [95 % t "
        "interval], paired by seed, not corrected for their number"
    )
    show.table(console, rows, title="At the end of each budget: mean ± sd over n seeds", caption=caption)


def show_steps(console: Console, steps: pd.DataFrame, seeds: int) -> None:
    """Depth x budget x arm: the first step at each training loss; where a seed does not reach it, how many do."""
    rows = {
        (f"depth {depth}, x {budget}", arm): {
            f"loss {target:g}": show.steps(select(part, arm=arm, target=target)["value"], seeds)
            for target in steps["target"].unique()
        }
        for depth, budget, part in by_budget(steps)
        for arm in ARM_NAMES
    }
    caption = f"k of {seeds}: that many seeds reached the loss (censored); no mean is taken of them alone"
    show.table(console, rows, title="First step at a training loss: mean ± sd", caption=caption)


def show_steps_gaps(console: Console, steps: pd.DataFrame) -> None:
    """Depth x budget x arm: the gap closed in the steps to each training loss."""
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for depth, budget, arm, target, found in steps_gaps(steps):
        row = rows.setdefault((f"depth {depth}, x {budget}", arm), {})
        row[f"R, steps to loss {target:g}"] = format_gap(found.numbers) if found else "censored"
    caption = (
        "R = (plain - arm) / (plain - residual), paired by seed; Fieller's 95 % interval; censored: a seed of the arm, "
        f"of plain or of residual does not reach it. Not corrected for their number, {sum(map(len, rows.values()))}"
    )
    show.table(console, rows, title="How much of the gap in steps is closed", caption=caption)


if __name__ == "__main__":
    run_script("experiments.budget")
