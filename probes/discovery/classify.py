"""Is an add a residual junction, and where are its shortcut and its branch?

An add is a residual junction when its addends reconverge on one earlier tensor, the *fork*, one of them by a shortcut
and the other by a branch that holds parameters. The shortcut is an *identity* if that addend carries the fork itself,
at most reshaped or multiplied by a factor, or a part of it, and a *projection* if it is linear in the fork while the
branch is not. The weights may be computed: streams that a matrix mixes (hyper-connections) are a projection, too.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from torch.autograd.graph import Node

from .graph import (
    Edge,
    Entry,
    Term,
    Walk,
    carried_tensors,
    is_gate,
    is_parameter,
    shape_of,
    takes_a_part,
    terms_of,
    written,
)


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
    further: tuple[Entry, ...] = ()
    """Where the shortcut's gradient enters other tensors than the fork, in a sum over a stack."""
    terms: Sequence[Term] = ()
    """Where the sum's gradient enters its addends; of x + f(x) + g(x), where the last add's does."""
    branches: tuple[Entry, ...] = ()
    """Where the sum's gradient enters the branch, or the branches of x + f(x) + g(x)."""


def classify_add(
    add: Node, junctions: set[Node], frozen: set[Node], terms: Sequence[Term] | None = None
) -> JunctionMatch | str:
    """The junction that an add (its node in the graph) is, or the reason why it is none.

    junctions: the nodes of the junctions found so far, outside of the module that adds. A projection that runs beside
    one of them is a merge of features (a pyramid's lateral connection, say), not a shortcut. frozen: nodes that act
    with parameters which have no leaf. terms: where its gradient enters its addends, where they are not its inputs.
    """
    elsewhere = terms is not None or add.name() not in ("AddBackward0", "SubBackward0")
    terms = terms_of(add) if terms is None else terms
    match = _classify(add, junctions, frozen, terms)
    if isinstance(match, str):
        return match
    # Where an addend is not an input of the add, it cannot be walked by itself.
    shared = match.shared or elsewhere
    return replace(match, shared=shared, terms=terms, branches=_entries_of(terms, 1 - match.shortcut_operand))


def _entries_of(terms: Sequence[Term], operand: int) -> tuple[Entry, ...]:
    return tuple((node, index) for node, index, addends in terms if addends == 1 << operand)


def _classify(add: Node, junctions: set[Node], frozen: set[Node], terms: Sequence[Term]) -> JunctionMatch | str:
    reason = "its addends share no earlier activation"
    stack = terms[0][0] if terms[0][0].name() == "StackBackward0" else None
    # x - f(x) is a junction, f(x) - x (an error, a shift) is none; of a stack, the last is what a branch has given.
    one_way = stack is not None or (add.name() == "SubBackward0" and len(terms) == 2)
    for operand in (0,) if one_way else (0, 1):
        other = 1 - operand
        for fork, is_factor in carried_tensors(terms, operand):
            walk = Walk(add, frozen, terms)
            if not walk.meets_at(fork):
                continue
            role = walk.parameter_role(fork, other)
            if role is None:
                reason = "one addend carries what the other is made from, but no parameters lie between"
                if is_factor and is_gate(fork[0]):
                    continue  # g of g x + (1 - g) f(x): x stands beside it
            elif role == "factor" == walk.parameter_role(fork, operand):
                return "a mixture: both addends are what they share, times a learned factor"
            elif walk.gated_from_elsewhere(fork, operand) and walk.gated_from_elsewhere(fork, other):
                return "a mixture: both addends are gated by what comes from elsewhere"
            elif walk.only_gates(fork, other):
                return "the tensor that one addend carries only gates the other, which comes from elsewhere"
            elif (is_parameter(fork[0]) or walk.biases_attention(fork, other)) and walk.between(
                fork, other
            ) & junctions:
                return "a learned embedding is added to what was made from it"
            else:
                reason = "one addend carries the tensor that the other, with parameters, is made from"
                match = JunctionMatch("identity", reason, fork, operand, *walk.entries(fork, operand))
                return match if stack is None else replace(match, further=_further(terms, match))
            break  # what lies behind the place where they meet is theirs in common
    if one_way:
        return reason
    found = _mixture(add, frozen, terms) or _projection(Walk(add, frozen, terms), junctions, reason)
    if found == NEITHER:  # unless it is so but for gates, which then count as the shortcut's
        found = _projection(Walk(add, frozen, terms, behind_gates=True), junctions, reason)
    if isinstance(found, str):
        return found
    fork, operand = found
    walk = Walk(add, frozen, terms)
    walk.meets_at(fork)
    entries, shared = walk.entries(fork, operand)
    if all(map(takes_a_part, walk.between(fork, operand))):
        reason = "one addend carries a part of the tensor that the other, with parameters, is made from"
        return JunctionMatch("identity", reason, fork, operand, entries, shared)
    reason = "one addend is linear in the tensor that the other, with parameters, is made from, and the other is not"
    return JunctionMatch("projection", reason, fork, operand, entries, shared)


def _mixture(add: Node, frozen: set[Node], terms: Sequence[Term]) -> tuple[Edge, int] | None:
    """The fork of streams that a matrix mixes, and which operand they are: a branch is written into them."""
    for operand in (0, 1):
        for fork, _ in carried_tensors(terms, operand, mixed=True):
            if shape_of(fork) != shape_of((add, 0)):
                continue
            walk = Walk(add, frozen, terms)
            if walk.meets_at(fork) and walk.parameter_role(fork, 1 - operand) == "weight":
                written_in = fork not in dict(carried_tensors(terms, 1 - operand, mixed=True))
                # Values that attention mixes, beside a convolution of them, are no streams.
                if written_in and not walk.linear(fork, computed=True)[1 - operand]:
                    return fork, operand
                break
    return None


def _further(terms: Sequence[Term], match: JunctionMatch) -> tuple[Entry, ...]:
    return tuple(
        (node, index)
        for node, index in _entries_of(terms, match.shortcut_operand)
        if (node, index) not in match.entries["shortcut"] and node.next_functions[index][0] is not None
    )


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
    operand = added_to(last_add, add)
    if operand is None:
        return None
    walk = Walk(add, frozen)
    if not walk.meets_at(match.fork) or walk.parameter_role(match.fork, operand) is None:
        return None
    sum_so_far = [entry for entries in match.entries.values() for entry in entries]
    added = [entry for entry in walk.users[match.fork] if entry not in sum_so_far]
    entries: dict[Literal["shortcut", "branch"], list[Entry]] = {
        "shortcut": match.entries["shortcut"],
        "branch": match.entries["branch"] + added,
    }
    # Which operand is the shortcut is known of the first add alone: no addend can be walked by itself.
    branches = match.branches + _entries_of(walk.terms, operand)
    return replace(match, entries=entries, shared=True, terms=walk.terms, branches=branches)


def added_to(last_add: Node, add: Node) -> int | None:
    """Which operand of an add is added to the sum of another, if it is."""
    before = [written(edge) for edge in add.next_functions[:2]]
    return 1 - before.index((last_add, 0)) if (last_add, 0) in before else None


def _upsampled(nodes: set[Node]) -> bool:
    return any("Upsample" in node.name() for node in nodes)
