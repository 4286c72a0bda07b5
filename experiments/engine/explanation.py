"""Size, direction, bias, or early blocks that do not learn: which explanation the numbers leave.

The rules and their margins were fixed before any result was seen.
"""

import pandas as pd

from experiments.engine.answer import MAGNITUDE, STOP
from experiments.engine.condition_ending import show_recovery
from experiments.engine.condition_scores import MARGIN, Key, difference, exceeds
from experiments.engine.ending import show_estimate
from experiments.engine.score import Recovery

TRUE_NORMS, TRUE_DIRECTION, NOISE = (condition.name for condition in MAGNITUDE[:3])
FROZEN = MAGNITUDE[-1].name
HALF = 0.5  # of the gap: what closes more recovers, what closes less does not


def sentence(cells: pd.DataFrame, found: dict[Key, Recovery], *, depth: int, title: str) -> str:
    """Which explanation the numbers of the deepest networks leave."""
    n = len(found[STOP, depth, "test error"].gap.values)
    return (
        f"{title}, depth {depth}, n = {n}: {size_or_direction(found, depth)}; {bias(cells, depth)}; "
        f"{learning(cells, depth)}. The whole 95 % interval counts: of R (test error) against {HALF}, of differences "
        f"in test accuracy against {MARGIN}; not corrected for their number, 5. One data set, one budget, each "
        "condition's best learning rate."
    )


def size_or_direction(found: dict[Key, Recovery], depth: int) -> str:
    """Magnitude, if the stop-gradient direction with true norms recovers; direction, if it does not and the true
    direction with stop-gradient norms does."""
    names = {"as it is": STOP, "with true norms": TRUE_NORMS, "the true direction at its norms": TRUE_DIRECTION}
    if missing := [name for name in names.values() if (name, depth, "test error") not in found]:
        return f"size or direction is not asked without {', '.join(missing)}"
    each = {words: found[name, depth, "test error"] for words, name in names.items()}
    stop, norms, direction = each.values()
    if stop.note:
        return f"size or direction cannot be told ({stop.note})"
    if stop.low > HALF:
        word = "stop-gradient recovers as it is, and nothing is left to explain"
    elif norms.low > HALF:
        word = "it is the gradient's size"
    elif norms.high < HALF and direction.low > HALF:
        word = "it is the gradient's direction"
    else:
        word = "size or direction is undecided"
    return f"{word} (R of stop-gradient {', '.join(f'{words} {show_recovery(r)}' for words, r in each.items())})"


def bias(cells: pd.DataFrame, depth: int) -> str:
    """Structured bias, if noise of the same cosine and norm does better than stop-gradient by more than the margin."""
    against = difference(cells, depth, NOISE, STOP)
    if not against.values:
        return "bias is not asked without a seed of both noise and stop-gradient"
    words = {"yes": "it is a structured bias, not a weak signal", "no": "it is no structured bias"}
    word = words.get(exceeds(against), "whether it is a structured bias is undecided")
    return f"{word} (true gradient and noise, minus stop-gradient: {show_estimate(against, digits=3)})"


def learning(cells: pd.DataFrame, depth: int) -> str:
    """Whether stop-gradient beats networks whose early blocks never learn; if not, it says nothing about those."""
    against = difference(cells, depth, STOP, FROZEN)
    if not against.values:
        return "frozen early blocks are not compared without a seed of both them and stop-gradient"
    words = {"yes": "stop-gradient beats", "no": "stop-gradient does not beat"}
    word = words.get(exceeds(against), "it is undecided whether stop-gradient beats")
    then = ", and so says nothing of early blocks" * (exceeds(against) == "no")
    return f"{word} networks whose early blocks never learn ({show_estimate(against, digits=3)}){then}"
