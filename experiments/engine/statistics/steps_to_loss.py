"""How fast a network learns: the first step at which the mean of its last losses is at or below a target."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

MOMENT = ("step", "epoch", "value")  # every other column of a table of losses tells its runs apart


def trailing_means(losses: pd.DataFrame, *, window: int) -> pd.DataFrame:
    """Each run's loss as the mean of its last `window` steps: the table, without its first window - 1 steps.

    losses: step, split, quantity, value, and whatever else tells runs apart (arm, depth_total, seed, ...), one row a
    step, as `train_run` writes them.
    """
    ordered = losses.sort_values("step", kind="stable", ignore_index=True)
    means = ordered.groupby(_runs(losses), dropna=False)["value"].rolling(window).mean()
    by_row = means.droplevel(list(range(means.index.nlevels - 1)))
    return ordered.assign(value=by_row).dropna(subset="value")


def steps_to_loss(losses: pd.DataFrame, targets: Sequence[float], *, window: int) -> pd.DataFrame:
    """The first step of each run at which the mean of the last `window` losses is at or below each target.

    losses: as for `trailing_means`. Returns a row for every run and target: the columns that tell runs apart, target,
    quantity ("steps"), value. A target that a run has not reached at its end has no value (nan): it is censored. A loss
    that falls and rises again counts as reached.
    """
    runs = _runs(losses)
    means = trailing_means(losses, window=window)
    all_runs = losses[runs].drop_duplicates()
    parts = []
    for target in targets:
        first = means[means["value"] <= target].groupby(runs, dropna=False, as_index=False)["step"].min()
        found = all_runs.merge(first, how="left", on=runs).rename(columns={"step": "value"})
        parts.append(found.assign(target=target, quantity="steps", value=found["value"].astype(float)))
    return pd.concat(parts, ignore_index=True)


@dataclass(frozen=True)
class RestrictedDifference:
    """Mean of min(steps, budget) of one condition minus that of another: steps saved or lost within the budget.

    It is not a difference of steps where runs are censored, but one of what they spend of the budget; `censored` and
    `n` count the runs of the two conditions.
    """

    budget: int
    mean: float
    low: float
    high: float
    censored: tuple[int, int]
    n: tuple[int, int]


def restricted_difference(first: np.ndarray, second: np.ndarray, *, budget: int) -> RestrictedDifference:
    """The difference of restricted mean steps, with Welch's 95 % interval (Royston & Parmar 2013, BMC Medical Research
    Methodology 13).

    first, second: (n,) steps of independent runs, nan where a run has not reached the target by the budget. No interval
    (nan) under three seeds in either.
    """
    pairs = [np.minimum(np.where(np.isnan(steps), budget, steps), budget) for steps in (first, second)]
    means, low, high = [float(steps.mean()) for steps in pairs], np.nan, np.nan
    if min(map(len, pairs)) >= 3:
        variances = [float(steps.var(ddof=1)) / len(steps) for steps in pairs]
        parts = sum(variance**2 / (len(steps) - 1) for variance, steps in zip(variances, pairs, strict=True))
        df = sum(variances) ** 2 / parts if parts else 1.0  # without variance the interval is a point
        half = float(stats.t.ppf(0.975, df)) * sum(variances) ** 0.5
        low, high = means[0] - means[1] - half, means[0] - means[1] + half
    censored = (int(np.sum(~(first <= budget))), int(np.sum(~(second <= budget))))
    return RestrictedDifference(budget, means[0] - means[1], low, high, censored, (len(first), len(second)))


def _runs(losses: pd.DataFrame) -> list[str]:
    return [column for column in losses.columns if column not in MOMENT]
