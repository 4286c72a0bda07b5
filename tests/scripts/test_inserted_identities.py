"""Inserted blocks: identities keep the function, how far a block is from one, effects on paper, a run at toy size."""

from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.engine.reporting.console import terminal
from experiments.engine.running.run import Run
from experiments.engine.statistics.estimates import Estimate
from experiments.engine.training.data import Batches, Data, load
from experiments.engine.training.loop import evaluate, recompute_bn_statistics, train
from experiments.engine.training.optimisation import Training
from experiments.inserted_identities import (
    CLOSED,
    Insertion,
    Settings,
    decisions,
    insert_and_train,
    insert_blocks,
    inserted_changes,
    insertion_table,
    insertions,
    make_identities,
    make_runs,
    show_insertions,
)
from experiments.questions.distance_from_identity import block_changes, open_branches, some_images
from models import ARMS, PLAIN, RESIDUAL, CifarResNet, Flow, ResidualBlock, cifar_resnet
from tests.support.scripts import drawn, each_field_counts, toy_run

NAMES = ["layer1.1", "layer1.2", "layer2.1", "layer2.2", "layer3.1", "layer3.2"]


@pytest.fixture(scope="module")
def batches() -> Batches:
    return Batches(load(Data()), torch.device("cpu"))


def network(depth: int, flow: Flow, block: str = "basic", seed: int = 0) -> CifarResNet:
    torch.manual_seed(seed)
    model = cifar_resnet(depth, flow=flow, block=block, width=4, in_channels=1)  # type: ignore[arg-type]
    open_branches(model)
    return model


def trained(batches: Batches, flow: Flow, block: str = "basic") -> CifarResNet:
    model = network(8, flow, block)
    list(train(model, batches, Training(epochs=2), seed=0))
    recompute_bn_statistics(model, batches)
    return model


def grown(shallow: CifarResNet, batches: Batches, flow: Flow, block: str = "basic") -> CifarResNet:
    deep = network(20, flow, block, seed=1)
    assert insert_blocks(shallow, deep) == NAMES
    make_identities(shallow, deep, NAMES, some_images(batches))
    return deep


@torch.no_grad()
def outputs(model: nn.Module, batches: Batches) -> Tensor:
    return model.eval()(batches.get("test", slice(None))[0])


@pytest.mark.parametrize("block", ["basic", "skipinit"])
@pytest.mark.parametrize("arm", list(ARMS))
def test_identities_keep_the_function(batches: Batches, arm: str, block: str) -> None:
    """Exactly where the residual is 0, else up to rounding: BatchNorm divides by what it then multiplies with."""
    flow = ARMS[arm]
    shallow = trained(batches, flow, block)
    wanted, got = outputs(shallow, batches), outputs(grown(shallow, batches, flow, block), batches)
    if flow.shortcut or block == "skipinit":
        assert torch.equal(got, wanted)
    else:
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
    assert wanted.std(0).min() > 0.001  # logits that tell images apart


def test_an_inserted_identity_lets_no_gradient_down_in_a_stop_gradient_network_alone(batches: Batches) -> None:
    images, labels = batches.get("train", slice(0, 64))
    for arm in ("residual", "stop-gradient", "plain"):
        deep = grown(trained(batches, ARMS[arm]), batches, ARMS[arm]).train()
        F.cross_entropy(deep(images), labels).backward()
        below = [p.grad for part in (deep.stem, deep.layer1, deep.layer3[0]) for p in part.parameters()]
        assert all((g == 0).all() for g in below if g is not None) == (arm == "stop-gradient")


def test_blocks_at_random_weights_change_the_function(batches: Batches) -> None:
    for flow in (RESIDUAL, PLAIN):
        shallow, deep = trained(batches, flow), network(20, flow, seed=1)
        insert_blocks(shallow, deep)
        recompute_bn_statistics(deep, batches)
        wanted, got = outputs(shallow, batches), outputs(deep, batches)
        assert (got - wanted).norm() > 0.3 * wanted.norm()


def test_identities_outlast_new_statistics(batches: Batches) -> None:
    """Statistics taken anew, in train mode, go through blocks that see each batch's own mean and deviation instead of
    those of all images: batches of 128 images, 16 to 64 places each, differ from them by some percent."""
    shallow = trained(batches, PLAIN)
    deep = grown(shallow, batches, PLAIN)
    recompute_bn_statistics(deep, batches)
    wanted, got = outputs(shallow, batches), outputs(deep, batches)
    assert 0 < (got - wanted).norm() < 0.1 * wanted.norm()
    changes = block_changes(deep, some_images(batches, 512))
    assert (changes[changes["block"].isin(NAMES)]["value"] < 0.05).all()
    assert abs(evaluate(deep, batches, "test")["accuracy"] - evaluate(shallow, batches, "test")["accuracy"]) < 0.02


def test_the_shallow_network_stays_as_it_is_and_its_weights_are_all_there(batches: Batches) -> None:
    shallow = trained(batches, PLAIN)
    before = {name: value.clone() for name, value in shallow.state_dict().items()}
    deep = grown(shallow, batches, PLAIN)
    for name, value in before.items():
        assert torch.equal(shallow.state_dict()[name], value)
        assert torch.equal(deep.state_dict()[name], value)


def test_a_channel_that_is_always_zero_stays_zero(batches: Batches) -> None:
    shallow = trained(batches, PLAIN)
    with torch.no_grad():
        shallow.blocks[0].branch[-1].weight[0], shallow.blocks[0].branch[-1].bias[0] = 0, -1  # pyright: ignore
    deep = grown(shallow, batches, PLAIN)
    torch.testing.assert_close(outputs(deep, batches), outputs(shallow, batches), rtol=1e-4, atol=1e-4)


def test_a_network_that_is_not_deeper_is_refused() -> None:
    with pytest.raises(ValueError, match="a network of 6 blocks cannot be continued as one of 3: give a deeper one"):
        insert_blocks(network(14, PLAIN), network(8, PLAIN))


def scalar_block(weight: float, flow: Flow) -> ResidualBlock:
    branch = nn.Conv2d(1, 1, 1, bias=False)
    nn.init.constant_(branch.weight, weight)
    return ResidualBlock(branch, flow=flow)


@pytest.mark.parametrize(
    ("weight", "flow", "wanted"),
    [
        (0.5, RESIDUAL, {"ratio": 0.5, "distance": 0.5}),
        (-2.0, RESIDUAL, {"ratio": 2.0, "distance": 1.0}),  # x - 2x is cut to 0
        (0.0, RESIDUAL, {"ratio": 0.0, "distance": 0.0}),
        (0.5, PLAIN, {"distance": 0.5}),
        (1.0, PLAIN, {"distance": 0.0}),
        (-2.0, PLAIN, {"distance": 1.0}),
    ],
)
def test_changes_on_paper(weight: float, flow: Flow, wanted: dict[str, float]) -> None:
    found = block_changes(nn.Sequential(scalar_block(weight, flow)), torch.rand(2, 1, 3, 3))
    assert dict(zip(found["quantity"], found["value"], strict=True)) == pytest.approx(wanted)
    assert set(found["block"]) == {"0"}


def test_changes_against_a_slow_twin(batches: Batches) -> None:
    """Of every block whose shape stays, each by its own; blocks that change the shape have no distance."""
    model = network(14, RESIDUAL)
    recompute_bn_statistics(model, batches)
    images = some_images(batches, 64)
    before = [buffer.clone() for buffer in model.buffers()]
    found = block_changes(model.train(), images).set_index(["block", "quantity"])["value"]
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), before, strict=True))
    model.eval()
    with torch.no_grad():
        x = model.stem(images)
        for name, block in model.named_modules():
            if isinstance(block, ResidualBlock):
                if not name.endswith("0") or name == "layer1.0":
                    assert found[name, "ratio"] == pytest.approx((block.branch(x).norm() / x.norm()).item(), rel=1e-5)
                    assert found[name, "distance"] == pytest.approx(((block(x) - x).norm() / x.norm()).item(), rel=1e-5)
                x = block(x)
    assert set(found.index.get_level_values("block")) == {"layer1.0", "layer1.1", "layer2.1", "layer3.1"}


# Effects on paper


def insertion_tables() -> dict[str, pd.DataFrame]:
    """Deeper networks that equal the shallow one (residual), or lose 0.1 of test accuracy (plain)."""
    outcomes, blocks = [], []
    for arm, kind, seed in product(("residual", "plain"), ("none", "identity"), range(3)):
        deep, residual = kind == "identity", arm == "residual"
        about = {"arm": arm, "depth_total": 20 if deep else 8, "seed": seed, "effect": kind}
        ends = {"accuracy": 0.9 + 0.01 * seed - 0.1 * (deep and not residual), "loss": 0.1}
        for split, (quantity, value) in product(("train", "validation", "test"), ends.items()):
            outcomes.append(about | {"split": split, "quantity": quantity, "value": value})
        for epoch, quantity in product((0, 3), ("distance", "ratio") if residual else ("distance",)):
            change = 0.02 * epoch + 0.001 * seed if residual else 0.5
            row = about | {"epoch": epoch, "block": "layer1.1", "depth": 1, "quantity": quantity, "value": change}
            blocks += [row] * deep
    return {"outcomes": pd.DataFrame(outcomes), "blocks": pd.DataFrame(blocks)}


def test_insertions_on_paper() -> None:
    tables = insertion_tables()
    found, changes = insertions(tables["outcomes"], 100), inserted_changes(tables["blocks"])
    assert set(found) == set(changes) == {("residual", "identity", 20), ("plain", "identity", 20)}
    assert found["residual", "identity", 20].reading == "recovered"
    assert found["plain", "identity", 20].reading == "falls short"
    assert found["plain", "identity", 20].changes["test accuracy"].mean == pytest.approx(-0.1)
    first, last = changes["residual", "identity", 20]
    assert (first.mean, last.mean) == (pytest.approx(0.001), pytest.approx(0.061))
    ((effect, (text, margin, reading)),) = decisions(changes).items()  # of residual networks alone
    assert (effect, margin, reading) == ("‖F(x)‖/‖x‖, identity, 20", "0.1", "near zero")
    assert text.startswith("0.06 [")
    moved = Estimate((), 0.5, 0.4, 0.6)
    assert next(iter(decisions({("residual", "random", 20): (moved, moved)}).values()))[2] == "not near zero"
    lost = (tables["outcomes"]["effect"] == "identity") & (tables["outcomes"]["seed"] == 1)
    assert insertions(tables["outcomes"][~lost], 100)["residual", "identity", 20].reading == "falls short"  # diverged
    written = insertion_table(found, changes)
    last = written.query("arm == 'residual' and outcome == 'change last'")
    numbers = last[last["quantity"] != "seed"].set_index("quantity")["value"].to_dict()
    assert (numbers["mean"], numbers["n"], numbers["margin"]) == (pytest.approx(0.061), 3, 0.1)
    assert last[last["quantity"] == "seed"]["value"].tolist() == pytest.approx([0.06, 0.061, 0.062])
    lost = written.query("arm == 'plain' and outcome == 'test accuracy' and quantity == 'mean'")
    assert lost["value"].tolist() == pytest.approx([-0.1])


def test_the_table_is_whole_where_the_output_is_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    tables = insertion_tables()
    found = insertions(tables["outcomes"], 100)
    show_insertions(terminal(), found, inserted_changes(tables["blocks"]))
    shown = capsys.readouterr().out
    assert "…" not in shown  # cut
    for text in ("identity, 20", "0.001 to 0.061", "keeps up", "is worse"):
        assert text in shown
    assert CLOSED.split(",")[0] not in shown  # an arm that was not run
    show_insertions(terminal(), {("stop-gradient", "identity", 20): found["plain", "identity", 20]}, {})
    assert "no gradient passes a block whose branch gives zeros" in capsys.readouterr().out.replace("\n", " ")


# The script


TOY = ["--seeds", 0, 1, 2, "--arms", "residual", "plain", "--epochs", 1, "--width", 2, "--train-limit", 256]
TOY += ["--deeper", 14]


@pytest.mark.slow
def test_a_run_at_toy_size(tmp_path: Path) -> None:
    folder, shown = toy_run("inserted_identities", *TOY, cwd=tmp_path)
    starts = pd.read_csv(folder / "starts.csv").query("quantity == 'loss' and split == 'test'")
    wide = starts.pivot(index=["arm", "seed"], columns="effect", values="value")
    np.testing.assert_allclose(wide["identity"]["residual"], wide["none"]["residual"], rtol=1e-6)
    np.testing.assert_allclose(wide["identity"]["plain"], wide["none"]["plain"], rtol=0.05)  # statistics anew
    assert not np.allclose(wide["random"], wide["none"], rtol=1e-3)
    blocks = pd.read_csv(folder / "blocks.csv")
    assert set(blocks["block"]) == {"layer1.1", "layer2.1", "layer3.1"}
    first = blocks.query("epoch == 0 and effect == 'identity'")
    assert (first.query("arm == 'residual'")["value"] == 0).all()
    assert first.query("arm == 'plain'")["value"].between(1e-6, 0.2).all()
    assert len(list(folder.glob("runs/*/run.json"))) == 18  # 6 shallow, 12 deeper
    assert (folder / "insertion.csv").exists()
    assert "insertion" in drawn(folder)
    assert "‖F(x)‖/‖x‖, identity, 14" in shown


def test_each_field_of_an_insertion_changes_the_runs_name_and_what_it_does() -> None:
    dataset = load(Data(train_limit=128))
    settings = Settings(seeds=(0,), arms=("residual",), width=2, training=Training(epochs=1, batch_size=64))
    made = next(run for run in make_runs(settings, dataset) if run.recipe.treatment == Insertion("identity", 8))

    def insert(run: Run) -> list[float]:
        return insert_and_train(run, dataset=dataset).tables["losses"]["value"].tolist()

    each_field_counts(made, insert, {"kind": "random", "shallow": 14})
    each_field_counts(made, insert, {"kind": "none", "shallow": 14})
