"""Norms and cosines of the whole batch, of each example or of each token, and their rows in a table."""

import math
from collections.abc import Iterator
from itertools import product
from typing import Literal, get_args

import torch
from torch import Tensor

Per = Literal["example", "token"]
INDEX = ("example", "token")


def check_per(per: Per | None, caller: str) -> None:
    """Raise ValueError for a division that does not exist."""
    if per is not None and per not in get_args(Per):
        raise ValueError(f'{caller}: per is {per!r}: give "example", "token", or None for the whole batch')


def portions(tensor: Tensor, per: Per | None, block: str) -> Tensor:
    """A tensor in float64, with one vector for the whole batch, each example or each token.

    Args:
        tensor: ``(N, ...)``; for tokens ``(N, T, D)``.
        per: What there is a vector of.
        block: Whose tensor it is, for the error.

    Returns:
        ``(values)``, ``(N, values)`` or ``(N, T, D)``.

    Raises:
        ValueError: The tensor has no examples, or no tokens.
    """
    wide = tensor.detach().double()
    if per == "token" and wide.dim() != 3:
        raise ValueError(
            f'per="token" needs tensors (N, T, D), and {block!r} has {tuple(wide.shape)}: give per="example", or None '
            "for the whole batch"
        )
    if per is not None and not wide.dim():
        raise ValueError(f'per="{per}" needs a batch (N, ...), and {block!r} has a single number: leave per out')
    index = 0 if per is None else 1 + INDEX.index(per)
    return wide.reshape(*wide.shape[:index], -1)


def norms(vectors: Tensor) -> Tensor:
    """The L2 norms of vectors ``(..., values)`` of float64, ``(...)``; right over float64's whole range."""
    largest = vectors.abs().amax(-1) if vectors.shape[-1] else vectors.sum(-1)
    unit = torch.where((largest > 0) & largest.isfinite(), largest, 1.0)
    return torch.linalg.vector_norm(vectors / unit[..., None], dim=-1) * unit


def cosines(a: Tensor, b: Tensor) -> Tensor:
    """The cosines between vectors ``(..., values)``, ``(...)``; nan where one is zero."""
    size_a, size_b = norms(a), norms(b)
    cosine = ((a / size_a[..., None]) * (b / size_b[..., None])).sum(-1)
    return torch.where((size_a == 0) | (size_b == 0), math.nan, cosine)


def rows(about: dict[str, object], quantity: str, values: Tensor) -> Iterator[dict[str, object]]:
    """The rows of one quantity, from one value ``()``, one an example ``(N,)``, or one a token ``(N, T)``."""
    for index, value in zip(product(*map(range, values.shape)), values.flatten().tolist(), strict=True):
        yield {**about, **dict(zip(INDEX, index, strict=False)), "quantity": quantity, "value": value}
