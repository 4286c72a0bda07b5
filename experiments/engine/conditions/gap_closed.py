"""Gap closed: how much of the gap between plain and residual networks a condition closes, paired by seed."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from scipy import stats

from experiments.engine.conditions.conditions import Condition, reference
from experiments.engine.statistics.estimates import NO_ESTIMATE, Estimate, estimate, exceeds
from experiments.engine.statistics.factorial import outcome_table
from experiments.engine.statistics.long_tables import select
from probes.tables import table

GAP_OUTCOMES = ("log train loss", "test error")
"""On which the gap is taken: the less, the better."""
HALF = 0.5
"""Of the gap: what closes more than half of it recovers, what closes less does not."""
NO_GAP = "no degradation to explain"
Key = tuple[str, int, str]
"""Condition, depth, outcome."""


@dataclass(frozen=True)
class GapClosed:
    """(plain - arm) / (plain - residual), of errors or losses: 0 as bad as plain, 1 as good as residual."""

    mean: float
    low: float
    high: float
    gap: Estimate
    """plain - residual, by seed."""
    note: str = ""
    """Why there is no number, or no interval."""

    @property
    def numbers(self) -> dict[str, float]:
        """By quantity: R and its interval, plain - residual (the gap) and its interval, and the number of seeds."""
        numbers = {"R": self.mean, "R low": self.low, "R high": self.high, "gap": self.gap.mean}
        return numbers | {"gap low": self.gap.low, "gap high": self.gap.high, "n": len(self.gap.values)}

    @property
    def recovers(self) -> Literal["yes", "no", "undecided"]:
        """Whether the whole interval lies above one half."""
        return exceeds(Estimate((), self.mean, self.low, self.high), HALF)


NOTHING = GapClosed(math.nan, math.nan, math.nan, NO_ESTIMATE, "no seed finished")


def gap_closed(plain: np.ndarray, arm: np.ndarray, residual: np.ndarray) -> GapClosed:
    """The gap closed as the ratio of mean differences over seeds, with Fieller's 95 % interval (1954).

    The three hold one outcome (the less, the better) of the same seeds in the same order. It is reported where there is
    degradation: where the whole paired t interval of plain - residual lies above 0. The interval is the set of R for
    which a paired t test does not reject mean(plain - arm) = R * mean(plain - residual); it has two ends whenever R is
    reported, since both rest on the same t. Under three seeds there is neither.
    """
    above, gap = plain - arm, estimate(plain - residual)
    if not gap.low > 0:  # nan under three seeds
        return GapClosed(math.nan, math.nan, math.nan, gap, NO_GAP if len(plain) >= 3 else "fewer than three seeds")
    low, high = fieller(above, plain - residual)
    return GapClosed(float(above.mean() / gap.mean), low, high, gap)


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


def condition_table(outcomes: pd.DataFrame, test_size: int) -> pd.DataFrame:
    """One row a run: depth_total, seed, control (the condition's name), and the outcomes as columns."""
    runs = outcome_table(outcomes, test_size, by="control")
    return runs.assign(**{"test error": 1 - runs["test accuracy"]})


def by_seed(runs: pd.DataFrame, depth: int, names: Sequence[str], outcome: str, *, by: str = "control") -> np.ndarray:
    """One outcome of several conditions, (names, seeds): the seeds in which all of them ended finite. by: the column of
    the names."""
    wide = select(runs, depth_total=depth).pivot(index="seed", columns=by, values=outcome)
    wide = wide.reindex(columns=list(names))
    return wide.replace([np.inf, -np.inf], np.nan).dropna().to_numpy().T


def gaps_closed(runs: pd.DataFrame, conditions: Sequence[Condition], depths: Sequence[int]) -> dict[Key, GapClosed]:
    """The gap that each condition closes at each depth, against plain and residual networks of its optimiser."""
    found: dict[Key, GapClosed] = {}
    for depth in depths:
        for condition in conditions:
            plain, residual = (reference(condition, conditions, arm).name for arm in ("plain", "residual"))
            for outcome in GAP_OUTCOMES:
                values = by_seed(runs, depth, list(dict.fromkeys([plain, condition.name, residual])), outcome)
                row = {plain: 0, residual: -1}.get(condition.name, 1)
                found[condition.name, depth, outcome] = (
                    gap_closed(values[0], values[row], values[-1]) if values.size else NOTHING
                )
    return found


def gap_table(found: dict[Key, GapClosed], conditions: Sequence[Condition]) -> pd.DataFrame:
    """All gaps closed as a long table: arm, control, depth_total, outcome, quantity, value.

    quantity: R, R low, R high (nan where there is no degradation to explain, or fewer than three seeds); gap, gap low,
    gap high: plain - residual; n.
    """
    arms = {condition.name: condition.arm for condition in conditions}
    rows = []
    for (name, depth, outcome), closed in found.items():
        about = {"arm": arms[name], "control": name, "depth_total": depth, "outcome": outcome}
        rows += [{**about, "quantity": quantity, "value": value} for quantity, value in closed.numbers.items()]
    return table(rows)


def difference(runs: pd.DataFrame, depth: int, more: str, less: str, outcome: str = "test accuracy") -> Estimate:
    """One condition minus another, paired by seed; without values where no seed has both."""
    values = by_seed(runs, depth, [more, less], outcome)
    if more == less or values.size == 0:
        return NO_ESTIMATE
    return estimate(values[0] - values[1], max_abs=1)


def differences(
    runs: pd.DataFrame, depths: Sequence[int], minus: Mapping[str, Mapping[str, str]]
) -> dict[int, dict[str, dict[str, Estimate]]]:
    """Differences in test accuracy, by depth, condition and title.

    minus: by title, the condition that is subtracted from each one that has such a difference.
    """
    names = dict.fromkeys(name for pairs in minus.values() for name in pairs)
    return {
        depth: {
            name: {
                title: difference(runs, depth, name, pairs[name]) if name in pairs else NO_ESTIMATE
                for title, pairs in minus.items()
            }
            for name in names
        }
        for depth in depths
    }
