"""Are the gradients of neighbouring inputs alike, or are they shattered?"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from ..gradients.blocks import Block, find_blocks, fork_gradients, scalar, unchanged
from ..norms import times_power, unit
from ..tables import table

LAGS = 16
CONSTANT = 100  # roundings of the gradient's own precision: what varies by less along the line is noise of the backward


def gradient_correlation(
    model: nn.Module,
    *inputs: Any,
    points: int | None = None,
    loss: Callable[[Any], Tensor] | None = None,
    lags: Sequence[int] | None = None,
    blocks: Sequence[nn.Module] | None = None,
    **kwargs: Any,
) -> pd.DataFrame:
    r"""How alike the gradients at every block's fork are, for inputs along a line, by their distance on it.

    In plain ReLU networks the gradients of neighbouring inputs become white noise with depth (*shattered gradients*:
    Balduzzi et al. 2017, arXiv:1702.08591): their correlation falls like 1 / 2^L where a quarter of each layer's
    neurons are active for both of two inputs, and like 1 / √L with shortcuts and normalisation. A network of one layer
    has brown noise.

    Let g_i be the gradient at the fork that belongs to input i (of N), flattened, and m the mean of all. It is what the
    *backward* gives: the weights of a ``gate`` or of a network's gradient count.

    **Whiteness or collapse.** An autocorrelation near 0 says that gradients are shattered only where they are there and
    vary: ``vanished`` is then near 0, and ``constant`` is not near 1. Where all that varies is at the level of
    rounding (the network is linear along the line, or maps it to one point), the autocorrelation is nan, not white.

    **BatchNorm.** In train mode it couples the inputs of a batch: its backward subtracts the mean over the batch, so
    that gradients look white (a mean cosine of about -1 / (N - 1)) whatever the network does. Measure in eval mode,
    with running statistics of such inputs.

    The model runs once, in the mode that it is in. Buffers, random state and ``.grad`` stay as they are.

    Args:
        model: Any module whose forks have the batch as their first axis; it is not changed.
        inputs: The forward's positional arguments. The first is a batch of inputs in their order along a line, evenly
            spaced, (N, ...) with N >= 3; with ``points`` the two ends of a segment, (2, ...).
        points: N, at which the segment between two inputs is evaluated, both ends included.
        loss: A number from the model's output that is a sum over the batch (a mean divides every gradient by N, which
            changes ``norm`` alone); by default the sum of the output.
        lags: Distances on the line, in steps between neighbours, from 0 to N - 1; by default 0 to 15.
        blocks: For networks without junctions, the modules of ``model`` that count as blocks.
        kwargs: The forward's keyword arguments.

    Returns:
        Columns ``block``, ``depth``, ``lag``, ``quantity``, ``value``. For every lag k

        - ``autocorrelation``: Σ_i <g_i - m, g_{i+k} - m> / Σ_i ``|g_i - m|²``, the usual estimate for a series (its
          numerator has N - k terms, its denominator N), 1 at lag 0; nan where the gradient does not vary;
        - ``cosine``: the mean of <g_i, g_{i+k}> / (``|g_i|`` ``|g_{i+k}|``) over the pairs of which neither is 0,
          without subtracting m; nan where there is no such pair.

        At lag 0 also the guards

        - ``norm``: the root of the mean ``|g_i|²``, in the unit of the loss over that of the fork;
        - ``constant``: ``|m|²`` / mean ``|g_i|²``, the share of the gradient that is the same along the line, 0 to 1;
          nan where all are 0;
        - ``vanished``: the share of the inputs whose gradient is exactly 0.

        All values but ``vanished`` are nan where a gradient is not finite.

    Raises:
        ValueError: Fewer than three inputs, ``points`` without two ends, a lag that the line does not have, a fork
            whose first axis is not the batch, no junctions, or a loss that gives no gradient.
        TypeError: The first input is no floating tensor, or the output is none and there is no ``loss``.
        RuntimeError: The model hides its adds (compiled, exported, replicated, with reentrant checkpointing).

    Example::

        gradient_correlation(model.eval(), torch.stack([image, other]), points=256)
    """
    line = _line(inputs, points)
    count = len(line)
    chosen = _lags(lags, count)
    given = (line, *inputs[1:])
    with unchanged(model, (given, kwargs)):
        output, found = find_blocks(
            model, lambda: model(*given, **kwargs), blocks=blocks, caller="gradient_correlation"
        )
        value = scalar(output, loss, "gradient_correlation")
        gradients, _ = fork_gradients(value, found, caller="gradient_correlation")
    rows: list[dict[str, object]] = []
    for block, gradient in zip(found, gradients, strict=True):
        about = {"block": block.name, "depth": block.depth}
        rows += [about | row for row in _of_block(block, gradient, count, chosen)]
    return table(rows)


def _line(inputs: Sequence[Any], points: int | None) -> Tensor:
    """The inputs along the line."""
    first = inputs[0] if inputs else None
    if not isinstance(first, Tensor) or not first.is_floating_point() or first.dim() == 0:
        got = f"a tensor of {first.dtype}" if isinstance(first, Tensor) else type(first).__name__
        raise TypeError(
            f"gradient_correlation: the first input is {got}; a line needs a batch of floating-point inputs (for a "
            "model of tokens, give embeddings)"
        )
    if points is None:
        if len(first) < 3:
            raise ValueError(
                f"gradient_correlation: a line of {len(first)} inputs; give at least 3, or points=N for N inputs on "
                "the segment between two"
            )
        return first.detach()
    if not isinstance(points, int) or points < 3 or len(first) != 2:
        raise ValueError(
            f"gradient_correlation: points is {points!r} and there are {len(first)} inputs; give a whole number of at "
            "least 3, and the two ends of a segment as a batch of 2"
        )
    share = torch.linspace(0, 1, points, dtype=first.dtype, device=first.device)
    start, end = first.detach().unsqueeze(1)
    return torch.lerp(start, end, share.reshape(-1, *[1] * (first.dim() - 1)))


def _lags(lags: Sequence[int] | None, count: int) -> list[int]:
    chosen = list(range(min(LAGS, count))) if lags is None else list(lags)
    if wrong := [lag for lag in chosen if not isinstance(lag, int) or not 0 <= lag < count]:
        raise ValueError(f"gradient_correlation: lags {wrong} on a line of {count} inputs; give 0 to {count - 1}")
    return chosen


def _of_block(block: Block, gradient: Tensor, count: int, lags: Sequence[int]) -> list[dict[str, object]]:
    """All rows of one block."""
    if gradient.dim() == 0 or len(gradient) != count:
        raise ValueError(
            f"gradient_correlation: the fork of {block.name!r} has the shape {tuple(gradient.shape)}, whose first axis "
            f"is not that of the {count} inputs: gradients of single inputs cannot be told apart there"
        )
    exponent = unit([[gradient]])
    g = gradient.reshape(count, -1).cpu().double() * 2.0**-exponent  # squares of vanished gradients stay in range
    squares, mean = g.square().sum(1), g.mean(0)
    whole, varying = squares.sum().item(), (g - mean).square().sum().item()
    noise = (CONSTANT * torch.finfo(gradient.dtype).eps) ** 2 * whole
    products = g @ g.T
    sizes = squares.sqrt()
    cosines = products / torch.outer(sizes, sizes)  # nan where one is 0 or not finite
    centred = (g - mean) @ (g - mean).T
    finite = math.isfinite(whole)
    rows: list[dict[str, object]] = []
    for lag in lags:
        of_pairs = cosines.diagonal(lag)
        some = of_pairs[~of_pairs.isnan()] if finite else of_pairs
        autocorrelation = centred.diagonal(lag).sum().item() / varying if varying > noise else math.nan
        rows.append({"lag": lag, "quantity": "autocorrelation", "value": autocorrelation})
        rows.append({"lag": lag, "quantity": "cosine", "value": some.mean().item() if len(some) else math.nan})
    guards = {
        "norm": times_power(math.sqrt(whole / count), exponent, "gradient_correlation") if finite else math.nan,
        "constant": mean.square().sum().item() * count / whole if whole else math.nan,
        "vanished": (g == 0).all(1).double().mean().item(),
    }
    return rows + [{"lag": 0, "quantity": name, "value": value} for name, value in guards.items()]
