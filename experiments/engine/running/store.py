"""A store of runs on disk: each run's folder is complete or absent, known to be as it was written, and written once."""

import hashlib
import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock

from experiments.engine.running.run import Run, described

REPORT = "run.json"
State = Literal["finished", "missing", "damaged", "incomplete"]


def write_folder(folder: Path, write: Callable[[Path], dict[str, object]]) -> None:
    """Write a folder's files aside, then its report with their fingerprints, and let it appear as a whole.

    write: puts the files into the folder that it is given, and returns the report. What a killed attempt left is
    deleted first, and what stood at `folder` is replaced: no other process may write the same folder meanwhile.
    """
    partial, replaced = (folder.with_name(f".{word}-{folder.name}") for word in ("partial", "replaced"))
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir()
        report = write(partial)
        files = {file.name: fingerprint(file) for file in sorted(partial.iterdir())}
        (partial / REPORT).write_text(json.dumps({**report, "files": files}, indent=2, default=str) + "\n")
        if folder.exists():
            shutil.rmtree(replaced, ignore_errors=True)
            folder.rename(replaced)
        partial.rename(folder)
        shutil.rmtree(replaced, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def read_report(folder: Path) -> dict[str, Any]:
    """The report of a finished run."""
    return json.loads((folder / REPORT).read_text())


def state_of(home: Path, run: Run) -> State:
    """Whether a run is in the store as it was written, with all that its script asks for."""
    folder = home / run.name
    try:
        if not folder.exists():
            return "missing"
        report = read_report(folder)
        same = report["run"]["recipe"] == described(run.recipe)  # names have eight digits of its hash
        intact = all(fingerprint(folder / name) == value for name, value in dict(report["files"]).items())
        return "damaged" if not (same and intact) else "incomplete" if lacking(report, run) else "finished"
    except (OSError, ValueError, TypeError, KeyError):
        return "damaged"


def lacking(report: dict[str, Any], run: Run) -> list[str]:
    """The outputs that a run must give now, and did not have to give when it was executed."""
    return sorted(set(run.outputs) - set(report["run"]["outputs"]))


def owners(home: Path) -> set[str]:
    """The experiments whose runs lie in a store."""
    found = set()
    for folder in home.glob("[!.]*"):
        with suppress(OSError, ValueError, TypeError, KeyError):  # damaged ones belong to nobody
            found.add(read_report(folder)["run"]["experiment"])
    return found


def move_to_damaged(folder: Path) -> Path:
    """Move a damaged run's folder into the folder of damaged ones, which is returned."""
    damaged = folder.parent.parent / "damaged"
    damaged.mkdir(exist_ok=True)
    folder.rename(next(place for n in range(10**6) if not (place := damaged / f"{folder.name}-{n}").exists()))
    return damaged


def lock(home: Path, name: str) -> FileLock:
    """The lock of a run, which dies with its holder; several invocations on one store share the work by it."""
    locks = home.parent / "locks"
    locks.mkdir(exist_ok=True)
    return FileLock(locks / f"{name}.lock")


def fingerprint(file: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(file.read_bytes()).hexdigest()
