"""Single paths at random, and the norm of the gradient along each: what Veit et al. (2016) measured."""

import math
from collections.abc import Iterable, Iterator
from itertools import combinations

import pandas as pd
import torch
from torch import Tensor

from ..gradients.chain import backpropagate, through_addend
from ..norms import scaled_norm
from ..recording import Recording
from ..tables import table

MAX_PATHS = 100_000  # paths of one length that are walked one by one


def sample_paths(
    recording: Recording, *, lengths: Iterable[int] | None = None, samples: int | None = 1000, seed: int = 0
) -> pd.DataFrame:
    """Norms of the gradient along single random paths.

    Of each length k, k of the L branches are chosen at random; the gradient goes back through these branches alone, and
    through the shortcut at every other junction, down to the first fork (Veit et al. 2016, arXiv:1605.06431). It takes
    at most a backward pass without weight gradients for each sample.

    Args:
        recording: Of a backward with ``retain_graph=True``, whose junctions are a chain.
        lengths: Some of 0..L; all by default.
        samples: Paths of each length. Where a length has no more paths than that, each is taken once, and the mean is
            exact. None: all paths of every length.
        seed: Of the choice of paths.

    Returns:
        Columns ``path_length``, ``quantity``, ``value``, with the quantities

        - ``path_norm``: the mean over the sampled paths;
        - ``path_norm_low`` and ``path_norm_high``: its 95 % interval (normal approximation; both nan for one sample);
        - ``mass``: the mean times the number C(L, k) of paths, which ignores that paths cancel: it is at least the norm
          of their sum, the ``norm`` of ``path_contributions``;
        - ``samples``: the paths walked.

        Norms are L2 over the whole batch tensor, of the gradient of the loss as given.

    Raises:
        ValueError: A length is out of range, ``samples`` is below 1 or None where a length has more than 100,000 paths,
            the junctions are no chain, or nothing was recorded.
        RuntimeError: The graph was freed: call ``loss.backward(retain_graph=True)``.

    Example::

        with record(model) as recording:
            F.cross_entropy(model(images), labels).backward(retain_graph=True)
        sample_paths(recording, lengths=range(6), samples=200)
    """
    junctions = len(recording.chain())
    chosen = list(range(junctions + 1)) if lengths is None else list(lengths)
    _check(chosen, junctions, samples)
    generator = torch.Generator().manual_seed(seed)
    rows: list[dict[str, object]] = []
    for length in chosen:
        count = math.comb(junctions, length)
        norms = [scaled_norm(_along(recording, path)) for path in _paths(junctions, length, samples, generator)]
        mean = math.fsum(norms) / len(norms)
        error = _standard_error(norms, mean) if len(norms) < count else 0.0
        quantities = {
            "path_norm": mean,
            "path_norm_low": mean - 1.96 * error,
            "path_norm_high": mean + 1.96 * error,
            "mass": mean * count,
            "samples": len(norms),
        }
        rows += [{"path_length": length, "quantity": name, "value": value} for name, value in quantities.items()]
    return table(rows)


def _check(lengths: list[int], junctions: int, samples: int | None) -> None:
    unknown = [length for length in lengths if not isinstance(length, int) or not 0 <= length <= junctions]
    if unknown or not lengths:
        raise ValueError(f"sample_paths: lengths {unknown} are none: give some of 0 to {junctions}, the junctions")
    if samples is not None and samples < 1:
        raise ValueError(f"sample_paths: samples is {samples}; give at least 1, or None for all paths")
    widest = max(lengths, key=lambda length: math.comb(junctions, length))
    if samples is None and math.comb(junctions, widest) > MAX_PATHS:
        raise ValueError(
            f"sample_paths: {junctions} junctions have {math.comb(junctions, widest):,} paths of length {widest}, too "
            f"many to walk one by one (at most {MAX_PATHS:,}): give a number of samples"
        )


def _paths(junctions: int, length: int, samples: int | None, generator: torch.Generator) -> Iterator[set[int]]:
    """Which junctions' branches each path takes."""
    if samples is None or math.comb(junctions, length) <= samples:
        yield from map(set, combinations(range(junctions), length))
        return
    for _ in range(samples):
        yield set(torch.randperm(junctions, generator=generator)[:length].tolist())


def _along(recording: Recording, branches: set[int]) -> Tensor:
    """The gradient at the first fork that came along one path."""
    chain = recording.junctions
    gradient = recording.gradient(chain[-1], "junction")
    for index in reversed(range(len(chain))):
        site = chain[index]
        addend = "branch" if index in branches else "shortcut"
        gradient = through_addend(site.name, site.add, site.match, gradient, addend)
        if not gradient.any():  # as in most paths of a network whose shortcuts carry no gradient
            return torch.zeros_like(recording.gradient(chain[0], "total"))
        if index:
            before = chain[index - 1]
            gradient = backpropagate(gradient, site.match.fork, (before.add, 0), f"{before.name!r} to {site.name!r}")
    return gradient


def _standard_error(values: list[float], mean: float) -> float:
    if len(values) < 2:
        return math.nan
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))
