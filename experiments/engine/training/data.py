"""Data sets in memory or in image files, with a fixed stratified train / validation / test split."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.utils import Bunch
from torch import Tensor

from experiments.engine.running.messages import BadInput, check_choice, first_line
from experiments.engine.training.image_files import ImageFiles, list_image_folder, read_ahead

Arrays = tuple[np.ndarray | ImageFiles, np.ndarray]  # images uint8 (N, C, H, W), labels int64 (N,); or as a script's
NORMALISATIONS = ("training", "imagenet")
AUGMENTATIONS = ("auto", "none", "crop", "crop-flip")


@dataclass(frozen=True)
class Data:
    """What is learned."""

    dataset: str = "digits"
    """digits, cifar10, cifar100, fashion-mnist, or folder (images at --data-dir: train/CLASS/* beside test/CLASS/*)."""
    data_dir: Path | None = None
    """Where the data lies; not used by digits."""
    download: bool = False
    """Let torchvision fetch cifar10, cifar100 or fashion-mnist into --data-dir."""
    image_size: int | None = None
    """Folder only: scale and cut every image to a square of so many pixels."""
    data_loader_workers: int = 0
    """Folder only, for images that do not fit into memory: leave them in their files, and let so many processes read
    the next batches. 0: all in memory."""
    augment: str = "auto"
    """none, crop (shift by up to 1/8), crop-flip (also mirror), or auto: crop-flip, but none for digits and folder."""
    normalise: str = "training"
    """training: by the training images' own mean and deviation. imagenet: by those that many public weights expect."""
    train_limit: int | None = None
    """Learn from this many training images only (stratified, the same for every seed)."""
    split_seed: int = 0
    """Which split into training and validation images is drawn; the test images are always the same."""


@dataclass(frozen=True)
class Dataset:
    """A data set whose splits are fixed: nothing is ever chosen on test."""

    title: str
    """As a figure names it."""
    classes: tuple[str, ...]
    splits: dict[str, Arrays]
    """train, validation, test."""
    augment: str
    normalise: str = "training"
    """training or imagenet, or none: for what are no pixels, such as the tokens of a text."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of an image: channels, height, width."""
        _, channels, height, width = self.splits["train"][0].shape
        return channels, height, width

    def size(self, split: str) -> int:
        """How many images the split has."""
        return len(self.splits[split][1])

    @cached_property
    def digest(self) -> str:
        """A fingerprint of every image, label and split; of images in files by the files' names and lengths."""
        digest = hashlib.sha256(repr((self.classes, self.augment, self.normalise)).encode())
        for arrays in self.splits.values():
            for array in arrays:
                content = array.fingerprint if isinstance(array, ImageFiles) else np.ascontiguousarray(array).data
                digest.update(repr(array.shape).encode() + content)
        return digest.hexdigest()[:16]

    @cached_property
    def channel_statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of each channel by which images are normalised, on the scale 0 to 255."""
        if self.normalise == "imagenet":
            from torchvision.models import ResNet18_Weights

            expected = ResNet18_Weights.IMAGENET1K_V1.transforms()
            return 255 * np.array(expected.mean), 255 * np.array(expected.std)
        pixels = np.asarray(self.splits["train"][0]).astype(np.float32)
        return pixels.mean((0, 2, 3), dtype=np.float64), pixels.std((0, 2, 3), dtype=np.float64)


@dataclass(frozen=True)
class Source:
    """A data set as it was read, before validation images are split off."""

    title: str
    classes: tuple[str, ...]
    training: Arrays
    validation: Arrays | int
    """The images, or how many of the training images are to be taken."""
    test: Arrays


def load(data: Data) -> Dataset:
    """Load a data set by its settings; BadInput where the settings or the files do not allow it."""
    return load_splits(data, (data.split_seed,))[data.split_seed]


def load_splits(data: Data, seeds: Sequence[int]) -> dict[int, Dataset]:
    """The data set under the split that belongs to each seed, read once; BadInput as `load`."""
    for seed in seeds:
        if not 0 <= seed < 2**32:
            raise BadInput(f"--split-seed {seed}: give a number from 0 to {2**32 - 1}")
    source = _read(data)
    return {seed: _drawn(source, replace(data, split_seed=seed)) for seed in seeds}


def _read(data: Data) -> Source:
    check_choice("--dataset", data.dataset, tuple(LOADERS))
    check_choice("--augment", data.augment, AUGMENTATIONS)
    check_choice("--normalise", data.normalise, NORMALISATIONS)
    for flag, given, sets in (
        ("--data-dir", data.data_dir is not None, set(LOADERS) - {"digits"}),
        ("--download", data.download, set(LOADERS) - {"digits", "folder"}),
        ("--image-size", data.image_size is not None, {"folder"}),
        ("--data-loader-workers", data.data_loader_workers != 0, {"folder"}),
    ):
        if given and data.dataset not in sets:
            raise BadInput(f"{flag} means nothing to --dataset {data.dataset}; it belongs to {', '.join(sorted(sets))}")
    if data.dataset != "digits" and data.data_dir is None:
        raise BadInput(f"--dataset {data.dataset} needs --data-dir, the folder where the data lies")
    if data.image_size is not None and data.image_size < 4:
        raise BadInput(f"--image-size {data.image_size}: give at least 4 pixels")
    _check_files(data)
    return LOADERS[data.dataset](data)


def _drawn(source: Source, data: Data) -> Dataset:
    """The data set under the split of the settings."""
    title, classes = source.title, source.classes
    train, validation = source.training, source.validation
    if isinstance(validation, int):
        train, validation = _split(train, validation, seed=data.split_seed)
    elif data.split_seed:
        advice = "to have them drawn, move them into train/"
        raise BadInput(f"--split-seed {data.split_seed}: {title} has validation images of its own, in val/; {advice}")
    if data.train_limit is not None:
        most = len(train[1]) - len(classes)  # a stratified split needs one a class on both sides
        if not len(classes) <= data.train_limit <= most:
            raise BadInput(f"--train-limit {data.train_limit}: give {len(classes)} (one a class) to {most} images")
        train = _split(train, data.train_limit, seed=data.split_seed)[1]
    splits = {"train": train, "validation": validation, "test": source.test}
    natural = data.dataset not in ("digits", "folder")
    augment = ("crop-flip" if natural else "none") if data.augment == "auto" else data.augment
    if data.normalise == "imagenet" and splits["train"][0].shape[1] != 3:
        raise BadInput(f"--normalise imagenet needs images of three channels; {title} has one")
    return Dataset(title, classes, splits, augment, data.normalise)


def _check_files(data: Data) -> None:
    """Raise BadInput where images are to stay in their files and cannot."""
    workers = data.data_loader_workers
    if workers < 0:
        raise BadInput(f"--data-loader-workers {workers}: give at least 1, or 0 to have all images in memory")
    if workers and data.image_size is None:
        raise BadInput(f"--data-loader-workers {workers} needs --image-size: the files are not read beforehand")
    if workers and data.normalise != "imagenet":
        raise BadInput(
            f"--data-loader-workers {workers} needs --normalise imagenet: the training images' own mean and deviation "
            "would have to be read from all files"
        )


@dataclass(frozen=True)
class Draw:
    """What chance decides of a batch, on the device."""

    indices: Tensor
    """Of its images, (N,); on the CPU where images are in files."""
    moves: Tensor | None
    """By how much each is shifted, as in `shift`."""
    mirrors: Tensor | None
    """Whether each is mirrored, (N,)."""

    @property
    def tensors(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """All of it."""
        return self.indices, self.moves, self.mirrors


class Batches:
    """A data set on a device, normalised per channel. Images in files come to the device when their batch does."""

    def __init__(self, dataset: Dataset, device: torch.device) -> None:
        self.device = device
        self.splits = {
            name: (
                images if isinstance(images, ImageFiles) else torch.tensor(images, device=device),
                torch.tensor(labels, device=device),
            )
            for name, (images, labels) in dataset.splits.items()
        }
        mean, std = (np.zeros(1), np.ones(1)) if dataset.normalise == "none" else dataset.channel_statistics
        self.mean = torch.tensor(mean, dtype=torch.float32, device=device).view(1, -1, 1, 1)
        self.std = torch.tensor(std, dtype=torch.float32, device=device).view(1, -1, 1, 1).clamp(min=1e-6)
        self.augment, self.pixels = dataset.augment, dataset.normalise != "none"

    def size(self, split: str) -> int:
        """How many images the split has."""
        return len(self.splits[split][1])

    def get(self, split: str, indices: Tensor | slice) -> tuple[Tensor, Tensor]:
        """Images (N, C, H, W), normalised float32, and their labels (N,); what are no pixels, as they are."""
        images, labels = self.splits[split]
        there = to_device_async(indices, self.device) if isinstance(indices, Tensor) else indices
        if isinstance(images, ImageFiles):
            part = indices.numpy() if isinstance(indices, Tensor) else indices
            return self._normalised(to_device_async(torch.from_numpy(np.asarray(images[part])), self.device)), labels[
                there
            ]
        return self._normalised(images[there]), labels[there]

    def in_turn(self, split: str, parts: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Images and labels as `get` gives them, for the indices of one part after the other."""
        images, labels = self.splits[split]
        if not isinstance(images, ImageFiles):
            yield from (self.get(split, part) for part in parts)
            return
        read = read_ahead(images, parts, pinned=self.device.type == "cuda")
        for part, pixels in zip(parts, read, strict=True):
            yield self._normalised(to_device_async(pixels, self.device)), labels[to_device_async(part, self.device)]

    def epoch(
        self, order: Sequence[Tensor], generator: torch.Generator, *, share: slice = slice(None)
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Training images and labels of each batch in turn, shifted and mirrored by chance as the data allows.

        share: the part of each batch to give; it is shifted and mirrored as in the whole batch.
        """
        draws = self.draws(order, generator, share=share)
        parts = self.in_turn("train", [draw.indices for draw in draws])
        for draw, (images, labels) in zip(draws, parts, strict=True):
            yield self._augmented(images, draw), labels

    def draws(self, order: Sequence[Tensor], generator: torch.Generator, *, share: slice = slice(None)) -> list[Draw]:
        """All that is left to chance in an epoch, batch after batch, on the device; `epoch` and `make` need no more."""
        sizes = [len(batch[share]) for batch in order]
        moves, mirrors = list[Tensor](), list[Tensor]()
        for batch in order:
            if self.augment != "none":
                most = 2 * padding(*self.splits["train"][0].shape[2:])
                moves.append(torch.randint(most + 1, (2, len(batch), 1), generator=generator)[:, share])
            if self.augment == "crop-flip":
                mirrors.append(torch.rand(len(batch), generator=generator)[share] < 0.5)
        in_files = isinstance(self.splits["train"][0], ImageFiles)
        # In one piece: a copy to a GPU takes as long as a kernel.
        indices = torch.cat([batch[share] for batch in order])
        there = (indices if in_files else to_device_async(indices, self.device)).split(sizes)
        moved = to_device_async(torch.cat(moves, 1), self.device).split(sizes, 1) if moves else [None] * len(sizes)
        mirrored = to_device_async(torch.cat(mirrors), self.device).split(sizes) if mirrors else [None] * len(sizes)
        return [Draw(*parts) for parts in zip(there, moved, mirrored, strict=True)]

    def make(self, draw: Draw) -> tuple[Tensor, Tensor]:
        """The training images and labels of one batch, in memory, of what was drawn for it."""
        images, labels = self.get("train", draw.indices)
        return self._augmented(images, draw), labels

    def _augmented(self, images: Tensor, draw: Draw) -> Tensor:
        if draw.moves is not None:
            images = shift(images, draw.moves)
        if draw.mirrors is not None:
            images = torch.where(draw.mirrors.view(-1, 1, 1, 1), images.flip(3), images)
        return images

    def _normalised(self, pixels: Tensor) -> Tensor:
        return (pixels.float() - self.mean) / self.std if self.pixels else pixels


def to_device_async(drawn: Tensor, device: torch.device) -> Tensor:
    """A tensor that was drawn on the CPU, copied to the device without waiting."""
    crosses = drawn.device.type == "cpu" and device.type == "cuda"
    return drawn.pin_memory().to(device, non_blocking=True) if crosses else drawn.to(device)


def padding(height: int, width: int) -> int:
    """By how much images are shifted at most: 1/8 of their side, He et al. 2015's 4 pixels at 32 x 32."""
    return max(1, min(height, width) // 8)


def shift(images: Tensor, moves: Tensor) -> Tensor:
    """Images shifted and padded with zeros. moves: (2, N, 1), by 0 to 2 * `padding`, of rows and columns."""
    n, _, height, width = images.shape
    pad = padding(height, width)
    padded = F.pad(images, (pad, pad, pad, pad))
    top, left = moves
    rows = top + torch.arange(height, device=images.device)
    columns = left + torch.arange(width, device=images.device)
    samples = torch.arange(n, device=images.device).view(n, 1, 1)
    return padded.permute(0, 2, 3, 1)[samples, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def _digits(_: Data) -> Source:
    digits = cast(Bunch, load_digits())
    rest, test = _split(_as_arrays(digits.images.astype(np.uint8), digits.target), 360, seed=0)
    return Source("digits 8x8", tuple("0123456789"), rest, 360, test)


def _torchvision(name: Literal["CIFAR10", "CIFAR100", "FashionMNIST"], title: str) -> Callable[[Data], Source]:
    def read(data: Data) -> Source:
        import torchvision.datasets

        source = getattr(torchvision.datasets, name)
        assert data.data_dir is not None
        try:
            both = [source(str(data.data_dir), train=train, download=data.download) for train in (True, False)]
        except (RuntimeError, OSError) as error:
            raise BadInput(
                f"--dataset {data.dataset}: not found in {data.data_dir} ({first_line(error)}); "
                "put it there, or add --download"
            ) from None
        full, test = (_as_arrays(np.asarray(part.data), np.asarray(part.targets)) for part in both)
        return Source(title, tuple(both[0].classes), full, len(full[1]) // 10, test)

    return read


def _folder(data: Data) -> Source:
    assert data.data_dir is not None
    classes, listed = list_image_folder(data.data_dir, data.image_size, workers=data.data_loader_workers)
    parts = cast(dict[str, Arrays], listed if data.data_loader_workers else _in_memory(listed))
    name = data.data_dir.resolve().name
    if "test" in parts and "val" in parts:
        return Source(name, classes, parts["train"], parts["val"], parts["test"])
    smallest = int(np.bincount(parts["train"][1]).min())
    if smallest < 2:
        raise BadInput(f"{data.data_dir}/train: a class has one image only; two are needed to split off a validation")
    held_out = max(len(classes), len(parts["train"][1]) // 10)
    return Source(name, classes, parts["train"], held_out, parts["test"] if "test" in parts else parts["val"])


def _in_memory(listed: dict[str, tuple[ImageFiles, np.ndarray]]) -> dict[str, Arrays]:
    """All images of all parts, which must have one size."""
    every = [images for images, _ in listed.values()]
    read = np.asarray(ImageFiles(np.concatenate([images.files for images in every]), every[0].size))
    arrays = np.split(read, np.cumsum([len(images) for images in every])[:-1])
    return {part: (array, labels) for array, (part, (_, labels)) in zip(arrays, listed.items(), strict=True)}


def _as_arrays(images: np.ndarray, labels: np.ndarray) -> Arrays:
    channels_last = images if images.ndim == 4 else images[..., None]
    return np.ascontiguousarray(channels_last.transpose(0, 3, 1, 2)), labels.astype(np.int64)


def _split(arrays: Arrays, held_out: int, *, seed: int) -> tuple[Arrays, Arrays]:
    """Split off `held_out` images, stratified by class; of one seed always the same ones. BadInput where a class is
    too small."""
    images, labels = arrays
    try:
        rest, out = train_test_split(np.arange(len(labels)), test_size=held_out, stratify=labels, random_state=seed)
    except ValueError as error:
        raise BadInput(f"cannot draw {held_out} of {len(labels)} images class by class: {error}") from None
    return (images[rest], labels[rest]), (images[out], labels[out])


LOADERS = {
    "digits": _digits,
    "cifar10": _torchvision("CIFAR10", "CIFAR-10"),
    "cifar100": _torchvision("CIFAR100", "CIFAR-100"),
    "fashion-mnist": _torchvision("FashionMNIST", "FashionMNIST"),
    "folder": _folder,
}
