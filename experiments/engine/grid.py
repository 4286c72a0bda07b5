"""The grid of cells, arm x depth x seed: each runs once, in parallel, and is complete on disk or absent."""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from filelock import Timeout

from experiments.engine import processes
from experiments.engine.cell_folders import is_intact, owners, read_report, set_aside, write_folder
from experiments.engine.checkpoints import checkpoint_at
from experiments.engine.claims import claim
from experiments.engine.command import DRY_RUN, BadInput, Planned, make_folder
from experiments.engine.plan import show_plan
from experiments.engine.progress import logger, progress
from experiments.engine.provenance import provenance
from experiments.engine.workers import Workers
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

    @property
    def work(self) -> int:
        """How long it takes, in layers times epochs."""
        return self.depth * int(str(self.settings.get("epochs", 1)))


@dataclass
class Outcome:
    """What a cell gave: its tables by name, what is no table, and the step at which its loss stopped being finite, if
    it did."""

    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    """Such as images: they go into one arrays.npz."""
    diverged_at: int | None = None


def run_grid(
    cells: Sequence[Cell],
    run: Callable[[Cell], Outcome],
    folder: Path,
    *,
    workers: Workers,
    store: Path | None = None,
    then: str = "",
) -> tuple[dict[str, pd.DataFrame], list[Cell]]:
    """Run the cells that are not yet in `store` (`folder`/cells), one thread each; return all cells' tables, joined by
    name, and the cells that diverged.

    An interrupted run, also a killed one, keeps its finished cells; experiments may share a store, and several
    invocations the work. A cell whose files are not as they were written is set aside and run again. The joined tables
    are written to `folder` as CSV. then: what follows by the outcome of these cells, if anything. In a dry run the plan
    is told, and Planned raised unless all is done and something follows. Raises BadInput for a store that holds another
    experiment's cells.
    """
    home = make_folder(store or folder / "cells")
    make_folder(folder)
    if others := owners(home) - (own := {cell.experiment for cell in cells}):
        raise BadInput(f"{home}: holds cells of {min(others)}, not of {' and '.join(sorted(own))}; give another --out")
    different = list({cell.name: cell for cell in cells}.values())  # some may differ in their labels alone
    missing = sorted((cell for cell in different if not is_intact(home / cell.name)), key=lambda cell: -cell.depth)
    device = torch.device(str(cells[0].settings.get("device", "cpu")))
    if DRY_RUN.get():
        show_plan(different, missing, home, at_once=workers.at_once(device), then=then)
        if missing or not then:
            raise Planned
    with progress(different, missing, home) as done, workers.pool(device, home, most=len(missing)) as each:

        def tried(cells: Sequence[Cell], *, wait: bool) -> Iterator[tuple[Cell, bool]]:
            # absolute: workers that a former grid has left may have begun in another folder
            return each(partial(_run_cell, run=run, home=home.absolute(), wait=wait), cells)

        held = []
        for cell, finished in tried(missing, wait=False):
            done(cell) if finished else held.append(cell)
        if held:
            logger.warning(f"waiting for {len(held)} cells that another invocation runs")
        for cell, _ in tried(held, wait=True):
            done(cell)
    return join(cells, home, folder)


def join(cells: Sequence[Cell], home: Path, folder: Path) -> tuple[dict[str, pd.DataFrame], list[Cell]]:
    """The tables of all cells, one under the other, and the diverged cells; the tables also go to disk."""
    parts: dict[str, list[pd.DataFrame]] = {}
    diverged = []
    for cell in cells:
        for file in sorted((home / cell.name).glob("*.csv")):
            parts.setdefault(file.stem, []).append(ordered(pd.read_csv(file).assign(**cell.labels)))
        if read_report(home / cell.name)["outcome"] != "finished":
            diverged.append(cell)
    tables = {name: pd.concat(frames, ignore_index=True) for name, frames in parts.items()}
    for stale in () if DRY_RUN.get() else folder.glob("*.csv"):
        stale.unlink(missing_ok=True)  # another invocation may be as far
    for name, table in tables.items():
        write_aside(folder / f"{name}.csv", table)
    return tables, diverged


def ordered(table: pd.DataFrame) -> pd.DataFrame:
    """The table with its columns in the one fixed order."""
    return table[[column for column in COLUMNS if column in table.columns]]


def write_aside(file: Path, table: pd.DataFrame) -> None:
    """Write a CSV so that the file is the old one or the new one, never half; in a dry run not at all."""
    if DRY_RUN.get():
        return
    aside = file.with_suffix(f".partial-{os.getpid()}")
    try:
        table.to_csv(aside, index=False)
        aside.replace(file)
    finally:
        aside.unlink(missing_ok=True)


def _run_cell(cell: Cell, run: Callable[[Cell], Outcome], home: Path, *, wait: bool) -> tuple[Cell, bool]:
    """Run a cell, unless another process has just finished it; False with it if another is running it."""
    torch.set_num_threads(1)
    folder = home / cell.name
    try:
        with claim(home, cell.name).acquire(blocking=wait):
            if not is_intact(folder):
                set_aside(folder)
                start = time.monotonic()
                with checkpoint_at(home.parent / "checkpoints" / f"{cell.name}.pt"):
                    outcome = processes.run(run, cell)
                    write_folder(folder, partial(_write, cell=cell, outcome=outcome, start=start))
    except Timeout:
        return cell, False
    return cell, True


def _write(folder: Path, *, cell: Cell, outcome: Outcome, start: float) -> dict[str, object]:
    """Put a cell's tables and arrays into a folder; its report."""
    identity = {"experiment": cell.experiment, "arm": cell.arm, "depth_total": cell.depth, "seed": cell.seed}
    for name, table in outcome.tables.items():
        ordered(table.assign(**identity)).to_csv(folder / f"{name}.csv", index=False)
    if outcome.arrays:
        np.savez_compressed(folder / "arrays.npz", **outcome.arrays)
    return {
        "cell": {name: value for name, value in asdict(cell).items() if name != "labels"},
        "outcome": "finished" if outcome.diverged_at is None else f"diverged at step {outcome.diverged_at}",
        "wall_seconds": round(time.monotonic() - start, 2),
        **provenance(str(cell.settings.get("device", "cpu"))),
    }
