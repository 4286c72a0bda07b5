"""Updates made of two gradients: lengths and directions, on paper and for drawn vectors."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from experiments.engine.conditions.controls import RULES, noisy, with_own_norm, with_true_norm

TRUE, OWN = torch.tensor([3.0, 4.0], dtype=torch.float64), torch.tensor([0.0, 2.0], dtype=torch.float64)


def source(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a / a.norm()) @ (b / b.norm())).item()


def test_norm_swaps_on_paper() -> None:
    assert with_true_norm(TRUE, OWN, source()).tolist() == [0, 5]
    assert with_own_norm(TRUE, OWN, source()).tolist() == pytest.approx([1.2, 1.6], abs=1e-15)


def test_in_two_dimensions_noise_at_a_cosine_has_two_places() -> None:
    """cos = 0.8: the own gradient itself, or its mirror image at the true one, (1.92, 0.56)."""
    seen = {tuple(round(x, 9) for x in noisy(TRUE, OWN, source(seed)).tolist()) for seed in range(20)}
    assert {(abs(x), y) for x, y in seen} == {(0.0, 2.0), (1.92, 0.56)}


@given(seed=st.integers(0, 10_000), size=st.integers(2, 300), small=st.floats(1e-25, 1))
def test_noise_meets_its_cosine_and_its_length(seed: int, size: int, small: float) -> None:
    """Wanted to 1e-6; in float64 both are met to rounding, also for gradients that have all but vanished."""
    draws = source(seed)
    true, own = (torch.randn(size, generator=draws, dtype=torch.float64) for _ in range(2))
    own *= small
    update = noisy(true, own, draws)
    assert update.norm().item() == pytest.approx(own.norm().item(), rel=1e-9)
    assert cosine(update, true) == pytest.approx(cosine(own, true), abs=1e-9)


def test_noise_is_drawn_anew() -> None:
    draws, vectors = source(), torch.ones(2, 50, dtype=torch.float64) * torch.linspace(-1, 2, 50, dtype=torch.float64)
    true, own = vectors[0], vectors[1].flip(0)
    assert not torch.equal(noisy(true, own, draws), noisy(true, own, draws))


@pytest.mark.parametrize("rule", RULES)
def test_nothing_is_made_of_nothing(rule: str) -> None:
    zeros = torch.zeros(2, dtype=torch.float64)
    if rule != "own-norm":
        assert not RULES[rule](TRUE, zeros, source()).any()
    if rule != "noise":
        assert not RULES[rule](zeros, OWN, source()).any()
    assert not RULES[rule](zeros, zeros, source()).any()


def test_noise_alone_where_the_true_gradient_is_zero() -> None:
    assert noisy(torch.zeros_like(OWN), OWN, source()).norm().item() == pytest.approx(2)
