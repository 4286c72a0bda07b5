"""Is ordinary training recovered? Limited training against it, paired by seed, with margins set before any run."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from experiments.engine.effects import Estimate, estimate
from probes.tables import table

# How much worse still counts as ordinary: a train loss at most doubled, a test accuracy at most 2 points lower.
MARGINS = {"log train loss": math.log(2), "test accuracy": 0.02}
WORSE = {"log train loss": 1, "test accuracy": -1}  # the sign of a change for the worse
DEFINITION = (
    "recovered: the whole 95 % paired t interval of the change from ordinary training lies within a doubled train loss "
    f"and a test accuracy lower by {MARGINS['test accuracy']}; falls short: that of one of the two lies wholly beyond, "
    "or a seed diverged"
)
Verdict = Literal["recovered", "undecided", "falls short"]


@dataclass(frozen=True)
class Comparison:
    """One arm against ordinary training: its limit, what changes in each outcome, over how many pairs, the verdict."""

    arm: str
    limit: int
    changes: dict[str, Estimate]
    verdict: Verdict

    @property
    def pairs(self) -> int:
        return len(self.changes["test accuracy"].values) if self.changes else 0

    @property
    def mean_is_ordinary(self) -> bool:
        """Whether the mean changes, at least, lie within the margins."""
        return bool(self.changes) and all(
            WORSE[outcome] * found.mean <= MARGINS[outcome] for outcome, found in self.changes.items()
        )


def compare(cells: pd.DataFrame, arm: str, limit: int, *, ordinary: str = "residual") -> Comparison:
    """The arm minus `ordinary`, paired by seed.

    cells: as `effects.outcome_table` gives them. A seed that ends finite in ordinary training and not in the arm makes
    the arm fall short, whatever the others do.
    """
    outcomes = list(MARGINS)
    finite = cells[np.isfinite(cells[outcomes].to_numpy()).all(1)].set_index("seed")
    here, there = finite[finite["arm"] == arm][outcomes], finite[finite["arm"] == ordinary][outcomes]
    change = (here - there).dropna()
    if change.empty:
        return Comparison(arm, limit, {}, "falls short" if len(there) else "undecided")
    changes = {
        outcome: estimate(change[outcome].to_numpy(), reach=1 if outcome == "test accuracy" else math.inf)
        for outcome in outcomes
    }
    verdicts = {judge(found, outcome) for outcome, found in changes.items()}
    if "falls short" in verdicts or len(change) < len(there):
        return Comparison(arm, limit, changes, "falls short")
    return Comparison(arm, limit, changes, "undecided" if "undecided" in verdicts else "recovered")


def judge(found: Estimate, outcome: str) -> Verdict:
    """What one outcome's interval says; where there is none (under three seeds), nothing is decided."""
    ends = [WORSE[outcome] * end for end in (found.low, found.high)]
    if max(ends) <= MARGINS[outcome]:  # false where they are nan
        return "recovered"
    return "falls short" if min(ends) > MARGINS[outcome] else "undecided"


def comparison_table(comparisons: Sequence[Comparison], depth: int) -> pd.DataFrame:
    """All changes as a long table: arm, depth_total, outcome, path_length, quantity, value.

    quantity: mean | low | high | n | margin, the last being the change for the worse that still counts as ordinary.
    """
    rows = []
    for each in comparisons:
        for outcome, found in each.changes.items():
            row = {"arm": each.arm, "depth_total": depth, "outcome": outcome, "path_length": each.limit}
            margin = {"quantity": "margin", "value": WORSE[outcome] * MARGINS[outcome]}
            rows += [*found.rows(**row), {**row, **margin}]
    return table(rows)


def first_of_all(limits: Sequence[float], ok: Sequence[bool]) -> float | None:
    """The smallest limit from which on, up to the largest, all are ok; None if the largest is not."""
    first = None
    for limit, good in sorted(zip(limits, ok, strict=True), reverse=True):
        if not good:
            break
        first = limit
    return first


def sentence(comparisons: Sequence[Comparison], *, title: str, depth: int, blocks: int) -> str:
    """From which K on ordinary training is recovered, and what is not decided.

    comparisons: of the arms whose paths have at most K branches.
    """
    limits = [each.limit for each in comparisons]
    counts = sorted({each.pairs for each in comparisons} - {0})
    said = f"{title}, depth {depth} ({blocks} blocks), n = {' to '.join(map(str, counts[:1] + counts[1:][-1:])) or 0}: "
    first = first_of_all(limits, [each.verdict == "recovered" for each in comparisons])
    said += (
        f"ordinary training is recovered from K = {first} on"
        if first is not None
        else f"no K tested below {blocks} is shown to recover ordinary training from there on"
    )
    for verdict in ("undecided", "falls short"):
        which = [str(each.limit) for each in sorted(comparisons, key=lambda c: c.limit) if each.verdict == verdict]
        said += f"; {verdict} at K = {', '.join(which)}" * bool(which)
    means = first_of_all(limits, [each.mean_is_ordinary for each in comparisons])
    said += "; the mean changes stay within the margins " + (f"from K = {means} on" if means is not None else "nowhere")
    if max(counts, default=0) < 3:
        said += "; fewer than three seeds decide nothing"
    return said + ". One data set, one learning rate, one budget."
