"""Junctions are discovered, not listed: adds are intercepted while a model runs, and classified by autograd's graph.

`find_junctions` lists the junctions of a model; `detect_junctions` is the mechanism behind it, `record`, `gate` and
`limit_paths`, which also gives each junction's addends and its place in autograd's graph.
"""

import math
from collections import Counter
from collections.abc import Callable
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

from .adds import Add, AddMode, call_name, intercept_adds
from .classify import JunctionMatch, classify_add, extend_match
from .graph import LAYOUT, hidden_by, made_of_inputs, scales_gradient, written
from .origins import ModuleCalls, Origin, tensors
from .refusals import refusal


Addend = Literal["shortcut", "branch"]


@dataclass(frozen=True)
class Junction:
    """Where a shortcut connection and a residual branch are added."""

    name: str
    """The module that adds (``"layer1.0"``), ``@1`` behind it in that module's second call, ``#1`` at its call's second
    add (or difference) of two tensors. A sum x + f(x) + g(x) is one junction, named after its last add."""
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
    itself, at most reshaped or multiplied by a factor; a *projection* is linear in it (convolution, normalisation,
    pooling, padding) while the branch is not; and the branch holds parameters. The model is not changed: buffers
    (BatchNorm statistics) and random state stay as they are, and no gradient is left.

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
    # Parameters that require gradients, so that a frozen model has a graph too.
    state |= {name: nn.Parameter(p.detach()) for name, p in model.named_parameters() if p.is_floating_point()}
    devices = {p.device.index for p in model.parameters() if p.device.type == "cuda"}
    with (
        torch.random.fork_rng(devices=sorted(devices)),
        torch.inference_mode(False),
        torch.enable_grad(),
        detect_junctions(model, on_junction, on_other_add=on_other_add),
    ):
        functional_call(model, state, inputs, kwargs)
    if explain:
        return pd.DataFrame(rows, columns=["block", "depth", "verdict", "reason"])
    adds = Counter(call_name(name) for name, *_ in rows)
    return [replace(junction, adds_of_call=adds[call_name(junction.name)]) for junction in found]


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
    and origins are looked for, too. weigh: gives what is added in place of a junction's addend; then the model runs with
    gradients also where they are off, since without autograd's graph no junction is known. values: whether the addends' values are needed, which costs a copy at an in-place
    add. Raises RuntimeError where adds would be missed.
    """
    return intercept_adds(_Detector(model, on_junction, on_other_add, on_start, on_end, on_output, weigh, values))


# What each model's last forward with gradients was given (its signature), and whether a fork was made of inputs alone.
LAST_INPUTS: WeakKeyDictionary[nn.Module, tuple[object, bool]] = WeakKeyDictionary()


@dataclass(frozen=True, eq=False)
class _Match:
    """The junction that an add makes, and which of its operands is a branch; or the last one, which it extends."""

    junction: Junction
    match: JunctionMatch
    branch: int
    part: DetectedJunction | None = None


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

    def on_start(self, args: Any, kwargs: Any) -> bool:
        self.differentiable = torch.is_grad_enabled()
        if self.differentiable:
            self.on_forward_start()
            self.module_calls = None if self.on_output is None else ModuleCalls()
        return self._forks_may_be_inputs(args, kwargs)

    def _forks_may_be_inputs(self, args: Any, kwargs: Any) -> bool:
        """Whether inputs need a node in autograd's graph, at the price of a gradient into them: not where the model's
        last forward, with such inputs, had no fork that was made of inputs alone."""
        leaves = tree_leaves((args, kwargs))
        shapes = [tuple(x.shape[1:]) if isinstance(x, Tensor) else type(x) for x in leaves]
        trained = tuple(parameter.requires_grad for parameter in self.parameters)
        self.signature = (self.model.training, trained, tuple(kwargs), tuple(shapes))
        signature, of_inputs = LAST_INPUTS.get(self.model, (None, True))
        return of_inputs or signature != self.signature

    def on_end(self, output: Any) -> None:
        if not self.differentiable:
            return
        LAST_INPUTS[self.model] = (self.signature, any(map(made_of_inputs, self.forks)))
        roots = [x.grad_fn for x in tensors(output) if x.grad_fn is not None]
        if what := hidden_by(roots):
            raise refusal(what)
        self.on_forward_end(roots)

    def release(self) -> None:
        super().release()
        self.junctions.clear()
        self.forks.clear()
        self.last = self.module_calls = None
        self.last_of_call.clear()

    def on_product(self, operands: tuple[Any, ...], result: Any) -> None:
        if self.module_calls is not None:
            self.module_calls.multiply(operands, result)

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
        return add.first.copy_(total) if add.in_place and total is not add.first else total

    def _detect(self, add: Add) -> Tensor:
        # An in-place add overwrites its first addend.
        first = add.first.detach().clone() if self.values and add.in_place else add.first.detach()
        before = [(x.grad_fn, x.output_nr) for x in (add.first, add.second)]
        total = add.execute()
        node, second = _sum_node(total), add.second.detach()
        found = self._match(add, node)
        if node is None or isinstance(found, str):
            self.on_other_add(add.name, str(found))
            return total
        values = [first, second if add.weight == 1 else add.weight * second]
        for operand in (0, 1):  # by what the gate of another context has multiplied it in the meantime
            values[operand] = _times(values[operand], _factor_between(node.next_functions[operand], before[operand]))
        self._take(add, node, found, values, total)
        return total

    def _match(self, add: Add, node: Node | None) -> "_Match | str":
        """What the junction is that the node of an add makes, or the reason why it makes none."""
        if node is None:
            return "no gradient passes through it"
        if node.name() not in ("AddBackward0", "SubBackward0"):
            return "it writes into a part of another tensor"
        if add.first.shape != add.second.shape:
            return "its addends differ in shape: a bias, an embedding or a mask"
        inside = "" if add.call == "(model)" else add.call + "."
        outside = {found for name, found in self.junctions if not inside or not name.startswith(inside)}
        match = classify_add(node, outside, self.frozen.nodes)
        if isinstance(match, str):
            return self._extension(add, node) or match
        branch = 1 - match.shortcut_operand
        return _Match(Junction(add.name, len(self.junctions), match.kind, ((add.name, branch),)), match, branch)

    def _extension(self, add: Add, node: Node) -> "_Match | None":
        """The last junction, whose sum this add extends."""
        call, last = self.last or (None, None)
        if last is None or call != add.call:
            return None
        match = extend_match(last.match, last.add, node, self.frozen.nodes)
        if match is None:
            return None
        operand = 1 - [written(edge) for edge in node.next_functions].index((last.add, 0))
        if add.weight != 1 and operand == 0:
            return None
        junction = replace(last.junction, name=add.name, adds=(*last.junction.adds, (add.name, operand)))
        return _Match(junction, match, operand, last)

    def _weighed(self, add: Add) -> Add:
        """An add of weighted operands, where it is a junction."""
        with torch._C.DisableTorchFunction():  # to see what it is; the modes of other contexts see the one that counts
            trial = torch.add(add.first, add.second, alpha=add.weight)
        found = self._match(add, trial.grad_fn)
        if isinstance(found, str) or self.weigh is None:
            return add
        operands = [add.first, add.second]
        operands[found.branch] = self.weigh(found.junction, "branch", operands[found.branch])
        if found.part is None:
            operands[1 - found.branch] = self.weigh(found.junction, "shortcut", operands[1 - found.branch])
        first, second = operands
        if first is add.first and second is add.second:
            return add
        return replace(add, first=first, second=second, in_place=False, execute=lambda: add.of(first, second))

    def _take(self, add: Add, node: Node, found: "_Match", values: list[Tensor], total: Tensor) -> None:
        last = found.part
        if last is None:
            self.junctions.append((add.name, node))
            self.forks.append(found.match.fork[0])
            shortcut, branch = values[1 - found.branch], values[found.branch]
        else:
            self.junctions[-1] = (add.name, node)
            shortcut, branch = last.shortcut_value, values[found.branch]
            branch = last.branch_value + branch if self.values else branch
        detected = DetectedJunction(found.junction, shortcut, branch, node, found.match, total.detach())
        self._detected(add, detected, found.branch, part=last)

    def _detected(
        self, add: Add, detected: DetectedJunction, operand: int, part: DetectedJunction | None = None
    ) -> None:
        """operand: which one is the branch. part: the junction of which this extends the sum."""
        self.last = (add.call, detected)
        if self.module_calls is not None:
            detected.fork = self.module_calls.value(detected.match.fork)
            detected.origin = _origin(self.module_calls, add, detected.add, operand)
            if part is not None and part.origin is not None:
                same = part.origin.factor == detected.origin.factor
                detected.origin = Origin(None, part.origin.factor if same else math.nan)
            self.last_of_call[add.call] = detected
        self.on_junction(detected)


def _sum_node(total: Tensor) -> Node | None:
    """The node that computed a sum, which may have been written into another tensor."""
    return None if total.grad_fn is None else written((total.grad_fn, 0))[0]


def _factor_between(after: tuple[Node | None, int], before: tuple[Node | None, int]) -> float:
    """What `scale_gradient` multiplied a tensor by, between two places in the graph."""
    factor = 1.0
    while after != before and after[0] is not None and scales_gradient(after[0]):
        factor *= cast(Any, after[0]).value
        after = after[0].next_functions[0]
    return factor if after == before else 1.0


def _times(x: Tensor, factor: float) -> Tensor:
    return x if factor == 1 else torch.zeros_like(x) if factor == 0 else factor * x


def _origin(calls: ModuleCalls, add: Add, node: Node, operand: int) -> Origin:
    before, output = node.next_functions[operand]
    origin = Origin(None, 1.0) if before is None else calls.origin((before, output))
    return Origin(None, add.weight * origin.factor) if operand == 1 and add.weight != 1 else origin


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
