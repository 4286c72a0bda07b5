"""How far the blocks of a network are from the identity."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from experiments.engine.cells import Evaluate, Tables, evaluations
from experiments.engine.data import Batches
from experiments.engine.training import settle_statistics
from models import residual_blocks
from probes import record, residual_magnitudes


def block_changes(model: nn.Module, images: Tensor) -> pd.DataFrame:
    """What each block makes of its input, if its shortcut is the identity: block, depth, quantity, value; in eval mode.

    quantity: `distance`, ‖B(x) - x‖ / ‖x‖ of the whole block B with its activation; and where the shortcut's value
    goes forward, `ratio`, ‖F(x)‖ / ‖x‖. Norms are L2 over all images. On x >= 0 the final ReLU only takes from F what
    leads below 0: the distance is at most the ratio. nan where the input is all zeros.
    """
    model.eval()
    names = {module: name for name, module in model.named_modules()}
    blocks: dict[str, nn.Module] = {
        names[block]: block for block in residual_blocks(model) if isinstance(block.shortcut, nn.Identity)
    }
    with watch_distances(blocks) as distances, record(model) as recording:
        model(images)
    sizes = residual_magnitudes(recording)
    ratios = sizes[(sizes["quantity"] == "ratio") & sizes["block"].isin(blocks)]
    distance = ratios.assign(quantity="distance", value=[distances[name] for name in ratios["block"]])
    return pd.concat([ratios.dropna(), distance], ignore_index=True)


@contextmanager
def watch_distances(blocks: dict[str, nn.Module]) -> Iterator[dict[str, float]]:
    """The distances by name, once the network has run inside this context."""
    found: dict[str, float] = {}

    def see(name: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            x, y = inputs[0].detach().double(), output.detach().double()
            found[name] = (torch.linalg.vector_norm(y - x) / torch.linalg.vector_norm(x)).item()

        return hook

    handles = [block.register_forward_hook(see(name)) for name, block in blocks.items()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def some_images(batches: Batches, most: int = 2048) -> Tensor:
    """At most so many training images, always the same ones, without augmentation."""
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
    """What the blocks (those of these names, or all) change, first and last, on at most 512 training images; first, how
    well the task is done before any step. BatchNorm's statistics are taken anew, on a copy."""
    if epoch and not last:
        return {}
    settled = copy.deepcopy(model)
    settle_statistics(settled, batches)
    tables = {} if epoch else {"starts": evaluations(settled, batches, evaluate)}
    changes = block_changes(settled, some_images(batches, 512))
    if blocks is not None:
        changes = changes[changes["block"].isin(blocks)]
    return tables | ({"blocks": changes} if len(changes) else {})
