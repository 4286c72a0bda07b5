"""Where in the same images do the arms find the class?"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize

from .parts.sheet import drawing, explain, panels
from .parts.style import Axes2D, Looks, looks_of

NEEDED = ("images", "labels", "arms", "maps", "predictions")
COLOURS = "RdBu_r"  # its two ends stay apart under every kind of colour blindness


@drawing
def saliency_maps(
    arrays: Mapping[str, np.ndarray], *, axes: Any = None, looks: Looks = None, legend: bool = True
) -> Axes2D:
    """A row for each image: itself, then each arm's map of it, all maps on one colour scale.

    A map is shown in per cent of the sum of its absolute values, since the arms' scores differ in size. The scale ends
    at the 99th percentile of all maps.

    Arrays: By name, such as np.load of the figure's .npz: images (n, H, W, 1 or 3) uint8; labels (n,), class names;
    arms (a,); maps (a, n, H, W), signed; predictions (a, n), class names.
    """
    if missing := [name for name in NEEDED if name not in arrays]:
        raise ValueError(f"saliency_maps: the arrays lack {', '.join(missing)}; their names are {', '.join(arrays)}.")
    arms, images = [str(arm) for arm in arrays["arms"]], arrays["images"]
    looks = looks_of(arms, looks)
    shares = in_percent(arrays["maps"])
    limit = float(np.percentile(np.abs(shares), 99)) or 1.0
    grid = panels(axes, len(images), 1 + len(arms), figure="saliency_maps", height=None)
    for row, line in enumerate(grid):
        _show(line[0], images[row].squeeze(), cmap="gray")
        line[0].set_ylabel(str(arrays["labels"][row]), rotation=0, ha="right", va="center")
        for column, axis in enumerate(line[1:]):
            _show(axis, shares[column, row], cmap=COLOURS, vmin=-limit, vmax=limit)
            predicted, label = str(arrays["predictions"][column, row]), str(arrays["labels"][row])
            wrong = " (wrong)" * (predicted != label)
            axis.set_xlabel(f"→ {predicted}{wrong}", labelpad=1.5)
    for axis, title in zip(grid[0], ["image", *(looks[arm].label for arm in arms)], strict=True):
        axis.set_title(title)
    explain(
        grid,
        "integrated gradients of the true class's score, in per cent of the sum of each map's absolute values: for the "
        "class (red) and against it (blue); →: predicted class",
    )
    if legend:
        _scale(grid, limit)
    return grid


def in_percent(maps: np.ndarray) -> np.ndarray:
    """Each map in per cent of the sum of its absolute values; a map of zeros stays one."""
    total = np.abs(maps).sum((-2, -1), keepdims=True)
    return 100 * np.divide(maps, total, out=np.zeros_like(maps, dtype=float), where=total > 0)


def _show(axis: Axes, image: np.ndarray, **options: Any) -> None:
    axis.set_xticks([])
    axis.set_yticks([])
    axis.spines[:].set_visible(True)
    axis.imshow(image, interpolation="nearest", **options)


def _scale(grid: Axes2D, limit: float) -> None:
    figure, shown = grid[0, 0].get_figure(), ScalarMappable(Normalize(-limit, limit), COLOURS)
    bar = figure.colorbar(shown, ax=list(grid.flat), orientation="horizontal", extend="both", aspect=45, pad=0.02)
    bar.set_label("% of each map")
