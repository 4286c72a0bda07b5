"""Damage to a trained residual network, and what it costs: blocks deleted, permuted, swapped."""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial

import pandas as pd
import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from scipy.stats import kendalltau
from torch import Tensor, nn

from experiments.engine.data import Batches
from experiments.engine.effects import estimate
from experiments.engine.ending import show_estimate
from experiments.engine.training import evaluate, settle_statistics
from models import residual_blocks
from probes import find_junctions, lesion, permute

Damage = Callable[[nn.Module], AbstractContextManager[object]]


def damaged(
    model: nn.Module, batches: Batches, *, counts: Sequence[int], draws: int, seed: int
) -> Iterator[dict[str, object]]:
    """Test errors (0..1) of the network with every lesion, and Kendall's tau of every permutation."""
    images, _ = batches.get("test", slice(0, 2))
    blocks = Blocks(model.eval(), images)
    random = torch.Generator().manual_seed(seed)
    for about, damage in blocks.lesions(counts, draws, random):
        tau = about.pop("tau", None)
        for statistics in ("kept", "re-estimated"):
            error = error_after(model, batches, statistics=statistics, damage=damage)
            yield {**about, "statistics": statistics, "quantity": "error", "value": error}
            if tau is not None:
                yield {**about, "statistics": statistics, "quantity": "tau", "value": tau}


def error_after(
    model: nn.Module, batches: Batches, *, statistics: str, damage: Damage = lambda model: nullcontext()
) -> float:
    """Test error (0..1) of a damaged copy, with BatchNorm's statistics "kept" or "re-estimated" from 4 batches."""
    copied = copy.deepcopy(model)
    with damage(copied):
        if statistics == "re-estimated":
            settle_statistics(copied, batches, most=4)
        return 1 - evaluate(copied, batches, "test")["accuracy"]


class Blocks:
    """The blocks of a network, and what can be done to them."""

    def __init__(self, model: nn.Module, images: Tensor) -> None:
        self.junctions = find_junctions(model, images)
        self.names = [junction.name for junction in self.junctions]
        self.carries = [block.flow.shortcut != 0 for block in residual_blocks(model)]
        stages = [name.split(".")[0] for name in self.names]
        self.inner = [i for i, keeps in enumerate(keep_shape(model, self.names, images)) if keeps]
        self.pairs = [(i, j) for i in self.inner for j in self.inner if i < j and stages[i] == stages[j]]

    def delete(self, chosen: list[int]) -> Damage:
        """Leave out the blocks' branches; where the shortcut carries nothing, the blocks."""
        gone = [self.junctions[i] for i in chosen if self.carries[i]]
        skipped = [self.names[i] for i in chosen if not self.carries[i]]
        return lambda model: lesion(model, delete=gone, skip=[model.get_submodule(name) for name in skipped])

    def reorder(self, order: list[int]) -> Damage:
        """Put the weights of block order[i] into block i."""
        moved = {self.names[i]: self.names[j] for i, j in enumerate(order) if i != j}
        return lambda model: permute(model, moved)

    def shuffle(self, count: int, random: torch.Generator) -> list[int]:
        """The order after so many random pairs of one shape have changed places."""
        order = list(range(len(self.names)))
        for pair in torch.randint(len(self.pairs), (count,), generator=random).tolist():
            i, j = self.pairs[pair]
            order[i], order[j] = order[j], order[i]
        return order

    def lesions(
        self, counts: Sequence[int], draws: int, random: torch.Generator
    ) -> Iterator[tuple[dict[str, object], Damage]]:
        """Every lesion with what the table says of it."""
        yield {"lesion": "none", "count": 0}, self.delete([])
        for i, name in enumerate(self.names):
            if self.carries[i] or i in self.inner:
                yield {"lesion": "delete", "count": 1, "block": name, "depth": i}, self.delete([i])
        for i, j in self.pairs:
            if j == i + 1:
                swapped = [j if k == i else i if k == j else k for k in range(len(self.names))]
                yield {"lesion": "swap", "count": 1, "block": self.names[i], "depth": i}, self.reorder(swapped)
        for count in counts:
            for draw in range(draws):
                if count <= len(self.inner):
                    chosen = [self.inner[k] for k in torch.randperm(len(self.inner), generator=random)[:count].tolist()]
                    yield {"lesion": "delete at random", "count": count, "draw": draw}, self.delete(chosen)
                if self.pairs:
                    order = self.shuffle(count, random)
                    tau = float(kendalltau(range(len(order)), order).statistic)
                    about = {"lesion": "permute", "count": count, "draw": draw, "tau": tau}
                    yield about, self.reorder(order)


@torch.no_grad()
def keep_shape(model: nn.Module, names: Sequence[str], images: Tensor) -> list[bool]:
    """Whether what each of these modules gives has the shape of what it gets."""
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


def show_lesions(console: Console, rows: pd.DataFrame, images: int) -> None:
    """Test error by arm and lesion: mean over seeds and interval; of one network, mean over its lesions and range."""
    errors = rows[rows["quantity"] == "error"]
    networks = int(errors["seed"].nunique())
    spread = f"[95 % t interval] over {networks} seeds" if networks > 1 else "(range) over one network's lesions"
    title = f"Test error in % of {images} images: mean {spread}"
    shown = Table(title=title, box=SIMPLE_HEAD, pad_edge=False)
    for column in ("arm", "lesion", "BatchNorm kept", "estimated anew", "lesions"):
        shown.add_column(column)
    for (arm, kind, count), of_lesion in errors.groupby(["arm", "lesion", "count"], sort=False):
        by_statistics = [of_lesion[of_lesion["statistics"] == name] for name in ("kept", "re-estimated")]
        cells = [_by_seed(part) if networks > 1 else _range(part) for part in by_statistics]
        name = f"{kind} {count}" if kind != "none" else "none"
        shown.add_row(str(arm), name, *cells, str(len(by_statistics[0]) // by_statistics[0]["seed"].nunique()))
    console.print(shown)


def _by_seed(part: pd.DataFrame) -> str:
    found = estimate(100 * part.groupby("seed")["value"].mean().to_numpy())
    if not 0 <= found.low <= found.high <= 100:  # a t interval that leaves the scale says too much
        found = replace(found, low=math.nan, high=math.nan)
    return show_estimate(found, digits=1, sign=False)


def _range(part: pd.DataFrame) -> str:
    errors = 100 * part["value"]
    return f"{errors.mean():.1f}" + (f" ({errors.min():.1f}–{errors.max():.1f})" if len(errors) > 1 else "")
