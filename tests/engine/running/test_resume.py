"""A grid that is killed, that runs twice at once, whose files are damaged, or whose disk is full: nothing is lost."""

import errno
import json
import os
import random
import signal
import time
from pathlib import Path

import pandas as pd
import pytest

from experiments.engine.cell_folders import is_intact, set_aside, write_folder
from experiments.engine.claims import claim
from experiments.engine.command import BadInput
from experiments.engine.grid import Cell, run_grid
from experiments.engine.workers import Workers
from tests.grid_script import CELLS, NAMES, Life, Slow, alive, finished, ran, run_slowly, start, wait_until


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
    process = start(run_slowly, tmp_path, 0.5, at=Workers(2))
    wait_until(lambda: len(finished(tmp_path)) >= 3)
    workers = children(process.pid or 0)
    assert len(workers) >= 2
    process.kill()
    wait_until(lambda: not any(map(alive, workers)), seconds=10)
    done, before = finished(tmp_path), len(ran(tmp_path))
    assert len(done) < len(CELLS)
    run_slowly(tmp_path, 0)
    assert set(ran(tmp_path)[before:]) == NAMES - done
    assert (tmp_path / "outcomes.csv").read_bytes() == undisturbed


def test_ten_kills_at_random_moments_change_no_bit(tmp_path: Path, undisturbed: bytes) -> None:
    moments, done = random.Random(0), [0]
    while len(done) <= 10:
        process = start(run_slowly, tmp_path, 0.03, life=Life(moments.randint(1, 3), moments.uniform(0, 0.05)))
        process.join()
        assert process.exitcode == -signal.SIGKILL
        done.append(len(finished(tmp_path)))
    assert len(set(done)) > 3  # they were killed in the middle of the grid
    run_slowly(tmp_path, 0)
    assert finished(tmp_path) == {path.name for path in (tmp_path / "cells").iterdir()} == NAMES
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
    with claim(home, CELLS[3].name).acquire():
        (home.parent / "held").touch()
        time.sleep(60)


def test_a_held_cell_is_waited_for_and_its_claim_dies_with_its_holder(tmp_path: Path, undisturbed: bytes) -> None:
    holder = start(hold, tmp_path / "cells")
    wait_until((tmp_path / "held").exists)
    waiting = start(run_slowly, tmp_path, 0)
    wait_until(lambda: len(finished(tmp_path)) == len(CELLS) - 1)
    waiting.join(0.3)
    assert waiting.is_alive()
    assert CELLS[3].name not in ran(tmp_path)
    holder.kill()
    waiting.join(20)
    assert waiting.exitcode == 0
    assert (tmp_path / "outcomes.csv").read_bytes() == undisturbed


@pytest.mark.parametrize("damage", ["cut", "changed", "gone", "report", "no fingerprints, cut"])
def test_a_damaged_cell_is_set_aside_and_run_again(
    tmp_path: Path, undisturbed: bytes, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run_slowly(tmp_path, 0)
    cell = tmp_path / "cells" / CELLS[3].name
    text = (cell / "outcomes.csv").read_text()
    if damage == "gone":
        (cell / "outcomes.csv").unlink()
    elif damage == "report":
        (cell / "run.json").write_text("{")
    else:
        (cell / "outcomes.csv").write_text(text.replace("0", "1", 1) if damage == "changed" else text + '1,"')
    if damage.startswith("no"):
        forget_fingerprints(cell)
    run_slowly(tmp_path, 0)
    assert ran(tmp_path)[len(CELLS) :] == [CELLS[3].name]
    assert (tmp_path / "outcomes.csv").read_bytes() == undisturbed
    said = f"{CELLS[3].name} is damaged: it is set aside in {tmp_path / 'damaged'}, and run again\n"
    assert capsys.readouterr().err.count(said) == 1
    assert (tmp_path / "damaged" / f"{CELLS[3].name}-0").is_dir()


def forget_fingerprints(cell: Path) -> None:
    report = json.loads((cell / "run.json").read_text())
    del report["files"]
    (cell / "run.json").write_text(json.dumps(report))


def test_cells_of_an_older_version_are_read_and_another_version_is_told(
    tmp_path: Path, undisturbed: bytes, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_slowly(tmp_path, 0)
    for name in NAMES:
        forget_fingerprints(tmp_path / "cells" / name)
    capsys.readouterr()
    monkeypatch.setattr("experiments.engine.progress.commit", lambda: "another")
    run_slowly(tmp_path, 0)
    assert len(ran(tmp_path)) == len(CELLS)
    assert (tmp_path / "outcomes.csv").read_bytes() == undisturbed
    assert capsys.readouterr().err.startswith("24 of 24 cells are already done\n24 of them by another version")


def test_a_folder_of_another_experiment_is_refused(tmp_path: Path) -> None:
    run_slowly(tmp_path, 0)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(BadInput, match=r"cells: holds cells of toy, not of other; give another --out"):
        run_grid([Cell("other", "a", 8, 0, {})], Slow(0, tmp_path / "log"), tmp_path, workers=Workers(1))
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
    assert len(finished(tmp_path)) == len(list((tmp_path / "cells").iterdir())) == 5  # nothing half is left
    run_slowly(tmp_path, 0)
    assert len(ran(tmp_path)) == 6 + len(CELLS) - 5
    assert (tmp_path / "outcomes.csv").read_bytes() == undisturbed


def test_a_folder_appears_as_a_whole(tmp_path: Path) -> None:
    def write(folder: Path) -> dict[str, object]:
        assert not (tmp_path / "cell").exists()
        (folder / "table.csv").write_text("value\n1\n")
        return {"outcome": "finished"}

    (tmp_path / ".partial-cell").mkdir()  # of an attempt that was killed
    (tmp_path / ".partial-cell" / "old.csv").write_text("")
    write_folder(tmp_path / "cell", write)
    assert sorted(path.name for path in (tmp_path / "cell").iterdir()) == ["run.json", "table.csv"]
    assert is_intact(tmp_path / "cell")
    assert not is_intact(tmp_path / "none")
    (tmp_path / "cell" / "run.json").write_text("[]")
    assert not is_intact(tmp_path / "cell")


def test_damaged_folders_do_not_cover_each_other(tmp_path: Path) -> None:
    for content in ("first", "second"):
        (tmp_path / "cells" / "a").mkdir(parents=True)
        (tmp_path / "cells" / "a" / "x").write_text(content)
        set_aside(tmp_path / "cells" / "a")
    set_aside(tmp_path / "cells" / "a")  # there is none: nothing to do
    assert [(tmp_path / "damaged" / f"a-{n}" / "x").read_text() for n in (0, 1)] == ["first", "second"]
