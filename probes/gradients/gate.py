"""`gate`: weight the shortcuts and branches of any model, forwards and backwards, without touching the model."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import reduce
from operator import or_

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from ..discovery.classify import JunctionMatch
from ..discovery.graph import Edge, Entry, Walk
from ..discovery.junctions import Addend, DetectedJunction, Junction, detect_junctions
from ..scaling import scale_gradient
from .chain import GATED, mark

Weights = float | Mapping[str, float] | Callable[[Junction], float]


@contextmanager
def gate(
    model: nn.Module,
    *,
    shortcut: Weights = 1.0,
    branch: Weights = 1.0,
    shortcut_gradient: Weights | None = None,
    branch_gradient: Weights | None = None,
    where: str | Callable[[Junction], bool] = "*",
) -> Iterator[None]:
    """Weight shortcuts and branches, forwards and backwards, for every forward of ``model`` inside this context.

    All weights are relative to the model's own: 1 leaves untouched. Where the model computes S(x) + F(x), it computes
    shortcut · S(x) + branch · F(x), and of a gradient g at the sum, x receives shortcut_gradient · J_Sᵀg +
    branch_gradient · J_Fᵀg: stop-gradient is ``shortcut_gradient=0``, plain ``shortcut=0``, gradient-only
    ``shortcut=0, shortcut_gradient=1``. Parameters inside a projection or a branch receive the gradient of the value,
    that is, times the forward weight. Gradient weights do not change values by a bit. At weight 0 a value adds exactly
    nothing, even where it is inf or nan, and a gradient is exactly zero, never missing. The backward may run after the
    context: a graph keeps the weights that it was made with. Gates nest, and their weights multiply.

    Args:
        model: Any module with residual junctions; it is not changed.
        shortcut: The weight of what the shortcuts add: any finite number; or a mapping from junction names (those not
            named have 1); or a function of the ``Junction``. It is read when the forward runs. With a weight that is
            not 1 the model runs with gradients also inside ``torch.no_grad()`` (without autograd's graph no junction is
            known), and what it returns is detached.
        branch: The same for what the branches add.
        shortcut_gradient: The weight of what the shortcuts pass back into the fork, of the same forms; None, or no name
            in a mapping, for the forward weight, which is the gradient of the value. Mappings and functions are read
            when the backward runs: they may change between steps, or between two backwards of one forward.
        branch_gradient: The same for what the branches pass back.
        where: Which junctions: a glob over their names, or a predicate on ``Junction``.

    Raises:
        ValueError: A weight is not finite; after a forward ``where`` or a mapping's name has matched no junction; a sum
            x + f(x) + g(x) has other forward weights than its part x + f(x); or a gradient is asked of an addend of
            forward weight 0 that shares a gate computed from x with the other one.
        RuntimeError: The model hides its adds (compiled, exported, replicated, with reentrant checkpointing); a sum
            that is given forward weights is under activation checkpointing; or the backward has ``create_graph=True``.

    Example::

        with gate(model, shortcut_gradient=0.0, where="layer3.*"):
            loss = F.cross_entropy(model(images), labels)
            loss.backward()
    """
    weighting = _Weighting(
        {"shortcut": shortcut, "branch": branch},
        {"shortcut": shortcut_gradient, "branch": branch_gradient},
        where if callable(where) else lambda junction: fnmatchcase(junction.name, where),
        str(where) if callable(where) else repr(where),
    )
    with detect_junctions(
        model,
        weighting.on_junction,
        on_start=weighting.found.clear,
        on_end=weighting.on_end,
        weigh=weighting.weigh if weighting.changes_values else None,
        values=False,
    ):
        yield


ADDENDS: tuple[Addend, Addend] = ("shortcut", "branch")


@dataclass(eq=False)
class _Gated:
    """A junction of the running forward."""

    junction: Junction
    match: JunctionMatch
    values: dict[Addend, float]
    """The forward weights that it was given."""
    inside: dict[Addend, set[Node]] = field(default_factory=dict)
    """The nodes of the addends of forward weight 0."""
    shares_gate: bool = False
    """Whether a way from the fork leads to both addends."""


class _Weighting:
    """The weights of one gate, and the junctions that it has met in the running forward."""

    def __init__(
        self,
        values: dict[Addend, Weights],
        gradients: dict[Addend, Weights | None],
        chosen: Callable[[Junction], bool],
        where: str,
    ) -> None:
        self.values, self.gradients, self.chosen, self.where = values, gradients, chosen, where
        self.found: list[_Gated] = []
        self.named: set[str] = set()
        for addend in ADDENDS:
            _check(addend, values[addend])
            if (of_gradient := gradients[addend]) is not None:
                _check(f"{addend}_gradient", of_gradient)
            self.named |= {name for w in (values[addend], of_gradient) if isinstance(w, Mapping) for name in w}
        self.changes_values = any(not _is_one(weights) for weights in values.values())

    def value(self, junction: Junction, addend: Addend) -> float:
        """The forward weight of an addend."""
        weight = _read(self.values[addend], junction) if self.chosen(junction) else None
        return 1.0 if weight is None else weight

    def weigh(self, junction: Junction, addend: Addend, x: Tensor) -> Tensor:
        """What is added in place of an addend."""
        value = self.value(junction, addend)
        if value == 0 and self.gradients[addend] is not None:
            return scale_gradient(x, 1.0, value=0.0)  # its gradient is wanted; parameters get none of it, see `_cut`
        return x if value == 1 else scale_gradient(x, value, value=value)

    def on_junction(self, detected: DetectedJunction) -> None:
        """A junction, or the sum of the last one goes on."""
        junction = detected.junction
        part = self.found[junction.depth] if junction.depth < len(self.found) else None
        values: dict[Addend, float] = {}
        if self.changes_values:
            values = {addend: self.value(junction, addend) for addend in ADDENDS}
        if part is not None and values != part.values:
            raise ValueError(
                f"gate: {part.junction.name!r} is part of the sum {junction.name!r}, but their forward weights differ "
                f"({part.values} and {values}), and a part is added before the rest is known: let `where` or the "
                f"weights match both names, as {part.junction.name + '*'!r} does, or choose by depth"
            )
        gated = _Gated(junction, detected.match, values, part.inside if part else {})
        self.found[junction.depth :] = [gated]
        _, operand = junction.adds[-1]
        places: dict[Addend, int] = {"branch": operand, "shortcut": 1 - operand}
        for addend, place in places.items():
            if values.get(addend) == 0 and (addend == "branch" or part is None):
                walk = Walk(detected.add, set(), detected.match.terms)
                walk.meets_at(detected.match.fork)
                nodes = walk.between(detected.match.fork, place)
                gated.inside.setdefault(addend, set()).update(nodes)
                gated.shares_gate |= part is None and bool(nodes & walk.between(detected.match.fork, 1 - place))

    def on_end(self, roots: list[Node]) -> None:
        """Scale the gradients of all junctions of a forward."""
        gated = [found for found in self.found if self.chosen(found.junction)]
        names, all_names = [g.junction.name for g in gated], [g.junction.name for g in self.found]
        self.found.clear()
        if not gated:
            raise ValueError(f"gate: where={self.where} matches none of the model's junctions: {_listed(all_names)}")
        if unknown := sorted(self.named - set(names)):
            raise ValueError(f"gate: no gated junction is called {_listed(unknown)}; there are {_listed(names)}")
        for junction in gated:
            for addend in ADDENDS:
                self._scale(junction, addend)

    def _scale(self, gated: _Gated, addend: Addend) -> None:
        junction, weights, value = gated.junction, self.gradients[addend], gated.values.get(addend, 1.0)
        if value == 0:
            if weights is None:
                _keep_zeros(gated.inside[addend])
                return
            if gated.shares_gate:
                raise ValueError(
                    f"gate: the {addend} of {junction.name!r} has the forward weight 0 and a gradient weight of its "
                    "own, but a gate computed from the fork belongs to both addends, so that its gradient cannot be "
                    "told apart: leave the gradient weight out, or give a small forward weight"
                )
            _cut(gated.inside[addend], gated.match.fork)
        if weights is None or (value == 1 and _is_one(weights)):
            return  # for good: a hook would cost time and do nothing

        def relative() -> float:
            """To the gradient that arrives, which is the value's; at value 0 that of value 1."""
            weight = _read(weights, junction)
            return (value if weight is None else weight) / (value or 1.0)

        further = gated.match.further if addend == "shortcut" else ()
        for entry in (*gated.match.entries[addend], *further):
            scale_entry(entry, relative)


def _cut(nodes: set[Node], fork: Edge) -> None:
    """Let an addend's gradient reach its fork alone, not parameters or what else it is made from."""
    for node in nodes:
        for index, (before, output) in enumerate(node.next_functions):
            if before is not None and before not in nodes and (before, output) != fork:
                scale_entry((node, index), lambda: 0.0)


def _keep_zeros(nodes: Iterable[Node]) -> None:
    """Let nodes pass zeros where zeros arrive: 0 times an activation that is inf would be nan."""

    def hook(passed: Sequence[Tensor | None], arriving: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
        come = [gradient for gradient in arriving if gradient is not None]
        if not come:
            return tuple(passed)
        some = reduce(or_, [gradient.any() for gradient in come])  # not read: that would wait for the device
        return tuple(
            p if p is None or p.layout != torch.strided else torch.where(some.to(p.device), p, torch.zeros_like(p))
            for p in passed
        )

    for node in nodes:
        node.register_hook(hook)


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


def _is_one(weights: Weights) -> bool:
    return isinstance(weights, int | float) and weights == 1


def _read(weights: Weights, junction: Junction) -> float | None:
    """The weight of a junction; None where a mapping does not name it."""
    if isinstance(weights, Mapping):
        if junction.name not in weights:
            return None
        weight = weights[junction.name]
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
