"""`lesion` and `permute`: run a trained network without some blocks, or with its blocks in another order."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..discovery.adds import Add, AddMode, call_name, intercept_adds
from ..discovery.hooks import hooked, names_of_modules
from ..discovery.junctions import Junction


class AddReplacer(AddMode):
    """Replaces some adds, by name; checks after each forward that all were met."""

    def __init__(
        self, model: nn.Module, replacements: Mapping[str, Callable[[Add], Tensor]], expected: Mapping[str, int]
    ) -> None:
        super().__init__(model)
        self.replacements, self.expected = replacements, expected
        self.met: set[str] = set()

    def on_start(self, args: Any, kwargs: Any) -> bool:
        self.met.clear()
        return False

    def on_add(self, add: Add) -> Tensor:
        if add.name not in self.replacements:
            return add.execute()
        self.met.add(add.name)
        result = self.replacements[add.name](add)
        return add.first.copy_(result) if add.in_place else result

    def on_end(self, output: Any) -> None:
        if missed := sorted(self.replacements.keys() - self.met):
            raise ValueError(
                f"no add is called {', '.join(missed)} in this forward: give junctions that "
                "find_junctions(model, *inputs) finds in this model, with inputs of this kind"
            )
        for call, expected in self.expected.items():
            if self.adds[call] != expected:
                raise ValueError(
                    f"{call!r} adds {self.adds[call]} times in this forward, and {expected} times where its junctions "
                    "were found, so that their names may mean others: find them anew (in this mode, with such inputs)"
                )


def adds_per_call(junctions: Sequence[Junction]) -> dict[str, int]:
    """How many adds each call of these junctions should have; ValueError for what `find_junctions` did not give."""
    if unknown := [x for x in junctions if not isinstance(x, Junction) or not x.adds_of_call]:
        raise ValueError(f"give junctions as find_junctions(model, *inputs) returns them; got {unknown}")
    return {call_name(junction.name): junction.adds_of_call for junction in junctions}


@contextmanager
def lesion(model: nn.Module, *, delete: Sequence[Junction] = (), skip: Sequence[nn.Module] = ()) -> Iterator[None]:
    """Take blocks out of ``model``, for every forward inside this context.

    Weights and buffers are not touched, but a BatchNorm in train mode sees what the lesioned network computes: so its
    statistics can be estimated anew, on a copy. The lesion study is that of Veit et al. (2016, arXiv:1605.06431).

    Args:
        model: Any module.
        delete: Junctions, as ``find_junctions`` returns them, whose branches contribute nothing; the shortcut's value,
            and what follows the sum, stay. Of an interpolation x + a (f(x) - x) the whole change is deleted.
        skip: Modules that return their (first) input as it is, the matching lesion for blocks without a shortcut.

    Raises:
        ValueError: A module is no part of the model; and in the forward, where a skipped module's output has another
            shape than its input or a junction's add is not met.
        RuntimeError: The model hides its adds.

    Example::

        junctions = find_junctions(model, images)
        with lesion(model, delete=[junctions[3]]), torch.no_grad():
            outputs = model(images)
    """
    names = names_of_modules(model)
    if unknown := [type(module).__name__ for module in skip if module not in names]:
        raise ValueError(f"lesion: skip takes modules of the model, such as model.features[3]; got {unknown}")
    if isinstance(delete, Junction):
        raise ValueError("lesion: delete takes a list of junctions, such as [junctions[3]]")
    expected = adds_per_call(delete)
    replacements = {name: _without(operand) for junction in delete for name, operand in junction.adds}
    handles = [handle for module in skip for handle in _skip(module, names[module])]
    with hooked(handles), intercept_adds(AddReplacer(model, replacements, expected)):
        yield


def _without(operand: int) -> Callable[[Add], Tensor]:
    """The sum without one of its operands: a copy, since the model may go on to overwrite it."""

    def replacement(add: Add) -> Tensor:
        return add.addend(1 - operand).clone()

    return replacement


def _skip(module: nn.Module, name: str) -> list[RemovableHandle]:
    """Hooks that let a module return its input: a copy taken before it runs, since it may overwrite it."""
    given: list[Tensor | None] = []

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        first = next((x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)), None)
        given.append(None if first is None else first.clone())

    def after(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        value, whole = given.pop(), output[0] if isinstance(output, tuple) else output
        if value is None or not isinstance(whole, Tensor) or value.shape != whole.shape:
            shapes = [tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__ for x in (value, whole)]
            raise ValueError(f"lesion: {name!r} turns {shapes[0]} into {shapes[1]}: it cannot be skipped")
        return (value, *output[1:]) if isinstance(output, tuple) else value

    pre = module.register_forward_pre_hook(before, with_kwargs=True)
    return [pre, module.register_forward_hook(after, with_kwargs=True)]


@contextmanager
def permute(model: nn.Module, order: Mapping[str, str]) -> Iterator[None]:
    """Run ``model`` with blocks in another order: inside this context each named module has another one's weights.

    All parameters and buffers of the modules' state dicts are exchanged, and put back, to the last bit, when the
    context ends. Veit et al. (2016, arXiv:1605.06431) reordered the blocks of a trained residual network so.

    Args:
        model: Any module.
        order: From the name of a module to the name of the one whose weights it gets, the same names on both sides.

    Raises:
        ValueError: The model has no module of such a name, the two sides differ, or modules differ in shape or type.

    Example::

        with permute(model, {"layer1.0": "layer1.1", "layer1.1": "layer1.0"}), torch.no_grad():
            outputs = model(images)
    """
    if not isinstance(order, Mapping) or set(order) != set(order.values()):
        raise ValueError(
            f"permute: give {{block: the block whose weights it gets}}, the same blocks on both sides: {order}"
        )
    modules = dict(model.named_modules())
    if unknown := sorted(set(order) - modules.keys()):
        raise ValueError(f"permute: the model has no modules {', '.join(unknown)}; see model.named_modules()")
    states = {name: {k: v.clone() for k, v in modules[name].state_dict().items()} for name in order}
    for name, other in order.items():
        if _shapes(states[name]) != _shapes(states[other]):
            raise ValueError(f"permute: {name!r} and {other!r} differ in shape, so that they cannot change places")
    try:
        for name, other in order.items():
            _fill(modules[name], states[other])
        yield
    finally:
        for name, state in states.items():
            _fill(modules[name], state)


def _shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in state.items()}


@torch.no_grad()
def _fill(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    for name, tensor in module.state_dict(keep_vars=True).items():
        tensor.copy_(state[name])
