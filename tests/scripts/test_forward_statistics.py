"""The forward-statistics experiment: dead networks, verdicts on paper, its figure, and a run at toy size."""

from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

import figures
from experiments.engine.answer import FORWARDS, on_networks
from experiments.engine.cells import make_network
from experiments.engine.condition_scores import Key, condition_table, scores
from experiments.engine.conditions import Bench, Condition, ConditionSettings
from experiments.engine.data import Batches, Data, load
from experiments.engine.dead import is_dead
from experiments.engine.effects import FACTORIAL
from experiments.engine.forward_reading import sentence, verdict
from experiments.engine.grid import Cell
from experiments.engine.score import NONE_TO_EXPLAIN, recovery
from experiments.engine.training import Training, train
from experiments.forward_statistics import EXPERIMENT, Settings, finish
from tests.conditions import is_best
from tests.scripts import print_of, run
from tests.test_figures import pick

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
def bench() -> Bench:
    settings = ConditionSettings(depths=(8,), width=4, data=Data(train_limit=128))
    return Bench(settings, load(settings.data))


def cell(bench: Bench, network: str, arm: str) -> Cell:
    return bench.cell(Condition("any", arm, network=network), 8, 0, 0.1)


def test_dead_are_the_arms_without_a_shortcut_s_value_whose_branches_begin_at_zero(bench: Bench) -> None:
    found = {pair for pair in product(FORWARDS, FACTORIAL) if is_dead(cell(bench, *pair), bench.dataset)}
    assert found == DEAD


@pytest.mark.parametrize("pair", sorted(DEAD))
def test_what_is_dead_stays_dead(bench: Bench, pair: tuple[str, str]) -> None:
    model, batches = make_network(cell(bench, *pair), bench.dataset), Batches(bench.dataset, torch.device("cpu"))
    for _ in train(model, batches, Training(epochs=5), seed=0):
        pass
    outputs = model(batches.get("train", slice(0, 64))[0])
    assert torch.equal(outputs, outputs[:1].expand_as(outputs))
    assert not torch.equal(outputs[0], torch.zeros(10))  # the classifier's bias has learned


def test_skipinit_under_stop_gradient_begins_with_its_last_factor(bench: Bench) -> None:
    """The branches' factors are 0, so that nothing comes through the last branch, and the shortcut is cut."""
    model = make_network(cell(bench, "skipinit", "stop-gradient"), bench.dataset)
    images, labels = Batches(bench.dataset, torch.device("cpu")).get("train", slice(0, 64))
    F.cross_entropy(model(images), labels).backward()
    moved = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert moved == {"layer3.0.branch.scale.alpha", "classifier.weight", "classifier.bias"}


def test_without_shortcuts_three_of_the_networks_are_the_same(bench: Bench) -> None:
    images, _ = Batches(bench.dataset, torch.device("cpu")).get("train", slice(0, 64))
    outputs = [make_network(cell(bench, network, "plain"), bench.dataset)(images) for network in SAME]
    assert all(torch.equal(outputs[0], each) for each in outputs[1:])
    residual = [make_network(cell(bench, network, "residual"), bench.dataset)(images) for network in SAME]
    assert not any(torch.allclose(residual[0], each) for each in residual[1:])


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


def reading(errors: dict[str, tuple[float, ...]]) -> str:
    cells = condition_table(outcomes(errors, ALIVE), 1000)
    return sentence(cells, scores(cells, ALIVE, [8]), {"resnet": 8}, [], title="paper")


def test_the_sentence_counts_networks_by_whole_intervals() -> None:
    said = reading(ERRORS)
    assert "Of 1 networks, stop-gradient recovers more than half on 1 (resnet (0.90 [0.8" in said
    assert "Of 1 networks, gradient-only recovers less than half on 1 (resnet (0.14 [" in said
    assert "their number, 2." in said
    assert "stop-gradient is undecided on 1" in reading(ERRORS | {"stop-gradient": (0.10, 0.50, 0.90)})
    alike = reading(ERRORS | {"plain": ERRORS["residual"]})
    assert "stop-gradient has no degradation to explain on 1 (resnet)" in alike
    assert "is undecided on 1" in reading({arm: two[:2] for arm, two in ERRORS.items()})


def test_verdicts() -> None:
    plain, residual = np.array([0.90, 0.92, 0.91]), np.array([0.10, 0.11, 0.12])
    halfway = recovery(plain, np.array([0.45, 0.55, 0.50]), residual)
    assert verdict(halfway) == "is undecided"
    assert verdict(recovery(plain, plain, residual)) == "recovers less than half"
    assert verdict(recovery(plain, residual, residual)) == "recovers more than half"
    none = recovery(residual, residual, residual)
    assert (none.note, verdict(none)) == (NONE_TO_EXPLAIN, "has no degradation to explain")


def test_where_plain_is_dead_there_is_no_r() -> None:
    dead = [c for c in ASIDE if c.arm in ("plain", "gradient-only")]
    living = tuple(c for c in ASIDE if c not in dead)
    cells = condition_table(pd.concat([outcomes(ERRORS, ALIVE), outcomes(ERRORS, living)]), 1000)
    found: dict[Key, object] = dict(scores(cells, ALIVE, [8]))
    said = sentence(cells, found, {"resnet": 8, "fixup": 8}, dead, title="paper")  # type: ignore[arg-type]
    assert "Of 1 networks, stop-gradient" in said
    assert "fixup: gradient-only and plain are dead by construction, so there is no R; stop-gradient against" in said
    assert "residual: worse (test error +0.080 [+0.055, +0.105], margin 0.02)" in said


def test_the_figure_names_what_it_lacks() -> None:
    rows = outcomes(ERRORS, ALIVE)
    drawn = rows.assign(quantity=rows["quantity"].replace("accuracy", "error"))
    other = drawn[drawn["arm"] != "plain"].assign(network="fixup")

    def title(table: pd.DataFrame) -> str:
        return figures.variants(table)[0, 0].figure.legends[0].get_title().get_text().replace("\n", " ")

    assert "×: no value" in title(pd.concat([drawn, other]))
    assert "no value" not in title(drawn)


def test_conditions_of_a_network_are_named_and_share_the_arms_cells(bench: Bench) -> None:
    assert [c.name for c in ALIVE] == [f"resnet, {arm}" for arm in FACTORIAL]
    names = {
        bench.cell(replace(c, name="x", network=network), 8, 0, 0.1).name for c in ALIVE for network in (None, "resnet")
    }
    assert len(names) == 4


def test_what_diverged_is_said(bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = Settings(out=tmp_path, networks=("resnet",), depth=8)
    (tmp_path / EXPERIMENT / "figures").mkdir(parents=True)
    ends = outcomes(ERRORS, ALIVE)
    lost = bench.cell(ALIVE[1], 8, 3, 0.1)
    rates = {(c.name, 8): 0.1 for c in ALIVE}
    finish({"outcomes": ends}, [lost], ALIVE, [], rates, bench, settings)
    said = " ".join(capsys.readouterr().out.split())
    assert "Diverged, and left out of means and differences: resnet, stop-gradient at depth 8 (1 seed)." in said


def test_the_mlp_is_asked_at_a_depth_at_which_it_stays_finite() -> None:
    settings = Settings()
    assert [settings.depth_of(network) for network in ("resnet", "mlp")] == [32, 8]
    assert replace(settings, depth=5).depth_of("mlp") == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--networks", "vgg"], "--networks: unknown 'vgg'; choose from resnet"),
        (["--networks", "resnet", "resnet"], "--networks: got resnet resnet; give one or more, each once"),
        (["--depth", "-300"], "--depth -300: depth -300 is not 6n + 2"),
    ],
)
def test_a_users_mistake_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    shown = print_of("forward_statistics", arguments, capsys, status=2)
    assert (message in shown, len(shown.splitlines())) == (True, 1)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_run_at_toy_size_resumes(tmp_path: Path) -> None:
    arguments = ["--networks", "fixup", "resnet", "--depth", 8, "--seeds", 0, 1, 2, "--tuning-seeds", 100]
    arguments += ["--epochs", 1, "--width", 2, "--train-limit", 256]
    done = run("forward_statistics", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "results" / "forward_statistics"
    found = pd.read_csv(folder / "outcomes.csv")
    trained = {(str(network), str(arm)) for network, arm in found[["network", "arm"]].to_numpy()}
    assert trained == set(product(("fixup", "resnet"), FACTORIAL)) - DEAD
    counts = pick(found, split="test", quantity="accuracy").groupby(["network", "arm"]).size()
    assert (counts == 3).all()
    tuned = pd.read_csv(folder / "tuning" / "depth8" / "tuning.csv")
    accuracies = tuned[tuned["quantity"] == "accuracy"]
    for control, rate in found.groupby("control")["learning_rate"].first().items():
        assert is_best(rate, pick(accuracies, control=control))  # one tuning seed
    assert {file.suffix for file in (folder / "figures").glob("forward_statistics.*")} == {".csv", ".pdf", ".png"}
    assert "fixup: gradient-only and plain are dead by construction" in " ".join(done.stdout.split())
    again = run("forward_statistics", *arguments, cwd=tmp_path)
    assert "18 of 18 cells are already done" in again.stderr
    assert again.stdout == done.stdout
