"""Flow: how much of each addend goes forward, and how much of its gradient comes back."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, init=False)
class Flow:
    """The weights at a junction: value = shortcut · S(x) + branch · F(x).

    For a gradient g at the sum, x receives shortcut_gradient · J_Sᵀg + branch_gradient · J_Fᵀg. Parameters inside S or
    F receive the gradient of the value (times the *forward* weight), whatever the gradient weights are.

    Args:
        shortcut: Forward weight of the shortcut S; 0 adds exactly nothing, even where x is inf or nan.
        branch: Forward weight of the residual branch F.
        shortcut_gradient: Weight of the gradient that reaches x through the shortcut; None for the forward weight,
            which is ordinary backpropagation.
        branch_gradient: Weight of the gradient that reaches x through the branch; None for the forward weight.

    Raises:
        ValueError: A weight is not finite.
    """

    shortcut: float
    branch: float
    shortcut_gradient: float
    branch_gradient: float

    def __init__(
        self,
        shortcut: float = 1.0,
        branch: float = 1.0,
        shortcut_gradient: float | None = None,
        branch_gradient: float | None = None,
    ) -> None:
        weights = {
            "shortcut": shortcut,
            "branch": branch,
            "shortcut_gradient": shortcut if shortcut_gradient is None else shortcut_gradient,
            "branch_gradient": branch if branch_gradient is None else branch_gradient,
        }
        for name, weight in weights.items():
            if not math.isfinite(weight):
                raise ValueError(f"Flow: {name} is {weight}; give a finite number (0 cuts, 1 leaves untouched)")
            object.__setattr__(self, name, weight)  # the class is frozen

    @property
    def exact(self) -> "Flow":
        """The same forward weights with the gradient of what they compute."""
        return Flow(self.shortcut, self.branch)


#: He et al.'s residual network (2015, arXiv 1512.03385).
RESIDUAL = Flow()
#: The residual function; no gradient through the shortcut, so that only the longest path is left.
STOP_GRADIENT = Flow(shortcut_gradient=0.0)
#: The plain function; the gradient as if the shortcut were there.
GRADIENT_ONLY = Flow(shortcut=0.0, shortcut_gradient=1.0)
#: The plain function and its gradient.
PLAIN = Flow(shortcut=0.0)
#: The residual function; no gradient through the branch, so that each block learns through the shortcuts above it.
SHORTEST_PATH = Flow(branch_gradient=0.0)

#: Every arm by its name: this is the one place where an arm is added.
ARMS = {
    "residual": RESIDUAL,
    "stop-gradient": STOP_GRADIENT,
    "gradient-only": GRADIENT_ONLY,
    "plain": PLAIN,
    "shortest-path": SHORTEST_PATH,
}


def rescale(flow: Flow, *, shortcut: float = 1.0, branch: float = 1.0) -> Flow:
    """The flow of a sum whose addends are multiplied by these numbers, forwards and backwards: a cut stays a cut.

    Args:
        flow: The weights before.
        shortcut: Factor of the shortcut's two weights.
        branch: Factor of the branch's two weights.

    Returns:
        A new flow.

    Raises:
        ValueError: A product is not finite.
    """
    return Flow(
        shortcut=shortcut * flow.shortcut,
        branch=branch * flow.branch,
        shortcut_gradient=shortcut * flow.shortcut_gradient,
        branch_gradient=branch * flow.branch_gradient,
    )
