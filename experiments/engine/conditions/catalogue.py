"""The conditions that experiments share, in one place; those of `answer` are in its plan."""

from collections.abc import Sequence

from experiments.engine.conditions.conditions import Condition
from experiments.engine.conditions.controls import Control, Cut
from experiments.engine.statistics.factorial import FACTORIAL

PLAIN, RESIDUAL, STOP_GRADIENT, GRADIENT_ONLY = "plain", "residual", "stop-gradient", "gradient-only"

UNMODIFIED_ARMS = tuple(Condition(arm, arm) for arm in (*FACTORIAL, "shortest-path"))

# Is it the gradient's size, its direction, its bias, or that early blocks do not learn?
MAGNITUDE = (
    Condition("stop-gradient, true norms", STOP_GRADIENT, Control(rule="true-norm")),
    Condition("true direction, stop-gradient norms", STOP_GRADIENT, Control(rule="own-norm")),
    Condition("true and noise, like stop-gradient", STOP_GRADIENT, Control(rule="noise")),
    Condition("gradient-only, true norms", GRADIENT_ONLY, Control(rule="true-norm")),
    Condition("stop-gradient, random feedback", STOP_GRADIENT, Control(feedback=True)),
    Condition("residual, first two thirds frozen", RESIDUAL, Control(frozen=2 / 3)),
)
SCALE_FREE = tuple(
    Condition(f"{arm}, {optimiser}", arm, optimiser=optimiser)
    for optimiser in ("adam", "sign")
    for arm in (RESIDUAL, STOP_GRADIENT, GRADIENT_ONLY, PLAIN)
)

# How much of the shortcut's gradient, when, where, and how surely? At weight 0 and 1 these are arms.
DOSES = tuple(
    Condition(f"weight {weight:g}", RESIDUAL, Control(Cut(weight=weight))) for weight in (0.1, 0.25, 0.5, 0.75)
)
COINS = tuple(
    Condition(f"{kind} coin, {chance:g}", RESIDUAL, Control(Cut(chance=chance, unbiased=kind == "unbiased")))
    for chance in (0.5, 0.9)
    for kind in ("biased", "unbiased")
)


def timing(epochs: int) -> tuple[Condition, ...]:
    """Cut in the first part of training, or after it, the part being a fifth, a half and four fifths of the epochs."""
    parts = sorted({max(1, round(part * epochs)) for part in (0.2, 0.5, 0.8)} - {epochs})
    return tuple(
        Condition(f"{when} epoch {part}", RESIDUAL, Control(cut))
        for part in parts
        for when, cut in (("until", Cut(end=part)), ("from", Cut(begin=part)))
    )


PLACES = (
    *(Condition(f"stage {stage}", RESIDUAL, Control(Cut(stage=stage))) for stage in (1, 2, 3)),
    *(Condition(f"every {every}. block", RESIDUAL, Control(Cut(every=every))) for every in (2, 3)),
)

# Networks whose forward treats the shortcut's value in other ways.
FORWARDS = (
    "resnet",
    "norm-after-sum",
    "rescaled-sum",
    "depth-scaled",
    "skipinit",
    "fixup",
    "preactivation",
    "mlp",
)


def on_networks(networks: Sequence[str]) -> tuple[Condition, ...]:
    """The factorial's arms on each network."""
    return tuple(Condition(f"{network}, {arm}", arm, network=network) for network in networks for arm in FACTORIAL)
