"""An update made of two gradients of one block's parameters: the true one, and that of the arm.

Each rule takes both as vectors of float64, and a source of noise; the lengths of what it gives are exact to rounding.
"""

from collections.abc import Callable

import torch
from torch import Tensor

UpdateRule = Callable[[Tensor, Tensor, torch.Generator], Tensor]


def with_true_norm(true: Tensor, own: Tensor, noise: torch.Generator) -> Tensor:
    """The arm's direction, as long as the true gradient; zeros where the arm's is zero."""
    return scaled_to(own, true.norm())


def with_own_norm(true: Tensor, own: Tensor, noise: torch.Generator) -> Tensor:
    """The true direction, as long as the arm's gradient; zeros where the true one is zero."""
    return scaled_to(true, own.norm())


def noisy(true: Tensor, own: Tensor, noise: torch.Generator) -> Tensor:
    """The true gradient and isotropic noise, with the cosine to the true one and the length that the arm's has.

    cos(own, true) * true / |true| + sin * noise / |noise|, the noise orthogonal to the true gradient; times |own|.
    """
    drawn = torch.randn(own.shape, generator=noise, dtype=own.dtype).to(own.device)
    size = true.norm()
    if size == 0:
        return scaled_to(drawn, own.norm())
    direction = true / size
    for _ in range(2):  # twice: the first leaves rounding errors of the noise's own size
        drawn = drawn - (drawn @ direction) * direction
    cosine = (own / own.norm()) @ direction if own.any() else own.new_zeros(())
    sine = (1 - cosine**2).clamp(min=0).sqrt()
    return own.norm() * (cosine * direction + scaled_to(drawn, sine))


def scaled_to(vector: Tensor, length: Tensor) -> Tensor:
    """The vector's direction at that length; zeros stay zeros."""
    size = vector.norm()
    return vector * (length / size) if size > 0 else torch.zeros_like(vector)


RULES: dict[str, UpdateRule] = {
    "true-norm": with_true_norm,
    "own-norm": with_own_norm,
    "noise": noisy,
}
