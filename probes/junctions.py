"""Junctions are discovered, not listed: every add is seen while the model runs, and autograd's graph judges it."""

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.func import functional_call
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from probes.graph import Residual, residual

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
    residual: Residual


def find_junctions(model: nn.Module, *inputs: Any, **kwargs: Any) -> list[Junction]:
    """The residual junctions of a model, in execution order, found by running `model(*inputs, **kwargs)` once.

    An add is a junction when its addends reconverge on one earlier activation: an *identity* shortcut is that
    activation itself, a *projection* is linear (convolution, normalisation, pooling, padding), and the branch holds
    parameters.
    The model is not changed: buffers (BatchNorm statistics) and random state are put back, no gradient is left.
    """
    found: list[Junction] = []
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    devices = {p.device.index for p in model.parameters() if p.device.type == "cuda"}
    with (
        torch.random.fork_rng(devices=sorted(devices)),
        torch.inference_mode(False),
        torch.enable_grad(),
        watch(model, lambda sighting: found.append(sighting.junction)),
    ):
        functional_call(model, buffers, inputs, kwargs)
    return found


@contextmanager
def watch(
    model: nn.Module, see: Callable[[Sighting], None], start: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """Call `see` at each junction while the model runs inside this context, and `start` before each of its forwards.

    The hooks that tell which module is running are the only thing put on the model; they leave with the context.
    """
    watcher = _Watcher(model, see, start)
    handles = [module.register_forward_pre_hook(watcher.enter, with_kwargs=True) for module in watcher.names]
    handles += [module.register_forward_hook(watcher.leave, always_call=True) for module in watcher.names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        watcher.stop()


class _Anchored(torch.autograd.Function):
    """A tensor at a place in autograd's graph, without a copy; the model may overwrite it like any activation."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, anchor: Tensor) -> Tensor:
        ctx.mark_dirty(x)
        return x

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None]:
        return None, None


class _Passed(torch.autograd.Function):
    """A tensor that requires a gradient, passed on; its own gradient is a copy, which the user may change."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0].clone()


def differentiable(inputs: Any) -> Any:
    """Inputs, nested or not, with floating tensors at a place in autograd's graph: a fork may be the input itself."""

    def place(x: Any) -> Any:
        if not isinstance(x, Tensor) or not x.is_floating_point() or not torch.is_grad_enabled():
            return x
        if x.requires_grad:
            return _Passed.apply(x)
        # `.data` has a version of its own, so that the user's graphs which wait for their backward do not see a change.
        return _Anchored.apply(x.clone() if x.is_inference() else x.data, torch.zeros((), requires_grad=True))

    return tree_map(place, inputs)


class _Watcher(TorchFunctionMode):
    """Sees every add between the start and the end of the model's forward, and knows which module is running."""

    def __init__(self, model: nn.Module, see: Callable[[Sighting], None], start: Callable[[], None]) -> None:
        super().__init__()
        self.model = model
        self.names = {module: name or "(model)" for name, module in model.named_modules()}
        self.see, self.start = see, start
        self.running: list[str] = []
        self.caller: FrameType | None = None

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        outermost = module is self.model and not self._is_running()
        if outermost:
            self.stop()
            self.caller = sys._getframe(1)
            self.calls: Counter[nn.Module] = Counter()
            self.adds: Counter[str] = Counter()
            self.junctions: set[Node] = set()
            self.start()
            args, kwargs = differentiable((args, kwargs))
            self.__enter__()
        elif not self.running:
            return None  # a part of the model that runs by itself, as when checkpointing computes a forward again
        call = self.calls[module]
        self.calls[module] += 1
        self.running.append(self.names[module] + (f"@{call}" if call else ""))
        return (args, kwargs) if outermost else None

    def leave(self, *_: Any) -> None:
        if not self.running:
            return
        self.running.pop()
        if not self.running:
            self.__exit__(None, None, None)
            self.junctions.clear()
            self.caller = None

    def stop(self) -> None:
        """Leave a forward that was cut short without its hooks (KeyboardInterrupt)."""
        if self.running:
            del self.running[1:]
            self.leave()

    def _is_running(self) -> bool:
        """Whether the call that started the running forward is still there."""
        frame = sys._getframe(1) if self.running else None
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
        # An in-place add overwrites its first operand; whatever else overwrites one later is noticed by its version.
        first = first.detach().clone() if func.__name__ in IN_PLACE else first.detach()
        total = func(*args, **kwargs)
        self._judge(total, (first, second.detach()), kwargs.get("alpha", 1))
        return total

    def _judge(self, total: Tensor, values: tuple[Tensor, Tensor], alpha: float) -> None:
        name, ordinal = self.running[-1], self.adds[self.running[-1]]
        self.adds[name] += 1
        add = total.grad_fn
        if add is None or add.name() != "AddBackward0" or values[0].shape != values[1].shape:
            return
        verdict = residual(add, self.junctions)
        if isinstance(verdict, str):
            return
        junction = Junction(name + (f"#{ordinal}" if ordinal else ""), len(self.junctions), verdict.kind)
        self.junctions.add(add)
        if alpha != 1:
            values = (values[0], alpha * values[1])
        self.see(Sighting(junction, values[verdict.shortcut], values[1 - verdict.shortcut], add, verdict))


def _operands(input: Any, other: Any, **_: Any) -> tuple[Any, Any]:
    return input, other
