"""The one description of a training: hashed into a run's name, and trained with."""

from dataclasses import dataclass

from experiments.engine.training.compute import Computing
from experiments.engine.training.optimisation import Training
from models import RESIDUAL, FirstWeights, Flow


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what a run computes, beside its arm, depth and seed.

    Nothing that decides an outcome travels beside it: a script that does something to its networks that others do not
    says so by a frozen dataclass of its own, `treatment`.
    """

    network: str
    """A name of `networks.NETWORKS`."""
    width: int
    data: str
    """The data set's digest; another data set is refused."""
    training: Training
    computing: Computing
    device: str
    flow: Flow = RESIDUAL
    """What the run's arm is: the weights at each junction."""
    first_weights: FirstWeights = "he"
    """Of the convolutions and linear layers in branches."""
    evaluated: tuple[str, ...] = ("train", "validation", "test")
    """The splits on which the trained network is evaluated; a run that chooses a learning rate leaves test alone."""
    processes: int = 1
    """How many train the network together (torchrun); another number is refused."""
    treatment: object = None
    """What an experiment does beside ordinary training: a control, a limit of paths, a lesion."""
