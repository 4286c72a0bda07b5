"""How much of the gap between plain and residual networks an arm closes, paired by seed."""

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats

from experiments.engine.effects import Estimate, estimate

NONE_TO_EXPLAIN = "no degradation to explain"


@dataclass(frozen=True)
class Recovery:
    """R = (plain - arm) / (plain - residual), errors or losses: 0 as bad as plain, 1 as good as residual."""

    mean: float
    low: float
    high: float
    gap: Estimate
    """plain - residual, by seed."""
    note: str = ""
    """Why there is no R, or no interval."""


def recovery(plain: np.ndarray, arm: np.ndarray, residual: np.ndarray) -> Recovery:
    """R as the ratio of mean differences over seeds, with Fieller's 95 % interval (1954).

    The three hold one outcome (the less, the better) of the same seeds in the same order. R is reported where there is
    degradation: where the whole paired t interval of plain - residual lies above 0. The interval is the set of R for
    which a paired t test does not reject mean(plain - arm) = R * mean(plain - residual); it has two ends whenever R is
    reported, since both rest on the same t. Under three seeds there is neither.
    """
    above, gap = plain - arm, estimate(plain - residual)
    if not gap.low > 0:  # nan under three seeds
        why = NONE_TO_EXPLAIN if len(plain) >= 3 else "fewer than three seeds"
        return Recovery(math.nan, math.nan, math.nan, gap, why)
    ratio = float(above.mean() / gap.mean)
    low, high = fieller(above, plain - residual)
    return Recovery(ratio, low, high, gap)


def fieller(above: np.ndarray, below: np.ndarray, *, level: float = 0.95) -> tuple[float, float]:
    """The ends of the interval of mean(above) / mean(below), of paired values; below's mean must differ from 0 at that
    level.

    The roots R of (mean(above) - R mean(below))² = t² var(above - R below) / n.
    """
    n = len(above)
    t = stats.t.ppf((1 + level) / 2, n - 1)
    (va, vab), (_, vb) = np.cov(above, below) * t**2 / n
    a, b, c = below.mean() ** 2 - vb, above.mean() * below.mean() - vab, above.mean() ** 2 - va
    half = math.sqrt(max(b**2 - a * c, 0))
    return float((b - half) / a), float((b + half) / a)


def coverage(n: int, *, true: float, spread: float = 0.2, correlation: float = 0.5, runs: int = 4000) -> float:
    """How often Fieller's interval holds a known R, over simulated seeds: normal differences, the gap's mean 1 and
    standard deviation `spread`, the same for the arm's, correlated; runs without degradation do not count."""
    draws = np.random.default_rng(0)
    covariance = spread**2 * np.array([[1, correlation], [correlation, 1]])
    samples = draws.multivariate_normal([true, 1.0], covariance, size=(runs, n))
    held = [
        low <= true <= high
        for above, below in samples.transpose(0, 2, 1)
        if estimate(below).low > 0
        for low, high in (fieller(above, below),)
    ]
    return float(np.mean(held))
