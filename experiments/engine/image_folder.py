"""Any folder of images, train/CLASS/* beside test/CLASS/* or val/CLASS/*, read into arrays."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from experiments.engine.command import BadInput

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}


def read_image_folder(
    folder: Path, size: int | None
) -> tuple[tuple[str, ...], dict[str, tuple[np.ndarray, np.ndarray]]]:
    """The classes, and for each of train, val, test that exists its images, uint8 RGB (N, 3, H, W), and labels (N,).

    Without a size all images must have one size; with one, each is scaled by its shorter side and cut to the centre.
    BadInput for a missing or empty folder, classes that differ between the parts, mixed sizes, an unreadable file.
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
    shape: tuple[int, ...] | None = None
    parts = {}
    for part, of_class in files.items():
        images = []
        for name in classes:
            for file in of_class[name]:
                image = _read(file, size)
                shape = shape or image.shape
                if image.shape != shape:
                    raise BadInput(
                        f"{file}: is {image.shape[1]} x {image.shape[0]} pixels, others {shape[1]} x {shape[0]}; "
                        "give --image-size to bring all to one"
                    )
                images.append(image)
        labels = np.repeat(np.arange(len(classes)), [len(of_class[name]) for name in classes])
        parts[part] = (np.ascontiguousarray(np.stack(images).transpose(0, 3, 1, 2)), labels.astype(np.int64))
    return tuple(classes), parts


def _list(part: Path) -> dict[str, list[Path]]:
    """The image files of each class that has any."""
    found = {
        folder.name: sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES)
        for folder in part.iterdir()
        if folder.is_dir()
    }
    return {name: files for name, files in found.items() if files}


def _read(file: Path, size: int | None) -> np.ndarray:
    try:
        with Image.open(file) as image:
            rgb = image.convert("RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise BadInput(f"{file}: cannot be read as an image ({error}); mend or remove it") from None
    return np.asarray(ImageOps.fit(rgb, (size, size)) if size else rgb)
