"""How much of what a shortcut does is conditioning, how much its value, and how much short gradient paths?

Trains, at the first weights of He et al. and at weights near the identity, networks with and without shortcuts, with
the shortcut's value alone, and on short or long gradient paths alone; each at its own best learning rate, on seeds and
splits of its own. `experiments/answer.md` fixed conditions, margins, seeds and the order of analysis before the reported
runs. Three shares of the shortcut's effect on the test error are read by its rule, whose power is printed beside.

Writes tables and figures to OUT/answer, runs to OUT/answer/runs; finished runs are not repeated.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd
from rich.console import Console

import figures
from experiments.engine.conditions.conditions import ConditionSettings
from experiments.engine.conditions.learning_rate_search import ConditionRunner, Effort
from experiments.engine.reporting import show
from experiments.engine.running.cli import run_script
from experiments.engine.running.messages import BadInput, check_at_least, check_unique
from experiments.engine.running.output import Output
from experiments.engine.statistics.long_tables import select
from experiments.engine.training.compute import Computing
from experiments.engine.training.data import Data, load_splits
from experiments.engine.training.optimisation import Training
from experiments.questions.answer import results
from experiments.questions.answer.plan import PARTS, SEEDS, TUNING_SEEDS, Part
from experiments.questions.answer.replicate import MEASURED, OUTPUTS, train_replicate
from experiments.questions.answer.results import Family, Trained

EXPERIMENT = "answer"
CIFAR10 = "CIFAR-10"


@dataclass(frozen=True)
class Settings(ConditionSettings):
    """Every setting of the experiment; the defaults are those of the plan."""

    depths: tuple[int, ...] = (56,)
    """One depth in layers, 6n + 2."""
    seeds: tuple[int, ...] = SEEDS
    """Reported seeds; a part of the plan takes the first of them. Each draws its own split."""
    tuning_seeds: tuple[int, ...] = TUNING_SEEDS
    """Seeds whose runs choose learning rates, by validation, and are never reported, nor evaluated on test images."""
    budgets: tuple[int, ...] = (1, 5, 25)
    """How many times the epochs; those that the plan has."""
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
        check_unique("--budgets", self.budgets)
        if unknown := set(self.budgets) - {part.budget for part in PARTS}:
            raise BadInput(f"--budgets {min(unknown)}: the plan has 1, 5 and 25")
        check_at_least("--seeds", len(self.seeds), 1)
        self.of_cifar10().check_depths("--cifar10-depth", self.cifar10_depth)

    def of_cifar10(self) -> "Settings":
        """The same settings for that data set."""
        images = Data("folder", self.cifar10, image_size=self.cifar10_size, train_limit=self.cifar10_images)
        return replace(self, depths=(self.cifar10_depth,), width=self.cifar10_width, data=images)

    def parts(self) -> list[Part]:
        """The parts of the plan that are run."""
        data = {"digits"} | ({CIFAR10} if self.cifar10 else set())
        return [part for part in PARTS if part.budget in self.budgets and part.data in data]


QUICK = Settings(
    depths=(14,),
    seeds=SEEDS[:3],
    tuning_seeds=TUNING_SEEDS[:1],
    budgets=(1, 5),
    training=Training(epochs=2),
    quick=True,
)


def main(settings: Settings) -> None:
    """Run the plan, part by part, and report what is finished after each."""
    settings.check()
    output = settings.output(EXPERIMENT)
    finished: list[Trained] = []
    for number, part in enumerate(settings.parts()):
        finished.append(train_part(part, settings, output.folder / "parts" / str(number)))
        families = write(finished, output)  # after each part, so that an interrupted call leaves what there is
    report(finished, families, settings, output)


def train_part(part: Part, settings: Settings, folder: Path) -> Trained:
    """Choose the learning rates of a part's conditions, and train its reported seeds."""
    settings = settings.of_cifar10() if part.data == CIFAR10 else settings
    settings = replace(
        settings, seeds=settings.seeds[: part.seeds], tuning_seeds=settings.tuning_seeds[: part.tuning_seeds]
    )
    splits = load_splits(settings.data, (*settings.seeds, *settings.tuning_seeds))
    runner = ConditionRunner(
        settings,
        dataset := splits[settings.seeds[0]],
        splits,
        effort=lambda condition: Effort(part.exponents),
        outputs=OUTPUTS,
        task=train_replicate,
    )
    rates, search = runner.search(part.conditions, settings.depths, folder / "tuning", part.budget)
    runs = [
        run if run.seed in settings.seeds[:MEASURED] else replace(run, outputs=("correct",))
        for run in runner.runs(part.conditions, settings.depths, rates, part.budget)
    ]
    tables, _ = runner.train(runs, Output(folder, dry_run=settings.execution.dry_run))
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


def write(finished: Sequence[Trained], output: Output) -> list[Family]:
    """Write every table and figure of the parts that are finished; the families of shares that were read."""
    output.clear()
    found = pd.concat([results.replicates(part) for part in finished], ignore_index=True)
    groups = list(results.by_budget(finished))
    families = [family for group in groups for family in results.families(group, found)]
    shares = pd.concat([family.table() for family in families], ignore_index=True)
    losses = pd.concat([results.loss_curves(part) for part in finished], ignore_index=True)
    for name, table in {
        "replicates": found,
        "conditions": results.summary(found),
        "shares": shares,
        "power": pd.concat([family.power() for family in families], ignore_index=True),
        "correct": pd.concat([results.right_images(part) for part in finished], ignore_index=True),
        "tuning": pd.concat([part.search.assign(**part.about) for part in finished], ignore_index=True),
        "losses": losses,
        "profiles": pd.concat([results.profiles(part) for part in finished], ignore_index=True),
        "jacobians": pd.concat([results.jacobians(part) for part in finished], ignore_index=True),
    }.items():
        output.table(name, table)
    drawn = pd.concat(
        [select(found, outcome="test error"), select(shares, outcome="test error", treatment="shares")],
        ignore_index=True,
    )
    show.save_figure(output, figures.answer(drawn), drawn, EXPERIMENT)
    short = select(losses, data=finished[0].data, budget=1)
    show.save_figure(output, figures.answer_losses(short), short, "answer_losses")
    return families


def report(finished: Sequence[Trained], families: Sequence[Family], settings: Settings, output: Output) -> None:
    """Print outcomes, Jacobians, shares with their readings and power, and what they say."""
    console = show.terminal()
    found = pd.concat([results.replicates(part) for part in finished], ignore_index=True)
    for group in results.by_budget(finished):
        show_outcomes(console, select(found, data=group[0].data, step=group[0].steps), group[0])
    show_jacobians(console, pd.concat([results.jacobians(part) for part in finished], ignore_index=True))
    for family in families:
        show_family(console, family)
    show.files(console, output)
    primary = next(f for f in families if (f.about["treatment"], f.about["outcome"]) == ("shares", "test error"))
    for sentence in conclusions(finished, primary):
        console.print(sentence)
    if settings.cifar10 is None:
        console.print("CIFAR-10 was left out: --cifar10 DIR adds it.")


def show_outcomes(console: Console, found: pd.DataFrame, part: Trained) -> None:
    """A row for each condition of one data set and budget."""
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for name, of in found.groupby("control", sort=False):
        values = {outcome: group["value"] for outcome, group in of.groupby("outcome")}
        row = {"rate": f"{of['learning_rate'].iloc[0]:g}"}
        row |= {outcome: show.mean_sd(values[outcome]) for outcome in ("test error", "training error")}
        row["log loss"] = f"{values['log training loss'].mean():.2f}"
        for target in results.TARGETS:
            row[f"to {target:g}"] = show.steps(values[f"steps to loss {target:g}"], of["seed"].nunique())
        rows["", str(name)] = row | {"n": str(of["seed"].nunique())}
    caption = (
        "to 0.5, to 0.1: steps to that training loss; k of n: only so many runs reach it; log loss: shown, not judged"
    )
    show.table(console, rows, title=f"{part.data}, {part.steps} steps: mean ± sd over n seeds", caption=caption)


def show_jacobians(console: Console, table: pd.DataFrame) -> None:
    """How far the Jacobians of the stream and of blocks are from isometries at each condition's first weights."""
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for (data, name), of in table.groupby(["data", "control"], sort=False):
        numbers = {(row.outcome, row.quantity): row.mean for row in of.itertuples()}
        rows[str(data), str(name)] = {
            f"{quantity}, {kind}": f"{numbers[kind, quantity]:.3g}"
            for kind in ("stream", "stages", "blocks")
            for quantity in ("spread", "mean_square")
            if (kind, quantity) in numbers
        }
    caption = "spread: mean σ⁴ / (mean σ²)², 1 for an isometry; mean_square: mean σ²; of stages and blocks the mean"
    show.table(console, rows, title="Jacobians at the first weights", caption=caption)


def show_family(console: Console, family: Family) -> None:
    """Each share with the interval that it was read from, its reading, and the power of that reading."""
    chances = select(family.power(), quantity="probability") if family.is_judged else pd.DataFrame()
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for found in family.estimates:
        row = {"share": f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]"}
        if family.is_judged:
            row |= {"read at": f"{100 * found.level:.1f} %", "reading": family.reading(found)}
            row["power 0, 0.3, 0.7, 1"] = results.power_text(chances, found.name)
        rows["", found.name] = row
    about = family.about
    title = f"{about['data']}, {about['step']} steps, {about['outcome']}: {about['treatment']}"
    show.table(console, rows, title=title, caption=results.RULE_TEXT if family.is_judged else "shown, not judged")


def conclusions(finished: Sequence[Trained], primary: Family) -> list[str]:
    """The closing sentences of the primary analysis."""
    group = next(iter(results.by_budget(finished)))
    readings = {found.name: primary.reading(found) for found in primary.estimates}
    lines = [
        f"{primary.about['data']}, {primary.about['step']} steps, test error: "
        + "; ".join(f"{name} {reading}" for name, reading in readings.items())
        + "."
    ]
    share = results.parallel_blocks(group)
    lines.append(
        f"Short and long paths have cosines below {results.PARALLEL} in {100 * share:.0f} % of the blocks that have both"
        f"{'' if share >= 0.5 else ': they are one gradient, and the share of short paths is not read'}."
    )
    lines += results.name_of_first_share(group)
    return [*lines, "Shares need not sum to 1. All but these three are secondary."]


if __name__ == "__main__":
    run_script("experiments.answer")
