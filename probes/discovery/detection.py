"""The one mechanism: every add is seen while a model runs, and autograd's graph judges it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, is_dataclass, replace
from itertools import chain
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.utils._pytree import tree_leaves

from .adds import Add, AddMode, watching
from .graph import hidden_part, without_parameters
from .refusals import refusal
from .classify import Verdict, goes_on, judge


@dataclass(frozen=True)
class Junction:
    """Where a shortcut connection and a residual branch are added."""

    name: str
    """The module that adds ("layer1.0"), "@1" behind it in that module's second call, "#1" at its call's second add (or
    difference) of two tensors. A sum x + f(x) + g(x) is one junction, named after its last add."""
    depth: int
    """Index in execution order, from 0 at the input."""
    shortcut: Literal["identity", "projection"]
    adds: tuple[tuple[str, int], ...] = field(default=(), repr=False, compare=False)
    """The adds that make the sum, by name: one, or more for x + f(x) + g(x); and which operand of each is a branch."""
    adds_of_call: int = field(default=0, repr=False, compare=False)
    """How many adds of two tensors there were in that call of that module, where `find_junctions` found it."""


@dataclass(eq=False)
class Sighting:
    """A junction as it was seen in one forward: its addends' values, and its place in autograd's graph."""

    junction: Junction
    shortcut: Tensor
    branch: Tensor
    add: Node
    verdict: Verdict


@contextmanager
def watch(
    model: nn.Module,
    see: Callable[[Sighting], None],
    *,
    pass_over: Callable[[str, str], None] = lambda name, reason: None,
    start: Callable[[], None] = lambda: None,
    end: Callable[[list[Node]], None] = lambda roots: None,
    values: bool = True,
) -> Iterator[None]:
    """Watch the model while it runs inside this context.

    see: called at each junction; at x + f(x) + g(x) once more, with the same depth: what was seen there before is but
    a part. pass_over: called at each other add of two tensors, with its name and the reason. start, end: called before
    and after each forward with gradients, `end` with the outputs' nodes. values: sightings need the addends' values,
    which costs a copy at an in-place add. Raises RuntimeError where adds would be missed.
    """
    with watching(_Judge(model, see, pass_over, start, end, values)):
        yield


# What each model's last forward with gradients was given (its signature), and whether a fork was made of inputs alone.
INPUTS_SEEN: WeakKeyDictionary[nn.Module, tuple[object, bool]] = WeakKeyDictionary()


class _Judge(AddMode):
    """Tells junctions from other adds."""

    def __init__(
        self,
        model: nn.Module,
        see: Callable[[Sighting], None],
        pass_over: Callable[[str, str], None],
        on_start: Callable[[], None],
        on_end: Callable[[list[Node]], None],
        values: bool,
    ) -> None:
        super().__init__(model)
        self.see, self.pass_over, self.on_start, self.on_end = see, pass_over, on_start, on_end
        self.values = values
        self.junctions: list[tuple[str, Node]] = []
        self.forks: list[Node] = []
        self.last: tuple[str, Sighting] | None = None

    def begin(self, args: Any, kwargs: Any) -> bool:
        self.differentiable = torch.is_grad_enabled()
        if self.differentiable:
            self.on_start()
        return self._forks_may_be_inputs(args, kwargs)

    def _forks_may_be_inputs(self, args: Any, kwargs: Any) -> bool:
        """Whether inputs need a place in autograd's graph, at the price of a gradient into them: not where the model's
        last forward, with such inputs, had no fork that was made of inputs alone."""
        leaves = tree_leaves((args, kwargs))
        shapes = [tuple(x.shape[1:]) if isinstance(x, Tensor) else type(x) for x in leaves]
        trained = tuple(parameter.requires_grad for parameter in self.parameters)
        self.signature = (self.model.training, trained, tuple(kwargs), tuple(shapes))
        signature, made_of_inputs = INPUTS_SEEN.get(self.model, (None, True))
        return made_of_inputs or signature != self.signature

    def end(self, output: Any) -> None:
        if not self.differentiable:
            return
        INPUTS_SEEN[self.model] = (self.signature, any(map(without_parameters, self.forks)))
        roots = [x.grad_fn for x in _tensors(output) if x.grad_fn is not None]
        if what := hidden_part(roots):
            raise refusal(what)
        self.on_end(roots)

    def forget(self) -> None:
        super().forget()
        self.junctions.clear()
        self.forks.clear()
        self.last = None

    def add(self, add: Add) -> Tensor:
        # An in-place add overwrites its first addend.
        first = add.first.detach().clone() if self.values and add.in_place else add.first.detach()
        total = add.happen()
        node, second = total.grad_fn, add.second.detach()
        if node is None:
            self.pass_over(add.name, "no gradient passes through it")
        elif node.name() not in ("AddBackward0", "SubBackward0"):
            self.pass_over(add.name, "it writes into a part of another tensor")
        elif first.shape != second.shape:
            self.pass_over(add.name, "its addends differ in shape: a bias, an embedding or a mask")
        else:
            self._judge(add, node, (first, second if add.weight == 1 else add.weight * second))
        return total

    def _judge(self, add: Add, node: Node, values: tuple[Tensor, Tensor]) -> None:
        inside = "" if add.call == "(model)" else add.call + "."
        outside = {found for name, found in self.junctions if not inside or not name.startswith(inside)}
        verdict = judge(node, outside, self.frozen.nodes)
        if isinstance(verdict, str):
            if not self._goes_on(add, node, values):
                self.pass_over(add.name, verdict)
            return
        junction = Junction(add.name, len(self.junctions), verdict.kind, ((add.name, 1 - verdict.shortcut),))
        self.junctions.append((add.name, node))
        self.forks.append(verdict.fork[0])
        shortcut, branch = values[verdict.shortcut], values[1 - verdict.shortcut]
        self._see(add, Sighting(junction, shortcut, branch, node, verdict))

    def _goes_on(self, add: Add, node: Node, values: tuple[Tensor, Tensor]) -> bool:
        """Whether this add goes on with the sum of the last junction, which then is seen again."""
        call, before = self.last or (None, None)
        if before is None or call != add.call or (add.weight != 1 and node.next_functions[0] != (before.add, 0)):
            return False
        verdict = goes_on(node, before.add, before.verdict, self.frozen.nodes)
        if verdict is None:
            return False
        self.junctions[-1] = (add.name, node)
        joined = 1 - node.next_functions.index((before.add, 0))
        branch = before.branch + values[joined] if self.values else values[joined]
        junction = replace(before.junction, name=add.name, adds=(*before.junction.adds, (add.name, joined)))
        self._see(add, Sighting(junction, before.shortcut, branch, node, verdict))
        return True

    def _see(self, add: Add, sighting: Sighting) -> None:
        self.last = (add.call, sighting)
        self.see(sighting)


def _tensors(output: Any) -> list[Tensor]:
    """The tensors of an output: a tensor, or nested containers or dataclasses of them."""
    leaves = tree_leaves(output)
    inner = [tree_leaves(vars(leaf)) for leaf in leaves if is_dataclass(leaf)]
    return [x for x in (*leaves, *chain.from_iterable(inner)) if isinstance(x, Tensor)]
