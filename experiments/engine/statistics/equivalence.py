"""Is an arm as good as ordinary training? Paired by seed, with margins set before any run."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from experiments.engine.statistics.estimates import MARGIN, Estimate, classify, estimate
from probes.tables import table

# How much worse still counts as ordinary: a train loss at most doubled, a test accuracy at most 2 points lower.
MARGINS = {"log train loss": math.log(2), "test accuracy": MARGIN}
WORSE = {"log train loss": 1, "test accuracy": -1}  # the sign of a change for the worse
DEFINITION = (
    "recovered: the whole 95 % paired t interval of the change from ordinary training lies within a doubled train loss "
    f"and a test accuracy lower by {MARGINS['test accuracy']}; falls short: that of one of the two lies wholly beyond, "
    "or a seed diverged"
)
Reading = Literal["recovered", "undecided", "falls short"]


@dataclass(frozen=True)
class Comparison:
    """One arm against ordinary training: its limit, what changes in each outcome, over how many pairs, the reading."""

    arm: str
    limit: int
    changes: dict[str, Estimate]
    reading: Reading

    @property
    def pairs(self) -> int:
        return len(self.changes["test accuracy"].values) if self.changes else 0

    @property
    def mean_is_ordinary(self) -> bool:
        """Whether the mean changes, at least, lie within the margins."""
        return bool(self.changes) and all(
            WORSE[outcome] * found.mean <= MARGINS[outcome] for outcome, found in self.changes.items()
        )


def compare(runs: pd.DataFrame, arm: str, limit: int, *, ordinary: str = "residual", by: str = "arm") -> Comparison:
    """The arm minus `ordinary`, paired by seed.

    runs: as `factorial.outcome_table` gives them, compared by the column `by`. A seed that ends finite in ordinary
    training and not in the arm makes the arm fall short, whatever the others do.
    """
    outcomes = list(MARGINS)
    finite = runs[np.isfinite(runs[outcomes].to_numpy()).all(1)].set_index("seed")
    here, there = finite[finite[by] == arm][outcomes], finite[finite[by] == ordinary][outcomes]
    change = (here - there).dropna()
    if change.empty:
        return Comparison(arm, limit, {}, "falls short" if len(there) else "undecided")
    changes = {
        outcome: estimate(change[outcome].to_numpy(), max_abs=1 if outcome == "test accuracy" else math.inf)
        for outcome in outcomes
    }
    readings = {read(found, outcome) for outcome, found in changes.items()}
    if "falls short" in readings or len(change) < len(there):
        return Comparison(arm, limit, changes, "falls short")
    return Comparison(arm, limit, changes, "undecided" if "undecided" in readings else "recovered")


def read(change: Estimate, outcome: str) -> Reading:
    """The reading of one outcome's interval; undecided where there is none (under three seeds)."""
    low, high = sorted(WORSE[outcome] * end for end in (change.low, change.high))
    worse = Estimate(change.values, WORSE[outcome] * change.mean, low, high)
    words: dict[str, Reading] = {"above": "falls short", "within": "recovered"}
    return words.get(classify(worse, MARGINS[outcome], low=-math.inf), "undecided")


def comparison_table(comparisons: Sequence[Comparison], depth: int) -> pd.DataFrame:
    """All changes as a long table: arm, depth_total, outcome, path_length, quantity, value.

    quantity: mean | low | high | n | margin, the last being the change for the worse that still counts as ordinary.
    """
    rows = []
    for comparison in comparisons:
        for outcome, found in comparison.changes.items():
            row = {"arm": comparison.arm, "depth_total": depth, "outcome": outcome}
            row["path_length"] = comparison.limit
            margin = {"quantity": "margin", "value": WORSE[outcome] * MARGINS[outcome]}
            rows += [*found.rows(**row), {**row, **margin}]
    return table(rows)


def smallest_sufficient(limits: Sequence[float], ok: Sequence[bool]) -> float | None:
    """The smallest limit from which on, up to the largest, all are ok; None if the largest is not."""
    first = None
    for limit, good in sorted(zip(limits, ok, strict=True), reverse=True):
        if not good:
            break
        first = limit
    return first
