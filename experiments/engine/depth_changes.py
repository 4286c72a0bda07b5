"""What depth does to errors: how much larger they are than at the smallest depth, and how far plain and residual
networks are apart.

The margin was fixed before any result was seen.
"""

import pandas as pd

from experiments.engine.condition_scores import side
from experiments.engine.effects import Estimate, decide, estimate
from experiments.engine.ending import show_estimate
from probes.tables import table

MARGIN = 0.02  # of the error: a smaller change is none
Changes = dict[tuple[str, int, str], Estimate]
"""By arm, depth and split."""


def errors_by_depth(outcomes: pd.DataFrame) -> pd.DataFrame:
    """Final errors: a row for each arm, split and seed, a column for each depth."""
    accuracy = outcomes[outcomes["quantity"] == "accuracy"]
    return 1 - accuracy.pivot_table(index=["arm", "split", "seed"], columns="depth_total", values="value")


def changes(outcomes: pd.DataFrame) -> Changes:
    """Of each arm, depth and split: how much larger the error is than at the smallest depth, paired by seed."""
    errors = errors_by_depth(outcomes)
    shallow = min(errors.columns)
    found: Changes = {}
    for (arm, split), wide in errors.groupby(level=["arm", "split"]):
        for depth in sorted(set(errors.columns) - {shallow}):
            paired = (wide[depth] - wide[shallow]).dropna().to_numpy()
            if len(paired):
                found[str(arm), int(depth), str(split)] = estimate(paired)
    return found


def gaps(outcomes: pd.DataFrame) -> Changes:
    """Of each depth and split: how much larger plain's error is than residual's, paired by seed (its arm is plain)."""
    errors = errors_by_depth(outcomes)
    found: Changes = {}
    if {"plain", "residual"} <= set(errors.index.get_level_values("arm")):
        apart = errors.xs("plain", level="arm") - errors.xs("residual", level="arm")
        for split, wide in apart.groupby(level="split"):
            for depth in sorted(errors.columns):
                if len(paired := wide[depth].dropna().to_numpy()):
                    found["plain", int(depth), str(split)] = estimate(paired)
    return found


def change_table(found: Changes) -> pd.DataFrame:
    """The changes as a long table: the mean, and where there is an interval its ends."""
    return table(
        {"arm": arm, "depth_total": depth, "split": split, "quantity": quantity, "value": value}
        for (arm, depth, split), each in found.items()
        for quantity, value in (("mean", each.mean), ("low", each.low), ("high", each.high))
    )


def sentence(found: Changes, apart: Changes, title: str) -> str:
    """What depth does to the errors of each arm, and whether plain and residual are alike at the smallest depth."""
    if not found:
        return f"{title}: one depth alone says nothing of degradation; give two or more --depths."
    deepest = max(depth for _, depth, _ in found)
    parts = []
    for arm in dict.fromkeys(arm for arm, _, _ in found):
        train, test = (found.get((arm, deepest, split)) for split in ("train", "test"))
        if train is not None and test is not None:
            word = decide(train, MARGIN, ("degrades", "does not")).replace("undecided", "is undecided")
            parts.append(f"{arm} {word} ({both(train, test)})")
    return (
        f"{title}, from the smallest depth to {deepest}: {'; '.join(parts)}. {comparison(apart)}An arm degrades if the "
        f"whole 95 % interval of its training error's change lies above {MARGIN}, and does not if it lies below. One "
        "learning rate, one budget."
    )


def comparison(apart: Changes) -> str:
    """Whether plain networks of the smallest depth are comparable with residual ones, as He et al. 2015 say."""
    shallow = min((depth for _, depth, _ in apart), default=0)
    train, test = (apart.get(("plain", shallow, split)) for split in ("train", "test"))
    if train is None or test is None:
        return ""
    words = {"within": "are comparable", "above": "are worse", "below": "are better", "undecided": "may differ or not"}
    return (
        f"At depth {shallow} plain networks {words[side(test, MARGIN)]} (plain minus residual: {both(train, test)}; "
        f"test error against {MARGIN} on either side). "
    )


def both(train: Estimate, test: Estimate) -> str:
    """Two differences of errors, in words."""
    shown = (f"{name} error {show_estimate(each, digits=3)}" for name, each in (("training", train), ("test", test)))
    return f"{', '.join(shown)}, n = {len(train.values)}"
