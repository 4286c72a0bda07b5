"""A grid that is killed, that runs twice at once, whose files are damaged, or whose disk is full: nothing is lost."""

import errno
import os
import random
import signal
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from experiments.engine.running.grid import run_grid
from experiments.engine.running.messages import BadInput
from experiments.engine.running.output import Output
from experiments.engine.running.run import Run, described
from experiments.engine.running.store import lock, move_to_damaged, state_of, write_folder
from experiments.engine.running.workers import Execution
from tests.support.grid_script import (
    NAMES,
    ONE,
    RUNS,
    Life,
    Slow,
    Toy,
    alive,
    finished,
    ran,
    run_slowly,
    start,
    wait_until,
)


def children(pid: int) -> set[int]:
    """The workers of a process, zombies left out."""
    found = set()
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = file.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if state != "Z" and int(parent) == pid:
            found.add(int(file.parent.name))
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("undisturbed")
    run_slowly(folder, 0)
    return (folder / "outcomes.csv").read_bytes()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked up in /proc")
def test_workers_end_with_a_killed_parent_and_the_same_command_goes_on(tmp_path: Path, undisturbed: bytes) -> None:
    process = start(run_slowly, tmp_path, 0.5, execution=Execution(2))
    wait_until(lambda: len(finished(tmp_path)) >= 3)
    workers = children(process.pid or 0)
    assert len(workers) >= 2
    process.kill()
    wait_until(lambda: not any(map(alive, workers)), seconds=10)
    done, before = finished(tmp_path), len(ran(tmp_path))
    assert len(done) < len(RUNS)
    run_slowly(tmp_path, 0)
    assert set(ran(tmp_path)[before:]) == NAMES - done
    assert (tmp_path / "outcomes.csv").read_bytes() == undisturbed


@pytest.mark.slow
def test_ten_kills_at_random_moments_change_no_bit(tmp_path: Path, undisturbed: bytes) -> None:
    moments, done = random.Random(0), [0]
    while len(done) <= 10:
        process = start(run_slowly, tmp_path, 0.03, life=Life(moments.randint(1, 3), moments.uniform(0, 0.05)))
        process.join()
        assert process.exitcode == -signal.SIGKILL
        done.append(len(finished(tmp_path)))
    assert len(set(done)) > 3  # they were killed in the middle of the grid
    run_slowly(tmp_path, 0)
    assert finished(tmp_path) == {path.name for path in (tmp_path / "runs").iterdir()} == NAMES
    assert (tmp_path / "outcomes.csv").read_bytes() == undisturbed


def test_two_invocations_share_the_work(tmp_path: Path, undisturbed: bytes) -> None:
    both = [start(run_slowly, tmp_path, 0.05) for _ in range(2)]
    for process in both:
        process.join(60)
    assert [process.exitcode for process in both] == [0, 0]
    assert sorted(ran(tmp_path)) == sorted(NAMES)  # each cell once
    assert len(set((tmp_path / "log").read_text().split())) == len(NAMES) + 2  # by the two of them
    assert (tmp_path / "outcomes.csv").read_bytes() == undisturbed


def hold(home: Path) -> None:
    home.mkdir()
    with lock(home, RUNS[3].name).acquire():
        (home.parent / "held").touch()
        time.sleep(60)


def test_a_held_run_is_waited_for_and_its_lock_dies_with_its_holder(tmp_path: Path, undisturbed: bytes) -> None:
    holder = start(hold, tmp_path / "runs")
    wait_until((tmp_path / "held").exists)
    waiting = start(run_slowly, tmp_path, 0)
    wait_until(lambda: len(finished(tmp_path)) == len(RUNS) - 1)
    waiting.join(0.3)
    assert waiting.is_alive()
    assert RUNS[3].name not in ran(tmp_path)
    holder.kill()
    waiting.join(20)
    assert waiting.exitcode == 0
    assert (tmp_path / "outcomes.csv").read_bytes() == undisturbed


@pytest.mark.parametrize("damage", ["cut", "changed", "gone", "report"])
def test_a_damaged_run_is_moved_away_and_rerun(
    tmp_path: Path, undisturbed: bytes, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run_slowly(tmp_path, 0)
    folder = tmp_path / "runs" / RUNS[3].name
    text = (folder / "outcomes.csv").read_text()
    if damage == "gone":
        (folder / "outcomes.csv").unlink()
    elif damage == "report":
        (folder / "run.json").write_text("{")
    else:
        (folder / "outcomes.csv").write_text(text.replace("0", "1", 1) if damage == "changed" else text + '1,"')
    run_slowly(tmp_path, 0)
    assert ran(tmp_path)[len(RUNS) :] == [RUNS[3].name]
    assert (tmp_path / "outcomes.csv").read_bytes() == undisturbed
    warning = f"{RUNS[3].name} is damaged: moved to {tmp_path / 'damaged'} and rerun\n"
    assert capsys.readouterr().err.count(warning) == 1
    assert (tmp_path / "damaged" / f"{RUNS[3].name}-0").is_dir()


def test_a_folder_of_another_experiment_is_refused(tmp_path: Path) -> None:
    run_slowly(tmp_path, 0)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(BadInput, match=r"runs: holds runs of toy, not of other; give another --out"):
        run_grid([Run("other", "a", 8, 0, Toy())], Slow(0, tmp_path / "log"), Output(tmp_path), execution=ONE)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_full_disk_loses_nothing_that_is_finished(
    tmp_path: Path, undisturbed: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, original = [], pd.DataFrame.to_csv

    def full(self: pd.DataFrame, file: Path, **options: object) -> None:
        written.append(file)
        if len(written) > 5:
            Path(file).write_text("half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(self, file, **options)  # type: ignore[call-overload]

    with monkeypatch.context() as patch:
        patch.setattr(pd.DataFrame, "to_csv", full)
        with pytest.raises(OSError, match="No space left"):
            run_slowly(tmp_path, 0)
    assert len(finished(tmp_path)) == len(list((tmp_path / "runs").iterdir())) == 5  # nothing half is left
    run_slowly(tmp_path, 0)
    assert len(ran(tmp_path)) == 6 + len(RUNS) - 5
    assert (tmp_path / "outcomes.csv").read_bytes() == undisturbed


def test_a_folder_appears_as_a_whole(tmp_path: Path) -> None:
    home, (run, *_) = tmp_path / "runs", RUNS
    home.mkdir()

    def write(folder: Path) -> dict[str, object]:
        assert not (home / run.name).exists()
        (folder / "table.csv").write_text("value\n1\n")
        return {"outcome": "finished", "run": {"outputs": [], "recipe": described(run.recipe)}}

    assert state_of(home, run) == "missing"
    (home / f".partial-{run.name}").mkdir()  # of an attempt that was killed
    (home / f".partial-{run.name}" / "old.csv").write_text("")
    write_folder(home / run.name, write)
    assert sorted(path.name for path in (home / run.name).iterdir()) == ["run.json", "table.csv"]
    assert [path.name for path in home.iterdir()] == [run.name]
    assert state_of(home, run) == "finished"
    assert state_of(home, replace(run, outputs=("paths",))) == "incomplete"
    other = replace(run, recipe=Toy(2))
    assert state_of(home, other) == "missing"
    (home / run.name).rename(home / other.name)  # as if two recipes had one hash
    assert state_of(home, other) == "damaged"
    (home / other.name).rename(home / run.name)
    (home / run.name / "run.json").write_text("[]")
    assert state_of(home, run) == "damaged"


def test_damaged_folders_do_not_cover_each_other(tmp_path: Path) -> None:
    for content in ("first", "second"):
        (tmp_path / "runs" / "a").mkdir(parents=True)
        (tmp_path / "runs" / "a" / "x").write_text(content)
        move_to_damaged(tmp_path / "runs" / "a")
    assert [(tmp_path / "damaged" / f"a-{n}" / "x").read_text() for n in (0, 1)] == ["first", "second"]
