"""The gradient at the first fork, and at parameters, taken apart exactly by the length of the paths it travelled."""

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Literal, overload

import pandas as pd
import torch
from torch import Tensor
from torch.autograd.graph import Node

from ..discovery.refusals import refuse_sharded_parameters
from ..gradients.chain import backpropagate, backpropagate_to_leaves, leaves_between, through_junction
from ..norms import inner, scaled_norm
from ..recording import Recording
from ..tables import table
from .sampled_paths import sample_paths


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

    A path takes, at every junction, either the shortcut or the branch; its length is the number of branches it takes
    (Veit et al. 2016, arXiv:1605.06431). The gradients by length are carried back from the last junction: what comes
    back through a shortcut keeps its length, what comes back through a branch gains one. What the backward really
    computes is taken apart, so backward weights count as they stand now.

    It takes the branch products of about (L + 1) / 2 backward passes (for parameters: whole backward passes), and the
    memory of 2 (L + 1) forks beside a single backward's.

    Args:
        recording: Of a backward with ``retain_graph=True``, whose junctions are a chain.
        max_length: Leave out longer paths; then the sum is that of lengths 0 to ``max_length``.
        of: ``"inputs"``, the gradient at the first fork, or ``"parameters"``, that of each parameter up to the last
            junction.

    Returns:
        For ``"inputs"`` a tensor of shape (L + 1, \*first fork's shape) for L junctions. Entry k is the sum over *all*
        paths of length k, in the units of the gradient of the loss as given; the sum over k is autograd's gradient at
        the first fork.

        For ``"parameters"`` the same by parameter name. A path's length is there the number of branches between the
        loss and the addend that holds the parameter, its own block not counted: (L - l, \*parameter's shape) in block
        l, counted from 0, and (L + 1, ...) before the first fork. A parameter that is used in several places up to
        there has the sum. What is used behind the last junction alone is left out: all of it is of length 0, autograd's
        own gradient. Of a parameter that is used on both sides (tied weights), that share is missing.

    Raises:
        ValueError: ``max_length`` is out of range, the junctions are no chain (a route leads around one, or one lies
            inside another), nothing was recorded, or the gradient is of parameters that are DTensors.
        RuntimeError: The graph was freed: call ``loss.backward(retain_graph=True)``.

    Example::

        with record(model) as recording:
            F.cross_entropy(model(images), labels).backward(retain_graph=True)
        path_gradients(recording).sum(0)       # autograd's gradient at the first fork
    """
    chain = recording.chain()
    if max_length is not None and (not isinstance(max_length, int) or not 0 <= max_length <= len(chain)):
        raise ValueError(
            f"max_length is {max_length}: give a number from 0 to {len(chain)}, the junctions, or None for all"
        )
    if of not in ("inputs", "parameters"):
        raise ValueError(f'of is {of!r}: give "inputs" (the gradient at the first fork) or "parameters"')
    if of == "parameters":
        refuse_sharded_parameters(recording.names, "path lengths of parameters")
    if of == "parameters" and recording.is_bypassed:
        raise ValueError(
            f"the junctions are no chain: what is before {chain[0].name!r} is also used by a route around them (a long "
            "skip), so that the gradients of its parameters have no path lengths"
        )
    lengths, parameters = _carry_back(recording, max_length, with_parameters=of == "parameters")
    if of == "parameters":
        return {name: torch.stack(of_parameter) for name, of_parameter in parameters.items()}
    return torch.stack(lengths)


def _carry_back(
    recording: Recording, max_length: int | None, *, with_parameters: bool
) -> tuple[list[Tensor], dict[str, list[Tensor]]]:
    """The gradients by path length at the first fork, and those of the parameters that are met on the way."""
    chain = recording.junctions
    most = len(chain) + 1 if max_length is None else max_length + 1
    parameters = _Parameters(recording.names if with_parameters else {})
    lengths = [recording.gradient(chain[-1], "junction")]
    for site, before in zip(reversed(chain), [*chain[-2::-1], None], strict=True):
        fork = site.match.fork
        within = parameters.between(site.add, fork[0])
        keep = partial(parameters.keep, within)
        lengths = through_junction(site.name, site.add, site.match, lengths, within, keep)[:most]
        within = parameters.between(fork[0], before.add if before else None)
        for length, gradient in enumerate(lengths):
            if before is None:
                parameters.keep(within, length, backpropagate_to_leaves(gradient, fork, within))
            else:
                where = f"{before.name!r} to {site.name!r}"
                lengths[length], of_leaves = backpropagate(gradient, fork, (before.add, 0), where, within)
                parameters.keep(within, length, of_leaves)
    return lengths, parameters.lengths


class _Parameters:
    """Collects the gradients of parameters by path length."""

    def __init__(self, names: dict[Tensor, str]) -> None:
        self.names = names
        self.lengths: dict[str, list[Tensor]] = {}

    def between(self, start: Node, end: Node | None) -> list[Tensor]:
        return [leaf for leaf in leaves_between([start], end) if leaf in self.names] if self.names else []

    def keep(self, leaves: Sequence[Tensor], length: int, gradients: Sequence[Tensor | None]) -> None:
        for leaf, gradient in zip(leaves, gradients, strict=True):
            of_leaf = self.lengths.setdefault(self.names[leaf], [])
            while len(of_leaf) <= length:
                of_leaf.append(torch.zeros_like(leaf))
            if gradient is not None:
                of_leaf[length] = of_leaf[length] + gradient


def path_contributions(
    recording: Recording,
    *,
    max_length: int | None = None,
    of: Literal["inputs", "parameters"] = "inputs",
    samples: int = 0,
    seed: int = 0,
) -> pd.DataFrame:
    """What each path length contributes to a gradient.

    Args:
        recording: Of a backward with ``retain_graph=True``, whose junctions are a chain.
        max_length: Leave out longer paths.
        of: ``"inputs"``, the gradient at the first fork, or ``"parameters"``: see ``path_gradients`` for what a path's
            length is there, and for the cost.
        samples: Random paths of each length from which ``cancellation`` is estimated; 0 for none. For ``"inputs"``
            alone.
        seed: Of the choice of these paths.

    Returns:
        Columns ``path_length``, ``quantity``, ``value``, for ``"parameters"`` also ``block`` (the parameter's name),
        with the quantities

        - ``norm``: of the summed gradient g_k of all paths of length k (L2 over the whole batch tensor, of the gradient
          of the loss as given);
        - ``share``: <g_k, g> / <g, g> with g the whole gradient; signed, the shares of all lengths sum to 1, nan if
          g = 0;
        - ``cancellation``, with ``samples``: the norm of the sum over the sum of the norms that Veit et al. (2016,
          arXiv:1605.06431) sample (see ``sample_paths``), 1 where all paths of a length point the same way.

    Raises:
        ValueError: As ``path_gradients``, and for ``samples`` with ``of="parameters"``.
        RuntimeError: The graph was freed: call ``loss.backward(retain_graph=True)``.

    Example::

        with record(model) as recording:
            F.cross_entropy(model(images), labels).backward(retain_graph=True)
        path_contributions(recording)
    """
    if samples and of == "parameters":
        raise ValueError('path_contributions: paths are sampled for the gradient at the first fork: of="inputs"')
    if of == "parameters":
        by_name = path_gradients(recording, max_length=max_length, of="parameters")
        rows = [{"block": name} | row for name, lengths in by_name.items() for row in _rows(lengths, lengths.sum(0))]
        return table(rows)
    lengths = path_gradients(recording, max_length=max_length)
    rows = list(_rows(lengths, recording.gradient(recording.junctions[0], "total")))
    if samples:
        mass = sample_paths(recording, lengths=range(len(lengths)), samples=samples, seed=seed)
        mass = mass[mass["quantity"] == "mass"].set_index("path_length")["value"]
        rows += [
            {"path_length": k, "quantity": "cancellation", "value": scaled_norm(g) / mass[k] if mass[k] else math.nan}
            for k, g in enumerate(lengths)
        ]
    return table(rows)


def _rows(lengths: Tensor, total: Tensor) -> Iterator[dict[str, object]]:
    # In units of its largest element, so that squares of a vanished gradient stay in range.
    unit = max(lengths.abs().amax().item(), total.abs().amax().item()) or 1.0
    whole = total.double() / unit
    square = inner(whole, whole)
    for length, gradient in enumerate(lengths):
        share = inner(gradient.double() / unit, whole) / square if square else math.nan
        yield {"path_length": length, "quantity": "norm", "value": scaled_norm(gradient)}
        yield {"path_length": length, "quantity": "share", "value": share}
