"""Training on short paths: what the script writes at toy size, its two ends, and what it concludes."""

import json
from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from experiments.engine.running.run import Run
from experiments.engine.running.workers import Execution
from experiments.engine.statistics.equivalence import Comparison
from experiments.engine.statistics.estimates import Estimate
from experiments.engine.training.data import Data, Dataset, load
from experiments.engine.training.optimisation import Training
from experiments.engine.training.train_run import train_run
from experiments.short_paths import Limit, Settings, conclusion, main, make_runs, train_limited
from tests.support.scripts import drawn, each_field_counts

DATA = Data(train_limit=128)


def settings(out: Path = Path(), **changes: Any) -> Settings:
    given: dict[str, Any] = {"depth": 8, "at_most": (0, 1, 99), "seeds": (0, 1), "width": 2}
    training, execution = Training(epochs=2, batch_size=64), Execution(1)
    return Settings(**(given | {"training": training, "data": DATA, "out": out, "execution": execution} | changes))


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return load(DATA)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    main(settings(folder))
    return folder / "short_paths"


def run_of(limit: Limit | None, dataset: Dataset, *, arm: str = "", seed: int = 0) -> Run:
    arms = (arm or (limit.arm if limit else "residual"),)
    (run,) = settings().runs("toy", dataset, arms=arms, depths=(8,), seeds=(seed,), treatment=limit)
    return run


def losses(limit: Limit | None, dataset: Dataset, *, seed: int = 0) -> list[float]:
    return train_limited(run_of(limit, dataset, seed=seed), dataset=dataset).tables["losses"]["value"].tolist()


def test_tables_runs_and_figures_name_the_limit(toy: Path) -> None:
    outcomes = pd.read_csv(toy / "outcomes.csv")
    limits = outcomes[["arm", "treatment", "path_length"]].fillna("").drop_duplicates().values.tolist()
    assert limits == [
        ["at-most-1", "at-most", 1], ["at-most-0", "at-most", 0], ["sampled-1", "sampled", 1],
        ["residual", "", 3], ["stop-gradient", "", 3], ["plain", "", 3],
    ]  # fmt: skip
    assert len(outcomes) == 6 * 2 * 3 * 2  # arms, seeds, splits, loss and accuracy
    runs = {path.parent.name: json.loads(path.read_text())["run"] for path in toy.glob("runs/*/run.json")}
    assert len(runs) == 12
    (limited,) = [run for name, run in runs.items() if name.startswith("at-most-1-depth8-seed1-")]
    assert limited["recipe"]["treatment"] == {"class": "Limit", "paths": "at-most", "branches": 1}
    assert drawn(toy) == {"short_paths", "short_path_changes"}
    changes = pd.read_csv(toy / "changes.csv")
    assert changes[["arm", "treatment", "path_length"]].drop_duplicates().values.tolist() == [
        ["at-most-0", "at-most", 0], ["at-most-1", "at-most", 1], ["sampled-1", "sampled", 1],
    ]  # fmt: skip
    assert (changes[changes["quantity"] == "n"]["value"] == 2).all()


def test_the_two_ends_are_arms_of_the_main_experiment(toy: Path, dataset: Dataset) -> None:
    """K = 0 is shortest-path and all paths are residual, to the last bit: the same gradients, the same batches."""

    def values(table: pd.DataFrame) -> "pd.Series[float]":
        return table.set_index([key for key in ("epoch", "split", "quantity") if key in table])["value"].sort_index()

    for name in ("curves", "outcomes"):
        table = pd.read_csv(toy / f"{name}.csv")
        for seed in (0, 1):
            for arm, twin in (("at-most-0", "shortest-path"), ("residual", "residual")):
                ordinary = train_run(run_of(None, dataset, arm=twin, seed=seed), dataset=dataset).tables[name]
                ordinary = pd.read_csv(
                    StringIO(ordinary.to_csv(index=False))
                )  # older pandas reads with another rounding
                here = values(table[(table["seed"] == seed) & (table["arm"] == arm)])
                pd.testing.assert_series_equal(here, values(ordinary), check_exact=True)


@pytest.mark.parametrize(
    ("limit", "same"),
    [
        *((Limit("at-most", 3), True), (Limit("sampled", 3), True)),
        *((Limit("at-most", 2), False), (Limit("exactly", 2), False)),
    ],
)
def test_a_limit_that_admits_every_path_changes_nothing(dataset: Dataset, limit: Limit, same: bool) -> None:
    assert (losses(limit, dataset) == losses(None, dataset)) == same


def test_every_field_of_a_limit_changes_the_run_and_what_it_does(dataset: Dataset) -> None:
    def train(run: Run) -> list[float]:
        return train_limited(run, dataset=dataset).tables["losses"]["value"].tolist()

    each_field_counts(run_of(Limit("at-most", 1), dataset), train, {"paths": "sampled", "branches": 0})


def test_branches_are_drawn_alike_for_a_seed(dataset: Dataset) -> None:
    assert losses(Limit("sampled", 1), dataset, seed=1) == losses(Limit("sampled", 1), dataset, seed=1)


def test_limits_beyond_the_blocks_are_the_residual_arm(dataset: Dataset) -> None:
    runs = make_runs(settings(depth=20, at_most=(3, 9, 50), exactly=(2,), at_least=(9,)), dataset)
    assert list(dict.fromkeys(run.arm for run in runs)) == [
        "at-most-3", "at-least-9", "exactly-2", "sampled-4", "residual", "stop-gradient", "plain",
    ]  # fmt: skip
    assert len({run.name for run in runs}) == len(runs) == 14
    assert [Settings(depth=depth).blocks for depth in (8, 20, 56, 110)] == [3, 9, 27, 54]
    assert Settings(depth=110).limits()[-1] == Limit("sampled", 23)  # Veit et al.'s own


def test_the_conclusion_holds_from_a_limit_on() -> None:
    def found(limit: int, loss: float, reading: Any, *, pairs: int = 3) -> Comparison:
        changes = {"log train loss": (loss,) * pairs, "test accuracy": (0.0,) * pairs}
        estimates = {outcome: Estimate(values, values[0], values[0], values[1]) for outcome, values in changes.items()}
        return Comparison("arm", limit, estimates, reading)

    readings = [found(8, 0.0, "recovered"), found(4, 0.1, "recovered"), found(2, 0.1, "undecided")]
    assert conclusion([*readings, found(0, 2.0, "falls short")]) == (
        "paths of at most K branches are shown to recover ordinary training from K = 4 on; their mean changes stay "
        "within the margins from K = 2 on. One data set, one learning rate, one budget."
    )
    two = conclusion([found(0, 2.0, "undecided", pairs=2)])
    assert "recover ordinary training from no tested K on" in two
    assert "within the margins from no tested K on; fewer than three seeds decide nothing." in two
