"""What do recording and gating cost? Ratios to the bare training step, from interleaved rounds in one process.

Each round times one training step (forward, backward, SGD) of every kind, in a random order, on one thread, in seconds
of processor time: what else the machine does counts only as far as it slows memory down. A ratio is taken within a
round; the table gives the median over rounds, with a 95 % bootstrap interval. The cost at an interval of
k steps follows from one recorded step: 1 + (ratio - 1) / k. Memory is the peak of the process's resident set over that
of the bare step, each measured in a process of its own. On a GPU times are wall-clock times, and memory is that which
torch took on it.
"""

import multiprocessing
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from rich.console import Console
from rich.table import Table
from torch import nn

from benchmarks.resident import highest_resident
from benchmarks.rounds import clock_of, interleave, machine, median
from experiments.engine.running.cli import run_script
from experiments.engine.running.messages import check_choice
from experiments.engine.running.workers import check_device
from models import cifar_resnet
from probes import gate, gradient_norms, record, residual_magnitudes

INTERVALS = (1, 4, 16, 64)
NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "cifar_resnet(20)": (partial(cifar_resnet, 20), 32),
    "cifar_resnet(56)": (partial(cifar_resnet, 56), 32),
    "torchvision resnet18": (partial(torchvision.models.resnet18, num_classes=10), 64),
    "cifar_resnet(56, width=8), 8 x 8": (partial(cifar_resnet, 56, width=8), 8),
}


@dataclass(frozen=True)
class Settings:
    """Settings of the benchmark."""

    rounds: int = 12
    """Timed rounds a network; two more warm up."""
    batch_size: int = 128
    """Images a step."""
    networks: tuple[str, ...] = tuple(NETWORKS)
    """Which of the networks."""
    device: str = "cpu"
    """cpu, cuda, cuda:1."""
    quick: bool = False
    """A few rounds of the smallest network, to see it run."""


QUICK = Settings(rounds=3, networks=("cifar_resnet(56, width=8), 8 x 8",))


class Step:
    """A training step of one network, bare or watched."""

    def __init__(self, network: str, batch_size: int, device: torch.device) -> None:
        torch.manual_seed(0)
        make, size = NETWORKS[network]
        self.model = make().to(device)
        self.images = torch.randn(batch_size, 3, size, size).to(device)
        self.labels = torch.randint(10, (batch_size,)).to(device)
        self.optimiser = torch.optim.SGD(self.model.parameters(), lr=0.01, momentum=0.9)

    def bare(self) -> None:
        """The step that the others are compared with."""
        self.optimiser.zero_grad()
        F.cross_entropy(self.model(self.images), self.labels).backward()
        self.optimiser.step()

    def gated(self) -> None:
        """Under a gate at every junction."""
        with gate(self.model, shortcut_gradient=0.5):
            self.bare()

    def recorded(self) -> None:
        """With gradient norms and residual magnitudes at every junction."""
        with record(self.model) as recording:
            self.bare()
        gradient_norms(recording)
        residual_magnitudes(recording)

    def hooked(self) -> None:
        """With a plain forward hook at every block that takes its output's norm: what people write by hand."""
        norms = []
        blocks = [m for m in self.model.modules() if type(m).__name__ in ("ResidualBlock", "BasicBlock")]
        handles = [b.register_forward_hook(lambda _, __, out: norms.append(out.detach().norm())) for b in blocks]
        self.bare()
        for handle in handles:
            handle.remove()
        torch.stack(norms).tolist()


KINDS = ("bare", "gated", "recorded", "hooked")


def times(network: str, batch_size: int, rounds: int, device: torch.device) -> dict[str, np.ndarray]:
    """Seconds of each kind of step in each round."""
    step = Step(network, batch_size, device)
    kinds = {kind: getattr(step, kind) for kind in KINDS}
    return interleave(kinds, rounds=rounds, warm_up=2, clock=clock_of(device))


def peak_memory(network: str, batch_size: int, kind: str, device: torch.device) -> int:
    """The most memory of three steps: the resident set in kilobytes; on a GPU, bytes there. Run in a fresh process."""
    torch.set_num_threads(1)
    step = Step(network, batch_size, device)
    for _ in range(3):
        getattr(step, kind)()
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else highest_resident()


def main(settings: Settings) -> None:
    """Run the benchmark and print its tables."""
    for network in settings.networks:
        check_choice("--networks", network, tuple(NETWORKS))
    device = check_device(settings.device)
    torch.set_num_threads(1)
    console = Console(width=110)
    for network in settings.networks:
        found = times(network, settings.batch_size, settings.rounds, device)
        bare = found.pop("bare")
        title = (
            f"{network}, batch {settings.batch_size}: {np.median(bare) * 1e3:.1f} ms a bare step, {len(bare)} rounds"
        )
        table = Table(title=title)
        for column in ("", *(f"every {k}" for k in INTERVALS), "peak memory"):
            table.add_column(column)
        with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
            peak = {kind: pool.apply(peak_memory, (network, settings.batch_size, kind, device)) for kind in KINDS}
        for kind, seconds in found.items():
            ratios = seconds / bare
            every = [f"{median(ratios):.3f}", *(f"{1 + (np.median(ratios) - 1) / k:.3f}" for k in INTERVALS[1:])]
            table.add_row(kind, *every, f"{peak[kind] / peak['bare']:.2f}")
        console.print(table)
    console.print(machine(device))


if __name__ == "__main__":
    run_script("benchmarks.overhead")
