"""A number over seeds with its interval, and on which side of a margin it lies."""

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from scipy import stats

MARGIN = 0.02
"""Of test accuracy and test error: a smaller difference counts as none."""
Side = Literal["above", "below", "within", "undecided"]


@dataclass(frozen=True)
class Estimate:
    """A quantity's value for each seed, their mean, and a 95 % t interval where there are three seeds.

    clipped: whether the interval went beyond the scale, and ends where the scale does.
    """

    values: tuple[float, ...]
    mean: float
    low: float
    high: float
    clipped: bool = False

    def rows(self, **about: object) -> list[dict[str, object]]:
        """Rows of a long table: quantity (mean | low | high | n) and value, beside the columns of `about`."""
        numbers = {"mean": self.mean, "low": self.low, "high": self.high, "n": len(self.values)}
        return [{**about, "quantity": quantity, "value": value} for quantity, value in numbers.items()]


NO_ESTIMATE = Estimate((), math.nan, math.nan, math.nan)


def estimate(values: np.ndarray, max_abs: float = math.inf) -> Estimate:
    """Mean and 95 % t interval over seeds.

    A t interval, since a percentile bootstrap covers only about 75 % at n = 3.

    Args:
        values: One number a seed, (n,); paired differences for an effect.
        max_abs: The scale ends at +- this number.

    Returns:
        NO_ESTIMATE without values; no interval (nan) under three seeds; one that is clipped where it goes beyond the
        scale.
    """
    if len(values) == 0:
        return NO_ESTIMATE
    mean, low, high = float(np.mean(values)), math.nan, math.nan
    if len(values) >= 3 and np.isfinite(values).all():
        half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
        low, high = mean - float(half), mean + float(half)
    return clip(Estimate(tuple(map(float, values)), mean, low, high), -max_abs, max_abs)


def clip(found: Estimate, low: float, high: float) -> Estimate:
    """The estimate with its interval's ends within the scale from `low` to `high`, and marked where one was beyond.

    What is beyond is impossible, so that a clipped interval covers as often as the whole, and is read like any other.
    """
    if not (found.low < low or found.high > high):  # nan: no interval
        return found
    return replace(found, low=max(found.low, low), high=min(found.high, high), clipped=True)


def classify(found: Estimate, margin: float, *, low: float | None = None) -> Side:
    """The side of a margin on which the whole 95 % interval is.

    Args:
        found: An estimate; one without an interval is undecided.
        margin: The upper end of what counts as no difference.
        low: Its lower end; -margin if not given, and -inf for a one-sided question ("above" or not, which is "within").

    Returns:
        "above" the margin, "below" its lower end, "within" both, else "undecided".
    """
    low = -margin if low is None else low
    if found.low > margin:
        return "above"
    if found.high < low:
        return "below"
    return "within" if found.low >= low and found.high <= margin else "undecided"


def exceeds(found: Estimate, threshold: float) -> Literal["yes", "no", "undecided"]:
    """Whether the whole interval lies above a threshold ("yes") or not above it ("no")."""
    return {"above": "yes", "within": "no"}.get(classify(found, threshold, low=-math.inf), "undecided")  # type: ignore[return-value]
