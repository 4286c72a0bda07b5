"""Junctions are discovered, not listed: every add is seen while the model runs, and autograd's graph judges it."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.overrides import TorchFunctionMode

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
    weights: tuple[float, float]  # what the add multiplies its two inputs by (1, or `alpha`)
    residual: Residual


def find_junctions(model: nn.Module, *inputs: Any, **kwargs: Any) -> list[Junction]:
    """The residual junctions of a model, in execution order, found by running `model(*inputs, **kwargs)` once.

    An add is a junction when its addends reconverge on one earlier activation: an *identity* shortcut is that
    activation itself, a *projection* is linear (convolution, normalisation, pooling, padding), and the branch holds
    parameters.
    The model is not changed: buffers (BatchNorm statistics) and random state are put back, no gradient is left.
    """
    found: list[Junction] = []
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    devices = {p.device.index for p in model.parameters() if p.device.type == "cuda"}
    try:
        with (
            torch.random.fork_rng(devices=sorted(devices)),
            torch.enable_grad(),
            watch(model, lambda sighting: found.append(sighting.junction)),
        ):
            model(*inputs, **kwargs)
    finally:
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
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


def differentiable(value: Any) -> Any:
    """The same floating tensor at a place in autograd's graph, so that a fork may be the model's input itself."""
    if not isinstance(value, Tensor) or not value.is_floating_point() or not torch.is_grad_enabled():
        return value
    leaf = value if value.requires_grad else value.detach().requires_grad_()
    return leaf.view_as(leaf)


class _Watcher(TorchFunctionMode):
    """Sees every add between the start and the end of the model's forward, and knows which module is running."""

    def __init__(self, model: nn.Module, see: Callable[[Sighting], None], start: Callable[[], None]) -> None:
        super().__init__()
        self.model = model
        self.names = {module: name or "(model)" for name, module in model.named_modules()}
        self.see, self.start = see, start
        self.running: list[str] = []

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        outermost = not self.running and module is self.model
        if outermost:
            self.calls: Counter[nn.Module] = Counter()
            self.adds: Counter[str] = Counter()
            self.junctions: set[Node] = set()
            self.start()
            args = tuple(map(differentiable, args))
            kwargs = {key: differentiable(value) for key, value in kwargs.items()}
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

    def stop(self) -> None:
        """Leave a forward that was cut short without its hooks (KeyboardInterrupt)."""
        if self.running:
            del self.running[1:]
            self.leave()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name not in ADDS:
            return func(*args, **kwargs)
        operands = (*args, kwargs["other"])[:2] if "other" in kwargs else args[:2]
        if not all(isinstance(x, Tensor) and x.is_floating_point() for x in operands):
            return func(*args, **kwargs)
        # An in-place add overwrites its first operand; whatever else overwrites one later is noticed by its version.
        first = operands[0].detach().clone() if name in IN_PLACE else operands[0].detach()
        total = func(*args, **kwargs)
        self._judge(total, (first, operands[1].detach()), float(kwargs.get("alpha", 1)))
        return total

    def _judge(self, total: Tensor, values: tuple[Tensor, Tensor], alpha: float) -> None:
        name, ordinal = self.running[-1], self.adds[self.running[-1]]
        self.adds[name] += 1
        add = total.grad_fn
        if add is None or add.name() != "AddBackward0" or values[0].shape != values[1].shape:
            return
        verdict = residual(add, self.junctions)
        if verdict is None:
            return
        junction = Junction(name + (f"#{ordinal}" if ordinal else ""), len(self.junctions), verdict.kind)
        self.junctions.add(add)
        if alpha != 1:
            values = (values[0], alpha * values[1])
        shortcut, branch = values[verdict.shortcut], values[1 - verdict.shortcut]
        self.see(Sighting(junction, shortcut, branch, add, (1.0, alpha), verdict))
