"""How far an arm's gradient is from the true one, and what that costs: effects by seed, and one sentence.

The rules and their margins were fixed before any result was seen.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from experiments.engine.alignment import NETWORK
from experiments.engine.condition_scores import NONE, exceeds, side
from experiments.engine.continuation import true_arm
from experiments.engine.effects import Estimate, estimate
from experiments.engine.ending import show_estimate
from experiments.engine.first_order import uphill
from probes.tables import table

TURN = 0.1  # of the cosine: a smaller change is none
OFTEN = 0.05  # of the share of steps that go uphill
DOUBLED = math.log(2)  # of the log train loss
CELL = ["arm", "depth_total", "seed"]
Effects = dict[tuple[str, int, str], Estimate]  # by arm, depth and effect

# Of each arm by its seeds' numbers `own`, and those of the arm with the true gradient, `true` (see `numbers`).
EFFECTS = {
    "cosine, first": lambda own, true: own["cosine, first"],
    "cosine, last": lambda own, true: own["cosine, last"],
    "cosine, last - first": lambda own, true: own["cosine, last"] - own["cosine, first"],
    "log10 norm ratio, first": lambda own, true: own["log10 ratio, first"],
    "log10 norm ratio, last": lambda own, true: own["log10 ratio, last"],
    "log10 true norm, last - first": lambda own, true: own["log10 true, last"] - own["log10 true, first"],
    "uphill share": lambda own, true: own["uphill"],
    "uphill share, own - true": lambda own, true: own["uphill"] - true["uphill"],
    "log train loss from its end, own - true": lambda own, true: own["loss, own"] - own["loss, true"],
    "test accuracy from its end, own - true": lambda own, true: own["accuracy, own"] - own["accuracy, true"],
    "log train loss from the true end, own - true": lambda own, true: true["loss, own"] - true["loss, true"],
    "test accuracy from the true end, own - true": lambda own, true: true["accuracy, own"] - true["accuracy, true"],
}


def over_epochs(alignment: pd.DataFrame, steps: pd.DataFrame) -> pd.DataFrame:
    """The whole network's cosine after every epoch, and the share of each epoch's steps that go uphill."""
    cosines = alignment[(alignment["block"] == NETWORK) & (alignment["quantity"] == "cosine")]
    columns = [*CELL, "epoch", "quantity", "value"]
    return pd.concat([cosines[columns], uphill(steps, *CELL, "epoch")[columns]], ignore_index=True)


def effects_of(tables: dict[str, pd.DataFrame], arms: Sequence[str], depths: Sequence[int]) -> Effects:
    """Every effect on every arm at every depth, over the seeds that have it."""
    found: Effects = {}
    for arm in arms:
        by_cell = numbers(tables, arm)
        for depth in depths:
            own, true = (of_cells(by_cell, which, depth) for which in (arm, true_arm(arm)))
            for effect, take in EFFECTS.items():
                values = take(own, true).replace([np.inf, -np.inf], np.nan).dropna().to_numpy()
                found[arm, depth, effect] = estimate(values) if len(values) else NONE
    return found


def numbers(tables: dict[str, pd.DataFrame], arm: str) -> pd.DataFrame:
    """One row a cell (arm, depth_total, seed): what effects are made of. own, true: after going on in the arm, and in
    that of the true gradient."""
    rows = tables["alignment"][tables["alignment"]["block"] == NETWORK]
    moments = {"first": 0, "last": rows["epoch"].max()}
    wide = rows.set_index([*CELL, "epoch", "quantity"])["value"].unstack(["quantity", "epoch"])
    found: dict[str, Any] = {"uphill": uphill(tables["steps"], *CELL).set_index(CELL)["value"]}
    with np.errstate(divide="ignore"):
        for word, epoch in moments.items():
            found[f"cosine, {word}"] = wide["cosine", epoch]
            found[f"log10 ratio, {word}"] = np.log10(wide["norm ratio", epoch])
            found[f"log10 true, {word}"] = np.log10(wide["true norm", epoch])
        for word, then in {"own": arm, "true": true_arm(arm)}.items():
            found[f"loss, {word}"] = np.log(ended(tables, then, "train", "loss"))
            found[f"accuracy, {word}"] = ended(tables, then, "test", "accuracy")
    return pd.DataFrame(found)


def ended(tables: dict[str, pd.DataFrame], then: str, split: str, quantity: str) -> "pd.Series[float]":
    """An outcome of the networks that went on in an arm, by cell."""
    rows = tables.get("continued", pd.DataFrame(columns=[*CELL, "effect", "split", "quantity", "value"]))
    wanted = (rows["effect"] == f"then {then}") & (rows["split"] == split) & (rows["quantity"] == quantity)
    return rows[wanted].set_index(CELL)["value"].astype(float)


def of_cells(by_cell: pd.DataFrame, arm: str, depth: int) -> pd.DataFrame:
    """The rows of an arm at a depth, by seed."""
    levels = by_cell.index.get_level_values
    return by_cell[(levels("arm") == arm) & (levels("depth_total") == depth)].droplevel(["arm", "depth_total"])


def effect_table(found: Effects) -> pd.DataFrame:
    """The effects as a long table: mean, ends of the interval where there is one, n."""
    return table(
        row
        for (arm, depth, effect), each in found.items()
        for row in each.rows(arm=arm, depth_total=depth, effect=effect)
    )


def sentence(found: Effects, arms: Sequence[str], depth: int, title: str) -> str:
    """What each arm's gradient is, as the deepest networks show it."""
    return (
        f"{title}, depth {depth}. {' '.join(of_arm(found, arm, depth) for arm in arms)} The whole 95 % interval "
        f"counts: of a change of the cosine against {TURN}, of a share of steps against {OFTEN}, of a train loss "
        f"against twice as much; not corrected for their number, {4 * len(arms)}. One data set, one budget, each "
        "arm's best rate."
    )


def of_arm(found: Effects, arm: str, depth: int) -> str:
    """What one arm's gradient is."""
    own = {effect: found[arm, depth, effect] for effect in EFFECTS}
    first, turn = own["cosine, first"], own["cosine, last - first"]
    share, more = own["uphill share"], own["uphill share, own - true"]
    if not turn.values or not share.values:
        return f"{arm}: no seed has finished."
    turns = {"above": "turns towards the true one", "below": "turns away from it", "within": "keeps its angle"}
    oftener = {"yes": "uphill more often than the true one", "no": "uphill no more often than the true one"}
    said = [
        f"its gradient has a cosine of {first.mean:.2f} with the true one at first and "
        f"{turns.get(side(turn, TURN), 'whether it turns is undecided')} ({show_estimate(turn)})",
        f"its steps go {oftener.get(exceeds(more, OFTEN), 'uphill in an undecided share')} "
        f"({100 * share.mean:.0f} %; difference {show_estimate(more)})",
        f"where it ends, the true gradient {finds(own['log train loss from its end, own - true'])}",
        f"where the true one ends, it {loses(own['log train loss from the true end, own - true'])}",
    ]
    return f"{arm} (n = {len(turn.values)}): {'; '.join(said)}."


def finds(change: Estimate) -> str:
    """Whether the true gradient, at the arm's end, at least halves the loss that the arm itself goes on to."""
    words = {"yes": "goes further than its own", "no": "goes no further than its own"}
    word = words.get(exceeds(change, DOUBLED), "may or may not go further than its own (undecided)")
    return f"{word} (log train loss {show_estimate(change)})" if change.values else "was not followed"


def loses(change: Estimate) -> str:
    """Whether the arm's gradient, at the true one's end, at least doubles the loss that the true one goes on to."""
    words = {"yes": "does not stay", "no": "stays"}
    word = words.get(exceeds(change, DOUBLED), "may or may not stay (undecided)")
    return f"{word} (log train loss {show_estimate(change)})" if change.values else "was not followed"
