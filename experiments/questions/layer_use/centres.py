"""Shallow or deep? Each use of the blocks as one number: its centre of mass over depth."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from experiments.engine.effects import FLOOR, Estimate, decide, estimate
from probes.tables import table

DEFINITION = (
    "centre of mass over depth, 0 the first block, 1 the last: 0.5 is an even use (or noise), below it shallow. Costs: "
    "what a test error exceeds the whole network's by, negative ones counted as 0; gain: by how much a block betters "
    f"the best read-out before it. A network whose accuracy is within {FLOOR} of chance has no costs and no gain"
)

LEANINGS = {"shallow": "leans on its shallow blocks by", "deep": "on its deep blocks by", "undecided": "undecided by"}


@dataclass(frozen=True)
class Measure:
    """One use of the blocks: a quantity of the table of blocks, under these statistics, at the first or last epoch."""

    name: str
    quantity: str
    statistics: str = ""
    at_start: bool = False

    @property
    def needs_skill(self) -> bool:
        """Whether it compares test errors, which tell nothing of a network at chance."""
        return self.quantity in ("reset", "deleted", "read-out")


MEASURES = (
    Measure("weight movement", "movement"),
    Measure("gradient at initialisation", "gradient", at_start=True),
    Measure("gradient after training", "gradient"),
    Measure("reset cost", "reset", "re-estimated"),
    Measure("reset cost, BatchNorm kept", "reset", "kept"),
    Measure("lesion cost", "deleted", "re-estimated"),
    Measure("lesion cost, BatchNorm kept", "deleted", "kept"),
    Measure("read-out gain", "read-out"),
    Measure("attribution to branches", "attribution"),
)


def centre_of_mass(values: "pd.Series[float]", blocks: int) -> float:
    """sum(q_l * l / (blocks - 1)) / sum(q_l) of a quantity q by depth l, negative ones counted as 0.

    nan where that has no meaning: nothing is left, or a third of the blocks or more has no value.
    """
    mass = values.clip(lower=0).dropna()
    if blocks < 2 or len(mass) <= 2 / 3 * blocks or not np.isfinite(mass).all() or mass.sum() == 0:
        return math.nan
    return float((mass * mass.index).sum() / mass.sum() / (blocks - 1))


def used(rows: pd.DataFrame, measure: Measure, *, classes: int) -> "pd.Series[float]":
    """One network's quantity by depth, in which more is more use; empty where it has none."""
    if measure.needs_skill and _whole(rows, "kept") >= 1 - 1 / classes - FLOOR:
        return pd.Series(dtype=float)
    found = rows[rows["quantity"] == measure.quantity]
    if measure.statistics:
        found = found[found["statistics"] == measure.statistics]
    start = found["epoch"] == 0
    found = found[start if measure.at_start else ~start].set_index("depth")["value"].sort_index()
    if measure.quantity == "read-out":
        return -found.cummin().diff().loc[0:]
    return found - _whole(rows, measure.statistics) if measure.statistics else found


def _whole(rows: pd.DataFrame, statistics: str) -> float:
    found = rows[(rows["quantity"] == "whole") & (rows["statistics"] == statistics)]["value"]
    return float(found.iloc[0]) if len(found) else math.inf


def centres(blocks: pd.DataFrame, *, classes: int) -> pd.DataFrame:
    """Every network's centres of mass, where it has one: arm, depth_total, seed, outcome (the measure), quantity
    ("centre"), value."""
    rows: list[dict[str, object]] = []
    for (arm, depth_total, seed), network in blocks.groupby(["arm", "depth_total", "seed"], sort=False):
        count = int(network["depth"].max()) + 1
        about = {"arm": arm, "depth_total": depth_total, "seed": seed}
        for measure in MEASURES:
            value = centre_of_mass(used(network, measure, classes=classes), count)
            if math.isfinite(value):
                rows.append({**about, "outcome": measure.name, "quantity": "centre", "value": value})
    return table(rows)


def estimates(found: pd.DataFrame) -> dict[tuple[str, str], Estimate]:
    """Mean and 95 % t interval over seeds, by (arm, measure), cut at 0 and 1: no centre lies beyond."""
    result = {}
    for (arm, name), values in found.groupby(["arm", "outcome"], sort=False)["value"]:
        whole = estimate(values.to_numpy())
        low, high = np.clip([whole.low, whole.high], 0, 1)
        result[str(arm), str(name)] = replace(whole, low=float(low), high=float(high))
    return result


def estimate_table(found: dict[tuple[str, str], Estimate], depth: int) -> pd.DataFrame:
    """The estimates as a long table: arm, depth_total, outcome, quantity (mean | low | high | n), value."""
    return table(
        row for (arm, name), each in found.items() for row in each.rows(arm=arm, depth_total=depth, outcome=name)
    )


def lean(found: Estimate) -> str:
    """shallow or deep, if the whole interval lies on one side of 0.5."""
    return decide(found, 0.5, ("deep", "shallow"))


def sentence(found: dict[tuple[str, str], Estimate], arms: Sequence[str], *, title: str, depth: int) -> str:
    """On which blocks the given arms lean, by which measure (costs with BatchNorm estimated anew)."""
    counts = sorted({len(each.values) for (arm, _), each in found.items() if arm in arms})
    said = "; ".join(f"{arm} {_leanings(found, arm)}" for arm in arms)
    n = " to ".join(map(str, counts[:1] + counts[1:][-1:])) or "0"
    few = "; fewer than three seeds decide nothing" if max(counts, default=0) < 3 else ""
    return f"{title}, depth {depth}, n = {n}: {said}{few}. One data set, one learning rate, one budget."


def _leanings(found: dict[tuple[str, str], Estimate], arm: str) -> str:
    names = [measure.name for measure in MEASURES if measure.statistics != "kept" and (arm, measure.name) in found]
    parts = []
    for which, words in LEANINGS.items():
        here = [f"{name} ({found[arm, name].mean:.2f})" for name in names if lean(found[arm, name]) == which]
        if here:
            parts.append(f"{words} {', '.join(here)}")
    return ", ".join(parts) or "has nothing to measure"
