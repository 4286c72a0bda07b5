"""`gate`: scale the gradient through the shortcuts and branches of any model, without touching the model."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from ..discovery.classify import JunctionMatch
from ..discovery.graph import Entry
from ..discovery.junctions import DetectedJunction, Junction, detect_junctions
from .chain import GATED, mark

Weights = float | Mapping[str, float] | Callable[[Junction], float]


@contextmanager
def gate(
    model: nn.Module,
    *,
    shortcut_gradient: Weights = 1.0,
    branch_gradient: Weights = 1.0,
    where: str | Callable[[Junction], bool] = "*",
) -> Iterator[None]:
    """Scale the gradient through shortcuts and branches, for every forward of ``model`` inside this context.

    A weight multiplies the gradient that one addend passes into the fork, relative to the model's own. Values do not
    change by a bit, and parameters inside a projection or a branch learn as before. At weight 0 the gradient is exactly
    zero, never missing. The backward may run after the context: a graph keeps the weights that it was made with. Gates
    nest, and their weights multiply.

    Args:
        model: Any module with residual junctions; it is not changed.
        shortcut_gradient: The weight of what the shortcuts pass back, 1 for the model's own gradient: any finite
            number; or a mapping from junction names (those not named have 1); or a function of the ``Junction``.
            Mappings and functions are read when the backward runs: they may change between steps, or between two
            backwards of one forward.
        branch_gradient: The same for what the branches pass back.
        where: Which junctions: a glob over their names, or a predicate on ``Junction``.

    Raises:
        ValueError: A weight is not finite; or after a forward ``where`` or a mapping's name has matched no junction.
        RuntimeError: The model hides its adds (compiled, exported, replicated, with reentrant checkpointing); or the
            backward has ``create_graph=True``.

    Example::

        with gate(model, shortcut_gradient=0.0, where="layer3.*"):
            loss = F.cross_entropy(model(images), labels)
            loss.backward()
    """
    for name, weights in (("shortcut_gradient", shortcut_gradient), ("branch_gradient", branch_gradient)):
        _check(name, weights)
    chosen = where if callable(where) else lambda junction: fnmatchcase(junction.name, where)
    found: list[tuple[Junction, JunctionMatch]] = []

    def on_junction(detected: DetectedJunction) -> None:
        found[detected.junction.depth :] = [(detected.junction, detected.match)]

    def on_end(roots: list[Node]) -> None:
        named = {name for w in (shortcut_gradient, branch_gradient) if isinstance(w, Mapping) for name in w}
        gated: list[str] = []
        for junction, match in found:
            if chosen(junction):
                gated.append(junction.name)
                _gate(match, shortcut_gradient, branch_gradient, junction)
        names = [junction.name for junction, _ in found]
        found.clear()
        if not gated:
            raise ValueError(f"gate: where={where!r} matches none of the model's junctions: {_listed(names)}")
        if unknown := sorted(named - set(gated)):
            raise ValueError(f"gate: no gated junction is called {_listed(unknown)}; there are {_listed(gated)}")

    with detect_junctions(model, on_junction, on_start=found.clear, on_end=on_end, values=False):
        yield


def _gate(match: JunctionMatch, shortcut_gradient: Weights, branch_gradient: Weights, junction: Junction) -> None:
    for entries, weights in (
        (match.entries["shortcut"], shortcut_gradient),
        (match.entries["branch"], branch_gradient),
    ):
        if isinstance(weights, int | float) and weights == 1:
            continue  # for good: a hook would cost time and do nothing
        for entry in entries:
            scale_entry(entry, lambda weights=weights: _read(weights, junction))


def scale_entry(entry: Entry, read: Callable[[], float]) -> None:
    """Scale what a node passes to one of its inputs, by a weight that is read when the backward runs."""
    node, index = entry

    def hook(passed: Sequence[Tensor | None], _: Sequence[Tensor | None]) -> tuple[Tensor | None, ...] | None:
        gradient, weight = passed[index], read()
        if gradient is None or weight == 1:
            return None
        if gradient.requires_grad:
            raise RuntimeError(
                "gate: a backward with create_graph=True cannot be gated: what is differentiated again would pass the "
                "gate unscaled; build the weights into the model with probes.scale_gradient"
            )
        scaled = torch.zeros_like(gradient) if weight == 0 else weight * gradient
        return (*passed[:index], scaled, *passed[index + 1 :])

    node.register_hook(hook)
    mark(node, GATED)


def _read(weights: Weights, junction: Junction) -> float:
    if isinstance(weights, Mapping):
        weight = weights.get(junction.name, 1.0)
    else:
        weight = weights(junction) if callable(weights) else weights
    _check(f"the weight of {junction.name!r}", weight)
    return weight


def _check(name: str, weights: Weights) -> None:
    for weight in weights.values() if isinstance(weights, Mapping) else () if callable(weights) else (weights,):
        if not isinstance(weight, int | float) or not math.isfinite(weight):
            raise ValueError(f"gate: {name} is {weight!r}; give a finite number (0 cuts, 1 leaves untouched)")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "") if names else "(none)"
