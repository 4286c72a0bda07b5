"""A cell's folder on disk: complete or absent, and known to be as it was written."""

import hashlib
import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd

REPORT = "run.json"


def write_folder(folder: Path, write: Callable[[Path], dict[str, object]]) -> None:
    """Write a folder's files aside, then its report with their fingerprints, and let it appear as a whole.

    write: puts the files into the folder that it is given, and returns the report. What a killed attempt has left is
    taken away first: no other process may write the same folder meanwhile.
    """
    aside = folder.with_name(f".partial-{folder.name}")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir()
        report = write(aside)
        files = {file.name: fingerprint(file) for file in sorted(aside.iterdir())}
        (aside / REPORT).write_text(json.dumps({**report, "files": files}, indent=2, default=str) + "\n")
        aside.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def read_report(folder: Path) -> dict[str, Any]:
    """What a finished cell tells of itself."""
    return json.loads((folder / REPORT).read_text())


def is_intact(folder: Path) -> bool:
    """Whether a cell's folder is complete, and every file as it was written."""
    try:
        report = read_report(folder)
        if "files" in report:
            return all(fingerprint(folder / name) == value for name, value in dict(report["files"]).items())
        for table in folder.glob("*.csv"):  # an older version's, which kept no fingerprints
            pd.read_csv(table)
        return {"cell", "outcome", "commit"} <= set(report)
    except (OSError, ValueError, TypeError):
        return False


def owners(home: Path) -> set[str]:
    """The experiments whose cells lie in a store."""
    found = set()
    for folder in home.glob("[!.]*"):
        with suppress(OSError, ValueError, TypeError, KeyError):  # damaged ones belong to nobody
            found.add(read_report(folder)["cell"]["experiment"])
    return found


def set_aside(folder: Path) -> None:
    """Move a damaged folder, if it is there, to where nothing reads it."""
    damaged = folder.parent.parent / "damaged"
    if folder.exists():
        damaged.mkdir(exist_ok=True)
        folder.rename(next(place for n in range(10**6) if not (place := damaged / f"{folder.name}-{n}").exists()))


def fingerprint(file: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(file.read_bytes()).hexdigest()
