"""Training on short paths: what the script writes at toy size, its two ends, and what its sentence may say."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from experiments.engine.cells import train_cell
from experiments.engine.command import BadInput
from experiments.engine.data import Data, Dataset, load
from experiments.engine.effects import Estimate
from experiments.engine.grid import Cell
from experiments.engine.recovery import Comparison, compare, first_of_all, judge, sentence
from experiments.engine.training import Training
from experiments.engine.workers import Workers
from experiments.short_paths import Settings, main, make_cells, train_limited
from tests.scripts import print_of

TRAINING = Training(epochs=2, batch_size=64)
DATA = Data(train_limit=128)


def settings(out: Path, **changes: Any) -> Settings:
    given: dict[str, Any] = {"depth": 8, "at_most": (0, 1, 99), "seeds": (0, 1), "width": 2, "workers": Workers(1)}
    return Settings(**(given | {"training": TRAINING, "data": DATA, "out": out} | changes))


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return load(DATA)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    main(settings(folder))
    return folder / "short_paths"


def of_arm(table: pd.DataFrame, arm: str) -> "pd.Series[float]":
    keys = [key for key in ("seed", "epoch", "split", "quantity") if key in table]
    return table[table["arm"] == arm].set_index(keys)["value"].sort_index()


def test_tables_cells_and_figure_tell_the_limit(toy: Path) -> None:
    outcomes = pd.read_csv(toy / "outcomes.csv")
    lengths = outcomes.groupby("arm")["path_length"].unique().explode().to_dict()
    assert lengths == {
        "at-most-0": 0, "at-most-1": 1, "sampled-1": 1, "residual": 3, "stop-gradient": 3, "plain": 3,
    }  # fmt: skip
    assert len(outcomes) == 6 * 2 * 3 * 2  # arms, seeds, splits, loss and accuracy
    cells = {path.parent.name: json.loads(path.read_text())["cell"] for path in toy.glob("cells/*/run.json")}
    assert len(cells) == 12
    (limited,) = [cell for name, cell in cells.items() if name.startswith("at-most-1-depth8-seed1-")]
    assert limited["settings"]["at_most"] == 1
    assert {path.name for path in (toy / "figures").iterdir()} == {
        f"{name}.{ending}" for name in ("short_paths", "short_path_changes") for ending in ("csv", "pdf", "png")
    }
    changes = pd.read_csv(toy / "changes.csv")
    assert set(changes["arm"]) == {"at-most-0", "at-most-1", "sampled-1"}
    assert (changes[changes["quantity"] == "n"]["value"] == 2).all()


def test_a_second_call_repeats_no_cell_and_says_the_same(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in toy.glob("cells/*/*")}
    main(settings(toy.parent))
    shown = capsys.readouterr()
    assert "12 of 12 cells are already done" in shown.err
    assert {path: path.stat().st_mtime_ns for path in toy.glob("cells/*/*")} == before
    assert "fewer than three seeds decide nothing" in " ".join(shown.out.split())
    assert "undecided at K = 0, 1" in " ".join(shown.out.split())


def test_the_two_ends_are_arms_of_the_main_experiment(toy: Path, dataset: Dataset) -> None:
    """K = 0 is shortest-path and all paths are residual, to the last bit: the same gradients, the same batches."""
    tables = {name: pd.read_csv(toy / f"{name}.csv") for name in ("curves", "outcomes")}
    for seed in (0, 1):
        for arm, twin in (("at-most-0", "shortest-path"), ("residual", "residual")):
            cell = Cell("main", twin, 8, seed, {"network": "resnet", "width": 2, "device": "cpu"})
            ordinary = train_cell(cell, dataset, TRAINING)
            for name, table in tables.items():
                here = of_arm(table[table["seed"] == seed].drop(columns="seed"), arm)
                there = of_arm(ordinary.tables[name].assign(arm=arm), arm)
                pd.testing.assert_series_equal(here, there, check_exact=True)


@pytest.mark.parametrize(
    ("limit", "same"),
    [({"at_most": 3}, True), ({"sampled": 3}, True), ({"at_most": 2}, False), ({"exactly": 2}, False)],
)
def test_a_limit_that_admits_every_path_changes_nothing(dataset: Dataset, limit: dict[str, int], same: bool) -> None:
    recipe: dict[str, object] = {"network": "resnet", "width": 2, "device": "cpu"}
    limited, ordinary = (
        train_limited(Cell("toy", arm, 8, 0, {**recipe, **more}), dataset, settings(Path())).tables["curves"]["value"]
        for arm, more in (("limited", limit), ("residual", {}))
    )
    assert limited.equals(ordinary) == same


def test_branches_are_drawn_anew_but_alike_for_a_seed(dataset: Dataset) -> None:
    def losses(seed: int, **limit: int) -> list[float]:
        cell = Cell("toy", "sampled", 8, seed, {"network": "resnet", "width": 2, "device": "cpu", **limit})
        return train_limited(cell, dataset, settings(Path())).tables["curves"]["value"].tolist()

    assert losses(0, sampled=1) == losses(0, sampled=1)
    assert losses(0, sampled=1) != losses(0, at_most=1)


def test_limits_beyond_the_blocks_are_the_residual_arm(dataset: Dataset) -> None:
    cells = make_cells(settings(Path(), depth=20, at_most=(3, 9, 50), exactly=(2,), at_least=(9,)), dataset)
    assert list(dict.fromkeys(cell.arm for cell in cells)) == [
        "at-most-3", "at-least-9", "exactly-2", "sampled-4", "residual", "stop-gradient", "plain",
    ]  # fmt: skip
    assert len({cell.name for cell in cells}) == len(cells) == 14
    assert [Settings(depth=depth).blocks for depth in (8, 20, 56, 110)] == [3, 9, 27, 54]
    assert Settings(depth=110).limits()[-1] == ("sampled", 23)  # Veit et al.'s own


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth": 21}, "--depth 21: depth 21 is not 6n"),
        ({"at_most": ()}, "--at-most: got none; give one or more"),
        ({"at_most": (1, 1)}, "--at-most: got 1 1; give one or more, each once"),
        ({"at_most": (2, -1)}, "--at-most -1: give numbers from 0; from 3 on, nothing is limited"),
        ({"exactly": (4,)}, "--exactly 4: depth 8 has 3 blocks; give 0 to 3"),
        ({"at_least": (0,)}, "--at-least 0: depth 8 has 3 blocks; give 1 to 3"),
        ({"sampled": (1, 12)}, "--sampled 12: depth 8 has 3 blocks; give 0 to 3"),
        ({"seeds": (0, 0)}, "--seeds: got 0 0"),
    ],
)
def test_a_users_mistake_writes_nothing(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message.replace("+", r"\+")):
        main(settings(tmp_path, **changes))
    assert not list(tmp_path.iterdir())


def test_flags_reach_the_settings(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--quick", "--at-most", "0", "4", "--sampled", "10"]
    shown = print_of("short_paths", arguments, capsys, status=2)
    assert shown == "error: --sampled 10: depth 20 has 9 blocks; give 0 to 9\n"


# Verdicts


def cells(**changes: list[tuple[float, float]]) -> pd.DataFrame:
    """Residual at log loss -4 and accuracy 0.95 for three seeds, and arms that differ from it by so much."""
    arms = {"residual": [(0.0, 0.0)] * 3} | changes
    rows = [
        {"arm": arm, "seed": seed, "log train loss": -4 + loss, "test accuracy": 0.95 + accuracy}
        for arm, seeds in arms.items()
        for seed, (loss, accuracy) in enumerate(seeds)
    ]
    return pd.DataFrame(rows).assign(depth_total=8)


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ([(0.1, -0.01)] * 3, "recovered"),
        ([(-1.0, 0.02)] * 3, "recovered"),  # better is not worse
        ([(0.1, -0.03)] * 3, "falls short"),
        ([(0.8, 0.0)] * 3, "falls short"),  # a loss more than doubled
        ([(0.0, 0.01), (0.0, -0.01), (0.0, -0.03)], "undecided"),
        ([(0.1, -0.01)] * 2, "falls short"),  # the third seed diverged
        ([(0.1, -0.01)] * 2 + [(math.inf, -0.01)], "falls short"),
    ],
)
def test_verdicts(change: list[tuple[float, float]], verdict: str) -> None:
    assert compare(cells(arm=change), "arm", 3).verdict == verdict


def test_two_seeds_decide_nothing_and_no_ordinary_training_neither() -> None:
    table = cells(arm=[(0.0, 0.0)] * 3)
    assert compare(table[table["seed"] < 2], "arm", 3).verdict == "undecided"
    assert compare(table[table["arm"] == "arm"], "arm", 3).verdict == "undecided"
    assert judge(Estimate((0.0,), 0.0, math.nan, math.nan), "test accuracy") == "undecided"


def test_the_interval_is_the_paired_t_interval() -> None:
    found = compare(cells(arm=[(0.0, -0.01), (0.0, -0.02), (0.0, -0.03)]), "arm", 3).changes["test accuracy"]
    half = 4.302653 * 0.01 / np.sqrt(3)
    assert (found.mean, found.low, found.high) == pytest.approx((-0.02, -0.02 - half, -0.02 + half), abs=1e-6)


def test_recovered_means_from_there_on() -> None:
    assert first_of_all([0, 1, 2, 3], [False, True, False, True]) == 3
    assert first_of_all([3, 1, 2], [True, False, True]) == 2
    assert first_of_all([1, 2], [True, False]) is None


def test_the_sentence_names_what_is_decided_and_what_is_not() -> None:
    def found(limit: int, change: list[tuple[float, float]]) -> Comparison:
        return compare(cells(arm=change), "arm", limit)

    wide = [(0.0, 0.01), (0.0, -0.01), (0.0, -0.03)]
    comparisons = [found(8, [(0.0, 0.0)] * 3), found(4, [(0.1, -0.01)] * 3), found(2, wide), found(0, [(2, -0.2)] * 3)]
    assert sentence(comparisons, title="digits", depth=56, blocks=27) == (
        "digits, depth 56 (27 blocks), n = 3: ordinary training is recovered from K = 4 on; undecided at K = 2; "
        "falls short at K = 0; the mean changes stay within the margins from K = 2 on. One data set, one learning "
        "rate, one budget."
    )
    assert "no K tested below 27 is shown to recover" in sentence(comparisons[3:], title="d", depth=56, blocks=27)
