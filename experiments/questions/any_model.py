"""Models of other libraries or files by name, and inputs that they take."""

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from experiments.engine.running.messages import BadInput, first_line
from models import CifarResNet, cifar_resnet, rename_public_weights


def load_model(name: str) -> nn.Module:
    """A model with random weights: torchvision:NAME, timm:NAME, hf:TYPE (from its default config), cifar_resnet:DEPTH
    (ours) or FILE.py:FUNCTION.

    BadInput where the name has another form, means nothing, or the library is not installed.
    """
    source, _, rest = name.rpartition(":")
    if source.endswith(".py"):
        return _from_file(Path(source), rest)
    if source not in SOURCES or not rest:
        raise BadInput(
            f"--model {name}: give torchvision:NAME, timm:NAME, hf:TYPE, cifar_resnet:DEPTH or FILE.py:FUNCTION"
        )
    with _as_bad_input(name):
        return SOURCES[source](rest)


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


def make_inputs(model: nn.Module, *, batch_size: int, size: int, length: int, image: Path | None) -> dict[str, Any]:
    """Inputs by name, or under "" for a single positional one: random, or the image file, `batch_size` times."""
    main = getattr(model, "main_input_name", "")
    config: Any = getattr(model, "config", None)
    if main in ("", "pixel_values"):
        side = getattr(config, "image_size", None) or size
        height, width = (side, side) if isinstance(side, int) else side
        if image is not None:
            return {main: _image(image, batch_size, height, width)}
        return {main: torch.randn(batch_size, getattr(config, "num_channels", None) or 3, height, width)}
    if image is not None:
        raise BadInput(f"--image {image}: this model takes {main}, not images")
    if main == "input_ids":
        ids = torch.randint(config.vocab_size, (batch_size, length))
        return {main: ids} | ({"decoder_input_ids": ids} if config.is_encoder_decoder else {})
    raise BadInput(f"the model takes {main}, for which there is no random input; wrap it as FILE.py:FUNCTION")


def load_images(file: Path, count: int) -> tuple[Tensor, Tensor | None]:
    """The first images x (uint8, (N, 3, H, W)) of an .npz file, normalised as ImageNet's, and their labels y if it has
    any. BadInput where it holds no such images, or fewer."""
    try:
        with np.load(file) as data:
            images, labels = data["x"], data.get("y")
    except Exception as error:
        raise BadInput(f"--images {file}: cannot be read as an .npz with images x ({_first_line(error)})") from None
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] != 3 or len(images) < count:
        raise BadInput(
            f"--images {file}: x is {images.dtype} {images.shape}; wanted uint8 ({count} or more, 3, height, width)"
        )
    return _normalised(torch.tensor(images[:count])), None if labels is None else torch.tensor(labels[:count]).long()


def first_output(output: Any) -> Tensor:
    """The first floating tensor of an output, which may be a tensor, a tuple, a mapping or a dataclass."""
    leaves = tree_leaves(vars(output) if is_dataclass(output) and not hasattr(output, "keys") else output)
    for leaf in leaves:
        if isinstance(leaf, Tensor) and leaf.is_floating_point():
            return leaf
    raise BadInput("the model's output holds no floating tensor")


def _torchvision(name: str) -> nn.Module:
    from torchvision.models import get_model

    return get_model(name, weights=None)


def _timm(name: str) -> nn.Module:
    import timm

    return timm.create_model(name, pretrained=False)


def _hf(name: str) -> nn.Module:
    import transformers

    return transformers.AutoModel.from_config(transformers.AutoConfig.for_model(name))


SOURCES: dict[str, Callable[[str], nn.Module]] = {
    "torchvision": _torchvision,
    "timm": _timm,
    "hf": _hf,
    "cifar_resnet": lambda depth: cifar_resnet(int(depth)),
}


def _from_file(file: Path, function: str) -> nn.Module:
    if not file.is_file():
        raise BadInput(f"--model {file}:{function}: there is no such file")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with _as_bad_input(f"{file}:{function}"):
        spec.loader.exec_module(module)
        model = getattr(module, function)()
    if not isinstance(model, nn.Module):
        raise BadInput(f"--model {file}:{function}: gave a {type(model).__name__}; it must return a torch.nn.Module")
    return model


@contextmanager
def _as_bad_input(name: str) -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        raise BadInput(f"--model {name}: {error.name} is not installed; pip install {error.name}") from None
    except Exception as error:
        raise BadInput(f"--model {name}: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}"


def _image(file: Path, batch_size: int, height: int, width: int) -> Tensor:
    try:
        with Image.open(file) as image:
            pixels = np.array(image.convert("RGB").resize((width, height)))
    except (UnidentifiedImageError, OSError) as error:
        raise BadInput(f"--image {file}: cannot be read as an image ({error})") from None
    return _normalised(torch.tensor(pixels).permute(2, 0, 1)).expand(batch_size, -1, -1, -1).contiguous()


def _normalised(images: Tensor) -> Tensor:
    """uint8 images (..., 3, H, W) by the mean and deviation of each channel that ImageNet's weights expect."""
    from torchvision.models import ResNet18_Weights

    expected = ResNet18_Weights.IMAGENET1K_V1.transforms()
    mean, std = (torch.tensor(part).view(3, 1, 1) for part in (expected.mean, expected.std))
    return (images.float() / 255 - mean) / std
