"""Redraw a figure from its table, for a paper.

``python -m figures path_lengths paths.csv --arms residual plain --depth 56 --venue icml --column 0.5 --out fig.pdf``;
``python -m probes.figures`` where only the wheel is installed. Prints the file and the caption.
"""

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn
from zipfile import BadZipFile

import numpy as np
import pandas as pd

from .parts.save import FORMATS, write
from .parts.sheet import caption
from .parts.style import VENUES, venue

ARRAYS = "saliency_maps"  # drawn from arrays; all others from tables
NO_FIGURES = {"ARMS", "Look", "caption", "save", "venue"}
TEXT = {"arm": str, "control": str, "block": str, "checkpoint": str}  # also where all of a column's names are numbers


class _Parser(ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, without the usage."""
        self.exit(2, f"{self.prog}: {message}\n")


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw one figure and write it; a mistake of the user's ends with one line and the exit code 2."""
    figures = import_module(__package__ or "figures")
    names = [name for name in figures.__all__ if name not in NO_FIGURES]
    parser = parser_of(names)
    given = parser.parse_args(arguments)
    try:
        file, words = _draw(given, figures, names)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    print(file)
    print(words)


def parser_of(names: Sequence[str]) -> ArgumentParser:
    """The arguments of the command."""
    parser = _Parser(
        prog=f"python -m {__package__}",
        description="Redraw a figure from its table (CSV), fitted to a venue's page; its caption goes to the terminal.",
        epilog=f"Figures: {', '.join(names)}.",
    )
    parser.add_argument("figure", metavar="NAME", help="which figure; see below")
    parser.add_argument("table", metavar="TABLE", type=Path, help=f"its table (CSV; of {ARRAYS} the .npz)")
    parser.add_argument("--arms", nargs="+", default=[], help="draw these arms (or conditions) alone")
    parser.add_argument("--depth", nargs="+", type=int, default=[], help="draw networks of these depths alone")
    parser.add_argument("--venue", help=f"width, fonts and sizes: {', '.join(VENUES)}")
    parser.add_argument("--column", type=float, help="the width as a share of the text's; 0.5: one of two columns")
    parser.add_argument("--no-legend", action="store_true", help="leave the legend out")
    parser.add_argument("--out", type=Path, help=f"where to write: {', '.join(FORMATS)} (NAME.pdf)")
    return parser


def _draw(given: Namespace, figures: Any, names: Sequence[str]) -> tuple[Path, str]:
    """The file that was written, and the figure's caption."""
    if given.figure not in names:
        raise ValueError(f"there is no figure {given.figure!r}; the figures are {', '.join(names)}.")
    if given.column is not None and given.venue is None:
        raise ValueError("--column is a share of a venue's text: name the --venue, too.")
    out = given.out or Path(f"{given.figure}.pdf")
    if out.suffix not in FORMATS:
        raise ValueError(f"--out {out}: a figure is written as {', '.join(FORMATS)}; end the file's name with one.")
    data = _read(given.table, arrays=given.figure == ARRAYS)
    if isinstance(data, pd.DataFrame):
        data = _chosen(
            _chosen(data, "--arms", ("arm", "control"), given.arms), "--depth", ("depth_total",), given.depth
        )
    elif given.arms or given.depth:
        raise ValueError(f"--arms and --depth choose rows of a table, and {ARRAYS} is drawn from arrays.")
    column = 1.0 if given.column is None else given.column
    with venue(given.venue, column=column) if given.venue else nullcontext():
        axes = getattr(figures, given.figure)(data, legend=not given.no_legend)
        write(axes, out)
    return out, caption(axes)


def _read(file: Path, *, arrays: bool) -> pd.DataFrame | Mapping[str, np.ndarray]:
    kind = ".npz" if arrays else ".csv"
    if file.suffix != kind:
        raise ValueError(f"{file}: this figure is drawn from a {kind} file, which lies beside it.")
    try:
        if arrays:
            with file.open("rb") as raw, np.load(raw) as opened:  # numpy leaves a broken file open
                return dict(opened)
        return pd.read_csv(file, dtype=TEXT)
    except (OSError, ValueError, BadZipFile) as error:  # pandas' errors are ValueErrors
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ValueError(f"{file}: cannot be read ({reason}).") from None


def _chosen(table: pd.DataFrame, option: str, columns: Sequence[str], wanted: Sequence[Any]) -> pd.DataFrame:
    """The rows in which one of the columns holds a wanted value, and those that have none in any of them."""
    if not wanted:
        return table
    there = [column for column in columns if column in table]
    if not there:
        raise ValueError(f"{option}: the table has no column {' or '.join(columns)}.")
    values = list(dict.fromkeys(value for column in there for value in table[column].dropna()))
    if missing := [value for value in wanted if value not in values]:
        known = ", ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values)
        raise ValueError(f"{option}: the table has no {', '.join(map(str, missing))}; it has {known}.")
    kept = table[there].isna().all(axis="columns")
    for column in there:
        kept |= table[column].isin(list(wanted))
    return table[kept]


if __name__ == "__main__":
    main(sys.argv[1:])
