"""First weights of residual branches: He et al.'s, near the identity, orthogonal, or between the identity and He's."""

from collections.abc import Iterable
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FirstWeights = Literal["he", "near-identity", "delta-orthogonal", "looks-linear", "mirrored-he"] | float
"""A number t from 0 to 1 stands for (1 - t) delta + t He."""
NAMES = ("he", "near-identity", "delta-orthogonal", "looks-linear", "mirrored-he")
NOISE = 0.1
"""The norm of each filter's noise, as in DiracNets (Zagoruyko and Komodakis 2017)."""


def check_first_weights(first_weights: FirstWeights) -> None:
    """Raise ValueError unless it is one of the names, or a number from 0 to 1."""
    number = isinstance(first_weights, int | float) and not isinstance(first_weights, bool)
    if not (0 <= cast(float, first_weights) <= 1 if number else first_weights in NAMES):
        raise ValueError(
            f"first_weights is {first_weights!r}: give {', '.join(NAMES)}, or a number t from 0 to 1 for "
            "(1 - t) delta + t He"
        )


@torch.no_grad()
def set_first_weights(branches: Iterable[nn.Module], first_weights: FirstWeights) -> None:
    """Make the first weights of all convolutions and linear layers in branches, from the He weights that they have.

    No random number is drawn: networks of one seed differ by this choice alone, and all but these weights is shared.
    delta is the filter that passes its input on. Where there are more channels out than in, the new ones are zeros on
    both sides, as in shortcuts of option A; where there are fewer, the middle ones pass.

    Args:
        branches: Modules whose `nn.Conv2d` and `nn.Linear` hold He et al.'s normal first weights.
        first_weights: ``"he"`` leaves them. ``"near-identity"`` is ``delta + 0.1 W / |W|``, the norm that of each
            filter (as DiracNets begin: Zagoruyko and Komodakis 2017, arXiv 1706.00388). ``"delta-orthogonal"`` has a
            random orthogonal matrix as its central tap and zeros elsewhere, the Q of that tap of W (Xiao et al. 2018,
            arXiv 1806.05393); semi-orthogonal where channels change. ReLUs between such layers cut half of what each
            passes. ``"looks-linear"`` lets them pass all: its central tap is [[Q, -Q], [-Q, Q]], so that channels come
            in pairs z and -z, of which a ReLU keeps both signs, and layers multiply as the matrices Q do, which are far
            from the identity (Balduzzi et al. 2017, arXiv 1702.08591); and ``0.1 W / |W|`` as above.
            ``"mirrored-he"`` has such pairs of He's own weights, [[A, -A], [-A, A]] at every tap with A a quarter of W:
            as linear at first as looks-linear, but not orthogonal. A number t is (1 - t) delta + t W.

    Raises:
        ValueError: Another name, a number outside of 0 to 1, or an odd number of channels for one of the two in pairs.
    """
    check_first_weights(first_weights)
    if first_weights == "he":
        return
    for branch in branches:
        for module in branch.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.weight.copy_(_changed(module.weight, first_weights))


def _changed(he: Tensor, first_weights: FirstWeights) -> Tensor:
    if first_weights == "near-identity":
        return delta(he) + NOISE * F.normalize(he.flatten(1)).view_as(he)
    if first_weights == "delta-orthogonal":
        weight = torch.zeros_like(he)
        central_tap(weight).copy_(orthogonal(central_tap(he)))
        return weight
    if first_weights == "looks-linear":
        q = orthogonal(quarter(central_tap(he), first_weights))
        return mirrored(q, like=he) + NOISE * F.normalize(he.flatten(1)).view_as(he)
    if first_weights == "mirrored-he":
        return in_pairs(quarter(he, first_weights))
    t = cast(float, first_weights)
    return (1 - t) * delta(he) + t * he


def delta(like: Tensor) -> Tensor:
    """The weight that passes its input on, in the shape (out, in, ...) of another."""
    weight = torch.zeros_like(like)
    outputs, inputs = like.shape[:2]
    passed = min(outputs, inputs)
    first_out, first_in = (outputs - passed) // 2, (inputs - passed) // 2
    central_tap(weight)[first_out : first_out + passed, first_in : first_in + passed].fill_diagonal_(1)
    return weight


def quarter(matrix: Tensor, first_weights: FirstWeights) -> Tensor:
    """The first half of channels out and in, (out, in, ...); raises ValueError for an odd number of either."""
    if matrix.shape[0] % 2 or matrix.shape[1] % 2:
        raise ValueError(
            f"first_weights {first_weights!r} pairs channels: {tuple(matrix.shape[:2])} are odd, give even numbers"
        )
    return matrix[: matrix.shape[0] // 2, : matrix.shape[1] // 2]


def mirrored(q: Tensor, *, like: Tensor) -> Tensor:
    """The weight, in the shape of another, whose central tap is [[q, -q], [-q, q]]."""
    weight = torch.zeros_like(like)
    central_tap(weight).copy_(in_pairs(q))
    return weight


def in_pairs(a: Tensor) -> Tensor:
    """[[a, -a], [-a, a]], (out, in, ...) -> (2 out, 2 in, ...)."""
    return torch.cat([torch.cat([a, -a], 1), torch.cat([-a, a], 1)])


def central_tap(weight: Tensor) -> Tensor:
    """The matrix (out, in) of a convolution's central tap, or of a linear layer; a view."""
    return weight[(..., *(size // 2 for size in weight.shape[2:]))]


def orthogonal(gaussian: Tensor) -> Tensor:
    """The random (semi-)orthogonal matrix, uniform over all, that a matrix of independent normal numbers decides."""
    tall = gaussian if gaussian.shape[0] >= gaussian.shape[1] else gaussian.T
    q, r = torch.linalg.qr(tall)
    q = q * torch.where(r.diagonal() < 0, -1.0, 1.0)
    return q if tall is gaussian else q.T
