"""The 2 x 2 factorial: shortcut forward x shortcut backward, effects paired by seed."""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from probes.tables import table

FACTORIAL = ("residual", "stop-gradient", "gradient-only", "plain")
# Each effect as the weights of the four arms. The whole shortcut is residual against plain, a simple effect one arm
# minus another; a main effect is the mean of two simple ones, the interaction what they do not share.
EFFECTS = {
    "whole shortcut": (1, 0, 0, -1),
    "forward, backward on": (1, 0, -1, 0),
    "forward, backward off": (0, 1, 0, -1),
    "backward, forward on": (1, -1, 0, 0),
    "backward, forward off": (0, 0, 1, -1),
    "forward, main effect": (0.5, 0.5, -0.5, -0.5),
    "backward, main effect": (0.5, -0.5, 0.5, -0.5),
    "interaction / gradient mismatch": (1, -1, -1, 1),
}
OUTCOMES = ("log train loss", "test accuracy", "logit test accuracy")
FLOOR, CEILING = 0.1, 0.95  # an arm within 0.1 of chance, or at 0.95 and above, hides effects


@dataclass(frozen=True)
class Estimate:
    """An effect: its value for each seed, their mean, and a 95 % paired t interval where there are three seeds."""

    values: tuple[float, ...]
    mean: float
    low: float
    high: float

    def rows(self, **about: object) -> list[dict[str, object]]:
        """Rows of a long table: quantity (mean | low | high | n) and value, beside what else is told."""
        numbers = {"mean": self.mean, "low": self.low, "high": self.high, "n": len(self.values)}
        return [{**about, "quantity": quantity, "value": value} for quantity, value in numbers.items()]


def estimate(values: np.ndarray, reach: float = math.inf) -> Estimate:
    """Mean and 95 % t interval of one effect over seeds.

    No interval (nan) under three seeds, or where it would leave the scale, beyond +-reach: then the points speak alone.
    A t interval, since a percentile bootstrap covers only about 75 % at n = 3.
    """
    mean, low, high = float(np.mean(values)), math.nan, math.nan
    if len(values) >= 3 and np.isfinite(values).all():
        half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
        if abs(mean - half) <= reach and abs(mean + half) <= reach:
            low, high = mean - float(half), mean + float(half)
    return Estimate(tuple(map(float, values)), mean, low, high)


def decide(found: Estimate, margin: float, words: tuple[str, str]) -> str:
    """The first word if the whole interval lies above the margin, the second if it lies below, else undecided."""
    return words[0] if found.low > margin else words[1] if found.high < margin else "undecided"


def errors_on_test(outcomes: pd.DataFrame) -> pd.DataFrame:
    """Each run's error on test images (from 0 to 1), in the end: the outcomes' columns."""
    rows = outcomes[(outcomes["split"] == "test") & (outcomes["quantity"] == "accuracy")]
    return rows.assign(quantity="error", value=1 - rows["value"])


def outcome_table(outcomes: pd.DataFrame, test_size: int) -> pd.DataFrame:
    """One row a cell (arm, depth_total, seed): the outcomes on which effects are measured, as columns.

    The logit is the empirical one, log((k + 1/2) / (n - k + 1/2)) for k right of n, finite at 0 and 1.
    """
    wide = outcomes.pivot_table(
        index=["depth_total", "seed", "arm"], columns=["split", "quantity"], values="value", dropna=False
    )
    right = wide["test", "accuracy"] * test_size
    with np.errstate(divide="ignore"):
        loss = np.log(wide["train", "loss"])
    logit = np.log((right + 0.5) / (test_size - right + 0.5))
    return pd.DataFrame(
        dict(zip(OUTCOMES, (loss, wide["test", "accuracy"], logit), strict=True)), index=wide.index
    ).reset_index()


def effects(cells: pd.DataFrame, depth: int, outcome: str) -> dict[str, Estimate]:
    """Every effect on one outcome at one depth; {} if there is none.

    All are taken over the same seeds: those whose four arms finished with every outcome finite.
    """
    at_depth = cells[cells["depth_total"] == depth]
    finite = at_depth[np.isfinite(at_depth[list(OUTCOMES)].to_numpy()).all(1)]
    arms = finite.pivot(index="seed", columns="arm", values=outcome).reindex(columns=list(FACTORIAL)).dropna()
    if arms.empty:
        return {}
    return {
        name: estimate(
            arms.to_numpy() @ np.array(weights),
            reach=sum(abs(w) for w in weights) / 2 if outcome == "test accuracy" else math.inf,
        )
        for name, weights in EFFECTS.items()
    }


def effect_table(cells: pd.DataFrame) -> pd.DataFrame:
    """All effects as a long table: depth_total, outcome, effect, quantity (mean | low | high | n), value."""
    rows = []
    for depth in sorted(cells["depth_total"].unique()):
        for outcome in OUTCOMES:
            for effect, found in effects(cells, depth, outcome).items():
                rows += found.rows(depth_total=depth, outcome=outcome, effect=effect)
    return table(rows) if rows else pd.DataFrame(columns=["depth_total", "outcome", "effect", "quantity", "value"])


def flags(cells: pd.DataFrame, depth: int, classes: int) -> dict[str, str]:
    """The arms of one depth whose mean test accuracy is at the floor (chance) or at the ceiling."""
    means = cells[cells["depth_total"] == depth].groupby("arm")["test accuracy"].mean()
    found = {}
    for arm, accuracy in means.items():
        if accuracy <= 1 / classes + FLOOR:
            found[str(arm)] = "floor"
        elif accuracy >= CEILING:
            found[str(arm)] = "ceiling"
    return found
