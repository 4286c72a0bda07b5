"""How many images a second does the data pipeline give, and how much of a training step does it take?

`Batches.epoch` (uint8 arrays in memory: pick, normalise, shift, mirror) beside the rest of a step (forward,
backward and SGD of a small network, to which the pipeline is a large share), in interleaved rounds on one thread, in
processor time. Noise stands for the images. The share, pipeline / (pipeline + rest), is taken within a round: median
over rounds with a 95 % bootstrap interval. A bound is not set.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table

from benchmarks.rounds import interleave, machine, median
from experiments.engine.running.cli import run_script
from experiments.engine.training.data import Batches, Dataset
from experiments.engine.training.optimisation import Training, make_optimiser
from models import cifar_resnet

ROWS: dict[str, tuple[tuple[int, int, int], int, str]] = {  # shape of an image, width of cifar_resnet(20), augmentation
    "digits, 8 x 8, default": ((1, 8, 8), 8, "none"),
    "digits, 8 x 8, shifted": ((1, 8, 8), 8, "crop"),
    "CIFAR, 32 x 32, as it is": ((3, 32, 32), 16, "none"),
    "CIFAR, 32 x 32, default": ((3, 32, 32), 16, "crop-flip"),
}


@dataclass(frozen=True)
class Settings:
    """Settings of the benchmark."""

    rounds: int = 20
    """Timed rounds of each data set; one more warms up."""
    images: int = 20_000
    """Training images, of which batches are picked by chance (CIFAR-10 has 45,000 here, digits 1,077)."""
    batch_size: int = 128
    """Images a step."""
    batches: int = 20
    """Batches that the pipeline gives in a round, beside one step."""
    quick: bool = False
    """Few rounds of few images, to see it run."""


QUICK = Settings(rounds=2, images=256, batch_size=32, batches=2)


def main(settings: Settings) -> None:
    """Run the benchmark and print its table."""
    torch.set_num_threads(1)
    title = f"batch {settings.batch_size} of {settings.images} images, {settings.rounds} rounds"
    table = Table("", "pipeline, images/s", "rest of the step, images/s", "share of step [95 %]", title=title)
    for name, (shape, width, augment) in ROWS.items():
        found = times(settings, shape, width, augment)
        speeds = (f"{settings.batch_size / np.median(seconds):,.0f}" for seconds in found.values())
        share = found["pipeline"] / (found["pipeline"] + found["rest"])
        table.add_row(name, *speeds, f"{median(share):.2%}")
    console = Console(width=110)
    console.print(table)
    console.print(machine())


def times(settings: Settings, shape: tuple[int, int, int], width: int, augment: str) -> dict[str, np.ndarray]:
    """Seconds of a batch, in the pipeline and in the rest of its step, in each round."""
    batches = Batches(noise(shape, settings.images, augment), torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(settings.images, generator=generator)[: settings.batch_size * settings.batches]
    picked = order.split(settings.batch_size)
    rest = rest_of_step(width, *next(batches.epoch(picked[:1], generator)))
    kinds = {"pipeline": partial(pipeline, batches, picked, generator), "rest": rest}
    found = interleave(kinds, rounds=settings.rounds)
    return found | {"pipeline": found["pipeline"] / len(picked)}


def noise(shape: tuple[int, int, int], count: int, augment: str) -> Dataset:
    """Random pixels of ten classes: time does not depend on what is seen."""
    draws = np.random.default_rng(0)
    arrays = draws.integers(256, size=(count, *shape), dtype=np.uint8), draws.integers(10, size=count)
    return Dataset("noise", tuple("0123456789"), {"train": arrays}, augment)


def pipeline(batches: Batches, picked: tuple[torch.Tensor, ...], generator: torch.Generator) -> None:
    """Make every batch once."""
    for _ in batches.epoch(picked, generator):
        pass


def rest_of_step(width: int, images: torch.Tensor, labels: torch.Tensor) -> Callable[[], None]:
    """What a step does with its batch."""
    torch.manual_seed(0)
    model = cifar_resnet(20, width=width, in_channels=images.shape[1]).train()
    optimiser = make_optimiser(model, Training(learning_rate=0.01))

    def step() -> None:
        optimiser.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimiser.step()

    return step


if __name__ == "__main__":
    run_script("benchmarks.data_pipeline")
