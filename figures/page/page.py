"""What a report says, as data, and the one HTML file that shows it: to be read on a phone, on a desk and on paper."""

import os
import re
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from io import BytesIO
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TypeAlias
from urllib.parse import quote

import jinja2
import pandas as pd

from ..parts.save import figure_of
from ..parts.sheet import caption, describe
from ..parts.style import style

SIGNATURES = {b"\x89PNG\r\n\x1a\n": "image/png", b"<svg": "image/svg+xml", b"<?xml": "image/svg+xml"}
TALL = 24
"""Rows; a table of more scrolls within itself on a wide screen."""
REFRESH = 15
"""Seconds after which a browser reads an unfinished page again."""


@dataclass(frozen=True)
class Text:
    """Prose."""

    text: str
    """Paragraphs, with empty lines between them."""

    def paragraphs(self) -> list[str]:
        """Without the empty lines."""
        return [part.strip() for part in re.split(r"\n\s*\n", self.text) if part.strip()]


@dataclass(frozen=True)
class Code:
    """Text whose line breaks count, such as a command."""

    text: str


@dataclass(frozen=True)
class Facts:
    """Names, each with its value as text."""

    facts: Mapping[str, str]
    title: str = ""


@dataclass(frozen=True)
class Cell:
    """A table's cell as it is shown."""

    text: str
    value: str | None = None
    """Of a number, all its digits, as a CSV has them."""

    @property
    def kind(self) -> Literal["number", "text"]:
        """Numbers, also intervals, stand at the right and are not broken."""
        return "text" if re.search(r"[^\W\d_]{2}", self.text) or not re.search(r"\d", self.text) else "number"


@dataclass(frozen=True)
class Table:
    """A data frame without its index: texts as they are, floats with four digits, missing values as nothing."""

    rows: pd.DataFrame
    """The first column (of those that are not `by`) names the row."""
    title: str = ""
    caption: str = ""
    file: str = ""
    """The CSV, relative to the page."""
    by: str = ""
    """A column whose values stand as headings above the rows that have them in succession."""

    @property
    def columns(self) -> list[str]:
        """Those that are shown as columns."""
        return [str(column) for column in self.rows.columns if column != self.by]

    def groups(self) -> Iterator[tuple[str, list[list[Cell]]]]:
        """Each heading ("" where there is none), and the rows below it."""
        heading, rows = "", list[list[Cell]]()
        for record in self.rows.to_dict("records"):
            above = _cell(record[self.by]).text if self.by else ""
            if above != heading:
                if rows:
                    yield heading, rows
                heading, rows = above, []
            rows.append([_cell(value) for column, value in record.items() if column != self.by])
        if rows:
            yield heading, rows


@dataclass(frozen=True)
class Picture:
    """A figure as an image. `picture` makes one of axes."""

    image: bytes
    """A PNG or an SVG."""
    alt: str
    """What is to be seen, for those who do not see it."""
    title: str = ""
    caption: str = ""
    file: str = ""
    """The table that it was drawn from, relative to the page."""

    @property
    def width(self) -> int | None:
        """CSS pixels that a PNG of 200 dots an inch takes where there is room: a fourth more than on paper."""
        png = self.image.startswith(b"\x89PNG")
        return round(int.from_bytes(self.image[16:20]) * 96 / 200 * 1.25) if png and len(self.image) >= 20 else None

    @property
    def uri(self) -> str:
        """The image itself as an address; ValueError where it is neither PNG nor SVG."""
        kind = next((kind for start, kind in SIGNATURES.items() if self.image.startswith(start)), None)
        if kind is None:
            raise ValueError(f"picture: {self.image[:8]!r}... is neither PNG nor SVG; give the bytes of one of these.")
        return f"data:{kind};base64,{b64encode(self.image).decode()}"


Part: TypeAlias = Text | Code | Facts | Table | Picture


@dataclass(frozen=True)
class Section:
    """Parts below a heading."""

    title: str
    parts: Sequence[Part]
    folded: bool = False
    """Whether a reader has to open it."""

    def runs(self) -> Iterator[tuple[bool, list[Part]]]:
        """The parts in succession that are pictures, or are none: pictures stand side by side where there is room."""
        for pictures, parts in groupby(self.parts, lambda part: isinstance(part, Picture)):
            yield pictures, list(parts)


@dataclass(frozen=True)
class Progress:
    """How far the work is whose report this will be."""

    done: float
    total: float
    text: str = ""


@dataclass(frozen=True)
class Page:
    """A report.

    Everything in it may come from outside: it is shown as text, whatever it holds. Links lead to files beside the page.
    """

    title: str
    question: str = ""
    answer: str = ""
    sections: Sequence[Section] = ()
    progress: Progress | None = None
    """None: the work has ended. Else browsers read the page again every few seconds."""
    footer: str = ""

    def html(self) -> str:
        """The page.

        Raises:
            ValueError: A link is not relative, an image is neither PNG nor SVG, or a picture has no alternative text.
        """
        return _template().render(page=self, refresh=REFRESH, tall=TALL)

    def write(self, file: Path) -> Path:
        """Write the page, so that at any moment the file is the old page or the new one as a whole; return the file."""
        partial = file.with_name(f".{file.name}.partial-{os.getpid()}")
        text = self.html()
        try:
            partial.write_text(text, encoding="utf-8")
            partial.replace(file)
        finally:
            partial.unlink(missing_ok=True)
        return file


def picture(axes: Any, *, title: str = "", file: str = "") -> Picture:
    """What a figure function returned as a picture, with its caption, and what its panels and lines are for those who
    do not see it. The figure stays open.

    Raises ValueError where the axes belong to no figure of this package.
    """
    buffer = BytesIO()
    with style():
        figure_of(axes, title or "the picture").savefig(buffer, format="png")
    return Picture(buffer.getvalue(), describe(axes), title=title, caption=caption(axes), file=file)


def _cell(value: Any) -> Cell:
    if value is None or value is pd.NaT or value != value:
        return Cell("")
    if isinstance(value, float):  # numpy's float64, too
        return Cell(f"{value:.4g}", str(float(value)))
    return Cell(str(value))


def _whole(text: str) -> str:
    """The text, in which no line ends within [-0.1, +0.2], 0.5 ± 0.1 or n = 3."""
    return re.sub(r" (?=±)|(?<=±) |(?<=\d,) (?=[-+\d.]+[\]*)])|(?<=\bn) (?==)|(?<=\bn =) ", "\N{NO-BREAK SPACE}", text)


def _link(file: str) -> str:
    """A file's name as the address in a link, in which nothing has a meaning of its own."""
    if PurePosixPath(file).is_absolute() or "\\" in file:
        raise ValueError(f"page: the link {file!r} is not relative to the page; give a path such as 'figures/a.csv'.")
    return quote(file, safe="/")


def _kind(part: Part) -> str:
    """The template's name for it."""
    if isinstance(part, Picture) and not part.alt.strip():
        raise ValueError(f"page: the picture {part.title!r} has no alternative text; give alt.")
    return type(part).__name__


@cache
def _template() -> jinja2.Template:
    text = resources.files(__package__ or "figures.page").joinpath("page.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"link": _link, "kind": _kind, "whole": _whole}
    return environment.from_string(text)
