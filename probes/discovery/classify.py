"""The verdict on an add: is it a residual junction, and where are its shortcut and its branch?

An add is a residual junction when its addends reconverge on one earlier tensor, the *fork*, one of them by a shortcut
and the other by a branch that holds parameters. The shortcut is an *identity* if that addend carries the fork itself,
at most reshaped or multiplied by a factor, and a *projection* if it is linear in the fork while the branch is not.
"""

from dataclasses import dataclass, replace
from typing import Literal

from torch.autograd.graph import Node

from .graph import Edge, Entry, Walk, carried, is_parameter


@dataclass(frozen=True, eq=False)
class Verdict:
    """An add found to be a junction: the fork, which input is the shortcut, and where gradients enter the fork."""

    kind: Literal["identity", "projection"]
    reason: str
    fork: Edge
    shortcut: int
    entries: dict[Literal["shortcut", "branch"], list[Entry]]
    shared: bool
    """Whether a way from the fork leads to both addends (a gate, a norm before both): counted as the shortcut's."""


def judge(add: Node, junctions: set[Node], frozen: set[Node]) -> Verdict | str:
    """The verdict on one add (its node in the graph): a junction, or the reason why it is none.

    junctions: the nodes of the junctions found so far, outside of the module that adds. A projection that runs beside
    one of them is a merge of features (a pyramid's lateral connection, say), not a shortcut. frozen: nodes that act
    with parameters which have no leaf.
    """
    reason = "its addends share no earlier activation"
    difference = add.name() == "SubBackward0"  # x - f(x) is a junction, f(x) - x (an error, a shift) is none
    for shortcut in (0,) if difference else (0, 1):
        for fork in carried(add, shortcut):
            walk = Walk(add, frozen)
            if not walk.reach_back_to(fork):
                continue
            weights = walk.weights(fork, 1 - shortcut)
            if weights is None:
                reason = "one addend carries what the other is made from, but no parameters lie between"
            elif weights == "factor" == walk.weights(fork, shortcut):
                return "a mixture: both addends are what they share, times a learned factor"
            elif walk.gated_from_elsewhere(fork, shortcut) and walk.gated_from_elsewhere(fork, 1 - shortcut):
                return "a mixture: both addends are gated by what comes from elsewhere"
            elif walk.only_gates(fork, 1 - shortcut):
                return "the tensor that one addend carries only gates the other, which comes from elsewhere"
            elif is_parameter(fork[0]) and walk.between(fork, 1 - shortcut) & junctions:
                return "a learned embedding is added to what was made from it"
            else:
                reason = "one addend carries the tensor that the other, with parameters, is made from"
                return Verdict("identity", reason, fork, shortcut, *walk.entries(fork, shortcut))
            break  # what lies behind the place where they meet is theirs in common
    if difference:
        return reason
    found = _projection(Walk(add, frozen), junctions, reason)
    if found == NEITHER:  # unless it is so but for gates, which then count as the shortcut's
        found = _projection(Walk(add, frozen, behind_gates=True), junctions, reason)
    if isinstance(found, str):
        return found
    fork, shortcut = found
    walk = Walk(add, frozen)
    walk.reach_back_to(fork)
    reason = "one addend is linear in the tensor that the other, with parameters, is made from, and the other is not"
    return Verdict("projection", reason, fork, shortcut, *walk.entries(fork, shortcut))


NEITHER = "neither addend is linear in what they share"


def _projection(walk: Walk, junctions: set[Node], reason: str) -> tuple[Edge, int] | str:
    """The fork, and which addend is a projection of it; or the reason why there is none."""
    fork = walk.latest_common()
    if fork is None:
        return reason
    linear = walk.linear(fork)
    if linear == (False, False):
        return NEITHER
    if linear == (True, True):
        return "both addends are linear in what they share"
    shortcut, branch = linear.index(True), linear.index(False)
    if walk.weights(fork, branch) is None:
        return "the addend that is not linear holds no parameters"
    sides = walk.between(fork, shortcut), walk.between(fork, branch)
    if any(nodes & junctions for nodes in sides) or _upsampled(sides[0]) != _upsampled(sides[1]):
        return "a merge of features: an addend passes through other junctions, or it alone is upsampled"
    return fork, shortcut


def goes_on(add: Node, before: Node, verdict: Verdict, frozen: set[Node]) -> Verdict | None:
    """The verdict on an add that only goes on with a junction's sum, x + f(x) + g(x): g joins the branch."""
    if (before, 0) not in add.next_functions[:2]:
        return None
    walk = Walk(add, frozen)
    branch = 1 - add.next_functions.index((before, 0))
    if not walk.reach_back_to(verdict.fork) or walk.weights(verdict.fork, branch) is None:
        return None
    sum_so_far = [entry for entries in verdict.entries.values() for entry in entries]
    added = [entry for entry in walk.users[verdict.fork] if entry not in sum_so_far]
    entries: dict[Literal["shortcut", "branch"], list[Entry]] = {
        "shortcut": verdict.entries["shortcut"],
        "branch": verdict.entries["branch"] + added,
    }
    # Which operand is the shortcut is known of the first add alone: no addend can be walked by itself.
    return replace(verdict, entries=entries, shared=True)


def _upsampled(nodes: set[Node]) -> bool:
    return any("Upsample" in node.name() for node in nodes)
