"""Do two networks, or two depths of one, represent their inputs alike?"""

import math
from typing import Literal, get_args

import pandas as pd
import torch
from torch import Tensor

from ..recording import Recording
from ..sites import JunctionSite
from ..tables import table
from .per import Per

Value = Literal["sum", "branch", "shortcut"]
GRAM = 1024  # rows up to which their inner products are kept; beyond, those of features are taken, a pair at a time
CONSTANT = 100  # roundings of a value's own precision: what varies by less over the batch is noise


def similarity(
    a: Recording, b: Recording, *, of: Value = "sum", per: Per = "example", debiased: bool = False
) -> pd.DataFrame:
    r"""Linear CKA between all pairs of blocks of two recordings, of one model or of two.

    With X (n, p) the activations of one block, Y (n, q) those of another for the same n inputs, and both centred,
    CKA = ``|X^T Y|_F²`` / (``|X^T X|_F`` ``|Y^T Y|_F``): 1 where X and Y are equal up to a rotation and a scale, and
    unchanged by either (Kornblith et al. 2019, arXiv:1905.00414).

    By default it is the plain (biased) form, which is above 0 for unrelated activations: near 1 where there are more
    features than inputs, as is common in networks. ``debiased`` takes the estimate of the same ratio from inner
    products of different inputs alone (Song et al. 2012; Nguyen et al. 2021, arXiv:2010.15327), which is 0 on the
    average for unrelated activations and may be negative; use it to compare depths of different widths.

    Args:
        a: Of ``record(model, keep=True)``, a forward at least.
        b: Of the same inputs in the same order, of this or another model; ``a`` itself for the depths of one.
        of: What is compared at each junction: the ``"sum"`` of its addends (before any activation behind it), the
            residual ``"branch"``, or the ``"shortcut"``.
        per: What a row of X is: an ``"example"``, all its positions being features; or a ``"token"`` (N, T, D) or pixel
            (N, C, H, W) with D or C features, where both have as many.
        debiased: Whether to take the unbiased estimates of numerator and denominator; it needs four rows.

    Returns:
        Columns ``block``, ``depth`` (in a), ``other_block``, ``other_depth`` (in b), ``quantity`` (``cka``),
        ``value``; nan where one of the two does not vary over the batch by more than rounding, or is not finite.

    Raises:
        ValueError: The recordings do not hold their tensors or have no junctions, have different numbers of rows or too
            few, or an option is unknown.

    Example::

        with record(model, keep=True) as recording:
            model(images)
        similarity(recording, recording, debiased=True)
    """
    for name, value, known in (("of", of, get_args(Value)), ("per", per, get_args(Per))):
        if value not in known:
            raise ValueError(f"similarity: {name} is {value!r}: give {' or '.join(map(repr, known))}")
    sides = [[(site, _rows(site, of, per)) for site in side.kept_junctions("similarity")] for side in (a, b)]
    counts = sorted({len(rows) for side in sides for _, (rows, _) in side})
    if len(counts) > 1 or counts[0] < (4 if debiased else 2):
        raise ValueError(
            f"similarity: the activations have {' and '.join(map(str, counts))} rows; give recordings of the same "
            f"inputs, at least {4 if debiased else 2}, with per='example' where blocks have other numbers of positions"
        )
    smallest = min(rows.shape[1] for side in sides for _, (rows, _) in side)
    keep_gram = counts[0] <= max(GRAM, smallest)
    first = [(site, _Activations(*given, keep_gram)) for site, given in sides[0]]
    second = first if a is b else [(site, _Activations(*given, keep_gram)) for site, given in sides[1]]
    own = {id(x): x.inner(x, debiased) for _, x in (*first, *second)}
    rows: list[dict[str, object]] = []
    for site, x in first:
        for other, y in second:
            both = x.inner(y, debiased)
            scale = math.sqrt(max(0.0, own[id(x)])) * math.sqrt(max(0.0, own[id(y)]))
            value = both / scale if x.varies and y.varies and scale > 0 else math.nan
            about = {"block": site.name, "depth": site.depth, "other_block": other.name, "other_depth": other.depth}
            rows.append(about | {"quantity": "cka", "value": value})
    return table(rows)


def _rows(site: JunctionSite, of: Value, per: Per) -> tuple[Tensor, float]:
    """A junction's values as rows, and the rounding of their precision."""
    value: Tensor = getattr(site, of)
    eps = torch.finfo(value.dtype).eps
    value = value.cpu().double()
    if per == "example" or value.dim() < 3:
        return value.reshape(len(value), -1), eps
    if value.dim() > 3:  # channels first
        value = value.movedim(1, -1)
    return value.reshape(-1, value.shape[-1]), eps


class _Activations:
    """Centred activations, (n, p), in units of their largest element."""

    def __init__(self, rows: Tensor, eps: float, keep_gram: bool) -> None:
        largest = rows.abs().max().item()
        rows = rows / largest if largest else rows
        self.rows = rows - rows.mean(0)
        self.squares = self.rows.square().sum(1)
        noise = (CONSTANT * eps) ** 2 * rows.square().sum().item()
        self.varies = self.squares.sum().item() > noise  # False for nan
        self.gram = self.rows @ self.rows.T if keep_gram else None

    def inner(self, other: "_Activations", debiased: bool) -> float:
        """``|X^T Y|²``; debiased without its part of equal rows (n (n - 3) times Song et al.'s HSIC_1, whose sums over
        rows are simple for centred ones)."""
        if self.gram is not None and other.gram is not None:
            whole = (self.gram * other.gram).sum().item()
        else:
            whole = (self.rows.T @ other.rows).square().sum().item()
        if not debiased:
            return whole
        n, same = len(self.rows), (self.squares @ other.squares).item()
        of_sums = self.squares.sum().item() * other.squares.sum().item()
        return whole - same - 2 / (n - 2) * same + of_sums / ((n - 1) * (n - 2))
