"""The one mechanism: every add is seen while a model runs, and autograd's graph judges it."""

import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, is_dataclass
from itertools import chain
from types import FrameType
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from probes.graph import Verdict, hidden_part, judge, without_parameters
from probes.inputs import differentiable
from probes.refusals import called_by_checkpoint, refusal, refuse_compiled, refuse_transforms

IN_PLACE = {"add_", "__iadd__"}
ADDS = IN_PLACE | {"add", "__add__", "__radd__"}


@dataclass(frozen=True)
class Junction:
    """Where a shortcut connection and a residual branch are added."""

    name: str
    """The module that adds ("layer1.0"), "@1" behind it in that module's second call, "#1" at its call's second add."""
    depth: int
    """Index in execution order, from 0 at the input."""
    shortcut: Literal["identity", "projection"]


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
    end: Callable[[], None] = lambda: None,
    values: bool = True,
) -> Iterator[None]:
    """Watch the model while it runs inside this context.

    see: called at each junction. pass_over: called at each other add of two tensors, with its name and the reason.
    start, end: called before and after each forward with gradients. values: sightings need the addends' values, which
    costs a copy at an in-place add. The hooks that tell which module is running are the only thing put on the model;
    they leave with the context. Raises RuntimeError where adds would be missed.
    """
    refuse_compiled(model)
    watcher = _Watcher(model, see, pass_over, start, end, values)
    handles = [module.register_forward_pre_hook(watcher.enter, with_kwargs=True) for module in watcher.names]
    handles += [module.register_forward_hook(watcher.leave, always_call=True) for module in watcher.names]
    try:
        # Code that was compiled before would run without our hooks: inside, it runs as it was written.
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        for handle in handles:
            handle.remove()
        watcher.stop()


# What each model's last forward with gradients was given (its signature), and whether a fork was made of inputs alone.
INPUTS_SEEN: WeakKeyDictionary[nn.Module, tuple[object, bool]] = WeakKeyDictionary()


class _Watcher(TorchFunctionMode):
    """Sees every add between the start and the end of the model's forward, and knows which module is running."""

    def __init__(
        self,
        model: nn.Module,
        see: Callable[[Sighting], None],
        pass_over: Callable[[str, str], None],
        start: Callable[[], None],
        end: Callable[[], None],
        values: bool,
    ) -> None:
        super().__init__()
        self.model = model
        self.names = {module: name or "(model)" for name, module in model.named_modules()}
        self.see, self.pass_over, self.start, self.end = see, pass_over, start, end
        self.values = values
        self.inert = self.inputs_placed = False
        self.running: list[str] = []
        self.caller: FrameType | None = None

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.inert:
            return None
        refuse_transforms()
        if module not in self.names:
            raise refusal("DataParallel")
        in_backward = torch._C._current_graph_task_id() != -1
        if in_backward and not self.running:
            # Checkpointing computes a forward again, for a graph that was seen the first time, from the same inputs.
            return differentiable((args, kwargs)) if module is self.model and self.inputs_placed else None
        if self.running and threading.get_ident() != self.thread:
            raise RuntimeError(f"{self.names[module]!r} runs in a thread of its own, where its adds cannot be seen")
        outermost = module is self.model and not self._is_running()
        if outermost:
            self._begin()
            self.inputs_placed = self._forks_may_be_inputs(args, kwargs)
            if self.inputs_placed:
                args, kwargs = differentiable((args, kwargs))
            self.__enter__()
        elif not self.running:
            if torch.is_grad_enabled():
                raise RuntimeError(
                    f"{self.names[module]!r} runs by itself, outside of the model's own call, so that junctions would "
                    "be missed: call the model itself (not its .forward), or give this part instead of the model"
                )
            return None
        call = self.calls[module]
        self.calls[module] += 1
        self.running.append(self.names[module] + (f"@{call}" if call else ""))
        return (args, kwargs) if outermost else None

    def _begin(self) -> None:
        self.stop()
        refuse_compiled(self.model)
        self.differentiable = torch.is_grad_enabled()
        if not self.differentiable and called_by_checkpoint(sys._getframe(2)):
            raise refusal("reentrant activation checkpointing")
        self.caller, self.thread = sys._getframe(2), threading.get_ident()
        self.calls: Counter[nn.Module] = Counter()
        self.adds: Counter[str] = Counter()
        self.junctions: set[Node] = set()
        self.forks: list[Node] = []
        self.start()

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        if not self.running or threading.get_ident() != self.thread:
            return
        self.running.pop()
        if self.running:
            return
        made_of_inputs = any(map(without_parameters, self.forks))
        self.stop()
        if output is None or not self.differentiable:  # None: the forward has raised
            return
        INPUTS_SEEN[self.model] = (self.signature, made_of_inputs)
        if what := hidden_part(x.grad_fn for x in _tensors(output)):
            raise refusal(what)
        self.end()

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Watcher":
        """A copy of the model, made while it is watched, is not."""
        copied = _Watcher(nn.Identity(), self.see, self.pass_over, self.start, self.end, self.values)
        copied.inert = True
        return copied

    def stop(self) -> None:
        """Leave the forward, also one that was cut short without its hooks (KeyboardInterrupt)."""
        if self.caller is not None:
            self.__exit__(None, None, None)
            self.running.clear()
            self.junctions.clear()
            self.forks.clear()
            self.caller = None

    def _forks_may_be_inputs(self, args: Any, kwargs: Any) -> bool:
        """Whether inputs need a place in autograd's graph, at the price of a gradient into them: not where the model's
        last forward, with such inputs, had no fork that was made of inputs alone."""
        leaves = tree_leaves((args, kwargs))
        shapes = [tuple(x.shape[1:]) if isinstance(x, Tensor) else type(x) for x in leaves]
        trained = sum(parameter.requires_grad for parameter in self.model.parameters())
        self.signature = (self.model.training, trained, tuple(kwargs), tuple(shapes))
        signature, made_of_inputs = INPUTS_SEEN.get(self.model, (None, True))
        return made_of_inputs or signature != self.signature

    def _is_running(self) -> bool:
        """Whether the call that started the running forward is still there."""
        frame = sys._getframe(1) if self.caller is not None else None
        while frame is not None and frame is not self.caller:
            frame = frame.f_back
        return frame is not None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") not in ADDS:
            return func(*args, **kwargs)
        first, second = _operands(*args, **kwargs)
        if not all(isinstance(x, Tensor) and x.is_floating_point() for x in (first, second)):
            return func(*args, **kwargs)
        # An in-place add overwrites its first operand.
        first = first.detach().clone() if self.values and func.__name__ in IN_PLACE else first.detach()
        written = kwargs.pop("out", None)
        if func.__name__ in IN_PLACE and args[0]._is_view():
            written, func = args[0], torch.add
        total = func(*args, **kwargs)
        self._judge(total, (first, second.detach()), kwargs.get("alpha", 1))
        # autograd takes no `out`, and hides an add into a view: those are written afterwards, with the same values.
        return total if written is None else written.copy_(total)

    def _judge(self, total: Tensor, values: tuple[Tensor, Tensor], alpha: float) -> None:
        call, ordinal = self.running[-1], self.adds[self.running[-1]]
        self.adds[call] += 1
        name = call + (f"#{ordinal}" if ordinal else "")
        add = total.grad_fn
        if add is None:
            return self.pass_over(name, "no gradient passes through it")
        if add.name() != "AddBackward0":
            return self.pass_over(name, "it writes into a part of another tensor")
        if values[0].shape != values[1].shape:
            return self.pass_over(name, "its addends differ in shape: a bias, an embedding or a mask")
        verdict = judge(add, self.junctions)
        if isinstance(verdict, str):
            return self.pass_over(name, verdict)
        junction = Junction(name, len(self.junctions), verdict.kind)
        self.junctions.add(add)
        self.forks.append(verdict.fork[0])
        if alpha != 1:
            values = (values[0], alpha * values[1])
        return self.see(Sighting(junction, values[verdict.shortcut], values[1 - verdict.shortcut], add, verdict))


def _operands(input: Any, other: Any, **_: Any) -> tuple[Any, Any]:
    return input, other


def _tensors(output: Any) -> list[Tensor]:
    """The tensors of an output: a tensor, or nested containers or dataclasses of them."""
    leaves = tree_leaves(output)
    inner = [tree_leaves(vars(leaf)) for leaf in leaves if is_dataclass(leaf)]
    return [x for x in (*leaves, *chain.from_iterable(inner)) if isinstance(x, Tensor)]
