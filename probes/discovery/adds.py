"""While a model runs, every add of two tensors is intercepted, under a name that does not change between forwards."""

import copy
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, is_dataclass
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from .graph import is_gate, is_parameter, overwrite
from .hooks import hooked, in_backward, is_on_stack, names_of_modules
from .refusals import called_by_checkpoint, refusal, refuse_modules, refuse_transforms, runs_outside
from .untracked import FrozenParameters, differentiable, is_quantised

IN_PLACE = {
    "add_": torch.add, "__iadd__": torch.add, "sub_": torch.sub, "__isub__": torch.sub, "lerp_": torch.lerp,
    "addcmul_": torch.addcmul,
}  # fmt: skip
SUBTRACTIONS = {"sub", "__sub__", "subtract", "sub_", "__isub__"}
ADDS = {"add", "__add__", "__radd__", "lerp", "addcmul", *IN_PLACE, *SUBTRACTIONS}
PRODUCTS = {
    "mul", "__mul__", "__rmul__", "multiply", "mul_", "__imul__",
    "div", "__div__", "__truediv__", "true_divide", "divide", "div_", "__itruediv__", "__idiv__",
}  # fmt: skip


Factor = float | Tensor


@dataclass(eq=False)
class Add:
    """A sum of two addends that is about to be executed: an add or a difference, `lerp` or `addcmul`; or a weighted sum
    over a stack, of which the last tensor is one addend and the others, together, are the other."""

    name: str
    """The module that is running, "@1" behind it in its second call, "#1" at that call's second sum."""
    call: str
    """The same without the "#"."""
    first: Tensor
    second: Tensor
    """What the addends are made of, at most times a factor."""
    factors: tuple[Factor, Factor]
    in_place: bool
    """Whether it overwrites `first`."""
    execute: Callable[[], Tensor]
    of: Callable[[Tensor, Tensor], Tensor]
    """The same sum with other tensors in the place of `first` and `second`, out of place."""
    stack: Tensor | None = None
    """What is summed over, where that is a stack: `first` and `second` are parts of it."""
    weighted: bool = False
    """Whether the mode that sees it has given its addends other weights."""

    def addend(self, operand: int) -> Tensor:
        """An addend as it is added; it may share its memory."""
        x, factor = (self.first, self.second)[operand], self.factors[operand]
        if self.stack is None and is_one(factor):
            return x
        with unseen():
            if self.stack is None:
                return factor * x
            parts = [self.first, self.second]
            parts[1 - operand] = torch.zeros_like(parts[1 - operand])
            return self.of(*parts)

    @property
    def shapes(self) -> list[torch.Size]:
        """The shapes of both addends."""
        if self.stack is not None:
            return [self.second.shape, self.second.shape]
        return [
            torch.broadcast_shapes(x.shape, factor.shape) if isinstance(factor, Tensor) else x.shape
            for x, factor in zip((self.first, self.second), self.factors, strict=True)
        ]


@contextmanager
def unseen() -> Iterator[None]:
    """What is computed inside is neither another context's sum, nor counted by activation checkpointing, which expects
    that as many tensors are saved when it computes the forward again."""
    with torch._C.DisableTorchFunction(), saved_tensors_hooks(lambda x: x, lambda x: x):
        yield


def _detached(value: Any) -> Any:
    """A tensor without its graph, or a copy of a dataclass of such."""
    if isinstance(value, Tensor):
        return value.detach()
    if not is_dataclass(value) or isinstance(value, type):
        return value
    copied = copy.copy(value)
    for name, part in vars(value).items():
        object.__setattr__(copied, name, tree_map(_detached, part))
    return copied


def is_one(factor: Factor) -> bool:
    """Whether a factor is the number 1."""
    return isinstance(factor, int | float) and factor == 1


@dataclass(eq=False)
class _Stack:
    """What is known of a tensor that is a stack, or a stack times a factor: noted on the tensor, for every mode."""

    dimension: int
    stack: Tensor
    times_factor: Callable[[Tensor], Tensor]


STACK = "_residual_probes_stack"
MIXES = {"sum", "einsum", "tensordot", "matmul", "__matmul__", "__rmatmul__", "mm", "bmm"}


def call_name(add_name: str) -> str:
    """The call of a module in which an add of that name is executed."""
    return add_name.split("#")[0]


def module_name(call: str) -> str:
    """The module of which that is a call."""
    return call.split("@")[0]


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
        self.names = names_of_modules(model)
        # One walk over the modules, where parameters() and buffers() would each take another.
        self.parameters = list({id(p): p for m in self.names for p in m._parameters.values() if p is not None}.values())
        self.buffers = [buffer for m in self.names for buffer in m._buffers.values() if buffer is not None]
        self.quantised = {m for m in self.names if any(map(is_quantised, m._parameters.values()))}
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
        if in_backward() and not self.running:
            # Checkpointing computes a forward again, for a graph that was seen the first time, from the same inputs.
            return differentiable((args, kwargs)) if module is self.model and self.inputs_have_nodes else None
        if self.running and threading.get_ident() != self.thread:
            raise RuntimeError(f"{self.names[module]!r} runs in a thread of its own, where its adds cannot be seen")
        outermost = module is self.model and not is_on_stack(self.caller)
        if outermost:
            self._start()
            self.inputs_have_nodes = self.on_start(args, kwargs)
            if self.inputs_have_nodes:
                args, kwargs = differentiable((args, kwargs))
            self.__enter__()
        elif not self.running:
            if torch.is_grad_enabled():
                raise runs_outside(self.names[module])
            return None
        call = self.calls[module]
        self.calls[module] += 1
        self.running.append(self.names[module] + (f"@{call}" if call else ""))
        self.on_module_start(module, (args, kwargs))
        return (args, kwargs) if outermost else None

    def _start(self) -> None:
        self.stop()
        refuse_modules(self.names)
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
        if module in self.quantised:
            self.frozen.on_quantised_layer(output)
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
        return tree_map(_detached, output) if detaches else None

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

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "").partition(".")[0]  # operators of torch.ops have ".Tensor" behind it
        if not self.running:  # a user's hook on the model itself, after its end for us
            return func(*args, **kwargs)
        if name == "__set__" and func.__self__ is Tensor.requires_grad and args[0].grad_fn is not None and args[1]:
            return None  # a model asks its input, which has a node in the graph already, to require a gradient
        if name in ADDS:
            result = self._on_add_function(name, func, args, kwargs)
        elif name in MIXES and (mixed := _mixed(args)) is not None:
            result = self._on_mix(func, args, kwargs, mixed)
        else:
            result = func(*args, **kwargs)
        if name == "stack":
            dimension = (kwargs.get("dim", 0) if len(args) < 2 else args[1]) % result.ndim
            if result.shape[dimension] > 1:
                setattr(result, STACK, _Stack(dimension, result, lambda stack: stack))
        if name in PRODUCTS:
            _note_product(name, args, result)
            self.on_product(args, result)
        if self.frozen:
            if name == "embedding" and self.inputs_have_nodes:  # inputs that are integers have their node behind it
                result = differentiable(result, fresh=True)
            self.frozen.on_operation((args, kwargs), result)
        return result

    def _on_add_function(self, name: str, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        out, in_place = kwargs.pop("out", None), name in IN_PLACE
        if out is not None and not isinstance(func, BUILTIN):
            func = getattr(torch, name)  # the operator torch.ops.aten.add.out wants its `out`
        sum_of = IN_PLACE.get(name, func)
        operands = _operands(name, sum_of, *args, **kwargs)
        if not all(isinstance(x, Tensor) and x.is_floating_point() for x in operands[:2]):
            return func(*args, **kwargs) if out is None else func(*args, **kwargs, out=out)
        if in_place and args[0]._is_view():
            out, func = args[0], sum_of
        first, second, factors, of = operands

        def noted(total: Tensor) -> Tensor:
            """Frozen parameters that are factors of the sum are known before it is classified."""
            if self.frozen:
                self.frozen.on_operation((args, kwargs), total)
            return total

        execute, other = lambda: noted(func(*args, **kwargs)), lambda a, b: noted(of(a, b))
        total = self.on_add(Add(*self._next_name(), first, second, factors, in_place, execute, other))
        # autograd takes no `out`, and hides an add into a view: those are written afterwards, with the same values.
        return total if out is None or total is out else overwrite(out, total)

    def _next_name(self) -> tuple[str, str]:
        """The next sum's name, and that of the call in which it is."""
        call, ordinal = self.running[-1], self.adds[self.running[-1]]
        self.adds[call] += 1
        return call + (f"#{ordinal}" if ordinal else ""), call

    def _on_mix(self, func: Any, args: Any, kwargs: dict[str, Any], mixed: Tensor) -> Any:
        """A product or sum of a stack: a sum of its tensors, if that is what is left of it."""
        about: _Stack = getattr(mixed, STACK)
        dimension, count = about.dimension, mixed.shape[about.dimension]
        with torch._C.DisableTorchFunction(), torch.no_grad():
            shape = func(*args, **kwargs).shape
        over = kwargs.get("dim", args[1] if len(args) > 1 else None) if func.__name__ == "sum" else None
        over = [over] if isinstance(over, int) else over
        elsewhere = over is not None and [x % mixed.ndim for x in over] != [dimension]
        left = mixed.shape[:dimension] + mixed.shape[dimension + 1 :]
        if elsewhere or shape != left or not mixed.is_floating_point():
            return func(*args, **kwargs)

        def of(first: Tensor, second: Tensor) -> Tensor:
            with torch._C.DisableTorchFunction():
                stack = torch.cat([first, second], dimension)
                other = about.times_factor(stack)
            setattr(other, STACK, _Stack(dimension, stack, about.times_factor))
            return func(*tree_map(lambda x: other if x is mixed else x, args), **kwargs)

        with torch._C.DisableTorchFunction():
            first = about.stack.narrow(dimension, 0, count - 1)
            second = about.stack.narrow(dimension, count - 1, 1)
        execute = lambda: func(*args, **kwargs)  # noqa: E731
        return self.on_add(Add(*self._next_name(), first, second, (1, 1), False, execute, of, about.stack))


def _mixed(args: Any) -> Tensor | None:
    """The one argument that is a stack."""
    found = [x for x in tree_leaves(args) if isinstance(x, Tensor) and hasattr(x, STACK)]
    return found[0] if len(found) == 1 else None


def _note_product(name: str, operands: tuple[Any, ...], result: Any) -> None:
    """Note on the product of a stack and a factor what it is."""
    stacks = [i for i, x in enumerate(operands[:2]) if isinstance(x, Tensor) and hasattr(x, STACK)]
    if len(stacks) != 1 or len(operands) != 2 or name not in ("mul", "__mul__", "__rmul__", "multiply"):
        return
    about: _Stack = getattr(operands[stacks[0]], STACK)
    factor = operands[1 - stacks[0]]
    if result.shape == about.stack.shape:
        whole = lambda stack: about.times_factor(stack) * factor  # noqa: E731
        setattr(result, STACK, _Stack(about.dimension, about.stack, whole))


BUILTIN = type(torch.add)


def _operands(
    name: str, function: Callable[..., Tensor], input: Any, *others: Any, **keywords: Any
) -> tuple[Any, Any, tuple[Factor, Factor], Callable[[Tensor, Tensor], Tensor]]:
    """What a sum adds, times which factors, and how it is made of other tensors."""
    if name in ("lerp", "lerp_"):
        (end, weight), rest = _bound(others, keywords, "end", "weight")
        with unseen():
            rest_of_it = 1 - weight
        return input, end, (rest_of_it, weight), lambda a, b: function(a, b, weight, **rest)
    if name in ("addcmul", "addcmul_"):
        (one, two), rest = _bound(others, keywords, "tensor1", "tensor2")
        first = one.grad_fn is not None and not is_parameter(one.grad_fn) and not is_gate(one.grad_fn)
        content, factor = (one, two) if first else (two, one)
        with unseen():
            whole = factor if rest.get("value", 1) == 1 else rest["value"] * factor
        return input, content, (1, whole), lambda a, b: function(a, *((b, two) if first else (one, b)), **rest)
    (other,), rest = _bound(others, keywords, "other")
    weight = rest.get("alpha", 1) * (-1 if name in SUBTRACTIONS else 1)
    return input, other, (1, weight), lambda a, b: function(a, b, **rest)


def _bound(given: tuple[Any, ...], keywords: dict[str, Any], *names: str) -> tuple[list[Any], dict[str, Any]]:
    """Arguments by position or name, and the keywords that are left."""
    by_name = dict(zip(names, given, strict=False)) | keywords
    return [by_name.pop(name) for name in names], by_name


class _AsWritten:
    """While it is entered at least once, code that was compiled before runs as it was written: compiled, it would run
    without our hooks. It may be left in any order."""

    def __init__(self) -> None:
        self.entered = 0
        self.stance: Any = None

    def __enter__(self) -> None:
        if not self.entered:
            self.stance = torch.compiler.set_stance("force_eager")
            self.stance.__enter__()
        self.entered += 1

    def __exit__(self, *error: object) -> None:
        self.entered -= 1
        if not self.entered:
            self.stance.__exit__(None, None, None)


AS_WRITTEN = _AsWritten()


@contextmanager
def intercept_adds(mode: AddMode) -> Iterator[None]:
    """Let a mode intercept its model's adds inside this context.

    The hooks that say which module is running are the only thing put on the model; they leave with the context. Raises
    RuntimeError where adds would be missed.
    """
    refuse_modules(mode.names)
    handles = [module.register_forward_pre_hook(mode.before_module, with_kwargs=True) for module in mode.names]
    handles += [module.register_forward_hook(mode.after_module, always_call=True) for module in mode.names]
    try:
        with hooked(handles), AS_WRITTEN:
            yield
    finally:
        mode.stop()
