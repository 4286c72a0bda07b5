"""The gradient at the first fork, and at parameters, taken apart exactly by the length of the paths it travelled."""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Any, Literal, overload

import pandas as pd
import torch
from torch import Tensor

from ..discovery.graph import Edge
from ..discovery.junctions import Junction
from ..discovery.refusals import refuse_sharded_parameters
from ..gradients.chain import accumulate, is_rounding
from ..gradients.junction_graph import Counts, JunctionGraph
from ..norms import inner, scaled_norm
from ..recording import Recording
from ..tables import COLUMNS, table
from .sampled_paths import sample_paths

MAX_COUNTS = 10_000  # combinations of counts by kind, each of which is a gradient at every place
ELSEWHERE = (
    "at the fork of {!r} a gradient of norm {:.3g} (of {:.3g}) came from elsewhere than from what the model returned: "
    "let the model return what the loss reads, and record(model, keep=True) where that is no junction's sum; or "
    "gradient weights have changed since the recorded backward"
)


@overload
def path_gradients(
    recording: Recording, *, max_length: int | None = None, of: Literal["inputs"] = "inputs"
) -> Tensor: ...
@overload
def path_gradients(
    recording: Recording, *, max_length: int | None = None, of: Literal["parameters"]
) -> dict[str, Tensor]: ...
def path_gradients(
    recording: Recording, *, max_length: int | None = None, of: Literal["inputs", "parameters"] = "inputs"
) -> Tensor | dict[str, Tensor]:
    r"""One gradient per path length.

    A path takes, at every junction that it passes, either the shortcut or the branch; its length is the number of
    branches it takes (Veit et al. 2016, arXiv:1605.06431). The gradients by length are carried back from the loss: what
    comes back through a shortcut keeps its length, what comes back through a branch gains one. What the backward really
    computes is taken apart, so backward weights count as they stand now.

    The junctions may form any graph. A way around a junction (a long skip, an auxiliary head, the weights of a mixture
    that are computed from the stream) takes no branch there. A branch that holds junctions counts one, and the inner
    branches that a path takes as well. Where a gate belongs to both addends, it counts as the shortcut's.

    In a chain of L junctions it takes the branch products of about (L + 1) / 2 backward passes (for parameters: whole
    backward passes), and the memory of 2 (L + 1) forks beside a single backward's.

    Args:
        recording: Of a backward with ``retain_graph=True``.
        max_length: Leave out longer paths; then the sum is that of lengths 0 to ``max_length``.
        of: ``"inputs"``, the gradient at the first fork (``recording.first``), or ``"parameters"``, that of each
            parameter up to the last junction.

    Returns:
        For ``"inputs"`` a tensor of shape (L + 1, \*first fork's shape) for L junctions. Entry k is the sum over *all*
        paths of length k, in the units of the gradient of the loss as given; the sum over k is autograd's gradient at
        the first fork.

        For ``"parameters"`` the same by parameter name. A path's length is there the number of branches between the
        loss and the parameter; a branch that holds the parameter (all between a sum and the next forks and sums) is not
        counted. In a chain that makes (L - l, \*parameter's shape) in block l, counted from 0, and (L + 1, ...) before
        the first fork. A parameter that is used in several places has the sum. In a chain, what is used behind the last
        junction alone is left out: all of it is of length 0, autograd's own gradient; of a parameter that is used on
        both sides (tied weights), that share is missing. In other graphs, what ways around junctions use is there, too.

    Raises:
        ValueError: ``max_length`` is out of range, nothing was recorded, a gradient came from elsewhere than from what
            the model returned, or the gradient is of parameters that are DTensors.
        RuntimeError: The graph was freed: call ``loss.backward(retain_graph=True)``.

    Example::

        with record(model) as recording:
            F.cross_entropy(model(images), labels).backward(retain_graph=True)
        path_gradients(recording).sum(0)       # autograd's gradient at the first fork
    """
    most = _checked(recording, max_length, of)
    by_counts, parameters = _by_counts(recording, [0] * len(recording.junctions), max_length, of)
    if of == "parameters":
        return {name: _stack(lengths, max(lengths)[0]) for name, lengths in parameters.items()}
    return _stack(by_counts or {(0,): torch.zeros_like(recording.gradient(recording.first, "total"))}, most)


def _checked(recording: Recording, max_length: int | None, of: str) -> int:
    """The longest length that is asked for."""
    junctions = len(recording.junctions)
    if max_length is not None and (not isinstance(max_length, int) or not 0 <= max_length <= junctions):
        raise ValueError(
            f"max_length is {max_length}: give a number from 0 to {junctions}, the junctions, or None for all"
        )
    if of not in ("inputs", "parameters"):
        raise ValueError(f'of is {of!r}: give "inputs" (the gradient at the first fork) or "parameters"')
    if of == "parameters":
        refuse_sharded_parameters(recording.names, "path lengths of parameters")
    return junctions if max_length is None else max_length


def _stack(gradients: dict[Counts, Tensor], most: int) -> Tensor:
    nothing = torch.zeros_like(next(iter(gradients.values())))
    return torch.stack([gradients.get((length,), nothing) for length in range(most + 1)])


def _by_counts(
    recording: Recording, kinds: Sequence[int], most: int | None, of: Literal["inputs", "parameters"]
) -> tuple[dict[Counts, Tensor], dict[str, dict[Counts, Tensor]]]:
    """The gradients at the first fork, or at each parameter, by the branches of each kind that their paths take."""
    names = recording.names if of == "parameters" else {}
    parameters: dict[str, dict[Counts, Tensor]] = {}

    def keep(leaf: Tensor, counts: Counts, gradient: Tensor | None) -> None:
        of_leaf = parameters.setdefault(names[leaf], {})
        if gradient is not None:
            accumulate(of_leaf, counts, gradient)
        elif counts not in of_leaf:
            of_leaf[counts] = torch.zeros_like(leaf)

    is_chain = recording.is_chain() and not (names and recording.is_bypassed)
    sites, target = recording.junctions, None if names else recording.first.match.fork
    if is_chain:
        given = {(sites[-1].add, 0): recording.gradient(sites[-1], "junction")}
    else:
        given = _given(recording, JunctionGraph(sites, list(recording.loss_gradients()), target=target))
    graph = JunctionGraph(sites, list(given), target=target, leaves=names)
    at_fork = graph.carry_back(lambda place, _: given.get(place), kinds=kinds, most=most, keep=keep)
    return at_fork, parameters


def _given(recording: Recording, graph: JunctionGraph) -> dict[Edge, Tensor]:
    """What the loss itself sends into each place; checked to explain the gradients that were recorded at the forks."""
    recorded, given = recording.loss_gradients(), dict[Edge, Tensor]()
    first, forks = recording.first, {site.match.fork: site for site in reversed(recording.junctions)}

    def own(place: Edge, others: list[Tensor]) -> Tensor | None:
        arrived = others[0] if others else None
        if (total := recorded.get(place)) is not None:
            rest = total if arrived is None else total - arrived
            if arrived is None or not is_rounding(scaled_norm(rest), scaled_norm(total), total):
                given[place] = rest
        elif (site := forks.get(place)) is not None:
            whole, found = recording.norms(site)["total"].item(), 0.0 if arrived is None else scaled_norm(arrived)
            missing = abs(whole - found)
            if place == first.match.fork and arrived is not None:
                missing = scaled_norm(recording.gradient(first, "total") - arrived)
            if math.isfinite(whole) and not is_rounding(missing, max(whole, found), recording.gradient(first, "total")):
                raise ValueError(ELSEWHERE.format(site.name, missing, whole))
        return given.get(place)

    graph.carry_back(own)
    if first.match.fork not in graph.order:
        whole = recording.norms(first)["total"].item()
        raise ValueError(ELSEWHERE.format(first.name, whole, whole))
    return given


def path_contributions(
    recording: Recording,
    *,
    max_length: int | None = None,
    of: Literal["inputs", "parameters"] = "inputs",
    by: Callable[[Junction], str] | Literal["block"] | None = None,
    samples: int = 0,
    seed: int = 0,
) -> pd.DataFrame:
    """What each path length contributes to a gradient.

    Args:
        recording: Of a backward with ``retain_graph=True``.
        max_length: Leave out longer paths.
        of: ``"inputs"``, the gradient at the first fork, or ``"parameters"``: see ``path_gradients`` for what a path's
            length is there, and for the cost.
        by: A function that names a junction's kind: then each combination of the numbers of branches of the kinds
            has a contribution, and costs a gradient. Or ``"block"``: those of the paths through a single branch, by
            block. For ``"inputs"``.
        samples: Random paths of each length from which ``cancellation`` is estimated; 0 for none. For ``"inputs"``
            alone, without ``by``, in a chain of junctions.
        seed: Of the choice of these paths.

    Returns:
        Columns ``path_length``, ``quantity``, ``value``; for ``"parameters"`` also ``block`` (the parameter's name);
        with kinds one more column for each, named after it, that says how many of its branches the paths take (their
        sum is ``path_length``); with ``by="block"`` also ``block`` and ``depth``, and length 1 alone. The quantities:

        - ``norm``: of the summed gradient g_k of all paths of length k (or of these counts, or through that branch; L2
          over the whole batch tensor, of the gradient of the loss as given);
        - ``share``: <g_k, g> / <g, g> with g the whole gradient; signed, the shares of all lengths sum to 1, nan if
          g = 0;
        - ``cancellation``, with ``samples``: the norm of the sum over the sum of the norms that Veit et al. (2016,
          arXiv:1605.06431) sample (see ``sample_paths``), 1 where all paths of a length point the same way.

    Raises:
        ValueError: As ``path_gradients``; ``by`` is no such function, gives no name or that of another column, or has
            more than 10,000 combinations of counts; ``samples`` or ``by="block"`` with what they do not go with.
        RuntimeError: The graph was freed: call ``loss.backward(retain_graph=True)``.

    Example::

        with record(model) as recording:
            F.cross_entropy(model(images), labels).backward(retain_graph=True)
        path_contributions(recording)
        path_contributions(recording, by=lambda junction: junction.shortcut)     # beside identities, projections
    """
    if samples and of == "parameters":
        raise ValueError('path_contributions: paths are sampled for the gradient at the first fork: of="inputs"')
    if by is not None:
        if samples:
            raise ValueError("path_contributions: paths are sampled by length alone: give samples or by, not both")
        return _by_block(recording, max_length, of) if by == "block" else _by_kind(recording, by, max_length, of)
    if of == "parameters":
        by_name = path_gradients(recording, max_length=max_length, of="parameters")
        found = ((name, row) for name, g in by_name.items() for row in _rows(_by_length(g), g.sum(0)))
        return table({"block": name, **row} for name, row in found)
    lengths = path_gradients(recording, max_length=max_length)
    rows = list(_rows(_by_length(lengths), recording.gradient(recording.first, "total")))
    if samples:
        mass = sample_paths(recording, lengths=range(len(lengths)), samples=samples, seed=seed)
        mass = mass[mass["quantity"] == "mass"].set_index("path_length")["value"]
        rows += [
            {"path_length": k, "quantity": "cancellation", "value": scaled_norm(g) / mass[k] if mass[k] else math.nan}
            for k, g in enumerate(lengths)
        ]
    return table(rows)


def _by_block(recording: Recording, max_length: int | None, of: str) -> pd.DataFrame:
    if of != "inputs" or max_length is not None:
        raise ValueError(
            'path_contributions: by="block" is of the paths through a single branch to the first fork: leave out '
            "max_length and of, or give a function as by"
        )
    sites = recording.junctions
    found, _ = _by_counts(recording, range(len(sites)), 1, "inputs")
    total = recording.gradient(recording.first, "total")
    nothing = torch.zeros_like(total)
    terms = [
        ({"block": site.name, "depth": site.depth, "path_length": 1}, found.get(counts, nothing))
        for number, site in enumerate(sites)
        for counts in [tuple(int(number == other) for other in range(len(sites)))]
    ]
    return table(_rows(terms, total))


def _by_kind(
    recording: Recording,
    by: Callable[[Junction], str],
    max_length: int | None,
    of: Literal["inputs", "parameters"],
) -> pd.DataFrame:
    most = _checked(recording, max_length, of)
    if not callable(by):
        raise ValueError(
            f"path_contributions: by is {by!r}: give a function that names a junction's kind, such as "
            'lambda junction: "mlp" if "#1" in junction.name else "attention"; or "block"'
        )
    of_site = [_kind(by, site.junction) for site in recording.junctions]
    kinds = list(dict.fromkeys(of_site))
    numbers = [of_site.count(kind) for kind in kinds]
    if (combinations := _count(numbers, most)) > MAX_COUNTS:
        raise ValueError(
            f"path_contributions: by gives {len(kinds)} kinds of junctions, whose branches can be counted in "
            f"{combinations:,} combinations (at most {MAX_COUNTS:,}): give fewer kinds, or a max_length"
        )
    found, parameters = _by_counts(recording, [kinds.index(kind) for kind in of_site], max_length, of)
    if of == "inputs":
        total = recording.gradient(recording.first, "total")
        nothing = torch.zeros_like(total)
        grid = [counts for counts in product(*(range(number + 1) for number in numbers)) if sum(counts) <= most]
        rows = list(_rows([(_labels(kinds, counts), found.get(counts, nothing)) for counts in grid], total))
    else:
        rows = []
        for name, of_name in parameters.items():
            terms = [({"block": name} | _labels(kinds, counts), of_name[counts]) for counts in sorted(of_name)]
            rows += _rows(terms, sum(of_name.values(), torch.zeros_like(terms[0][1])))
    return table(rows, kinds)


def _labels(kinds: Sequence[str], counts: Counts) -> dict[str, object]:
    return {"path_length": sum(counts), **dict(zip(kinds, counts, strict=True))}


def _kind(by: Callable[[Junction], str], junction: Junction) -> str:
    kind = by(junction)
    if not isinstance(kind, str) or not kind or kind in COLUMNS:
        raise ValueError(
            f"path_contributions: by gives {kind!r} for the junction {junction.name!r}: give a kind's name, a string "
            f"that is not empty and not that of another column ({', '.join(COLUMNS)})"
        )
    return kind


def _count(numbers: Sequence[int], most: int) -> int:
    """How many combinations of counts up to these numbers have a sum of at most `most`."""
    ways = [1]  # of each sum
    for number in numbers:
        longer = len(ways) + number
        ways = [sum(ways[max(0, total - number) : total + 1]) for total in range(longer)][: most + 1]
    return sum(ways)


def _by_length(lengths: Tensor) -> list[tuple[dict[str, object], Tensor]]:
    return [({"path_length": length}, gradient) for length, gradient in enumerate(lengths)]


def _rows(terms: Sequence[tuple[dict[str, object], Tensor]], total: Tensor) -> Iterator[dict[str, Any]]:
    # In units of its largest element, so that squares of a vanished gradient stay in range.
    unit = max(tensor.abs().amax().item() for tensor in (total, *(term for _, term in terms))) or 1.0
    whole = total.double() / unit
    square = inner(whole, whole)
    for labels, gradient in terms:
        share = inner(gradient.double() / unit, whole) / square if square else math.nan
        yield labels | {"quantity": "norm", "value": scaled_norm(gradient)}
        yield labels | {"quantity": "share", "value": share}
