"""The forward-statistics experiment: dead networks, decisions on paper, and a run at toy size."""

from dataclasses import replace
from itertools import product
from pathlib import Path

import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from experiments.engine.conditions.catalogue import FORWARDS, on_networks
from experiments.engine.conditions.conditions import Condition, ConditionSettings
from experiments.engine.conditions.gap_closed import NO_GAP, condition_table, gaps_closed
from experiments.engine.conditions.learning_rate_search import ConditionRunner
from experiments.engine.running.output import Output
from experiments.engine.running.run import Run
from experiments.engine.statistics.factorial import FACTORIAL
from experiments.engine.training.data import Batches, Data, load
from experiments.engine.training.loop import train
from experiments.engine.training.optimisation import Training
from experiments.engine.training.train_run import make_network
from experiments.forward_statistics import Settings, count_recovering, decisions, is_dead, report
from tests.support.conditions import is_best
from tests.support.drawings import pick
from tests.support.scripts import drawn, toy_run

DEAD = set(product(("skipinit", "fixup"), ("plain", "gradient-only")))
SAME = ("resnet", "norm-after-sum", "preactivation")
ERRORS = {  # test errors by seed
    "residual": (0.10, 0.11, 0.12),
    "stop-gradient": (0.18, 0.20, 0.19),
    "gradient-only": (0.80, 0.81, 0.79),
    "plain": (0.90, 0.92, 0.91),
}
ALIVE = on_networks(("resnet",))
ASIDE = on_networks(("fixup",))


@pytest.fixture(scope="module")
def runner() -> ConditionRunner:
    settings = ConditionSettings(depths=(8,), width=4, data=Data(train_limit=128))
    return ConditionRunner(settings, load(settings.data))


def run_of(runner: ConditionRunner, network: str, arm: str) -> Run:
    return runner.run_of(Condition("any", arm, network=network), 8, 0, 0.1)


def test_dead_are_the_arms_without_a_shortcut_s_value_whose_branches_begin_at_zero(runner: ConditionRunner) -> None:
    found = {pair for pair in product(FORWARDS, FACTORIAL) if is_dead(run_of(runner, *pair), runner.dataset)}
    assert found == DEAD


@pytest.mark.parametrize("pair", sorted(DEAD))
def test_what_is_dead_stays_dead(runner: ConditionRunner, pair: tuple[str, str]) -> None:
    model, batches = make_network(run_of(runner, *pair), runner.dataset), Batches(runner.dataset, torch.device("cpu"))
    for _ in train(model, batches, Training(epochs=5), seed=0):
        pass
    outputs = model(batches.get("train", slice(0, 64))[0])
    assert torch.equal(outputs, outputs[:1].expand_as(outputs))
    assert not torch.equal(outputs[0], torch.zeros(10))  # the classifier's bias has learned


def test_skipinit_under_stop_gradient_begins_with_its_last_factor(runner: ConditionRunner) -> None:
    """The branches' factors are 0, so that nothing comes through the last branch, and the shortcut is cut."""
    model = make_network(run_of(runner, "skipinit", "stop-gradient"), runner.dataset)
    images, labels = Batches(runner.dataset, torch.device("cpu")).get("train", slice(0, 64))
    F.cross_entropy(model(images), labels).backward()
    moved = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert moved == {"layer3.0.branch.scale.alpha", "classifier.weight", "classifier.bias"}


def test_without_shortcuts_three_of_the_networks_are_the_same(runner: ConditionRunner) -> None:
    images, _ = Batches(runner.dataset, torch.device("cpu")).get("train", slice(0, 64))
    outputs = [make_network(run_of(runner, network, "plain"), runner.dataset)(images) for network in SAME]
    assert all(torch.equal(outputs[0], other) for other in outputs[1:])
    residual = [make_network(run_of(runner, network, "residual"), runner.dataset)(images) for network in SAME]
    assert not any(torch.allclose(residual[0], other) for other in residual[1:])


def outcomes(errors: dict[str, tuple[float, ...]], conditions: tuple[Condition, ...]) -> pd.DataFrame:
    return pd.DataFrame(
        {"network": c.network, "control": c.name, "arm": c.arm, "depth_total": 8, "seed": seed, **about}
        for c in conditions
        if c.arm in errors
        for seed, error in enumerate(errors[c.arm])
        for about in (
            {"split": "test", "quantity": "accuracy", "value": 1 - error},
            {"split": "train", "quantity": "loss", "value": 10 * error},
        )
    )


def decided(errors: dict[str, tuple[float, ...]]) -> tuple[dict[str, tuple[str, str, str]], str]:
    """The decisions on one network, and the count."""
    runs = condition_table(outcomes(errors, ALIVE), 1000)
    gaps = gaps_closed(runs, ALIVE, [8])
    return decisions(runs, gaps, {"resnet": 8}, []), count_recovering(gaps, ALIVE)


def test_decisions_by_whole_intervals() -> None:
    found, counts = decided(ERRORS)
    estimate, margin, word = found["R of resnet, stop-gradient"]
    assert (estimate[:9], margin, word) == ("0.90 [0.8", "0.5", "more than half")
    assert found["R of resnet, gradient-only"][2] == "less than half"
    assert len(found) == 2
    assert counts == "by stop-gradient on 1 of 1 networks, by gradient-only on 0 of 1 networks"
    scattered, counts = decided(ERRORS | {"stop-gradient": (0.10, 0.50, 0.90)})
    assert scattered["R of resnet, stop-gradient"][2] == "undecided"
    assert counts.startswith("by stop-gradient on 0 of 1 networks")
    alike, _ = decided(ERRORS | {"plain": ERRORS["residual"]})
    assert alike["R of resnet, stop-gradient"] == ("no degradation", "0.5", NO_GAP)
    two, _ = decided({arm: errors[:2] for arm, errors in ERRORS.items()})
    assert two["R of resnet, stop-gradient"] == ("fewer than three seeds", "0.5", "undecided")


def test_where_plain_is_dead_there_is_no_r() -> None:
    dead = [c for c in ASIDE if c.arm in ("plain", "gradient-only")]
    living = tuple(c for c in ASIDE if c not in dead)
    runs = condition_table(pd.concat([outcomes(ERRORS, ALIVE), outcomes(ERRORS, living)]), 1000)
    found = decisions(runs, gaps_closed(runs, ALIVE, [8]), {"resnet": 8, "fixup": 8}, dead)
    assert [effect for effect in found if "resnet" not in effect] == ["fixup: stop-gradient - residual"]
    assert found["fixup: stop-gradient - residual"] == (
        "+0.080 [+0.055, +0.105]",
        "0.02",
        "worse; gradient-only and plain dead by construction: no R",
    )
    lost = decisions(runs[runs["control"] != "fixup, residual"], {}, {"fixup": 8}, dead)
    assert lost["fixup: stop-gradient - residual"][2].startswith("no seed has both; gradient-only")


def test_conditions_of_a_network_are_named_and_share_the_arms_runs(runner: ConditionRunner) -> None:
    assert [c.name for c in ALIVE] == [f"resnet, {arm}" for arm in FACTORIAL]
    given = [replace(c, name="x", network=network) for c in ALIVE for network in (None, "resnet")]
    assert len({runner.run_of(c, 8, 0, 0.1).name for c in given}) == 4


def test_what_diverged_is_named(runner: ConditionRunner, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = Settings(out=tmp_path, networks=("resnet",), depth=8)
    lost = runner.run_of(ALIVE[1], 8, 3, 0.1)
    rates = {(c.name, 8): 0.1 for c in ALIVE}
    tables = {"outcomes": outcomes(ERRORS, ALIVE)}
    report(tables, [lost], ALIVE, [], rates, runner.dataset, settings, Output(tmp_path))
    shown = " ".join(capsys.readouterr().out.split())
    assert "Diverged, and left out of means and differences: resnet, stop-gradient at depth 8 (1 seed)." in shown
    assert drawn(tmp_path) == {"forward_statistics", "gap_closed"}


def test_the_mlp_is_asked_at_a_depth_at_which_it_stays_finite() -> None:
    settings = Settings()
    assert [settings.depth_of(network) for network in ("resnet", "mlp")] == [32, 8]
    assert replace(settings, depth=5).depth_of("mlp") == 5


@pytest.mark.slow
def test_a_run_at_toy_size(tmp_path: Path) -> None:
    arguments = ["--networks", "fixup", "resnet", "--depth", 8, "--seeds", 0, 1, 2, "--tuning-seeds", 100]
    arguments += ["--epochs", 1, "--width", 2, "--train-limit", 256]
    folder, shown = toy_run("forward_statistics", *arguments, cwd=tmp_path)
    found = pd.read_csv(folder / "outcomes.csv")
    trained = {(str(network), str(arm)) for network, arm in found[["network", "arm"]].to_numpy()}
    assert trained == set(product(("fixup", "resnet"), FACTORIAL)) - DEAD
    counts = pick(found, split="test", quantity="accuracy").groupby(["network", "arm"]).size()
    assert (counts == 3).all()
    tuned = pd.read_csv(folder / "tuning" / "depth8" / "tuning.csv")
    accuracies = tuned[tuned["quantity"] == "accuracy"]
    for control, rate in found.groupby("control")["learning_rate"].first().items():
        assert is_best(rate, pick(accuracies, control=control))  # one tuning seed
    assert "forward_statistics" in drawn(folder)
    assert "fixup: stop-gradient -" in " ".join(shown.split())
