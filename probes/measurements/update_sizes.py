"""How far does a step move each block's weights, and how far what each block computes?"""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves, tree_map

from ..discovery.adds import call_name, module_name
from ..discovery.hooks import hooked, names_of_modules
from ..discovery.junctions import find_junctions, gpus_of
from ..discovery.named_blocks import block_names
from ..discovery.refusals import refuse_sharded_parameters
from ..norms import scaled_norm
from ..tables import table

State = Mapping[str, Tensor]


def update_sizes(
    model: nn.Module, before: State, *inputs: Any, blocks: Sequence[nn.Module] | None = None, **kwargs: Any
) -> pd.DataFrame:
    r"""The relative change of each block's weights, and of what it computes, between two states of a model.

    Under the maximal update parametrisation and CompleteP every block's function is to change by an amount that depends
    neither on width nor on depth (Yang et al. 2022, arXiv:2203.03466, "coordinate check"; Dey et al. 2025,
    arXiv:2505.01618).

    Args:
        model: The model after the step (or after many). It runs in the mode that it is in, without gradients; its
            weights, buffers and the random state stay as they are.
        before: The state before the step: ``{name: x.detach().clone() for name, x in model.state_dict().items()}``.
            Names that are left out have not changed.
        inputs: The forward's positional arguments.
        blocks: The modules of ``model`` that count as blocks; by default those that add at its junctions.
        kwargs: The forward's keyword arguments.

    Returns:
        Columns ``block``, ``depth``, ``quantity``, ``value``; depth is the order of the blocks' first calls. With W all
        of a block's parameters as one vector, and h its output (if it gives several tensors, the first), the quantities
        are

        - ``weights``: ``|W' - W|`` / ``|W|``; after one step of SGD the rate times the gradient's norm, over ``|W|``;
        - ``function``: ``|h' - h|`` / ``|h|`` where the block is given what it was given before, so that its own
          weights alone have changed;
        - ``output``: ``|h' - h|`` / ``|h|`` in the network, where all blocks before have changed, too.

        A block's function includes its shortcut: h = x + F(x) changes by as much as F does. Norms are L2 over the whole
        batch tensor. nan where the denominator is zero, and ``weights`` of a block without parameters. Dropout draws
        the same masks each time.

    Raises:
        ValueError: ``before`` holds what the model does not, or of another shape; a block is no part of the model or
            was not called; there is no junction, and no block is named; parameters are DTensors.
        TypeError: A block gives no tensor.

    Example::

        before = {name: x.detach().clone() for name, x in model.state_dict().items()}
        F.cross_entropy(model(images), labels).backward()
        torch.optim.SGD(model.parameters(), lr=0.1).step()
        update_sizes(model, before, images)
    """
    refuse_sharded_parameters(model.parameters(), "update_sizes")
    after: State = {name: x.detach().clone() for name, x in (*model.named_parameters(), *model.named_buffers())}
    _check_state(before, after, model)
    first = {**after, **{name: before[name].detach().clone() for name in after if name in before}}
    by_hand = block_names(model, blocks, "update_sizes") if blocks is not None else None
    names = by_hand or _junction_modules(model, inputs, kwargs)
    with torch.no_grad(), torch.random.fork_rng(devices=gpus_of(after)):
        start = _random_state(after)
        calls = _run(model, first, inputs, kwargs, names, keep_inputs=True)
        _set_random_state(start, after)
        outputs = _run(model, after, inputs, kwargs, names, keep_inputs=False)
        found: list[dict[str, object]] = []
        for depth, (name, call) in enumerate(calls.items()):
            _set_random_state(call.random_state, after)
            block = model.get_submodule(name) if name != "(model)" else model
            prefix = "" if name == "(model)" else f"{name}."
            own = {key.removeprefix(prefix): x.clone() for key, x in after.items() if key.startswith(prefix)}
            alone = _tensor(functional_call(block, own, call.args, call.kwargs), name)
            values = {
                "weights": _weights(model, first, after, prefix),
                "function": _change(call.output, alone),
                "output": _change(call.output, outputs[name].output),
            }
            found += [{"block": name, "depth": depth, "quantity": k, "value": v} for k, v in values.items()]
    return table(found)


@dataclass
class _Call:
    """A block's first call in a forward."""

    args: Any
    kwargs: Any
    random_state: list[Tensor]
    output: Tensor | None = None


def _check_state(before: State, after: State, model: nn.Module) -> None:
    known = {**after, **model.state_dict()}
    for name, x in before.items():
        if name not in known:
            raise ValueError(
                f"update_sizes: before holds {name!r}, which the model does not: give a copy of the same model's "
                "state_dict()"
            )
        if x.shape != known[name].shape:
            raise ValueError(
                f"update_sizes: {name!r} had the shape {tuple(x.shape)} before, and has {tuple(known[name].shape)}: "
                "give a copy of the same model's state_dict()"
            )
    own = model.state_dict()
    if before and all(name in own and x.numel() and x.data_ptr() == own[name].data_ptr() for name, x in before.items()):
        raise ValueError(
            "update_sizes: before holds the model's own tensors, which the step has changed: clone them, "
            "{name: x.detach().clone() for name, x in model.state_dict().items()}"
        )


def _junction_modules(model: nn.Module, inputs: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[nn.Module, str]:
    """The modules that add at junctions."""
    found = {module_name(call_name(junction.name)) for junction in find_junctions(model, *inputs, **kwargs)}
    if not found:
        raise ValueError(
            "update_sizes: the model has no residual junctions: name the modules that count as blocks, "
            "update_sizes(model, before, images, blocks=[...])"
        )
    names = names_of_modules(model)
    return {module: name for module, name in names.items() if name in found}


def _run(
    model: nn.Module,
    state: State,
    inputs: tuple[Any, ...],
    kwargs: dict[str, Any],
    names: dict[nn.Module, str],
    *,
    keep_inputs: bool,
) -> dict[str, _Call]:
    """The first call of each block in one forward, in order."""
    calls: dict[str, _Call] = {}

    def before_block(block: nn.Module, args: Any, kwargs: Any) -> None:
        if names[block] not in calls:
            kept = tree_map(_copied, (args, kwargs)) if keep_inputs else ((), {})
            calls[names[block]] = _Call(*kept, random_state=_random_state(state))

    def after_block(block: nn.Module, _: Any, output: Any) -> None:
        call = calls[names[block]]
        if call.output is None:
            call.output = _tensor(output, names[block]).clone()

    handles = [block.register_forward_pre_hook(before_block, with_kwargs=True) for block in names]
    handles += [block.register_forward_hook(after_block) for block in names]
    with hooked(handles):
        functional_call(model, {name: x.clone() for name, x in state.items()}, inputs, kwargs)
    missed = [name for name in names.values() if name not in calls]
    if missed:
        raise ValueError(f"update_sizes: the forward did not call {missed}: name blocks that it does")
    return calls


def _copied(x: object) -> object:
    """An argument as it is now: the block may change it (a cache of keys and values)."""
    if isinstance(x, Tensor):
        return x.detach().clone()
    return x if x is None or isinstance(x, bool | int | float | str | nn.Module) or callable(x) else copy.deepcopy(x)


def _tensor(output: Any, name: str) -> Tensor:
    found = next((x for x in tree_leaves(output) if isinstance(x, Tensor)), None)
    if found is None:
        raise TypeError(f"update_sizes: block {name!r} gives a {type(output).__name__}: name blocks that give a tensor")
    return found.detach()


def _weights(model: nn.Module, first: State, after: State, prefix: str) -> float:
    inside = [name for name, _ in model.named_parameters() if name.startswith(prefix)]
    size = math.hypot(*(scaled_norm(first[name]) for name in inside))
    moved = math.hypot(*(scaled_norm(after[name].double() - first[name].double()) for name in inside))
    return moved / size if size else math.nan


def _change(first: Tensor | None, after: Tensor | None) -> float:
    if first is None or after is None:  # the block raised, and the model caught it
        return math.nan
    size = scaled_norm(first)
    return scaled_norm(after.double() - first.double()) / size if size else math.nan


def _random_state(state: State) -> list[Tensor]:
    """That of the processor, then of each GPU that holds a tensor."""
    return [torch.get_rng_state(), *map(torch.cuda.get_rng_state, gpus_of(state))]


def _set_random_state(to: list[Tensor], state: State) -> None:
    host, *others = to
    torch.set_rng_state(host)
    for gpu, of_gpu in zip(gpus_of(state), others, strict=True):
        torch.cuda.set_rng_state(of_gpu, gpu)
