"""Lesions: what the script writes at toy size, and what each lesion does."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from experiments.engine.training.data import Batches, Data, load
from experiments.engine.training.loop import evaluate
from experiments.engine.training.optimisation import Training
from experiments.engine.training.settings import NetworkSettings
from experiments.lesions import Lesions, damaged, train_and_damage, weights_fingerprint
from models import PLAIN, CifarResNet, cifar_resnet
from tests.support.scripts import run

TOY = ["--depth", "14", "--seeds", "0", "1", "--epochs", "1", "--width", "2", "--counts", "1", "2", "--draws", "2"]
TOY += ["--train-limit", "256"]


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("toy")
    done = run("lesions", *TOY, "--arms", "residual", "plain", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "results" / "lesions", done.stdout


def test_every_lesion_is_there_with_both_statistics(toy: tuple[Path, str]) -> None:
    """Six blocks, of which two change the shape: a plain network cannot go without those."""
    folder, shown = toy
    rows = pd.read_csv(folder / "lesions.csv").query("quantity == 'error'")
    counted = {
        arm: of_arm.groupby(["lesion", "count"]).size() / 4 for arm, of_arm in rows.groupby("arm")
    }  # per network
    assert counted["residual"].to_dict() == {
        ("none", 0): 1, ("delete", 1): 6, ("swap", 1): 1, ("delete at random", 1): 2, ("delete at random", 2): 2,
        ("permute", 1): 2, ("permute", 2): 2,
    }  # fmt: skip
    assert counted["plain"].to_dict()["delete", 1] == 4
    assert rows["value"].between(0, 1).all()
    assert set(rows["statistics"]) == {"kept", "re-estimated"}
    assert "Test error in % of 360 images" in shown
    for name in ("delete", "swap", "delete_at_random", "permute"):
        assert {path.suffix for path in (folder / "figures").glob(f"lesions_{name}.*")} == {".pdf", ".png", ".csv"}


def test_no_lesion_leaves_what_training_gave(toy: tuple[Path, str]) -> None:
    lesions, outcomes = (pd.read_csv(toy[0] / f"{name}.csv") for name in ("lesions", "outcomes"))
    whole = lesions.query("lesion == 'none' and statistics == 'kept'").set_index(["arm", "seed"])["value"]
    accuracy = outcomes.query("split == 'test' and quantity == 'accuracy'").set_index(["arm", "seed"])["value"]
    assert (whole + accuracy).to_numpy() == pytest.approx(1)


def test_all_arms_of_a_seed_have_the_same_draws(toy: tuple[Path, str]) -> None:
    taus = pd.read_csv(toy[0] / "lesions.csv").query("quantity == 'tau'")
    wide = taus.pivot(index=["seed", "statistics", "count", "draw"], columns="arm", values="value")
    assert (wide["residual"] == wide["plain"]).all()
    assert wide["plain"].between(-1, 1).all()


def test_weights_of_a_public_network(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = cifar_resnet(8, width=2, in_channels=1)
    public = {
        name.replace("stem.0", "conv1")
        .replace("stem.1", "bn1")
        .replace("classifier", "linear")
        .replace(".branch", ""): v
        for name, v in model.state_dict().items()
    }
    torch.save(public, tmp_path / "weights.pt")
    few = ["--depth", "8", "--width", "2", "--counts", "1", "--draws", "1"]
    done = run("lesions", *few, "--weights", "weights.pt", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (report,) = [json.loads(path.read_text()) for path in tmp_path.glob("results/lesions/runs/*/run.json")]
    assert report["run"]["recipe"]["treatment"]["weights"] == weights_fingerprint(tmp_path / "weights.pt")
    whole = pd.read_csv(tmp_path / "results/lesions/lesions.csv").query("lesion == 'none' and statistics == 'kept'")
    batches = Batches(load(Data()), torch.device("cpu"))
    assert whole["value"].item() == pytest.approx(1 - evaluate(model, batches, "test")["accuracy"])


def test_weights_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    for file, message in (("nowhere.pt", "No such file"), (__file__, "UnpicklingError")):
        done = run("lesions", "--weights", file, "--depth", "8", "--width", "2", cwd=tmp_path)
        assert (done.returncode, done.stderr.count("error: --weights")) == (2, 1)
        assert message in done.stderr


@pytest.mark.parametrize("change", [{"counts": (2,)}, {"draws": 2}, {"weights": "given"}])
def test_each_field_of_lesions_changes_the_runs_name_and_what_it_does(change: dict[str, Any], tmp_path: Path) -> None:
    dataset, file = load(Data(train_limit=128)), tmp_path / "weights.pt"
    torch.save(cifar_resnet(14, width=2, in_channels=1).state_dict(), file)
    change = {"weights": weights_fingerprint(file)} if "weights" in change else change
    small = NetworkSettings(seeds=(0,), width=2, training=Training(epochs=1, batch_size=64))
    lesions = [Lesions(counts=(1,), draws=1), replace(Lesions(counts=(1,), draws=1), **change)]
    runs = [
        made
        for treatment in lesions
        for made in small.runs(
            "lesions", dataset, arms=("residual",), depths=(14,), treatment=treatment, outputs=("lesions",)
        )
    ]
    assert runs[0].name != runs[1].name
    tables = [train_and_damage(made, dataset=dataset, weights=file).tables["lesions"] for made in runs]
    assert not tables[0].equals(tables[1])


def test_other_weights_than_the_recipes_are_refused(tmp_path: Path) -> None:
    dataset, file = load(Data(train_limit=128)), tmp_path / "weights.pt"
    file.write_bytes(b"other")
    treatment = Lesions(counts=(1,), draws=1, weights="0123456789abcdef")
    (made,) = NetworkSettings(seeds=(0,)).runs("lesions", dataset, arms=("residual",), depths=(8,), treatment=treatment)
    with pytest.raises(ValueError, match=r"its recipe asks for weights 0123456789abcdef, which .* does not hold"):
        train_and_damage(made, dataset=dataset, weights=file)


def errors(model: CifarResNet) -> pd.DataFrame:
    batches = Batches(load(Data()), torch.device("cpu"))
    return pd.DataFrame(damaged(model, batches, Lesions(counts=(1,), draws=1), seed=0)).query("quantity == 'error'")


def test_a_first_block_that_changes_the_shape_cannot_be_skipped() -> None:
    """A bottleneck's first block quadruples the channels: of six, three keep their shape."""
    found = errors(cifar_resnet(20, width=2, in_channels=1, block="bottleneck", flow=PLAIN))
    deleted = found.query("lesion == 'delete' and statistics == 'kept'")["block"]
    assert deleted.tolist() == ["layer1.1", "layer2.1", "layer3.1"]


def test_a_lesion_that_cannot_hurt_does_not() -> None:
    """Where every branch gives zeros, nothing is lost with one; a plain network so becomes the same constant."""
    torch.manual_seed(0)
    model = cifar_resnet(14, width=2, in_channels=1).eval()
    for block in model.blocks:
        norm = list(block.branch.modules())[-1]
        assert isinstance(norm, torch.nn.BatchNorm2d)
        norm.weight.data.zero_()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    by_statistics = errors(model).groupby("statistics")["value"]
    assert (by_statistics.nunique() == 1).all()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert set(errors(cifar_resnet(8, width=2, in_channels=1, flow=PLAIN))["lesion"]) == {
        "none", "delete", "delete at random",
    }  # fmt: skip
