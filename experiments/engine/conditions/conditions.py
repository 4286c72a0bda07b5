"""Conditions: an arm under a control, trained at its own best learning rate."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.engine.conditions.controls import NO_CONTROL, Control
from experiments.engine.running.messages import check_choice, check_unique
from experiments.engine.training.settings import NetworkSettings, check_tuning_seeds
from models import FirstWeights, Flow

FAMILY = "answer"
"""The store of runs that all experiments on conditions share."""


@dataclass(frozen=True)
class Condition:
    """An arm under a control. name: the value of the column `control`, different for each condition."""

    name: str
    arm: str
    control: Control = NO_CONTROL
    optimiser: str = "sgd"
    network: str | None = None
    """Another than the settings'."""
    flow: Flow | None = None
    """Other weights at each junction than the arm's."""
    first_weights: FirstWeights | None = None
    """Others than the settings'."""

    @property
    def is_arm(self) -> bool:
        """Whether it is an unmodified arm."""
        unmodified = NO_CONTROL, "sgd", None, None, None
        return (self.control, self.optimiser, self.network, self.flow, self.first_weights) == unmodified


@dataclass(frozen=True)
class ConditionSettings(NetworkSettings):
    """The settings of experiments on conditions."""

    depths: tuple[int, ...] = (20, 32, 56)
    """Layers, each 6n + 2."""
    tuning_seeds: tuple[int, ...] = (100, 101)
    """Seeds whose runs choose learning rates, by validation, and are never reported: all for unmodified arms, the first
    alone for every other condition."""

    def check(self) -> None:
        self.computing.refuse_compile()
        super().check()
        self.check_depths("--depths", *self.depths)
        check_tuning_seeds(self.tuning_seeds, self.seeds)

    @property
    def store(self) -> Path:
        """Where the runs of all experiments on conditions are kept."""
        return self.out / FAMILY / "runs"


def reference(condition: Condition, among: Iterable[Condition], arm: str) -> Condition:
    """The unmodified arm of the same optimiser and network; raises ValueError where it is not among the conditions."""
    like = condition.optimiser, condition.network
    for other in among:
        if other.arm == arm and other.control == NO_CONTROL and (other.optimiser, other.network) == like:
            return other
    raise ValueError(f"{condition.name!r} needs {arm!r} under {condition.optimiser} beside it: add that condition")


def choose(names: Sequence[str], among: Sequence[Condition], always: Iterable[str]) -> tuple[Condition, ...]:
    """The conditions of those names, those of `always`, and the plain and residual networks that the gap needs; all if
    no name is given. Raises BadInput for a name that there is not."""
    if not names:
        return tuple(among)
    check_unique("--conditions", names)
    for name in names:
        check_choice("--conditions", name, tuple(condition.name for condition in among))
    chosen = [condition for condition in among if condition.name in {*names, *always}]
    needed = [reference(condition, among, arm) for condition in chosen for arm in ("plain", "residual")]
    return tuple(condition for condition in among if condition in [*chosen, *needed])
