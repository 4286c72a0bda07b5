import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from experiments.engine.grid import Cell, Outcome, run_grid
from experiments.engine.workers import Workers


def cells(**settings: object) -> list[Cell]:
    return [
        Cell("toy", arm, depth, seed, {"rate": 1, **settings}) for arm in "ab" for depth in (8, 14) for seed in (0, 1)
    ]


def outcome(cell: Cell) -> Outcome:
    table = pd.DataFrame({"quantity": ["accuracy"], "value": [cell.depth + cell.seed / 10]})
    return Outcome({"outcomes": table}, diverged_at=7 if cell.arm == "b" and cell.seed else None)


class Failing:
    """Fails in one cell, and notes which cells ran."""

    def __init__(self, log: Path, fails: str = "") -> None:
        self.log, self.fails = log, fails

    def __call__(self, cell: Cell) -> Outcome:
        with self.log.open("a") as log:
            log.write(cell.name + "\n")
        if cell.name.startswith(self.fails or "-"):
            raise ArithmeticError("broken")
        return outcome(cell)


@pytest.mark.parametrize("workers", [1, 2])
def test_all_cells_are_joined_with_their_names(tmp_path: Path, workers: int) -> None:
    tables, diverged = run_grid(cells(), outcome, tmp_path, workers=Workers(workers))
    expected = [("toy", c.arm, c.depth, c.seed, "accuracy", c.depth + c.seed / 10) for c in cells()]
    assert list(tables["outcomes"].itertuples(index=False, name=None)) == expected
    assert [(cell.arm, cell.seed) for cell in diverged] == [("b", 1), ("b", 1)]
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "outcomes.csv"), tables["outcomes"])


def test_a_cell_says_where_its_numbers_come_from(tmp_path: Path) -> None:
    run_grid(cells()[:1], outcome, tmp_path, workers=Workers(1))
    report = json.loads((tmp_path / "cells" / cells()[0].name / "run.json").read_text())
    assert report["cell"] == {
        "experiment": "toy",
        "arm": "a",
        "depth": 8,
        "seed": 0,
        "settings": {"rate": 1},
        "about": {},
    }
    assert report["outcome"] == "finished"
    assert {"wall_seconds", "versions", "commit", "hardware"} < set(report)
    assert {"python", "torch"} < set(report["versions"])


def test_finished_cells_are_not_repeated_and_other_settings_are_other_cells(tmp_path: Path) -> None:
    log, home = tmp_path / "log", tmp_path / "results"
    run_grid(cells(), Failing(log), home, workers=Workers(1))
    assert len(log.read_text().split()) == 8
    run_grid([*cells(), replace(cells()[0], seed=5)], Failing(log), home, workers=Workers(1))
    assert log.read_text().split()[8:] == [replace(cells()[0], seed=5).name]
    run_grid(cells(rate=2), Failing(log), home, workers=Workers(1))
    assert len(log.read_text().split()) == 17
    assert len(list((home / "cells").iterdir())) == 17  # the first grid's results are still there


def test_a_cell_that_breaks_leaves_nothing_and_the_finished_ones_stay(tmp_path: Path) -> None:
    log, home = tmp_path / "log", tmp_path / "results"
    with pytest.raises(ArithmeticError):
        run_grid(cells(), Failing(log, fails="b-depth8-seed0"), home, workers=Workers(1))
    ran = log.read_text().split()
    assert sorted(path.name for path in (home / "cells").iterdir()) == sorted(ran[:-1])
    run_grid(cells(), Failing(log), home, workers=Workers(1))
    assert set(log.read_text().split()[len(ran) :]) == {cell.name for cell in cells()} - set(ran[:-1])


def test_a_folder_without_its_report_is_run_again(tmp_path: Path) -> None:
    half = tmp_path / "cells" / cells()[0].name
    half.mkdir(parents=True)
    (half / "outcomes.csv").write_text("value\n0\n")
    tables, _ = run_grid(cells()[:1], outcome, tmp_path, workers=Workers(1))
    assert tables["outcomes"]["value"].tolist() == [8.0]


def test_experiments_share_a_store_under_labels_of_their_own(tmp_path: Path) -> None:
    log, store = tmp_path / "log", tmp_path / "store"
    for folder, budget in (("first", 1), ("second", 3)):
        labelled = [replace(cell, labels={"budget": budget, "control": name}) for cell in cells() for name in "xy"]
        tables, _ = run_grid(labelled, Failing(log), tmp_path / folder, workers=Workers(1), store=store)
        assert tables["outcomes"]["budget"].tolist() == [budget] * 16
        assert tables["outcomes"]["control"].tolist() == ["x", "y"] * 8
    assert len(log.read_text().split()) == 8
    assert list((tmp_path / "first").iterdir()) == [tmp_path / "first" / "outcomes.csv"]
