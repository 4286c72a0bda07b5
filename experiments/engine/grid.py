"""The grid of cells, arm x depth x seed: each runs once, in parallel, and is complete on disk or absent."""

import hashlib
import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from multiprocessing import parent_process
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from joblib import Parallel, delayed, parallel_config
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from experiments.engine.command import make_folder
from experiments.engine.provenance import commit, provenance
from probes.tables import COLUMNS


@dataclass(frozen=True)
class Cell:
    """One run of a grid. Whatever else decides its outcome stands in `settings`; other settings are another cell."""

    experiment: str
    arm: str
    depth: int
    seed: int
    settings: dict[str, object]
    about: dict[str, object] = field(default_factory=dict)
    """What `run.json` tells beside the settings, such as where the data came from."""
    labels: dict[str, Any] = field(default_factory=dict)
    """Further columns of its tables, by which an experiment tells cells of one arm, depth and seed apart."""

    @property
    def name(self) -> str:
        settings = json.dumps(self.settings, sort_keys=True, default=str)
        return f"{self.arm}-depth{self.depth}-seed{self.seed}-{hashlib.sha256(settings.encode()).hexdigest()[:8]}"


@dataclass
class Outcome:
    """What a cell gave: its tables by name, what is no table, and the step at which its loss stopped being finite, if
    it did."""

    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    """Such as images: they go into one arrays.npz."""
    diverged_at: int | None = None


def run_grid(
    cells: Sequence[Cell], run: Callable[[Cell], Outcome], folder: Path, *, workers: int, store: Path | None = None
) -> tuple[dict[str, pd.DataFrame], list[Cell]]:
    """Run the cells that are not yet in `store` (`folder`/cells), one thread a worker; return all cells' tables, joined
    by name, and the cells that diverged.

    An interrupted run keeps its finished cells; experiments may share a store. The joined tables are written to
    `folder` as CSV.
    """
    home = make_folder(store or folder / "cells")
    make_folder(folder)
    different = list({cell.name: cell for cell in cells}.values())  # some may differ in their labels alone
    missing = sorted((cell for cell in different if not is_finished(home / cell.name)), key=lambda cell: -cell.depth)
    with _progress(different, missing, home) as done, parallel_config(backend="loky", inner_max_num_threads=1):
        pool = Parallel(n_jobs=min(workers, max(1, len(missing))), return_as="generator_unordered")
        for cell in pool(delayed(_run_cell)(cell, run, home) for cell in missing):
            done(cast(Cell, cell))
    return join(cells, home, folder)


def is_finished(cell: Path) -> bool:
    """Whether a cell's folder is complete: `run.json` is its last file, and the folder appears as a whole."""
    return (cell / "run.json").is_file()


def commit_of(cell: Path) -> str | None:
    """The commit that made a finished cell; None for one that is not finished."""
    return json.loads((cell / "run.json").read_text())["commit"] if is_finished(cell) else None


def join(cells: Sequence[Cell], home: Path, folder: Path) -> tuple[dict[str, pd.DataFrame], list[Cell]]:
    """The tables of all cells, one under the other, and the diverged cells; the tables also go to disk."""
    parts: dict[str, list[pd.DataFrame]] = {}
    diverged = []
    for stale in folder.glob("*.csv"):
        stale.unlink()
    for cell in cells:
        for file in sorted((home / cell.name).glob("*.csv")):
            parts.setdefault(file.stem, []).append(ordered(pd.read_csv(file).assign(**cell.labels)))
        if json.loads((home / cell.name / "run.json").read_text())["outcome"] != "finished":
            diverged.append(cell)
    tables = {name: pd.concat(frames, ignore_index=True) for name, frames in parts.items()}
    for name, table in tables.items():
        write_aside(folder / f"{name}.csv", table)
    return tables, diverged


def ordered(table: pd.DataFrame) -> pd.DataFrame:
    """The table with its columns in the one fixed order."""
    return table[[column for column in COLUMNS if column in table.columns]]


def write_aside(file: Path, table: pd.DataFrame) -> None:
    """Write a CSV so that the file is the old one or the new one, never half."""
    aside = file.with_suffix(f".partial-{os.getpid()}")
    table.to_csv(aside, index=False)
    aside.replace(file)


def _run_cell(cell: Cell, run: Callable[[Cell], Outcome], home: Path) -> Cell:
    if parent_process() is not None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    torch.set_num_threads(1)
    start = time.monotonic()
    outcome = run(cell)
    aside = Path(mkdtemp(prefix=".partial-", dir=home))
    try:
        identity = {"experiment": cell.experiment, "arm": cell.arm, "depth_total": cell.depth, "seed": cell.seed}
        for name, table in outcome.tables.items():
            ordered(table.assign(**identity)).to_csv(aside / f"{name}.csv", index=False)
        if outcome.arrays:
            np.savez_compressed(aside / "arrays.npz", allow_pickle=False, **outcome.arrays)
        report = {
            "cell": {name: value for name, value in asdict(cell).items() if name != "labels"},
            "outcome": "finished" if outcome.diverged_at is None else f"diverged at step {outcome.diverged_at}",
            "wall_seconds": round(time.monotonic() - start, 2),
            **provenance(str(cell.settings.get("device", "cpu"))),
        }
        (aside / "run.json").write_text(json.dumps(report, indent=2, default=str) + "\n")
        shutil.rmtree(home / cell.name, ignore_errors=True)
        aside.chmod(0o755)
        aside.rename(home / cell.name)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return cell


@contextmanager
def _progress(cells: Sequence[Cell], missing: Sequence[Cell], home: Path) -> Iterator[Callable[[Cell], None]]:
    """A bar with the time left, deep cells counted as more work; a plain line a cell where there is no terminal."""
    console = Console(stderr=True, highlight=False, markup=False)
    count, start = len(cells) - len(missing), time.monotonic()
    if count:
        console.print(f"{count} of {len(cells)} cells are already done")
    if others := sum(commit_of(home / cell.name) not in (None, commit()) for cell in cells):
        console.print(
            f"{others} of them by another version of the code, as their run.json tells: delete them to repeat"
        )
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=sum(cell.depth for cell in missing))

        def done(cell: Cell) -> None:
            nonlocal count
            count += 1
            bar.update(task, advance=cell.depth, description=f"{count}/{len(cells)} cells")
            if not console.is_terminal:
                console.print(f"[{count}/{len(cells)}] {cell.name} ({time.monotonic() - start:.0f} s)")

        bar.update(task, description=f"{count}/{len(cells)} cells")
        yield done
