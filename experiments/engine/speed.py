"""How fast a network learns: the first step at which its training loss is at or below a target, and who is faster."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from experiments.engine.effects import Estimate, estimate
from probes.tables import table

REFERENCE = "residual"
MOMENT = ("step", "epoch", "value")  # every other column of a table of losses tells its runs apart


def trailing_means(losses: pd.DataFrame, *, window: int) -> pd.DataFrame:
    """Each run's loss as the mean of its last `window` steps: the table, without its first window - 1 steps.

    losses: step, split, quantity, value, and whatever else tells runs apart (arm, depth_total, seed, ...), one row a
    step, as `train_cell` writes them.
    """
    ordered = losses.sort_values("step", kind="stable", ignore_index=True)
    means = ordered.groupby(_runs(losses), dropna=False)["value"].rolling(window).mean()
    by_row = means.droplevel(list(range(means.index.nlevels - 1)))
    return ordered.assign(value=by_row).dropna(subset="value")


def steps_to_loss(losses: pd.DataFrame, targets: Sequence[float], *, window: int) -> pd.DataFrame:
    """Of each run and target: the first step at which the mean of the last `window` losses is at or below the target.

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
class Comparison:
    """An arm of a network against residual. None where not every seed of both has a value: the mean of those that have
    one would flatter."""

    network: str
    arm: str
    ratios: dict[float, Estimate | None]
    """By target: how many times residual's steps the arm takes."""
    error: Estimate | None
    """Its test error minus residual's."""


def compare(
    steps: pd.DataFrame, errors: pd.DataFrame, *, networks: Sequence[str], arms: Sequence[str], seeds: Sequence[int]
) -> list[Comparison]:
    """Every arm but residual against it, paired by seed. errors: network, arm, seed, value."""

    def values(rows: pd.DataFrame, network: str, arm: str) -> "pd.Series[float]":
        of_arm = rows[(rows["network"] == network) & (rows["arm"] == arm)]
        return of_arm.set_index("seed")["value"].reindex(list(seeds))

    found = []
    for network in networks:
        for arm in [arm for arm in arms if arm != REFERENCE]:
            ratios = {
                target: ratio(*(values(steps[steps["target"] == target], network, each) for each in (arm, REFERENCE)))
                for target in steps["target"].unique().tolist()
            }
            change = values(errors, network, arm) - values(errors, network, REFERENCE)
            error = None if change.isna().any() else estimate(change.to_numpy(), reach=1)
            found.append(Comparison(network, arm, ratios, error))
    return found


def ratio(steps: "pd.Series[float]", reference: "pd.Series[float]") -> Estimate | None:
    """steps / reference, paired by seed: geometric mean, and the t interval of the logarithm, taken back."""
    logs = np.log((steps / reference).to_numpy())
    if np.isnan(logs).any():
        return None
    found = estimate(logs)
    mean, low, high = (float(np.exp(number)) for number in (found.mean, found.low, found.high))
    return Estimate(tuple(float(np.exp(value)) for value in found.values), mean, low, high)


def comparison_table(comparisons: Sequence[Comparison], depth: int) -> pd.DataFrame:
    """The comparisons as a long table: network, arm, depth_total, outcome ("steps ratio" at its target, "test error"),
    quantity (mean | low | high), value; none where there is nothing to compare."""
    rows: list[dict[str, object]] = []
    for each in comparisons:
        about = {"network": each.network, "arm": each.arm, "depth_total": depth}
        outcomes = [("steps ratio", target, found) for target, found in each.ratios.items()]
        for outcome, target, found in [*outcomes, ("test error", None, each.error)]:
            numbers = {} if found is None else {"mean": found.mean, "low": found.low, "high": found.high}
            about |= {"outcome": outcome, "target": target}
            rows += [{**about, "quantity": quantity, "value": value} for quantity, value in numbers.items()]
    return table(rows) if rows else pd.DataFrame(columns=["network", "arm", "outcome", "target", "quantity", "value"])


def _runs(losses: pd.DataFrame) -> list[str]:
    return [column for column in losses.columns if column not in MOMENT]
