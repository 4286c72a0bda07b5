"""What was measured: the finished runs of all experiments in one table, and comparisons read from them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from experiments.engine.running.messages import BadInput
from experiments.engine.statistics.estimates import NO_ESTIMATE, Estimate, estimate
from experiments.engine.statistics.factorial import FITTED
from experiments.questions.verdict.verdict_file import Claim, Outcome, Source, Version

TABLES = ("learning_rates", "magnitude_or_direction", "budget", "dose_and_timing", "forward_statistics")
BOTH_FIT = "test accuracy where both fit"
KEYS = ["control", "depth_total", "budget", "seed"]


@dataclass(frozen=True)
class Reading:
    """One comparison in one version at one depth. word: better, equal, worse, undecided, or why nothing is read: `not
    run`, `no degradation`, `does not apply`."""

    version: Version
    depth: int
    found: Estimate
    word: str
    seeds: tuple[int, ...] = ()
    """Those of the values, in order."""


def collect(folder: Path) -> pd.DataFrame:
    """All finished runs under a results folder: control, depth_total, budget, seed, log train loss, train accuracy,
    test accuracy. Raises BadInput where two experiments disagree on a run: they ran with other settings."""
    parts = [pd.read_csv(file) for name in TABLES if (file := folder / name / "outcomes.csv").is_file()]
    if (file := folder / "alignment" / "continued.csv").is_file():
        parts.append(continued(pd.read_csv(file)))
    if not parts:
        return pd.DataFrame(columns=[*KEYS, "log train loss", "train accuracy", "test accuracy"])
    rows = pd.concat(parts, ignore_index=True)
    values = rows.groupby([*KEYS, "split", "quantity"])["value"]
    if len(apart := values.nunique()[lambda counts: counts > 1]):
        control, depth, _, seed = apart.index[0][:4]
        raise BadInput(
            f"{folder}: experiments disagree on {control!r}, depth {depth}, seed {seed}: they ran with other settings. "
            "Run them again with the same ones (make answer)"
        )
    wide = values.first().unstack(["split", "quantity"])
    with np.errstate(divide="ignore"):
        loss = np.log(wide["train", "loss"])
    columns = {"train accuracy": wide["train", "accuracy"], "test accuracy": wide["test", "accuracy"]}
    return pd.DataFrame({"log train loss": loss, **columns}).reset_index()


def continued(rows: pd.DataFrame) -> pd.DataFrame:
    """Networks that went on, as conditions: "stop-gradient then residual"."""
    rows = rows[rows["then"].notna()]
    return rows.assign(control=rows["arm"] + " then " + rows["then"], budget=1)


def readings(runs: pd.DataFrame, claim: Claim, source: Source) -> Iterator[Reading]:
    """A claim's comparison in every version, at every depth at which it is asked."""
    for version in claim.versions:
        for depth in source.asked(version.depths):
            yield read(runs, claim, version, depth)


def read(runs: pd.DataFrame, claim: Claim, version: Version, depth: int) -> Reading:
    """The difference, this - than, and how it is read."""
    this, than = (of_condition(runs, version.arms[arm], depth, version.budget) for arm in (claim.this, claim.than))
    column = "test accuracy" if claim.outcome.name == BOTH_FIT else claim.outcome.name
    differences = (this[column] - than[column]).replace([np.inf, -np.inf], np.nan).dropna()
    if differences.empty:
        return Reading(version, depth, NO_ESTIMATE, "not run")
    if not degrades(runs, depth):
        return Reading(version, depth, NO_ESTIMATE, "no degradation")
    if claim.outcome.name == BOTH_FIT and not (fits(this) and fits(than)):
        return Reading(version, depth, NO_ESTIMATE, "does not apply")
    found = estimate(differences.to_numpy())  # also beyond +-1: the rule asks whether 0 is in it, whatever its length
    return Reading(version, depth, found, word_of(found, claim.outcome), tuple(differences.index))


def word_of(found: Estimate, outcome: Outcome) -> str:
    """better, worse, equal or undecided."""
    if found.low > -outcome.margin and found.high < outcome.margin:
        return "equal"
    excludes_zero = found.low > 0 or found.high < 0
    if excludes_zero and abs(found.mean) > outcome.margin:
        return "better" if (found.mean > 0) == (outcome.better == "higher") else "worse"
    return "undecided"


def of_condition(runs: pd.DataFrame, control: str, depth: int, budget: int) -> pd.DataFrame:
    """A condition's runs, by seed."""
    rows = runs[(runs["control"] == control) & (runs["depth_total"] == depth) & (runs["budget"] == budget)]
    return rows.set_index("seed")


def fits(rows: pd.DataFrame) -> bool:
    """Whether the whole interval of the training accuracy lies above what counts as fitted."""
    return estimate(rows["train accuracy"].to_numpy()).low > FITTED


def degrades(runs: pd.DataFrame, depth: int) -> bool:
    """Whether plain networks have a higher test error than residual ones, by the whole paired interval."""
    residual, plain = (of_condition(runs, arm, depth, 1)["test accuracy"] for arm in ("residual", "plain"))
    gap = (residual - plain).dropna().to_numpy()
    return len(gap) > 0 and estimate(gap).low > 0
