"""What a grid shows: its plan in a dry run, and while it runs a bar on a terminal or plain lines elsewhere."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from experiments.engine.running.messages import duration, logger
from experiments.engine.running.provenance import commit
from experiments.engine.running.run import Run
from experiments.engine.running.store import State, lacking, read_report


@contextmanager
def progress(runs: Sequence[Run], states: Mapping[str, State], home: Path) -> Iterator[Callable[[Run], None]]:
    """Log which runs are already finished, and give a function to be called with each run that ends."""
    log_states(runs, states, home)
    missing = [run for run in runs if states[run.name] != "finished"]
    console = Console(stderr=True)
    shown = console.is_terminal and logger.isEnabledFor(logging.INFO)
    total, start = sum(run.work for run in missing), time.monotonic()
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    count, before = 0, len(runs) - len(missing)
    with Progress(*columns, console=console, disable=not shown) as bar:
        task = bar.add_task(f"{before}/{len(runs)} runs", total=total)

        def done(run: Run) -> None:
            nonlocal count
            count += 1
            bar.advance(task, run.work)
            seconds, worked = time.monotonic() - start, bar.tasks[0].completed
            rate = f"{60 * count / seconds:.1f} runs a minute"
            bar.update(task, description=f"{before + count}/{len(runs)} runs, {rate}")
            if not shown:
                left = duration(seconds * (total - worked) / worked)
                logger.info(f"[{before + count}/{len(runs)}] {run.name} ({seconds:.0f} s, {rate}, {left} left)")

        yield done


def log_states(runs: Sequence[Run], states: Mapping[str, State], home: Path) -> None:
    """Log which runs are finished, damaged, incomplete, or finished by another version of the code."""
    reports = {}
    for run in runs:
        if states[run.name] == "damaged":
            logger.warning(f"{run.name} is damaged: moved to {home.parent / 'damaged'} and rerun")
        elif states[run.name] == "incomplete":
            with suppress(OSError):  # another invocation may be replacing it
                missing = ", ".join(lacking(read_report(home / run.name), run))
                logger.warning(f"{run.name} lacks {missing}, which this script asks for now: it is rerun")
        elif states[run.name] == "finished":
            reports[run.name] = read_report(home / run.name)["commit"]
    if reports:
        logger.info(f"{len(reports)} of {len(runs)} runs are already finished")
    for name, version in reports.items():
        logger.debug(f"{name} is finished, by {version}")
    if others := sum(version != commit() for version in reports.values()):
        logger.warning(f"{others} of them by another version of the code (see their run.json): delete them to rerun")


def show_plan(runs: Sequence[Run], missing: Sequence[Run], home: Path, *, max_parallel: int, then: str) -> None:
    """Print a line for each run, and how long the missing ones may take."""
    console = Console(highlight=False, markup=False)
    for run in runs:
        console.print(f"{'to do' if run in missing else 'done '} {run.name}", soft_wrap=True)
    needed = f"; {estimate(missing, home, max_parallel)}" if missing else ""
    console.print(f"{len(missing)} of {len(runs)} runs to do{needed}", soft_wrap=True)
    if then and missing:
        console.print(f"then: {then}")


def estimate(missing: Sequence[Run], home: Path, max_parallel: int) -> str:
    """How long the runs may take, by the finished runs of their store that have the same pace."""
    seconds = seconds_by_pace(home)
    times = [run.work * seconds[run.pace] for run in missing if run.pace in seconds]
    if not times:
        return "their duration is unknown, since no finished run here is like them"
    unknown = len(missing) - len(times)
    total = duration(max(sum(times) / max_parallel, max(times)))
    return f"about {total} with {max_parallel} in parallel" + f", and {unknown} of unknown duration" * bool(unknown)


def seconds_by_pace(home: Path) -> dict[str, float]:
    """The mean seconds for a unit of work of a store's finished runs, by their pace."""
    sums: dict[str, list[float]] = {}
    for file in home.glob("[!.]*/run.json"):
        try:
            report = read_report(file.parent)
            pace, work, seconds = report["run"]["pace"], float(report["run"]["work"]), float(report["wall_seconds"])
        except (OSError, ValueError, TypeError, KeyError):  # damaged, or being replaced
            continue
        total = sums.setdefault(pace, [0.0, 0.0])
        total[0] += seconds
        total[1] += work
    return {pace: seconds / work for pace, (seconds, work) in sums.items()}
