"""What conditions come to: R between plain and residual networks of the same optimiser, and differences by seed."""

import math
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
import pandas as pd

from experiments.engine.command import check_choice
from experiments.engine.conditions import Condition
from experiments.engine.controls import NO_CONTROL
from experiments.engine.effects import Estimate, estimate, outcome_table
from experiments.engine.score import Recovery, recovery
from experiments.engine.settings import check_each_once
from probes.tables import table

SCORED = ("log train loss", "test error")  # on which R is taken: the less, the better
MARGIN = 0.02  # of test accuracy: a smaller difference is none
NONE = Estimate((), math.nan, math.nan, math.nan)
NOTHING = Recovery(math.nan, math.nan, math.nan, NONE, "no seed finished")
Key = tuple[str, int, str]  # condition, depth, outcome
Answer = Literal["yes", "no", "undecided"]
Side = Literal["above", "below", "within", "undecided"]


def reference(condition: Condition, among: Iterable[Condition], arm: str) -> Condition:
    """The arm as it is, of the same optimiser and network; raises ValueError where it is not among the conditions."""
    like = condition.optimiser, condition.network
    for other in among:
        if other.arm == arm and other.control == NO_CONTROL and (other.optimiser, other.network) == like:
            return other
    raise ValueError(f"{condition.name!r} needs {arm!r} under {condition.optimiser} beside it: add that condition")


def choose(names: Sequence[str], among: Sequence[Condition], always: Iterable[str]) -> tuple[Condition, ...]:
    """The conditions of those names, those of `always`, and the plain and residual networks that R needs; all if no
    name is given. Raises BadInput for a name that there is not."""
    if not names:
        return tuple(among)
    check_each_once("--conditions", names)
    for name in names:
        check_choice("--conditions", name, tuple(condition.name for condition in among))
    chosen = [condition for condition in among if condition.name in {*names, *always}]
    needed = [reference(condition, among, arm) for condition in chosen for arm in ("plain", "residual")]
    return tuple(condition for condition in among if condition in [*chosen, *needed])


def condition_table(outcomes: pd.DataFrame, test_size: int) -> pd.DataFrame:
    """One row a cell: depth_total, seed, arm (the condition's name), and the outcomes as columns."""
    cells = outcome_table(outcomes.assign(arm=outcomes["control"]), test_size)
    return cells.assign(**{"test error": 1 - cells["test accuracy"]})


def by_seed(cells: pd.DataFrame, depth: int, names: Sequence[str], outcome: str) -> np.ndarray:
    """One outcome of several conditions, (names, seeds): the seeds in which all of them ended finite."""
    at_depth = cells[cells["depth_total"] == depth]
    wide = at_depth.pivot(index="seed", columns="arm", values=outcome).reindex(columns=list(names))
    return wide.replace([np.inf, -np.inf], np.nan).dropna().to_numpy().T


def scores(cells: pd.DataFrame, conditions: Sequence[Condition], depths: Sequence[int]) -> dict[Key, Recovery]:
    """R of every condition against plain and residual networks of its own optimiser, at each depth."""
    found: dict[Key, Recovery] = {}
    for depth in depths:
        for condition in conditions:
            plain, residual = (reference(condition, conditions, arm).name for arm in ("plain", "residual"))
            for outcome in SCORED:
                values = by_seed(cells, depth, list(dict.fromkeys([plain, condition.name, residual])), outcome)
                row = {plain: 0, residual: -1}.get(condition.name, 1)
                found[condition.name, depth, outcome] = (
                    recovery(values[0], values[row], values[-1]) if values.size else NOTHING
                )
    return found


def score_table(found: dict[Key, Recovery], conditions: Sequence[Condition]) -> pd.DataFrame:
    """All R as a long table: arm, control, depth_total, outcome, quantity, value.

    quantity: R, R low, R high (nan where there is no degradation to explain, or fewer than three seeds); gap, gap low,
    gap high: plain - residual; n.
    """
    arms = {condition.name: condition.arm for condition in conditions}
    rows = []
    for (name, depth, outcome), each in found.items():
        about = {"arm": arms[name], "control": name, "depth_total": depth, "outcome": outcome}
        numbers = {"R": each.mean, "R low": each.low, "R high": each.high, "gap": each.gap.mean}
        numbers |= {"gap low": each.gap.low, "gap high": each.gap.high, "n": len(each.gap.values)}
        rows += [{**about, "quantity": quantity, "value": value} for quantity, value in numbers.items()]
    return table(rows)


def difference(cells: pd.DataFrame, depth: int, more: str, less: str, outcome: str = "test accuracy") -> Estimate:
    """One condition minus another, paired by seed; without values where no seed has both."""
    values = by_seed(cells, depth, [more, less], outcome)
    if more == less or values.size == 0:
        return NONE
    return estimate(values[0] - values[1], reach=1)


def exceeds(found: Estimate, margin: float = MARGIN) -> Answer:
    """Whether the whole 95 % interval of a difference lies above the margin, or below it."""
    return "yes" if found.low > margin else "no" if found.high < margin else "undecided"


def side(found: Estimate, margin: float = MARGIN) -> Side:
    """Where the whole 95 % interval of a difference lies: above the margin, below its negative, or within both."""
    if found.low > margin:
        return "above"
    if found.high < -margin:
        return "below"
    return "within" if found.low >= -margin and found.high <= margin else "undecided"
