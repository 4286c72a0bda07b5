"""Blocks of networks without junctions: modules that are named by hand, and their calls while the model runs."""

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from .adds import AS_WRITTEN
from .hooks import hooked, in_backward, is_on_stack, names_of_modules
from .refusals import called_by_checkpoint, refusal, runs_outside
from .untracked import differentiable


def block_names(model: nn.Module, blocks: Sequence[nn.Module], caller: str) -> dict[nn.Module, str]:
    """The names of modules that count as blocks, each once; raises ValueError where one is no part of the model."""
    names = names_of_modules(model)
    unknown = [type(block).__name__ for block in blocks if block not in names]
    if unknown or not blocks:
        raise ValueError(f"{caller}: blocks must be modules of the model, such as model.features[0]; got {unknown}")
    return {block: names[block] for block in blocks}


def first_tracked(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
    """The first of a call's arguments that carries a gradient."""
    return next((x for x in (*args, *kwargs.values()) if isinstance(x, Tensor) and x.requires_grad), None)


@contextmanager
def detect_blocks(
    model: nn.Module,
    names: Mapping[nn.Module, str],
    on_block: Callable[[str, Tensor], None],
    *,
    on_start: Callable[[], None],
) -> Iterator[None]:
    """A context in which the calls of blocks are detected while the model runs with gradients.

    on_block: called at each, with its name and its first input that carries a gradient. on_start: called before each
    forward. Raises RuntimeError where a block runs outside of the model's call, or under reentrant checkpointing.
    """
    calls: Counter[nn.Module] = Counter()
    caller: FrameType | None = None  # of the model's forward
    with_gradients = False

    def before_model(called: nn.Module, args: Any, kwargs: Any) -> Any:
        nonlocal caller, with_gradients
        if called is not model or is_on_stack(caller):  # a copy that was made inside the context; a call of itself
            return None
        if not in_backward():
            caller, with_gradients = sys._getframe(1), torch.is_grad_enabled()
            if with_gradients:
                calls.clear()
                on_start()
        return differentiable((args, kwargs))

    def after_model(*_: Any) -> None:
        nonlocal caller
        if caller is sys._getframe(1):
            caller = None

    def before_block(block: nn.Module, args: Any, kwargs: Any) -> None:
        if block not in names or in_backward():  # checkpointing computes again what was seen the first time
            return
        if not torch.is_grad_enabled() and called_by_checkpoint(sys._getframe(1)):
            raise refusal("reentrant activation checkpointing")
        if not is_on_stack(caller):
            if torch.is_grad_enabled():
                raise runs_outside(names[block])
        elif with_gradients and (x := first_tracked(args, kwargs)) is not None:
            calls[block] += 1
            on_block(names[block] + (f"@{calls[block] - 1}" if calls[block] > 1 else ""), x)

    handles = [model.register_forward_pre_hook(before_model, with_kwargs=True)]
    handles += [block.register_forward_pre_hook(before_block, with_kwargs=True) for block in names]
    handles += [model.register_forward_hook(after_model)]
    with hooked(handles), AS_WRITTEN:
        yield
