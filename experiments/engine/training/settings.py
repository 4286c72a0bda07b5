"""The settings that experiments on trained networks share, their checks, and the runs that follow from them."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self, cast

import torch

from experiments.engine.running import distributed
from experiments.engine.running.messages import BadInput, check_choice, check_unique
from experiments.engine.running.output import Output
from experiments.engine.running.run import Run
from experiments.engine.running.workers import Execution
from experiments.engine.training.compute import Computing
from experiments.engine.training.data import Data, Dataset
from experiments.engine.training.networks import NETWORKS, nearest_depth, outline
from experiments.engine.training.optimisation import Training
from experiments.engine.training.recipe import Recipe
from models import ARMS, PLAIN, RESIDUAL, FirstWeights, Flow
from models.first_weights import check_first_weights

CONDITIONED_ARMS: dict[str, tuple[Flow, FirstWeights]] = {"near-identity": (PLAIN, "near-identity")}
"""Arms that are a flow and first weights: the one exception to that all arms of a seed share first weights."""
WIDEST = 2**16
"""Channels of a first stage beyond which a weight's size would overflow in some networks."""


@dataclass(frozen=True)
class RunSettings:
    """How anything is trained, and where its results go."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """Random seeds, by number; one decides the first weights and the order of the data, alike in all arms."""
    training: Training = field(default_factory=Training)
    device: str = "cpu"
    """cpu, cuda, cuda:1."""
    execution: Execution = field(default_factory=Execution)
    out: Path = Path("results")
    """The folder of all results."""
    quick: bool = False
    """A first look: defaults that take less than a minute."""
    log_level: Literal["debug", "info", "warning"] = "info"
    """Verbosity: warnings alone; progress as well; every run that is already finished, too."""

    def check(self) -> None:
        """Raise BadInput for settings that cannot run, before anything is read or written."""
        check_seeds("--seeds", self.seeds)
        self.training.check()
        self.execution.check(self.device)

    def output(self, experiment: str) -> Output:
        """The experiment's folder of tables and figures."""
        return Output(self.out / experiment, settings=self, dry_run=self.execution.dry_run)


@dataclass(frozen=True)
class NetworkSettings(RunSettings):
    """Which networks are trained on images, and how."""

    network: str = "resnet"
    """resnet (He et al. 2015, for CIFAR), or another network's name (docs/networks.md lists them)."""
    width: int = 8
    """Channels of the first stage (He et al.: 16)."""
    first_weights: float | str = "he"
    """Of branches: he, near-identity, delta-orthogonal (Xiao et al. 2018), looks-linear (Balduzzi et al. 2017),
    mirrored-he, or a number t for (1 - t) delta + t He."""
    data: Data = field(default_factory=Data)
    computing: Computing = field(default_factory=Computing)

    def check(self) -> None:
        super().check()
        check_choice("--network", self.network, tuple(NETWORKS))
        try:
            check_first_weights(cast(FirstWeights, self.first_weights))
        except ValueError as error:
            raise BadInput(f"--first-weights: {error}") from None
        if self.execution.backend == "processes":  # a cluster's machines are others
            self.computing.check(torch.device(self.device))
        if not 2 <= self.width <= WIDEST or self.width % 2:
            raise BadInput(
                f"--width {self.width}: give an even number from 2 to {WIDEST}, since shortcuts pad channels on both "
                "sides"
            )

    def on(self, network: str | None) -> Self:
        """The same settings for another network; None: for their own."""
        return replace(self, network=network or self.network)

    def recipe(self, dataset: Dataset, treatment: object = None) -> Recipe:
        """How each network is trained."""
        return Recipe(
            network=self.network,
            width=self.width,
            data=dataset.digest,
            training=self.training,
            computing=self.computing,
            device=self.device,
            first_weights=cast(FirstWeights, self.first_weights),
            processes=distributed.count(),
            treatment=treatment,
        )

    def runs(
        self,
        experiment: str,
        dataset: Dataset,
        *,
        arms: Sequence[str],
        depths: Sequence[int],
        seeds: Sequence[int] | None = None,
        outputs: Sequence[str] = (),
        labels: Mapping[str, Any] | None = None,
        treatment: object = None,
    ) -> list[Run]:
        """A run for each depth (in layers), arm and seed (by default those of the settings).

        outputs: the tables and arrays that each run must give, beside those of every training. labels: further columns
        of the runs' tables. treatment: what is done beside ordinary training.
        """
        recipe = self.recipe(dataset, treatment)
        pace = f"{self.network}, width {self.width}, batch {self.training.batch_size}, {self.device}, {recipe.data}"
        return [
            Run(
                experiment,
                arm,
                depth,
                seed,
                of_arm(recipe, arm),
                outputs=tuple(outputs),
                labels=labels or {},
                about={"title": dataset.title, **asdict(self.data)},
                work=depth * self.training.epochs,
                pace=pace,
            )
            for depth in depths
            for arm in arms
            for seed in (self.seeds if seeds is None else seeds)
        ]

    def check_arms(self, flag: str, *arms: str) -> None:
        """Raise BadInput unless all are arms, none twice, and the network can begin as each does."""
        check_unique(flag, arms)
        for arm in arms:
            check_choice(flag, arm, arm_names())
            if reason := self.unable(arm):
                raise BadInput(f"{flag} {arm}: {reason}")

    def unable(self, arm: str) -> str:
        """Why the network cannot begin as the arm does; "" where it can."""
        if arm not in CONDITIONED_ARMS:
            return ""
        some_depth = nearest_depth(self.network, 20, width=self.width)
        try:
            outline(self.network, some_depth, width=self.width, first_weights=CONDITIONED_ARMS[arm][1])
        except ValueError as error:
            return str(error)
        return ""

    def check_depths(self, flag: str, *depths: int) -> None:
        """Raise BadInput for depths that the network does not have."""
        check_unique(flag, depths)
        for depth in depths:
            try:
                outline(self.network, depth, width=self.width, first_weights=cast(FirstWeights, self.first_weights))
            except ValueError as error:
                raise BadInput(f"{flag} {depth}: {error}") from None


def check_seeds(flag: str, seeds: Sequence[int]) -> None:
    """Raise BadInput unless there are seeds, none twice, that every generator takes."""
    check_unique(flag, seeds)
    if min(seeds) < 0 or max(seeds) >= 2**32:
        raise BadInput(f"{flag} {' '.join(map(str, seeds))}: give numbers from 0 to {2**32 - 1}")


def check_tuning_seeds(tuning_seeds: Sequence[int], seeds: Sequence[int]) -> None:
    """Raise BadInput unless there are seeds to choose learning rates on, and none of them is reported."""
    check_seeds("--tuning-seeds", tuning_seeds)
    if both := sorted(set(seeds) & set(tuning_seeds)):
        raise BadInput(f"--tuning-seeds {both[0]}: that seed is reported; choose learning rates on others")


def check_networks(networks: Sequence[str]) -> None:
    """Raise BadInput unless all are networks, none twice."""
    check_unique("--networks", networks)
    for network in networks:
        check_choice("--networks", network, tuple(NETWORKS))


def arm_names() -> tuple[str, ...]:
    """Of all arms, those of a flow alone first."""
    return (*ARMS, *CONDITIONED_ARMS)


def flow_of(arm: str) -> Flow:
    """An arm's flow; an arm of a script's own changes residual networks."""
    return CONDITIONED_ARMS[arm][0] if arm in CONDITIONED_ARMS else ARMS.get(arm, RESIDUAL)


def of_arm(recipe: Recipe, arm: str) -> Recipe:
    """The recipe with the arm's flow, and its first weights where it has its own."""
    _, first_weights = CONDITIONED_ARMS.get(arm, (None, recipe.first_weights))
    return replace(recipe, flow=flow_of(arm), first_weights=first_weights)
