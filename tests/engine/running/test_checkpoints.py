"""A training that is killed goes on after its last whole epoch, as if nothing had happened."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from torch import nn

from experiments.engine import checkpoints
from experiments.engine.cells import train_cell
from experiments.engine.checkpoints import checkpoint_at, framed, plain
from experiments.engine.controls import NO_CONTROL, Control, Cut
from experiments.engine.data import Batches, Data, Dataset, load
from experiments.engine.grid import Cell, Outcome
from experiments.engine.settings import NetworkSettings
from experiments.engine.training import Training
from tests.grid_script import Life, start, train_cells

EPOCHS = 4


class Killed(Exception):
    """Ends a training."""


class Measure:
    """Writes epochs down, and ends the training in one of them."""

    def __init__(self, ends_in: int | None = None) -> None:
        self.ends_in, self.epochs = ends_in, list[int]()

    def __call__(self, model: nn.Module, batches: Batches, epoch: int, last: bool) -> dict[str, pd.DataFrame]:
        self.epochs.append(epoch)
        if epoch == self.ends_in:
            raise Killed
        value = next(model.parameters()).sum().item()
        return {"sums": pd.DataFrame({"block": ["stem", None], "depth": [0, 1], "value": [value, float("nan")]})}


@pytest.fixture(autouse=True)
def after_every_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "EVERY", 0)


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return load(Data(train_limit=256))


def cell_of(dataset: Dataset, network: str = "resnet") -> Cell:
    (cell,) = NetworkSettings(network=network, width=2, seeds=(0,)).cells(
        "toy", dataset, arms=("residual",), depths=(8,)
    )
    return cell


def same(given: Outcome, wanted: Outcome) -> None:
    assert given.tables.keys() == wanted.tables.keys()
    for name, table in wanted.tables.items():
        pd.testing.assert_frame_equal(given.tables[name], table, check_exact=True)


@pytest.mark.parametrize(
    ("network", "training", "control"),
    [
        ("resnet", {}, NO_CONTROL),
        ("dropout-shortcut", {"optimiser": "adam", "learning_rate": 0.01}, NO_CONTROL),  # torch's own random state
        ("resnet", {"schedule": "step"}, Control(cut=Cut(chance=0.5))),  # coins
        ("resnet", {"optimiser": "sign", "learning_rate": 0.001}, Control(cut=Cut(), rule="noise", feedback=True)),
    ],
)
def test_what_follows_is_the_same_to_the_last_bit(
    tmp_path: Path, dataset: Dataset, network: str, training: dict[str, Any], control: Control
) -> None:
    cell, file = cell_of(dataset, network), tmp_path / "checkpoints" / "a.pt"
    options = {"training": Training(epochs=EPOCHS, **training), "control": control}
    undisturbed = train_cell(cell, dataset, measure=Measure(), **options)
    with pytest.raises(Killed), checkpoint_at(file):
        train_cell(cell, dataset, measure=Measure(ends_in=3), **options)
    with checkpoint_at(file):
        resumed = train_cell(cell, dataset, measure=(measure := Measure()), **options)
        assert file.exists()  # until all is done
    same(resumed, undisturbed)
    assert measure.epochs == [3, 4]
    assert not list(file.parent.iterdir())


@pytest.mark.parametrize("damage", ["damaged", "of another version of the code"])
def test_a_checkpoint_that_cannot_be_used_is_set_aside(
    tmp_path: Path, dataset: Dataset, damage: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cell, file, training = cell_of(dataset), tmp_path / "checkpoints" / "a.pt", Training(epochs=EPOCHS)
    with pytest.raises(Killed), checkpoint_at(file):
        train_cell(cell, dataset, training, measure=Measure(ends_in=3))
    if damage == "damaged":
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    else:
        monkeypatch.setattr("experiments.engine.checkpoints.commit", lambda: "another")
    with checkpoint_at(file):
        again = train_cell(cell, dataset, training, measure=(measure := Measure()))
    same(again, train_cell(cell, dataset, training, measure=Measure()))
    assert measure.epochs == [0, 1, 2, 3, 4]
    assert f"the checkpoint of a is {damage}: it is set aside in {tmp_path / 'damaged'}" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "damaged").iterdir()] == ["a.pt"]


def test_only_the_first_training_of_a_cell_is_kept_and_none_that_is_watched(tmp_path: Path, dataset: Dataset) -> None:
    cell, file, training = cell_of(dataset), tmp_path / "a.pt", Training(epochs=2)
    with checkpoint_at(file):
        train_cell(cell, dataset, training, watch=lambda backward: backward)
        assert not file.exists()
        train_cell(cell, dataset, training)
        before = file.read_bytes()
        train_cell(cell, dataset, replace(training, epochs=3))
        assert file.read_bytes() == before
    train_cell(cell, dataset, training)  # outside a grid
    assert not list(tmp_path.iterdir())


def test_checkpoints_are_not_more_frequent_than_need_be(
    tmp_path: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "EVERY", 60)
    with checkpoint_at(file := tmp_path / "a.pt"):
        train_cell(cell_of(dataset), dataset, Training(epochs=2))
        assert not file.exists()


@pytest.mark.slow
def test_ten_kills_in_the_middle_of_training_change_no_bit(tmp_path: Path) -> None:
    (undisturbed := tmp_path / "undisturbed").mkdir()
    (killed := tmp_path / "killed").mkdir()
    train_cells(undisturbed, 20)
    moments, kept = random.Random(0), 0
    for _ in range(10):
        process = start(train_cells, killed, 20, life=Life(moments.randint(1, 4), moments.uniform(0, 0.03)))
        process.join()
        kept += len(list((killed / "checkpoints").glob("*.pt")))
    assert kept >= 3  # kills in the middle of a training
    train_cells(killed, 20)
    for table in undisturbed.glob("*.csv"):
        assert (killed / table.name).read_bytes() == table.read_bytes()
    assert len(list(undisturbed.glob("*.csv"))) == 4
    assert epochs(undisturbed) == 42 <= epochs(killed) <= 42 + 20  # a kill repeats no more than an epoch
    assert not list((killed / "checkpoints").iterdir())


def epochs(folder: Path) -> int:
    log = folder / "log"
    return len(log.read_text().splitlines()) if log.exists() else 0


def test_tables_come_back_as_they_were() -> None:
    table = pd.DataFrame({"a": ["x", None], "b": [1, 2], "c": [0.1, float("nan")], "d": [True, False]})
    table["e"] = table["c"].astype("float32")
    pd.testing.assert_frame_equal(framed(plain(table)), table, check_exact=True)
