"""A new figure: panels as high as they should be on a page of a given width, no text over another, and a caption."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import wraps
from itertools import pairwise
from textwrap import fill
from typing import Any, ParamSpec, cast
from weakref import WeakKeyDictionary

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator, NullLocator
from matplotlib.transforms import Bbox

from .style import ROW_TITLE, Axes2D, medium, small, style

P = ParamSpec("P")
MARKERS: dict[Any, Any] = {"lines.markersize": 3.5}  # what figures set by themselves in axes of the caller
NARROW = 4.5  # inches of a page on which four panels do not stand side by side
PANELS = 0.9  # inches of panels for each inch of all else, at least
GAP = 2.0  # points between texts
ROUNDS = 8  # a change may call for the next
_captions: "WeakKeyDictionary[Axes, str]" = WeakKeyDictionary()


class Sheet(Figure):
    """A figure of our own, which `fit` may change."""

    heights: Sequence[float] | None = None
    """Inches of each row's panels; None: as high as wide, for images."""
    entries: Sequence[Artist] = ()
    """Of the legend."""

    def savefig(self, *args: Any, **kwargs: Any) -> None:
        """As of any figure, with fonts that are embedded as TrueType."""
        with style():
            super().savefig(*args, **kwargs)


def drawing(draw: Callable[P, Axes2D]) -> Callable[P, Axes2D]:
    """Make a function draw a new figure in the style of the page and fit it, unless its caller gives axes.

    Axes of the caller keep the fonts, the size and the layout of their figure.
    """

    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> Axes2D:
        if kwargs.get("axes") is not None:
            with matplotlib.rc_context(MARKERS):
                return draw(*args, **kwargs)
        with style():
            axes = draw(*args, **kwargs)
            fit(axes)
            return axes

    return drawn


def is_narrow(axes: Any) -> bool:
    """Whether a new figure (axes is None) has the width of a column, on which few panels stand side by side."""
    return axes is None and medium().width < NARROW


def grid(rows: int, columns: int, *, height: float | Sequence[float] | None = 1.0, **share: Any) -> Axes2D:
    """The axes of a new figure, as wide as the page.

    height: inches of the panels in each row, or in all; None: as high as wide.
    """
    heights = height if height is None or isinstance(height, Sequence) else [height] * rows
    ratios: dict[str, Any] = {} if heights is None or rows == 1 else {"height_ratios": heights}
    sheet = _sheet(columns, heights)
    return sheet.subplots(rows, columns, squeeze=False, **(ratios | share))


def mosaic(layout: Sequence[Sequence[int]], *, heights: Sequence[float]) -> list[Axes]:
    """The axes of a new figure in the order of their numbers; a number that stands in several cells spans them."""
    sheet = _sheet(2, heights)
    drawn = sheet.subplot_mosaic(cast(Any, [list(row) for row in layout]), height_ratios=list(heights))
    return [drawn[number] for number in sorted(drawn)]


def _sheet(columns: int, heights: Sequence[float] | None) -> Sheet:
    width = medium().width * (0.6 if medium().narrows and columns == 1 else 1)
    sheet = Sheet(figsize=(width, sum(heights or [width]) + 1), layout="constrained")
    sheet.heights = heights
    return sheet


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
    explain(blank, text.replace("\n", " "))
    return blank


def caption(axes: Any) -> str:
    """What the lines, points and bars of a figure are, and over how many seeds: for the text below it.

    Args:
        axes: What a figure function returned, or any Axes of it.

    Returns:
        Sentences; empty where a figure needs none.

    Raises:
        ValueError: No figure function has drawn on the axes.
    """
    first: Axes = np.asarray(axes, dtype=object).flat[0]
    if first not in _captions:
        raise ValueError("caption: no figure of this package was drawn on these axes; give what its function returned.")
    return _captions[first]


def describe(axes: Any) -> str:
    """What there is to see in a figure, for those who do not see it: its panels, their axes, and the legend's entries.

    axes: What a figure function returned, or any Axes of it.
    """
    sheet = np.asarray(axes, dtype=object).flat[0].get_figure(root=True)
    shown = [axis for axis in sheet.axes if axis.axison]
    labels = [sheet.get_supxlabel(), *(axis.get_xlabel() for axis in shown)]
    across, up = _said(labels), _said(axis.get_ylabel() for axis in shown)
    entries = sheet.entries if isinstance(sheet, Sheet) else ()
    drawn = _said(str(entry.get_label()) for entry in entries)
    titles = _said(axis.get_title() for axis in shown)
    return ". ".join(
        [
            f"Figure of {len(shown)} panel{'s' * (len(shown) != 1)}: {', '.join(up) or 'images'}"
            + f" against {', '.join(across)}" * bool(across),
            *[f"Titles: {', '.join(titles)}"] * bool(titles),
            *[f"Drawn: {', '.join(drawn)}"] * bool(drawn),
        ]
    )


def _said(texts: Iterable[str]) -> list[str]:
    """The different texts, each on one line, without the signs of mathematics."""
    return list(dict.fromkeys(line for text in texts if (line := " ".join(text.replace("$", "").split()))))


def explain(axes: Axes2D, *sentences: str) -> None:
    """Keep the caption of a figure: sentences without a capital at the beginning and a point at the end."""
    parts = [sentence[0].upper() + sentence[1:] for sentence in sentences if sentence]
    for axis in axes.flat:
        _captions[axis] = " ".join(part if part.endswith(".") else f"{part}." for part in parts)


def legend(axes: Axes2D, entries: Sequence[Artist]) -> None:
    """One legend: above all panels of a figure of our own; in the first panel where the axes are the caller's."""
    entries = [entry for entry in entries if entry.get_label()]
    first, sheet = axes.flat[0], axes.flat[0].get_figure(root=True)
    if isinstance(sheet, Sheet):
        sheet.entries = entries
    elif entries:
        for columns in range(1, len(entries) + 1):
            drawn = first.legend(handles=entries, ncols=columns, loc="best")
            if drawn.get_window_extent().height < 0.9 * first.get_window_extent().height:
                break


# Fitting


def fit(axes: Axes2D) -> None:
    """Give a new figure its legend and its height, and break, shrink or thin out the texts that have no room."""
    sheet = axes.flat[0].get_figure(root=True)
    if not isinstance(sheet, Sheet):
        return
    shown, growth = list(axes.flat), 1.0
    _legend(sheet)
    for _ in range(ROUNDS):
        _lay_out(sheet)
        changed = _labels(sheet, shown)
        changed |= sum(_ticks(axis, panel) for panel in shown for axis in (panel.xaxis, panel.yaxis)) > 0
        growth *= _growth(shown)
        if not (_height(sheet, shown, growth) | changed):
            break


def _lay_out(sheet: Sheet) -> None:
    engine = sheet.get_layout_engine()
    if engine is not None:
        engine.execute(sheet)


def _legend(sheet: Sheet) -> None:
    """Above the panels, in as many columns as the page has room for."""
    if not sheet.entries:
        return
    for columns in range(len(sheet.entries), 0, -1):
        for old in list(sheet.legends):
            old.remove()
        drawn = sheet.legend(handles=list(sheet.entries), loc="outside upper center", ncols=columns)
        for text in drawn.get_texts():
            text.set_linespacing(1)
        if drawn.get_window_extent().width < 0.99 * sheet.bbox.width:
            return
    (drawn,) = sheet.legends
    room = sheet.bbox.width - (drawn.get_window_extent().width - max(_extent(t).width for t in drawn.get_texts()))
    for text in drawn.get_texts():
        _break(text, room - _points(sheet, GAP))


def _labels(sheet: Sheet, shown: Sequence[Axes]) -> bool:
    """Break and shrink titles and labels that reach into their neighbours'; True if any changed."""
    changed = _common_label(sheet, shown)
    for along in (0, 1):
        for line in _lines(shown, along):
            for texts in _texts(line, along):
                changed |= _part(sheet, texts, along)
    return changed


def _texts(line: Sequence[Axes], along: int) -> Iterator[list[Text]]:
    """The texts that may meet: titles and labels of x in a row of panels, labels of y and rows' titles in a column."""
    if along == 0:
        yield [axis.title for axis in line]
        yield [axis.xaxis.label for axis in line]
    else:
        yield [axis.yaxis.label for axis in line if axis.yaxis.label.get_rotation() == 90]
        yield [text for axis in line for text in axis.texts if text.get_gid() == ROW_TITLE]


def _lines(shown: Sequence[Axes], along: int) -> list[list[Axes]]:
    """The panels, row by row, or column by column."""
    lines: dict[Any, list[Axes]] = {}
    for axis in shown:
        place = axis.get_subplotspec()
        if place is not None:
            lines.setdefault((place.rowspan if along == 0 else place.colspan).start, []).append(axis)
    return list(lines.values())


def _part(sheet: Sheet, texts: Sequence[Text], along: int) -> bool:
    """Make room between texts of one line; each has half of the way to the next, and that to the edge."""
    texts = [text for text in texts if text.get_visible() and text.get_text().strip()]
    if not texts:
        return False
    boxes = [_extent(text) for text in texts]
    order = sorted(range(len(texts)), key=lambda i: boxes[i].min[along] + boxes[i].max[along])
    centres = [(boxes[i].min[along] + boxes[i].max[along]) / 2 for i in order]
    ends = [0.0, *[(one + other) / 2 for one, other in pairwise(centres)], float(sheet.bbox.max[along])]
    changed = False
    for i, centre, low, high in zip(order, centres, ends[:-1], ends[1:], strict=True):
        room = 2 * min(centre - low, high - centre) - _points(sheet, GAP)
        size = boxes[i].max[along] - boxes[i].min[along]
        if size > room:
            changed |= _break(texts[i], room, size) or any([_shrink(text) for text in texts])  # noqa: C419, all of them
    return changed


def _common_label(sheet: Sheet, shown: Sequence[Axes]) -> bool:
    """One label below all panels, where they have the same and it has no room below each."""
    labels = [axis.xaxis.label for axis in shown if axis.xaxis.label.get_text()]
    if len(labels) < 2 or len({label.get_text() for label in labels}) > 1:
        return False
    text = " ".join(labels[0].get_text().split())
    boxes = sorted((_extent(label) for label in labels), key=lambda box: box.x0)
    if all(one.x1 + _points(sheet, GAP) < other.x0 for one, other in pairwise(boxes)):
        return False
    if len({box.y0 // _points(sheet, 20) for box in boxes}) > 1:  # of several rows
        return False
    for label in labels:
        label.set_text("")
    sheet.supxlabel(text, fontsize=labels[0].get_fontsize())
    return True


def _break(text: Text, room: float, size: float | None = None) -> bool:
    """Break a text's lines to a room in pixels, between words and behind hyphens; True if that changed it."""
    own = text.get_text()
    size = size if size is not None else _extent(text).width
    longest = max(map(len, own.splitlines()))
    letters = max(3, int(longest * room / size))
    new = "\n".join(line if "$" in line else _wrapped(line, letters) for line in own.splitlines())
    text.set_text(new)
    text.set_linespacing(1.05)
    return new != own


def _wrapped(line: str, letters: int) -> str:
    """Behind hyphens only where words alone are too long."""
    whole = fill(line, letters, break_long_words=False, break_on_hyphens=False)
    return (
        whole
        if max(map(len, whole.splitlines()), default=0) <= letters
        else fill(line, letters, break_long_words=False)
    )


def _shrink(text: Text) -> bool:
    """Make a text as small as ticks; True if it was larger."""
    least = float(small())
    if cast(float, text.get_fontsize()) <= least:
        return False
    text.set_fontsize(least)
    return True


def _ticks(axis: Axis, panel: Axes) -> bool:
    """Leave out ticks whose labels have no room beside each other; names along x are turned. True if any changed."""
    along = 0 if axis is panel.xaxis else 1
    labels = [label for label in axis.get_ticklabels() if label.get_visible() and label.get_text()]
    if len(labels) < 2 or not _collide(panel, labels, along):
        return False
    if any(_is_name(label) for label in labels):
        if along == 1 or labels[0].get_rotation():
            return False  # rows grow instead
        axis.set_tick_params(rotation=90)
        return True
    low, high = sorted(axis.get_view_interval())
    places = [place for place in sorted(map(float, axis.get_majorticklocs())) if low <= place <= high]
    if len(places) < 3:
        return False
    axis.set_major_locator(FixedLocator(places[::2]))
    axis.set_minor_locator(NullLocator())
    return True


def _is_name(label: Text) -> bool:
    """Whether a tick's label has letters that are neither mathematics nor of a number such as 1e-05."""
    return bool(re.search(r"[A-Za-z]", re.sub(r"\\[a-z]+|(?<=\d)e(?=[-+\d])", "", label.get_text())))


def _collide(panel: Axes, labels: Sequence[Text], along: int) -> bool:
    gap = GAP / 72 * panel.figure.dpi if along == 0 else 0
    boxes = sorted((_extent(label) for label in labels), key=lambda box: box.min[along])
    return any(one.max[along] + gap > other.min[along] for one, other in pairwise(boxes))


def _growth(shown: Sequence[Axes]) -> float:
    """By how much panels must grow for names of rows and labels of y that do not fit as they are."""
    growth = 1.0
    for axis in shown:
        names = [label for label in axis.yaxis.get_ticklabels() if label.get_visible() and label.get_text()]
        if len(names) > 1 and _collide(axis, names, 1) and any(_is_name(name) for name in names):
            growth = max(growth, 1.1)
    for line in _lines(shown, 1):
        for texts in _texts(line, 1):
            boxes = sorted((_extent(text) for text in texts if text.get_text()), key=lambda box: box.y0)
            if any(one.y1 > other.y0 for one, other in pairwise(boxes)):
                growth = max(growth, 1.1)
    return growth


def _height(sheet: Sheet, shown: Sequence[Axes], growth: float) -> bool:
    """Set the figure's height so that panels have theirs, and a good part of all; True if it changed."""
    rows = _lines(shown, 0)
    now = sum(max(axis.get_window_extent().height for axis in row) for row in rows) / sheet.dpi
    slots = sum(max(axis.get_position(original=True).height for axis in row) for row in rows) * sheet.get_figheight()
    if sheet.heights is None:
        wanted = sum(max(axis.get_window_extent().width for axis in row) for row in rows) / sheet.dpi
    else:
        wanted = sum(sheet.heights) * growth
    others = sheet.get_figheight() - (slots if sheet.heights is None else now)
    height = others + max(wanted, PANELS * others)
    if abs(height - sheet.get_figheight()) < 0.01 * height:
        return False
    sheet.set_figheight(height)
    return True


def _extent(text: Text) -> Bbox:
    return text.get_window_extent()


def _points(figure: Figure, points: float) -> float:
    """In pixels."""
    return points * figure.dpi / 72
