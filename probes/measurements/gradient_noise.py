"""How much of a batch's gradient is signal, and do batches pull against each other?"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, get_args

import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..discovery.refusals import refuse_sharded_parameters
from ..gradients.blocks import block_parameters, checked_loss, find_blocks, gradients, unchanged
from ..norms import gram, times_power
from ..tables import table

Of = Literal["blocks", "model"]
QUANTITIES = ("norm", "noise", "signal_to_noise", "noise_scale", "confusion", "smallest_cosine", "mean_cosine")


def gradient_noise(
    model: nn.Module,
    loss: Callable[[nn.Module, Any], Tensor],
    batches: Iterable[Any],
    *,
    of: Of = "blocks",
    batch_size: int | None = None,
    blocks: Sequence[nn.Module] | None = None,
) -> pd.DataFrame:
    r"""Signal, noise and confusion of the gradients of a block's parameters, over batches.

    Let g_1 ... g_n be the gradients of n batches at the same weights, G their unknown mean and S the covariance of one
    batch's gradient. Noise is what the learning rate must average out (McCandlish et al. 2018, arXiv:1812.06162);
    confusion says that a step for one batch undoes another's (Sankararaman et al. 2019, arXiv:1904.06963).

    A parameter belongs to the block in whose shortcut or branch it stands (the first, where several share it); what
    stands beside the blocks (a stem, a head, a norm between two blocks) counts with ``of="model"`` alone. The weights
    of a ``gate`` or of a network's gradient count.

    The model runs once a batch, in the mode that it is in; with dropout every batch has masks of its own, which add to
    the noise. Buffers, random state and ``.grad`` stay as they are. It takes the memory of n gradients.

    Args:
        model: Any module; it is not changed.
        loss: ``loss(model, batch)`` runs the model once and returns the *mean* loss of the batch.
        batches: At least two, of equal size, drawn independently. What a batch is, is up to ``loss``.
        of: ``"blocks"``, each by itself; or ``"model"``, all parameters together, in the row of block ``"(model)"``.
        batch_size: Examples (or tokens) in a batch; by default the length of the first tensor in it.
        blocks: For networks without junctions, the modules of ``model`` that count as blocks.

    Returns:
        Columns ``block``, ``depth``, ``quantity``, ``value``, with b for the batch size and norms over all parameters
        of the block:

        - ``norm``: ``|mean of g_i|``;
        - ``noise``: √(tr S), the root of Σ_i ``|g_i - mean|²`` / (n - 1);
        - ``signal_to_noise``: ``|G|²`` / tr S, with the estimate ``|mean|²`` - tr S / n of ``|G|²``, which has no bias;
          it may be negative where there is more noise than n batches can see through; inf without noise;
        - ``noise_scale``: the simple noise scale b tr S / ``|G|²``, in examples: the batch size at which noise and
          signal are equal; inf where no signal is seen;
        - ``confusion``: max(0, - min over pairs of <g_i, g_j>), Sankararaman et al.'s bound, in the unit of a squared
          gradient: 0 where no two batches disagree;
        - ``smallest_cosine``, ``mean_cosine``: of the angles between pairs, those with a gradient of 0 left out.

        Ratios are nan where all gradients are 0; a block without trainable parameters has no rows. All are nan where a
        gradient is not finite.

    Raises:
        ValueError: Fewer than two batches, batches of different sizes or of unknown size, an unknown option, no
            junctions, a loss that gives no gradient, no parameter that requires one, or parameters that are DTensors.
        RuntimeError: The model hides its adds (compiled, exported, replicated, with reentrant checkpointing).

    Warns:
        RuntimeWarning: A number is too large or too small for float64, and given as inf or 0.

    Example::

        def loss(model, batch):
            images, labels = batch
            return F.cross_entropy(model(images), labels)

        gradient_noise(model, loss, itertools.islice(loader, 16))
    """
    if of not in get_args(Of):
        raise ValueError(f'gradient_noise: of is {of!r}: give "blocks" or "model"')
    if batch_size is not None and (not isinstance(batch_size, int) or batch_size < 1):
        raise ValueError(f"gradient_noise: batch_size is {batch_size!r}: give a whole number of at least 1")
    refuse_sharded_parameters(model.parameters(), "gradient_noise")
    listed = list(batches)
    size = _size(listed) if batch_size is None else batch_size
    if len(listed) < 2:
        raise ValueError(f"gradient_noise: {len(listed)} batches; give at least two, of examples drawn independently")
    groups: dict[tuple[str, int], list[nn.Parameter]] = {}
    found: dict[tuple[str, int], list[list[Tensor]]] = {}
    with unchanged(model, listed):
        for batch in listed:
            value, groups = _forward(model, loss, batch, of, blocks, groups)
            every = [parameter for group in groups.values() for parameter in group]
            of_every = iter(gradients(value, every))
            for key, group in groups.items():
                parts = [next(of_every) for _ in group]
                vector = [torch.zeros_like(p) if g is None else g for p, g in zip(group, parts, strict=True)]
                found.setdefault(key, []).append(vector)
    return table(
        {"block": name, "depth": depth, "quantity": quantity, "value": value}
        for (name, depth), vectors in found.items()
        for quantity, value in _quantities(vectors, size).items()
    )


def _size(batches: Sequence[Any]) -> int:
    """The number of examples of each batch."""
    first = [next((x for x in tree_leaves(batch) if isinstance(x, Tensor) and x.dim()), None) for batch in batches]
    sizes = sorted({-1 if x is None else len(x) for x in first})
    if len(sizes) > 1 or -1 in sizes:
        got = "batches without tensors" if -1 in sizes else f"batches of {', '.join(map(str, sizes))} examples"
        raise ValueError(
            f"gradient_noise: {got}; gradients have one covariance only where batches have one size: drop the last, "
            "shorter batch, or give batch_size"
        )
    return sizes[0] if sizes else 0


def _forward(
    model: nn.Module,
    loss: Callable[[nn.Module, Any], Tensor],
    batch: Any,
    of: Of,
    blocks: Sequence[nn.Module] | None,
    groups: dict[tuple[str, int], list[nn.Parameter]],
) -> tuple[Tensor, dict[tuple[str, int], list[nn.Parameter]]]:
    """A batch's loss, and the parameters of every block: looked for in the first batch alone."""
    if groups:
        return checked_loss(loss(model, batch), "gradient_noise"), groups
    if of == "model":
        value = checked_loss(loss(model, batch), "gradient_noise")
        groups = {("(model)", 0): [p for p in model.parameters() if p.requires_grad]}
    else:
        value, found = find_blocks(model, lambda: loss(model, batch), blocks=blocks, caller="gradient_noise")
        value = checked_loss(value, "gradient_noise")
        pairs = zip(found, block_parameters(found), strict=True)
        groups = {(block.name, block.depth): held for block, held in pairs if held}
    if not any(groups.values()):
        raise ValueError("gradient_noise: no parameter requires a gradient: call requires_grad_() on those that count")
    return value, groups


def _quantities(vectors: Sequence[Sequence[Tensor]], size: int) -> dict[str, float]:
    """All quantities of the gradients of one block, each a list of tensors."""
    products, exponent = gram(vectors)
    if not products.isfinite().all():
        return dict.fromkeys(QUANTITIES, math.nan)
    centred, _ = gram(vectors, centred=True)  # the difference of two products would lose what is small beside them
    n = len(products)
    mean, trace = max(0.0, products.mean().item()), centred.trace().item() / (n - 1)
    signal = mean - trace / n
    first, second = torch.triu_indices(n, n, 1)
    pairs, sizes = products[first, second], products.diagonal().sqrt()
    cosines = pairs / (sizes[first] * sizes[second])
    cosines = cosines[~cosines.isnan()]  # 0 has no angle
    return {
        "norm": times_power(math.sqrt(mean), exponent // 2, "gradient_noise"),
        "noise": times_power(math.sqrt(trace), exponent // 2, "gradient_noise"),
        "signal_to_noise": _ratio(signal, trace),
        "noise_scale": size * (math.inf if signal <= 0 < trace else _ratio(trace, signal)),
        "confusion": times_power(max(0.0, -pairs.min().item()), exponent, "gradient_noise"),
        "smallest_cosine": cosines.min().item() if len(cosines) else math.nan,
        "mean_cosine": cosines.mean().item() if len(cosines) else math.nan,
    }


def _ratio(a: float, b: float) -> float:
    if b == 0:
        return math.inf if a > 0 else math.nan
    return a / b
