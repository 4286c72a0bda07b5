"""Junctions are discovered, not listed: adds are intercepted while a model runs, and classified by autograd's graph.

`find_junctions` lists the junctions of a model; `detect_junctions` is the mechanism behind it, `record`, `gate` and
`limit_paths`, which also gives each junction's addends and its place in autograd's graph.
"""

import math
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, overload
from weakref import WeakKeyDictionary

import pandas as pd
import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.func import functional_call
from torch.utils._pytree import tree_leaves

from .adds import Add, AddMode, call_name, intercept_adds, module_name
from .classify import JunctionMatch, added_to, classify_add, extend_match
from .graph import LAYOUT, hidden_by, made_of_inputs, passes_for_parameter
from .origins import ModuleCalls, Origin, tensors
from .refusals import refusal, refuse_sharded_activation


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
    values: bool = True,
) -> AbstractContextManager[None]:
    """A context in which junctions are detected while the model runs.

    on_junction: called at each junction; at x + f(x) + g(x) once more, with the same depth: what was detected there
    before is but a part. on_other_add: called at each other add of two tensors, with its name and the reason. on_start,
    on_end: called before and after each forward with gradients, `on_end` with the outputs' nodes. on_output: called
    with the output of a module that adds, where this is the sum of its last junction behind an activation; then forks
    and origins are looked for, too. values: whether the addends' values are needed, which costs a copy at an in-place
    add. Raises RuntimeError where adds would be missed.
    """
    return intercept_adds(_Detector(model, on_junction, on_other_add, on_start, on_end, on_output, values))


# What each model was given last (its signature), and whether inputs need a node in the graph there.
LAST_INPUTS: WeakKeyDictionary[nn.Module, tuple[object, bool]] = WeakKeyDictionary()


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
        values: bool,
    ) -> None:
        super().__init__(model)
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
        first forward with such inputs had no fork that was made of inputs alone, and nothing that would pass for a
        parameter."""
        leaves = tree_leaves((args, kwargs))
        shapes = [tuple(x.shape[1:]) if isinstance(x, Tensor) else type(x) for x in leaves]
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
        # An in-place add overwrites its first addend.
        first = add.first.detach().clone() if self.values and add.in_place else add.first.detach()
        total = add.execute()
        node, second = total.grad_fn, add.second.detach()
        if node is None:
            self.on_other_add(add.name, "no gradient passes through it")
        elif node.name() not in ("AddBackward0", "SubBackward0"):
            self.on_other_add(add.name, "it writes into a part of another tensor")
        elif first.shape != second.shape:
            self.on_other_add(add.name, "its addends differ in shape: a bias, an embedding or a mask")
        else:
            self._classify(add, node, (first, second if add.weight == 1 else add.weight * second), total)
        return total

    def _classify(self, add: Add, node: Node, values: tuple[Tensor, Tensor], total: Tensor) -> None:
        inside = "" if add.call == "(model)" else module_name(add.call) + "."
        outside = {found for name, found in self.junctions if not inside or not name.startswith(inside)}
        match = classify_add(node, outside, self.frozen.nodes)
        if isinstance(match, str):
            if not self._extends_last(add, node, values, total):
                self.on_other_add(add.name, match)
            return
        operand = match.shortcut_operand
        junction = Junction(add.name, len(self.junctions), match.kind, ((add.name, 1 - operand),))
        self.junctions.append((add.name, node))
        self.forks.append(match.fork[0])
        detected = DetectedJunction(junction, values[operand], values[1 - operand], node, match, total.detach())
        self._detected(add, detected, 1 - operand)

    def _extends_last(self, add: Add, node: Node, values: tuple[Tensor, Tensor], total: Tensor) -> bool:
        """Whether this add extends the sum of the last junction, which then is detected again."""
        call, last = self.last or (None, None)
        operand = None if last is None else added_to(last.add, node)
        if last is None or operand is None or call != add.call or (add.weight != 1 and operand == 0):
            return False
        match = extend_match(last.match, last.add, node, self.frozen.nodes)
        if match is None:
            return False
        self.junctions[-1] = (add.name, node)
        branch = last.branch_value + values[operand] if self.values else values[operand]
        junction = replace(last.junction, name=add.name, adds=(*last.junction.adds, (add.name, operand)))
        detected = DetectedJunction(junction, last.shortcut_value, branch, node, match, total.detach())
        self._detected(add, detected, operand, part=last)
        return True

    def _detected(
        self, add: Add, detected: DetectedJunction, operand: int, part: DetectedJunction | None = None
    ) -> None:
        """operand: which one is the branch. part: the junction of which this extends the sum."""
        refuse_sharded_activation(detected.sum, detected.junction.name)
        self.last = (add.call, detected)
        if self.module_calls is not None:
            detected.fork = self.module_calls.value(detected.match.fork)
            detected.origin = _origin(self.module_calls, add, detected.add, operand)
            if part is not None and part.origin is not None:
                same = part.origin.factor == detected.origin.factor
                detected.origin = Origin(None, part.origin.factor if same else math.nan)
            self.last_of_call[add.call] = detected
        self.on_junction(detected)


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
    node, activated = output.grad_fn, False
    while node is not None and node is not detected.add and node.name() in ACTIVATIONS | LAYOUT:
        activated |= node.name() in ACTIVATIONS
        node = node.next_functions[0][0]
    return activated and node is detected.add
