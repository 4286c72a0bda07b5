"""Any folder of images, and images that stay in their files until a batch of them is read."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as Readable

from experiments.engine.running.messages import BadInput


class ImageFiles:
    """Like an array of images, uint8 RGB (N, 3, H, W), of which an index takes a part; `np.asarray` reads the files.

    files: (N,), as text. size: each image is scaled by its shorter side and cut to the centre; None: all must have one
    size already. workers: the processes that read ahead, in `read_ahead`. Reading raises BadInput for mixed sizes and
    for an unreadable file.
    """

    def __init__(self, files: np.ndarray, size: int | None, *, workers: int = 0) -> None:
        self.files, self.size, self.workers = files, size, workers

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, part: np.ndarray | slice | list[int]) -> "ImageFiles":
        return ImageFiles(self.files[part], self.size, workers=self.workers)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """As of the array; without a size, that of the first image."""
        height, width = (self.size, self.size) if self.size else _read(self.files[0], None).shape[:2]
        return len(self), 3, height, width

    @property
    def fingerprint(self) -> bytes:
        """Of the files' names, lengths and size in pixels; nothing is read."""
        lengths = [("/".join(Path(file).parts[-2:]), Path(file).stat().st_size) for file in self.files]
        return repr((self.size, lengths)).encode()

    def __array__(self, dtype: object = None, copy: bool | None = None) -> np.ndarray:
        images = [_read(file, self.size) for file in self.files]
        for file, image in zip(self.files, images, strict=True):
            if image.shape != (shape := images[0].shape):
                raise BadInput(
                    f"{file}: is {image.shape[1]} x {image.shape[0]} pixels, others {shape[1]} x {shape[0]}; "
                    "give --image-size to bring all to one"
                )
        return np.ascontiguousarray(np.stack(images).transpose(0, 3, 1, 2))


def read_ahead(images: ImageFiles, parts: Sequence[Tensor], *, pinned: bool) -> Iterator[Tensor]:
    """Each part's images, uint8 (n, 3, H, W), in turn; worker processes read the next ones meanwhile. pinned: in memory
    from which a GPU copies without the CPU waiting."""
    loader = DataLoader(
        _Parts(images),
        sampler=[part.numpy() for part in parts],  # pyright: ignore[reportArgumentType]
        batch_size=None,
        num_workers=images.workers,
        pin_memory=pinned,
        multiprocessing_context="fork"
        if sys.platform == "linux"
        else "spawn",  # a grid's workers have set joblib's own
    )
    for read in loader:
        if isinstance(read, str):
            raise BadInput(read)
        yield read


class _Parts(Readable[Tensor | str]):
    """Parts of the images by their indices; a mistake comes back as its text, since a worker's errors are wrapped."""

    def __init__(self, images: ImageFiles) -> None:
        self.images = images

    def __getitem__(self, part: np.ndarray) -> Tensor | str:
        try:
            return torch.from_numpy(np.asarray(self.images[part]))
        except BadInput as mistake:
            return str(mistake)


def _read(file: str, size: int | None) -> np.ndarray:
    try:
        with Image.open(file) as image:
            rgb = image.convert("RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise BadInput(f"{file}: cannot be read as an image ({error}); mend or remove it") from None
    return np.asarray(ImageOps.fit(rgb, (size, size)) if size else rgb)


def list_image_folder(
    folder: Path, size: int | None, *, workers: int
) -> tuple[tuple[str, ...], dict[str, tuple[ImageFiles, np.ndarray]]]:
    """The classes, and for each of train, val, test that exists its images, not yet read, and labels (N,).

    size, workers: as `ImageFiles` has them. BadInput for a missing or empty folder, and for classes that differ between
    the parts.
    """
    if not folder.is_dir():
        raise BadInput(f"--data-dir {folder}: there is no such folder")
    files = {part: _files_by_class(folder / part) for part in ("train", "val", "test") if (folder / part).is_dir()}
    if "train" not in files or len(files) < 2:
        raise BadInput(
            f"--data-dir {folder}: found no train/ beside test/ or val/; lay images out as train/CLASS/NAME.png"
        )
    classes = sorted(files["train"])
    for part, by_class in files.items():
        if len(classes) < 2:
            raise BadInput(f"--data-dir {folder}: train/ has {len(classes)} classes with images; two are needed")
        if odd := sorted(set(classes) ^ set(by_class)):
            raise BadInput(
                f"--data-dir {folder}: train/ and {part}/ differ in the classes {', '.join(odd)}; make them equal"
            )
    parts = {}
    for part, by_class in files.items():
        listed = np.array([file for name in classes for file in by_class[name]])
        labels = np.repeat(np.arange(len(classes)), [len(by_class[name]) for name in classes])
        parts[part] = (ImageFiles(listed, size, workers=workers), labels.astype(np.int64))
    return tuple(classes), parts


def _files_by_class(part: Path) -> dict[str, list[str]]:
    """The image files of each class that has any, as torchvision lists them."""
    from torchvision.datasets.folder import IMG_EXTENSIONS, find_classes, make_dataset

    try:
        classes, indices = find_classes(part)
    except FileNotFoundError:  # no folder in it
        return {}
    files: dict[str, list[str]] = {}
    for file, index in make_dataset(part, indices, extensions=(*IMG_EXTENSIONS, ".gif"), allow_empty=True):
        files.setdefault(classes[index], []).append(file)
    return files
