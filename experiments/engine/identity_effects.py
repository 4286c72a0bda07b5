"""Is the identity harder for plain stacks, does insertion do harm, do residuals go to zero? With fixed margins."""

import math

import numpy as np
import pandas as pd

from experiments.engine.effects import Estimate, decide, estimate, outcome_table
from experiments.engine.recovery import Comparison, compare, comparison_table
from probes.tables import table

FACTOR = 2.0  # errors of copying that differ by less are alike
NEAR_ZERO = 0.1  # of its input's norm: a smaller change by a block is near the identity
FLOOR = 1e-12  # of relative squared errors: float32 tells none below from 0
KEYS = ["arm", "depth_total", "effect"]
Insertion = tuple[str, str, int]  # arm, kind, layers with the inserted blocks


def best_rates(outcomes: pd.DataFrame) -> pd.DataFrame:
    """Of each arm and depth the rate (effect) with the least validation error: arm, depth_total, effect.

    The mean over seeds is that of the logarithms. Where a seed diverged, a rate is left to those with more seeds.
    """
    rows = outcomes[(outcomes["split"] == "validation") & (outcomes["quantity"] == "error")]
    logs = rows.assign(value=np.log10(rows["value"].clip(lower=FLOOR)))
    of_rate = logs.groupby(KEYS)["value"].agg(["mean", "count"]).reset_index()
    ordered = of_rate.sort_values(["count", "mean"], ascending=[False, True])
    return ordered.drop_duplicates(KEYS[:2])[KEYS].sort_values(KEYS[:2]).reset_index(drop=True)


def copying_table(tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Copying at the best rates: arm, depth_total, seed, effect, epoch, split, quantity, value.

    quantity: `error`, relative, on validation images after each epoch and on test images first and last; `change`,
    first and last, as `mean_changes` gives it.
    """
    tables = {name: rows[rows["experiment"] == "copying"] for name, rows in tables.items()}
    last = tables["curves"]["epoch"].max()
    ends = tables["outcomes"].assign(epoch=last)
    errors = pd.concat([tables["starts"], tables["curves"], ends[ends["split"] == "test"]])
    errors = errors[(errors["quantity"] == "error") & (errors["split"] != "train")]
    whole = pd.concat([errors, mean_changes(tables["blocks"])], ignore_index=True)
    return whole.merge(best_rates(tables["outcomes"]), on=KEYS)[
        ["arm", "depth_total", "seed", "epoch", "split", "effect", "quantity", "value"]
    ]


def mean_changes(blocks: pd.DataFrame) -> pd.DataFrame:
    """The mean over blocks of what each changes, a row a cell and epoch, with quantity `change`: ‖F(x)‖ / ‖x‖ where the
    shortcut's value goes forward, ‖B(x) - x‖ / ‖x‖ where it does not."""
    keys = ["experiment", *KEYS, "seed", "epoch"]
    wide = blocks.pivot_table(index=[*keys, "block"], columns="quantity", values="value")
    change = wide["distance"] if "ratio" not in wide else wide["ratio"].fillna(wide["distance"])
    return change.groupby(keys).mean().reset_index(name="value").assign(quantity="change")


def harder(copying: pd.DataFrame, *, than: str = "residual") -> dict[int, Estimate]:
    """By depth: log10 of the plain stack's test error over that of another arm at the end, paired by seed."""
    rows = copying[(copying["quantity"] == "error") & (copying["split"] == "test") & (copying["epoch"] > 0)]
    logs = rows.assign(value=np.log10(rows["value"].clip(lower=FLOOR)))
    wide = logs.pivot_table(index=["depth_total", "seed"], columns="arm", values="value")
    paired = wide.reindex(columns=["plain", than]).dropna()
    return {
        int(str(depth)): estimate((of_depth["plain"] - of_depth[than]).to_numpy())
        for depth, of_depth in paired.groupby(level="depth_total")
    }


def is_harder(found: Estimate) -> str:
    """What the interval of one depth says."""
    return decide(found, math.log10(FACTOR), ("harder", "not harder"))


def insertions(outcomes: pd.DataFrame, test_size: int) -> dict[Insertion, Comparison]:
    """Each deeper network against the shallow one that went on as well, paired by seed."""
    rows = outcomes[outcomes["experiment"] == "insertion"]
    found: dict[Insertion, Comparison] = {}
    for arm, of_arm in rows.groupby("arm", sort=False):
        control = outcome_table(of_arm[of_arm["effect"] == "none"], test_size).assign(arm="none")
        for (kind, depth), deep in of_arm[of_arm["effect"] != "none"].groupby(["effect", "depth_total"]):
            cells = pd.concat([control, outcome_table(deep, test_size).assign(arm=str(kind))])
            layers = int(str(depth))
            found[str(arm), str(kind), layers] = compare(cells, str(kind), layers, ordinary="none")
    return found


def inserted_changes(blocks: pd.DataFrame) -> dict[Insertion, tuple[Estimate, Estimate]]:
    """Mean change by an inserted block, first and last, over the seeds that have both."""
    rows = mean_changes(blocks[blocks["experiment"] == "insertion"])
    found: dict[Insertion, tuple[Estimate, Estimate]] = {}
    for (arm, depth, kind), of_network in rows.groupby(KEYS, sort=False):
        wide = of_network.pivot_table(index="seed", columns="epoch", values="value").dropna()
        if len(wide.columns) == 2 and len(wide):
            first, last = (estimate(wide[epoch].to_numpy()) for epoch in sorted(wide.columns))
            found[str(arm), str(kind), int(str(depth))] = first, last
    return found


def insertion_table(
    found: dict[Insertion, Comparison], changes: dict[Insertion, tuple[Estimate, Estimate]]
) -> pd.DataFrame:
    """Both as a long table: arm, depth_total, effect, outcome, quantity (mean, low, high, n, margin, or seed with its
    draw), value. outcome: log train loss, test accuracy (each a change); change first, change last."""
    parts = []
    for (arm, kind, depth), each in found.items():
        if each.changes:
            rows = comparison_table([each], depth).drop(columns="path_length").assign(arm=arm, effect=kind)
            parts.append(rows)
        parts += [seeds(arm, kind, depth, outcome, of) for outcome, of in each.changes.items()]
    for (arm, kind, depth), both in changes.items():
        for outcome, of in zip(("change first", "change last"), both, strict=True):
            about = {"arm": arm, "depth_total": depth, "effect": kind, "outcome": outcome}
            numbers = {"mean": of.mean, "low": of.low, "high": of.high, "n": len(of.values), "margin": NEAR_ZERO}
            parts.append(table({**about, "quantity": name, "value": value} for name, value in numbers.items()))
            parts.append(seeds(arm, kind, depth, outcome, of))
    return table(pd.concat(parts).to_dict("records")) if parts else pd.DataFrame()


def seeds(arm: str, kind: str, depth: int, outcome: str, found: Estimate) -> pd.DataFrame:
    """The seeds' own values of an estimate."""
    about = {"arm": arm, "depth_total": depth, "effect": kind, "outcome": outcome, "quantity": "seed"}
    return table({**about, "draw": draw, "value": value} for draw, value in enumerate(found.values))
