"""Junctions are discovered, not listed: adds are intercepted while a model runs, and classified by autograd's graph.

`find_junctions` lists the junctions of a model; `detect_junctions` is the mechanism behind it, `record`, `gate` and
`limit_paths`, which also gives each junction's addends and its place in autograd's graph.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast, overload
from weakref import WeakKeyDictionary

import pandas as pd
import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.func import functional_call
from torch.utils._pytree import tree_leaves

from .adds import Add, AddMode, Factor, call_name, intercept_adds, is_one, module_name, unseen
from .classify import JunctionMatch, added_to, classify_add, extend_match
from .graph import (
    BOTH,
    LAYOUT,
    SUMS,
    Entry,
    Term,
    hidden_by,
    made_of_inputs,
    mixes,
    overwrite,
    passes_for_parameter,
    scales_gradient,
    stack_behind,
    terms_of_stack,
    written,
)
from .origins import ModuleCalls, Origin, tensors, version_of
from .refusals import refusal, refuse_checkpoint, refuse_sharded_activation

Addend = Literal["shortcut", "branch"]
Place = tuple[Node | None, int]  # a tensor's in the graph, if it has one


@dataclass(frozen=True)
class Junction:
    """Where a shortcut connection and a residual branch are added."""

    name: str
    """The module that adds (``"layer1.0"``), ``@1`` behind it in that module's second call, ``#1`` at its call's second
    sum of two tensors (add, difference, ``lerp``, ``addcmul``, sum of a stack). A sum x + f(x) + g(x) is one junction,
    named after its last add."""
    depth: int
    """Index in execution order, from 0 at the input."""
    shortcut: Literal["identity", "projection"]
    """Whether the shortcut carries the fork itself, or a linear projection of it."""
    adds: tuple[tuple[str, int], ...] = field(default=(), repr=False, compare=False)
    """The adds that make the sum (one, or more for x + f(x) + g(x)), by name and by the operand that is a branch."""
    adds_of_call: int = field(default=0, repr=False, compare=False)
    """How many adds of two tensors there were in that call of that module, where ``find_junctions`` found it."""


@overload
def find_junctions(
    model: nn.Module, *inputs: Any, explain: Literal[False] = False, **kwargs: Any
) -> list[Junction]: ...
@overload
def find_junctions(model: nn.Module, *inputs: Any, explain: Literal[True], **kwargs: Any) -> pd.DataFrame: ...
def find_junctions(
    model: nn.Module, *inputs: Any, explain: bool = False, **kwargs: Any
) -> list[Junction] | pd.DataFrame:
    """Find the residual junctions of a model by running ``model(*inputs, **kwargs)`` once.

    An add is a junction when its addends reconverge on one earlier tensor: an *identity* shortcut carries that tensor
    itself, at most reshaped or multiplied by a factor, or a part of it (some channels or streams); a *projection* is
    linear in it (convolution, normalisation, pooling, padding, streams mixed by a matrix) while the branch is not; and
    the branch holds parameters. ``lerp``, ``addcmul``, x + a (f(x) - x) and sums over ``torch.stack`` are adds, too; of
    a stack, the last tensor is what a branch has given. The model is not changed: buffers (BatchNorm statistics) and
    random state stay as they are, and no gradient is left.

    Args:
        model: Any module; nothing in it needs to be prepared.
        inputs: The forward's positional arguments, a small batch.
        explain: Return a table of every add instead.
        kwargs: The forward's keyword arguments.

    Returns:
        The junctions in execution order. With ``explain=True`` a table with a row for every add of two tensors, and the
        columns ``block`` (the name of the add), ``depth`` (where it is a junction), ``verdict`` (identity | projection
        | none) and ``reason``.

    Raises:
        RuntimeError: The model hides its adds (compiled, traced, replicated, with reentrant checkpointing).

    Example::

        junctions = find_junctions(model, images)
        print(junctions[0].name, junctions[0].depth, junctions[0].shortcut)    # layer1.0 0 identity
    """
    found: list[Junction] = []
    rows: list[tuple[str, int | None, str, str]] = []

    def on_junction(detected: DetectedJunction) -> None:
        junction = detected.junction
        if junction.depth < len(found):
            part = found.pop().name
            rows[:] = [row if row[0] != part else (part, None, "none", "part of a sum that goes on") for row in rows]
        found.append(junction)
        rows.append((junction.name, junction.depth, junction.shortcut, detected.match.reason))

    def on_other_add(name: str, reason: str) -> None:
        rows.append((name, None, "none", reason))

    state = {name: buffer.clone() for name, buffer in model.named_buffers()}
    # Parameters that require gradients, so that a frozen model has a graph too; quantised weights have a type of their
    # own, and none.
    own = {name: p for name, p in model.named_parameters() if p.is_floating_point() and type(p.data) is Tensor}
    state |= {name: nn.Parameter(p.detach()) for name, p in own.items()}
    with (
        torch.random.fork_rng(devices=gpus_of(state)),
        torch.inference_mode(False),
        torch.enable_grad(),
        detect_junctions(model, on_junction, on_other_add=on_other_add),
    ):
        functional_call(model, state, inputs, kwargs)
    LAST_INPUTS.pop(model, None)  # with frozen parameters, more forks may be made of inputs alone than here
    if explain:
        return pd.DataFrame(rows, columns=["block", "depth", "verdict", "reason"])
    adds = Counter(call_name(name) for name, *_ in rows)
    return [replace(junction, adds_of_call=adds[call_name(junction.name)]) for junction in found]


def gpus_of(values: Any) -> list[int]:
    """The GPUs that hold the tensors in `values`, nested or not: those whose random state a forward may move."""
    return sorted({x.device.index for x in tree_leaves(values) if isinstance(x, Tensor) and x.is_cuda})


@dataclass(eq=False)
class DetectedJunction:
    """A junction in one forward: its addends' values, and its place in autograd's graph."""

    junction: Junction
    shortcut_value: Tensor
    branch_value: Tensor
    add: Node
    match: JunctionMatch
    sum: Tensor
    """What the add gave."""
    fork: Tensor | None = None
    """The fork's value, where it is looked for and a module took or gave it."""
    origin: Origin | None = None
    """Where the branch's addend comes from, where it is looked for."""


def detect_junctions(
    model: nn.Module,
    on_junction: Callable[[DetectedJunction], None],
    *,
    on_other_add: Callable[[str, str], None] = lambda name, reason: None,
    on_start: Callable[[], None] = lambda: None,
    on_end: Callable[[list[Node]], None] = lambda roots: None,
    on_output: Callable[[Junction, Tensor], None] | None = None,
    weigh: Callable[[Junction, Addend, Tensor], Tensor] | None = None,
    values: bool = True,
) -> AbstractContextManager[None]:
    """A context in which junctions are detected while the model runs.

    on_junction: called at each junction; at x + f(x) + g(x) once more, with the same depth: what was detected there
    before is but a part. on_other_add: called at each other add of two tensors, with its name and the reason. on_start,
    on_end: called before and after each forward with gradients, `on_end` with the outputs' nodes. on_output: called
    with the output of a module that adds, where this is the sum of its last junction behind an activation; then forks
    and origins are looked for, too. weigh: gives what is added in place of a junction's addend; then the model runs
    with gradients also where they are off, since without autograd's graph no junction is known. values: whether the
    addends' values are needed, which costs a copy at an in-place add. Raises RuntimeError where adds would be missed.
    """
    return intercept_adds(_Detector(model, on_junction, on_other_add, on_start, on_end, on_output, weigh, values))


# What each model was given last (its signature), and whether inputs need a node in the graph there.
LAST_INPUTS: WeakKeyDictionary[nn.Module, tuple[object, bool]] = WeakKeyDictionary()


@dataclass(frozen=True, eq=False)
class _Match:
    """The junction that an add makes, and which of its operands is a branch; or the last one, which it extends."""

    junction: Junction
    match: JunctionMatch
    branch: int
    part: DetectedJunction | None = None


@dataclass(frozen=True, eq=False)
class _Interpolation:
    """An add x + a (y - x)."""

    parts: Add
    """The same as a sum of (1 - a) x and a y, in the order of the add."""
    operand: int
    """Which operand of the add x is."""
    subtracted: Entry
    """Where x enters the difference."""
    factor: Entry | None
    """Where a enters its product, if there is one."""

    def terms(self, add: Node) -> list[Term]:
        """Where the gradient of the sum enters its addends."""
        x, y, (difference, index) = 1 << self.operand, 2 >> self.operand, self.subtracted
        found = [(add, self.operand, x), (difference, index, x), (difference, 1 - index, y)]
        return found if self.factor is None else [*found, (*self.factor, BOTH)]


class _Detector(AddMode):
    """Tells junctions from other adds."""

    def __init__(
        self,
        model: nn.Module,
        on_junction: Callable[[DetectedJunction], None],
        on_other_add: Callable[[str, str], None],
        on_forward_start: Callable[[], None],
        on_forward_end: Callable[[list[Node]], None],
        on_output: Callable[[Junction, Tensor], None] | None,
        weigh: Callable[[Junction, Addend, Tensor], Tensor] | None,
        values: bool,
    ) -> None:
        super().__init__(model)
        self.weigh, self.needs_graph = weigh, weigh is not None
        self.on_junction, self.on_other_add = on_junction, on_other_add
        self.on_forward_start, self.on_forward_end = on_forward_start, on_forward_end
        self.on_output, self.values = on_output, values
        self.module_calls: ModuleCalls | None = None
        self.last_of_call: dict[str, DetectedJunction] = {}
        self.junctions: list[tuple[str, Node]] = []
        self.forks: list[Node] = []
        self.last: tuple[str, DetectedJunction] | None = None
        self.recent: dict[Node, tuple[tuple[Any, ...], list[int]]] = {}

    def on_start(self, args: Any, kwargs: Any) -> bool:
        self.differentiable = torch.is_grad_enabled()
        if self.differentiable:
            self.on_forward_start()
            self.module_calls = None if self.on_output is None else ModuleCalls()
        return self._forks_may_be_inputs(args, kwargs)

    def _forks_may_be_inputs(self, args: Any, kwargs: Any) -> bool:
        """Whether inputs need a node in autograd's graph, at the price of a gradient into them: not where the model's
        first forward with such inputs had no fork that was made of inputs alone, and nothing that would pass for a
        parameter."""
        leaves = tree_leaves((args, kwargs))
        # A number or a name may decide which layers run.
        shapes = [
            tuple(x.shape[1:]) if isinstance(x, Tensor) else x if isinstance(x, bool | int | float | str) else type(x)
            for x in leaves
        ]
        trained = tuple(parameter.requires_grad for parameter in self.parameters)
        self.signature = (self.model.training, trained, tuple(kwargs), tuple(shapes))
        signature, of_inputs = LAST_INPUTS.get(self.model, (None, True))
        self.of_inputs = of_inputs if signature == self.signature else None  # None: not known
        # Without a node of its own, an input that asks for a gradient would pass for a parameter.
        leaf = any(isinstance(x, Tensor) and x.requires_grad and x.is_leaf for x in leaves)
        return self.of_inputs is not False or leaf

    def on_end(self, output: Any) -> None:
        if not self.differentiable:
            return
        roots = [x.grad_fn for x in tensors(output) if x.grad_fn is not None]
        if self.of_inputs is None:
            of_inputs = any(map(made_of_inputs, self.forks)) or passes_for_parameter(roots)
            LAST_INPUTS[self.model] = (self.signature, of_inputs)
        if what := hidden_by(roots):
            raise refusal(what)
        self.on_forward_end(roots)

    def release(self) -> None:
        super().release()
        self.junctions.clear()
        self.forks.clear()
        self.recent.clear()
        self.last = self.module_calls = None
        self.last_of_call.clear()

    def on_module_start(self, module: nn.Module, given: Any) -> None:
        if self.module_calls is not None:
            with torch._C.DisableTorchFunction():
                self.module_calls.start(self.names[module], given)

    def on_module_end(self, call: str, output: Any) -> None:
        if self.module_calls is None or self.on_output is None:
            return
        with torch._C.DisableTorchFunction():
            self.module_calls.end(output)
            detected = self.last_of_call.pop(call, None)
            first = next(tensors(output), None)
            if detected is not None and first is not None and _is_activated(first, detected):
                self.on_output(detected.junction, first.detach())

    def on_add(self, add: Add) -> Tensor:
        if self.weigh is None or not self.differentiable:
            return self._detect(add)
        total = self._detect(self._weighed(add))
        return overwrite(add.first, total) if add.in_place and total is not add.first else total

    def _detect(self, add: Add) -> Tensor:
        interpolation = self._interpolation(add)
        parts = add if interpolation is None else interpolation.parts
        before = [_place(x) for x in (parts.first, parts.second)]
        operands = [_place(x) for x in (add.first, add.second)]
        values = [parts.addend(0), parts.addend(1)] if self.values else [parts.first, parts.second]
        if self.values and add.in_place and values[0] is add.first:  # which is about to be overwritten
            values[0] = values[0].detach().clone()
        total = add.execute()
        node = _sum_node(total)
        found = self._match(add, node, interpolation)
        if node is None or isinstance(found, str):
            self.on_other_add(add.name, str(found))
        else:
            after, values = before, [value.detach() for value in values]
            if interpolation is None and add.stack is None:
                # The gate of another context may have multiplied them in the meantime.
                after = [_weighted_place(node, place) for place in before]
                factors = [_factor_between(*places) for places in zip(after, before, strict=True)]
                values = [_times(value, factor) for value, factor in zip(values, factors, strict=True)]
            elif not add.weighted and not _is_as_seen(node, add, operands):
                raise RuntimeError(
                    f"{add.name!r} interpolates or sums a stack, and a gate around this context gives its addends "
                    "forward weights: enter that gate last, inside of the other contexts"
                )
            self._take(add, node, found, values, total, after, parts.factors)
        if node is not None and node.name() == "SubBackward0":
            self._remember(node, (add.first, add.second))
        return total

    def _match(self, add: Add, node: Node | None, interpolation: "_Interpolation | None" = None) -> "_Match | str":
        """What the junction is that the node of an add makes, or the reason why it makes none."""
        if node is None:
            return "no gradient passes through it"
        if add.stack is None and node.name() not in SUMS:
            return "it writes into a part of another tensor"
        shapes = (add if interpolation is None else interpolation.parts).shapes
        if shapes[0] != shapes[1]:
            return "its addends differ in shape: a bias, an embedding or a mask"
        inside = "" if add.call == "(model)" else module_name(add.call) + "."
        outside = {found for name, found in self.junctions if not inside or not name.startswith(inside)}
        terms = None if interpolation is None else interpolation.terms(node)
        if add.stack is not None:
            if (stack := stack_behind(add.stack.grad_fn)) is None:
                return "it sums a stack of tensors without gradients"
            terms = terms_of_stack(stack)
        match = classify_add(node, outside, self.frozen.nodes, terms)
        if isinstance(match, str):
            return self._extension(add, node) or match
        branch, depth = 1 - match.shortcut_operand, len(self.junctions)
        if interpolation is not None and depth and self.junctions[-1][1] is interpolation.subtracted[0]:
            depth -= 1  # x - f(x), which is no junction of its own
        return _Match(Junction(add.name, depth, match.kind, ((add.name, branch),)), match, branch)

    def _interpolation(self, add: Add) -> "_Interpolation | None":
        """What an add x + a (y - x) mixes, which is (1 - a) x + a y."""
        for operand in (0, 1):
            x, change = (add.first, add.second)[:: 1 - 2 * operand]
            factor = add.factors[1 - operand]
            if not is_one(add.factors[operand]) or change.grad_fn is None or isinstance(factor, Tensor):
                continue
            product, node, by = None, change.grad_fn, factor
            if node.name() == "MulBackward0" and (made_of := self._remembered(node)) is not None:
                is_difference = [isinstance(x, Tensor) and self._remembered(x.grad_fn) is not None for x in made_of]
                if sum(is_difference) != 1:
                    continue
                index = is_difference.index(True)
                product, node = (node, 1 - index), made_of[index].grad_fn
                with unseen():
                    by = factor * made_of[1 - index]
            ends = self._remembered(node)
            if ends is None or node is None or node.name() != "SubBackward0" or x.grad_fn is None:
                continue
            behind = [_behind_weight(place) for place in node.next_functions]
            if (index := next((i for i in (1, 0) if behind[i] == _place(x)), None)) is None:
                continue
            if self.weigh is not None and behind != list(node.next_functions):
                raise ValueError(
                    f"gate: {add.name!r} computes x - a (x - f(x)), whose difference has been given forward weights "
                    "as if it were a junction: write it as x + a (f(x) - x), or gate gradients alone"
                )
            by = by if index == 1 else -by
            parts = (x, ends[1 - index])[:: 1 - 2 * operand]
            factors = (1 - by, by)[:: 1 - 2 * operand]
            of_parts = replace(add, first=parts[0], second=parts[1], factors=factors)
            return _Interpolation(of_parts, operand, (node, index), product)
        return None

    def on_product(self, operands: tuple[Any, ...], result: Any) -> None:
        if self.module_calls is not None:
            self.module_calls.multiply(operands, result)
        if isinstance(result, Tensor) and result.grad_fn is not None and result.grad_fn.name() == "MulBackward0":
            self._remember(result.grad_fn, operands)

    def _remember(self, node: Node, operands: tuple[Any, ...]) -> None:
        """Keep what a product or a difference was made of, for the next few sums."""
        if len(operands) == 2:
            self.recent[node] = (operands, [version_of(x) for x in operands])
            for oldest in list(self.recent)[:-6]:
                del self.recent[oldest]

    def _remembered(self, node: Node | None) -> tuple[Any, ...] | None:
        """What a node was made of, if it is kept and nothing has overwritten it since."""
        operands, versions = self.recent.get(node, ((), [None])) if node is not None else ((), [None])
        return operands if [version_of(x) for x in operands] == versions else None

    def _extension(self, add: Add, node: Node) -> "_Match | None":
        """The last junction, whose sum this add extends."""
        call, last = self.last or (None, None)
        if last is None or call != add.call or add.stack is not None:
            return None
        operand = added_to(last.add, node)
        if operand is None or not is_one(add.factors[1 - operand]):
            return None
        match = extend_match(last.match, last.add, node, self.frozen.nodes)
        if match is None:
            return None
        junction = replace(last.junction, name=add.name, adds=(*last.junction.adds, (add.name, operand)))
        return _Match(junction, match, operand, last)

    def _weighed(self, add: Add) -> Add:
        """An add of weighted operands, where it is a junction."""
        original = add
        with unseen():  # to see what it is; the modes of other contexts see the one that counts
            trial = add.of(add.first, add.second)
        interpolation = self._interpolation(add)
        found = self._match(add, trial.grad_fn, interpolation)
        if isinstance(found, str) or self.weigh is None:
            return add
        operands = [add.first, add.second]
        if interpolation is not None:
            add = replace(add, of=torch.add, factors=(1, 1))
            operands = [interpolation.parts.addend(0), interpolation.parts.addend(1)]
        given = list(operands)
        operands[found.branch] = self.weigh(found.junction, "branch", operands[found.branch])
        if found.part is None:
            operands[1 - found.branch] = self.weigh(found.junction, "shortcut", operands[1 - found.branch])
        if operands[0] is given[0] and operands[1] is given[1]:
            return original
        refuse_checkpoint(add.name)
        first, second = operands
        return replace(
            add, first=first, second=second, in_place=False, execute=lambda: add.of(first, second), weighted=True
        )

    def _take(
        self,
        add: Add,
        node: Node,
        found: "_Match",
        values: list[Tensor],
        total: Tensor,
        places: Sequence[Place],
        factors: tuple[Factor, Factor],
    ) -> None:
        """Call back with a junction, or with the last one, whose sum goes on. places: its addends' in the graph."""
        refuse_sharded_activation(total, found.junction.name)
        last = found.part
        if last is None:
            depth = found.junction.depth
            self.junctions[depth:], self.forks[depth:] = [(add.name, node)], [found.match.fork[0]]
            shortcut, branch = values[1 - found.branch], values[found.branch]
        else:
            self.junctions[-1] = (add.name, node)
            shortcut, branch = last.shortcut_value, values[found.branch]
            branch = last.branch_value + branch if self.values else branch
        detected = DetectedJunction(found.junction, shortcut, branch, node, found.match, total.detach())
        self.last = (add.call, detected)
        if self.module_calls is not None:
            detected.fork = self.module_calls.value(found.match.fork)
            detected.origin = self.module_calls.origin_of_addend(places[found.branch], factors[found.branch])
            if last is not None and last.origin is not None:
                same = last.origin.factor == detected.origin.factor
                detected.origin = Origin(None, last.origin.factor if same else math.nan)
            self.last_of_call[add.call] = detected
        self.on_junction(detected)


def _sum_node(total: Tensor) -> Node | None:
    """The node that computed a sum, which may have been written into another tensor."""
    return None if total.grad_fn is None else written((total.grad_fn, 0))[0]


def _place(x: Tensor) -> Place:
    return x.grad_fn, x.output_nr


def _weighted_place(node: Node, place: Place) -> Place:
    """Which input of a sum's node an operand is, or what another context's gate has made of it."""
    return next((found for found in node.next_functions if _behind_weight(found) == place), place)


def _is_as_seen(node: Node, add: Add, operands: Sequence[Place]) -> bool:
    """Whether a sum is of what it was asked to be of: its operands, or its stack."""
    if add.stack is None:
        return list(node.next_functions) == list(operands)
    return add.stack.grad_fn is None or mixes(node, add.stack.grad_fn)


def _behind_weight(place: Place) -> Place:
    node, _ = place
    return _behind_weight(node.next_functions[0]) if node is not None and scales_gradient(node) else place


def _factor_between(after: Place, before: Place) -> float:
    """What `scale_gradient` multiplied a tensor by, between two places in the graph."""
    factor = 1.0
    while after != before and after[0] is not None:
        factor *= cast(Any, after[0]).value
        after = after[0].next_functions[0]
    return factor


def _times(x: Tensor, factor: float) -> Tensor:
    return x if factor == 1 else torch.zeros_like(x) if factor == 0 else factor * x


ACTIVATIONS = {
    "CeluBackward0", "EluBackward0", "GeluBackward0", "HardswishBackward0", "HardtanhBackward0", "LeakyReluBackward0",
    "MishBackward0", "PreluKernelBackward0", "ReluBackward0", "SigmoidBackward0", "SiluBackward0", "SoftplusBackward0",
    "TanhBackward0",
}  # fmt: skip


def _is_activated(output: Tensor, detected: DetectedJunction) -> bool:
    """Whether a tensor is a junction's sum behind an activation."""
    node, activated = _sum_node(output), False
    while node is not None and node is not detected.add and node.name() in ACTIVATIONS | LAYOUT:
        activated |= node.name() in ACTIVATIONS
        before = node.next_functions[0]
        node = None if before[0] is None else written(before)[0]
    return activated and node is detected.add
