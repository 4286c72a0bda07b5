"""Computes the published shares of `answer` again from the committed tables, by a second implementation.

    python tests/docs/recompute_answer.py [FOLDER]

It imports nothing of the project, so that an error there is not repeated here: what it knows of the analysis are the
definitions in `experiments/answer.md`, Fieller's interval (1954) and Welch and Satterthwaite's degrees of freedom. It
prints each share as published and as recomputed, and exits with 1 where one differs by more than TOLERANCE.
"""

import csv
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import stats

TOLERANCE = 1e-9
"""Of a number, or of its size where that is above 1."""
BOOTSTRAP_TOLERANCE, BOOTSTRAP_WIDTH = 0.02, 0.15
"""A bootstrap's ends may differ by the first, or by the second of the width of the recomputed interval."""
DRAWS, SEED = 4000, 0
ERROR_OF_CHANCE = 0.9
"""On every image, of a run that diverged: both data sets have 10 classes."""
ALPHA, MOST, SOME = 0.05, 0.5, 0.1
FINAL = ("explains most", "negligible")
SHOWN = "shown, not judged"
"""What the plan says of the log training loss."""
UNDERPOWERED, WIDEST, WIDE_DATA = "underpowered", 0.5, "CIFAR-10"
"""What the plan says of a share whose 95 % interval is wider, on that data set."""
ROUNDING = 1e-14
"""Of the size of the means of which it is the difference: a gap that is not more is 0."""
IMAGES, TRAINING, LOSS = "test error", "training error", "log training loss"

PLAIN, RESIDUAL = "plain", "residual"
PREFIX = "pre-activation"
PRE_PLAIN, PRE_RESIDUAL = f"{PREFIX}, plain", f"{PREFIX}, residual"
REFERENCES = (PLAIN, RESIDUAL, PRE_PLAIN, PRE_RESIDUAL)
EFFECT = {PLAIN: 1.0, RESIDUAL: -1.0}
NUMERATORS = {
    "conditioning": {**EFFECT, "plain, near-identity": -1.0, "residual, near-identity": 1.0},
    "value": {"plain, near-identity": 1.0, "value alone, near-identity": -1.0},
    "short paths": {"paths of at least 4": 1.0, "paths of at most 3": -1.0},
}
"""1 - [Y(plain, C) - Y(residual, C)] / effect is the first one's numerator over the effect."""
ADDED = "value alone, near-identity, true norms"
"""A condition that was added later; its shares are a family of their own."""
ADDED_NUMERATORS = {
    ADDED: {PLAIN: 1.0, ADDED: -1.0},
    "value, true norms": {"plain, near-identity": 1.0, ADDED: -1.0},
}

Weights = Mapping[str, float]
Numbers = dict[str, float]


class Group(NamedTuple):
    """What was measured together: the runs of one budget on one data set, at one step, by one outcome."""

    data: str
    budget: str
    step: str
    outcome: str


class Name(NamedTuple):
    """Of one share of a group."""

    treatment: str
    effect: str


class Run(NamedTuple):
    """One trained network at one step."""

    data: str
    control: str
    budget: str
    step: str
    seed: str


class Interval(NamedTuple):
    """Low and high end; NaN where they are not known."""

    low: float
    high: float


UNKNOWN = Interval(np.nan, np.nan)


@dataclass
class Means:
    """Conditions that were trained independently and are evaluated on the same images."""

    runs: dict[str, np.ndarray]
    """Runs by images, of each condition; runs by 1 where the outcome has no images."""

    def images(self) -> int:
        """How many; 1 where the outcome has none."""
        return next(iter(self.runs.values())).shape[1]

    def value(self, weights: Weights) -> float:
        """The weighted sum of the conditions' means."""
        return sum(weight * float(self.runs[name].mean()) for name, weight in weights.items())

    def seed_part(self, name: str) -> float:
        """The variance of a condition's mean over its seeds; NaN of one seed."""
        errors = self.runs[name].mean(axis=1)
        return float(errors.var(ddof=1)) / len(errors) if len(errors) > 1 else np.nan

    def is_gap(self, weights: Weights) -> bool:
        """Whether a difference of means is more than rounding, or not known."""
        size = sum(abs(weight * float(self.runs[name].mean())) for name, weight in weights.items())
        return not abs(self.value(weights)) <= ROUNDING * size

    def by_image(self, weights: Weights) -> np.ndarray:
        """The weighted sum on each image."""
        total = np.zeros(self.images())
        for name, weight in weights.items():
            total += weight * self.runs[name].mean(axis=0)
        return total

    def covariance(self, first: Weights, second: Weights) -> float:
        """Of two weighted sums: a part of each condition that both have, and a part of the images."""
        seeds = sum(first[name] * second[name] * self.seed_part(name) for name in first if name in second)
        if self.images() == 1:
            return seeds
        pair = np.cov(self.by_image(first), self.by_image(second), ddof=1)
        return seeds + float(pair[0, 1]) / self.images()

    def variance(self, weights: Weights) -> float:
        """Of a weighted sum."""
        return self.covariance(weights, weights)

    def freedom(self, weights: Weights) -> float:
        """Welch and Satterthwaite's degrees of freedom of a weighted sum; infinite where nothing varies."""
        parts = [(weight**2 * self.seed_part(name), len(self.runs[name]) - 1) for name, weight in weights.items()]
        if self.images() > 1:
            parts.append((float(self.by_image(weights).var(ddof=1)) / self.images(), self.images() - 1))
        total = sum(part for part, _ in parts)
        below = sum(part**2 / freedom if freedom else np.nan for part, freedom in parts)
        return total**2 / below if below else np.inf


def difference(numerator: Weights, denominator: Weights, share: float) -> dict[str, float]:
    """The weights of numerator - share * denominator."""
    names = dict.fromkeys((*numerator, *denominator))
    return {name: numerator.get(name, 0.0) - share * denominator.get(name, 0.0) for name in names}


def of_gap(means: Means, gap: Weights, level: float) -> Interval:
    """Student's interval of a weighted sum, at its own degrees of freedom."""
    centre = means.value(gap)
    half = float(stats.t.ppf((1 + level) / 2, means.freedom(gap))) * means.variance(gap) ** 0.5
    return Interval(centre - half, centre + half)


def fieller(means: Means, numerator: Weights, gap: Weights, level: float) -> Interval | None:
    """All r at which numerator - r * gap is within t standard deviations of 0; None where the gap may be 0, and where
    these r are no interval.

    They solve leading * (r - estimate)² - 2 * slope * (r - estimate) <= t² * variance of numerator - estimate * gap.
    """
    own = of_gap(means, gap, level)
    if own.low <= 0 <= own.high or not means.is_gap(gap):
        return None
    estimate = means.value(numerator) / means.value(gap)
    contrast = difference(numerator, gap, estimate)
    square = float(stats.t.ppf((1 + level) / 2, means.freedom(contrast))) ** 2
    leading = means.value(gap) ** 2 - square * means.variance(gap)
    if leading <= 0:
        return None
    slope = -square * means.covariance(contrast, gap)
    root = (slope**2 + leading * square * means.variance(contrast)) ** 0.5
    return Interval(estimate + (slope - root) / leading, estimate + (slope + root) / leading)


def read(interval: Interval | None) -> str:
    """The word for an interval of a share."""
    if interval is None:
        return "no gap"
    if interval.low > MOST:
        return "explains most"
    if interval.low > SOME:
        return "contributes"
    return "negligible" if interval.high < SOME else "undecided"


@dataclass
class Reading:
    """What is read of one share, at which level and from which interval."""

    word: str
    level: float
    interval: Interval | None


def read_family(intervals: Mapping[Name, Callable[[float], Interval | None]]) -> dict[Name, Reading]:
    """Holm's rule: each share that is read for good leaves its part of the error to the others."""
    readings: dict[Name, Reading] = {}
    left = list(intervals)
    while left:
        level = 1 - ALPHA / len(left)
        for name in left:
            interval = intervals[name](level)
            readings[name] = Reading(read(interval), level, interval)
        remaining = [name for name in left if readings[name].word not in FINAL]
        if len(remaining) == len(left):
            break
        left = remaining
    return readings


def definitions(conditions: Iterable[str]) -> dict[Name, tuple[Weights, Weights]]:
    """Numerator and gap of each share whose conditions were all trained."""
    trained = set(conditions)
    found: dict[Name, tuple[Weights, Weights]] = {
        Name(treatment, effect): (numerator, EFFECT)
        for treatment, numerators in (("shares", NUMERATORS), ("added later", ADDED_NUMERATORS))
        for effect, numerator in numerators.items()
        if trained >= {*numerator, *EFFECT}
    }
    for name in sorted(trained.difference((*REFERENCES, ADDED))):
        plain, residual = (PRE_PLAIN, PRE_RESIDUAL) if name.startswith(PREFIX) else (PLAIN, RESIDUAL)
        if trained >= {plain, residual}:
            found[Name("gap closed", name)] = {plain: 1.0, name: -1.0}, {plain: 1.0, residual: -1.0}
    return found


def numbers(means: Means, numerator: Weights, gap: Weights, reading: Reading) -> Numbers:
    """What is published of a share, but for the bootstrap; of a gap that may be 0 at 95 % there is no share."""
    own, usual, family = of_gap(means, gap, 1 - ALPHA), fieller(means, numerator, gap, 1 - ALPHA), reading.interval
    found = {"gap": means.value(gap), "gap low": own.low, "gap high": own.high, "level": reading.level}
    found["family low"], found["family high"] = family or UNKNOWN
    found["low"], found["high"] = usual or UNKNOWN
    if usual is None:
        return found | dict.fromkeys(("estimate", "se", "df"), np.nan)
    estimate = means.value(numerator) / means.value(gap)
    contrast = difference(numerator, gap, estimate)
    found |= {"estimate": estimate, "se": means.variance(contrast) ** 0.5 / abs(means.value(gap))}
    return found | ({"df": means.freedom(contrast)} if means.variance(contrast) else {})


def drawn_means(means: Means) -> dict[str, np.ndarray]:
    """Each condition's mean in each draw: its seeds are drawn again, and the images, the same ones for all."""
    generator = np.random.default_rng(SEED)
    images, chunk = means.images(), 500
    found: dict[str, list[np.ndarray]] = {name: [] for name in means.runs}
    for _ in range(DRAWS // chunk):
        weights = generator.multinomial(images, np.full(images, 1 / images), size=chunk) / images
        for name, runs in means.runs.items():
            of_seeds = generator.multinomial(len(runs), np.full(len(runs), 1 / len(runs)), size=chunk) / len(runs)
            found[name].append((of_seeds * (weights @ runs.T)).sum(axis=1))
    return {name: np.concatenate(parts) for name, parts in found.items()}


def bootstrap(drawn: Mapping[str, np.ndarray], numerator: Weights, gap: Weights) -> Numbers:
    """The percentiles of a share over the draws."""
    above, below = (sum(w * drawn[name] for name, w in weights.items()) for weights in (numerator, gap))
    with np.errstate(divide="ignore", invalid="ignore"):
        low, high = np.nanquantile(np.divide(above, below), (ALPHA / 2, 1 - ALPHA / 2))
    return {"bootstrap low": float(low), "bootstrap high": float(high)}


class Share(NamedTuple):
    """A share as the table has it, or as it is recomputed."""

    word: str
    numbers: Numbers


def recompute_group(means: Means) -> dict[Name, Share]:
    """Every share of a group."""
    defined, drawn = definitions(means.runs), drawn_means(means)
    found = {}
    for treatment in dict.fromkeys(name.treatment for name in defined):
        family = {name: partial(fieller, means, *pair) for name, pair in defined.items() if name.treatment == treatment}
        for name, reading in read_family(family).items():
            again = numbers(means, *defined[name], reading)
            if np.isfinite(again["low"]):
                again |= bootstrap(drawn, *defined[name])
            found[name] = Share(reading.word, again)
    return found


def rows_of(path: Path) -> Iterator[dict[str, str]]:
    """The rows of a table."""
    with path.open(newline="") as file:
        yield from csv.DictReader(file)


def number(text: str) -> float:
    """NaN where nothing is written."""
    return float(text) if text else np.nan


def errors_of(text: str, count: int) -> np.ndarray:
    """The error on each image, from the bits of the images that were classified right."""
    if not text:
        return np.full(count, ERROR_OF_CHANCE)
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8))
    if len(bits) != -(-count // 8) * 8 or bits[count:].any():
        raise SystemExit(f"Bits that are not those of {count} images")
    return 1.0 - bits[:count]


def run_of(row: Mapping[str, str]) -> Run:
    """The run that a row is about."""
    return Run(row["data"], row["control"], row["budget"], row["step"], row["seed"])


def read_images(path: Path) -> dict[Run, np.ndarray]:
    """Each run's error on each test image."""
    found: dict[Run, np.ndarray] = {}
    for row in rows_of(path):
        if run_of(row) in found:
            raise SystemExit(f"{path}: {run_of(row)} is there twice")
        found[run_of(row)] = errors_of(row["correct"], int(row["count"]))
    return found


def read_values(path: Path) -> dict[str, dict[Run, float]]:
    """Each run's value of each outcome."""
    found: dict[str, dict[Run, float]] = defaultdict(dict)
    for row in rows_of(path):
        if run_of(row) in found[row["outcome"]]:
            raise SystemExit(f"{path}: {row['outcome']} of {run_of(row)} is there twice")
        found[row["outcome"]][run_of(row)] = number(row["value"])
    return found


def grouped(outcome: str, runs: Mapping[Run, np.ndarray]) -> dict[Group, Means]:
    """The runs of one outcome by their group and condition."""
    found: dict[Group, dict[str, list[np.ndarray]]] = defaultdict(lambda: defaultdict(list))
    for run, errors in runs.items():
        found[Group(run.data, run.budget, run.step, outcome)][run.control].append(errors)
    return {
        group: Means({name: np.stack(rows) for name, rows in conditions.items()}) for group, conditions in found.items()
    }


def read_groups(folder: Path) -> dict[Group, Means]:
    """All that was measured and has shares."""
    groups = grouped(IMAGES, read_images(folder / "correct.csv"))
    values = read_values(folder / "replicates.csv")
    for outcome in (TRAINING, LOSS):
        groups |= grouped(outcome, {run: np.array([value]) for run, value in values[outcome].items()})
    return groups


def read_published(path: Path) -> dict[tuple[Group, Name], Share]:
    """The shares of the table."""
    found: dict[tuple[Group, Name], Share] = {}
    for row in rows_of(path):
        group = Group(row["data"], row["budget"], row["step"], row["outcome"])
        key = group, Name(row["treatment"], row["effect"])
        share = found.setdefault(key, Share(row["reading"], {}))
        if row["quantity"] in share.numbers or row["reading"] != share.word:
            raise SystemExit(f"{path}: {key} is there twice, or with two readings")
        share.numbers[row["quantity"]] = number(row["value"])
    return found


def distance(first: float, second: float) -> float:
    """Between two numbers, in their size where that is above 1; NaN and NaN are equal."""
    if first == second or (np.isnan(first) and np.isnan(second)):
        return 0.0
    if not (np.isfinite(first) and np.isfinite(second)):
        return np.inf
    return abs(first - second) / max(1.0, abs(second))


def bootstrap_differs(published: Numbers, again: Numbers) -> bool:
    """Whether two bootstraps with draws of their own differ by more than draws do."""
    ends = ("bootstrap low", "bootstrap high")
    if not set(ends) <= published.keys() & again.keys():
        return bool({*ends} & (published.keys() | again.keys()))
    bound = max(BOOTSTRAP_TOLERANCE, BOOTSTRAP_WIDTH * (again[ends[1]] - again[ends[0]]))
    return any(not abs(published[end] - again[end]) <= bound for end in ends)


def planned_word(group: Group, share: Share) -> str:
    """The word that the plan's text has for a recomputed share."""
    if group.outcome == LOSS:
        return SHOWN
    return UNDERPOWERED if group.data == WIDE_DATA and is_wide(share) else share.word


def is_wide(share: Share) -> bool:
    """Whether the 95 % interval is wider than the plan allows for on one of its data sets."""
    return share.numbers["high"] - share.numbers["low"] > WIDEST


@dataclass
class Comparison:
    """What was compared, and what differs."""

    lines: list[str]
    """One for each share and each of its numbers."""
    notes: list[str]
    """Where the word of the table is right by its rule, and the plan's text has another."""
    differences: list[str]
    largest: float = 0.0
    """Of all numbers but the bootstrap's."""

    def compare(self, group: Group, name: Name, published: Share, again: Share) -> None:
        """Note one share."""
        title = ", ".join((*group, *name))
        self.compare_words(title, published.word, again, planned_word(group, again))
        for quantity, value in again.numbers.items():
            if quantity not in published.numbers:
                self.differences.append(f"{title}: {quantity} is not published")
                continue
            self.lines.append(f"  {quantity:14} {published.numbers[quantity]:+.9f} | {value:+.9f}")
            if not quantity.startswith("bootstrap"):
                self.compare_number(f"{title}: {quantity}", published.numbers[quantity], value)
        if bootstrap_differs(published.numbers, again.numbers):
            self.differences.append(f"{title}: the bootstrap")

    def compare_words(self, title: str, word: str, again: Share, planned: str) -> None:
        """Note one reading. An undecided share with a wide interval may also be called underpowered, and one of any
        reading where the plan's text calls it so."""
        self.lines.append(f"{title}: {word} | {planned}")
        allowed = {planned} if planned == SHOWN else {planned, again.word}
        if again.word == "undecided" and planned != SHOWN and is_wide(again):
            allowed.add(UNDERPOWERED)
        if word not in allowed:
            self.differences.append(f"{title}: read as {word}, recomputed {planned}")
        elif word != planned:
            self.notes.append(f"{title}: read as {word}, in the plan's text {planned}")

    def compare_number(self, title: str, published: float, again: float) -> None:
        """Note one number."""
        apart = distance(published, again)
        self.largest = max(self.largest, apart)
        if apart > TOLERANCE:
            self.differences.append(f"{title}: {published!r}, recomputed {again!r}")


def compare_errors(folder: Path, comparison: Comparison) -> None:
    """The test errors of the runs are those of their bits."""
    images = read_images(folder / "correct.csv")
    values = read_values(folder / "replicates.csv")[IMAGES]
    for run in images.keys() ^ values.keys():
        comparison.differences.append(f"{run}: in one of correct.csv and replicates.csv alone")
    for run in images.keys() & values.keys():
        comparison.compare_number(f"{run}: test error", values[run], float(images[run].mean()))


def compare_folder(folder: Path) -> Comparison:
    """Every share of a folder's tables, as published and as recomputed."""
    published = read_published(folder / "shares.csv")
    again = {
        (group, name): share
        for group, means in read_groups(folder).items()
        for name, share in recompute_group(means).items()
    }
    comparison = Comparison([], [], [])
    compare_errors(folder, comparison)
    for key in sorted({*published, *again}):
        if key in published and key in again:
            comparison.compare(*key, published[key], again[key])
        else:
            title = ", ".join((*key[0], *key[1]))
            comparison.differences.append(f"{title}: {'not published' if key in again else 'published alone'}")
    return comparison


def main(arguments: list[str]) -> int:
    """Print the comparison; 1 where something differs, or nothing was compared."""
    comparison = compare_folder(Path(arguments[0] if arguments else "docs/tables/answer"))
    found = [f"note: {line}" for line in comparison.notes] + [f"DIFFERS: {line}" for line in comparison.differences]
    print(*comparison.lines, *found, sep="\n")
    print(f"Largest difference: {comparison.largest:.1e} (tolerance {TOLERANCE:.0e}); {len(found)} remarks")
    return int(bool(comparison.differences) or not comparison.lines)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
