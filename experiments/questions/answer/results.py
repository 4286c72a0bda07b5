"""The finished runs of `answer` as tables: outcomes, shares and their readings, curves, what gradients were made of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from experiments.engine.running.messages import BadInput
from experiments.engine.running.run import Run, Tables
from experiments.engine.statistics.estimates import estimate
from experiments.engine.statistics.long_tables import select
from experiments.engine.statistics.shares import (
    RIGHT,
    Means,
    Share,
    ShareEstimate,
    bootstrap,
    condition_means,
    contrast,
    meets_power,
    power,
    read_shares,
    seed_correlation,
    share_table,
)
from experiments.engine.statistics.steps_to_loss import steps_to_loss, trailing_means
from experiments.questions.answer.plan import (
    ADDED,
    CLOSED,
    FIRST_WEIGHTS,
    PARTS,
    PLAIN,
    PLAIN_NEAR,
    RESIDUAL,
    SHARES,
    Part,
)
from probes.tables import table

CIFAR10 = "CIFAR-10"
TABLES = ("replicates", "correct", "tuning", "losses", "profiles", "jacobians", "linear")
"""What a part gives."""
TARGETS = (0.5, 0.1)
"""Training losses to which steps are counted."""
JUDGED = ("test error", "training error")
"""Outcomes on which shares are read; log training loss is shown alone, since beyond accuracy 1 it measures margins."""
PARALLEL = 0.5
"""Where the cosine of short and long paths is not below it in half of the blocks, they are one gradient."""
WIDEST = 0.5
"""Of a 95 % interval of a share: a wider one is underpowered."""
CLOSE = 0.05
"""Of test error: first weights that come so near do what near-identity ones do."""
RULE_TEXT = (
    "Fieller's intervals, over seeds and test images. explains most: the low end of the interval that is read, which "
    "counts how many shares are read together, is above 0.5; contributes: above 0.1; negligible: the high end is below "
    "0.1. power: how probably true shares of 0, 0.3, 0.7 and 1 are read right, with these spreads and n"
)
FAMILIES = {"shares": SHARES, "gap closed": CLOSED, "added later": ADDED}
Outcomes = Mapping[str, np.ndarray]
"""By condition: (seeds, test images) or (seeds,)."""


@dataclass(frozen=True)
class Trained:
    """The finished runs of one part of the plan."""

    part: Part
    data: str
    """The data set's title."""
    classes: int
    test_images: int
    steps: int
    """Of a run."""
    window: int
    """Steps of an epoch, over which a loss is averaged."""
    runs: Sequence[Run]
    tables: Tables
    search: pd.DataFrame
    """Validation accuracy by learning rate, on tuning seeds."""
    store: Path

    @property
    def about(self) -> dict[str, Any]:
        """The columns that tell this part's rows from those of others."""
        return {"data": self.data, "budget": self.part.budget}

    def of(self, name: str) -> pd.DataFrame:
        """A table of its runs, with those columns and `first_weights`; empty where no run gave one."""
        if name not in self.tables:
            return pd.DataFrame()
        weights = {run.labels["control"]: run.recipe.first_weights for run in self.runs}
        found = self.tables[name]
        return found.assign(**self.about, first_weights=found["control"].map(weights))

    def correct(self, run: Run) -> np.ndarray | None:
        """(test images,): whether each is classified right; None for a run that diverged."""
        file = self.store / run.name / "arrays.npz"
        return np.load(file)["correct"] if file.is_file() else None


def tables_of(trained: Trained) -> Tables:
    """All that is reported of a part, by name; `read_tables` reads it again where its runs are not at hand."""
    linear = trained.tables["linear"].assign(data=trained.data) if "linear" in trained.tables else pd.DataFrame()
    return {
        "replicates": replicates(trained),
        "correct": right_images(trained),
        "tuning": trained.search.assign(**trained.about),
        "losses": loss_curves(trained),
        "profiles": profiles(trained),
        "jacobians": jacobians(trained),
        "linear": linear,
    }


def read_tables(folder: Path) -> Tables:
    """The tables of finished parts as an earlier call wrote them; empty where it left one out.

    Raises BadInput where the folder has none of the runs' outcomes.
    """
    text = {"control": str, "first_weights": str, "correct": str}
    found: Tables = {}
    for name in TABLES:
        file = folder / f"{name}.csv"
        if not file.is_file() and name in ("replicates", "correct"):
            raise BadInput(f"--tables {folder}: has no {name}.csv; give a folder that this script wrote")
        found[name] = pd.read_csv(file, dtype=text) if file.is_file() else pd.DataFrame()
    found["correct"] = found["correct"].fillna({"correct": ""})
    return found


def joined(parts: Sequence[Tables]) -> Tables:
    """The tables of several parts, one after the other. First weights, and a linear classifier, are those of every
    budget: each condition has the Jacobians of the first part that trains it on that data set."""
    found = {
        name: pd.concat(tables, ignore_index=True)
        if (tables := [part[name] for part in parts if len(part[name])])
        else pd.DataFrame()
        for name in TABLES
    }
    if len(found["jacobians"]):
        found["jacobians"] = found["jacobians"].drop_duplicates(["data", "control", "outcome", "quantity"])
    if len(found["linear"]):
        found["linear"] = found["linear"].drop_duplicates(["data", "seed"])
    return found


def right_images(trained: Trained) -> pd.DataFrame:
    """Of each run, which test images are right: their number (`count`), and a bit for each, as hexadecimal digits from
    the first image on (`correct`; empty for a run that diverged); from them every interval can be computed again."""
    rows: list[dict[str, object]] = []
    for run in trained.runs:
        right = trained.correct(run)
        about = {**trained.about, "step": trained.steps, "control": run.labels["control"], "seed": run.seed}
        bits = "" if right is None else np.packbits(right).tobytes().hex()
        rows.append({**about, "count": trained.test_images, "correct": bits})
    return table(rows)


def errors_by_image(found: pd.DataFrame, correct: pd.DataFrame) -> dict[str, np.ndarray]:
    """By condition, (seeds, test images): 1 where wrong; for a run that diverged its error, chance, on every image.

    found, correct: of one data set and budget, as `replicates` and `right_images` give them.
    """
    chance = select(found, outcome="test error").set_index(["control", "seed"])["value"]
    rows: dict[str, list[np.ndarray]] = {}
    for control, seed, count, bits in correct[["control", "seed", "count", "correct"]].itertuples(index=False):
        packed = np.frombuffer(bytes.fromhex(bits), np.uint8)
        wrong = 1.0 - np.unpackbits(packed, count=count) if bits else np.full(count, chance[control, seed])
        rows.setdefault(control, []).append(wrong)
    return {name: np.stack(of_seeds) for name, of_seeds in rows.items()}


# Outcomes of runs


def replicates(trained: Trained) -> pd.DataFrame:
    """Each run's outcomes, a long table: the errors on training and test images, log training loss, and the steps to
    each of TARGETS, nan where a run does not reach it. A run that diverged has chance errors and no loss."""
    outcomes, losses = trained.of("outcomes"), trained.of("losses")
    ends: dict[Any, float] = {}
    if len(outcomes):  # none, where every run diverged
        ends = outcomes.set_index(["control", "seed", "split", "quantity"])["value"].to_dict()
    reached = steps_to_loss(losses, TARGETS, window=trained.window) if len(losses) else pd.DataFrame()
    chance = 1 - 1 / trained.classes
    rows: list[dict[str, object]] = []
    for run in trained.runs:
        name, seed = run.labels["control"], run.seed
        about = {**trained.about, "control": name, "first_weights": run.recipe.first_weights, "seed": seed}
        about |= {"step": trained.steps, "learning_rate": run.labels["learning_rate"]}
        values = {
            "test error": 1 - ends.get((name, seed, "test", "accuracy"), 1 - chance),
            "training error": 1 - ends.get((name, seed, "train", "accuracy"), 1 - chance),
            "log training loss": np.log(ends.get((name, seed, "train", "loss"), np.nan)),
        }
        for target in TARGETS:
            of_run = select(reached, control=name, seed=seed, target=target) if len(reached) else reached
            values[f"steps to loss {target}"] = of_run["value"].item() if len(of_run) else np.nan
        rows += [{**about, "outcome": outcome, "value": float(value)} for outcome, value in values.items()]
    return table(rows)


def summary(found: pd.DataFrame) -> pd.DataFrame:
    """Of each condition, budget and outcome: mean, sd, 95 % t interval, n, and how many runs have a value ("reached");
    no mean is taken of those that reach a loss where others do not."""
    keys = ["data", "control", "first_weights", "learning_rate", "budget", "step", "outcome"]
    rows: list[dict[str, object]] = []
    for key, group in found.groupby(keys, sort=False):
        values = group["value"].to_numpy()
        complete = bool(np.isfinite(values).all())
        of_all = estimate(values if complete else np.array([]), max_abs=1 if "error" in str(key[-1]) else np.inf)
        numbers = {"mean": of_all.mean, "sd": values.std(ddof=1) if complete and len(values) > 1 else np.nan}
        numbers |= {"low": of_all.low, "high": of_all.high, "n": len(values), "reached": np.isfinite(values).sum()}
        rows += [{**dict(zip(keys, key, strict=True)), "quantity": name, "value": v} for name, v in numbers.items()]
    return table(rows)


def loss_curves(trained: Trained) -> pd.DataFrame:
    """The training loss of each run, averaged over the steps of an epoch, at 20 moments and the first full epoch."""
    losses, columns = trained.of("losses"), ["data", "control", "first_weights", "budget", "step", "seed", "value"]
    if losses.empty:  # every run diverged in its first epoch
        return pd.DataFrame(columns=[*columns, "outcome"])
    means = trailing_means(losses, window=trained.window)
    moments = np.unique(np.linspace(trained.window, trained.steps, 21).round().astype(int))
    kept = means[means["step"].isin(moments)]
    return kept[columns].assign(outcome="training loss")


# Shares


@dataclass(frozen=True)
class Family:
    """Shares of one data set, budget and outcome that are read together."""

    about: Mapping[str, Any]
    """data, budget, step, outcome, and the family's name as `treatment`."""
    means: Means
    shares: Sequence[Share]
    estimates: Sequence[ShareEstimate]
    outcomes: Outcomes

    @cached_property
    def table(self) -> pd.DataFrame:
        """All numbers, with the two-way bootstrap's interval."""
        parts = [share_table(self.estimates, **self.about)]
        for share, found in zip(self.shares, self.estimates, strict=True):
            if np.isfinite(found.low):
                drawn = bootstrap(self.outcomes, share)
                numbers = {"bootstrap low": drawn.low, "bootstrap high": drawn.high}
                about = {**self.about, "effect": share.name, "reading": found.reading}
                parts.append(table({**about, "quantity": name, "value": value} for name, value in numbers.items()))
        found = pd.concat(parts, ignore_index=True)
        return found.assign(reading=found["effect"].map({of.name: self.reading(of) for of in self.estimates}))

    @cached_property
    def power(self) -> pd.DataFrame:
        """How often the rule gives each reading in worlds with these spreads, where the true share is known."""
        return power(self.means, self.shares).assign(**self.about)

    @property
    def is_judged(self) -> bool:
        """Whether its shares are read; others are shown."""
        return self.about["outcome"] in JUDGED

    def reading(self, found: ShareEstimate) -> str:
        """The rule's word, and whether the interval is too wide for any."""
        if not self.is_judged:
            return "shown, not judged"
        return "underpowered" if found.reading == "undecided" and found.high - found.low > WIDEST else found.reading

    def primary_reading(self, found: ShareEstimate) -> str:
        """With "underpowered" where the plan says so of a primary reading."""
        return f"{self.reading(found)}{'' if self.is_powered(found) else ' (underpowered)'}"

    def is_powered(self, found: ShareEstimate) -> bool:
        """Whether the rule would read this share right with probability POWER, were it truly 0 or 1."""
        return meets_power(select(self.power, effect=found.name))


def families(found: pd.DataFrame, correct: pd.DataFrame) -> list[Family]:
    """Every family of shares, of each data set and budget: of test errors by image, of other outcomes by run.

    found, correct: as `replicates` and `right_images` give them, of any number of parts.
    """
    read: list[Family] = []
    if found.empty:
        return read
    for (data, budget, step), of_group in found.groupby(["data", "budget", "step"], sort=False):
        errors = errors_by_image(of_group, select(correct, data=data, budget=budget))
        for name, family in FAMILIES.items():
            shares = [share for share in family if set(share.conditions) <= set(errors)]
            for outcome in (*JUDGED, "log training loss") if shares else ():
                rows = select(of_group, outcome=outcome).groupby("control")["value"]
                by_run = {str(control): values.to_numpy() for control, values in rows}
                outcomes: Outcomes = errors if outcome == "test error" else by_run
                about = {"data": data, "budget": budget, "step": step, "outcome": outcome, "treatment": name}
                means = condition_means(outcomes)
                read.append(Family(about, means, shares, read_shares(means, shares), outcomes))
    return read


def parallel_blocks(profiles: pd.DataFrame, **about: object) -> float:
    """Of the blocks that have short and long paths, the part in which the two gradients' cosine is below PARALLEL, at a
    residual network's first weights (mean over seeds); nan where it was not measured. about: data and budget."""
    if profiles.empty:
        return np.nan
    of = select(profiles, control=RESIDUAL.name, epoch=0, outcome="parts", quantity="cosine", **about)
    return float((of["value"] < PARALLEL).mean()) if len(of) else np.nan


# What gradients were made of


def profiles(trained: Trained) -> pd.DataFrame:
    """Means over seeds, for each condition, at its first weights and its last: of each block the update's cosine with
    the true gradient and norm ratio, gradient norms, movement of the weights; of each path length norm and share."""
    keys = ["data", "control", "budget", "epoch", "block", "depth", "path_length", "outcome", "quantity"]
    parts = []
    for name in ("alignment", "gradients", "movement", "parts", "paths"):
        if len(rows := trained.of(name)):
            rows = rows.assign(outcome=name).reindex(columns=[*keys, "value"])
            parts.append(rows.groupby(keys, dropna=False, sort=False)["value"].mean().reset_index())
    return pd.concat(parts, ignore_index=True).dropna(subset="value") if parts else pd.DataFrame()


def jacobians(trained: Trained) -> pd.DataFrame:
    """The Jacobians at each condition's first weights: mean and sd over seeds of the stream's numbers, and of the means
    over blocks and over stages."""
    keys = ["data", "control", "first_weights", "outcome", "quantity"]
    if (rows := trained.of("jacobians")).empty:
        return pd.DataFrame(columns=[*keys, "mean", "sd"])
    by_seed = rows.groupby([*keys, "seed"], sort=False)["value"].mean()
    return by_seed.groupby(keys, sort=False).agg(["mean", "std"]).reset_index().rename(columns={"std": "sd"})


# Sentences


def power_text(chances: pd.DataFrame, name: str) -> str:
    """`1.00, 0.98, 1.00, 1.00`: the probability of the right reading at true shares of 0, 0.3, 0.7 and 1."""
    of_share = select(chances, effect=name)
    right = of_share[of_share["reading"] == of_share["amount"].map(RIGHT)].set_index("amount")["value"]
    return ", ".join(f"{right[amount]:.2f}" for amount in RIGHT if amount in right.index) or "-"


def name_of_first_share(outcomes: Outcomes) -> list[str]:
    """Whether the first share may be called conditioning, as it may where a plain network whose first weights are far
    from the identity comes within CLOSE of near-identity in test error: a sentence for each such network."""
    lines = []
    for condition in FIRST_WEIGHTS[:2]:
        if {condition.name, PLAIN_NEAR.name} <= set(outcomes):
            found = contrast(condition_means(outcomes), {condition.name: 1.0, PLAIN_NEAR.name: -1.0})
            word = "as good as" if found.high < CLOSE else "worse than" if found.low > CLOSE else "perhaps as good as"
            interval = f"{found.mean:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"
            lines.append(f"{condition.name} is {word} near-identity: test error {interval}, margin {CLOSE}.")
    return lines


def primary_family(families: Sequence[Family]) -> Family | None:
    """The three shares of the primary analysis; None where they were not trained."""
    for family in families:
        about = family.about
        is_first = about["data"] != CIFAR10 and about["budget"] == PARTS[0].budget
        if is_first and (about["treatment"], about["outcome"]) == ("shares", JUDGED[0]):
            return family
    return None


def conclusions(families: Sequence[Family], profiles: pd.DataFrame, linear: pd.DataFrame) -> list[str]:
    """The closing sentences: primary readings, whether short and long paths differ, what the first share is called,
    whether seeds pair plain and residual networks, and what a linear classifier does.

    linear: its test errors, columns data, seed, value; empty where it was not fitted.
    """
    lines, primary = [], primary_family(families)
    if primary is None:
        lines.append("The primary shares were not trained: --parts 1 has them.")
    else:
        words = [f"{share.name}: {primary.primary_reading(share)}" for share in primary.estimates]
        lines.append(f"{primary.about['data']}, {primary.about['step']} steps, test error. {'; '.join(words)}.")
        lines.append("Underpowered: a true share of 0, or of 1, would be read right with a probability below 0.95.")
        part = parallel_blocks(profiles, data=primary.about["data"], budget=primary.about["budget"])
        if not np.isnan(part):
            parallel = "" if part >= 0.5 else ": they are one gradient, and their share is not to be read"
            lines.append(
                f"The cosine of short and long paths is below {PARALLEL} in {100 * part:.0f} % of blocks{parallel}."
            )
    for family in families:
        about = family.about
        where = f"{about['data']}, {about['step']} steps"
        if (about["treatment"], about["outcome"]) == ("added later", JUDGED[0]):
            for of in family.estimates:
                share = f" {of.value:.2f} [{of.low:.2f}, {of.high:.2f}]" if np.isfinite(of.value) else ""
                lines.append(f"{where}, added after the primary runs: {of.name}{share}: {family.reading(of)}.")
        if (about["treatment"], about["outcome"]) == ("gap closed", JUDGED[0]):
            lines += [f"{where}: {line}" for line in name_of_first_share(family.outcomes)]
            means = [family.outcomes[of.name].mean(1) for of in (PLAIN, RESIDUAL)]
            correlation, seeds = seed_correlation(*means)
            if np.isfinite(correlation):
                lines.append(f"{where}: plain and residual errors correlate by {correlation:.2f} over {seeds} seeds.")
    for data, of in linear.groupby("data", sort=False)["value"] if len(linear) else ():
        lines.append(f"{data}: a linear classifier of the pixels has a test error of {of.mean():.3f}, n = {len(of)}.")
    return [*lines, "Shares need not sum to 1; all but these three are secondary."]
