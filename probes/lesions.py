"""`lesion` and `permute`: what does a trained network lose without a block, or with its blocks in another order?"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from probes.adds import Add, AddMode, watching
from probes.watch import Junction


class Replacing(AddMode):
    """Does something else in place of some adds, by name; checks after each forward that all were met."""

    def __init__(self, model: nn.Module, replacements: Mapping[str, Callable[[Add], Tensor]]) -> None:
        super().__init__(model)
        self.replacements = replacements
        self.met: set[str] = set()

    def begin(self, args: Any, kwargs: Any) -> bool:
        self.met.clear()
        return False

    def add(self, add: Add) -> Tensor:
        if add.name not in self.replacements:
            return add.happen()
        self.met.add(add.name)
        result = self.replacements[add.name](add)
        return add.first.copy_(result) if add.in_place else result

    def end(self, output: Any) -> None:
        if missed := sorted(self.replacements.keys() - self.met):
            raise ValueError(
                f"no add is called {', '.join(missed)} in this forward: give junctions that "
                "find_junctions(model, *inputs) finds in this model, with inputs of this kind"
            )


@contextmanager
def lesion(model: nn.Module, *, delete: Sequence[Junction] = (), skip: Sequence[nn.Module] = ()) -> Iterator[None]:
    """Take blocks out of `model`, for every forward inside this context.

        junctions = find_junctions(model, images)
        with lesion(model, delete=[junctions[3]]), torch.no_grad():
            outputs = model(images)

    delete: junctions whose branches contribute nothing; the shortcut's value, and what follows the sum, stay (Veit et
    al. 2016, arXiv 1605.06431). skip: modules that return their (first) input as it is, the matching lesion for blocks
    without a shortcut. Weights and buffers are not touched, but a BatchNorm in train mode sees what the lesioned
    network computes: so its statistics can be estimated anew, on a copy.

    Raises ValueError for modules that are no part of the model, and in the forward where a skipped module's output has
    another shape than its input or a junction's add is not met; RuntimeError for a model that cannot be watched.
    """
    names = {module: name or "(model)" for name, module in model.named_modules()}
    if strangers := [type(module).__name__ for module in skip if module not in names]:
        raise ValueError(f"lesion: skip takes modules of the model, such as model.features[3]; got {strangers}")
    replacements = {name: _without(branch) for junction in delete for name, branch in junction.adds}
    handles = [module.register_forward_hook(_skip(names[module]), with_kwargs=True) for module in skip]
    try:
        with watching(Replacing(model, replacements)):
            yield
    finally:
        for handle in handles:
            handle.remove()


def _without(branch: int) -> Callable[[Add], Tensor]:
    """The sum without one of its operands: a copy, since the model may go on to overwrite it."""

    def replacement(add: Add) -> Tensor:
        return add.first.clone() if branch == 1 else add.weight * add.second

    return replacement


def _skip(name: str) -> Callable[..., Any]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        given = next((x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)), None)
        whole = output[0] if isinstance(output, tuple) else output
        if given is None or not isinstance(whole, Tensor) or given.shape != whole.shape:
            shapes = [tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__ for x in (given, whole)]
            raise ValueError(f"lesion: {name!r} turns {shapes[0]} into {shapes[1]}: it cannot be skipped")
        return (given, *output[1:]) if isinstance(output, tuple) else given.clone()

    return hook


@contextmanager
def permute(model: nn.Module, order: Mapping[str, str]) -> Iterator[None]:
    """Run `model` with blocks in another order: inside this context each named module has another one's weights.

    order: {"layer1.1": "layer1.2", "layer1.2": "layer1.1"} swaps two; the names must be the same on both sides. All
    parameters and buffers are exchanged, and put back, to the last bit, when the context ends.

    Raises ValueError for names that the model has not, sides that differ, and modules of unlike shapes.
    """
    if set(order) != set(order.values()):
        raise ValueError(
            f"permute: the blocks {sorted(order)} get the weights of {sorted(order.values())}: not the same"
        )
    modules = dict(model.named_modules())
    if strangers := sorted(set(order) - modules.keys()):
        raise ValueError(f"permute: the model has no modules {', '.join(strangers)}; see model.named_modules()")
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


def _shapes(state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in state.items()}


@torch.no_grad()
def _fill(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    for name, tensor in module.state_dict(keep_vars=True).items():
        tensor.copy_(state[name])
