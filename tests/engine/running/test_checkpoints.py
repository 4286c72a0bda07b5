"""A training that is killed resumes after its last whole epoch, as if nothing had happened."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from torch import nn

from experiments.engine.conditions.controls import NO_CONTROL, Control, Cut
from experiments.engine.running import checkpoints
from experiments.engine.running.checkpoints import from_lists, to_lists
from experiments.engine.running.run import Outcome, Run
from experiments.engine.training.data import Batches, Data, Dataset, load
from experiments.engine.training.optimisation import Training
from experiments.engine.training.settings import NetworkSettings
from experiments.engine.training.train_run import make_network, train_run
from tests.support.grid_script import Life, start, train_networks


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


def run_of(dataset: Dataset, network: str = "resnet", control: Control = NO_CONTROL, **training: Any) -> Run:
    settings = NetworkSettings(network=network, width=2, seeds=(0,), training=Training(epochs=4, **training))
    (run,) = settings.runs("toy", dataset, arms=("residual",), depths=(8,), outputs=("sums",), treatment=control)
    return run


def train(run: Run, dataset: Dataset, measure: Measure, file: Path | None = None) -> Outcome:
    model = make_network(run, dataset)
    backward = run.recipe.treatment.prepare(model, seed=run.seed)
    return train_run(run, file, dataset=dataset, model=model, backward=backward, measure=measure)


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
        ("resnet", {}, Control(rule="placebo")),  # permutations
        ("resnet", {}, Control(rule="true-norm", at_most=1)),  # a context around forwards and backwards
    ],
)
def test_what_follows_is_the_same_to_the_last_bit(
    tmp_path: Path, dataset: Dataset, network: str, training: dict[str, Any], control: Control
) -> None:
    run, file = run_of(dataset, network, control, **training), tmp_path / "checkpoints" / "a.pt"
    undisturbed = train(run, dataset, Measure())
    with pytest.raises(Killed):
        train(run, dataset, Measure(ends_in=3), file)
    resumed = train(run, dataset, measure := Measure(), file)
    same(resumed, undisturbed)
    assert measure.epochs == [3, 4]
    assert list(file.parent.iterdir()) == [file]  # until the grid has written the run


@pytest.mark.parametrize("damage", ["damaged", "of another version of the code"])
def test_a_checkpoint_that_cannot_be_used_is_moved_away(
    tmp_path: Path, dataset: Dataset, damage: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, file = run_of(dataset), tmp_path / "checkpoints" / "a.pt"
    with pytest.raises(Killed):
        train(run, dataset, Measure(ends_in=3), file)
    if damage == "damaged":
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    else:
        monkeypatch.setattr("experiments.engine.running.checkpoints.commit", lambda: "another")
    again = train(run, dataset, measure := Measure(), file)
    same(again, train(run, dataset, Measure()))
    assert measure.epochs == [0, 1, 2, 3, 4]
    shown = capsys.readouterr().err
    assert f"the checkpoint of a is {damage}" in shown
    assert f": moved to {tmp_path / 'damaged'}, and the run starts over" in shown
    assert [path.name for path in (tmp_path / "damaged").iterdir()] == ["a.pt"]


def test_a_checkpoint_of_other_outputs_is_not_resumed(tmp_path: Path, dataset: Dataset) -> None:
    """Else a measurement that was added meanwhile would lack the epochs before it."""
    run, file = run_of(dataset), tmp_path / "checkpoints" / "a.pt"
    with pytest.raises(Killed):
        train(run, dataset, Measure(ends_in=3), file)
    train(replace(run, outputs=("sums", "norms")), dataset, measure := Measure(), file)
    assert measure.epochs == [0, 1, 2, 3, 4]


def test_checkpoints_are_written_where_asked_and_no_more_often_than_need_be(
    tmp_path: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(run_of(dataset), dataset, Measure())
    monkeypatch.setattr(checkpoints, "EVERY", 60)
    train(run_of(dataset), dataset, Measure(), tmp_path / "checkpoints" / "a.pt")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_ten_kills_in_the_middle_of_training_change_no_bit(tmp_path: Path) -> None:
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    train_networks(undisturbed, 20)
    moments, kept = random.Random(0), 0
    for _ in range(10):
        process = start(train_networks, killed, 20, life=Life(moments.randint(1, 4), moments.uniform(0, 0.03)))
        process.join()
        kept += len(list((killed / "checkpoints").glob("*.pt")))
    assert kept >= 3  # kills in the middle of a training
    train_networks(killed, 20)
    for table in undisturbed.glob("*.csv"):
        assert (killed / table.name).read_bytes() == table.read_bytes()
    assert len(list(undisturbed.glob("*.csv"))) == 4
    epochs = [len((folder / "log").read_text().splitlines()) for folder in (undisturbed, killed)]
    assert epochs[0] == 42 <= epochs[1] <= 42 + 20  # a kill repeats no more than an epoch
    assert not list((killed / "checkpoints").iterdir())


def test_tables_come_back_as_they_were() -> None:
    table = pd.DataFrame({"a": ["x", None], "b": [1, 2], "c": [0.1, float("nan")], "d": [True, False]})
    table["e"] = table["c"].astype("float32")
    pd.testing.assert_frame_equal(from_lists(to_lists(table)), table, check_exact=True)
