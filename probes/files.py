"""Tables in files that pandas reads alone: CSVs to the last bit, and several of them in one zip file."""

import json
import os
import zipfile
from collections.abc import Callable, Mapping
from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd

# A block may be named "0", or "nan".
TEXT = {"checkpoint": str, "probe": str, "block": str, "other_block": str, "module": str, "quantity": str}
ABOUT = "about.json"


def to_csv(table: pd.DataFrame, *, header: bool = True) -> str:
    """A table as text; values have as many digits as tell them from their neighbours, and may be nan or inf."""
    if "value" in table:
        table = table.assign(value=[repr(float(value)) for value in table["value"]])
    return table.to_csv(index=False, header=header, lineterminator="\n")


def from_csv(text: str) -> pd.DataFrame:
    """The table of which `to_csv` made a text, to the last bit."""
    return read_csv(StringIO(text))


def read_csv(file: Path | StringIO) -> pd.DataFrame:
    """A long table; a value that is missing is nan.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no CSV.
    """
    # pandas' own parser may err in the last digit; the option against it changed its name.
    exact = {"value": lambda text: float(text or "nan")}
    return pd.read_csv(file, dtype=TEXT, converters=exact, keep_default_na=False, na_values=[""])


def write_zip(file: Path, tables: Mapping[str, pd.DataFrame], about: Mapping[str, object]) -> None:
    """Write a zip file of NAME.csv for each table, and about.json: complete or not at all."""
    texts = {ABOUT: json.dumps(about, indent=1)} | {f"{name}.csv": to_csv(table) for name, table in tables.items()}

    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            for name, text in texts.items():
                entry = zipfile.ZipInfo(name)  # of 1980, so that the same tables make the same file
                entry.external_attr = 0o644 << 16
                archive.writestr(entry, text, compress_type=zipfile.ZIP_DEFLATED)

    replace_whole(file, write)


def replace_whole(file: Path, write: Callable[[Path], object]) -> None:
    """Write a file beside another by a function of its path, and put it in the other's place: complete or not at
    all."""
    beside = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        write(beside)
        beside.replace(file)
    finally:
        beside.unlink(missing_ok=True)


def read_zip(file: Path) -> tuple[dict[str, pd.DataFrame], dict[str, Any]]:
    """The tables of a zip file by name, and its about.json; raises ValueError for any other file."""
    try:
        with zipfile.ZipFile(file) as archive:
            about = json.loads(archive.read(ABOUT))
            names = [name for name in archive.namelist() if name.endswith(".csv")]
            tables = {name.removesuffix(".csv"): from_csv(archive.read(name).decode()) for name in names}
    except (zipfile.BadZipFile, KeyError, json.JSONDecodeError) as error:
        raise ValueError(f"{str(file)!r} is no recording that was saved, or it is damaged: {error}") from None
    return tables, about
