"""How much of the shortcut's gradient is needed, when, and how surely? Rules fixed before any result was seen."""

from collections.abc import Mapping, Sequence

import pandas as pd

from experiments.engine.answer import COINS, DOSES, STOP
from experiments.engine.condition_scores import MARGIN, difference, side
from experiments.engine.conditions import Condition
from experiments.engine.ending import show_estimate
from experiments.engine.recovery import Comparison, compare, first_of_all


def against_ordinary(cells: pd.DataFrame, conditions: Sequence[Condition], depth: int) -> dict[str, Comparison]:
    """Each condition that cuts, against the residual network."""
    at_depth = cells[cells["depth_total"] == depth]
    return {c.name: compare(at_depth, c.name, 0) for c in conditions if c.control.cut is not None or c.name == STOP}


def pairs_of_timing(conditions: Sequence[Condition], epochs: int) -> dict[int, tuple[str, str]]:
    """By the number of epochs that are cut: the condition that is cut so long from the first epoch on, and the one that
    is cut so long up to the last."""
    cuts = {c.name: c.control.cut for c in conditions if c.control.cut is not None}
    early = {cut.end: name for name, cut in cuts.items() if cut.end is not None}
    late = {epochs - cut.begin: name for name, cut in cuts.items() if cut.begin > 0}
    return {length: (early[length], late[length]) for length in sorted(set(early) & set(late))}


def pairs_of_coins(conditions: Sequence[Condition]) -> dict[float, tuple[str, str]]:
    """By the coin's chance: the biased condition, and the unbiased one."""
    cuts = {c.name: c.control.cut for c in conditions if c in COINS and c.control.cut is not None}
    kinds = [{cut.chance: name for name, cut in cuts.items() if cut.unbiased == kind} for kind in (False, True)]
    return {chance: (kinds[0][chance], kinds[1][chance]) for chance in sorted(set(kinds[0]) & set(kinds[1]))}


def sentence(
    cells: pd.DataFrame,
    found: Mapping[str, Comparison],
    conditions: Sequence[Condition],
    *,
    depth: int,
    epochs: int,
    title: str,
) -> str:
    """The smallest dose that recovers, early cuts against late ones, biased coins against unbiased ones."""
    timing, coins = pairs_of_timing(conditions, epochs), pairs_of_coins(conditions)
    counted = len(found) * 2 + len(timing) + len(coins)
    n = max((each.pairs for each in found.values()), default=0)
    return (
        f"{title}, depth {depth}, n = {n}: {dose(found)}; {early_or_late(cells, timing, depth, epochs)}; "
        f"{biased_or_not(cells, found, coins, depth)}. Differences are of test accuracy, against {MARGIN}; "
        f"intervals are not corrected for their number, {counted}. One data set, one budget, each "
        "condition's best learning rate."
    )


def dose(found: Mapping[str, Comparison]) -> str:
    """From which weight on, up to 1, ordinary training is recovered."""
    weights = {c.control.cut.weight: c.name for c in DOSES if c.name in found and c.control.cut is not None}
    weights |= {0.0: STOP} if STOP in found else {}
    first = first_of_all(list(weights), [found[name].verdict == "recovered" for name in weights.values()])
    if first is not None:
        said = f"ordinary training is recovered from weight {first:g} of the shortcut's gradient on"
    else:
        said = "no weight tested below 1 of the shortcut's gradient is shown to recover ordinary training from there on"
    for verdict in ("undecided", "falls short"):
        which = [f"{weight:g}" for weight, name in sorted(weights.items()) if found[name].verdict == verdict]
        said += f" ({verdict} at {', '.join(which)})" * bool(which)
    return said


def early_or_late(cells: pd.DataFrame, timing: Mapping[int, tuple[str, str]], depth: int, epochs: int) -> str:
    """Which of two cuts of equal length, the one nearest to half of training, costs more."""
    if not timing:
        return "early and late cuts of one length were not both run"
    length = min(timing, key=lambda each: abs(each - epochs / 2))
    early, late = timing[length]
    found = difference(cells, depth, late, early)
    words = {"above": "an early cut costs more than a late one", "below": "a late cut costs more than an early one"}
    words |= {
        "within": "early and late cuts cost the same",
        "undecided": "whether early or late cuts cost more is undecided",
    }
    shown = show_estimate(found, digits=3) if found.values else "-"
    return f"{words[side(found)]} ({length} of {epochs} epochs, late minus early: {shown})"


def biased_or_not(
    cells: pd.DataFrame, found: Mapping[str, Comparison], coins: Mapping[float, tuple[str, str]], depth: int
) -> str:
    """Whether unbiased coins do better than biased ones of the same chance, and whether they recover."""
    if not coins:
        return "biased and unbiased coins of one chance were not both run"
    words = {"above": "do better than", "below": "do worse than", "within": "do as well as"}
    words |= {"undecided": "are undecided against"}
    reach = {"recovered": "recover", "falls short": "fall short of", "undecided": "may or may not recover"}
    parts = []
    for chance, (biased, unbiased) in coins.items():
        change = difference(cells, depth, unbiased, biased)
        shown = show_estimate(change, digits=3) if change.values else "-"
        against = f"{words[side(change)]} biased ones ({shown})"
        parts.append(f"at chance {chance:g} {against} and {reach[found[unbiased].verdict]} ordinary training")
    return f"unbiased coins {', '.join(parts)}"
