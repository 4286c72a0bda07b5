"""Norms and cosines that neither underflow nor overflow on the way."""

import math

import torch
from torch import Tensor

SAFE = (1e-12, 1e12)  # float32 squares lose digits below about 1e-19 an element, and overflow above 1e19


def norm(tensor: Tensor) -> Tensor:
    """The L2 norm over all elements, float64, without dimensions.

    On a CPU it is taken in the tensor's own precision (at least float32), and again in float64 where it is so small or
    so large that squares may have left that precision's range. On a device it is taken in float64 at once, and stays
    there: nothing waits for it.
    """
    if tensor.device.type != "cpu":
        return torch.linalg.vector_norm(tensor, dtype=torch.float64)
    fast = torch.linalg.vector_norm(tensor, dtype=_wide(tensor)).item()
    value = fast if SAFE[0] < fast < SAFE[1] else scaled_norm(tensor)
    return torch.tensor(value, dtype=torch.float64)


def cosine(a: Tensor, b: Tensor, size_a: Tensor, size_b: Tensor) -> Tensor:
    """The cosine between two tensors of those norms, float64, without dimensions; nan where one is zero."""
    in_range = a.device.type != "cpu" or (SAFE[0] < min(size_a, size_b) and max(size_a, size_b) < SAFE[1])
    if in_range:
        product = torch.dot(a.flatten().to(_wide(a)), b.flatten().to(_wide(a))).double()
        return product / size_a / size_b
    return (a.double() / size_a * (b.double() / size_b)).sum()


def scaled_norm(tensor: Tensor) -> float:
    """The L2 norm in float64, divided by the largest element first: right over float64's whole range."""
    largest = torch.linalg.vector_norm(tensor.detach(), ord=math.inf).item() if tensor.numel() else 0.0
    if largest == 0 or not math.isfinite(largest):
        return largest
    return largest * torch.linalg.vector_norm(tensor.detach().cpu().double() / largest).item()


def inner(a: Tensor, b: Tensor) -> float:
    """The inner product of two tensors of one shape, summed in float64."""
    return (a.cpu().double() * b.cpu().double()).sum().item()


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)
