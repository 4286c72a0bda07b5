"""Where the tables of a training go: files, TensorBoard, a run of Weights & Biases or trackio, functions."""

import csv
import importlib.util
import os
from collections.abc import Callable, Hashable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from ..files import from_csv, replace_whole, to_csv

Sink = Callable[[int, pd.DataFrame], object]
WANTED = (
    "a path ending in .csv or .parquet, a TensorBoard SummaryWriter, a Weights & Biases or trackio run, a function of "
    "(step, table), or a list of these"
)


def sinks(to: Any, start: int) -> list[Sink]:
    """A function of (step, table) for each place that a user names.

    Args:
        to: See ``track``.
        start: The training's first step: files are begun at 0, and continued after it.

    Returns:
        The functions, in order. Files are not touched before the first table.

    Raises:
        TypeError: Something is no such place.
        ValueError: A path ends in something else, or nothing is named.
        ImportError: A Parquet file, without pyarrow.
    """
    if isinstance(to, list | tuple):
        if not to:
            raise ValueError(f"track: to is empty: give {WANTED}")
        return [sink for place in to for sink in sinks(place, start)]
    if isinstance(to, str | os.PathLike):
        return [_file(Path(to), start)]
    if callable(getattr(to, "add_scalar", None)):
        return [_to_writer(to)]
    if callable(getattr(to, "log", None)):
        return [_to_run(to)]
    if callable(to):
        return [lambda step, table: to(step, table.copy())]  # it may keep or change its table
    raise TypeError(f"track: to is {to!r}: give {WANTED}")


def _to_writer(writer: Any) -> Sink:
    def write(step: int, table: pd.DataFrame) -> None:
        for name, value in scalars(table):
            writer.add_scalar(name, value, global_step=step)

    return write


def _to_run(run: Any) -> Sink:
    def write(step: int, table: pd.DataFrame) -> None:
        run.log(dict(scalars(table)), step=step)

    return write


def scalars(table: pd.DataFrame) -> Iterator[tuple[str, float]]:
    """The values of a table under names such as "gradient_norms/total/layer1.0" (probe, quantity, place)."""
    keys = [column for column in table if column not in ("step", "probe", "quantity", "value")]
    if "block" in keys and "depth" in keys:
        keys.remove("depth")
    for row in table.to_dict("records"):
        place = [str(row[key]) for key in keys if not pd.isna(row[key])]
        yield "/".join([row["probe"], row["quantity"], *place]), row["value"]


def _file(path: Path, start: int) -> Sink:
    if path.suffix == ".csv":
        return CsvFile(path, start)
    if path.suffix == ".parquet":
        if importlib.util.find_spec("pyarrow") is None:
            raise ImportError(f"track: {path.name} needs pyarrow (pip install pyarrow): or give a path ending in .csv")
        return ParquetFile(path, start)
    raise ValueError(f"track: {str(path)!r} ends in {path.suffix!r}: give {WANTED}")


class CsvFile:
    """A CSV that grows by a step's rows at a time; no step is in it twice."""

    def __init__(self, path: Path, start: int) -> None:
        self.path, self.start = path, start
        self.columns: list[Hashable] | None = None
        self.steps: set[int] = set()
        self.opened = False

    def __call__(self, step: int, table: pd.DataFrame) -> None:
        if not self.opened:
            self._open()
        if step in self.steps:
            return
        if self.columns is not None and self.columns != list(table):
            raise ValueError(_other_columns(self.path, self.columns, list(table)))
        _append(self.path, to_csv(table, header=self.columns is None).encode())
        self.columns = list(table)
        self.steps.add(step)

    def _open(self) -> None:
        self.opened = True
        _check_new(self.path, self.start)
        if not self.path.exists():
            return
        data = self.path.read_bytes()
        end = data.rfind(b"\n") + 1
        table = _with_steps(from_csv(data[:end].decode()), self.path) if end else pd.DataFrame()
        whole = table if table.empty else _whole_steps(table, data[end:].decode(errors="replace"), self.start)
        if whole.empty:
            self.path.unlink()
            return
        if len(whole) < len(table) or end < len(data):
            lines = data.splitlines(keepends=True)[: 1 + len(whole)]
            replace_whole(self.path, lambda path: path.write_bytes(b"".join(lines)))
        self.columns, self.steps = list(whole), set(whole["step"])


def _whole_steps(table: pd.DataFrame, cut: str, start: int) -> pd.DataFrame:
    """A file's rows without those of a step during which the machine stopped.

    cut: what is there of a broken last row. It may name its step; else the last step is broken if it has the first rows
    of the step before and no others. As layers that are dropped at random look like that too, it must be one that will
    be trained again.
    """
    place = list(table).index("step")
    fields = next(csv.reader([cut]), [])
    if len(fields) > place + 1:
        return table[table["step"].astype(str) != fields[place]]
    steps, keys = table["step"].unique(), table.drop(columns=["step", "value"], errors="ignore")
    if len(steps) > 1 and steps[-1] >= start:
        before, last = (keys[table["step"] == step].reset_index(drop=True) for step in steps[-2:])
        if len(last) < len(before) and last.equals(before.head(len(last))):
            return table[table["step"] != steps[-1]]
    return table


class ParquetFile:
    """A Parquet file, which is written anew with each step: complete at any moment; no step is in it twice."""

    def __init__(self, path: Path, start: int) -> None:
        self.path, self.start = path, start
        self.table: pd.DataFrame | None = None
        self.opened = False

    def __call__(self, step: int, table: pd.DataFrame) -> None:
        if not self.opened:
            self.opened = True
            _check_new(self.path, self.start)
            if self.path.exists():
                self.table = _with_steps(pd.read_parquet(self.path, engine="pyarrow"), self.path)
        if self.table is not None and step in set(self.table["step"]):
            return
        if self.table is not None and list(self.table) != list(table):
            raise ValueError(_other_columns(self.path, list(self.table), list(table)))
        self.table = table if self.table is None else pd.concat([self.table, table], ignore_index=True)
        whole = self.table
        replace_whole(self.path, lambda path: whole.to_parquet(path, index=False, engine="pyarrow"))


def _check_new(path: Path, start: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if start == 0 and path.exists() and path.stat().st_size:
        raise ValueError(
            f"track: {str(path)!r} exists, and this training begins at step 0: give another path, delete the file, or "
            "say at which step a resumed training begins, track(..., start=STEP)"
        )


def _with_steps(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    if "step" not in table:
        raise ValueError(f"track: {str(path)!r} has no column 'step', and cannot be continued: give another path")
    return table


def _other_columns(path: Path, there: list[Hashable], here: list[Hashable]) -> str:
    return (
        f"track: {str(path)!r} has the columns {there}, and the table has {here}: continue a file with the "
        "measurements that it was begun with, or give another path"
    )


def _append(path: Path, data: bytes) -> None:
    """Add to a file in one call of the system, which nothing in this process can interrupt: all of it, or nothing."""
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        before = os.fstat(file).st_size
        written = os.write(file, data)
        if written < len(data):  # the disk is full
            os.ftruncate(file, before)
            raise OSError(f"track: {str(path)!r} took {written} of {len(data)} bytes: is the disk full?")
    finally:
        os.close(file)
