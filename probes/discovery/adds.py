"""While a model runs, every add of two tensors is intercepted, under a name that does not change between forwards."""

import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from .refusals import called_by_checkpoint, refusal, refuse_compiled, refuse_transforms
from .untracked import FrozenParameters, differentiable

IN_PLACE = {"add_": torch.add, "__iadd__": torch.add, "sub_": torch.sub, "__isub__": torch.sub}
SUBTRACTIONS = {"sub", "__sub__", "subtract", "sub_", "__isub__"}
ADDS = {"add", "__add__", "__radd__", *IN_PLACE, *SUBTRACTIONS}
PRODUCTS = {
    "mul", "__mul__", "__rmul__", "multiply", "mul_", "__imul__",
    "div", "__div__", "__truediv__", "true_divide", "divide", "div_", "__itruediv__", "__idiv__",
}  # fmt: skip


@dataclass(eq=False)
class Add:
    """An add (or difference) that is about to be executed: first + weight * second."""

    name: str
    """The module that is running, "@1" behind it in its second call, "#1" at that call's second add."""
    call: str
    """The same without the "#"."""
    first: Tensor
    second: Tensor
    weight: float
    in_place: bool
    """Whether it overwrites its first addend."""
    execute: Callable[[], Tensor]
    of: Callable[[Tensor, Tensor], Tensor]
    """The same sum of two other operands, out of place."""


def call_name(add_name: str) -> str:
    """The call of a module in which an add of that name is executed."""
    return add_name.split("#")[0]


class AddMode(TorchFunctionMode):
    """Intercepts every add between the start and the end of a model's forward, and knows which module is running.

    Subclasses decide what is done: `on_start` before a forward (whether the inputs need a node in autograd's graph),
    `on_add` in place of an add, `on_end` after a forward that was completed; in between `on_product` after a product or
    quotient, `on_module_start` and `on_module_end` at each call of a module. A mode that `needs_graph` lets the model
    run with gradients where they are off, and detaches what it returns.
    """

    needs_graph = False

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.names = {module: name or "(model)" for name, module in model.named_modules()}
        # One walk over the modules, where parameters() and buffers() would each take another.
        self.parameters = list({id(p): p for m in self.names for p in m._parameters.values() if p is not None}.values())
        self.buffers = [buffer for m in self.names for buffer in m._buffers.values() if buffer is not None]
        self.inert = self.inputs_have_nodes = False
        self.running: list[str] = []
        self.caller: FrameType | None = None
        self.gradients = ExitStack()
        self.detaches = False

    def on_start(self, args: Any, kwargs: Any) -> bool:
        return False

    def on_add(self, add: Add) -> Tensor:
        return add.execute()

    def on_end(self, output: Any) -> None:
        pass

    def on_product(self, operands: tuple[Any, ...], result: Any) -> None:
        pass

    def on_module_start(self, module: nn.Module, given: Any) -> None:
        pass

    def on_module_end(self, call: str, output: Any) -> None:
        pass

    def before_module(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The forward pre-hook of every module."""
        if self.inert:
            return None
        refuse_transforms()
        if module not in self.names:
            raise refusal("DataParallel")
        in_backward = torch._C._current_graph_task_id() != -1
        if in_backward and not self.running:
            # Checkpointing computes a forward again, for a graph that was seen the first time, from the same inputs.
            return differentiable((args, kwargs)) if module is self.model and self.inputs_have_nodes else None
        if self.running and threading.get_ident() != self.thread:
            raise RuntimeError(f"{self.names[module]!r} runs in a thread of its own, where its adds cannot be seen")
        outermost = module is self.model and not self._is_running()
        if outermost:
            self._start()
            self.inputs_have_nodes = self.on_start(args, kwargs)
            if self.inputs_have_nodes:
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
        self.on_module_start(module, (args, kwargs))
        return (args, kwargs) if outermost else None

    def _start(self) -> None:
        self.stop()
        refuse_compiled(self.names)
        if not torch.is_grad_enabled() and called_by_checkpoint(sys._getframe(2)):
            raise refusal("reentrant activation checkpointing")
        if self.needs_graph and not torch.is_grad_enabled():
            self.gradients.enter_context(torch.inference_mode(False))
            self.gradients.enter_context(torch.enable_grad())
            self.detaches = True
        self.caller, self.thread = sys._getframe(2), threading.get_ident()
        self.calls: Counter[nn.Module] = Counter()
        self.adds: Counter[str] = Counter()
        self.frozen = FrozenParameters(self.parameters, self.buffers)

    def after_module(self, module: nn.Module, args: Any, output: Any) -> Any:
        """The forward hook of every module."""
        if not self.running or threading.get_ident() != self.thread:
            return None
        call = self.running.pop()
        self.on_module_end(call, output)
        if self.running:
            return None
        self.__exit__(None, None, None)
        self.caller, detaches = None, self.detaches
        try:
            if output is not None:  # None: the forward has raised
                self.on_end(output)
        finally:
            self.release()
        return tree_map(lambda x: x.detach() if isinstance(x, Tensor) else x, output) if detaches else None

    def __deepcopy__(self, memo: dict[int, Any]) -> "AddMode":
        """A copy of the model, made inside the context, is not intercepted."""
        copied = AddMode(nn.Identity())
        copied.inert = True
        return copied

    def stop(self) -> None:
        """Leave the forward, also one that was cut short without its hooks (KeyboardInterrupt)."""
        if self.caller is not None:
            self.__exit__(None, None, None)
            self.caller = None
            self.release()

    def release(self) -> None:
        """Release the forward's tensors and nodes."""
        self.running.clear()
        self.frozen = FrozenParameters()
        self.detaches = False
        self.gradients.close()

    def _is_running(self) -> bool:
        """Whether the call that started the running forward is still on the stack."""
        frame = sys._getframe(1) if self.caller is not None else None
        while frame is not None and frame is not self.caller:
            frame = frame.f_back
        return frame is not None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if not self.running:  # a user's hook on the model itself, after its end for us
            return func(*args, **kwargs)
        if name == "__set__" and func.__self__ is Tensor.requires_grad and args[0].grad_fn is not None and args[1]:
            return None  # a model asks its input, which has a node in the graph already, to require a gradient
        result = self._on_add_function(name, func, args, kwargs) if name in ADDS else func(*args, **kwargs)
        if name in PRODUCTS:
            self.on_product(args, result)
        if self.frozen:
            if name == "embedding" and self.inputs_have_nodes:  # inputs that are integers have their node behind it
                result = differentiable(result)
            self.frozen.on_operation((args, kwargs), result)
        return result

    def _on_add_function(self, name: str, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        first, second = _operands(*args, **kwargs)
        if not all(isinstance(x, Tensor) and x.is_floating_point() for x in (first, second)):
            return func(*args, **kwargs)
        out, in_place = kwargs.pop("out", None), name in IN_PLACE
        weight = kwargs.get("alpha", 1) * (-1 if name in SUBTRACTIONS else 1)
        if in_place and args[0]._is_view():
            out, in_place, func = args[0], False, IN_PLACE[name]
        call, ordinal = self.running[-1], self.adds[self.running[-1]]
        self.adds[call] += 1
        full_name = call + (f"#{ordinal}" if ordinal else "")
        sum_of = IN_PLACE.get(name, func)
        add = Add(
            full_name, call, first, second, weight, in_place,
            lambda: func(*args, **kwargs),
            lambda *operands: sum_of(*operands, **{k: v for k, v in kwargs.items() if k not in ("input", "other")}),
        )  # fmt: skip
        total = self.on_add(add)
        # autograd takes no `out`, and hides an add into a view: those are written afterwards, with the same values.
        return total if out is None else out.copy_(total)


def _operands(input: Any, other: Any, **_: Any) -> tuple[Any, Any]:
    return input, other


@contextmanager
def intercept_adds(mode: AddMode) -> Iterator[None]:
    """Let a mode intercept its model's adds inside this context.

    The hooks that say which module is running are the only thing put on the model; they leave with the context. Raises
    RuntimeError where adds would be missed.
    """
    refuse_compiled(mode.names)
    handles = [module.register_forward_pre_hook(mode.before_module, with_kwargs=True) for module in mode.names]
    handles += [module.register_forward_hook(mode.after_module, always_call=True) for module in mode.names]
    try:
        # Code that was compiled before would run without our hooks: inside, it runs as it was written.
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        for handle in handles:
            handle.remove()
        mode.stop()
