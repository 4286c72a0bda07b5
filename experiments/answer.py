"""How much of what a shortcut does is conditioning, how much its value, and how much short gradient paths?

Trains, at the first weights of He et al. and at weights near the identity, networks with and without shortcuts, with
the shortcut's value alone, and on short or long gradient paths alone; each at its own best learning rate, on seeds and
splits of its own. `experiments/answer.md` fixed conditions, margins, seeds and the order of the analysis before the
runs. Three shares of the shortcut's effect on the test error are read by its rule, whose power is printed beside.

Writes tables and figures to OUT/answer, runs to OUT/answer/runs; finished runs are not repeated.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import figures
from experiments.engine.conditions.conditions import Condition, ConditionSettings
from experiments.engine.conditions.learning_rate_search import ConditionRunner, Effort, check_conditions
from experiments.engine.reporting import show
from experiments.engine.running.cli import run_script
from experiments.engine.running.messages import BadInput, check_unique
from experiments.engine.running.output import Output
from experiments.engine.running.run import Tables
from experiments.engine.statistics.long_tables import select
from experiments.engine.training.compute import Computing
from experiments.engine.training.data import Data, Dataset, load_splits
from experiments.engine.training.optimisation import Training
from experiments.questions.answer import results
from experiments.questions.answer.plan import (
    FIRST_WEIGHTS,
    LONGER,
    PARTS,
    PLAIN_NEAR,
    SEEDS,
    TUNING_SEEDS,
    TWIN,
    Part,
)
from experiments.questions.answer.replicate import MEASURED, OUTPUTS, train_replicate
from experiments.questions.answer.results import CIFAR10, Family, Trained
from probes.tables import table

EXPERIMENT = "answer"
LINEAR = "linear classifier of the pixels"
CIFAR10_FLAGS = {
    "--data-dir": "--cifar10",
    "--image-size": "--cifar10-size",
    "--train-limit": "--cifar10-images",
    "--split-seed": "--seeds",
}
"""What the settings of a data set are called here, for the part on CIFAR-10."""
PENALTIES = (1.0, 100.0, 10_000.0)
DRAWN = [condition.name for condition in (*LONGER, TWIN)]
"""Conditions in the figures; the tables have all."""
DRAWN_CLOSED = [condition.name for condition in (PLAIN_NEAR, FIRST_WEIGHTS[0])]
"""Whose share of the gap closed stands beside the three shares in the figure."""


@dataclass(frozen=True)
class Settings(ConditionSettings):
    """Every setting of the experiment; the defaults are those of the plan."""

    depths: tuple[int, ...] = (56,)
    """One depth in layers, 6n + 2."""
    seeds: tuple[int, ...] = SEEDS
    """Reported seeds; a part of the plan takes the first of them. Each draws its own split."""
    tuning_seeds: tuple[int, ...] = TUNING_SEEDS
    """Seeds whose runs choose learning rates, by validation, and are never reported, nor evaluated on test images."""
    parts: tuple[int, ...] = tuple(range(1, len(PARTS) + 1))
    """Numbers of the plan's parts to train, in its order; none: report --tables alone."""
    tables: Path | None = None
    """A folder of this script's tables, of parts that another call finished: they are reported with these."""
    computing: Computing = field(default_factory=lambda: Computing(channels_last=True))
    cifar10: Path | None = None
    """A folder of CIFAR-10's images (train/CLASS/* beside test/CLASS/*); without it that part is left out."""
    cifar10_images: int = 10_000
    """Training images of CIFAR-10."""
    cifar10_size: int = 16
    """To which its images are scaled."""
    cifar10_depth: int = 32
    """Layers of the networks there."""
    cifar10_width: int = 16
    """Channels of their first stage."""

    def check(self) -> None:
        super().check()
        if len(self.depths) != 1:
            raise BadInput(f"--depths {' '.join(map(str, self.depths))}: the plan has one depth")
        if self.parts:
            check_unique("--parts", self.parts)
        if unknown := set(self.parts) - set(range(1, len(PARTS) + 1)):
            raise BadInput(f"--parts {min(unknown)}: the plan has 1 to {len(PARTS)}")
        if not self.chosen() and self.tables is None:
            raise BadInput("nothing to train: give --parts (4 with --cifar10 DIR), or --tables DIR to report alone")
        self.of_cifar10().check_depths("--cifar10-depth", self.cifar10_depth)
        checked = set[Condition]()
        for part in self.chosen():  # before anything is trained: the last part comes hours after the first
            of_part, flag = self.of(part), "--cifar10-depth" if part.data == CIFAR10 else "--depths"
            new = [condition for condition in part.conditions if part.data == CIFAR10 or condition not in checked]
            check_conditions(of_part, new, of_part.depths, advice=f"give other {flag}, or another --network")
            checked |= set(new)
        if self.cifar10 is not None:
            check_cifar10(self.of_cifar10().data, self.seeds)

    def of_cifar10(self) -> "Settings":
        """The same settings for that data set."""
        images = Data("folder", self.cifar10, image_size=self.cifar10_size, train_limit=self.cifar10_images)
        return replace(self, depths=(self.cifar10_depth,), width=self.cifar10_width, data=images)

    def of(self, part: Part) -> "Settings":
        """The settings of a part: of its data set, with the first of the seeds."""
        settings = self.of_cifar10() if part.data == CIFAR10 else self
        return replace(settings, seeds=self.seeds[: part.seeds], tuning_seeds=self.tuning_seeds[: part.tuning_seeds])

    def chosen(self) -> list[Part]:
        """The parts that are trained; that of CIFAR-10 only if it is there."""
        chosen = [part for part in PARTS if number_of(part) in self.parts]
        return [part for part in chosen if part.data != CIFAR10 or self.cifar10 is not None]

    def finished_elsewhere(self) -> Tables:
        """The tables of --tables, none of whose runs these parts repeat."""
        if self.tables is None:
            return dict.fromkeys(results.TABLES, pd.DataFrame())
        found = results.read_tables(self.tables)
        for part in self.chosen():
            runs = select(found["replicates"], budget=part.budget)
            runs = runs[(runs["data"] == CIFAR10) == (part.data == CIFAR10)]
            if repeated := {condition.name for condition in part.conditions} & set(runs["control"]):
                advice = f"leave part {number_of(part)} out, by --parts"
                raise BadInput(f"--tables {self.tables}: has {min(repeated)!r} at {part.budget} x epochs; {advice}")
        return found


def number_of(part: Part) -> int:
    """Its number in the plan, from 1."""
    return PARTS.index(part) + 1


def check_cifar10(data: Data, seeds: Sequence[int]) -> None:
    """Raise BadInput unless the folder and the settings allow its part, with a split for each of the seeds; the images
    are listed, and not read."""
    try:
        load_splits(replace(data, data_loader_workers=1, normalise="imagenet"), seeds)
    except BadInput as error:
        text = str(error)
        for flag, of_part in CIFAR10_FLAGS.items():
            text = text.replace(flag, of_part)
        raise BadInput(text) from None


QUICK = Settings(
    depths=(14,),
    seeds=SEEDS[:3],
    tuning_seeds=TUNING_SEEDS[:1],
    parts=(1, 2, 3, 6),
    training=Training(epochs=2),
)


def main(settings: Settings) -> None:
    """Run the parts, one after the other, and report what is finished after each."""
    settings.check()
    found = settings.finished_elsewhere()
    output = show.live(settings.output(EXPERIMENT))
    families = results.families(found["replicates"], found["correct"])
    if settings.tables is not None:
        write(found, families, output)
    for part in settings.chosen():
        of_part = results.tables_of(train_part(part, settings, output.below("parts", str(number_of(part)))))
        found = results.joined([found, of_part])
        families = with_families_of(of_part["replicates"], found, families)
        write(found, families, output)  # after each part: an interrupted call leaves what there is
    report(found, families, output)


def train_part(part: Part, settings: Settings, output: Output) -> Trained:
    """Choose the learning rates of a part's conditions, and train its reported seeds."""
    settings = settings.of(part)
    splits = load_splits(settings.data, (*settings.seeds, *settings.tuning_seeds))
    runner = ConditionRunner(
        settings,
        dataset := splits[settings.seeds[0]],
        splits,
        effort=lambda condition: Effort(part.exponents),
        outputs=OUTPUTS,
        task=train_replicate,
    )
    rates, search = runner.search(part.conditions, settings.depths, output.below("tuning"), part.budget)
    runs = [
        run if run.seed in settings.seeds[:MEASURED] else replace(run, outputs=("correct",))
        for run in runner.runs(part.conditions, settings.depths, rates, part.budget)
    ]
    tables, _ = runner.train(runs, output)
    if part.budget == 1:
        tables["linear"] = linear_errors(splits, settings.seeds)
    window = settings.training.steps_per_epoch(dataset.size("train"))
    return Trained(
        part,
        CIFAR10 if part.data == CIFAR10 else dataset.title,
        classes=len(dataset.classes),
        test_images=dataset.size("test"),
        steps=window * settings.training.epochs * part.budget,
        window=window,
        runs=runs,
        tables=tables,
        search=search,
        store=settings.store,
    )


def linear_errors(splits: Mapping[int, Dataset], seeds: Sequence[int]) -> pd.DataFrame:
    """Test errors of a linear classifier of the pixels, one for each seed's split: what needs no depth at all.

    Logistic regression on standardised pixels, its penalty chosen on the split's validation images.
    """
    rows: list[dict[str, object]] = []
    for seed in seeds:
        pixels = {
            name: (np.asarray(images).reshape(len(labels), -1).astype(np.float32), labels)
            for name, (images, labels) in splits[seed].splits.items()
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the weakest penalties need not converge to lose
            fitted = [
                make_pipeline(StandardScaler(), LogisticRegression(C=1 / penalty, max_iter=100)).fit(*pixels["train"])
                for penalty in PENALTIES
            ]
        best = max(fitted, key=lambda model: model.score(*pixels["validation"]))
        rows.append(
            {"control": LINEAR, "seed": seed, "outcome": "test error", "value": 1 - best.score(*pixels["test"])}
        )
    return table(rows)


def with_families_of(last: pd.DataFrame, found: Tables, known: Sequence[Family]) -> list[Family]:
    """The families that are known, and those of the data set and budget of the last runs, which are read together with
    the other runs there: their intervals and power take seconds each. last: as `results.replicates` gives it."""
    data, budget = last[["data", "budget"]].iloc[0]
    others = [family for family in known if (family.about["data"], family.about["budget"]) != (data, budget)]
    group = (select(found[name], data=data, budget=budget) for name in ("replicates", "correct"))
    order = list(dict.fromkeys(found["replicates"][["data", "budget"]].itertuples(index=False, name=None)))
    return sorted(
        [*others, *results.families(*group)],
        key=lambda family: order.index((family.about["data"], family.about["budget"])),
    )


def write(found: Tables, families: Sequence[Family], output: Output) -> None:
    """Write every table and figure of the parts that are finished."""
    output.clear()
    tables = {
        **found,
        "conditions": results.summary(found["replicates"]),
        "shares": pd.concat([family.table for family in families], ignore_index=True),
        "power": pd.concat([family.power for family in families if family.is_judged], ignore_index=True),
        "text_outcomes": show.text_table(outcome_rows(found["replicates"]), heading="where"),
        "text_shares": show.text_table(share_rows(families), heading="where"),
        "text_jacobians": show.text_table(jacobian_rows(found["jacobians"]), heading="where"),
    }
    for name, rows in tables.items():
        if len(rows):
            output.table(name, rows)
    read = select(tables["shares"], outcome="test error")
    read = read[(read["treatment"] == "shares") | read["effect"].isin(DRAWN_CLOSED)]
    errors = select(found["replicates"], outcome="test error")
    drawn = pd.concat([errors[errors["control"].isin(DRAWN)], read], ignore_index=True)
    show.save_figure(output, figures.answer(drawn), drawn, EXPERIMENT)
    losses = found["losses"]
    if len(losses):
        losses = select(losses, data=losses["data"].iloc[0], budget=1)
        losses = losses[losses["control"].isin(DRAWN)]
    if len(losses):
        show.save_figure(output, figures.answer_losses(losses), losses, "answer_losses")


def report(found: Tables, families: Sequence[Family], output: Output) -> None:
    """Print outcomes, Jacobians, shares with their readings and power, and what the primary ones say."""
    console = show.terminal()
    reached = "to 0.5, to 0.1: steps to that training loss; k of n: only so many runs reach it"
    show.table(
        console,
        outcome_rows(found["replicates"]),
        title="Mean ± sd over n seeds, each condition at its own learning rate",
        caption=f"{reached}. The log training loss is shown, not judged",
    )
    show.table(
        console,
        jacobian_rows(found["jacobians"]),
        title="Jacobians at the first weights",
        caption="spread: mean σ⁴ / (mean σ²)², 1 for an isometry; size: mean σ²; of blocks the mean",
    )
    show.table(console, share_rows(families), title="Shares of the shortcut's effect", caption=results.RULE_TEXT)
    show.files(console, output)
    answer, *others = results.conclusions(families, found["profiles"], found["linear"])
    if results.CIFAR10 not in set(found["replicates"]["data"]):
        others.append("CIFAR-10 was left out: --cifar10 DIR adds it.")
    show.end(console, output, answer=answer, remark="\n".join(others))


def outcome_rows(found: pd.DataFrame) -> show.Rows:
    """By data set and steps, then condition. found: as `results.replicates` gives it."""
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for (data, steps), part in found.groupby(["data", "step"], sort=False):
        for name, of in part.groupby("control", sort=False):
            n, values = of["seed"].nunique(), {outcome: group["value"] for outcome, group in of.groupby("outcome")}
            row = {"n": str(n), "rate": f"{of['learning_rate'].iloc[0]:g}"}
            row |= {outcome: show.mean_sd(values[outcome]) for outcome in ("test error", "training error")}
            row["log loss"] = f"{values['log training loss'].mean():.2f}"
            for target in results.TARGETS:
                row[f"to {target:g}"] = show.steps(values[f"steps to loss {target:g}"], n)
            rows[f"{data}, {steps} steps", str(name)] = row
    return rows


def jacobian_rows(table: pd.DataFrame) -> show.Rows:
    """By data set, then condition."""
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for data, part in table.groupby("data", sort=False):
        for name, of in part.groupby("control", sort=False):
            numbers = of.set_index(["outcome", "quantity"])["mean"]
            rows[str(data), str(name)] = {
                f"{word}, {kind}": f"{numbers[kind, quantity]:.3g}"
                for kind in ("stream", "blocks")
                for word, quantity in (("spread", "spread"), ("size", "mean_square"))
            }
    return rows


def share_rows(families: Sequence[Family]) -> show.Rows:
    """By data set, steps, outcome and family, then share: its interval, that which is read, its reading and power."""
    rows: dict[tuple[str, str], dict[str, str]] = {}
    primary = results.primary_family(families)
    for family in families:
        about = family.about
        heading = f"{about['data']}, {about['step']} steps, {about['outcome']}: {about['treatment']}"
        for found in family.estimates:
            row = {"share [95 %]": show.interval(found.value, found.low, found.high)}
            if family.is_judged:
                known = found.value == found.value
                row |= {"[read from]": f"[{found.family_low:.2f}, {found.family_high:.2f}]" if known else "-"}
                reading = family.primary_reading(found) if family is primary else family.reading(found)
                row |= {"reading": reading, "power": results.power_text(family.power, found.name)}
            rows[heading, found.name] = row
    return rows


if __name__ == "__main__":
    run_script("experiments.answer")
