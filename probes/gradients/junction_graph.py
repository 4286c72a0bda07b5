"""Gradients carried back through any acyclic graph of junctions, kept apart by the branches that they have passed.

*Places* are the tensors where ways meet: sums, forks, and what the model returns. They are taken from the last to the
first, each when all that comes from later ones is there. A backward from a place ends at the next places on every way.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from graphlib import TopologicalSorter
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

from ..discovery.graph import Edge, Entry
from ..sites import JunctionSite
from .chain import accumulate, differentiate, parts_hooked

Counts = tuple[int, ...]
"""How many branches of each kind a path has passed."""
Addend = Literal["shortcut", "branch"]
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


@dataclass(frozen=True)
class _Walked:
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
        partial_sums = {(add, 0) for of_site in operands.values() for add, _ in of_site["branch"]} - sums.keys()
        self.places = {*sums, *(site.match.fork for site in sites), *starts} - partial_sums
        self.segments: dict[Edge, _Segment] = {}
        waiting = [place for place in starts if place in self.places]
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
            ends[addend], found = next_places((u.next_functions[index] for u, index in entries[addend]), self.places)
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
        given: Callable[[Edge, Tensor | None], Tensor | None],
        *,
        kinds: Sequence[int] | None = None,
        most: int | None = None,
        keep: Callable[[Tensor, Counts, Tensor | None], None] = lambda leaf, counts, gradient: None,
    ) -> dict[Counts, Tensor]:
        """The gradients at the target by the branches that their paths have passed.

        given: what the loss itself sends into a place, asked for with the sum of what has arrived there from others.
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
        self.start: Edge | None = None
        self.zeros = False

    def run(self, given: Callable[[Edge, Tensor | None], Tensor | None]) -> dict[Counts, Tensor]:
        nothing_passed = _Walked((0,) * (max(self.kinds) + 1) if self.kinds else ())
        with self.ending_at_places():
            for place in self.graph.order:
                arrived = self.at.pop(place, {})
                terms = list(arrived.values())
                own = given(place, sum(terms[1:], terms[0]) if terms else None)
                if own is not None:
                    accumulate(arrived, nothing_passed, own)
                if place == self.graph.target:
                    return {walked.counts: gradient for walked, gradient in arrived.items()}
                if arrived and (segment := self.graph.segments.get(place)):
                    self.pass_on(place, segment, arrived)
        return {}

    def pass_on(self, place: Edge, segment: _Segment, arrived: dict[_Walked, Tensor]) -> None:
        """Carry what has arrived at a place back to the next ones."""
        if segment.site is None or self.kinds is None:
            for walked, gradient in arrived.items():
                found, of_leaves = self.differentiate(place, segment, gradient)
                for end, at_end in found.items():
                    self.arrive(end, walked, at_end)
                self.keep_all(segment, walked, of_leaves)
            return
        match, parts, through = segment.site.match, dict[Addend, Tensor](), set[Addend]()
        mixed = (segment.ends["shortcut"].keys() & segment.ends["branch"].keys()) - {match.fork}
        needs_branch = bool(segment.leaves) or match.shared
        with _passing_only(segment.operands, through), parts_hooked(match, partial(accumulate, parts)):
            for walked, gradient in arrived.items():
                is_longest = walked.length() == self.most and not needs_branch
                runs: list[tuple[Addend, ...]] = [BOTH] if not mixed else [("shortcut",), ("branch",)]
                parts.clear()
                for addends in [("shortcut",)] if is_longest else runs:
                    through.clear()
                    through.update(addends)
                    found, of_leaves = self.differentiate(place, segment, gradient)
                    for end, at_end in found.items():
                        if end != match.fork:
                            is_branch = "branch" in addends and end in segment.ends["branch"]
                            self.arrive(end, walked, at_end, segment if is_branch else None)
                    self.keep_all(segment, walked, of_leaves)
                for addend, part in parts.items():
                    self.arrive(match.fork, walked, part, segment if addend == "branch" else None)

    def arrive(self, end: Edge, walked: _Walked, gradient: Tensor, branch: _Segment | None = None) -> None:
        """Add to what is at a place. branch: the junction whose branch the path has just passed."""
        within = walked.inside | {branch} if branch else walked.inside
        left = [segment for segment in within if end not in segment.inside]
        if left and self.kinds is not None:
            counts = list(walked.counts)
            for segment in left:
                counts[self.kinds[self.graph.depths[cast(JunctionSite, segment.site)]]] += 1
            walked = _Walked(tuple(counts), within.difference(left))
        elif branch:
            walked = _Walked(walked.counts, within)
        if self.most is None or walked.length() <= self.most:
            accumulate(self.at[end], walked, gradient)

    def keep_all(self, segment: _Segment, walked: _Walked, gradients: Sequence[Tensor | None]) -> None:
        for leaf, gradient in zip(segment.leaves, gradients, strict=True):
            self.keep(leaf, walked.counts, gradient)

    def differentiate(
        self, place: Edge, segment: _Segment, gradient: Tensor
    ) -> tuple[dict[Edge, Tensor], list[Tensor | None]]:
        """The gradients at the next places, as far as any arrives, and at the parameters on the way."""
        ends = _all_ends(segment)
        if not ends and not segment.leaves:
            return {}, []
        self.start = place
        targets = [*(GradientEdge(*end) for end in ends), *segment.leaves]
        try:
            found = differentiate(place, targets, gradient)
        except (AttributeError, TypeError):  # a hook of the user's, which expects a gradient where nothing passes
            if self.zeros:
                raise
            self.zeros = True
            found = differentiate(place, targets, gradient)
        at_ends = {end: at_end for end, at_end in zip(ends, found, strict=False) if at_end is not None}
        return at_ends, found[len(ends) :]

    @contextmanager
    def ending_at_places(self) -> Iterator[None]:
        """Let nothing pass a place but where a backward starts: what is behind it, its own backward will carry."""
        outputs: dict[Node, list[int]] = defaultdict(list)
        for node, output in self.graph.order:
            outputs[node].append(output)

        def stop(node: Node, arriving: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
            passed = list(arriving)
            for output in outputs[node]:
                gradient = arriving[output]
                if gradient is not None and (node, output) != self.start:
                    # Nothing is faster than zeros, which most operations would compute with.
                    passed[output] = torch.zeros_like(gradient) if self.zeros else None
            return tuple(passed)

        with ExitStack() as hooks:
            for node in outputs:
                hooks.callback(node.register_prehook(partial(stop, node)).remove)
            yield


@contextmanager
def _passing_only(operands: dict[Addend, list[Entry]], through: set[Addend]) -> Iterator[None]:
    """Let a sum pass its gradient to those addends alone that are in `through` as the backward runs."""

    def hook(
        index: int, addend: Addend, passed: Sequence[Tensor | None], _: Sequence[Tensor | None]
    ) -> tuple[Tensor | None, ...] | None:
        return None if addend in through else (*passed[:index], None, *passed[index + 1 :])

    with ExitStack() as hooks:
        for addend, entries in operands.items():
            for node, index in entries:
                hooks.callback(node.register_hook(partial(hook, index, addend)).remove)
        yield


def next_places(
    edges: Iterable[tuple[Node | None, int]], places: set[Edge]
) -> tuple[dict[Edge, None], dict[Tensor, None]]:
    """The next of some places behind edges of autograd's graph, and the leaves on the way."""
    ends, leaves, seen = dict[Edge, None](), dict[Tensor, None](), set[Node]()
    waiting = list(edges)
    while waiting:
        node, output = waiting.pop()
        if node is not None and (node, output) in places:
            ends[node, output] = None
        elif node is not None and node not in seen:
            seen.add(node)
            if node.name() == "torch::autograd::AccumulateGrad":
                leaves[cast(Any, node).variable] = None
            waiting += node.next_functions
    return ends, leaves


def _operands(site: JunctionSite) -> dict[Addend, list[Entry]]:
    """Where a gradient enters a junction's addends; x + f(x) + g(x) has two branches, at two adds."""
    node, branches, shortcut = site.add, list[Entry](), 0
    for _, operand in reversed(site.junction.adds):
        if branches:
            node = cast(Node, node.next_functions[shortcut][0])
        branches.append((node, operand))
        shortcut = 1 - operand
    return {"shortcut": [(node, shortcut)], "branch": branches}


def _all_ends(segment: _Segment) -> list[Edge]:
    return list(segment.ends["shortcut"] | segment.ends["branch"])


def _only(ends: dict[Edge, None], wanted: set[Edge]) -> dict[Edge, None]:
    return {end: None for end in ends if end in wanted}
