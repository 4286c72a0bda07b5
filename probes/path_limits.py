"""`limit_paths`: train on the gradient of short, of long or of some paths alone, with the forward unchanged."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from weakref import ref

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from probes.chain import Carrying, add_up, leaves_between, on_parts, pull, through_junction
from probes.gate import scale_entry
from probes.graph import Edge
from probes.norms import scaled_norm
from probes.recording import NO_CHAIN
from probes.verdict import Verdict
from probes.watch import Sighting, watch


@dataclass
class PathLimit:
    """What `limit_paths` yields; it describes the last forward."""

    junctions: list[str] = field(default_factory=list)
    """The junctions' names, in execution order."""
    without_path: list[str] = field(default_factory=list)
    """The parameters that no admitted path reaches: their gradients are zero."""
    branches: list[str] = field(default_factory=list)
    """With `sampled`: the junctions whose branches pass the gradient on."""


@contextmanager
def limit_paths(
    model: nn.Module,
    *,
    at_most: int | None = None,
    at_least: int | None = None,
    exactly: int | None = None,
    sampled: int | None = None,
    generator: torch.Generator | None = None,
) -> Iterator[PathLimit]:
    """Let a backward through `model` carry only some paths' gradients, for every forward inside this context.

        with limit_paths(model, at_most=3):
            loss = F.cross_entropy(model(images), labels)
            loss.backward()

    The forward does not change by a bit. A path's length is the number of branches that it takes between the loss and
    the addend that holds the parameter, its own block not counted: block l of L, counted from 0, has lengths 0 to
    L - 1 - l, what lies before the first fork 0 to L, the classifier 0. So the limit acts on the gradient at each
    junction's sum, and parameters behind the last junction always learn. Veit et al. (2016, arXiv 1605.06431) found
    the gradient in short paths; their test of it changed the forward too.

    at_most, at_least: bounds of the admitted lengths, alone or together; exactly: both. at_most=0 is the gradient of
    the `shortest-path` arm, at_most >= L ordinary training, bit for bit. sampled: instead, in each forward that many
    branches are drawn (by `generator`; Veit et al.: 23 of 54), and the others pass no gradient on to their forks.

    The backward must run inside the context, before the next forward. It costs about one more backward without weight
    gradients for each length below the limit. Yields what was found (`PathLimit`). Raises ValueError for limits that
    are negative, contradictory or (sampled, at_least) more than the junctions, and where the junctions are no chain;
    RuntimeError for a model that cannot be watched, and for a backward with create_graph=True or at another time.
    """
    low, high = _bounds(at_most, at_least, exactly, sampled)
    found: list[tuple[str, Node, Verdict]] = []
    limit = PathLimit()
    running: list[_Backward] = []  # of the last forward
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}

    def see(sighting: Sighting) -> None:
        junction = sighting.junction
        found[junction.depth :] = [(junction.name, sighting.add, sighting.verdict)]

    def end() -> None:
        chain = found.copy()
        found.clear()
        _check_junctions(len(chain), low, sampled)
        limit.junctions = [name for name, _, _ in chain]
        limit.without_path = _without_path(chain, low, names)
        if sampled is not None:
            limit.branches = _sample(chain, sampled, generator)
        elif low > 0 or (high is not None and high < len(chain)):
            running.append(_Backward(chain, low, high))

    def start() -> None:
        found.clear()
        running.clear()

    try:
        with watch(model, see, start=start, end=end, values=False):
            yield limit
    finally:
        running.clear()


class _Backward:
    """Replaces the gradient at each junction's sum, and at its fork, by that of the admitted lengths.

    Beside the backward, at the place that it has reached, the gradients by path length are carried along: `lengths`, of
    0 to `high`; or, without it, of 0 to `low`, the last of which stands for all from there on.
    """

    def __init__(self, chain: Sequence[tuple[str, Node, Verdict]], low: int, high: int | None) -> None:
        self.chain, self.low, self.high = chain, low, high
        self.task: int | None = None
        self.lengths: list[Tensor] = []
        self.parts: dict[str, Tensor] = {}
        for index in reversed(range(len(chain))):  # where a sum is the next fork, that fork's hook comes first
            _, add, verdict = chain[index]
            _replace((add, 0), ref(self), _Backward.at_sum, index)
            _replace(verdict.fork, ref(self), _Backward.at_fork, index)
            _add_parts(verdict, ref(self))

    def at_sum(self, index: int, gradient: Tensor) -> Tensor:
        name, add, verdict = self.chain[index]
        if index == len(self.chain) - 1:
            self.task, self.lengths = torch._C._current_graph_task_id(), [gradient]
        if self.task != torch._C._current_graph_task_id():
            raise ValueError(f"limit_paths: this backward does not pass the last junction, {self.chain[-1][0]!r}")
        admitted = self.admitted()
        self.check(name, gradient, admitted if index < len(self.chain) - 1 else gradient)
        self.lengths = through_junction(name, add, verdict, self.lengths)
        self.shorten()
        self.parts.clear()
        return admitted

    def at_fork(self, index: int, gradient: Tensor) -> Tensor:
        name, _, verdict = self.chain[index]
        self.check(name, gradient, sum(self.parts.values(), torch.zeros_like(gradient)))
        admitted = self.admitted()
        if index:
            before, add, _ = self.chain[index - 1]
            where = f"{before!r} to {name!r}"
            self.lengths = [pull(each, verdict.fork, (add, 0), where)[0] for each in self.lengths]
        return admitted

    def shorten(self) -> None:
        """Leave out the lengths beyond the highest, or add them to the last."""
        most = (self.low if self.high is None else self.high) + 1
        beyond = self.lengths[most:]
        del self.lengths[most:]
        if self.high is None:
            self.lengths[-1] = sum(beyond, self.lengths[-1])

    def admitted(self) -> Tensor:
        admitted = self.lengths[self.low :]
        return sum(admitted[1:], admitted[0]) if admitted else torch.zeros_like(self.lengths[0])

    def check(self, name: str, arrived: Tensor, expected: Tensor) -> None:
        """All that arrives must have come through junctions."""
        other = scaled_norm(arrived - expected)
        # Far above the rounding of sums in another order, far below what a route of any weight brings.
        if other > 1e-3 * max(map(scaled_norm, [arrived, *self.lengths])):
            raise ValueError(NO_CHAIN.format(name, other, scaled_norm(arrived)))


def _replace(
    place: Edge, backward: "ref[_Backward]", replacement: Callable[[_Backward, int, Tensor], Tensor], index: int
) -> None:
    """Replace what arrives at a place. Hooks must not own the backward, which owns the hooked nodes."""
    node, output = place

    def hook(arriving: Sequence[Tensor | None]) -> tuple[Tensor | None, ...] | None:
        gradient = arriving[output]
        if Carrying.now or gradient is None:
            return None
        if gradient.requires_grad:
            raise RuntimeError("limit_paths: a backward with create_graph=True cannot be limited")
        this = backward()
        if this is None:
            raise RuntimeError("limit_paths: run each backward inside the context, before the model's next forward")
        return (*arriving[:output], replacement(this, index, gradient), *arriving[output + 1 :])

    node.register_prehook(hook)


def _add_parts(verdict: Verdict, backward: "ref[_Backward]") -> None:
    def keep(name: str, gradient: Tensor) -> None:
        this = backward()
        if this is not None and not Carrying.now:
            add_up(this.parts, name, gradient)

    on_parts(verdict, keep)


def _bounds(
    at_most: int | None, at_least: int | None, exactly: int | None, sampled: int | None
) -> tuple[int, int | None]:
    """The lowest and the highest admitted length."""
    given = {"at_most": at_most, "at_least": at_least, "exactly": exactly, "sampled": sampled}
    given = {name: value for name, value in given.items() if value is not None}
    for name, value in given.items():
        if value < 0:
            raise ValueError(f"limit_paths: {name} is {value}; give a number from 0")
    if not given or (len(given) > 1 and given.keys() != {"at_most", "at_least"}):
        raise ValueError(
            "limit_paths: give at_most, at_least or both, or exactly, or sampled; got " + (", ".join(given) or "none")
        )
    low, high = (exactly, exactly) if exactly is not None else (at_least or 0, at_most)
    if high is not None and low > high:
        raise ValueError(f"limit_paths: at_least={low} is more than at_most={high}: no path is left")
    return low, high


def _check_junctions(junctions: int, low: int, sampled: int | None) -> None:
    if not junctions:
        raise ValueError("limit_paths: the model has no residual junctions, so that there are no path lengths")
    if low > junctions or (sampled or 0) > junctions:
        raise ValueError(f"limit_paths: {max(low, sampled or 0)} branches are more than the {junctions} junctions have")


def _without_path(chain: Sequence[tuple[str, Node, Verdict]], low: int, names: dict[Tensor, str]) -> list[str]:
    """The parameters up to the last junction that have no path as long as the lowest admitted length."""
    longest: dict[str, int] = {}
    for index, (_, add, verdict) in enumerate(chain if low else ()):
        above = len(chain) - 1 - index
        before = chain[index - 1][1] if index else None
        for start, end, most in ((add, verdict.fork[0], above), (verdict.fork[0], before, above + 1)):
            for leaf in leaves_between(start, end):
                if leaf in names:
                    longest[names[leaf]] = max(most, longest.get(names[leaf], 0))
    return [name for name, most in longest.items() if most < low]


def _sample(chain: Sequence[tuple[str, Node, Verdict]], sampled: int, generator: torch.Generator | None) -> list[str]:
    """Close all branches but some, drawn at random; the names of these."""
    drawn = set(torch.randperm(len(chain), generator=generator)[:sampled].tolist())
    for index, (_, _, verdict) in enumerate(chain):
        for entry in verdict.entries["branch"] if index not in drawn else ():
            scale_entry(entry, lambda: 0.0)
    return [chain[index][0] for index in sorted(drawn)]
