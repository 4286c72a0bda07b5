"""The transformers' experiment: its text, its arms, what it measures and writes, and how it chooses rates."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from experiments.engine.running import distributed
from experiments.engine.running.messages import BadInput
from experiments.engine.running.output import Output
from experiments.engine.running.run import Run
from experiments.engine.statistics.long_tables import select
from experiments.engine.training.data import Arrays, Batches, Dataset
from experiments.engine.training.optimisation import Training
from experiments.engine.training.train_run import probing_batch
from experiments.transformer import (
    GAPS,
    KEPT,
    MEASURED,
    PROBED,
    UNSEEN,
    WIRINGS,
    Grid,
    Settings,
    best_rates,
    differences,
    evaluate,
    final_losses,
    frequency_loss,
    gaps_closed,
    make_network,
    measure,
    next_character,
    next_rate,
    optimiser_of,
    read_text,
    train_gpt,
    updates,
)
from models import residual_blocks
from probes import path_gradients, record
from tests.support.networks import values
from tests.support.scripts import drawn, toy_run

TOY = "--layers 2 --width 4 --heads 2 --context 8 --characters 1000 --epochs 1 --rates 0.01 0.03 --seeds 0"


def toy_text(characters: int = 1000) -> Dataset:
    return read_text(None, context=8, characters=characters)


def settings(**changes: Any) -> Settings:
    training = Training(epochs=1, batch_size=32, optimiser="adamw")
    given: dict[str, Any] = {"layers": 4, "width": 8, "heads": 2, "context": 8, "rates": (0.01,), "seeds": (0,)}
    return Settings(**{**given, "training": training, **changes})


def run_of(arm: str, *, tuning: bool = False, rate: float = 0.01, **changes: Any) -> Run:
    return Grid(settings(**changes), toy_text(), 1).run_of(arm, rate, 0, tuning=tuning)


def on_cpu(text: Dataset) -> Batches:
    return Batches(text, torch.device("cpu"))


def gradients_of(run: Run) -> dict[str, Tensor]:
    """By parameter, of a batch at the first weights."""
    text = toy_text()
    model, (given, following) = make_network(run, text), on_cpu(text).get("train", slice(0, 8))
    next_character(model(given), given, following).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


# The text


def test_sequences_follow_one_another_on_paper(tmp_path: Path) -> None:
    """Of 200 characters 180 are for training, 10 for validation, 10 for testing."""
    file = tmp_path / "text.txt"
    file.write_bytes(bytes(range(100, 120)) * 10)
    text = read_text(file, context=4)
    assert text.classes == tuple(map(chr, range(100, 120)))
    given, following = text.splits["test"]
    assert np.asarray(given).tolist() == [[10, 11, 12, 13], [14, 15, 16, 17]]
    assert following.tolist() == [[11, 12, 13, 14], [15, 16, 17, 18]]
    assert np.asarray(text.splits["validation"][0]).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert text.size("train") == 44


def test_the_default_text_is_python_s_own() -> None:
    text = read_text(None, context=64)
    assert text.size("train") > 5_000
    assert text.title.startswith("pydoc_data.topics (")
    numbers = np.asarray(text.splits["train"][0]).flatten()[:100_000]
    assert 'The "assert" statement' in "".join(text.classes[number] for number in numbers)


def test_another_text_or_another_cut_has_another_digest() -> None:
    digests = {read_text(None, context=c, characters=n).digest for c, n in ((8, 1000), (8, 1001), (9, 1000))}
    assert len(digests) == 3
    with pytest.raises(ValueError, match=r"its recipe says data .* and here it is"):
        train_gpt(run_of("residual"), text=toy_text(1001))


def test_processes_of_torchrun_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is read: each run would refuse them with an error of the library's."""
    monkeypatch.setattr(distributed, "count", lambda: 2)
    with pytest.raises(BadInput, match="run this without torchrun, and with --workers"):
        settings().check()


def test_a_short_text_is_refused() -> None:
    with pytest.raises(BadInput, match=r"pydoc_data.topics has 100 characters: sequences of 8 need 180, for each part"):
        toy_text(100)


def test_batches_are_sequences_and_what_follows_each() -> None:
    text = toy_text()
    batches = on_cpu(text)
    given, following = batches.get("train", torch.tensor([3, 0]))
    wanted = torch.from_numpy(np.asarray(text.splits["train"][0])).flatten()
    assert given.dtype == torch.int64, "characters are numbers, and are not normalised as pixels are"
    assert torch.equal(given[0], wanted[24:32])
    assert torch.equal(following[1], wanted[1:9])
    assert batches.size("train") == 112


# The arms


def test_arms_are_flows_first_weights_and_limits() -> None:
    for arm, wiring in WIRINGS.items():
        model = make_network(run_of(arm), toy_text())
        flows = [block.flow for block in residual_blocks(model)]
        assert flows[1::2] == [wiring.mlp] * 4
        assert set(flows[::2]) - {wiring.attention} == set(wiring.attention_flows(4)) - {wiring.attention}
        assert model.head.weight.dtype == (torch.float64 if arm.endswith("float64") else torch.float32)


def test_no_two_arms_train_alike_and_every_field_is_in_the_name() -> None:
    text, ends = toy_text(), dict[str, float]()
    for arm in WIRINGS:
        run = run_of(arm, tuning=True, layers=5)  # 4 of 4 blocks would be all of them
        ends[arm] = train_gpt(run, text=text).tables["losses"]["value"].tolist()[-1]
    assert len(set(ends.values())) == len(ends)
    for arm in (name.removesuffix("-float64") for name in WIRINGS if name.endswith("-float64")):
        assert ends[arm] == pytest.approx(ends[f"{arm}-float64"], rel=1e-2)  # shallow: nothing vanishes
    changes: list[dict[str, Any]] = [{}, {"width": 4}, {"heads": 1}, {"rate": 0.1}]
    names = {run_of("residual", **change).name for change in changes}
    assert len(names) == 4
    assert torch.tensor(1e-40).mul(1).item() > 0, "denormal numbers are flushed inside a run alone"


def test_a_gradient_of_kept_size_neither_vanishes_nor_explodes_with_depth() -> None:
    """From the second block on, where the embeddings' own small size does not count. No shortcut carries any of it;
    without that weight it vanishes."""
    text = toy_text()

    def norms(arm: str) -> list[float]:
        network = make_network(run := run_of(arm, layers=12, width=32), text)
        return values(measure(network, on_cpu(text), 0, False, run=run)["gradients"], "total")

    kept, vanished = norms("kept-size"), norms("stop-gradient")
    assert 0.1 < kept[2] / kept[-1] < 30
    assert vanished[2] / vanished[-1] < 1e-6
    assert KEPT.shortcut_gradient == 0
    model, (given, following) = make_network(run_of("kept-size"), text), on_cpu(text).get("train", slice(0, 2))
    with record(model) as recording:
        next_character(model(given), given, following).backward(retain_graph=True)
    assert not path_gradients(recording)[:-1].any()


def test_only_the_last_blocks_and_the_read_out_get_a_gradient() -> None:
    """That of the read-out alone is the gradient with respect to the head's matrix while the embedding's is cut."""
    frozen, whole = gradients_of(run_of("only-last-2")), gradients_of(run_of("residual"))
    for name, gradient in frozen.items():
        learns = name.startswith(("blocks.2", "blocks.3", "norm", "tokens"))
        assert bool(gradient.any()) == learns, name
        if learns and name != "tokens.weight":
            assert torch.equal(gradient, whole[name])
    text = toy_text()
    model, (given, following) = make_network(run_of("residual"), text), on_cpu(text).get("train", slice(0, 8))
    model.head.weight = nn.Parameter(model.head.weight.detach().clone())
    next_character(model(given), given, following).backward()
    wanted = model.head.weight.grad
    assert wanted is not None
    assert torch.allclose(frozen["tokens.weight"], wanted, rtol=1e-5, atol=1e-8)  # float32, another order of sums


def test_adam_sees_every_gradient_in_float64_alone() -> None:
    """Of a gradient of 1e-20 each first step is the whole learning rate; with 1e-8 beside it, it is nothing."""
    steps = {}
    for epsilon in (1e-8, UNSEEN):
        layer = nn.Linear(1, 1, bias=False, dtype=torch.float64)
        nn.init.zeros_(layer.weight)
        optimiser = optimiser_of(layer, Training(optimiser="adamw", learning_rate=25.0), epsilon=epsilon)
        layer.weight.grad = torch.full_like(layer.weight, 1e-20)
        optimiser.step()
        steps[epsilon] = abs(layer.weight.item())
    assert steps[UNSEEN] == pytest.approx(25.0)  # rounding alone
    assert steps[1e-8] == pytest.approx(25e-12)
    assert {WIRINGS[arm].epsilon for arm in WIRINGS if arm.endswith("float64")} == {UNSEEN}


def test_a_run_is_trained_with_its_arm_s_constant() -> None:
    """Beside a constant that is far larger than every gradient, nothing moves."""
    text, run = toy_text(), run_of("residual", tuning=True)
    still = replace(run, recipe=replace(run.recipe, wiring=replace(run.recipe.wiring, epsilon=1e6)))
    first, last = (train_gpt(one, text=text).tables["losses"]["value"].tolist() for one in (still, run))
    assert first[0] == last[0]
    assert first[2] - last[2] > 1e-3


# Measurements


def test_measurements_at_the_first_and_the_last_step() -> None:
    text = toy_text()
    tables = train_gpt(run_of("stop-gradient"), text=text).tables
    assert set(MEASURED) < set(tables)
    assert set(train_gpt(run_of("stop-gradient", tuning=True), text=text).tables) == {"outcomes", "curves", "losses"}
    for name in MEASURED:
        assert tables[name]["epoch"].unique().tolist() == [0, 1], name
    blocks = [f"blocks.{block}.{part}" for block in range(4) for part in ("attention", "mlp")]
    for name in set(MEASURED) - {"paths", "kinds"}:
        assert tables[name]["block"].unique().tolist()[:8] == blocks, name
    cosine = select(tables["alignment"], quantity="cosine", epoch=0).set_index("block")["value"]
    assert cosine["blocks.3.mlp"] == pytest.approx(1, abs=1e-6)  # nothing is above it; float32
    assert cosine["blocks.0.attention"] < 0.9
    network, given, following = probing_batch(make_network(run_of("stop-gradient"), text), on_cpu(text), most=PROBED)
    read = select(tables["read_out"], quantity="loss", epoch=0, block="blocks.3.mlp")["value"].item()
    assert read == pytest.approx(next_character(network(given), given, following).item(), rel=1e-6)  # float32
    assert select(tables["paths"], quantity="share", path_length=8)["value"].tolist() == pytest.approx([1, 1])
    # Stop-gradient has the longest path alone, which takes all attentions and all MLPs.
    assert select(tables["kinds"], quantity="share", path_length=8, count=4)["value"].tolist() == pytest.approx([1, 1])


def test_paths_by_kind_are_those_by_length_taken_apart() -> None:
    """The share of a length is the sum of the shares of its kinds; a path of one branch takes an attention or none."""
    found = measure(make_network(run_of("residual"), toy_text()), on_cpu(toy_text()), 0, False, run=run_of("residual"))
    kinds, paths = (select(found[name], quantity="share") for name in ("kinds", "paths"))
    assert kinds.groupby("path_length")["value"].sum().tolist() == pytest.approx(paths["value"].tolist(), abs=1e-6)
    assert select(kinds, path_length=1)["count"].tolist() == [0, 1]


def test_the_alignment_is_that_of_the_arm_s_own_limited_gradient() -> None:
    text = toy_text()
    run = run_of("at-most-2")
    found = measure(make_network(run, text), on_cpu(text), 0, False, run=run)
    cosine = select(found["alignment"], quantity="cosine").set_index("block")["value"]
    assert cosine["blocks.0.attention"] < 1 - 1e-7
    assert cosine["blocks.3.attention"] == pytest.approx(1, abs=1e-6)  # one branch above it
    lengths = select(found["paths"], quantity="norm").set_index("path_length")["value"]
    assert lengths[3] > 0, "paths are all paths"


def test_the_measured_step_is_adam_s_first_and_moves_a_copy() -> None:
    """Every weight whose gradient Adam sees moves by the whole rate."""
    text, run = toy_text(), run_of("residual-float64")
    model = make_network(run, text)
    given, following = on_cpu(text).get("train", slice(0, 8))
    before = {name: x.detach().clone() for name, x in model.named_parameters()}
    found = measure(model, on_cpu(text), 0, False, run=run)["updates"]
    assert all(torch.equal(x, before[name]) for name, x in model.named_parameters())
    updates(model, given, following, run=run)
    name = "blocks.0.mlp.branch.mlp.output.weight"
    moved = model.get_parameter(name) - before[name]
    assert moved.abs().max().item() == pytest.approx(0.01, rel=1e-3)  # weight decay adds 1e-4 of the weight
    assert set(found["quantity"]) == {"weights", "function", "output"}


def test_evaluation_is_the_mean_over_all_characters() -> None:
    text = toy_text()
    model, batches = make_network(run_of("residual"), text), on_cpu(text)

    def loss(start: int) -> Tensor:
        given, following = batches.get("train", slice(start, start + 1))
        return next_character(model(given), given, following)

    wanted = torch.stack([loss(start) for start in range(batches.size("train"))]).mean().item()
    assert evaluate(model, batches, "train")["loss"] == pytest.approx(wanted, rel=1e-5)  # float32


# The search


def test_rates_are_chosen_by_validation_where_no_seed_diverged() -> None:
    """Arm a: 0.3, which is better than 0.2, lacks a seed. Arm b has no rate."""
    rows = [
        ("residual", 0.2, 0, 2.0), ("residual", 0.2, 1, 2.2),
        ("a", 0.1, 0, 2.1), ("a", 0.1, 1, 2.1), ("a", 0.2, 0, 1.9), ("a", 0.2, 1, 2.1),
        ("a", 0.3, 0, 1.0), ("b", 0.1, 1, 1.0),
    ]  # fmt: skip
    found = pd.DataFrame(rows, columns=["arm", "learning_rate", "seed", "value"])
    outcomes = found.assign(split="validation", quantity="loss")
    assert best_rates(outcomes, seeds=2) == {"residual": (0.2, 2.1), "a": (0.2, 2.0)}


def test_a_best_rate_at_an_end_is_tried_beyond_it_twice() -> None:
    assert next_rate({0.001, 0.003, 0.01}, best=0.003, first=3) is None
    assert next_rate({0.001, 0.003, 0.01}, best=0.01, first=3) == 0.0316
    assert next_rate({0.001, 0.003, 0.01}, best=0.001, first=3) == 0.000316
    assert next_rate({0.001, 0.003, 0.01, 0.0316}, best=0.0316, first=3) == 0.0999
    assert next_rate({0.001, 0.003, 0.01, 0.0316, 0.0999}, best=0.0999, first=3) is None


def test_what_has_not_learned_is_tried_at_lower_rates_twice() -> None:
    assert next_rate({0.001, 0.003, 0.01}, best=None, first=3) == 0.000316
    assert next_rate({0.000316, 0.001, 0.003, 0.01}, best=None, first=3) == 0.0000999
    assert next_rate({0.0000999, 0.000316, 0.001, 0.003, 0.01}, best=None, first=3) is None


@pytest.mark.parametrize(("loss", "further"), [(3.0, [0.0316, 0.0999]), (3.39, [0.000316, 0.0000999])])
def test_an_arm_at_chance_looks_for_lower_rates(
    loss: float, further: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The highest rate is best at every step of the search; chance is 3.4, and what is within 0.1 of it is at it."""
    grid = Grid(settings(arms=("plain",), rates=(0.001, 0.003, 0.01)), toy_text(), 1)
    tried: set[float] = set()

    def run(
        self: Grid, runs: list[Run], output: Output, *, then: str = ""
    ) -> tuple[dict[str, pd.DataFrame], list[Run]]:
        found = [{"arm": one.arm, "learning_rate": one.labels["learning_rate"]} for one in runs]
        tried.update(row["learning_rate"] for row in found)
        rows = pd.DataFrame(found).assign(split="validation", quantity="loss")
        return {"outcomes": rows.assign(value=loss - rows["learning_rate"] / 1000)}, []

    monkeypatch.setattr(Grid, "run", run)
    monkeypatch.setattr("experiments.transformer.frequency_loss", lambda text, split: 3.4)
    assert grid.best_rates(Output(tmp_path)) == {"plain": max(tried)}
    assert tried == {0.001, 0.003, 0.01, *further}


def test_the_loss_of_one_who_knows_frequencies_alone_is_as_on_paper() -> None:
    """Of "ab", b follows thrice as often as a in training; one more of each, so that nothing is impossible."""
    train, test = np.array([[0, 1, 1, 1]]), np.array([[0, 1]])
    splits: dict[str, Arrays] = {"train": (np.zeros_like(train), train), "test": (np.zeros_like(test), test)}
    text = Dataset("", ("a", "b"), splits, augment="none", normalise="none")
    assert frequency_loss(text, "test") == pytest.approx(-(np.log(2 / 6) + np.log(4 / 6)) / 2, rel=1e-12)


def test_each_gap_of_the_longer_arms_can_be_read_among_them() -> None:
    arms = Settings().longer_arms
    assert {GAPS[arm] for arm in arms if arm in GAPS} <= set(arms)


def test_each_budget_has_its_arms_rates_seeds_and_epochs() -> None:
    given = settings(seeds=(0, 1, 2), longer_seeds=2, longer_arms=("plain",), longer_rates=(0.5,))
    assert given.at(1) == given
    longer = given.at(3)
    assert (longer.arms, longer.rates, longer.seeds, longer.training.epochs) == (("plain",), (0.5,), (0, 1), 3)
    runs = Grid(longer, toy_text(), 3).runs({"plain": 0.5})
    assert [(run.seed, run.recipe.training.epochs, run.labels["budget"]) for run in runs] == [(0, 3, 3), (1, 3, 3)]


# The report


def losses_of(**by_arm: tuple[float, ...]) -> pd.DataFrame:
    rows = [
        {"arm": arm.replace("_", "-"), "seed": seed, "split": split, "quantity": "loss", "value": value + shift}
        for arm, of_seeds in by_arm.items()
        for seed, value in enumerate(of_seeds)
        for split, shift in (("validation", 7.0), ("test", 0.0))
    ]
    return final_losses(pd.DataFrame(rows))


def test_differences_and_gaps_are_paired_by_seed_and_of_the_test_text() -> None:
    losses = losses_of(
        residual=(1.0, 1.2, 1.1), stop_gradient=(2.0, 2.2, 2.1), kept_size=(1.25, 1.45, 1.35), only_last_2=(1.5, 1.7)
    )
    found = differences(losses)
    assert found["stop-gradient", "residual"].values == pytest.approx((1, 1, 1))
    assert found["only-last-2", "stop-gradient"].values == pytest.approx((-0.5, -0.5))
    assert ("kept-size", "stop-gradient") not in found
    gaps = gaps_closed(losses)
    assert (gaps["kept-size"].mean, gaps["kept-size"].recovers) == (pytest.approx(0.75), "yes")
    assert set(gaps) == {"kept-size", "only-last-2"}
    assert differences(losses[["stop-gradient"]]) == {}
    assert set(GAPS) <= set(WIRINGS)


# The script


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    return toy_run("transformer", *TOY.split(), "--arms", "residual", "stop-gradient", "only-last-2",
                   "--budgets", "1", "2", "--longer-arms", "residual", "--longer-rates", "0.01",
                   cwd=tmp_path_factory.mktemp("toy"))  # fmt: skip


def test_tables_and_figures(toy: tuple[Path, str]) -> None:
    folder, shown = toy
    for of_budget in (folder, folder / "budget2"):
        assert drawn(of_budget) == {"losses", "gradient_norms", "path_lengths", "alignment", "stream"}
    outcomes = pd.read_csv(folder / "outcomes.csv")
    assert outcomes[["arm", "split"]].values.tolist() == [
        [arm, split] for arm in ("residual", "stop-gradient", "only-last-2") for split in ("validation", "test")
    ]
    assert outcomes["value"].between(2, 5).all()
    scores = pd.read_csv(folder / "scores.csv")
    assert scores["outcome"].unique().tolist() == [
        "test loss", "test loss - residual", "test loss - stop-gradient", "gap closed from stop-gradient",
    ]  # fmt: skip
    paths = pd.read_csv(folder / "paths.csv").pivot_table(
        index=["arm", "epoch"], columns=["quantity", "path_length"], values="value"
    )
    assert (paths["norm"].loc["stop-gradient"].to_numpy()[:, :4] == 0).all()
    assert "pydoc_data.topics (1,000 characters, SHA-256" in shown
    assert "2 layers, 1 epochs. One text, one size of network" in " ".join(shown.split())
    assert "2 layers, 2 epochs." in " ".join(shown.split())
    assert pd.read_csv(folder / "budget2" / "outcomes.csv")["budget"].unique().tolist() == [2]


def test_rates_are_tuned_on_other_seeds_and_never_on_the_test_text(toy: tuple[Path, str]) -> None:
    folder, _ = toy
    tuning, outcomes = pd.read_csv(folder / "tuning" / "outcomes.csv"), pd.read_csv(folder / "outcomes.csv")
    assert tuning["seed"].unique().tolist() == [100]
    assert outcomes["seed"].unique().tolist() == [0]
    assert tuning["split"].unique().tolist() == ["validation"]
    for arm, rows in tuning.groupby("arm"):
        tried = rows.set_index("learning_rate")["value"]
        assert 3 <= len(tried) <= 4, "the best of two is always at an end"
        assert outcomes[outcomes["arm"] == arm]["learning_rate"].unique().tolist() == [tried.idxmin()]
    reports = [json.loads(file.read_text()) for file in (folder / "runs").glob("*/run.json")]
    assert {report["run"]["recipe"]["flush_denormal"] for report in reports} == {True}
    assert len(reports) == len(tuning) + 3 + 1
