"""The plan of `answer` as data: conditions, parts, shares, in the order in which they are run and read.

`experiments/answer.md` says why, and was fixed before the reported runs; a test compares the two.
"""

from dataclasses import dataclass, replace
from typing import Literal

from experiments.engine.conditions.conditions import Condition
from experiments.engine.conditions.controls import Control
from experiments.engine.statistics.shares import Share
from models import Flow

SEEDS = tuple(range(1000, 1010))
TUNING_SEEDS = (2000, 2001)
SHORT_PATH = 3
"""Branches of the longest short path."""
ALPHA = Flow(0.6, 0.8)
"""y = 0.6 x + 0.8 F(x): the squares sum to 1."""
SIZE_KEPT = Flow(0.6, 0.8, shortcut_gradient=0.0, branch_gradient=1.4)
"""The same function; the branch, which begins near the identity, brings back most of what both did: about 0.9 a block,
so that after 27 blocks a tenth of the true gradient's size is left (stop-gradient at He's weights: 1e-8)."""

RESIDUAL = Condition("residual", "residual")
PLAIN = Condition("plain", "plain")
PLAIN_NEAR = Condition("plain, near-identity", "plain", first_weights="near-identity")
RESIDUAL_NEAR = Condition("residual, near-identity", "residual", flow=ALPHA, first_weights="near-identity")
VALUE_NEAR = Condition("value alone, near-identity", "stop-gradient", flow=SIZE_KEPT, first_weights="near-identity")
SHORT = Condition("paths of at most 3", "residual", Control(at_most=SHORT_PATH, rule="true-norm"))
LONG = Condition("paths of at least 4", "residual", Control(at_least=SHORT_PATH + 1, rule="true-norm"))
VALUE_AT_NORMS = replace(VALUE_NEAR, name=f"{VALUE_NEAR.name}, true norms", control=Control(rule="true-norm"))
"""Each block's gradient as long as the true one: SIZE_KEPT alone loses a tenth of it in each block."""

PLAIN_LOOKS_LINEAR = Condition("plain, looks-linear", "plain", first_weights="looks-linear")
PLAIN_ORTHOGONAL = Condition("plain, delta-orthogonal", "plain", first_weights="delta-orthogonal")
PLAIN_HALF = Condition("plain, half He", "plain", first_weights=0.5)
STOP_GRADIENT = Condition("stop-gradient", "stop-gradient")
TWIN = Condition("stop-gradient's norms, true direction", "stop-gradient", Control(rule="own-norm"))
FROZEN = tuple(
    Condition(f"residual, first {blocks}/27 frozen", "residual", Control(frozen=blocks / 27)) for blocks in (18, 21, 24)
)
RESIDUAL_SCALED = Condition("residual, branches / sqrt(L)", "residual", network="depth-scaled")
VALUE_SCALED = Condition("stop-gradient, branches / sqrt(L)", "stop-gradient", network="depth-scaled")
PRE = "preactivation"
PRE_RESIDUAL = Condition("pre-activation, residual", "residual", network=PRE)
PRE_PLAIN = Condition("pre-activation, plain", "plain", network=PRE)
MIRROR = Condition("pre-activation, mirror", "gradient-only", network=PRE)
MIRROR_TWIN = Condition(
    "pre-activation, mirror's norms, true direction", "gradient-only", Control(rule="own-norm"), network=PRE
)
PLACEBO = Condition("pre-activation, placebo", "gradient-only", Control(rule="placebo"), network=PRE)

PRIMARY = (RESIDUAL, PLAIN, RESIDUAL_NEAR, PLAIN_NEAR, VALUE_NEAR, SHORT, LONG)
FIRST_WEIGHTS = (PLAIN_LOOKS_LINEAR, PLAIN_ORTHOGONAL, PLAIN_HALF)
AT_HE = (STOP_GRADIENT, TWIN, *FROZEN, RESIDUAL_SCALED, VALUE_SCALED)
MIRRORS = (PRE_RESIDUAL, PRE_PLAIN, MIRROR, MIRROR_TWIN, PLACEBO)
LONGER = (*PRIMARY[:5], *FIRST_WEIGHTS[:2], STOP_GRADIENT)
LONGEST = (RESIDUAL, PLAIN, PLAIN_NEAR, PLAIN_LOOKS_LINEAR)


@dataclass(frozen=True)
class Part:
    """Conditions that are searched and trained together, with the same effort for each."""

    data: Literal["digits", "CIFAR-10"]
    budget: int
    """How many times the epochs of the settings each is trained."""
    conditions: tuple[Condition, ...]
    exponents: tuple[int, ...]
    """Of the learning rates that are tried first, in half decades."""
    tuning_seeds: int
    seeds: int
    """How many seeds are reported."""


WIDE, NARROW = (-4, -3, -2, -1, 0), (-3, -2, -1)
PARTS = (
    Part("digits", 1, PRIMARY, WIDE, 2, 10),
    Part("digits", 1, (*FIRST_WEIGHTS, *AT_HE, *MIRRORS), WIDE, 2, 8),
    Part("digits", 5, LONGER, NARROW, 1, 6),
    Part("CIFAR-10", 1, (RESIDUAL, PLAIN, PLAIN_NEAR, *FIRST_WEIGHTS[:2]), NARROW, 1, 8),
    Part("digits", 25, LONGEST, NARROW, 1, 3),
    Part("digits", 1, (VALUE_AT_NORMS,), WIDE, 2, 10),
)
"""In the order in which they are run and read. The first is the primary analysis; the last was added after it."""


def gap(plain: Condition, residual: Condition) -> dict[str, float]:
    """The weights of the whole effect in errors."""
    return {plain.name: 1.0, residual.name: -1.0}


def closed(condition: Condition, plain: Condition = PLAIN, residual: Condition = RESIDUAL) -> Share:
    """The share of the gap between plain and residual that a condition closes."""
    return Share(condition.name, {plain.name: 1.0, condition.name: -1.0}, gap(plain, residual))


EFFECT = gap(PLAIN, RESIDUAL)
SHARES = (
    Share("conditioning", {**EFFECT, PLAIN_NEAR.name: -1.0, RESIDUAL_NEAR.name: 1.0}, EFFECT),
    Share("value", {PLAIN_NEAR.name: 1.0, VALUE_NEAR.name: -1.0}, EFFECT),
    Share("short paths", {LONG.name: 1.0, SHORT.name: -1.0}, EFFECT),
)
"""Of the whole effect, in errors: the lower is the better."""
CLOSED = (
    *(closed(condition) for condition in (*PRIMARY[2:], *FIRST_WEIGHTS, *AT_HE)),
    *(closed(condition, PRE_PLAIN, PRE_RESIDUAL) for condition in MIRRORS[2:]),
)
"""Secondary: the gap that each condition closes, by the condition's name."""
ADDED = (
    closed(VALUE_AT_NORMS),
    Share("value, true norms", {PLAIN_NEAR.name: 1.0, VALUE_AT_NORMS.name: -1.0}, EFFECT),
)
"""Of the part that was added; a family of its own, so that no other reading changes."""
