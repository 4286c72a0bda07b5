"""One look for all figures: colour, marker, line and label of each arm, a venue's sizes and fonts, words for titles."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import matplotlib.style
import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from tueplots import bundles

Axes2D: TypeAlias = npt.NDArray[Any]  # of Axes, rows x columns
Dashes: TypeAlias = str | tuple[int, tuple[float, ...]]


@dataclass(frozen=True)
class Look:
    """How one arm is drawn, the same in every figure."""

    label: str
    colour: str
    marker: str
    line: Dashes


# Five of Okabe and Ito's colours whose nearest pair stays furthest apart (CIELAB, also under simulated protanopia,
# deuteranopia and tritanopia); then the colour that is furthest from the five, of all that are dark enough for lines.
# Optional: a name without an entry gets a look from COLOURS, MARKERS and DASHES.
ARMS: dict[str, Look] = {
    "residual": Look("residual", "#0072B2", "o", "-"),
    "stop-gradient": Look("stop-gradient", "#D55E00", "s", (0, (5, 1.5))),
    "gradient-only": Look("gradient-only", "#CC79A7", "^", (0, (5, 1.2, 1, 1.2))),
    "plain": Look("plain", "#000000", "D", (0, (1.2, 1))),
    "shortest-path": Look("shortest-path", "#56B4E9", "v", (0, (3, 1, 1, 1, 1, 1))),
    "near-identity": Look("near-identity", "#8700F0", "P", (0, (8, 1.5, 2, 1.5))),
}
# Chosen by the same distance, from the arms' and from each other. Of the 5, 7 and 6, 210 combinations differ.
COLOURS = ("#882255", "#7F5539", "#332288", "#E69F00", "#999933")
MARKERS = ("H", "X", "<", ">", "p", "h", "d")
DASHES: tuple[Dashes, ...] = ((0, (4, 1)), (0, (2, 1)), (0, (4, 1, 1, 1)), (0, (6, 2)), (0, (2, 1, 1, 1)), "-")


def looks_of(names: Iterable[Any], known: Mapping[str, Look] | None = None) -> dict[str, Look]:
    """The look of each name (of an arm, a condition, a series), in the order in which to draw them.

    Args:
        names: With repetitions; missing values are left out.
        known: The looks at hand, `ARMS` if None.

    Returns:
        The known names in the order of `known`, then all others as they appear, each with a look of its own.
    """
    known = ARMS if known is None else known
    found = dict.fromkeys(name for name in names if pd.notna(name))
    others = [name for name in found if name not in known]
    automatic = {
        name: Look(str(name), COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)], DASHES[i % len(DASHES)])
        for i, name in enumerate(others)
    }
    return {name: look for name, look in known.items() if name in found} | automatic


GREY = "0.45"
NOTE = "note"
SMALL = 8  # points: ticks, legends and notes; labels and titles have 9
# STIX (Times-like, as the venue's text) comes with matplotlib: the same figure on every machine.
RC: dict[str, Any] = bundles.iclr2024(usetex=False) | {
    "font.family": "STIXGeneral", "mathtext.fontset": "stix",
    "legend.fontsize": SMALL, "legend.title_fontsize": SMALL, "xtick.labelsize": SMALL, "ytick.labelsize": SMALL,
    "legend.frameon": False, "legend.handlelength": 2.2, "legend.columnspacing": 1.4, "legend.borderpad": 0.1,
    "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.6, "axes.titlepad": 4,
    "axes.grid": True, "grid.color": "0.9", "grid.linewidth": 0.5, "axes.axisbelow": True,
    "xtick.major.width": 0.6, "ytick.major.width": 0.6, "xtick.minor.width": 0.4, "ytick.minor.width": 0.4,
    "lines.markersize": 3.5, "pdf.fonttype": 42, "ps.fonttype": 42, "savefig.dpi": 200, "figure.dpi": 200,
}  # fmt: skip


@contextmanager
def style() -> Iterator[None]:
    """matplotlib's defaults with the venue's sizes and fonts, while the `with` or the decorated call lasts."""
    with matplotlib.style.context(RC, after_reset=True):
        yield


@style()
def grid(rows: int, columns: int, *, height: float = 1.3, **share: Any) -> Axes2D:
    """The axes of a new figure, as wide as the venue's text (one column: 0.6 of it), each row `height` inches high."""
    width, above = (1, 0.7) if columns > 1 else (0.6, 1.1)  # a narrow figure's legend has more lines
    size = (width * RC["figure.figsize"][0], rows * height + above)
    return Figure(figsize=size).subplots(rows, columns, squeeze=False, **share)


def panels(axes: Any, rows: int, columns: int, *, figure: str, **options: Any) -> Axes2D:
    """The caller's axes as rows x columns (ValueError where their number is another), or a new `grid` if None."""
    if axes is None:
        return grid(rows, columns, **options)
    given = np.asarray(axes, dtype=object)
    if given.size != rows * columns:
        raise ValueError(
            f"{figure} draws {rows} x {columns} panels of this table; got {given.size} axes. Leave axes out?"
        )
    return given.reshape(rows, columns)


def nothing(axes: Any, text: str, *, figure: str) -> Axes2D:
    """One panel that says why there is nothing to draw: where the arms at hand cannot have what the figure shows."""
    blank = panels(axes, 1, 1, figure=figure)
    blank[0, 0].text(0.5, 0.5, text, transform=blank[0, 0].transAxes, ha="center", va="center", wrap=True)
    blank[0, 0].set_axis_off()
    return blank


def shade(colour: str, strength: float) -> str:
    """The colour mixed with white: all of it at strength 1, white at 0."""
    red, green, blue = (1 - strength * (1 - channel) for channel in to_rgb(colour))
    return to_hex((red, green, blue))


def row_title(axis: Axes, text: str) -> None:
    """Name a row of panels, at the right of its last one."""
    axis.text(1.03, 0.5, text, transform=axis.transAxes, rotation=270, va="center", ha="left", fontsize=9)


def note(axis: Axes, text: str) -> None:
    """A small remark above a panel."""
    axis.text(0.5, 1.03, text, transform=axis.transAxes, ha="center", fontsize=SMALL, color=GREY, gid=NOTE)


def column_titles(line: Iterable[Axes], titles: Iterable[str]) -> None:
    """Name the columns above the first row of panels, clear of the notes there."""
    line = list(line)
    noted = any(text.get_gid() == NOTE for axis in line for text in axis.texts)
    for axis, title in zip(line, titles, strict=True):
        axis.set_title(title, pad=14 if noted else None)


def depth_title(depth_total: int) -> str:
    """ "depth 56", the network's number of layers with weights."""
    return f"depth {depth_total}"


def epoch_title(epoch: float) -> str:
    """ "at initialisation" for epoch 0, else "after epoch 60"."""
    return "at initialisation" if epoch == 0 else f"after epoch {epoch:g}"
