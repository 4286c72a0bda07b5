"""How parallel are two gradients of the same weights, and how large is one beside the other?"""

import math
from collections.abc import Iterable, Mapping, Sequence

import pandas as pd
from torch import Tensor

from ..discovery.refusals import is_sharded
from ..norms import norms_and_cosine
from ..tables import table

TOTAL = "total"


def gradient_alignment(
    a: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
    *,
    blocks: Sequence[str] | Mapping[str, Iterable[str]] | None = None,
) -> pd.DataFrame:
    r"""Cosine and norm ratio of two gradients (or updates) of the same weights, by block.

    Feedback alignment measures how near a biased backward's gradient is to the true one by their angle (Lillicrap et
    al. 2016, arXiv:1411.0247).

    Args:
        a: The gradient that the other is compared with (the true one, say), by parameter name:
            ``{name: p.grad.clone() for name, p in model.named_parameters()}``.
        b: The other gradient, of the same names and shapes.
        blocks: What a row is of. ``None``: each parameter, under its name. Names of modules, ``["layer1.0", ...]``:
            all parameters inside each of them. ``{block: names of parameters}``: any groups, in the order given.

    Returns:
        Columns ``block``, ``quantity``, ``value``: for each block, and for all of the parameters (block ``total``),

        - ``cosine``: <a, b> / (``|a|`` ``|b|``), nan where one is zero;
        - ``norm_ratio``: ``|b|`` / ``|a|``, nan where a is zero.

        Sums are in float64 over all weights of the block, right also where squares under- or overflow.

    Raises:
        ValueError: The names or shapes differ, a block holds no parameter or is called "total", or there is no gradient
            at all.
        TypeError: A gradient is no tensor, or a DTensor.

    Example::

        F.cross_entropy(model(images), labels).backward()
        true = {name: p.grad.clone() for name, p in model.named_parameters()}
        model.zero_grad()
        with gate(model, shortcut_gradient=0.0):
            F.cross_entropy(model(images), labels).backward()
        gradient_alignment(true, {name: p.grad for name, p in model.named_parameters()}, blocks=["layer1.0"])
    """
    _check(a, b)
    groups = _groups(list(a), blocks)
    if TOTAL in groups:
        raise ValueError(
            f"gradient_alignment: {TOTAL!r} is the row of all parameters: name it otherwise, "
            "blocks={block: names of its parameters}"
        )
    groups[TOTAL] = list(a)
    parts = {name: _compared(a[name], b[name]) for name in a}
    return table(
        {"block": block, "quantity": quantity, "value": value}
        for block, names in groups.items()
        for quantity, value in _joined([parts[name] for name in names]).items()
    )


def _check(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> None:
    if not a:
        raise ValueError("gradient_alignment: there is no gradient: give mappings from parameter names to tensors")
    if a.keys() != b.keys():
        raise ValueError(
            f"gradient_alignment: the gradients are of different parameters: {sorted(a.keys() ^ b.keys())} are in one "
            "alone; give both of the same (zeros where there is none)"
        )
    for name in a:
        for gradient in (a[name], b[name]):
            if not isinstance(gradient, Tensor):
                raise TypeError(
                    f"gradient_alignment: the gradient of {name!r} is a {type(gradient).__name__}: give a tensor, "
                    "torch.zeros_like(parameter) where there is no gradient"
                )
            if is_sharded(gradient):
                raise TypeError(
                    f"gradient_alignment: the gradient of {name!r} is a DTensor, of which this process holds a part: "
                    "give p.grad.full_tensor(), in all processes"
                )
        if a[name].shape != b[name].shape:
            raise ValueError(
                f"gradient_alignment: the gradients of {name!r} have the shapes {tuple(a[name].shape)} and "
                f"{tuple(b[name].shape)}: give gradients of the same weights"
            )


def _groups(names: list[str], blocks: Sequence[str] | Mapping[str, Iterable[str]] | None) -> dict[str, list[str]]:
    """The parameters of each block."""
    if blocks is None:
        return {name: [name] for name in names}
    if isinstance(blocks, str):
        blocks = [blocks]
    if isinstance(blocks, Mapping):
        groups = {block: list(inside) for block, inside in blocks.items()}
    else:
        groups = {block: [name for name in names if name == block or name.startswith(f"{block}.")] for block in blocks}
    for block, inside in groups.items():
        unknown = [name for name in inside if name not in names]
        if unknown or not inside:
            raise ValueError(
                f"gradient_alignment: block {block!r} holds {f'unknown {unknown}' if unknown else 'no parameter'}: "
                f"give names (or beginnings, up to a dot) of {', '.join(names[:5])}, ..."
            )
    return groups


def _compared(a: Tensor, b: Tensor) -> tuple[float, float, float]:
    """Norms and cosine of two tensors, in float64."""
    size_a, size_b, cosine = norms_and_cosine(a.detach().double(), b.detach().double().to(a.device))
    return size_a.item(), size_b.item(), cosine.item()


def _joined(parts: Sequence[tuple[float, float, float]]) -> dict[str, float]:
    """Cosine and norm ratio of two vectors, from the norms and cosines of their parts."""
    size_a, size_b = math.hypot(*(a for a, _, _ in parts)), math.hypot(*(b for _, b, _ in parts))
    if not size_a:
        return {"cosine": math.nan, "norm_ratio": math.nan}
    cosine = sum(c * (a / size_a) * (b / size_b) for a, b, c in parts if a and b) if size_b else math.nan
    return {"cosine": cosine, "norm_ratio": size_b / size_a}
