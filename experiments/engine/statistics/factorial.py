"""The 2 x 2 factorial: shortcut forward x shortcut backward, effects paired by seed."""

import math

import numpy as np
import pandas as pd

from experiments.engine.statistics.estimates import Estimate, estimate
from experiments.engine.statistics.long_tables import select
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
FITTED = 0.99
"""Of the training set: a network that classifies more of it right has fitted it."""


def outcome_table(outcomes: pd.DataFrame, test_size: int, *, by: str = "arm") -> pd.DataFrame:
    """One row a run (depth_total, seed, and `by`, which tells what is compared): the outcomes on which effects are
    measured, as columns.

    The logit is the empirical one, log((k + 1/2) / (n - k + 1/2)) for k right of n, finite at 0 and 1.
    """
    wide = outcomes.pivot_table(
        index=["depth_total", "seed", by], columns=["split", "quantity"], values="value", dropna=False
    )
    right = wide["test", "accuracy"] * test_size
    with np.errstate(divide="ignore"):
        loss = np.log(wide["train", "loss"])
    logit = np.log((right + 0.5) / (test_size - right + 0.5))
    return pd.DataFrame(
        dict(zip(OUTCOMES, (loss, wide["test", "accuracy"], logit), strict=True)), index=wide.index
    ).reset_index()


def effects(runs: pd.DataFrame, depth: int, outcome: str, *, by: str = "arm") -> dict[str, Estimate]:
    """Every effect on one outcome at one depth; {} if there is none.

    All are taken over the same seeds: those whose four arms finished with every outcome finite.
    """
    at_depth = select(runs, depth_total=depth)
    finite = at_depth[np.isfinite(at_depth[list(OUTCOMES)].to_numpy()).all(1)]
    arms = finite.pivot(index="seed", columns=by, values=outcome).reindex(columns=list(FACTORIAL)).dropna()
    if arms.empty:
        return {}
    return {
        name: estimate(
            arms.to_numpy() @ np.array(weights),
            max_abs=sum(abs(w) for w in weights) / 2 if outcome == "test accuracy" else math.inf,
        )
        for name, weights in EFFECTS.items()
    }


def effect_table(runs: pd.DataFrame, *, by: str = "arm") -> pd.DataFrame:
    """All effects as a long table: depth_total, outcome, effect, quantity (mean | low | high | n), value."""
    rows = []
    for depth in sorted(runs["depth_total"].unique()):
        for outcome in OUTCOMES:
            for effect, found in effects(runs, depth, outcome, by=by).items():
                rows += found.rows(depth_total=depth, outcome=outcome, effect=effect)
    return table(rows) if rows else pd.DataFrame(columns=["depth_total", "outcome", "effect", "quantity", "value"])


def flags(runs: pd.DataFrame, depth: int, classes: int, *, by: str = "arm") -> dict[str, str]:
    """The arms of one depth whose mean test accuracy is at the floor (chance) or at the ceiling."""
    means = select(runs, depth_total=depth).groupby(by)["test accuracy"].mean()
    found = {}
    for arm, accuracy in means.items():
        if accuracy <= 1 / classes + FLOOR:
            found[str(arm)] = "floor"
        elif accuracy >= CEILING:
            found[str(arm)] = "ceiling"
    return found
