"""Any folder of images, train/CLASS/* beside test/CLASS/* or val/CLASS/*: its classes, files and labels."""

from pathlib import Path

import numpy as np

from experiments.engine.command import BadInput
from experiments.engine.image_files import ImageFiles

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}


def list_image_folder(
    folder: Path, size: int | None, *, workers: int
) -> tuple[tuple[str, ...], dict[str, tuple[ImageFiles, np.ndarray]]]:
    """The classes, and for each of train, val, test that exists its images, not yet read, and labels (N,).

    size, workers: as `ImageFiles` has them. BadInput for a missing or empty folder, and for classes that differ between
    the parts.
    """
    if not folder.is_dir():
        raise BadInput(f"--data-dir {folder}: there is no such folder")
    files = {part: _list(folder / part) for part in ("train", "val", "test") if (folder / part).is_dir()}
    if "train" not in files or len(files) < 2:
        raise BadInput(
            f"--data-dir {folder}: found no train/ beside test/ or val/; lay images out as train/CLASS/NAME.png"
        )
    classes = sorted(files["train"])
    for part, of_class in files.items():
        if len(classes) < 2:
            raise BadInput(f"--data-dir {folder}: train/ has {len(classes)} classes with images; two are needed")
        if odd := sorted(set(classes) ^ set(of_class)):
            raise BadInput(
                f"--data-dir {folder}: train/ and {part}/ differ in the classes {', '.join(odd)}; make them equal"
            )
    parts = {}
    for part, of_class in files.items():
        listed = np.array([str(file) for name in classes for file in of_class[name]])
        labels = np.repeat(np.arange(len(classes)), [len(of_class[name]) for name in classes])
        parts[part] = (ImageFiles(listed, size, workers=workers), labels.astype(np.int64))
    return tuple(classes), parts


def _list(part: Path) -> dict[str, list[Path]]:
    """The image files of each class that has any."""
    found = {
        folder.name: sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES)
        for folder in part.iterdir()
        if folder.is_dir()
    }
    return {name: files for name, files in found.items() if files}
