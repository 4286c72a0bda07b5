"""What is told of a grid: the plan of a dry run, and progress."""

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from experiments.engine.command import DRY_RUN, Planned
from experiments.engine.grid import Cell, run_grid
from experiments.engine.plan import estimate
from experiments.engine.progress import duration, logger, progress
from experiments.engine.workers import Workers
from tests.grid_script import CELLS, Slow, run_slowly

LIKE = {"network": "resnet", "width": 8, "data": "x", "device": "cpu", "batch_size": 128, "epochs": 2}


def finish(home: Path, seconds: float, *, depth: int, seed: int = 0, **settings: object) -> None:
    """A finished cell's report, as far as an estimate reads it."""
    folder = home / f"{depth}-{seed}-{len(list(home.glob('*')))}"
    folder.mkdir(parents=True)
    cell = {"depth": depth, "settings": LIKE | settings}
    (folder / "run.json").write_text(str({"cell": cell, "wall_seconds": seconds}).replace("'", '"'))


def test_time_is_estimated_from_cells_that_are_like_the_missing_ones(tmp_path: Path) -> None:
    missing = [Cell("toy", "a", 20, seed, {**LIKE, "learning_rate": 1}) for seed in range(3)]
    assert estimate(missing, tmp_path, 2) == "how long is not known, since no finished cell here is like them"
    finish(tmp_path, 30, depth=10)
    finish(tmp_path, 10, depth=20, epochs=1)  # together 1 second a layer and epoch
    finish(tmp_path, 10**6, depth=10, width=16)
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "run.json").write_text("{")
    assert estimate(missing[:1], tmp_path, 2) == "about 40 s with 2 at once"  # one cell is not divided
    assert estimate(missing, tmp_path, 2) == "about 60 s with 2 at once"
    longer = replace(missing[0], settings=LIKE | {"epochs": 20})
    other = replace(missing[0], settings=LIKE | {"network": "mlp"})
    assert estimate([longer, other], tmp_path, 1) == "about 7 min with 1 at once, and 1 of which nothing is known"


def test_a_dry_run_tells_every_cell_and_does_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_grid(CELLS[:2], Slow(0, tmp_path / "log"), tmp_path, workers=Workers(1))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    dry = DRY_RUN.set(True)
    try:
        with pytest.raises(Planned):
            run_slowly(tmp_path, 0)
        shown = capsys.readouterr().out.splitlines()
        with pytest.raises(Planned):
            run_grid(CELLS[:2], Slow(0, tmp_path / "log"), tmp_path, workers=Workers(1))
        tables, _ = run_grid(CELLS[:2], Slow(0, tmp_path / "log"), tmp_path, workers=Workers(1), then="more")
        with pytest.raises(Planned):
            run_grid(CELLS[:3], Slow(0, tmp_path / "log"), tmp_path, workers=Workers(1), then="more")
    finally:
        DRY_RUN.reset(dry)
    assert shown[:-1] == [f"{'done ' if cell in CELLS[:2] else 'to do'} {cell.name}" for cell in CELLS]
    assert re.fullmatch("22 of 24 cells to do; about .* with 1 at once", shown[-1])
    assert len(tables["outcomes"]) == 200  # what follows is planned by the finished cells
    assert capsys.readouterr().out.endswith("\nthen: more\n")
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_plain_lines_where_there_is_no_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter((0, 60, 120, 180))
    monkeypatch.setattr("experiments.engine.progress.time", SimpleNamespace(monotonic=lambda: next(clock)))
    deep, *others = CELLS[3], *CELLS[:2]  # 14, 8 and 8 layers
    with progress([deep, *others], [deep, *others], tmp_path) as done:
        for cell in (deep, *others):
            done(cell)
    assert capsys.readouterr().err.splitlines() == [
        f"[1/3] {deep.name} (60 s, 1.0 cells a minute, 69 s left)",
        f"[2/3] {others[0].name} (120 s, 1.0 cells a minute, 44 s left)",
        f"[3/3] {others[1].name} (180 s, 1.0 cells a minute, 0 s left)",
    ]


def test_a_bar_on_a_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes this for a terminal
    with progress(CELLS[:3], CELLS[:3], tmp_path) as done:
        for cell in CELLS[:3]:
            done(cell)
    shown = capsys.readouterr().err
    assert "3/3 cells, " in shown
    assert "━" in shown
    assert CELLS[0].name not in shown


@pytest.mark.parametrize(("level", "told"), [("DEBUG", (24, True, True)), ("WARNING", (0, False, True))])
def test_levels(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    level: str,
    told: tuple[int, bool, bool],
) -> None:
    run_slowly(tmp_path, 0)
    capsys.readouterr()
    monkeypatch.setattr("experiments.engine.progress.commit", lambda: "another")
    before = logger.level
    try:
        logger.setLevel(level)
        run_slowly(tmp_path, 0)
    finally:
        logger.setLevel(before)
    shown = capsys.readouterr().err
    assert (shown.count(" is done, by "), "already done" in shown, "another version" in shown) == told


def test_durations() -> None:
    assert [duration(seconds) for seconds in (0.4, 89, 300, 9000)] == ["0 s", "89 s", "5 min", "2.5 h"]
