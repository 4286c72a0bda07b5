"""A grid of runs, arm x depth x seed: each runs once, in parallel, and is complete on disk or absent."""

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from filelock import Timeout

from experiments.engine.running import distributed
from experiments.engine.running.messages import BadInput, logger
from experiments.engine.running.output import Output, make_folder
from experiments.engine.running.progress import progress, show_plan
from experiments.engine.running.provenance import provenance
from experiments.engine.running.run import Outcome, Run, Tables, described
from experiments.engine.running.store import State, lock, move_to_damaged, owners, read_report, state_of, write_folder
from experiments.engine.running.workers import Execution
from probes.tables import ordered

Task = Callable[[Run, Path], Outcome]
"""Computes a run's outcome. The file may hold a checkpoint meanwhile; the grid deletes it afterwards."""


class DryRun(Exception):
    """A dry run has printed its plan; what would follow depends on the runs in it."""


def run_grid(
    runs: Sequence[Run], task: Task, output: Output, *, execution: Execution, store: Path | None = None, then: str = ""
) -> tuple[Tables, list[Run]]:
    """Run what is not yet in `store` (by default the folder runs/ of the output), one thread a run.

    An interrupted grid, also a killed one, keeps its finished runs; experiments may share a store, and several
    invocations the work. A run whose files are not as they were written, or that lacks an output its script asks for,
    is rerun. In a dry run the plan is printed and nothing is run.

    Args:
        runs: All runs; two of one name may differ in their labels alone.
        task: What each does.
        output: Where the joined tables go, as CSV; whoever watches it is called when a run ends.
        execution: Workers, and whether this is a dry run.
        store: Where runs are kept.
        then: The work that depends on the outcome of these runs, if any; a dry run prints it.

    Returns:
        All runs' tables, joined by name, and the runs that diverged.

    Raises:
        BadInput: The store holds another experiment's runs.
        DryRun: In a dry run, unless all runs are done and something follows.
    """
    home = store or output.folder / "runs"
    if not execution.dry_run:
        make_folder(home)
    if others := owners(home) - (own := {run.experiment for run in runs}):
        raise BadInput(f"{home}: holds runs of {min(others)}, not of {' and '.join(sorted(own))}; give another --out")
    different = list({run.name: run for run in runs}.values())
    states: dict[str, State] = {run.name: state_of(home, run) for run in different}
    missing = sorted((run for run in different if states[run.name] != "finished"), key=lambda run: -run.depth)
    device = torch.device(runs[0].recipe.device)
    if execution.dry_run:
        show_plan(different, missing, home, max_parallel=execution.max_parallel(device), then=then)
        if missing or not then:
            raise DryRun
    end = output.begin(home, different, [run.name for run in different if states[run.name] == "finished"])
    with progress(different, states, home) as done, execution.pool(device, home, most=len(missing)) as imap:

        def attempt(runs: Sequence[Run], *, wait: bool) -> Iterator[tuple[Run, bool]]:
            # absolute: workers that a former grid has left may have begun in another folder
            return imap(partial(execute, task=task, home=home.absolute(), wait=wait), runs)

        held = []
        for run, finished in attempt(missing, wait=False):
            if not finished:
                held.append(run)
                continue
            done(run)
            end(run)
        if held:
            logger.warning(f"waiting for {len(held)} runs that another invocation runs")
        for run, _ in attempt(held, wait=True):
            done(run)
            end(run)
    joined = join(runs, home, output)
    output.changed()
    return joined


def join(runs: Sequence[Run], home: Path, output: Output) -> tuple[Tables, list[Run]]:
    """The concatenated tables of all runs, which also go to the output, and the diverged runs."""
    parts: dict[str, list[pd.DataFrame]] = {}
    diverged = []
    for run in runs:
        report = read_report(home / run.name)
        for file in sorted(home / run.name / name for name in report["files"] if name.endswith(".csv")):
            parts.setdefault(file.stem, []).append(ordered(pd.read_csv(file).assign(**run.labels)))
        if report["outcome"] != "finished":
            diverged.append(run)
    tables = {name: pd.concat(frames, ignore_index=True) for name, frames in parts.items()}
    output.clear()
    for name, table in tables.items():
        output.table(name, table)
    return tables, diverged


def execute(run: Run, task: Task, home: Path, *, wait: bool) -> tuple[Run, bool]:
    """Execute a run that is not finished; the run, and False if another process is executing it."""
    torch.set_num_threads(1)
    folder, checkpoint = home / run.name, home.parent / "checkpoints" / f"{run.name}.pt"
    try:
        with lock(home, run.name).acquire(blocking=wait):
            state = state_of(home, run)
            if state == "damaged":
                move_to_damaged(folder)
            if state != "finished":
                start = time.monotonic()
                outcome = distributed.lead(task, run, checkpoint)
                write_folder(folder, partial(_write, run=run, outcome=outcome, start=start))
                checkpoint.unlink(missing_ok=True)
    except Timeout:
        return run, False
    return run, True


def _write(folder: Path, *, run: Run, outcome: Outcome, start: float) -> dict[str, object]:
    """Put a run's tables and arrays into a folder; its report."""
    given = {*outcome.tables, *outcome.arrays}
    if outcome.diverged_at is None and not set(run.outputs) <= given:
        raise RuntimeError(f"{run.name} gave {sorted(given)}, and not all of its outputs, {sorted(run.outputs)}")
    identity = {"experiment": run.experiment, "arm": run.arm, "depth_total": run.depth, "seed": run.seed}
    for name, table in outcome.tables.items():
        ordered(table.assign(**identity)).to_csv(folder / f"{name}.csv", index=False)
    if outcome.arrays:
        np.savez_compressed(folder / "arrays.npz", **cast(dict[str, Any], outcome.arrays))
    facts = {"outputs": run.outputs, "about": run.about, "work": run.work, "pace": run.pace}
    return {
        "run": {"experiment": run.experiment, "arm": run.arm, "depth": run.depth, "seed": run.seed}
        | {"recipe": described(run.recipe), **facts},
        "outcome": "finished" if outcome.diverged_at is None else f"diverged at step {outcome.diverged_at}",
        "wall_seconds": round(time.monotonic() - start, 2),
        **provenance(run.recipe.device),
    }
