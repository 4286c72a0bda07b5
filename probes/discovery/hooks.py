"""Hooks on a model's modules: the modules' names, hooks that leave with a context, and what is running meanwhile."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle


def names_of_modules(model: nn.Module) -> dict[nn.Module, str]:
    """The name of each of a model's modules, the model among them."""
    return {module: name or "(model)" for name, module in model.named_modules()}


@contextmanager
def hooked(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """Remove hooks at the end of this context."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def in_backward() -> bool:
    """Whether autograd is running a backward on this thread."""
    return torch._C._current_graph_task_id() != -1


def is_on_stack(wanted: FrameType | None) -> bool:
    """Whether a call is still running: that which started a forward."""
    frame = sys._getframe(1) if wanted is not None else None
    while frame is not None and frame is not wanted:
        frame = frame.f_back
    return frame is not None
