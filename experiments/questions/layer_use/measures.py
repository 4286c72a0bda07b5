"""How much a trained network uses each of its blocks (gradient, damage, read-out, attribution), and where in an image
it finds a class."""

import copy
from collections.abc import Iterator

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn

from experiments.engine.training.data import Batches
from experiments.engine.training.loop import evaluate
from experiments.engine.training.train_run import probing_batch
from experiments.questions.damage import Blocks, error_after
from models import residual_blocks
from models.residual_blocks import set_exact_flows
from probes import branch_attribution, find_junctions, lesion
from probes.norms import norm

Row = dict[str, object]


def gradient_shares(model: nn.Module, batches: Batches) -> Iterator[Row]:
    """Each block's part of the gradient that the arm trains with: the norm over its parameters (branch and shortcut),
    over the sum of all blocks' norms, on the fixed probing batch in train mode."""
    copied, images, labels = probing_batch(model, batches)
    F.cross_entropy(copied(images), labels).backward()
    norms = [
        norm(torch.cat([p.grad.flatten() for p in block.parameters() if p.grad is not None]))
        for block in residual_blocks(copied)
    ]
    for name, size in zip(_names(model), norms, strict=True):
        yield {**name, "quantity": "gradient", "value": (size / torch.stack(norms).sum()).item()}


def errors(model: nn.Module, first: nn.Module, batches: Batches) -> Iterator[Row]:
    """Test errors (0..1) of the whole network, and with each block reset to its first weights (Zhang, Bengio and Singer
    2019, arXiv 1902.01996) or deleted; with BatchNorm's running statistics kept, and estimated anew.

    To delete a block is to leave its shortcut alone; where that carries no signal, the block is skipped, or left out of
    the table if its shape forbids it.
    """
    images, _ = batches.get("test", slice(0, 2))
    blocks = Blocks(model.eval(), images)
    for statistics in ("kept", "re-estimated"):
        about: Row = {"statistics": statistics}
        yield {**about, "quantity": "whole", "value": error_after(model, batches, statistics=statistics)}
        for i, name in enumerate(_names(model)):
            error = error_after(reset(model, first, i), batches, statistics=statistics)
            yield {**about, **name, "quantity": "reset", "value": error}
            if i in blocks.deletable:
                error = error_after(model, batches, statistics=statistics, damage=blocks.delete([i]))
                yield {**about, **name, "quantity": "deleted", "value": error}


def read_outs(model: nn.Module, batches: Batches) -> Iterator[Row]:
    """Test error of the classifier applied after each block, that is, with all later branches deleted.

    Depth -1 is before the first block. Shortcuts, projections and activations stay; no BatchNorm lies on that way, so
    that there are no statistics to estimate anew. Nothing for nets with a shortcut that carries no signal.
    """
    if not _carries(model):
        return
    images, _ = batches.get("test", slice(0, 2))
    junctions = find_junctions(model.eval(), images)
    for name in ({"block": "stem", "depth": -1}, *_names(model)):
        with lesion(model, delete=junctions[int(str(name["depth"])) + 1 :]):
            error = 1 - evaluate(model, batches, "test")["accuracy"]
        yield {**name, "quantity": "read-out", "value": error}


def attributions(model: nn.Module, batches: Batches, *, images: int, steps: int) -> pd.DataFrame:
    """`branch_attribution` of the true class's score on the first test images, and `attribution`, the branch's share.

    Empty for nets with a shortcut that carries no signal: there the branch has all, by construction.
    """
    if not _carries(model):
        return pd.DataFrame()
    copied = with_true_gradient(model)
    inputs, labels = batches.get("test", slice(0, images))
    found = branch_attribution(copied, find_junctions(copied, inputs), inputs, target=labels, steps=steps)
    wide = found.pivot(index=["block", "depth"], columns="quantity", values="value")
    share = (wide["branch"] / (wide["branch"] + wide["shortcut"])).rename("value").reset_index()
    return pd.concat([found, share.assign(quantity="attribution")], ignore_index=True)


def with_true_gradient(model: nn.Module) -> nn.Module:
    """A copy in eval mode whose backward is that of its function: an attribution asks what the network computes, not
    what its arm's backward lets through."""
    copied = copy.deepcopy(model).eval()
    set_exact_flows(copied)
    return copied


def saliency(model: nn.Module, batches: Batches, indices: list[int], *, steps: int = 64) -> dict[str, np.ndarray]:
    """Integrated gradients (Sundararajan et al. 2017, arXiv 1703.01365) of the true class's score on test images.

    The straight line begins at the training images' mean. maps (n, H, W): summed over channels, in the score's units;
    predictions (n,): class numbers; scores (n,): what a map should sum to; delta (n,): by how much it misses that.
    """
    from captum.attr import IntegratedGradients

    copied = with_true_gradient(model)
    images, labels = batches.get("test", torch.tensor(indices))
    parts, delta = IntegratedGradients(copied).attribute(
        images, target=labels, n_steps=steps, internal_batch_size=128, return_convergence_delta=True
    )
    with torch.no_grad():
        outputs, start = copied(images), copied(torch.zeros_like(images))
    scores = (outputs - start).gather(1, labels[:, None]).squeeze(1)
    arrays = {"maps": parts.sum(1), "predictions": outputs.argmax(1), "scores": scores, "delta": delta}
    return {name: array.detach().cpu().numpy() for name, array in arrays.items()}


@torch.no_grad()
def reset(model: nn.Module, first: nn.Module, depth: int) -> nn.Module:
    """A copy in which one block has the parameters of `first`; BatchNorm's running statistics stay."""
    copied = copy.deepcopy(model)
    after, before = residual_blocks(copied)[depth], residual_blocks(first)[depth]
    for parameter, start in zip(after.parameters(), before.parameters(), strict=True):
        parameter.copy_(start)
    return copied


def _names(model: nn.Module) -> list[Row]:
    """The blocks' names and depths, in order."""
    names = {module: name for name, module in model.named_modules()}
    return [{"block": names[block], "depth": depth} for depth, block in enumerate(residual_blocks(model))]


def _carries(model: nn.Module) -> bool:
    return all(block.flow.shortcut != 0 for block in residual_blocks(model))
