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
    values = torch.stack([norm.double() for norm in fast]).tolist()
    return [
        value if SAFE[0] < value < SAFE[1] else scaled_norm(tensor)
        for value, tensor in zip(values, tensors, strict=True)
    ]


def scaled_norm(tensor: Tensor) -> float:
    """The L2 norm in float64, divided by the largest element first: right over float64's whole range."""
    largest = tensor.detach().abs().amax().double().item() if tensor.numel() else 0.0
    if largest == 0 or not math.isfinite(largest):
        return largest
    return largest * torch.linalg.vector_norm(tensor.double() / largest).item()


def inner(a: Tensor, b: Tensor) -> float:
    """The inner product of two tensors of one shape, summed in float64."""
    return (a.double() * b.double()).sum().item()
