"""Lesions: what the script writes at toy size, and what each lesion does."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from experiments.engine.running.run import Run
from experiments.engine.training.data import Batches, Data, load
from experiments.engine.training.loop import evaluate
from experiments.engine.training.optimisation import Training
from experiments.engine.training.settings import NetworkSettings
from experiments.lesions import Lesions, damage_network, damaged, weights_fingerprint
from models import PLAIN, CifarResNet, cifar_resnet
from tests.support.scripts import drawn, each_field_counts, toy_run

TOY = ["--depth", "14", "--seeds", "0", "1", "--epochs", "1", "--width", "2", "--counts", "1", "2", "--draws", "2"]
TOY += ["--train-limit", "256"]


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    return toy_run("lesions", *TOY, "--arms", "residual", "plain", cwd=tmp_path_factory.mktemp("toy"))


def test_every_lesion_is_there_with_both_statistics(toy: tuple[Path, str]) -> None:
    """Six blocks, of which two change the shape: a plain network cannot go without those."""
    folder, shown = toy
    rows = pd.read_csv(folder / "lesions.csv").query("quantity == 'error'")
    counted = {arm: own.groupby(["lesion", "count"]).size() / 4 for arm, own in rows.groupby("arm")}  # per network
    assert counted["residual"].to_dict() == {
        ("none", 0): 1, ("delete", 1): 6, ("swap", 1): 1, ("delete at random", 1): 2, ("delete at random", 2): 2,
        ("permute", 1): 2, ("permute", 2): 2,
    }  # fmt: skip
    assert counted["plain"].to_dict()["delete", 1] == 4
    assert rows["value"].between(0, 1).all()
    assert set(rows["statistics"]) == {"kept", "re-estimated"}
    assert "Test error in % of 360 images" in shown
    assert drawn(folder) >= {f"lesions_{name}" for name in ("delete", "swap", "delete_at_random", "permute")}


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
    model = cifar_resnet(8, width=2, in_channels=1)
    public = model.state_dict()
    for ours, theirs in {"stem.0": "conv1", "stem.1": "bn1", "classifier": "linear", ".branch": ""}.items():
        public = {name.replace(ours, theirs): value for name, value in public.items()}
    torch.save(public, tmp_path / "weights.pt")
    few = ["--depth", "8", "--width", "2", "--counts", "1", "--draws", "1"]
    toy_run("lesions", *few, "--weights", "weights.pt", cwd=tmp_path)
    (report,) = [json.loads(path.read_text()) for path in tmp_path.glob("results/lesions/runs/*/run.json")]
    assert report["run"]["recipe"]["treatment"]["weights"] == weights_fingerprint(tmp_path / "weights.pt")
    whole = pd.read_csv(tmp_path / "results/lesions/lesions.csv").query("lesion == 'none' and statistics == 'kept'")
    batches = Batches(load(Data()), torch.device("cpu"))
    assert whole["value"].item() == pytest.approx(1 - evaluate(model, batches, "test")["accuracy"])


def test_each_field_of_lesions_changes_the_runs_name_and_what_it_does(tmp_path: Path) -> None:
    dataset, file = load(Data(train_limit=128)), tmp_path / "weights.pt"
    torch.save(cifar_resnet(14, width=2, in_channels=1).state_dict(), file)
    small = NetworkSettings(seeds=(0,), width=2, training=Training(epochs=1, batch_size=64))
    about: dict[str, Any] = {"arms": ("residual",), "depths": (14,), "outputs": ("lesions",)}
    (made,) = small.runs("lesions", dataset, treatment=Lesions(counts=(1,), draws=1), **about)

    def damage(run: Run) -> str:
        return damage_network(run, dataset=dataset, weights=file).tables["lesions"].to_csv()

    each_field_counts(made, damage, {"counts": (2,), "draws": 2, "weights": weights_fingerprint(file)})


def test_other_weights_than_the_recipes_are_refused(tmp_path: Path) -> None:
    dataset, file = load(Data(train_limit=128)), tmp_path / "weights.pt"
    file.write_bytes(b"other")
    treatment = Lesions(counts=(1,), draws=1, weights="0123456789abcdef")
    (made,) = NetworkSettings(seeds=(0,)).runs("lesions", dataset, arms=("residual",), depths=(8,), treatment=treatment)
    with pytest.raises(ValueError, match=r"its recipe asks for weights 0123456789abcdef, which .* does not hold"):
        damage_network(made, dataset=dataset, weights=file)


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
