"""How fast a network learns: the first step at which the mean of its last losses is at or below a target."""

from collections.abc import Sequence

import pandas as pd

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


def _runs(losses: pd.DataFrame) -> list[str]:
    return [column for column in losses.columns if column not in MOMENT]
