"""On how many networks an arm closes more than half of the gap between plain and residual.

The rules were fixed before any result was seen.
"""

from collections.abc import Mapping, Sequence

import pandas as pd

from experiments.engine.answer import MIRROR, PLAIN, RESIDUAL, STOP, on_networks
from experiments.engine.condition_ending import show_recovery
from experiments.engine.condition_scores import MARGIN, NOTHING, Key, difference, side
from experiments.engine.conditions import Condition
from experiments.engine.ending import show_estimate
from experiments.engine.explanation import HALF
from experiments.engine.score import Recovery

MIXED = (STOP, MIRROR)
OUTCOME = "test error"
VERDICTS = ("recovers more than half", "recovers less than half", "is undecided", "has no degradation to explain")


def sentence(
    cells: pd.DataFrame,
    found: Mapping[Key, Recovery],
    depths: Mapping[str, int],
    dead: Sequence[Condition],
    *,
    title: str,
) -> str:
    """What each arm recovers on the networks, by name.

    found: R of all conditions whose network's plain arm lives. depths: each network's. dead: conditions not trained.
    """
    alive = [network for network in depths if name_of(network, PLAIN) not in {c.name for c in dead}]
    said = [arm_reading(found, depths, alive, arm) for arm in MIXED]
    said += [against_residual(cells, depths[network], network, dead) for network in depths if network not in alive]
    count = len(MIXED) * len(alive)
    return (
        f"{title}. {' '.join(said)} The whole 95 % interval of R ({OUTCOME}) counts, against {HALF}; not corrected for "
        f"their number, {count}. One data set, one budget, each condition's best rate."
    )


def name_of(network: str, arm: str) -> str:
    """The name of the condition."""
    return next(condition.name for condition in on_networks((network,)) if condition.arm == arm)


def verdict(found: Recovery) -> str:
    """On which side of one half the whole interval of R lies."""
    if found.note:
        return VERDICTS[3] if found.gap.low == found.gap.low else VERDICTS[2]
    return VERDICTS[0] if found.low > HALF else VERDICTS[1] if found.high < HALF else VERDICTS[2]


def arm_reading(found: Mapping[Key, Recovery], depths: Mapping[str, int], networks: Sequence[str], arm: str) -> str:
    """On how many networks, and on which, an arm recovers more or less than half."""
    each = {network: found.get((name_of(network, arm), depths[network], OUTCOME), NOTHING) for network in networks}
    parts = []
    for word in VERDICTS:
        names = [
            f"{name} ({show_recovery(r)})" if not r.note else name for name, r in each.items() if verdict(r) == word
        ]
        parts += [f"{word} on {len(names)} ({', '.join(names)})"] * bool(names)
    return f"Of {len(networks)} networks, {arm} {'; '.join(parts)}." if parts else ""


def shown(found: Recovery) -> str:
    """` (0.55 [0.40, 0.70])`, where there is an R."""
    return "" if found.note else f" ({show_recovery(found)})"


def against_residual(cells: pd.DataFrame, depth: int, network: str, dead: Sequence[Condition]) -> str:
    """A network that cannot learn without its shortcuts' values: how its stop-gradient arm stands to residual."""
    lost = [condition.arm for condition in dead if condition.network == network]
    worse = difference(cells, depth, name_of(network, STOP), name_of(network, RESIDUAL), OUTCOME)
    words = {"above": "worse", "below": "better", "within": "as good", "undecided": "undecided"}
    against = f"{words[side(worse)]} ({OUTCOME} {show_estimate(worse, digits=3)}, margin {MARGIN})"
    return (
        f"{network}: {' and '.join(lost)} are dead by construction, so there is no R; stop-gradient against residual: "
        f"{against if worse.values else 'no seed has both'}."
    )
