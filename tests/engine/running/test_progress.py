"""What a grid prints: the plan of a dry run, and progress."""

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from experiments.engine.running.grid import DryRun, run_grid
from experiments.engine.running.messages import duration, logger
from experiments.engine.running.output import Output
from experiments.engine.running.progress import estimate, progress
from experiments.engine.running.run import Run
from experiments.engine.running.store import State
from experiments.engine.running.workers import Execution
from tests.support.grid_script import ONE, RUNS, Slow, Toy, ran, run_slowly

DRY = Execution(1, dry_run=True)


def finish(home: Path, seconds: float, work: float, pace: str = "x") -> None:
    """A finished run's report, as far as an estimate reads it."""
    folder = home / f"run-{len(list(home.glob('*')))}"
    folder.mkdir(parents=True)
    report = {"run": {"work": work, "pace": pace}, "wall_seconds": seconds}
    (folder / "run.json").write_text(json.dumps(report))


def test_time_is_estimated_from_runs_of_the_same_pace(tmp_path: Path) -> None:
    missing = [Run("toy", "a", 20, seed, Toy(), work=40, pace="x") for seed in range(3)]
    assert estimate(missing, tmp_path, 2) == "their duration is unknown, since no finished run here is like them"
    finish(tmp_path, 30, work=20)
    finish(tmp_path, 10, work=20)  # together 1 second a layer and epoch
    finish(tmp_path, 10**6, work=20, pace="y")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "run.json").write_text("{")
    assert estimate(missing[:1], tmp_path, 2) == "about 40 s with 2 in parallel"  # one run is not divided
    assert estimate(missing, tmp_path, 2) == "about 60 s with 2 in parallel"
    longer, other = replace(missing[0], work=400), replace(missing[0], pace="z")
    assert estimate([longer, other], tmp_path, 1) == "about 7 min with 1 in parallel, and 1 of unknown duration"


def test_a_dry_run_prints_every_run_and_does_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task, output = Slow(0, tmp_path / "log"), Output(tmp_path, dry_run=True)
    run_grid(RUNS[:2], task, Output(tmp_path), execution=ONE)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    capsys.readouterr()
    with pytest.raises(DryRun):
        run_grid(RUNS, task, output, execution=DRY)
    shown = capsys.readouterr().out.splitlines()
    with pytest.raises(DryRun):
        run_grid(RUNS[:2], task, output, execution=DRY)
    tables, _ = run_grid(RUNS[:2], task, output, execution=DRY, then="more")
    with pytest.raises(DryRun):
        run_grid(RUNS[:3], task, output, execution=DRY, then="more")
    assert shown[:-1] == [f"{'done ' if run in RUNS[:2] else 'to do'} {run.name}" for run in RUNS]
    assert re.fullmatch("22 of 24 runs to do; about .* with 1 in parallel", shown[-1])
    assert len(tables["outcomes"]) == 200  # what follows is planned by the finished runs
    assert capsys.readouterr().out.endswith("\nthen: more\n")
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def all_missing(runs: list[Run]) -> dict[str, State]:
    return {run.name: "missing" for run in runs}


def test_plain_lines_where_there_is_no_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter((0, 60, 120, 180))
    monkeypatch.setattr("experiments.engine.running.progress.time", SimpleNamespace(monotonic=lambda: next(clock)))
    deep, *others = (replace(run, work=run.depth) for run in (RUNS[3], *RUNS[:2]))  # 14, 8 and 8 layers
    with progress([deep, *others], all_missing([deep, *others]), tmp_path) as done:
        for run in (deep, *others):
            done(run)
    assert capsys.readouterr().err.splitlines() == [
        f"[1/3] {deep.name} (60 s, 1.0 runs a minute, 69 s left)",
        f"[2/3] {others[0].name} (120 s, 1.0 runs a minute, 44 s left)",
        f"[3/3] {others[1].name} (180 s, 1.0 runs a minute, 0 s left)",
    ]


def test_a_bar_on_a_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes this for a terminal
    with progress(RUNS[:3], all_missing(RUNS[:3]), tmp_path) as done:
        for run in RUNS[:3]:
            done(run)
    shown = capsys.readouterr().err
    assert "3/3 runs, " in shown
    assert "━" in shown
    assert RUNS[0].name not in shown


@pytest.mark.parametrize(("level", "wanted"), [("DEBUG", (24, True, True)), ("WARNING", (0, False, True))])
def test_runs_of_another_version_are_kept_and_levels_choose_what_is_said_of_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, level: str, wanted: object
) -> None:
    run_slowly(tmp_path, 0)
    capsys.readouterr()
    monkeypatch.setattr("experiments.engine.running.progress.commit", lambda: "another")
    before = logger.level
    try:
        logger.setLevel(level)
        run_slowly(tmp_path, 0)
    finally:
        logger.setLevel(before)
    shown = capsys.readouterr().err
    assert len(ran(tmp_path)) == len(RUNS)
    assert (shown.count(" is finished, by "), "already finished" in shown, "another version" in shown) == wanted


def test_durations() -> None:
    assert [duration(seconds) for seconds in (0.4, 89, 300, 9000)] == ["0 s", "89 s", "5 min", "2.5 h"]
