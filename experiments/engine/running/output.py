"""An experiment's folder: its joined tables, its figures, and the grids of runs that they come from."""

import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd

from experiments.engine.running.messages import BadInput, logger
from experiments.engine.running.run import Run

MANIFEST = "written.json"


@dataclass
class Grid:
    """The runs of a grid, and which of them have ended."""

    folder: Path
    """Where its joined tables go."""
    home: Path
    """The store of its runs."""
    runs: Sequence[Run]
    """One of each name."""
    before: frozenset[str]
    """The names of those that had ended when it began."""
    ended: set[str]
    """The names of those that have by now."""
    begun: float = field(default_factory=time.monotonic)
    """When, by the clock of that name."""


class Output:
    """A folder of tables and figures that knows which files it wrote, and deletes no others.

    folder: created, with a test that it can be written; BadInput where it cannot. settings: the script's, whose module
    asks the question. dry_run: touch nothing.
    """

    def __init__(self, folder: Path, *, settings: object = None, dry_run: bool = False) -> None:
        self.folder, self.settings, self.dry_run = folder, settings, dry_run
        self.files: list[Path] = []
        """What was written since the last `clear`."""
        self.grids: list[Grid] = []
        """Those whose tables went here or to a folder below, in the order in which they began."""
        self.watch: Callable[[], None] | None = None
        """Called when a run of these grids has ended, and when all have."""
        if not dry_run:
            make_folder(folder)

    def below(self, *names: str) -> "Output":
        """A folder in this one, whose grids are this one's, too; it is made when something is written to it."""
        inner = copy(self)
        inner.folder, inner.files = self.folder.joinpath(*names), []
        return inner

    def begin(self, home: Path, runs: Sequence[Run], ended: Iterable[str]) -> Callable[[Run], None]:
        """Note a grid that begins, and give a function to be called with each run that ends."""
        self.grids.append(grid := Grid(self.folder, home, runs, before := frozenset(ended), set(before)))

        def end(run: Run) -> None:
            grid.ended.add(run.name)
            self.changed()

        return end

    def changed(self) -> None:
        """Tell whoever watches that there is something new."""
        if self.watch is not None:
            self.watch()

    def clear(self) -> None:
        """Delete the files that an earlier call wrote, with other settings perhaps, and no others."""
        self.files = []
        if self.dry_run:
            return
        for file in self._listed():
            file.unlink(missing_ok=True)  # another invocation may have deleted it already
        (self.folder / MANIFEST).unlink(missing_ok=True)

    def _listed(self) -> list[Path]:
        """The files of the manifest that lie in the folder; none, with a warning, where it is damaged."""
        try:
            names = json.loads((self.folder / MANIFEST).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return []
        except ValueError:
            names = None
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            logger.warning(f"{self.folder / MANIFEST} is damaged: files of an earlier call stay")
            return []
        home, files = self.folder.resolve(), [self.folder / name for name in names]
        return [file for file in files if file.parent.resolve().is_relative_to(home) and not file.is_dir()]

    def table(self, name: str, table: pd.DataFrame) -> None:
        """Write NAME.csv."""
        if not self.dry_run:
            self.add([self.folder / f"{name}.csv"])  # before it is written: a killed call leaves nothing unlisted
            write_text(self.folder / f"{name}.csv", table.to_csv(index=False))

    def add(self, files: Iterable[Path]) -> None:
        """Note files that are written below the folder."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.files += [file for file in files if file not in self.files]
        names = [file.relative_to(self.folder).as_posix() for file in self.files]
        write_text(self.folder / MANIFEST, json.dumps(names, indent=1) + "\n")


def write_text(file: Path, text: str) -> None:
    """Write a file so that it is the old one or the new one, never half."""
    partial = file.with_suffix(f".partial-{os.getpid()}")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


def make_folder(folder: Path) -> Path:
    """Create an output folder and see that it can be written; BadInput where it cannot, with nothing left behind."""
    missing = None
    try:
        missing = next((path for path in reversed([folder, *folder.parents]) if not path.exists()), None)
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder):
            pass
    except OSError as error:
        if missing:
            with suppress(OSError):
                missing.rmdir()
        raise BadInput(f"--out {folder}: cannot be written ({error.strerror}); choose another folder") from None
    return folder
