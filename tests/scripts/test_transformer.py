"""The transformers' experiment: its text, its arms, what it writes at toy size, and how it chooses rates."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from experiments.engine.running.messages import BadInput
from experiments.engine.running.run import Run
from experiments.engine.training.optimisation import Training
from experiments.transformer import (
    KEPT,
    WIRINGS,
    Settings,
    Text,
    TextBatches,
    Wiring,
    against_residual,
    best_rates,
    evaluate,
    make_network,
    make_runs,
    measure,
    next_character,
    read_text,
    train_gpt,
)
from models import residual_blocks
from probes import path_gradients, record
from tests.support.networks import values
from tests.support.scripts import drawn, toy_run

TOY = "--layers 1 --width 4 --heads 2 --context 8 --characters 1000 --epochs 1 --rates 0.01 --seeds 0"


def toy_text() -> Text:
    return read_text(None, context=8, characters=1000)


def settings(**changes: Any) -> Settings:
    training = Training(epochs=1, batch_size=32, optimiser="adamw")
    given: dict[str, Any] = {"layers": 2, "width": 8, "heads": 2, "context": 8, "rates": (0.01,), "seeds": (0,)}
    return Settings(**{**given, "training": training, **changes})


def run_of(arm: str, **changes: Any) -> Run:
    (run,) = make_runs(settings(arms=(arm,), **changes), toy_text())
    return run


# The text


def test_sequences_follow_one_another_on_paper(tmp_path: Path) -> None:
    """Of 200 characters 180 are for training, 10 for validation, 10 for testing."""
    file = tmp_path / "text.txt"
    file.write_bytes(bytes(range(100, 120)) * 10)
    text = read_text(file, context=4)
    assert text.alphabet == bytes(range(100, 120))
    assert {part: len(numbers) for part, numbers in text.parts.items()} == {"train": 180, "validation": 10, "test": 10}
    assert text.parts["validation"].tolist() == list(range(10))
    given, following = text.sequences("test")
    assert given.tolist() == [[10, 11, 12, 13], [14, 15, 16, 17]]
    assert following.tolist() == [[11, 12, 13, 14], [15, 16, 17, 18]]
    assert text.sequences("train")[0].shape == (44, 4)


def test_the_default_text_is_python_s_own() -> None:
    text = read_text(None, context=64)
    assert sum(map(len, text.parts.values())) > 400_000
    assert text.title.startswith("pydoc_data.topics (")
    content = np.frombuffer(text.alphabet, np.uint8)[np.concatenate(list(text.parts.values()))].tobytes()
    assert b'The "assert" statement' in content


def test_another_text_or_another_cut_has_another_digest() -> None:
    digests = {read_text(None, context=c, characters=n).digest for c, n in ((8, 1000), (8, 1001), (9, 1000))}
    assert len(digests) == 3
    with pytest.raises(ValueError, match=r"its recipe says data .* and here it is"):
        train_gpt(run_of("residual"), text=read_text(None, context=8, characters=1001))


def test_a_short_text_is_refused() -> None:
    with pytest.raises(BadInput, match=r"pydoc_data.topics has 100 characters: sequences of 8 need 180, for each part"):
        read_text(None, context=8, characters=100)


def test_batches_are_sequences_and_what_follows_each() -> None:
    text = toy_text()
    batches = TextBatches(text, torch.device("cpu"))
    given, following = batches.get("train", torch.tensor([3, 0]))
    wanted = torch.from_numpy(text.parts["train"])
    assert torch.equal(given[0], wanted[24:32])
    assert torch.equal(following[1], wanted[1:9])
    assert batches.size("train") == 112


# The arms


def test_arms_are_flows_first_weights_and_limits() -> None:
    for arm, wiring in WIRINGS.items():
        flows = [block.flow for block in residual_blocks(make_network(run_of(arm), toy_text()))]
        assert flows == [wiring.attention, wiring.mlp] * 2
    assert WIRINGS["at-most-2"] == Wiring(at_most=2)


def test_no_two_arms_train_alike_and_every_field_is_in_the_name() -> None:
    ends, text = {}, toy_text()
    for arm in WIRINGS:
        ends[arm] = train_gpt(run_of(arm), text=text).tables["losses"]["value"].tolist()[-1]
    assert len(set(ends.values())) == len(ends)
    names = {run_of("residual", **change).name for change in ({}, {"width": 4}, {"heads": 1}, {"rates": (0.1,)})}
    assert len(names) == 4
    assert torch.tensor(1e-40).mul(1).item() > 0, "denormal numbers are flushed inside a run alone"


def fork_gradients(arm: str, layers: int) -> list[float]:
    """Norms of the gradient at every fork, before training."""
    run = run_of(arm, layers=layers, width=32)
    text = toy_text()
    tables = measure(make_network(run, text), TextBatches(text, torch.device("cpu")), epoch=0)
    return values(tables["gradients"], "total")


def test_a_gradient_of_kept_size_neither_vanishes_nor_explodes_with_depth() -> None:
    """From the second block on, where the embeddings' own small size does not count. No shortcut carries any of it;
    without that weight it vanishes."""
    kept, vanished = fork_gradients("kept-size", 12), fork_gradients("stop-gradient", 12)
    assert 0.1 < kept[2] / kept[-1] < 30
    assert vanished[2] / vanished[-1] < 1e-6
    assert KEPT.shortcut_gradient == 0
    run, text = run_of("kept-size"), toy_text()
    model, batches = make_network(run, text), TextBatches(text, torch.device("cpu"))
    given, following = batches.get("train", slice(0, 2))
    with record(model) as recording:
        next_character(model(given), given, following).backward(retain_graph=True)
    assert not path_gradients(recording)[:-1].any()


def test_evaluation_is_the_mean_over_all_characters() -> None:
    text = toy_text()
    model, batches = make_network(run_of("residual"), text), TextBatches(text, torch.device("cpu"))

    def loss(start: int) -> Tensor:
        given, following = batches.get("train", slice(start, start + 1))
        return next_character(model(given), given, following)

    wanted = torch.stack([loss(start) for start in range(batches.size("train"))]).mean().item()
    assert evaluate(model, batches, "train")["loss"] == pytest.approx(wanted, rel=1e-5)  # float32


# The script


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    return toy_run("transformer", *TOY.split(), "--arms", "residual", "stop-gradient", "near-identity",
                   cwd=tmp_path_factory.mktemp("toy"))  # fmt: skip


def test_tables_and_figures(toy: tuple[Path, str]) -> None:
    folder, shown = toy
    assert drawn(folder) == {"gradient_norms", "path_lengths"}
    outcomes = pd.read_csv(folder / "outcomes.csv")
    assert outcomes[["arm", "split"]].values.tolist() == [
        [arm, split] for arm in ("residual", "stop-gradient", "near-identity") for split in ("validation", "test")
    ]
    assert outcomes["value"].between(2, 5).all()
    scores = pd.read_csv(folder / "scores.csv")
    assert scores["outcome"].unique().tolist() == ["test loss", "test loss - residual"]
    gradients = pd.read_csv(folder / "gradients.csv")
    assert gradients["block"].unique().tolist() == ["blocks.0.attention", "blocks.0.mlp"]
    assert gradients["epoch"].unique().tolist() == [0, 1]
    paths = pd.read_csv(folder / "paths.csv").pivot_table(
        index=["arm", "epoch"], columns=["quantity", "path_length"], values="value"
    )
    assert (paths.loc[["stop-gradient", "near-identity"], "norm"].to_numpy()[:, :2] == 0).all()
    assert paths["share"].to_numpy().sum(1) == pytest.approx(1, abs=1e-5)  # float32
    assert "pydoc_data.topics (1,000 characters, SHA-256" in shown
    assert "1 layers. One text, one budget, each arm's best learning rate." in " ".join(shown.split())


def test_rates_are_chosen_by_validation_where_no_seed_diverged() -> None:
    """Arm a: 0.1 is best on the test text, 0.2 on validation; 0.3, which is better, lacks a seed. Arm b has no rate."""
    rows = [
        ("residual", 0.2, 0, 2.0, 2.5), ("residual", 0.2, 1, 2.2, 2.7),
        ("a", 0.1, 0, 2.1, 1.0), ("a", 0.1, 1, 2.1, 1.0), ("a", 0.2, 0, 2.0, 3.0), ("a", 0.2, 1, 2.0, 3.4),
        ("a", 0.3, 0, 1.0, 1.0), ("b", 0.1, 1, 1.0, 1.0),
    ]  # fmt: skip
    outcomes = pd.DataFrame(
        {"arm": arm, "learning_rate": rate, "seed": seed, "split": split, "quantity": "loss", "value": value}
        for arm, rate, seed, *both in rows
        for split, value in zip(("validation", "test"), both, strict=True)
    )
    rates = best_rates(outcomes, seeds=2)
    assert rates == {"residual": 0.2, "a": 0.2}
    changes = against_residual(outcomes, rates)
    assert list(changes) == ["a"]
    assert changes["a"].values == pytest.approx((0.5, 0.7))
    assert against_residual(outcomes, {"a": 0.2}) == {}
