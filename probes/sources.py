"""Models of other libraries or files by name, and inputs that they take. Nothing is downloaded."""

import importlib.util
import pickle
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

Source = Callable[[str], nn.Module]
FORMS = ("torchvision:NAME", "timm:NAME", "hf:TYPE", "FILE.py:FUNCTION")
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's channels, as its weights expect
LONGEST = 300  # characters of an error of another library


def load_model(name: str, more: Mapping[str, Source] | None = None) -> nn.Module:
    """A model with random weights by its name.

    Args:
        name: ``torchvision:NAME``, ``timm:NAME``, ``hf:TYPE`` (Hugging Face, from the type's default config) or
            ``FILE.py:FUNCTION``, a function without arguments that returns the model; the file may import those beside
            it.
        more: Further sources by form, such as ``mine:DEPTH``: what makes a model of what is behind the colon.

    Raises:
        ValueError: The name has another form or means nothing, the library is not installed, or the function fails.
    """
    further = {form.partition(":")[0]: make for form, make in (more or {}).items()}
    sources = {"torchvision": _torchvision, "timm": _timm, "hf": _hf, **further}
    source, _, rest = name.rpartition(":")
    if source.endswith(".py"):
        return _from_file(Path(source), rest)
    if source not in sources or not rest:
        forms = [*FORMS[:-1], *(more or {}), FORMS[-1]]
        raise ValueError(f"model {name}: there is no such source; give {', '.join(forms[:-1])} or {forms[-1]}")
    with _named_errors(name):
        return sources[source](rest)


def load_weights(
    model: nn.Module, file: Path, rename: Callable[[dict[str, Any]], dict[str, Any]] | None = None
) -> None:
    """Load a state dict, or one under "state_dict" or "model", into the model. No code in the file is run.

    Args:
        model: The model.
        file: What ``torch.save`` wrote, or a ``.safetensors``; prefixes "module." (of DataParallel) are dropped.
        rename: What gives the file's entries the model's names.

    Raises:
        ValueError: The file is missing or holds something else, or its entries are not the model's.
    """
    try:
        state: Any = _read_state(file)
    except FileNotFoundError:
        raise ValueError(f"--weights {file}: there is no such file") from None
    except ModuleNotFoundError as error:
        raise ValueError(f"--weights {file}: {error.name} is not installed; pip install {error.name}") from None
    except pickle.UnpicklingError:
        raise ValueError(
            f"--weights {file}: is no state dict, or holds more than one, which is not read since it could run code; "
            "save the weights alone, torch.save(model.state_dict(), file)"
        ) from None
    except Exception as error:
        raise ValueError(f"--weights {file}: cannot be read ({one_line(error)})") from None
    if isinstance(state, Mapping):
        state = next((state[key] for key in ("state_dict", "model") if isinstance(state.get(key), Mapping)), state)
    if not isinstance(state, Mapping) or not all(isinstance(key, str) for key in state):
        raise ValueError(f"--weights {file}: holds a {type(state).__name__}; wanted a state dict, names with tensors")
    prefix = "module." if state.keys().isdisjoint(model.state_dict()) else ""  # the model may have such names itself
    state = {name.removeprefix(prefix): value for name, value in state.items()}
    try:
        model.load_state_dict(rename(state) if rename else state)
    except Exception as error:
        raise ValueError(f"--weights {file}: do not fit the model: {one_line(error)}") from None


@contextmanager
def _too_large() -> Iterator[None]:
    """A tensor that cannot be allocated is the user's mistake."""
    try:
        yield
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"the inputs cannot be made ({one_line(error)}): give smaller numbers to --batch-size, --shape, "
            "--image-size or --length"
        ) from None


@_too_large()
def make_inputs(
    model: nn.Module,
    *,
    batch_size: int,
    size: int = 224,
    length: int = 32,
    shape: Sequence[int] | None = None,
    image: Path | None = None,
    images: Path | None = None,
) -> tuple[dict[str, Tensor], Tensor | None]:
    """Inputs that the model takes, and labels if a file has any.

    Args:
        model: The model; one of Hugging Face's says what it takes.
        batch_size: How many inputs.
        size: Side of images, in pixels, where the model does not say it.
        length: Tokens in a sequence, for models that take tokens.
        shape: Random numbers of this shape instead, without the batch: (1, 28, 28), say.
        image: An image file, ``batch_size`` times.
        images: An .npz file: the first images x, uint8 (N, 3, H, W), and labels y if it has any.

    Returns:
        The inputs by name, or under "" for a single positional one, and the labels.

    Raises:
        ValueError: The model takes none of these, several are named, a file cannot be read, or they are too large.
    """
    named = {"--shape": shape, "--image": image, "--images": images}
    if len(given := [f"{flag} {value}" for flag, value in named.items() if value is not None]) > 1:
        raise ValueError(f"{' '.join(given)}: give one of the two")
    main = getattr(model, "main_input_name", "")
    if shape is not None:
        return {main: torch.randn(batch_size, *shape)}, None
    if images is not None:
        x, labels = _load_images(images, batch_size)
        return {"": x}, labels
    config: Any = getattr(model, "config", None)
    if main in ("", "pixel_values"):
        side = getattr(config, "image_size", None) or size
        height, width = (side, side) if isinstance(side, int) else side
        if image is not None:
            return {main: _load_image(image, height, width).expand(batch_size, -1, -1, -1).contiguous()}, None
        return {main: torch.randn(batch_size, getattr(config, "num_channels", None) or 3, height, width)}, None
    if image is not None:
        raise ValueError(f"--image {image}: this model takes {main}, not images")
    if main == "input_ids":
        ids = torch.randint(config.vocab_size, (batch_size, length))
        return {main: ids} | ({"decoder_input_ids": ids} if config.is_encoder_decoder else {}), None
    raise ValueError(f"the model takes {main}, for which there is no random input; wrap it as FILE.py:FUNCTION")


def first_output(output: Any) -> Tensor:
    """The first floating tensor of an output, which may be a tensor, a tuple, a mapping or a dataclass.

    Raises:
        ValueError: There is none.
    """
    leaves = tree_leaves(vars(output) if is_dataclass(output) and not hasattr(output, "keys") else output)
    for leaf in leaves:
        if isinstance(leaf, Tensor) and leaf.is_floating_point():
            return leaf
    raise ValueError("the model's output holds no floating tensor")


def one_line(error: Exception) -> str:
    """An error's type and message in one line, which is cut where it is long."""
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."


def _read_state(file: Path) -> Any:
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(file)
    return torch.load(file, weights_only=True, map_location="cpu")


def _torchvision(name: str) -> nn.Module:
    from torchvision.models import get_model

    return get_model(name, weights=None)


def _timm(name: str) -> nn.Module:
    import timm

    return timm.create_model(name, pretrained=False)


def _hf(name: str) -> nn.Module:
    import transformers

    return transformers.AutoModel.from_config(transformers.AutoConfig.for_model(name))


def _from_file(file: Path, function: str) -> nn.Module:
    name = f"{file}:{function}"
    if not file.is_file():
        raise ValueError(f"model {name}: there is no such file")
    spec = importlib.util.spec_from_file_location(f"_model_of_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    folder = str(file.resolve().parent)
    sys.path.insert(0, folder)  # as of a script
    try:
        with _named_errors(name):
            spec.loader.exec_module(module)
            model = getattr(module, function)()
    finally:
        sys.path.remove(folder)
    if not isinstance(model, nn.Module):
        raise ValueError(f"model {name}: gave a {type(model).__name__}; it must return a torch.nn.Module")
    return model


@contextmanager
def _named_errors(name: str) -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        raise ValueError(f"model {name}: {error.name} is not installed; pip install {error.name}") from None
    except Exception as error:
        raise ValueError(f"model {name}: {one_line(error)}") from None


def _load_images(file: Path, count: int) -> tuple[Tensor, Tensor | None]:
    try:
        with np.load(file) as data:
            images, labels = data["x"], data.get("y")
    except Exception as error:
        raise ValueError(f"--images {file}: cannot be read as an .npz with images x ({one_line(error)})") from None
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] != 3 or len(images) < count:
        raise ValueError(
            f"--images {file}: x is {images.dtype} {images.shape}; wanted uint8 ({count} or more, 3, height, width)"
        )
    if labels is not None and (labels.dtype.kind not in "iu" or labels.shape != (len(images),)):
        raise ValueError(f"--images {file}: y is {labels.dtype} {labels.shape}; wanted whole numbers ({len(images)},)")
    return _normalised(torch.tensor(images[:count])), None if labels is None else torch.tensor(labels[:count]).long()


def _load_image(file: Path, height: int, width: int) -> Tensor:
    try:
        from PIL import Image
    except ModuleNotFoundError:
        raise ValueError(f"--image {file}: Pillow is not installed; pip install pillow") from None
    try:
        with Image.open(file) as image:
            pixels = np.array(image.convert("RGB").resize((width, height)))
    except OSError as error:  # also of what is no image
        raise ValueError(f"--image {file}: cannot be read as an image ({error})") from None
    return _normalised(torch.tensor(pixels).permute(2, 0, 1))


def _normalised(images: Tensor) -> Tensor:
    """uint8 images (..., 3, H, W), each channel by its mean and deviation in ImageNet."""
    mean, deviation = (torch.tensor(part).view(3, 1, 1) for part in (MEAN, DEVIATION))
    return (images.float() / 255 - mean) / deviation
