"""`limit_paths`: train on the gradient of short, of long or of some paths alone, with the forward unchanged."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from .chain import LIMITED, is_marked, leads_around, leaves_between
from .gate import scale_entry
from .limited_backward import LimitedBackward
from ..discovery.classify import Verdict
from ..discovery.detection import Sighting, watch


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
    gradients for each length below the limit; your own backward hooks inside branches see these too. `record` and
    another `limit_paths` do not go with it, `gate` does. Yields what was found (`PathLimit`). Raises ValueError for
    limits that are negative, contradictory or (sampled, at_least) more than the junctions, and where the junctions are
    no chain; RuntimeError for a model that cannot be watched, and for a backward with create_graph=True or at another
    time.
    """
    low, high = _bounds(at_most, at_least, exactly, sampled)
    found: list[tuple[str, Node, Verdict]] = []
    limit = PathLimit()
    running: list[LimitedBackward] = []  # of the last forward
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}

    def see(sighting: Sighting) -> None:
        junction = sighting.junction
        found[junction.depth :] = [(junction.name, sighting.add, sighting.verdict)]

    def end(roots: list[Node]) -> None:
        chain = found.copy()
        found.clear()
        _check_chain(chain, roots, low, sampled)
        limit.junctions = [name for name, _, _ in chain]
        limit.without_path = _without_path(chain, roots, low, names) if low else []
        if sampled is not None:
            limit.branches = _sample(chain, sampled, generator)
        elif low > 0 or (high is not None and high < len(chain)):
            running.append(LimitedBackward(chain, low, high))

    def start() -> None:
        found.clear()
        running.clear()

    try:
        with watch(model, see, start=start, end=end, values=False):
            yield limit
    finally:
        running.clear()


def _bounds(
    at_most: int | None, at_least: int | None, exactly: int | None, sampled: int | None
) -> tuple[int, int | None]:
    """The lowest and the highest admitted length."""
    given = {"at_most": at_most, "at_least": at_least, "exactly": exactly, "sampled": sampled}
    given = {name: value for name, value in given.items() if value is not None}
    for name, value in given.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise ValueError(f"limit_paths: {name} is {value!r}; give a whole number from 0")
    if not given or (len(given) > 1 and given.keys() != {"at_most", "at_least"}):
        raise ValueError(
            "limit_paths: give at_most, at_least or both, or exactly, or sampled; got " + (", ".join(given) or "none")
        )
    low, high = (exactly, exactly) if exactly is not None else (at_least or 0, at_most)
    if high is not None and low > high:
        raise ValueError(f"limit_paths: at_least={low} is more than at_most={high}: no path is left")
    return low, high


def _check_chain(
    chain: Sequence[tuple[str, Node, Verdict]], roots: Sequence[Node], low: int, sampled: int | None
) -> None:
    if not chain:
        raise ValueError("limit_paths: the model has no residual junctions, so that there are no path lengths")
    if low > len(chain) or (sampled or 0) > len(chain):
        raise ValueError(
            f"limit_paths: {max(low, sampled or 0)} branches are more than the {len(chain)} junctions have"
        )
    if any(is_marked(add, LIMITED) for _, add, _ in chain):
        raise ValueError("limit_paths does not nest: give at_least and at_most in one")
    if leads_around(roots, chain[0][2].fork[0]):
        raise ValueError(
            f"limit_paths: the junctions are no chain: what is before {chain[0][0]!r} is also used by a route around "
            "them (a long skip), where path lengths are not defined"
        )


def _without_path(
    chain: Sequence[tuple[str, Node, Verdict]], roots: Sequence[Node], low: int, names: dict[Tensor, str]
) -> list[str]:
    """The parameters up to the last junction that have no path as long as the lowest admitted length."""
    always = set(leaves_between(roots, chain[-1][1]))  # what is used behind the last junction learns in any case
    longest: dict[str, int] = {}
    for index, (_, add, verdict) in enumerate(chain):
        above = len(chain) - 1 - index
        before = chain[index - 1][1] if index else None
        for start, end, most in ((add, verdict.fork[0], above), (verdict.fork[0], before, above + 1)):
            for leaf in leaves_between([start], end):
                if leaf in names and leaf not in always:
                    longest[names[leaf]] = max(most, longest.get(names[leaf], 0))
    return [name for name, most in longest.items() if most < low]


def _sample(chain: Sequence[tuple[str, Node, Verdict]], sampled: int, generator: torch.Generator | None) -> list[str]:
    """Close all branches but some, drawn at random; the names of these."""
    drawn = set(torch.randperm(len(chain), generator=generator)[:sampled].tolist())
    for index, (_, _, verdict) in enumerate(chain):
        for entry in verdict.entries["branch"] if index not in drawn else ():
            scale_entry(entry, lambda: 0.0)
    return [chain[index][0] for index in sorted(drawn)]
