"""A figure on disk: for the paper, for the screen, and the table that it was drawn from."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .sheet import describe
from .style import style

FORMATS = {".pdf": {"CreationDate": None}, ".png": {}, ".svg": {"Date": None}}  # no date: same table, same bytes


def figure_of(axes: Any, name: str) -> Figure:
    """The figure of what a figure function returned; ValueError where the axes were removed from it."""
    first: Axes = np.asarray(axes, dtype=object).flat[0]
    figure = first.get_figure(root=True)
    if figure is None:
        raise ValueError(f"save: the axes of {name} belong to no figure; they were removed from it.")
    return figure


@style()
def write(axes: Any, file: Path) -> None:
    """Write a figure in the format of the file's suffix, one of `FORMATS`, its fonts embedded as TrueType.

    A PNG says in its field Description what there is to see.
    """
    figure = figure_of(axes, file.stem)
    said = {"Description": describe(axes)} if file.suffix == ".png" else {}
    beside = file.with_name(f"{file.stem}.{os.getpid()}{file.suffix}")  # whoever reads meets a whole file or none
    try:
        figure.savefig(beside, metadata=FORMATS[file.suffix] | said)
        beside.replace(file)
    finally:
        beside.unlink(missing_ok=True)


def save(
    axes: Any, table: pd.DataFrame | Mapping[str, np.ndarray], folder: str | Path, name: str
) -> tuple[Path, Path, Path]:
    """Write folder/name.pdf (fonts embedded), name.png (200 dpi) and name.csv (the very table).

    The folder is made if need be. The PDF carries no date: the same table makes the same bytes. What its lines are
    stands in no file: `caption` says it.

    Args:
        axes: What a figure function returned, or any Axes of the figure, which is closed.
        table: What the figure was drawn from. Arrays by name, of a figure of images, become name.npz.
        folder: Where to write.
        name: The files' name, without a suffix.

    Returns:
        The paths of PDF, PNG and table.

    Raises:
        ValueError: The axes belong to no figure.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    suffixes = ("pdf", "png", "csv" if isinstance(table, pd.DataFrame) else "npz")
    pdf, png, data = (folder / f"{name}.{suffix}" for suffix in suffixes)
    figure = figure_of(axes, name)
    write(axes, pdf)
    write(axes, png)
    if isinstance(table, pd.DataFrame):
        table.to_csv(data, index=False)
    else:
        np.savez_compressed(data, **cast(dict[str, Any], table))
    plt.close(figure)
    return pdf, png, data
