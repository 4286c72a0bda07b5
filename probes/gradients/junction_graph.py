"""Gradients carried back through any acyclic graph of junctions, kept apart by the branches that they have passed.

*Places* are the tensors where ways meet: sums, forks, and what the model returns. They are taken from the last to the
first, each when all that comes from later ones is there. A backward from a place ends at the next places on every way.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from graphlib import TopologicalSorter
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

from ..discovery.graph import Edge, Entry
from ..sites import JunctionSite
from .chain import Addend, accumulate, differentiate, parts_hooked

Counts = tuple[int, ...]
"""How many branches of each kind a path has passed."""
BOTH: tuple[Addend, ...] = ("shortcut", "branch")


@dataclass(eq=False)
class _Segment:
    """What lies between a place and the next ones."""

    site: JunctionSite | None
    """The junction whose sum the place is."""
    operands: dict[Addend, list[Entry]]
    """Where a gradient leaves that sum."""
    ends: dict[Addend, dict[Edge, None]]
    """The next places by either addend; where the place is no sum, all are "shortcut"."""
    leaves: list[Tensor]
    """The parameters on the way."""
    inside: set[Edge] = field(default_factory=set)
    """The places between the branch and the fork, where junctions lie inside the branch."""

    @cached_property
    def targets(self) -> list[Any]:
        """The ends, and the parameters, as autograd takes them."""
        return [*(GradientEdge(*end) for end in _all_ends(self)), *self.leaves]


class _Walked(NamedTuple):
    """What a path has passed so far."""

    counts: Counts
    inside: frozenset[_Segment] = frozenset()
    """The junctions in whose branches it is; these are counted where it leaves them."""

    def length(self) -> int:
        return sum(self.counts) + len(self.inside)


class JunctionGraph:
    """The places between those where a backward starts and `target`, or all parameters in `leaves`."""

    def __init__(
        self,
        sites: Sequence[JunctionSite],
        starts: Collection[Edge],
        *,
        target: Edge | None = None,
        leaves: Iterable[Tensor] = (),
    ) -> None:
        self.target, self.leaves = target, set(leaves)
        self.depths = {site: depth for depth, site in enumerate(sites)}
        sums = {(site.add, 0): site for site in sites}
        operands = {site: _operands(site) for site in sites}
        self.places = {*sums, *(site.match.fork for site in sites), *starts}
        self.segments: dict[Edge, _Segment] = {}
        waiting = list(starts)
        while waiting:
            place = waiting.pop()
            if place not in self.segments and place != target:
                site = sums.get(place)
                self.segments[place] = segment = self._segment(place, site, operands[site] if site else {})
                waiting += _all_ends(segment)
        later = {place: set[Edge]() for place in (*self.segments, *starts)}
        for place, segment in self.segments.items():
            for end in _all_ends(segment):
                later.setdefault(end, set()).add(place)
        self.order: list[Edge] = list(TopologicalSorter(later).static_order())
        for segment in self.segments.values():
            segment.inside = self._inside(segment)
        if target is not None:
            leading = self._leading_to(target)
            self.order = [place for place in self.order if place in leading]
            for segment in self.segments.values():
                segment.ends = {addend: _only(ends, leading) for addend, ends in segment.ends.items()}

    def _segment(self, place: Edge, site: JunctionSite | None, operands: dict[Addend, list[Entry]]) -> _Segment:
        entries: dict[Addend, list[Entry]] = operands or {
            "shortcut": [(place[0], index) for index in range(len(place[0].next_functions))],
            "branch": [],
        }
        ends, leaves = dict[Addend, dict[Edge, None]](), dict[Tensor, None]()
        for addend in BOTH:
            ends[addend], passed = next_places((u.next_functions[index] for u, index in entries[addend]), self.places)
            accumulating = [node for node in passed if node.name() == "torch::autograd::AccumulateGrad"]
            found = [cast(Any, node).variable for node in accumulating]
            leaves.update({leaf: None for leaf in found if leaf in self.leaves})
        return _Segment(site, operands, ends, list(leaves))

    def _inside(self, segment: _Segment) -> set[Edge]:
        """The places to which a branch leads, and which lead to its fork."""
        fork = segment.site.match.fork if segment.site else None
        reached = {end for end in segment.ends["branch"] if end != fork}
        if fork is None or not reached:
            return set()
        for place in self.order:
            if place in reached and place in self.segments:
                reached.update(end for end in _all_ends(self.segments[place]) if end != fork)
        return reached & self._leading_to(fork)

    def _leading_to(self, target: Edge) -> set[Edge]:
        leading = {target}
        for place in reversed(self.order):
            if place in self.segments and not leading.isdisjoint(_all_ends(self.segments[place])):
                leading.add(place)
        return leading

    def carry_back(
        self,
        given: Callable[[Edge, list[Tensor]], Tensor | None],
        *,
        kinds: Sequence[int] | None = None,
        most: int | None = None,
        keep: Callable[[Tensor, Counts, Tensor | None], None] = lambda leaf, counts, gradient: None,
    ) -> dict[Counts, Tensor]:
        """The gradients at the target by the branches that their paths have passed.

        given: what the loss itself sends into a place, asked for with what has arrived there from others, which is one
        gradient where nothing is counted.
        kinds: which of the counts each junction's branch adds to; without it nothing is counted. most: leave out paths
        of more branches. keep: is called with each parameter, the counts (without branches that hold the parameter),
        and the gradient.
        """
        return _Carrier(self, kinds, most, keep).run(given)


class _Carrier:
    """One backward through a graph of junctions."""

    def __init__(
        self,
        graph: JunctionGraph,
        kinds: Sequence[int] | None,
        most: int | None,
        keep: Callable[[Tensor, Counts, Tensor | None], None],
    ) -> None:
        self.graph, self.kinds, self.most, self.keep = graph, kinds, most, keep
        self.at: dict[Edge, dict[_Walked, Tensor]] = defaultdict(dict)
        self.parts: dict[Addend, Tensor] = {}
        self.zeros = False

    def run(self, given: Callable[[Edge, list[Tensor]], Tensor | None]) -> dict[Counts, Tensor]:
        nothing_passed = _Walked((0,) * (max(self.kinds) + 1) if self.kinds else ())
        for place in self.graph.order:
            arrived = self.at.pop(place, {})
            own = given(place, list(arrived.values()))
            if own is not None:
                accumulate(arrived, nothing_passed, own)
            if place == self.graph.target:
                return {walked.counts: gradient for walked, gradient in arrived.items()}
            segment = self.graph.segments.get(place)
            if arrived and segment is not None and segment.targets:
                with self.ending_at_places(place, segment):
                    self.pass_on(place, segment, arrived)
        return {}

    def pass_on(self, place: Edge, segment: _Segment, arrived: dict[_Walked, Tensor]) -> None:
        """Carry what has arrived at a place back to the next ones."""
        if segment.site is None or self.kinds is None:
            for walked, gradient in arrived.items():
                self.carry(place, segment, walked, gradient, ())
            return
        match, operands = segment.site.match, segment.operands
        mixed = (segment.ends["shortcut"].keys() & segment.ends["branch"].keys()) - {match.fork}
        needs_branch = bool(segment.leaves) or match.shared
        for walked, gradient in arrived.items():
            self.parts.clear()
            if walked.length() == self.most and not needs_branch:  # a path of more branches is left out
                passes: list[tuple[Sequence[Entry], Collection[Edge]]] = [(operands["branch"], ())]
            elif mixed:  # where a place is reached by both addends, one at a time
                passes = [(operands["branch"], ()), (operands["shortcut"], segment.ends["branch"])]
            else:
                passes = [((), segment.ends["branch"])]
            for closed, by_branch in passes:
                # Hooks run in the order in which they are put: what is closed is no part.
                with _closed(closed), parts_hooked(match, partial(accumulate, self.parts)):
                    self.carry(place, segment, walked, gradient, by_branch)
            for addend, part in self.parts.items():
                self.arrive(match.fork, walked, part, segment if addend == "branch" else None)

    def carry(
        self, place: Edge, segment: _Segment, walked: _Walked, gradient: Tensor, by_branch: Collection[Edge]
    ) -> None:
        """One backward from a place. by_branch: which of the next places it reaches by a branch; what reaches the
        junction's own fork is in `parts`, where branches are counted."""
        fork = segment.site.match.fork if segment.site and self.kinds is not None else None
        before = dict(self.parts)
        try:
            found = differentiate(place, segment.targets, gradient)
        except (AttributeError, TypeError):  # a hook of the user's, which expects a gradient where nothing passes
            if self.zeros:
                raise
            self.zeros = True
            self.parts.clear()
            self.parts.update(before)
            found = differentiate(place, segment.targets, gradient)
        for target, at_target in zip(segment.targets, found, strict=True):
            if isinstance(target, Tensor):
                self.keep(target, walked.counts, at_target)
            elif at_target is not None and (end := (target.node, target.output_nr)) != fork:
                self.arrive(end, walked, at_target, segment if end in by_branch else None)

    def arrive(self, end: Edge, walked: _Walked, gradient: Tensor, branch: _Segment | None = None) -> None:
        """Add to what is at a place. branch: the junction whose branch the path has just passed."""
        within = walked.inside | {branch} if branch else walked.inside
        if within and self.kinds is not None:
            left = [segment for segment in within if end not in segment.inside]
            counts = list(walked.counts)
            for segment in left:
                counts[self.kinds[self.graph.depths[cast(JunctionSite, segment.site)]]] += 1
            walked = _Walked(tuple(counts), within.difference(left))
        if self.most is None or walked.length() <= self.most:
            accumulate(self.at[end], walked, gradient)

    @contextmanager
    def ending_at_places(self, start: Edge, segment: _Segment) -> Iterator[None]:
        """Let a backward pass no other place than its start: what is behind, that place's own backward will carry."""
        outputs: dict[Node, list[int]] = defaultdict(list)
        if len(segment.targets) > 1:  # else autograd does not go on behind the one end
            for node, output in self.graph.order:
                if (node, output) != start:
                    outputs[node].append(output)

        def stop(node: Node, arriving: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
            passed = list(arriving)
            for output in outputs[node]:
                gradient = arriving[output]
                # Nothing is faster than zeros, which most operations would compute with.
                passed[output] = torch.zeros_like(gradient) if self.zeros and gradient is not None else None
            return tuple(passed)

        with ExitStack() as hooks:
            for node in outputs:
                hooks.callback(node.register_prehook(partial(stop, node)).remove)
            yield


@contextmanager
def _closed(entries: Sequence[Entry]) -> Iterator[None]:
    """Let a sum pass nothing to some of its addends."""

    def hook(index: int, passed: Sequence[Tensor | None], _: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
        return (*passed[:index], None, *passed[index + 1 :])

    with ExitStack() as hooks:
        for node, index in entries:
            hooks.callback(node.register_hook(partial(hook, index)).remove)
        yield


def next_places(
    edges: Iterable[tuple[Node | None, int]], places: set[Edge]
) -> tuple[dict[Edge, None], dict[Node, None]]:
    """The next of some places behind edges of autograd's graph, and the nodes on the way."""
    ends, passed = dict[Edge, None](), dict[Node, None]()
    waiting = list(edges)
    while waiting:
        node, output = waiting.pop()
        if node is not None and (node, output) in places:
            ends[node, output] = None
        elif node is not None and node not in passed:
            passed[node] = None
            waiting += node.next_functions
    return ends, passed


def _operands(site: JunctionSite) -> dict[Addend, list[Entry]]:
    """Where a gradient enters a junction's addends. A sum may be of several adds, or of a stack times factors: what
    enters no branch (a gate of both addends, say) is the shortcut's."""
    branches = list(site.match.branches)
    inside = _between(site.add, {node for node, _ in branches})
    others = [
        (node, index)
        for node in inside
        for index, (before, _) in enumerate(node.next_functions)
        if before is not None and before not in inside and (node, index) not in branches
    ]
    return {"shortcut": others, "branch": branches}


def _between(add: Node, ends: set[Node]) -> list[Node]:
    """The nodes by which a gradient at an add reaches some earlier nodes, with both."""
    oldest = min(node._sequence_nr() for node in ends)
    users, waiting = defaultdict[Node, list[Node]](list), [add]
    while waiting:
        node = waiting.pop()
        for before, _ in node.next_functions:
            if before is not None and before._sequence_nr() >= oldest:
                if before not in users:
                    waiting.append(before)
                users[before].append(node)
    found, waiting = dict.fromkeys([add, *ends]), list(ends)
    while waiting:
        node = waiting.pop()
        waiting += [user for user in users[node] if user not in found]
        found.update(dict.fromkeys(users[node]))
    return list(found)


def _all_ends(segment: _Segment) -> list[Edge]:
    return list(segment.ends["shortcut"] | segment.ends["branch"])


def _only(ends: dict[Edge, None], wanted: set[Edge]) -> dict[Edge, None]:
    return {end: None for end in ends if end in wanted}
