"""How far the blocks of a network are from the identity, first and last in a training."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from experiments.engine.running.run import Tables
from experiments.engine.training.data import Batches
from experiments.engine.training.loop import recompute_bn_statistics
from experiments.engine.training.train_run import Evaluate, evaluations
from models import residual_blocks
from models.branches import Scalar, basic_branch, skipinit_branch
from probes import record, residual_magnitudes

BRANCHES = {"resnet": basic_branch, "skipinit": skipinit_branch}
"""The branches that can be the identity, by the name of the network that has them."""


def open_branches(model: nn.Module) -> None:
    """Initialise learned factors of branches to 1 in blocks without the shortcut's value: at 0 their output is 0."""
    for block in residual_blocks(model):
        for module in block.branch.modules():
            if isinstance(module, Scalar) and block.flow.shortcut == 0:
                nn.init.ones_(module.alpha)


def some_images(batches: Batches, most: int = 2048) -> Tensor:
    """At most `most` training images, always the same ones, without augmentation."""
    order = torch.randperm(batches.size("train"), generator=torch.Generator().manual_seed(0))
    return batches.get("train", order[:most])[0]


def changes_at_ends(
    model: nn.Module,
    batches: Batches,
    epoch: int,
    last: bool,
    *,
    evaluate: Evaluate,
    blocks: Sequence[str] | None = None,
) -> Tables:
    """What the blocks change, before training and at its end, on at most 512 training images; before training, also the
    outcomes.

    BatchNorm's statistics are recomputed, on a copy. blocks: the names of those that are measured; all if not given.
    """
    if epoch and not last:
        return {}
    settled = copy.deepcopy(model)
    recompute_bn_statistics(settled, batches)
    tables = {} if epoch else {"starts": evaluations(settled, batches, evaluate)}
    changes = block_changes(settled, some_images(batches, 512))
    if blocks is not None:
        changes = changes[changes["block"].isin(blocks)]
    return tables | ({"blocks": changes} if len(changes) else {})


def block_changes(model: nn.Module, images: Tensor) -> pd.DataFrame:
    """How each block with an identity shortcut changes its input: block, depth, quantity, value; in eval mode.

    quantity: `distance`, ‖B(x) - x‖ / ‖x‖ of the whole block B with its activation; and where the shortcut's value
    goes forward, `ratio`, ‖F(x)‖ / ‖x‖. Norms are L2 over all images. On x >= 0 the final ReLU only takes from F what
    leads below 0: the distance is at most the ratio. nan where the input is all zeros.
    """
    model.eval()
    names = {module: name for name, module in model.named_modules()}
    blocks: dict[str, nn.Module] = {
        names[block]: block for block in residual_blocks(model) if isinstance(block.shortcut, nn.Identity)
    }
    with distances_of(blocks) as distances, record(model) as recording:
        model(images)
    sizes = residual_magnitudes(recording)
    ratios = sizes[(sizes["quantity"] == "ratio") & sizes["block"].isin(blocks)]
    distance = ratios.assign(quantity="distance", value=[distances[name] for name in ratios["block"]])
    return pd.concat([ratios.dropna(), distance], ignore_index=True)


@contextmanager
def distances_of(blocks: Mapping[str, nn.Module]) -> Iterator[dict[str, float]]:
    """The distances by name, once the network has run inside this context."""
    found: dict[str, float] = {}

    def keep(name: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            x, y = inputs[0].detach().double(), output.detach().double()
            found[name] = (torch.linalg.vector_norm(y - x) / torch.linalg.vector_norm(x)).item()

        return hook

    handles = [block.register_forward_hook(keep(name)) for name, block in blocks.items()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def mean_changes(blocks: pd.DataFrame, *, by: str) -> pd.DataFrame:
    """The mean over blocks of what each changes, a row a run and epoch, with quantity `change`: ‖F(x)‖ / ‖x‖ where the
    shortcut's value goes forward, ‖B(x) - x‖ / ‖x‖ where it does not. by: the column that tells runs of one arm, depth
    and seed apart."""
    keys = ["arm", "depth_total", by, "seed", "epoch"]
    wide = blocks.pivot_table(index=[*keys, "block"], columns="quantity", values="value")
    change = wide["distance"] if "ratio" not in wide else wide["ratio"].fillna(wide["distance"])
    return change.groupby(keys).mean().reset_index(name="value").assign(quantity="change")
