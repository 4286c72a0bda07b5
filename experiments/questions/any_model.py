"""Models of other libraries or files by name, and inputs that they take."""

from pathlib import Path

import torch
from torch import nn

from experiments.engine.running.messages import BadInput, first_line
from models import CifarResNet, rename_public_weights


def load_weights(model: nn.Module, file: Path) -> None:
    """Load a state dict, or one under "state_dict" or "model"; no code in the file is run. BadInput where it fails.

    A public CIFAR ResNet's fits ours, whatever of `rename_public_weights`' names it uses.
    """
    try:
        state = torch.load(file, weights_only=True, map_location="cpu")
        state = next((state[key] for key in ("state_dict", "model") if key in state), state)
        state = {name.removeprefix("module."): value for name, value in state.items()}
        model.load_state_dict(rename_public_weights(state) if isinstance(model, CifarResNet) else state)
    except Exception as error:
        raise BadInput(f"--weights {file}: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}"
