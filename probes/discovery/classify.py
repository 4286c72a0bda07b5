"""Is an add a residual junction, and where are its shortcut and its branch?

An add is a residual junction when its addends reconverge on one earlier tensor, the *fork*, one of them by a shortcut
and the other by a branch that holds parameters. The shortcut is an *identity* if that addend carries the fork itself,
at most reshaped or multiplied by a factor, and a *projection* if it is linear in the fork while the branch is not.
"""

from dataclasses import dataclass, replace
from typing import Literal

from torch.autograd.graph import Node

from .graph import Edge, Entry, Walk, carried_tensors, is_parameter, written


@dataclass(frozen=True, eq=False)
class JunctionMatch:
    """An add that is a junction: its fork, which operand is the shortcut, and where gradients enter the fork."""

    kind: Literal["identity", "projection"]
    reason: str
    fork: Edge
    shortcut_operand: int
    entries: dict[Literal["shortcut", "branch"], list[Entry]]
    shared: bool
    """Whether a way from the fork leads to both addends (a gate, a norm before both): counted as the shortcut's."""


def classify_add(add: Node, junctions: set[Node], frozen: set[Node]) -> JunctionMatch | str:
    """The junction that an add (its node in the graph) is, or the reason why it is none.

    junctions: the nodes of the junctions found so far, outside of the module that adds. A projection that runs beside
    one of them is a merge of features (a pyramid's lateral connection, say), not a shortcut. frozen: nodes that act
    with parameters which have no leaf.
    """
    reason = "its addends share no earlier activation"
    difference = add.name() == "SubBackward0"  # x - f(x) is a junction, f(x) - x (an error, a shift) is none
    for operand in (0,) if difference else (0, 1):
        other = 1 - operand
        for fork in carried_tensors(add, operand):
            walk = Walk(add, frozen)
            if not walk.meets_at(fork):
                continue
            role = walk.parameter_role(fork, other)
            if role is None:
                reason = "one addend carries what the other is made from, but no parameters lie between"
            elif role == "factor" == walk.parameter_role(fork, operand):
                return "a mixture: both addends are what they share, times a learned factor"
            elif walk.gated_from_elsewhere(fork, operand) and walk.gated_from_elsewhere(fork, other):
                return "a mixture: both addends are gated by what comes from elsewhere"
            elif walk.only_gates(fork, other):
                return "the tensor that one addend carries only gates the other, which comes from elsewhere"
            elif is_parameter(fork[0]) and walk.between(fork, other) & junctions:
                return "a learned embedding is added to what was made from it"
            else:
                reason = "one addend carries the tensor that the other, with parameters, is made from"
                return JunctionMatch("identity", reason, fork, operand, *walk.entries(fork, operand))
            break  # what lies behind the place where they meet is theirs in common
    if difference:
        return reason
    found = _projection(Walk(add, frozen), junctions, reason)
    if found == NEITHER:  # unless it is so but for gates, which then count as the shortcut's
        found = _projection(Walk(add, frozen, behind_gates=True), junctions, reason)
    if isinstance(found, str):
        return found
    fork, operand = found
    walk = Walk(add, frozen)
    walk.meets_at(fork)
    reason = "one addend is linear in the tensor that the other, with parameters, is made from, and the other is not"
    return JunctionMatch("projection", reason, fork, operand, *walk.entries(fork, operand))


NEITHER = "neither addend is linear in what they share"


def _projection(walk: Walk, junctions: set[Node], reason: str) -> tuple[Edge, int] | str:
    """The fork, and which operand is a projection of it; or the reason why there is none."""
    fork = walk.latest_common()
    if fork is None:
        return reason
    linear = walk.linear(fork)
    if linear == (False, False):
        return NEITHER
    if linear == (True, True):
        return "both addends are linear in what they share"
    operand, other = linear.index(True), linear.index(False)
    if walk.parameter_role(fork, other) is None:
        return "the addend that is not linear holds no parameters"
    sides = walk.between(fork, operand), walk.between(fork, other)
    if any(nodes & junctions for nodes in sides) or _upsampled(sides[0]) != _upsampled(sides[1]):
        return "a merge of features: an addend passes through other junctions, or it alone is upsampled"
    return fork, operand


def extend_match(match: JunctionMatch, last_add: Node, add: Node, frozen: set[Node]) -> JunctionMatch | None:
    """The junction x + f(x) + g(x), from that of x + f(x) and the node of the add of g(x), which joins the branch."""
    before = [written(edge) for edge in add.next_functions[:2]]
    if (last_add, 0) not in before:
        return None
    walk = Walk(add, frozen)
    operand = 1 - before.index((last_add, 0))
    if not walk.meets_at(match.fork) or walk.parameter_role(match.fork, operand) is None:
        return None
    sum_so_far = [entry for entries in match.entries.values() for entry in entries]
    added = [entry for entry in walk.users[match.fork] if entry not in sum_so_far]
    entries: dict[Literal["shortcut", "branch"], list[Entry]] = {
        "shortcut": match.entries["shortcut"],
        "branch": match.entries["branch"] + added,
    }
    # Which operand is the shortcut is known of the first add alone: no addend can be walked by itself.
    return replace(match, entries=entries, shared=True)


def _upsampled(nodes: set[Node]) -> bool:
    return any("Upsample" in node.name() for node in nodes)
