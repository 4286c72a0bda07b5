"""The first-order change of the true loss over each step of a training: does it go uphill?"""

from dataclasses import dataclass, field

import pandas as pd
import torch
from torch import Tensor, nn

from experiments.engine.conditions.block_gradients import flat, gradients
from experiments.engine.training.loop import Backward, Moment
from models import residual_blocks, set_flows


@dataclass
class FirstOrderChanges:
    """g . (weights after the step - weights before it) for each step of one training, with g the true gradient of the
    step's loss at the weights before, whatever gradient is trained with.

    The change holds all that the optimiser does, momentum and weight decay included. Not for networks with random
    feedback: their true gradient is not found here.
    """

    changes: list[tuple[int, int, float]] = field(default_factory=list)
    """Step (from 1) and epoch (from 1) of each step that has ended, and the change."""
    _begun: tuple[Moment, Tensor, Tensor] | None = None

    def wrap_backward(self, backward: Backward) -> Backward:
        """The same backward, which records weights and true gradient first."""

        def wrapped(model: nn.Module, loss: Tensor, moment: Moment) -> None:
            self._end_step(model)
            self._begun = moment, weights(model), true_gradient(model, loss)
            backward(model, loss, moment)

        return wrapped

    def table(self, model: nn.Module) -> pd.DataFrame:
        """All changes, the last step's being taken from the network as it is now: step, epoch, quantity, value."""
        self._end_step(model)
        rows = pd.DataFrame(self.changes, columns=["step", "epoch", "value"])
        return rows.assign(split="train", quantity="first-order change")

    def _end_step(self, model: nn.Module) -> None:
        if self._begun is not None:
            moment, before, gradient = self._begun
            change = (gradient @ (weights(model) - before)).item()
            self.changes.append((moment.step + 1, moment.epoch + 1, change))
            self._begun = None


@torch.no_grad()
def weights(model: nn.Module) -> Tensor:
    """All parameters as one vector of float64."""
    return torch.cat([parameter.flatten().double() for parameter in model.parameters()])


def true_gradient(model: nn.Module, loss: Tensor) -> Tensor:
    """The gradient of a loss that the network just computed, as one vector of float64; its graph is kept."""
    blocks, parameters = residual_blocks(model), list(model.parameters())
    flows = [block.flow for block in blocks]
    try:
        set_flows(model, [flow.exact for flow in flows])
        return flat(parameters, gradients(loss, parameters, retain_graph=True))
    finally:
        set_flows(model, flows)


def uphill_share(steps: pd.DataFrame, *by: str) -> pd.DataFrame:
    """The share of steps whose first-order change is above 0, for each value of the columns `by`; steps whose change is
    not finite do not count."""
    finite = steps[steps["value"].abs() < float("inf")]
    shares = finite.assign(value=finite["value"] > 0).groupby(list(by))["value"].mean()
    return shares.reset_index().assign(quantity="uphill share")
