"""Use of blocks: what the script writes at toy size, each measure's invariants, and centres of mass on paper."""

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from experiments.engine.running.run import Run
from experiments.engine.running.workers import Execution
from experiments.engine.training.data import Batches, Data, load
from experiments.engine.training.optimisation import Training
from experiments.engine.training.settings import NetworkSettings
from experiments.engine.training.train_run import make_network
from experiments.layer_use import (
    MEASURES,
    OUTPUTS,
    Attribution,
    Measure,
    Settings,
    centre_of_mass,
    centres,
    decide,
    estimate_table,
    estimates,
    main,
    train_and_measure,
    used,
)
from experiments.questions.layer_use.measures import errors, gradient_shares, reset, with_true_gradient
from models import RESIDUAL, residual_blocks
from tests.support.scripts import each_field_counts

ARMS = ("residual", "stop-gradient", "plain")
DATA = Data(train_limit=128)


def settings(out: Path, **changes: Any) -> Settings:
    given: dict[str, Any] = {"depth": 8, "arms": ARMS, "seeds": (0, 1), "width": 2, "execution": Execution(workers=1)}
    given |= {"training": Training(epochs=2, batch_size=32), "data": DATA, "steps": 4, "attributed": 8}
    return Settings(out=out, **(given | changes))


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    main(settings(folder))
    return folder / "layer_use"


@pytest.fixture(scope="module")
def blocks(toy: Path) -> pd.DataFrame:
    return pd.read_csv(toy / "blocks.csv")


@pytest.fixture
def network() -> tuple[nn.Module, Batches]:
    dataset = load(DATA)
    return make_network(toy_run("residual"), dataset), Batches(dataset, torch.device("cpu"))


def toy_run(arm: str) -> Run:
    small = NetworkSettings(seeds=(0,), width=2, training=Training(epochs=1, batch_size=64))
    treatment = Attribution(images=8, steps=4)
    (made,) = small.runs("layer_use", load(DATA), arms=(arm,), depths=(8,), outputs=OUTPUTS, treatment=treatment)
    return made


def test_gradient_shares_sum_to_one_at_both_ends(blocks: pd.DataFrame) -> None:
    sums = blocks[blocks["quantity"] == "gradient"].groupby(["arm", "seed", "epoch"])["value"].sum()
    assert len(sums) == 3 * 2 * 2
    assert sums.to_numpy() == pytest.approx(1)


def test_arms_of_one_function_begin_with_one_error_and_all_move(blocks: pd.DataFrame) -> None:
    moved = blocks[blocks["quantity"] == "movement"]
    assert len(moved) == 3 * 2 * 3
    assert (moved["value"] > 0).all()


def test_the_read_out_after_the_last_block_is_the_whole_network(toy: Path, blocks: pd.DataFrame) -> None:
    last = blocks[(blocks["quantity"] == "read-out") & (blocks["depth"] == 2)].set_index(["arm", "seed"])["value"]
    whole = blocks[(blocks["quantity"] == "whole") & (blocks["statistics"] == "kept")]
    whole = whole.set_index(["arm", "seed"])["value"]
    accuracy = pd.read_csv(toy / "outcomes.csv").query("split == 'test' and quantity == 'accuracy'")
    assert set(last.index.get_level_values("arm")) == {"residual", "stop-gradient"}
    pd.testing.assert_series_equal(last, whole.loc[last.index])
    assert (1 - accuracy.set_index(["arm", "seed"])["value"]).loc[whole.index].to_numpy() == pytest.approx(whole)


def test_deleting_the_last_block_is_the_read_out_before_it(blocks: pd.DataFrame) -> None:
    kept = blocks[(blocks["quantity"] == "deleted") & (blocks["statistics"] == "kept") & (blocks["depth"] == 2)]
    before = blocks[(blocks["quantity"] == "read-out") & (blocks["depth"] == 1)]
    both = kept.merge(before, on=["arm", "seed"], suffixes=("", "_read"))
    assert len(both) == 4
    assert (both["value"] == both["value_read"]).all()


def test_attribution_is_complete_up_to_its_own_delta(blocks: pd.DataFrame) -> None:
    wide = blocks.pivot_table(index=["arm", "seed", "depth"], columns="quantity", values="value").dropna(subset="score")
    assert len(wide) == 2 * 2 * 3
    assert ((wide["shortcut"] + wide["branch"] - wide["score"]).abs() <= wide["delta"] + 1e-5).all()
    assert wide.groupby(["arm", "seed"])["score"].nunique().eq(1).all()
    assert wide["attribution"].to_numpy() == pytest.approx(wide["branch"] / (wide["branch"] + wide["shortcut"]))


def test_plain_blocks_that_change_the_shape_cannot_be_skipped(blocks: pd.DataFrame) -> None:
    deleted = blocks[(blocks["quantity"] == "deleted") & (blocks["statistics"] == "kept") & (blocks["seed"] == 0)]
    assert deleted.groupby("arm")["depth"].apply(list).to_dict() == {
        "residual": [0, 1, 2], "stop-gradient": [0, 1, 2], "plain": [0],
    }  # fmt: skip


def test_figures_lie_beside_what_they_were_drawn_from(toy: Path) -> None:
    names = {path.name for path in (toy / "figures").iterdir()}
    drawn = {"layer_use": "csv", "depth_centres": "csv", "saliency_maps": "npz"}
    assert names == {f"{name}.{end}" for name, data in drawn.items() for end in (data, "pdf", "png", "txt")}
    stored = np.load(toy / "figures" / "saliency_maps.npz")
    assert stored["maps"].shape == (3, 4, 8, 8)
    assert stored["labels"].tolist() == ["0", "1", "2", "3"]
    missed = np.abs(stored["maps"].sum((2, 3)) - stored["scores"])
    assert missed == pytest.approx(np.abs(stored["delta"]), abs=1e-4)


def test_the_terminal_shows_what_the_attribution_misses_and_what_is_decided(
    toy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(settings(toy.parent))
    shown = capsys.readouterr().out
    assert "The attribution misses the class score" in shown
    assert "residual, weight movement" in shown[shown.index("Decisions: digits 8x8, depth 8, centres of mass") :]
    assert "…" not in shown  # cut
    assert shown.endswith("Fewer than three seeds decide nothing. One data set, one learning rate, one budget.\n")


# Each measure


def test_an_untrained_network_resets_to_itself(network: tuple[nn.Module, Batches]) -> None:
    model, batches = network
    first = copy.deepcopy(model)
    found = pd.DataFrame(errors(model, first, batches))
    for _, rows in found.groupby("statistics"):
        whole = rows[rows["quantity"] == "whole"]["value"].item()
        assert (rows[rows["quantity"] == "reset"]["value"] == whole).all()


def test_reset_changes_one_block_and_leaves_statistics(network: tuple[nn.Module, Batches]) -> None:
    first, _ = network
    trained = copy.deepcopy(first)
    with torch.no_grad():
        for tensor in (*trained.parameters(), *trained.buffers()):
            tensor.add_(1)
    after, there, here = reset(trained, first, 1).state_dict(), trained.state_dict(), first.state_dict()
    parameters = {name for name, _ in first.named_parameters()}
    for name, tensor in after.items():
        expected = here if name.startswith("layer2.0.") and name in parameters else there
        assert torch.equal(tensor, expected[name]), name


def test_shares_are_those_of_the_gradient_that_the_arm_trains_with(network: tuple[nn.Module, Batches]) -> None:
    model, batches = network
    stopped = make_network(toy_run("stop-gradient"), load(DATA))
    shares, of_stopped = ([row["value"] for row in gradient_shares(net, batches)] for net in (model, stopped))
    assert shares != pytest.approx(of_stopped)
    assert all(parameter.grad is None for parameter in model.parameters())
    images, labels = batches.get("train", slice(0, 8))
    gradients = []
    for net in (model.eval(), with_true_gradient(stopped)):
        assert residual_blocks(net)[0].flow == RESIDUAL
        torch.nn.functional.cross_entropy(net(images), labels).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None]))
    assert torch.equal(*gradients)  # an attribution does not see the arm's backward


def test_each_field_of_an_attribution_changes_the_runs_name_and_what_it_does() -> None:
    dataset = load(DATA)

    def attribute(run: Run) -> list[float]:
        blocks = train_and_measure(run, dataset=dataset).tables["blocks"]
        return blocks.query("quantity == 'attribution'")["value"].round(6).tolist()

    each_field_counts(toy_run("residual"), attribute, {"images": 4, "steps": 2})


# Centres of mass


def series(*values: float) -> "pd.Series[float]":
    return pd.Series(values)


def test_centres_of_mass_on_paper() -> None:
    assert centre_of_mass(series(1, 1, 1), 3) == 0.5
    assert centre_of_mass(series(3, 0, 0), 3) == 0
    assert centre_of_mass(series(0, 0, 2), 3) == 1
    assert centre_of_mass(series(3, -5, 1), 3) == 0.25  # less than nothing is nothing
    assert centre_of_mass(pd.Series([1.0, 1, 1], [0, 1, 3]), 4) == pytest.approx(4 / 9)
    for values, blocks in ((series(0, -1), 2), (series(1), 1), (series(1, math.inf), 2), (series(1, 1), 3)):
        assert math.isnan(centre_of_mass(values, blocks))


def rows(whole: float, **quantities: list[float]) -> pd.DataFrame:
    table = [{"quantity": "whole", "statistics": "kept", "value": whole, "epoch": 5}]
    for quantity, values in quantities.items():
        start = -1 if quantity == "read_out" else 0
        about = {"quantity": quantity.replace("_", "-"), "epoch": 5}
        about |= {"statistics": "kept"} if quantity in ("reset", "deleted") else {}
        table += [about | {"depth": start + i, "value": value} for i, value in enumerate(values)]
    return pd.DataFrame(table).assign(arm="residual", depth_total=8, seed=0)


def test_costs_are_beyond_the_whole_and_gains_beyond_the_best_before() -> None:
    network = rows(0.1, reset=[0.1, 0.3, 0.05], read_out=[0.9, 0.9, 0.95, 0.6, 0.1])
    found = used(network, Measure("reset cost", "reset", "kept"), classes=10)
    assert found.tolist() == pytest.approx([0, 0.2, -0.05])
    gain = used(network, Measure("read-out gain", "read-out"), classes=10)
    assert gain.to_dict() == pytest.approx({0: 0, 1: 0, 2: 0.3, 3: 0.5})
    names = centres(network, classes=10).set_index("outcome")["value"].to_dict()
    assert names == pytest.approx({"reset cost, BatchNorm kept": 1 / 3, "read-out gain": (0.3 * 2 + 0.5 * 3) / 0.8 / 3})


def test_a_network_at_chance_has_no_costs() -> None:
    network = rows(0.85, reset=[0.9, 0.9, 0.86], movement=[1, 1, 2])
    assert centres(network, classes=10)["outcome"].tolist() == ["weight movement"]


def test_intervals_end_with_the_scale_and_the_decisions_follow_from_them() -> None:
    def values(name: str, *given: float) -> list[dict[str, object]]:
        return [{"arm": "residual", "outcome": name, "seed": i, "value": value} for i, value in enumerate(given)]

    table = values("weight movement", 0.3, 0.31, 0.32) + values("reset cost", 0.8, 0.81, 0.82)
    found = estimates(pd.DataFrame(table + values("read-out gain", 0.9, 0.3, 0.6)))
    half = 4.302653 * 0.01 / math.sqrt(3)
    movement = found["residual", "weight movement"]
    assert (movement.mean, movement.low, movement.high) == pytest.approx((0.31, 0.31 - half, 0.31 + half), abs=1e-6)
    gain = found["residual", "read-out gain"]
    assert (gain.low, gain.high) == (0, 1)
    numbers = estimate_table(found, 8).query("outcome == 'reset cost'").set_index("quantity")["value"]
    assert (numbers["n"], numbers["mean"]) == (3, pytest.approx(0.81))
    decided = decide(found, ("residual", "plain"))
    assert {effect: (margin, reading) for effect, (_, margin, reading) in decided.items()} == {
        "residual, weight movement": ("0.5", "shallow"),
        "residual, reset cost": ("0.5", "deep"),
        "residual, read-out gain": ("0.5", "undecided"),
    }
    assert decided["residual, reset cost"][0].startswith("0.81 [")
    assert len({measure.name for measure in MEASURES}) == len(MEASURES)
