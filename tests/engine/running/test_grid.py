"""A grid: what runs, what is joined, what is written and deleted."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from experiments.engine.running.grid import run_grid
from experiments.engine.running.output import Output
from experiments.engine.running.run import Outcome, Run, Tables, described
from experiments.engine.running.workers import Execution
from tests.support.grid_script import ONE, Toy


def runs(rate: float = 1, **changes: object) -> list[Run]:
    made = [Run("toy", arm, depth, seed, Toy(rate)) for arm in "ab" for depth in (8, 14) for seed in (0, 1)]
    return [replace(run, **changes) for run in made]  # type: ignore[arg-type]


def outcome(run: Run, checkpoint: Path) -> Outcome:
    table = pd.DataFrame({"quantity": ["accuracy"], "value": [run.depth + run.seed / 10]})
    return Outcome({"outcomes": table}, diverged_at=7 if run.arm == "b" and run.seed else None)


class Noting:
    """Notes which runs were run, and fails in one."""

    def __init__(self, log: Path, fails: str = "") -> None:
        self.log, self.fails = log, fails

    def __call__(self, run: Run, checkpoint: Path) -> Outcome:
        with self.log.open("a") as log:
            log.write(run.name + "\n")
        if run.name.startswith(self.fails or "-"):
            raise ArithmeticError("broken")
        return outcome(run, checkpoint)


@pytest.mark.parametrize("workers", [1, 2])
def test_all_runs_are_joined_with_their_names(tmp_path: Path, workers: int) -> None:
    tables, diverged = run_grid(runs(), outcome, Output(tmp_path), execution=Execution(workers))
    expected = [("toy", run.arm, run.depth, run.seed, "accuracy", run.depth + run.seed / 10) for run in runs()]
    assert list(tables["outcomes"].itertuples(index=False, name=None)) == expected
    assert [(run.arm, run.seed) for run in diverged] == [("b", 1), ("b", 1)]
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "outcomes.csv"), tables["outcomes"])


def test_a_report_says_where_numbers_come_from(tmp_path: Path) -> None:
    run_grid(runs(about={"title": "toys"})[:1], outcome, Output(tmp_path), execution=ONE)
    report = json.loads((tmp_path / "runs" / runs()[0].name / "run.json").read_text())
    assert report["run"] == {
        **{"experiment": "toy", "arm": "a", "depth": 8, "seed": 0, "work": 1.0, "pace": ""},
        **{"recipe": {"class": "Toy", "rate": 1, "device": "cpu"}, "outputs": [], "about": {"title": "toys"}},
    }
    assert report["outcome"] == "finished"
    assert {"wall_seconds", "versions", "commit", "hardware"} < set(report)
    assert {"python", "torch"} < set(report["versions"])


def test_a_name_follows_every_part_of_a_recipe_and_nothing_else() -> None:
    names = {run.name for run in runs()}
    assert names.isdisjoint(run.name for run in runs(rate=2))
    assert names == {run.name for run in runs(about={"title": "x"}, labels={"control": "x"}, outputs=("x",), work=3)}
    assert described({"a": (1, None, "x", [Toy()])}) == {
        "a": [1, None, "x", [{"class": "Toy", "rate": 1, "device": "cpu"}]]
    }
    with pytest.raises(TypeError, match="a recipe holds a ndarray: give dataclasses, mappings"):
        described(np.arange(1000))  # its text leaves numbers out


def test_finished_runs_are_not_repeated_and_another_recipe_is_another_run(tmp_path: Path) -> None:
    log, output = tmp_path / "log", Output(tmp_path / "results")
    run_grid(runs(), Noting(log), output, execution=ONE)
    assert len(log.read_text().split()) == 8
    further = replace(runs()[0], seed=5)
    run_grid([*runs(), further], Noting(log), output, execution=ONE)
    assert log.read_text().split()[8:] == [further.name]
    run_grid(runs(rate=2), Noting(log), output, execution=ONE)
    assert len(log.read_text().split()) == 17
    assert len(list((output.folder / "runs").iterdir())) == 17  # the first grid's results are still there


class Measuring:
    """Gives outcomes and the tables of these names."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def __call__(self, run: Run, checkpoint: Path) -> Outcome:
        given = outcome(run, checkpoint)
        given.tables |= dict.fromkeys(self.names, given.tables["outcomes"])
        return given


def measured(folder: Path, outputs: tuple[str, ...], *names: str) -> Tables:
    return run_grid(runs(outputs=outputs), Measuring(*names), Output(folder), execution=ONE)[0]


def test_a_finished_run_that_lacks_an_output_is_rerun_with_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measured(tmp_path, ("norms",), "norms")
    measured(tmp_path, ("norms",), "norms")
    assert "lacks" not in capsys.readouterr().err
    assert set(measured(tmp_path, ("norms", "paths"), "norms", "paths")) == {"outcomes", "norms", "paths"}
    shown = capsys.readouterr().err
    assert shown.count("lacks paths, which this script asks for now: it is rerun") == 8  # diverged ones, too
    assert set(measured(tmp_path, ("norms",), "norms")) == {"outcomes", "norms", "paths"}  # more does no harm
    assert "8 of 8 runs are already finished" in capsys.readouterr().err


def test_a_run_that_does_not_give_its_outputs_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"gave \['norms', 'outcomes'\], and not all of its outputs, \['paths'\]"):
        measured(tmp_path, ("paths",), "norms")
    assert not list((tmp_path / "runs").iterdir())


def test_a_column_that_no_table_has_is_an_error(tmp_path: Path) -> None:
    def task(run: Run, checkpoint: Path) -> Outcome:
        return Outcome({"norms": pd.DataFrame({"blok": [1], "value": [2.0]})})

    with pytest.raises(ValueError, match=r"unknown columns \['blok'\]: the tables' columns are"):
        run_grid(runs(), task, Output(tmp_path), execution=ONE)


def test_a_run_that_breaks_leaves_nothing_and_the_finished_ones_stay(tmp_path: Path) -> None:
    log, output = tmp_path / "log", Output(tmp_path / "results")
    with pytest.raises(ArithmeticError):
        run_grid(runs(), Noting(log, fails="b-depth8-seed0"), output, execution=ONE)
    ran = log.read_text().split()
    assert sorted(path.name for path in (output.folder / "runs").iterdir()) == sorted(ran[:-1])
    run_grid(runs(), Noting(log), output, execution=ONE)
    assert set(log.read_text().split()[len(ran) :]) == {run.name for run in runs()} - set(ran[:-1])


def test_a_folder_without_its_report_is_rerun(tmp_path: Path) -> None:
    half = tmp_path / "runs" / runs()[0].name
    half.mkdir(parents=True)
    (half / "outcomes.csv").write_text("value\n0\n")
    tables, _ = run_grid(runs()[:1], outcome, Output(tmp_path), execution=ONE)
    assert tables["outcomes"]["value"].tolist() == [8.0]


def test_experiments_share_a_store_under_labels_of_their_own(tmp_path: Path) -> None:
    log, store = tmp_path / "log", tmp_path / "store"
    for folder, budget in (("first", 1), ("second", 3)):
        labelled = [replace(run, labels={"budget": budget, "control": name}) for run in runs() for name in "xy"]
        tables, _ = run_grid(labelled, Noting(log), Output(tmp_path / folder), execution=ONE, store=store)
        assert tables["outcomes"]["budget"].tolist() == [budget] * 16
        assert tables["outcomes"]["control"].tolist() == ["x", "y"] * 8
    assert len(log.read_text().split()) == 8
    assert {path.name for path in (tmp_path / "first").iterdir()} == {"outcomes.csv", "written.json"}


@pytest.mark.parametrize("manifest", ["{oops", "3", "[1]", '["../mine.csv", "sub", "/etc/hostname"]'])
def test_a_manifest_that_was_damaged_deletes_nothing(tmp_path: Path, manifest: str) -> None:
    (tmp_path / "mine.csv").write_text("mine")
    (tmp_path / "out" / "sub").mkdir(parents=True)
    (tmp_path / "out" / "written.json").write_text(manifest)
    Output(tmp_path / "out").clear()
    assert (tmp_path / "mine.csv").exists()
    assert (tmp_path / "out" / "sub").is_dir()
    assert not (tmp_path / "out" / "written.json").exists()


def test_an_output_deletes_what_it_wrote_and_nothing_else(tmp_path: Path) -> None:
    table = pd.DataFrame({"value": [1]})
    first = Output(tmp_path)
    first.table("old", table)
    first.table("both", table)
    (tmp_path / "figures" / "mine").mkdir(parents=True)
    (tmp_path / "figures" / "old.png").write_text("")
    first.add([tmp_path / "figures" / "old.png"])
    for mine in (tmp_path / "notes.csv", tmp_path / "figures" / "mine.png"):
        mine.write_text("mine")
    second = Output(tmp_path)
    second.clear()
    second.table("both", table)
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")}
    assert left == {"both.csv", "written.json", "notes.csv", "figures", "figures/mine", "figures/mine.png"}
    assert second.files == [tmp_path / "both.csv"]
    Output(tmp_path, dry_run=True).clear()
    assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")} == left
