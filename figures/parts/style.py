"""One look for all figures: colour, marker, line and label of each arm, a venue's width, sizes and fonts, titles."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import matplotlib.style
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.font_manager import get_font_names
from tueplots import bundles

Axes2D: TypeAlias = npt.NDArray[Any]  # of Axes, rows x columns
Dashes: TypeAlias = str | tuple[int, tuple[float, ...]]


@dataclass(frozen=True)
class Look:
    """How one arm is drawn, the same in every figure."""

    label: str
    colour: str
    marker: str = "o"
    line: Dashes = "-"


Looks: TypeAlias = Mapping[str, Look] | None


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
UNNAMED, ONE = "", Look("", "#0072B2")  # the one network of a table that names none
# Chosen by the same distance, from the arms' and from each other. Of the 5, 7 and 6, 210 combinations differ.
COLOURS = ("#882255", "#7F5539", "#332288", "#E69F00", "#999933")
MARKERS = ("H", "X", "<", ">", "p", "h", "d")
DASHES: tuple[Dashes, ...] = ((0, (4, 1)), (0, (2, 1)), (0, (4, 1, 1, 1)), (0, (6, 2)), (0, (2, 1, 1, 1)), "-")


def looks_of(names: Iterable[Any], own: Looks = None, *, known: Mapping[str, Look] = ARMS) -> dict[str, Look]:
    """The look of each name (of an arm, a condition, a series), in the order in which to draw them.

    Args:
        names: With repetitions; missing values are left out.
        own: The looks that the caller of a figure has given, which come first.
        known: The looks at hand.

    Returns:
        The known names in the order of `own` and `known`, then all others as they appear, each with a look of its own.

    Raises:
        ValueError: What `own` has for a name is no Look.
    """
    for name, look in (own or {}).items():
        if not isinstance(look, Look):
            raise ValueError(
                f"looks: {name} has {look!r}; give a Look(label, colour), if need be with marker and line."
            )
    known = {**(own or {}), **{name: look for name, look in known.items() if name not in (own or {})}}
    known |= {UNNAMED: ONE} if UNNAMED not in known else {}
    found = dict.fromkeys(name for name in names if pd.notna(name))
    others = [name for name in found if name not in known]
    automatic = {
        name: Look(str(name), COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)], DASHES[i % len(DASHES)])
        for i, name in enumerate(others)
    }
    return {name: look for name, look in known.items() if name in found} | automatic


GREY = "0.45"
NOTE, ROW_TITLE = "note", "row title"
UNSAID = -1  # the seed, depth or epoch of a table without such a column


@dataclass(frozen=True)
class Medium:
    """What a figure is fitted to: sizes in inches and points."""

    width: float
    labels: float  # axis labels and titles
    small: float  # ticks, legends and notes
    family: Literal["serif", "sans-serif"] = "serif"
    narrows: bool = False  # whether a figure of one column of panels is narrower than the text

    def rc(self) -> dict[str, Any]:
        """matplotlib's settings."""
        sans = "DejaVu Sans" if self.family == "serif" else next((f for f in SANS if f in get_font_names()), SANS[-1])
        return _LINES | {
            # STIX (Times-like, as the venues' text) comes with matplotlib: the same figure on every machine.
            "font.family": "STIXGeneral" if self.family == "serif" else sans,
            "mathtext.fontset": "stix" if self.family == "serif" else "stixsans",
            "figure.figsize": (self.width, 0.6 * self.width),
            **dict.fromkeys(("font.size", "axes.labelsize", "axes.titlesize"), self.labels),
            **dict.fromkeys(("legend.fontsize", "xtick.labelsize", "ytick.labelsize"), self.small),
        }


SANS = ("Helvetica", "Arial", "Liberation Sans", "Nimbus Sans", "DejaVu Sans")  # the last comes with matplotlib
_LINES: dict[str, Any] = {
    "legend.frameon": False, "legend.handlelength": 2.2, "legend.columnspacing": 1.4, "legend.borderpad": 0.1,
    "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.6, "axes.titlepad": 5,
    "axes.grid": True, "grid.color": "0.9", "grid.linewidth": 0.5, "axes.axisbelow": True,
    "xtick.major.width": 0.6, "ytick.major.width": 0.6, "xtick.minor.width": 0.4, "ytick.minor.width": 0.4,
    "lines.markersize": 3.5, "pdf.fonttype": 42, "ps.fonttype": 42, "savefig.dpi": 200, "figure.dpi": 200,
    "savefig.pad_inches": 0.015,
}  # fmt: skip
_SCREEN = Medium(5.5, 9, 8, narrows=True)  # outside of any `venue`: the README and these pages
_medium: ContextVar[Medium] = ContextVar("medium", default=_SCREEN)

Venue: TypeAlias = Literal["acl", "iclr", "icml", "nature", "neurips", "tmlr"]
VENUES: tuple[Venue, ...] = ("acl", "iclr", "icml", "nature", "neurips", "tmlr")


def venue(name: Venue, *, column: float = 1.0) -> AbstractContextManager[None]:
    """Figures that are drawn in this context fit into a paper: the venue's width, fonts and sizes.

    Widths and sizes are those of tueplots for ICML, NeurIPS and ICLR (2024) and TMLR (2023), those of the authors'
    guides for ACL and Nature. Their height is what panels, labels and legend need.

    Args:
        name: "acl", "iclr", "icml", "nature", "neurips" or "tmlr".
        column: The width as a share of the text's. Where a venue has two columns (ACL, ICML, Nature), 0.5 is one of
            them, 3.25 inches at ICML, and what is less a share of it.

    Returns:
        The context; figures and `save` in it follow the venue.

    Raises:
        ValueError: The venue is unknown, or `column` is not above 0 and at most 1.

    Example::

        with figures.venue("icml", column=0.5):
            axes = figures.path_lengths(table)
    """
    if name not in VENUES:
        raise ValueError(f"venue: {name!r} is unknown; the venues are {', '.join(VENUES)}.")
    if not 0 < column <= 1:
        raise ValueError(f"venue: column is {column:g}; it is a share of the text's width, above 0 and at most 1.")
    return _on(_venue_medium(name, column))


def _venue_medium(name: Venue, column: float) -> Medium:
    """A column or a part of it up to one half of the text, else that share of the text."""
    half, full = _media(name)
    return replace(half, width=half.width * 2 * column) if column <= 0.5 else replace(full, width=full.width * column)


def _media(name: Venue) -> tuple[Medium, Medium]:
    """One column, or half of the text where there are no columns; and the whole text."""
    match name:
        case "acl":  # the style files of 2024: text of 16 cm, columns of 7.7 cm
            return Medium(3.03, 9, 7), Medium(6.30, 9, 7)
        case "nature":  # columns of 89 and 183 mm; sans-serif, 5 to 7 points
            return Medium(3.50, 7, 6, "sans-serif"), Medium(7.20, 7, 6, "sans-serif")
        case "icml":
            bundle: dict[str, Any] = bundles.icml2024(usetex=False, column="full")
            half: float = bundles.icml2024(usetex=False, column="half")["figure.figsize"][0]
        case "iclr":
            bundle = bundles.iclr2024(usetex=False)
            half = bundle["figure.figsize"][0] / 2
        case "neurips":
            bundle = bundles.neurips2024(usetex=False)
            half = bundle["figure.figsize"][0] / 2
        case "tmlr":
            bundle = bundles.tmlr2023()
            half = bundle["figure.figsize"][0] / 2
    text = Medium(bundle["figure.figsize"][0], bundle["axes.labelsize"], bundle["legend.fontsize"])
    return replace(text, width=half), text


@contextmanager
def _on(medium: Medium) -> Iterator[None]:
    token = _medium.set(medium)
    try:
        yield
    finally:
        _medium.reset(token)


def medium() -> Medium:
    """That of the `venue` in which this is called, or the screen."""
    return _medium.get()


@contextmanager
def style() -> Iterator[None]:
    """matplotlib's defaults with the sizes and fonts of `medium`, while the `with` or the decorated call lasts."""
    with matplotlib.style.context(medium().rc(), after_reset=True):
        yield


def small() -> Any:
    """The size of ticks, legends and notes, as matplotlib is set: a venue's, or the caller's in axes of theirs."""
    return matplotlib.rcParams["legend.fontsize"]


def shade(colour: str, strength: float) -> str:
    """The colour mixed with white: all of it at strength 1, white at 0."""
    red, green, blue = (1 - strength * (1 - channel) for channel in to_rgb(colour))
    return to_hex((red, green, blue))


def row_title(axis: Axes, text: str) -> None:
    """Name a row of panels, at the right of its last one."""
    place: dict[str, Any] = {"xycoords": "axes fraction", "xytext": (4, 0), "textcoords": "offset points"}
    axis.annotate(text, (1, 0.5), **place, rotation=270, va="center", ha="left", gid=ROW_TITLE)


def note(axis: Axes, text: str) -> None:
    """A small remark above a panel."""
    axis.text(0.5, 1.03, text, transform=axis.transAxes, ha="center", fontsize=small(), color=GREY, gid=NOTE)


def column_titles(line: Iterable[Axes], titles: Iterable[str]) -> None:
    """Name the columns above the first row of panels, clear of the notes there."""
    line = list(line)
    noted = any(text.get_gid() == NOTE for axis in line for text in axis.texts)
    for axis, title in zip(line, titles, strict=True):
        axis.set_title(title, pad=14 if noted else None)


def depth_title(depth_total: int) -> str:
    """ "depth 56", the network's number of layers with weights; empty where the table does not say it."""
    return f"depth {depth_total}" if depth_total != UNSAID else ""


def epoch_title(epoch: float) -> str:
    """ "at initialisation" for epoch 0, else "after epoch 60"; empty where the table does not say it."""
    if epoch == UNSAID:
        return ""
    return "at initialisation" if epoch == 0 else f"after epoch {epoch:g}"
