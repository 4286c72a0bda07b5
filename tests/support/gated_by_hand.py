"""A model whose gate is written by hand, and the checks that `gate` and `record` agree with it."""

from collections.abc import Callable
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from probes import gradient_norms, record, scale_gradient
from tests.support.networks import FLOAT64, perceptron

Checkpoint = bool | None  # None: no checkpointing; else whether it is reentrant
Gradients = dict[str, Tensor]


class Block(nn.Module):
    """x + branch(x), or linear(x) + branch(x), whose shortcut's gradient is weighted by hand."""

    def __init__(self, *, shortcut_gradient: float = 1.0, project: bool = False, reentrant: Checkpoint = None) -> None:
        super().__init__()
        self.branch, self.shortcut = perceptron(), nn.Linear(3, 3, dtype=FLOAT64) if project else nn.Identity()
        self.shortcut_gradient, self.reentrant = shortcut_gradient, reentrant

    def forward(self, x: Tensor) -> Any:
        return self.add(x) if self.reentrant is None else checkpoint(self.add, x, use_reentrant=self.reentrant)

    def add(self, x: Tensor) -> Tensor:
        fork = x if self.shortcut_gradient == 1 else scale_gradient(x, self.shortcut_gradient)
        return self.shortcut(fork) + self.branch(x)


def model(shortcut_gradient: float = 1.0, reentrant: tuple[Checkpoint, ...] = (None, None, None)) -> nn.Sequential:
    """A stem and three blocks, the second of which projects; always the same weights."""
    torch.manual_seed(0)
    stem = nn.Linear(3, 3, dtype=FLOAT64)
    blocks = (
        Block(shortcut_gradient=shortcut_gradient, project=index == 1, reentrant=kind)
        for index, kind in enumerate(reentrant)
    )
    return nn.Sequential(stem, *blocks)


def inputs() -> Tensor:
    return torch.randn(4, 3, dtype=FLOAT64, generator=torch.Generator().manual_seed(1))


def step(network: nn.Module, call: Callable[[Tensor], Any] | None = None) -> Gradients:
    network.zero_grad()
    (call or network)(inputs()).square().sum().backward()
    return gradients(network)


def gradients(network: nn.Module) -> Gradients:
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


BY_HAND, UNGATED = step(model(0.0)), step(model())
ORDER = 1e-13  # the order in which a fork's gradients are summed may differ


def equal(got: Gradients, wanted: Gradients, tolerance: float = ORDER) -> bool:
    return got.keys() == wanted.keys() and all(
        (got[name] - wanted[name]).norm() <= tolerance * wanted[name].norm() for name in wanted
    )


def table_by_hand() -> pd.DataFrame:
    network = model()
    with record(network) as recording:
        step(network)
    return gradient_norms(recording)


def assert_recorded(network: nn.Module, call: Callable[[Tensor], Any] | None = None) -> None:
    with record(network) as recording:
        step(network, call)
    pd.testing.assert_frame_equal(gradient_norms(recording), table_by_hand())


def not_silent(run: Callable[[], Gradients]) -> str:
    """Right gradients, or an error."""
    try:
        got = run()
    except (RuntimeError, ValueError) as error:
        return str(error)
    outcome = "gated" if equal(got, BY_HAND) else "silently un-gated" if equal(got, UNGATED) else "silently half-gated"
    assert outcome == "gated"
    return "works"
