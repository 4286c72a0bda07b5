"""The settings that experiments on trained networks share, their checks, and the cells that follow from them."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import torch

from experiments.engine import processes
from experiments.engine.command import BadInput, check_choice
from experiments.engine.computing import Computing
from experiments.engine.data import Data, Dataset
from experiments.engine.grid import Cell
from experiments.engine.networks import NETWORKS, outline
from experiments.engine.training import Training
from experiments.engine.workers import Workers
from models import ARMS

WIDEST = 2**16
"""Channels of a first stage beyond which a weight's size would overflow in some networks."""


@dataclass(frozen=True)
class NetworkSettings:
    """Which networks are trained, and how."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """Random seeds, by number; one decides the first weights and the order of the data, alike in all arms."""
    network: str = "resnet"
    """resnet (He et al. 2015, for CIFAR), or another of the README's list."""
    width: int = 8
    """Channels of the first stage (He et al.: 16)."""
    training: Training = field(default_factory=Training)
    data: Data = field(default_factory=Data)
    computing: Computing = field(default_factory=Computing)
    device: str = "cpu"
    """cpu, cuda, cuda:1."""
    workers: Workers = field(default_factory=Workers)
    out: Path = Path("results")
    """The folder of all results."""
    quick: bool = False
    """A first look: defaults that take less than a minute."""
    dry_run: bool = False
    """Tell the cells, which of them are done, and how long the others may take; train and write nothing."""
    log_level: Literal["debug", "info", "warning"] = "info"
    """What is told meanwhile: warnings alone, progress as well, or every cell that is found done, too."""

    def check(self) -> None:
        """Raise BadInput for settings that cannot run, before anything is read or written."""
        check_seeds("--seeds", self.seeds)
        check_choice("--network", self.network, tuple(NETWORKS))
        self.training.check()
        self.workers.check(self.device)
        if self.workers.backend == "processes":  # a cluster's machines are others
            self.computing.check(torch.device(self.device))
        if not 2 <= self.width <= WIDEST or self.width % 2:
            raise BadInput(
                f"--width {self.width}: give an even number from 2 to {WIDEST}, since shortcuts pad channels on both "
                "sides"
            )

    def recipe(self, dataset: Dataset) -> dict[str, object]:
        """What decides a cell's outcome beside its arm, depth and seed."""
        network = {"network": self.network, "width": self.width, "device": self.device}
        together = {"processes": processes.count()} if processes.count() > 1 else {}
        return {**network, "data": dataset.digest, **asdict(self.training), **self.computing.recipe, **together}

    def about(self, dataset: Dataset) -> dict[str, object]:
        """Where the data came from."""
        return {"title": dataset.title, **asdict(self.data)}

    def cells(
        self,
        experiment: str,
        dataset: Dataset,
        *,
        arms: Sequence[str],
        depths: Sequence[int],
        labels: Sequence[str] = (),
        **recipe: object,
    ) -> list[Cell]:
        """A cell for each depth, arm and seed. recipe: what else decides their outcome. labels: the settings of a cell
        that its tables tell, too."""
        whole, about = self.recipe(dataset) | recipe, self.about(dataset)
        told = {label: whole[label] for label in labels}
        return [
            Cell(experiment, arm, depth, seed, whole, about, told)
            for depth in depths
            for arm in arms
            for seed in self.seeds
        ]

    def check_depths(self, flag: str, *depths: int) -> None:
        """Raise BadInput for depths that the network does not have."""
        check_each_once(flag, depths)
        for depth in depths:
            try:
                outline(self.network, depth, width=self.width)
            except ValueError as error:
                raise BadInput(f"{flag} {depth}: {error}") from None


def check_each_once(flag: str, values: Sequence[object]) -> None:
    """Raise BadInput unless there is a value, and none twice."""
    if not values or len(set(values)) < len(values):
        raise BadInput(f"{flag}: got {' '.join(map(str, values)) or 'none'}; give one or more, each once")


def check_seeds(flag: str, seeds: Sequence[int]) -> None:
    """Raise BadInput unless there are seeds, none twice, that every generator takes."""
    check_each_once(flag, seeds)
    if min(seeds) < 0 or max(seeds) >= 2**32:
        raise BadInput(f"{flag} {' '.join(map(str, seeds))}: give numbers from 0 to {2**32 - 1}")


def check_arms(arms: Sequence[str]) -> None:
    """Raise BadInput unless the arms are some of the five."""
    check_each_once("--arms", arms)
    for arm in arms:
        check_choice("--arms", arm, tuple(ARMS))
