"""Shares of an effect: ratios of two contrasts of independent conditions' means, and the rule by which they are read.

Conditions are ways to train a network, each with seeds of its own; all are measured on the same test images, or each
run gives one number. Nothing is paired by seed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import pandas as pd
from scipy import stats

from experiments.engine.statistics.estimates import Estimate
from probes.tables import table

MOST = 0.5
"""A share above it explains most of the effect."""
SMALL = 0.1
"""A share above it contributes, one below it is negligible."""
ALPHA = 0.05
"""The probability that a family of shares has any false reading is at most this."""
POWER = 0.95
"""The probability with which a rule must give the right reading at a true share of 0 and of 1."""
Reading = Literal["explains most", "contributes", "negligible", "undecided", "no gap"]
READINGS: tuple[Reading, ...] = get_args(Reading)
FINAL: tuple[Reading, ...] = ("explains most", "negligible")
"""Readings that no narrower interval could change, if they are right."""
RIGHT: dict[float, Reading] = {0.0: "negligible", 0.3: "contributes", 0.7: "explains most", 1.0: "explains most"}
"""True shares at which the rule is tested, and what it should read there."""
TOO_FEW = "fewer than three seeds"
NOT_FINITE = "an outcome is not finite"
NO_GAP_IN_FAMILY = "a gap at 95 %, but none at the level of the family"


@dataclass(frozen=True)
class Share:
    """A ratio of two contrasts of condition means: weights by condition, `above` and `below` the line.

    The weights of a contrast sum to 0, so that a constant added to all outcomes changes nothing. 1 - x/y is written as
    (y - x)/y. Raises ValueError where they do not, or where a contrast has no weight at all.
    """

    name: str
    above: Mapping[str, float]
    below: Mapping[str, float]

    def __post_init__(self) -> None:
        for where, weights in (("above", self.above), ("below", self.below)):
            size = sum(abs(weight) for weight in weights.values())
            if not size or abs(sum(weights.values())) > 1e-9 * size:
                raise ValueError(
                    f"{self.name}: weights {where} are {dict(weights)}, but must sum to 0 and not all be 0"
                )

    @property
    def conditions(self) -> tuple[str, ...]:
        """All that have a weight."""
        both = {**self.above, **self.below}
        return tuple(name for name in both if self.above.get(name, 0) or self.below.get(name, 0))


@dataclass(frozen=True)
class Means:
    """Means of C conditions and what they are uncertain by; arrays may have leading dimensions, for simulated worlds.

    A condition with fewer than three seeds has no variance (nan), one with an outcome that is not finite no mean, too.
    """

    names: tuple[str, ...]
    means: np.ndarray
    """(..., C)"""
    seed_variances: np.ndarray
    """(..., C): of one seed's outcome."""
    seeds: np.ndarray
    """(C,): how many."""
    image_covariance: np.ndarray
    """(C, C): of the means, over the choice of test images; zeros where a run gives one number."""
    images: int
    """How many; 0 where a run gives one number."""


@dataclass(frozen=True)
class Ratios:
    """K estimated ratios: both contrasts, and the loadings of their errors on independent sources, (..., K, sources).

    The variance of `above - share * below` is the sum of squares of its loadings: never negative, and without
    cancellation.
    """

    above: np.ndarray
    """(..., K)"""
    below: np.ndarray
    seed_above: np.ndarray
    """(..., K, C): weight * sd / sqrt(n) of each condition."""
    seed_below: np.ndarray
    image_above: np.ndarray
    """(K, C): weights times a square root of the image covariance."""
    image_below: np.ndarray
    seeds_df: np.ndarray
    """(C,): n - 1."""
    images_df: int
    rounding: np.ndarray
    """(..., K): what `below` may be by rounding alone."""

    @property
    def value(self) -> np.ndarray:
        """(..., K): the shares; nan where `below` is 0."""
        safe = np.where(np.abs(self.below) > self.rounding, self.below, np.nan)
        return self.above / safe

    @property
    def se(self) -> np.ndarray:
        """(..., K): the standard errors of the shares, to first order."""
        value = self.value
        return np.sqrt(self.variance(value)) / np.where(np.isnan(value), np.nan, np.abs(self.below))

    def parts(self, above: float, below: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
        """The variance of above * numerator - below * denominator: by condition (..., K, C), and of images (..., K)."""
        below = np.asarray(below)[..., None]
        own = above * self.seed_above if above else np.zeros_like(self.seed_above)  # 0 of an unknown deviation is 0
        seeds = (own - below * self.seed_below) ** 2
        return seeds, ((above * self.image_above - below * self.image_below) ** 2).sum(-1)

    def variance(self, share: np.ndarray | float) -> np.ndarray:
        """(..., K): of numerator - share * denominator."""
        seeds, images = self.parts(1, share)
        return seeds.sum(-1) + images

    def covariance(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(..., K) each: the variance of the numerator, their covariance, the variance of the denominator."""
        pairs = (
            (self.seed_above, self.seed_above, self.image_above, self.image_above),
            (self.seed_above, self.seed_below, self.image_above, self.image_below),
            (self.seed_below, self.seed_below, self.image_below, self.image_below),
        )
        above, both, below = ((a * b).sum(-1) + (c * d).sum(-1) for a, b, c, d in pairs)
        return above, both, below

    def df(self, *, of_gap: bool = False) -> np.ndarray:
        """(..., K): Welch-Satterthwaite's degrees of freedom of numerator - share * denominator at the estimated share,
        or of the denominator alone; where there is no variance, those of the condition with the fewest."""
        value = np.nan_to_num(self.value)
        seeds, images = self.parts(0, 1.0) if of_gap else self.parts(1, value)
        used = (self.seed_above != 0) | (self.seed_below != 0)
        fewest = np.where(used, self.seeds_df, np.inf).min(-1)
        total = seeds.sum(-1) + images
        scale = np.where(total > 0, total, 1.0)
        squares = ((seeds / scale[..., None]) ** 2 / np.maximum(self.seeds_df, 1)).sum(-1)
        squares = squares + (images / scale) ** 2 / max(self.images_df, 1)
        found = 1 / np.where(squares > 0, squares, 1.0)
        return np.where(squares > 0, found, np.where(np.isnan(total), np.nan, np.where(fewest < np.inf, fewest, 1.0)))


@dataclass(frozen=True)
class Readings:
    """What a rule makes of K ratios, (..., K) each: the words, and the interval and level they were read at."""

    reading: np.ndarray
    low: np.ndarray
    high: np.ndarray
    level: np.ndarray


Rule = Callable[[Ratios], Readings]


@dataclass(frozen=True)
class ShareEstimate:
    """One share: its value, standard error, 95 % interval, and how it was read within its family.

    `p` is two-sided, of a share of SMALL; `level` is that of the interval `family_low`, `family_high` from which it was
    read; `gap` is the denominator with its 95 % interval; `note` says why something is missing.
    """

    name: str
    value: float
    se: float
    low: float
    high: float
    family_low: float
    family_high: float
    level: float
    p: float
    df: float
    gap: float
    gap_low: float
    gap_high: float
    reading: Reading
    note: str = ""

    def rows(self, **about: object) -> list[dict[str, object]]:
        """Rows of a long table: effect (the share's name), reading, quantity, value, beside the columns of `about`."""
        numbers = {
            "estimate": self.value, "se": self.se, "low": self.low, "high": self.high, "family low": self.family_low,
            "family high": self.family_high, "level": self.level, "p": self.p, "df": self.df, "gap": self.gap,
            "gap low": self.gap_low, "gap high": self.gap_high,
        }  # fmt: skip
        about = {**about, "effect": self.name, "reading": self.reading}
        return [{**about, "quantity": quantity, "value": value} for quantity, value in numbers.items()]


def condition_means(outcomes: Mapping[str, np.ndarray]) -> Means:
    """Each condition's mean, its variance over seeds, and the covariance of all means over test images.

    The variance of a contrast is that over seeds of each condition's mean (s² / n) plus that over images of the
    contrast of per-image means (/ m). Each of them holds the variance of a single answer (one seed, one image), which
    is thus counted twice: conservative, as is Owen's pigeonhole bootstrap (2007, Annals of Applied Statistics 1, arXiv
    0712.1111), which counts it three times.

    Args:
        outcomes: By condition, (n, m) whether each of n networks is right on each of the same m images, or (n,) one
            number a run. All of one kind; n may differ.

    Raises ValueError for other shapes.
    """
    arrays = _arrays(outcomes)
    images = _images(arrays)
    by_run = {name: array if array.ndim == 1 else array.mean(1) for name, array in arrays.items()}
    ok = {name: bool(np.isfinite(array).all()) for name, array in arrays.items()}
    covariance = np.zeros((len(arrays), len(arrays)))
    if images:
        by_image = [np.where(ok[name], array, 0.0).mean(0) for name, array in arrays.items()]
        covariance = np.atleast_2d(np.cov(by_image)) / images
    return Means(
        tuple(arrays),
        np.array([run.mean() if ok[name] else np.nan for name, run in by_run.items()]),
        np.array([run.var(ddof=1) if ok[name] and len(run) >= 3 else np.nan for name, run in by_run.items()]),
        np.array([len(run) for run in by_run.values()]),
        covariance,
        images,
    )


def ratios(means: Means, shares: Sequence[Share]) -> Ratios:
    """The numerator and denominator of each share, and their errors. Raises ValueError where a condition is missing."""
    lacking = sorted({name for share in shares for name in share.conditions} - set(means.names))
    if lacking:
        raise ValueError(f"no outcomes of {lacking}: there are {', '.join(means.names)}")
    above, below = (
        np.array([[getattr(share, side).get(name, 0.0) for name in means.names] for share in shares])
        for side in ("above", "below")
    )
    deviations = np.sqrt(means.seed_variances / means.seeds)
    root = _square_root(means.image_covariance)
    return Ratios(
        _load(above, means.means).sum(-1),
        _load(below, means.means).sum(-1),
        _load(above, deviations),
        _load(below, deviations),
        above @ root,
        below @ root,
        means.seeds - 1,
        means.images - 1,
        8 * np.finfo(float).eps * np.abs(_load(below, means.means)).sum(-1),
    )


def fieller(found: Ratios, level: np.ndarray | float = 1 - ALPHA) -> tuple[np.ndarray, np.ndarray]:
    """The ends of Fieller's interval (1954) at a level, (..., K) each: all shares r for which a t test does not reject
    mean(numerator - r * denominator) = 0.

    Its degrees of freedom are those at the estimated share. nan where the denominator's own interval holds 0, so that
    there is no gap to have a share of, and where there is no variance.
    """
    df, value = found.df(), found.value
    t = stats.t.ppf((1 + np.asarray(level)) / 2, df)
    t_gap = np.maximum(t, stats.t.ppf((1 + np.asarray(level)) / 2, found.df(of_gap=True)))
    above, both, below = found.covariance()
    gap = np.where(found.below**2 > t_gap**2 * below, found.below, np.nan)
    q = (t / gap) ** 2
    determinant = np.maximum(above * below - both**2, 0)
    half = np.sqrt(np.maximum(q * (found.variance(np.nan_to_num(value)) - q * determinant), 0)) / (1 - q * below)
    centre = (value - q * both) / (1 - q * below)
    return centre - half, centre + half


def contrast(means: Means, weights: Mapping[str, float], level: float = 1 - ALPHA) -> Estimate:
    """A weighted sum of condition means and its t interval, with both parts of the variance of `condition_means`, and
    Welch and Satterthwaite's degrees of freedom."""
    found = ratios(means, [Share("contrast", weights, weights)])
    half = stats.t.ppf((1 + level) / 2, found.df(of_gap=True)) * np.sqrt(found.covariance()[2])
    mean = found.below.item()
    return Estimate((), mean, mean - half.item(), mean + half.item())


def p_value(found: Ratios, share: float = SMALL) -> np.ndarray:
    """(..., K): two-sided, of a true share of `share`, by the statistic and degrees of freedom of `fieller`."""
    error, off = np.sqrt(found.variance(share)), found.above - share * found.below
    with np.errstate(divide="ignore", invalid="ignore"):  # without variance: certain, or 0 / 0, which is no evidence
        t = np.where((error == 0) & (off == 0), 0.0, off / error)
    return np.asarray(2 * stats.t.sf(np.abs(t), found.df()))


def words(found: Ratios, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """(..., K): the reading of each interval."""
    unknown = np.isnan(found.variance(0.0)) | np.isnan(found.below)
    choices = ["undecided", "no gap", "explains most", "contributes", "negligible"]
    return np.select([unknown, np.isnan(low), low > MOST, low > SMALL, high < SMALL], choices, "undecided")


def read(found: Ratios) -> Readings:
    """The rule: shares are read from intervals at 1 - ALPHA / k, where k counts those that have no final reading yet.

    `explains most`: the low end is above MOST; `contributes`: above SMALL; `negligible`: the high end is below SMALL;
    `no gap`: the denominator may be 0; else `undecided`. It begins with all K shares; each that is read as `explains
    most` or `negligible` leaves its part of ALPHA to the others, as in Holm (1979), until nothing changes. Where
    there is a gap, a share is not undecided exactly if its `p_value` is below ALPHA / k.

    Why a family has any false reading with probability at most ALPHA: a reading is false only if the interval at the
    level of reading misses the true share. `contributes` may yet become a false `explains most`, and so it leaves
    nothing to others. (If it did, as in Holm's procedure for share = SMALL alone, two precise shares of 0.5 beside one
    of 0.1 would have a false reading with probability 0.05 (1 + 1/4 + 1/6) = 0.07.) Until the first false reading, the
    shares that are truly in [SMALL, MOST] are therefore all among the k, and each is missed with probability ALPHA / k
    at most. A share outside is misread only from the wrong side of SMALL, with half that probability: a directional
    error of Holm's procedure, for which Shaffer (1980, Annals of Statistics 8) has the proof where statistics are
    independent. For shares with conditions in common the tests simulate it.
    """
    count = found.above.shape[-1]
    unread = np.ones(found.above.shape, bool)
    level = np.full(found.above.shape, 1 - ALPHA / count)
    while True:
        low, high = fieller(found, level)
        reading = words(found, low, high)
        still = unread & (reading != FINAL[0]) & (reading != FINAL[1])
        if (still == unread).all():
            return Readings(reading, low, high, level)
        unread = still
        level = np.where(unread, 1 - ALPHA / np.maximum(unread.sum(-1, keepdims=True), 1), level)


def read_shares(means: Means, shares: Sequence[Share], *, rule: Rule = read) -> list[ShareEstimate]:
    """Every share of a family, read by the rule; all of the family at once, since it is what is corrected for.

    means: as `condition_means` gives them. The sign of the gap is not judged: where higher is better, `gap` should be
    positive.
    """
    found = ratios(means, shares)
    result, (low, high) = rule(found), fieller(found)
    half = stats.t.ppf(1 - ALPHA / 2, found.df(of_gap=True)) * np.sqrt(found.covariance()[2])
    numbers = {
        "value": found.value, "se": found.se, "low": low, "high": high,
        "family_low": result.low, "family_high": result.high, "level": result.level,
        "p": p_value(found), "df": found.df(),
        "gap": found.below, "gap_low": found.below - half, "gap_high": found.below + half,
    }  # fmt: skip
    estimates = []
    for index, share in enumerate(shares):
        own = {name: float(array[index]) for name, array in numbers.items()}
        reading: Reading = result.reading[index].item()
        note = _note(means, share)
        if reading == "no gap":
            note = NO_GAP_IN_FAMILY if own["low"] == own["low"] else "no gap"
        if note == "no gap":
            own |= dict.fromkeys(("value", "se", "p", "df"), np.nan)
        estimates.append(ShareEstimate(share.name, **own, reading=reading, note=note))
    return estimates


def share_table(found: Sequence[ShareEstimate], **about: object) -> pd.DataFrame:
    """All numbers of a family as a long table: the columns of `about`, effect, reading, quantity, value."""
    return table([row for share in found for row in share.rows(**about)])


@dataclass(frozen=True)
class BootstrapInterval:
    """A ratio, the standard deviation of its draws, and their percentiles."""

    value: float
    se: float
    low: float
    high: float


def bootstrap(
    outcomes: Mapping[str, np.ndarray], share: Share, *, draws: int = 4000, seed: int = 0, level: float = 1 - ALPHA
) -> BootstrapInterval:
    """The two-way percentile bootstrap of a share: a check on Fieller's interval, which is the one that is read.

    Every draw takes seeds with replacement within each condition, and test images with replacement, the same ones for
    all conditions (Owen 2007). With n seeds it finds (n - 1) / n of their variance, and it knows no t: its interval is
    too short for few seeds.

    Args:
        outcomes: As for `condition_means`, all finite.
        share: The ratio.
        draws: How many.
        seed: Of this function's own generator.
        level: Of the interval.
    """
    arrays = _arrays({name: outcomes[name] for name in share.conditions})
    images, generator = _images(arrays), np.random.default_rng(seed)
    rows = np.concatenate([array.reshape(len(array), -1) for array in arrays.values()]).astype(float)
    weights = np.zeros((2, draws, len(rows)))
    start = 0
    for name, array in arrays.items():
        counts = generator.multinomial(len(array), np.full(len(array), 1 / len(array)), draws) / len(array)
        for side, contrast in enumerate((share.above, share.below)):
            weights[side, :, start : start + len(array)] = contrast.get(name, 0.0) * counts
        start += len(array)
    means = _resampled_images(rows, draws, generator) if images else np.broadcast_to(rows[:, 0], (draws, len(rows)))
    above, below = (weights * means).sum(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = above / below
    low, high = np.nanquantile(ratio, [(1 - level) / 2, (1 + level) / 2])
    value = ratios(condition_means(arrays), [share]).value.item()
    return BootstrapInterval(value, float(np.std(ratio)), float(low), float(high))


def power(
    means: Means, shares: Sequence[Share], *, worlds: int = 2000, seed: int = 0, rule: Rule = read
) -> pd.DataFrame:
    """How often the rule gives each reading where the true share is known.

    In each simulated world every condition has its observed n; its seeds' outcomes are normal with its observed
    deviation, and the means are moved together by images with the observed covariance. The condition means are the
    observed ones, but those conditions that stand above the line alone are shifted along their weights, so that one
    share has the wanted value at the observed gap; another share moves only where it has such a condition in common.
    Whatever the others do, the level at which the share is read is between 1 - ALPHA / K and 1 - ALPHA.

    Args:
        means: As `condition_means` gives them.
        shares: The family.
        worlds: How many; the same errors serve all true shares.
        seed: Of this function's own generator.
        rule: What is tested.

    Returns:
        A long table: amount (the true share: the keys of RIGHT), effect (the share's name), count (worlds), reading,
        quantity ("probability"), value; a row for each of READINGS.

    Raises ValueError for a share all of whose conditions are in its denominator.
    """
    errors, variances = _simulated_errors(means, worlds, np.random.default_rng(seed))
    rows = []
    for index, share in enumerate(shares):
        for truth in RIGHT:
            world = replace(means, means=_shifted(means, share, truth) + errors, seed_variances=variances)
            reading = rule(ratios(world, shares)).reading[:, index]
            about = {"effect": share.name, "amount": truth, "count": worlds, "quantity": "probability"}
            rows += [{**about, "reading": word, "value": float(np.mean(reading == word))} for word in READINGS]
    return table(rows)


def meets_power(found: pd.DataFrame, *, truths: Sequence[float] = (0.0, 1.0), least: float = POWER) -> bool:
    """Whether every share is read right with at least this probability at each of these true shares.

    found: as `power` gives it. A table that lacks one of them does not meet it.
    """
    right = found[found["reading"] == found["amount"].map(RIGHT)]
    by_share = right.pivot(index="effect", columns="amount", values="value").reindex(columns=list(truths))
    return len(by_share) > 0 and bool((by_share >= least).to_numpy().all())


def seed_correlation(first: np.ndarray, second: np.ndarray) -> tuple[float, int]:
    """Pearson's correlation of two conditions' outcomes by seed, in the same order, and the number of seeds.

    (n, m) as for `condition_means` are averaged over images. nan under three seeds, or where one does not vary.
    """
    pairs = np.array([array if array.ndim == 1 else array.mean(1) for array in map(np.asarray, (first, second))], float)
    pairs = pairs[:, np.isfinite(pairs).all(0)]
    enough = pairs.shape[1] >= 3 and bool((np.ptp(pairs, axis=1) > 0).all())
    return float(np.corrcoef(pairs)[0, 1]) if enough else np.nan, pairs.shape[1]


def _arrays(outcomes: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: np.asarray(array) for name, array in outcomes.items()}


def _images(arrays: Mapping[str, np.ndarray]) -> int:
    """The number of test images that all conditions share, 0 where a run gives one number."""
    shapes = {array.shape[1:] for array in arrays.values()}
    if len(shapes) != 1 or len(shape := shapes.pop()) > 1 or shape == (1,) or any(not a.size for a in arrays.values()):
        found = {name: array.shape for name, array in arrays.items()}
        raise ValueError(
            f"outcomes have the shapes {found}, but all must be (seeds,), or (seeds, images) of the same images"
        )
    return shape[0] if shape else 0


def _square_root(covariance: np.ndarray) -> np.ndarray:
    """A matrix whose product with its transpose is the covariance, which may be singular."""
    values, vectors = np.linalg.eigh(covariance)
    return vectors * np.sqrt(np.maximum(values, 0))


def _load(weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    """(..., K, C): the products of weights (K, C) and values (..., C); 0 at weight 0, also where the value is nan."""
    return np.where(weights != 0, weights * values[..., None, :], 0.0)


def _note(means: Means, share: Share) -> str:
    """Why a share has no interval, whatever its gap."""
    used = [means.names.index(name) for name in share.conditions]
    if np.isnan(means.means[used]).any():
        return NOT_FINITE
    if np.isnan(means.seed_variances[used]).any():
        return TOO_FEW
    return ""


def _resampled_images(rows: np.ndarray, draws: int, generator: np.random.Generator, chunk: int = 250) -> np.ndarray:
    """(draws, rows): the mean of each row over images drawn with replacement, in each draw the same for all rows."""
    images, parts = rows.shape[1], []
    for start in range(0, draws, chunk):
        size = min(chunk, draws - start)
        drawn = generator.integers(images, size=(size, images)) + images * np.arange(size)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=size * images).reshape(size, images)
        parts.append(counts @ rows.T / images)
    return np.concatenate(parts)


def _simulated_errors(means: Means, worlds: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Of each world and condition, (worlds, C) each: the error of its mean, and the variance over its drawn seeds."""
    errors = generator.standard_normal((worlds, len(means.names))) @ _square_root(means.image_covariance).T
    variances = np.full(errors.shape, np.nan)
    for index, (count, variance) in enumerate(zip(means.seeds, means.seed_variances, strict=True)):
        drawn = generator.standard_normal((worlds, int(count))) * np.sqrt(variance)
        errors[:, index] += drawn.mean(1)
        if count >= 3:
            variances[:, index] = drawn.var(axis=1, ddof=1)
    return errors, variances


def _shifted(means: Means, share: Share, truth: float) -> np.ndarray:
    """(C,): the means, with those conditions that stand above the line alone moved so that the share is `truth`."""
    above, below = (np.array([side.get(name, 0.0) for name in means.names]) for side in (share.above, share.below))
    alone = np.where(below == 0, above, 0.0)
    if not alone.any():
        raise ValueError(f"{share.name}: every condition is in the denominator; no mean can be shifted at a fixed gap")
    numerator, gap = (float(_load(weights[None], means.means).sum()) for weights in (above, below))
    return means.means + alone * (truth * gap - numerator) / (alone**2).sum()
