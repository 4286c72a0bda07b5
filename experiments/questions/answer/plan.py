"""The plan of `answer`: conditions, seeds, shares and the order of analysis, as `experiments/answer.md` fixes them."""

from collections.abc import Iterator
from dataclasses import dataclass

from experiments.engine.conditions.conditions import Condition
from experiments.engine.conditions.controls import Control
from models import Flow

BLOCKS = 27
"""Of a network of depth 56, to which the numbers of frozen blocks refer."""
SHORT_PATH = 3
"""Branches of the longest short path."""
ALPHA = Flow(0.6, 0.8)
"""y = 0.6 x + 0.8 F(x): the squares sum to 1."""
SIZE_KEPT = Flow(0.6, 0.8, shortcut_gradient=0.0, branch_gradient=1.4)
"""The same function; the branch, which begins near the identity, brings back what both did."""

RESIDUAL = Condition("residual", "residual")
PLAIN = Condition("plain", "plain")
PLAIN_NEAR = Condition("plain, near-identity", "plain", first_weights="near-identity")
RESIDUAL_NEAR = Condition("residual, near-identity", "residual", flow=ALPHA, first_weights="near-identity")
VALUE_NEAR = Condition("value alone, near-identity", "stop-gradient", flow=SIZE_KEPT, first_weights="near-identity")
SHORT = Condition("paths of at most 3", "residual", Control(at_most=SHORT_PATH, rule="true-norm"))
LONG = Condition("paths of at least 4", "residual", Control(at_least=SHORT_PATH + 1, rule="true-norm"))

PLAIN_LOOKS_LINEAR = Condition("plain, looks-linear", "plain", first_weights="looks-linear")
PLAIN_ORTHOGONAL = Condition("plain, delta-orthogonal", "plain", first_weights="delta-orthogonal")
PLAIN_HALF = Condition("plain, half He", "plain", first_weights=0.5)
STOP_GRADIENT = Condition("stop-gradient", "stop-gradient")
TWIN = Condition("stop-gradient's norms, true direction", "stop-gradient", Control(rule="own-norm"))
FROZEN = tuple(
    Condition(f"residual, first {blocks} blocks frozen", "residual", Control(frozen=blocks / BLOCKS))
    for blocks in (18, 21, 24)
)
SCALED = (
    Condition("residual, branches / sqrt(L)", "residual", network="depth-scaled"),
    Condition("stop-gradient, branches / sqrt(L)", "stop-gradient", network="depth-scaled"),
)
PRE = "preactivation"
MIRRORS = (
    Condition("pre-activation, residual", "residual", network=PRE),
    Condition("pre-activation, plain", "plain", network=PRE),
    Condition("pre-activation, mirror", "gradient-only", network=PRE),
    Condition("pre-activation, mirror's norms, true direction", "gradient-only", Control(rule="own-norm"), network=PRE),
    Condition("pre-activation, placebo", "gradient-only", Control(rule="placebo"), network=PRE),
)

PRIMARY = (RESIDUAL, PLAIN, RESIDUAL_NEAR, PLAIN_NEAR, VALUE_NEAR, SHORT, LONG)
CONDITIONED = (PLAIN_LOOKS_LINEAR, PLAIN_ORTHOGONAL)
SECONDARY = (*CONDITIONED, STOP_GRADIENT, TWIN, *FROZEN, PLAIN_HALF, *SCALED, *MIRRORS)
LONGER = (*(c for c in PRIMARY if c not in (SHORT, LONG)), *CONDITIONED, STOP_GRADIENT, TWIN)


@dataclass(frozen=True)
class Part:
    """Conditions that are searched and trained together, with the same effort for each."""

    data: str
    """digits or cifar10."""
    budget: int
    """How many times the settings' epochs each is trained."""
    conditions: tuple[Condition, ...]
    exponents: tuple[int, ...]
    """Of the learning rates that are tried first, in half decades."""
    tuning_seeds: int
    seeds: int
    """How many seeds are reported."""


WIDE, NARROW = (-4, -3, -2, -1, 0), (-3, -2, -1)
PARTS = (
    Part("digits", 1, PRIMARY, WIDE, 2, 10),
    Part("digits", 1, SECONDARY, WIDE, 2, 8),
    Part("cifar10", 1, (RESIDUAL, PLAIN, PLAIN_NEAR, PLAIN_LOOKS_LINEAR, PLAIN_ORTHOGONAL), NARROW, 1, 6),
    Part("digits", 5, LONGER, NARROW, 1, 6),
    Part("digits", 25, (RESIDUAL, PLAIN, PLAIN_NEAR, PLAIN_LOOKS_LINEAR), NARROW, 1, 3),
)
"""In the order in which they are run and read."""
