"""Scripts of experiments/ as from a command line: in this process, which has torch loaded, or in one of their own."""

import pickle
import runpy
import subprocess
import sys
from collections.abc import Callable
from contextlib import chdir, redirect_stderr, redirect_stdout
from dataclasses import fields, replace
from io import StringIO
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from experiments.engine.running import grid
from experiments.engine.running.run import Run

ROOT = Path(__file__).parents[2]


def command(script: str, *arguments: object) -> list[str]:
    """Its runs are executed by two workers."""
    return [sys.executable, file_of(script), *map(str, arguments), "--workers", "2"]


def file_of(script: str) -> str:
    return str(ROOT / "experiments" / f"{script}.py")


def run_apart(script: str, *arguments: object, cwd: Path) -> CompletedProcess[str]:
    """In a process of its own. That and the two workers import torch anew: in most tests, most of the time."""
    return subprocess.run(command(script, *arguments), capture_output=True, text=True, cwd=cwd, timeout=300)


def run(script: str, *arguments: object, cwd: Path) -> CompletedProcess[str]:
    """The script's file as `__main__` in this process, where a warning is an error; its runs are executed here, too,
    each pickled and unpickled as on its way to a worker."""
    given = [file_of(script), *map(str, arguments), "--workers", "1"]
    status, out, err = 0, StringIO(), StringIO()
    with pytest.MonkeyPatch.context() as patch, chdir(cwd), redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", given)
        patch.setattr(grid, "execute", travelled(grid.execute))
        try:
            runpy.run_path(given[0], run_name="__main__")
        except SystemExit as end:
            status = int(end.code or 0)
    return CompletedProcess(given, status, out.getvalue(), err.getvalue())


def toy_run(script: str, *arguments: object, cwd: Path) -> tuple[Path, str]:
    """Of a run that ends well: its folder, and what it printed."""
    done = run(script, *arguments, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return cwd / "results" / script, done.stdout


def drawn(folder: Path) -> set[str]:
    """The figures that a script has written: each a PDF and a PNG beside its caption and the CSV of what was drawn."""
    files = {file.name for file in (folder / "figures").iterdir()}
    names = {name.partition(".")[0] for name in files}
    assert files == {f"{name}.{ending}" for name in names for ending in ("csv", "pdf", "png", "txt")}
    assert all((folder / "figures" / f"{name}.txt").read_text().endswith(".\n") for name in names)
    return names


def each_field_counts(run: Run, do: Callable[[Run], object], changes: dict[str, object]) -> None:
    """Each field of the run's treatment, changed, changes the run's name and what it does."""
    treatment, usual = run.recipe.treatment, do(run)
    assert set(changes) == {field.name for field in fields(treatment)}
    for name, value in changes.items():
        other = replace(run, recipe=replace(run.recipe, treatment=replace(treatment, **{name: value})))
        assert other.name != run.name
        assert do(other) != usual, name


def travelled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function of arguments that went through a pickle, and its result likewise."""

    def through_a_pickle(*arguments: Any, **options: Any) -> Any:
        return again(function(*again(arguments), **again(options)))

    return through_a_pickle


def again(thing: Any) -> Any:
    return pickle.loads(pickle.dumps(thing))


def print_of(script: str, arguments: list[str], capsys: pytest.CaptureFixture[str], *, status: int) -> str:
    """What a script prints before it exits with that status, run in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [script, *arguments])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(file_of(script), run_name="__main__")
    assert (end.value.code or 0) == status
    captured = capsys.readouterr()
    return captured.out + captured.err
