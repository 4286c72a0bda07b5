"""Norms that neither underflow nor overflow on the way."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

SAFE = (1e-12, 1e12)  # float32 squares lose digits below about 1e-19 an element, and overflow above 1e19


def norms(tensors: Sequence[Tensor]) -> list[float]:
    """The L2 norm of each tensor over all its elements.

    Taken in the tensors' own precision (at least float32) and brought to the host at once; where a norm is so small or
    so large that its squares may have left that precision's range, it is taken again in float64.
    """
    if not tensors:
        return []
    fast = [torch.linalg.vector_norm(t, dtype=torch.promote_types(t.dtype, torch.float32)) for t in tensors]
    values = torch.stack(fast).tolist()
    return [
        value if SAFE[0] < value < SAFE[1] else scaled_norm(tensor)
        for value, tensor in zip(values, tensors, strict=True)
    ]


def scaled_norm(tensor: Tensor) -> float:
    """The L2 norm in float64, divided by the largest element first: right over float64's whole range."""
    largest = torch.linalg.vector_norm(tensor.detach(), ord=math.inf).item() if tensor.numel() else 0.0
    if largest == 0 or not math.isfinite(largest):
        return largest
    return largest * torch.linalg.vector_norm(tensor.detach().cpu().double() / largest).item()


def inner(a: Tensor, b: Tensor) -> float:
    """The inner product of two tensors of one shape, summed in float64."""
    return (a.cpu().double() * b.cpu().double()).sum().item()


def cosines(pairs: Sequence[tuple[Tensor, Tensor]], sizes: Sequence[tuple[float, float]]) -> list[float]:
    """The cosine of the angle between the two tensors of each pair, whose norms are `sizes`; nan where one is zero.

    As `norms`: in the tensors' own precision, and in float64 where a norm is near the end of that precision's range.
    """
    fast = torch.stack([_dot(a, b) for a, b in pairs]).tolist()
    found = []
    for product, (a, b), (size_a, size_b) in zip(fast, pairs, sizes, strict=True):
        if not size_a * size_b:
            found.append(math.nan)
        elif SAFE[0] < min(size_a, size_b) and max(size_a, size_b) < SAFE[1]:
            found.append(product / size_a / size_b)
        else:
            found.append(inner(a.cpu().double() / size_a, b.cpu().double() / size_b))
    return found


def _dot(a: Tensor, b: Tensor) -> Tensor:
    dtype = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
    return torch.dot(a.flatten().to(dtype), b.flatten().to(dtype))
