"""Models of other libraries or files by name, ours among them; a mistake is a `BadInput`."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import nn

from experiments.engine.running.messages import BadInput
from models import CifarResNet, cifar_resnet, rename_public_weights
from probes import sources


def load_model(name: str) -> nn.Module:
    """A model with random weights by a name that `probes.sources` knows, or cifar_resnet:DEPTH (ours)."""
    with as_bad_input():
        return sources.load_model(name, {"cifar_resnet:DEPTH": lambda depth: cifar_resnet(int(depth))})


def load_weights(model: nn.Module, file: Path) -> None:
    """Load a state dict. A public CIFAR ResNet's fits ours, whatever of `rename_public_weights`' names it uses."""
    with as_bad_input():
        sources.load_weights(model, file, rename_public_weights if isinstance(model, CifarResNet) else None)


@contextmanager
def as_bad_input(what: str = "") -> Iterator[None]:
    """A context in which a ValueError of the library is the user's mistake; `what` is put before its text."""
    try:
        yield
    except ValueError as error:
        raise BadInput(f"{what}{error}") from None
