"""Is our training step as fast as a bare loop on the same network?

Four kinds in interleaved rounds on one thread: either loop (`train` on `Batches`; the shortest by hand, on images that
were normalised beforehand) with either network (ours, flow RESIDUAL; torchvision's, or for CIFAR one written by hand),
from the same weights, on the same images in the same order. The losses must agree, or there is nothing to compare.

The ratio to the bare loop on the other network is taken within a round, in processor time, on a GPU in wall-clock time:
median over rounds with a 95 % bootstrap interval. The bound: the interval of our loop on our network reaches below
1.05.

--autocast, --channels-last and --compile mean for our loop what they mean for the experiments, and for the bare one
what one would write. On a GPU, where nothing is compiled, our loop is timed with --capture, too.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks.data_pipeline import noise
from benchmarks.handwritten import HandwrittenResNet
from benchmarks.rounds import clock_of, interleave, machine, median
from experiments.engine.running.cli import run_script
from experiments.engine.running.messages import check_choice
from experiments.engine.running.workers import check_device
from experiments.engine.training.compute import Computing
from experiments.engine.training.data import Batches
from experiments.engine.training.loop import train
from experiments.engine.training.optimisation import Training
from models import cifar_resnet, imagenet_resnet

BOUND = 1.05
OTHER = "bare loop, the other network"
WARM_UP = 1


@dataclass(frozen=True)
class Pair:
    """Our network, its equivalent, and what they are trained on in a round."""

    ours: Callable[[], nn.Module]
    theirs: Callable[[], nn.Module]
    shape: tuple[int, int, int]
    batch_size: int
    steps: int
    """Steps a round, which are an epoch: fewer than in use, so that what ours does once an epoch weighs more here."""


PAIRS = {
    "cifar_resnet(20), 32 x 32": Pair(
        partial(cifar_resnet, 20),
        partial(HandwrittenResNet, 20),
        (3, 32, 32),
        batch_size=32,
        steps=4,
    ),
    "cifar_resnet(56, width=8), 8 x 8": Pair(
        partial(cifar_resnet, 56, width=8, in_channels=1),
        partial(HandwrittenResNet, 56, width=8, in_channels=1),
        (1, 8, 8),
        batch_size=128,
        steps=8,
    ),
    "imagenet_resnet(18), 64 x 64": Pair(
        partial(imagenet_resnet, 18, num_classes=10),
        partial(torchvision.models.resnet18, num_classes=10),
        (3, 64, 64),
        batch_size=16,
        steps=4,
    ),
    "cifar_resnet(56), 32 x 32": Pair(
        partial(cifar_resnet, 56),
        partial(HandwrittenResNet, 56),
        (3, 32, 32),
        batch_size=128,
        steps=20,
    ),
    "imagenet_resnet(50), 224 x 224": Pair(
        partial(imagenet_resnet, 50),
        torchvision.models.resnet50,
        (3, 224, 224),
        batch_size=128,
        steps=8,
    ),
}
FOR_GPUS = ("cifar_resnet(56), 32 x 32", "imagenet_resnet(50), 224 x 224")


@dataclass(frozen=True)
class Settings:
    """Settings of the benchmark."""

    rounds: int = 15
    """Timed rounds a network; one more warms up."""
    networks: tuple[str, ...] = ()
    """Which of the networks; none: the last two on a GPU, the others on a CPU."""
    device: str = "cpu"
    """cpu, cuda, cuda:1."""
    computing: Computing = field(default_factory=Computing)
    quick: bool = False
    """A few rounds of the smallest network, to see it run."""


QUICK = Settings(rounds=2, networks=("cifar_resnet(56, width=8), 8 x 8",))


def main(settings: Settings) -> None:
    """Run the benchmark and print its tables."""
    for network in settings.networks:
        check_choice("--networks", network, tuple(PAIRS))
    device, how = check_device(settings.device), settings.computing
    torch.set_num_threads(1)
    console = Console(width=110)
    of_device = FOR_GPUS if device.type == "cuda" else [name for name in PAIRS if name not in FOR_GPUS]
    for network in settings.networks or of_device:
        pair = PAIRS[network]
        found, apart = times(pair, settings.rounds, device, how)
        show(console, ", ".join([network, *(name for name, on in asdict(how).items() if on)]), pair, found)
        console.print(f"losses agree to {apart:.0e} of their value, {tolerance(device, how):.0e} at most")
        if not apart <= tolerance(device, how):
            raise RuntimeError("the losses differ: these are not the same computation, and their times no comparison")
    console.print(machine(device))


def tolerance(device: torch.device, how: Computing) -> float:
    """How far the losses of a round's steps may lie apart: float32's sums in other orders, some roundings to TF32 (11
    bits), or to bfloat16 (8)."""
    return 3e-2 if how.autocast else 1e-4 if device.type == "cpu" else 1e-2


def times(pair: Pair, rounds: int, device: torch.device, how: Computing) -> tuple[dict[str, np.ndarray], float]:
    """Seconds of each loop on each network in each round; by how much the losses of the first round differ at most."""
    dataset, epochs = noise(pair.shape, pair.steps * pair.batch_size, augment="none"), rounds + WARM_UP
    training = Training(epochs=epochs, batch_size=pair.batch_size, learning_rate=0.01)
    batches = Batches(dataset, device)
    loops = {"our": partial(train, batches=batches), "bare": partial(bare, data=batches.get("train", slice(None)))}
    running = {
        f"{loop} loop, {whose} network": loops[loop](model.to(device), training=training, seed=0, computing=how)
        for loop in ("our", "bare")
        for whose, model in zip(("our", "the other"), twins(pair), strict=True)
    }
    if device.type == "cuda" and not how.compile:
        model, captured = twins(pair)[0].to(device), replace(how, capture=True)
        running["our loop, captured"] = train(model, batches, training, seed=0, computing=captured)
        running[OTHER] = running.pop(OTHER)  # what all are compared with comes last
    losses: dict[str, list[Tensor]] = {kind: [] for kind in running}
    kinds = {kind: partial(lambda kind: losses[kind].append(next(running[kind]).cpu()), kind) for kind in running}
    found = interleave(kinds, rounds=rounds, warm_up=WARM_UP, clock=clock_of(device))
    wanted = losses[OTHER][0]
    return found, max(((recorded[0] - wanted).abs() / wanted).max().item() for recorded in losses.values())


def twins(pair: Pair) -> tuple[nn.Module, nn.Module]:
    """Both networks, with the same weights, which they hold in the same order."""
    torch.manual_seed(0)
    ours, theirs = pair.ours(), pair.theirs()
    theirs.load_state_dict(dict(zip(theirs.state_dict(), ours.state_dict().values(), strict=True)))
    return ours, theirs


def bare(
    model: nn.Module, data: tuple[Tensor, Tensor], training: Training, seed: int, computing: Computing
) -> Iterator[Tensor]:
    """The loop that one writes by hand, yielding as `train` does."""
    images, labels = data
    generator = torch.Generator().manual_seed(seed)
    rate, steps = training.learning_rate, training.epochs * len(labels) // training.batch_size
    optimiser = torch.optim.SGD(
        model.parameters(), lr=rate, momentum=training.momentum, weight_decay=training.weight_decay
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps, cycle_momentum=False)
    layout = torch.channels_last if computing.channels_last else torch.contiguous_format
    model.train().to(memory_format=layout)  # pyright: ignore[reportCallIssue]
    forward = torch.compile(model) if computing.compile else model
    for _ in range(training.epochs):
        losses = []
        for indices in torch.randperm(len(labels), generator=generator).to(labels.device).split(training.batch_size):
            with torch.autocast(labels.device.type, torch.bfloat16, enabled=computing.autocast):
                loss = F.cross_entropy(forward(images[indices].contiguous(memory_format=layout)), labels[indices])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            losses.append(loss.detach())
        yield torch.stack(losses)


def show(console: Console, network: str, pair: Pair, found: dict[str, np.ndarray]) -> None:
    """Milliseconds a step, images a second, ratios with intervals, and whether the bound holds."""
    first, last = next(iter(found)), OTHER
    title = f"{network}, batch {pair.batch_size}, {len(found[last])} rounds of {pair.steps} steps"
    table = Table("", "ms a step", "steps a second", "images a second", f"ratio to {last} [95 %]", title=title)
    for kind, seconds in found.items():
        ratio = f"{median(seconds / found[last]):.3f}" if kind != last else "1"
        step = float(np.median(seconds)) / pair.steps
        table.add_row(kind, f"{1e3 * step:.1f}", f"{1 / step:.1f}", f"{pair.batch_size / step:,.0f}", ratio)
    console.print(table)
    holds = median(found[first] / found[last]).low < BOUND
    console.print(f"bound: the interval of {first}, reaches below {BOUND}: {'holds' if holds else 'does not hold'}")


if __name__ == "__main__":
    run_script("benchmarks.training_step")
