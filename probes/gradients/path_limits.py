"""`limit_paths`: train on the gradient of short, of long or of some paths alone, with the forward unchanged."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from ..discovery.classify import JunctionMatch
from ..discovery.junctions import DetectedJunction, detect_junctions
from .chain import LIMITED, is_bypassed, is_marked, leaves_between
from .gate import scale_entry
from .limited_backward import LimitedBackward


@dataclass
class PathLimit:
    """What ``limit_paths`` yields; all but ``active`` describes the last forward."""

    junctions: list[str] = field(default_factory=list)
    """The junctions' names, in execution order."""
    without_path: list[str] = field(default_factory=list)
    """The parameters that no admitted path reaches, whose gradients are zero."""
    branches: list[str] = field(default_factory=list)
    """The junctions whose branches pass the gradient on, with ``sampled``."""
    active: bool = True
    """Set it to False to let a backward carry all paths. It is read while the backward runs, so that one forward may be
    followed by a limited backward and an ordinary one (with ``retain_graph=True`` in the first)."""


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
    """Let a backward carry only some paths' gradients, for every forward of ``model`` inside this context.

    The forward does not change by a bit. A path's length is the number of branches that it takes between the loss and
    the addend that holds the parameter, its own block not counted: block l of L, counted from 0, has lengths 0 to
    L - 1 - l, what lies before the first fork 0 to L, the classifier 0. So the limit acts on the gradient at each
    junction's sum, and parameters behind the last junction always learn. Veit et al. (2016, arXiv:1605.06431) found
    the gradient in short paths; their test of it changed the forward too.

    The backward must run inside the context, before the next forward. It costs about one more backward without weight
    gradients for each length below the limit; your own backward hooks inside branches see these too. ``record`` and
    another ``limit_paths`` do not go with it, ``gate`` does.

    Args:
        model: Any module whose junctions are a chain; it is not changed.
        at_most: The longest admitted length. 0 is the gradient of the ``shortest-path`` arm; L or more is ordinary
            training, bit for bit.
        at_least: The shortest admitted length; alone or with ``at_most``.
        exactly: The only admitted length.
        sampled: Instead of a length: in each forward that many branches are drawn (Veit et al.: 23 of 54), and the
            others pass no gradient on to their forks.
        generator: Draws them; torch's default one without it.

    Yields:
        The ``PathLimit``, which describes the last forward.

    Raises:
        ValueError: The limits are negative, contradictory or (``sampled``, ``at_least``) more than the junctions; or
            the junctions are no chain.
        RuntimeError: The model hides its adds; or the backward has ``create_graph=True`` or runs at another time.

    Example::

        with limit_paths(model, at_most=3):
            loss = F.cross_entropy(model(images), labels)
            loss.backward()
    """
    low, high = _bounds(at_most, at_least, exactly, sampled)
    found: list[tuple[str, Node, JunctionMatch]] = []
    limit = PathLimit()
    running: list[LimitedBackward] = []  # of the last forward
    parameter_names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}

    def on_junction(detected: DetectedJunction) -> None:
        junction = detected.junction
        found[junction.depth :] = [(junction.name, detected.add, detected.match)]

    def on_end(roots: list[Node]) -> None:
        chain = found.copy()
        found.clear()
        _check_chain(chain, roots, low, sampled)
        limit.junctions = [name for name, _, _ in chain]
        limit.without_path = _without_path(chain, roots, low, parameter_names) if low else []
        if sampled is not None:
            limit.branches = _sample(chain, sampled, generator, lambda: 0.0 if limit.active else 1.0)
        elif low > 0 or (high is not None and high < len(chain)):
            running.append(LimitedBackward(chain, low, high, lambda: limit.active))

    def on_start() -> None:
        found.clear()
        running.clear()

    try:
        with detect_junctions(model, on_junction, on_start=on_start, on_end=on_end, values=False):
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
    chain: Sequence[tuple[str, Node, JunctionMatch]], roots: Sequence[Node], low: int, sampled: int | None
) -> None:
    if not chain:
        raise ValueError("limit_paths: the model has no residual junctions, so that there are no path lengths")
    if low > len(chain) or (sampled or 0) > len(chain):
        raise ValueError(
            f"limit_paths: {max(low, sampled or 0)} branches are more than the {len(chain)} junctions have"
        )
    if any(is_marked(add, LIMITED) for _, add, _ in chain):
        raise ValueError("limit_paths does not nest: give at_least and at_most in one")
    if is_bypassed(chain[0][2].fork[0], roots):
        raise ValueError(
            f"limit_paths: the junctions are no chain: what is before {chain[0][0]!r} is also used by a route around "
            "them (a long skip): gradients are limited at the junctions' sums, which what comes by that route does not "
            "pass"
        )


def _without_path(
    chain: Sequence[tuple[str, Node, JunctionMatch]],
    roots: Sequence[Node],
    low: int,
    parameter_names: dict[Tensor, str],
) -> list[str]:
    """The parameters up to the last junction that have no path as long as the lowest admitted length."""
    always = set(leaves_between(roots, chain[-1][1]))  # what is used behind the last junction learns in any case
    longest: dict[str, int] = {}
    for index, (_, add, match) in enumerate(chain):
        above = len(chain) - 1 - index
        before = chain[index - 1][1] if index else None
        for start, end, most in ((add, match.fork[0], above), (match.fork[0], before, above + 1)):
            for leaf in leaves_between([start], end):
                if leaf in parameter_names and leaf not in always:
                    longest[parameter_names[leaf]] = max(most, longest.get(parameter_names[leaf], 0))
    return [name for name, most in longest.items() if most < low]


def _sample(
    chain: Sequence[tuple[str, Node, JunctionMatch]],
    sampled: int,
    generator: torch.Generator | None,
    weight: Callable[[], float],
) -> list[str]:
    """Give that weight to the gradient of all branches but some, drawn at random; the names of these."""
    drawn = set(torch.randperm(len(chain), generator=generator)[:sampled].tolist())
    for index, (_, _, match) in enumerate(chain):
        for entry in match.entries["branch"] if index not in drawn else ():
            scale_entry(entry, weight)
    return [chain[index][0] for index in sorted(drawn)]
