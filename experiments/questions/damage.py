"""Damage to a trained residual network, and the test error afterwards."""

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn

from experiments.engine.training.data import Batches
from experiments.engine.training.loop import evaluate, recompute_bn_statistics
from models import residual_blocks
from probes import find_junctions, lesion

Damage = Callable[[nn.Module], AbstractContextManager[object]]


class Blocks:
    """The blocks of a network: which of them can be deleted, and how."""

    def __init__(self, model: nn.Module, images: Tensor) -> None:
        self.junctions = find_junctions(model, images)
        self.names = [junction.name for junction in self.junctions]
        self.carries = [block.flow.shortcut != 0 for block in residual_blocks(model)]
        """Whether the shortcut carries the signal."""
        self.inner = [i for i, keeps in enumerate(keep_shape(model, self.names, images)) if keeps]
        """Those whose output has the shape of their input."""
        self.deletable = [i for i, carries in enumerate(self.carries) if carries or i in self.inner]

    def delete(self, chosen: Sequence[int]) -> Damage:
        """Delete the blocks' branches; where the shortcut carries nothing, skip the blocks."""
        deleted = [self.junctions[i] for i in chosen if self.carries[i]]
        skipped = [self.names[i] for i in chosen if not self.carries[i]]
        return lambda model: lesion(model, delete=deleted, skip=[model.get_submodule(name) for name in skipped])


def error_after(
    model: nn.Module, batches: Batches, *, statistics: str, damage: Damage = lambda model: nullcontext()
) -> float:
    """Test error (0..1) of a damaged copy, with BatchNorm's statistics "kept" or "re-estimated" from 4 batches."""
    copied = copy.deepcopy(model)
    with damage(copied):
        if statistics == "re-estimated":
            recompute_bn_statistics(copied, batches, most=4)
        return 1 - evaluate(copied, batches, "test")["accuracy"]


@torch.no_grad()
def keep_shape(model: nn.Module, names: Sequence[str], images: Tensor) -> list[bool]:
    """Whether the output of each of these modules has the shape of its input."""
    kept: dict[str, bool] = {}

    def compare(name: str, module: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
        kept[name] = args[0].shape == output.shape

    handles = [model.get_submodule(name).register_forward_hook(partial(compare, name)) for name in names]
    try:
        model(images)
    finally:
        for handle in handles:
            handle.remove()
    return [kept[name] for name in names]
