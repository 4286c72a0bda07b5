"""The alignment experiment: its effects and decisions on paper, what its runs do, and a run at toy size."""

import copy
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from experiments.alignment import (
    EFFECTS,
    Continuation,
    Effects,
    Settings,
    continue_training,
    decide,
    effect_table,
    effects_of,
    over_epochs,
    train_and_continue,
    true_arm,
)
from experiments.engine.running.messages import BadInput
from experiments.engine.running.run import Run
from experiments.engine.statistics.estimates import NO_ESTIMATE, estimate
from experiments.engine.training.compute import AS_WRITTEN
from experiments.engine.training.data import Batches, Data, Dataset, load
from experiments.engine.training.loop import evaluate, recompute_bn_statistics, train
from experiments.engine.training.optimisation import Training
from experiments.engine.training.recipe import Recipe
from models import ARMS, RESIDUAL, STOP_GRADIENT, Flow, cifar_resnet, set_flows
from tests.support.conditions import short_search
from tests.support.drawings import pick
from tests.support.scripts import drawn, each_field_counts, toy_run

STOP, SEEDS = "stop-gradient", (0, 1, 2)
LOSSES = {  # of networks that end in the first arm and go on in the second
    (STOP, STOP): 0.8,
    (STOP, "residual"): 0.1,
    ("residual", STOP): 0.4,
    ("residual", "residual"): 0.1,
}


def run_of(arm: str, seed: int) -> dict[str, object]:
    return {"arm": arm, "depth_total": 8, "seed": seed}


def tables() -> dict[str, pd.DataFrame]:
    """Cosines 0.3 to 0.5, ratios 0.1 to 0.01, half of the steps uphill; each number a little larger with the seed."""
    lines: list[dict[str, object]] = []
    steps, ends = [], []
    for arm, seed in product((STOP, "residual"), SEEDS):
        stop, more = arm == STOP, 0.01 * seed
        for epoch, cosine, ratio, norm in ((0, 0.3 + more, 0.1, 10.0), (2, 0.5 + 2 * more, 0.01, 1.0)):
            values = {"cosine": cosine if stop else 1.0, "norm ratio": ratio if stop else 1.0, "true norm": norm}
            about = {**run_of(arm, seed), "epoch": epoch}
            lines += [{**about, "block": "network", "quantity": q, "value": v} for q, v in values.items()]
            lines.append({**about, "block": "layer1.0", "depth": 0, "quantity": "cosine", "value": -1.0})
        for step, epoch in ((1, 1), (2, 1), (3, 2), (4, 2)):
            up = step % 2 == 0 if stop else step == 4
            steps.append({**run_of(arm, seed), "step": step, "epoch": epoch, "value": 1.0 if up else -1.0})
        for then in (STOP, "residual"):
            about = {**run_of(arm, seed), "then": then}
            ends.append({**about, "split": "train", "quantity": "loss", "value": LOSSES[arm, then]})
            ends.append({**about, "split": "test", "quantity": "accuracy", "value": 1 - LOSSES[arm, then]})
    return {"alignment": pd.DataFrame(lines), "steps": pd.DataFrame(steps), "continued": pd.DataFrame(ends)}


def test_effects_on_paper() -> None:
    found = effects_of(tables(), [STOP], [8])
    own = {effect: found[STOP, 8, effect] for effect in EFFECTS}
    assert own["cosine, first"].values == pytest.approx((0.30, 0.31, 0.32))
    assert own["cosine, last - first"].values == pytest.approx((0.20, 0.21, 0.22))
    assert own["cosine, last - first"].high == pytest.approx(0.21 + 4.3026527 * 0.01 / np.sqrt(3))
    assert own["log10 norm ratio, first"].mean == pytest.approx(-1)
    assert own["log10 norm ratio, last"].mean == pytest.approx(-2)
    assert own["log10 true norm, last - first"].mean == pytest.approx(-1)
    assert own["uphill share"].mean == pytest.approx(0.5)
    assert own["uphill share, own - true"].mean == pytest.approx(0.25)
    assert own["log train loss from its end, own - true"].mean == pytest.approx(np.log(8))
    assert own["test accuracy from its end, own - true"].mean == pytest.approx(0.2 - 0.9)
    assert own["log train loss from the true end, own - true"].mean == pytest.approx(np.log(4))
    assert own["test accuracy from the true end, own - true"].mean == pytest.approx(0.6 - 0.9)
    rows = effect_table(found)
    assert pick(rows, effect="cosine, first", quantity="mean")["value"].item() == pytest.approx(0.31)
    assert set(pick(rows, quantity="n")["value"]) == {3}


def test_a_seed_that_diverged_has_no_end() -> None:
    whole = tables()
    cut = {name: rows[(rows["seed"] < 2) | (rows["arm"] != STOP)] for name, rows in whole.items()}
    early = whole["alignment"]
    early = early[(early["seed"] == 2) & (early["arm"] == STOP) & (early["epoch"] == 0)]
    cut["alignment"] = pd.concat([cut["alignment"], early])
    found = effects_of(cut, [STOP], [8])
    assert len(found[STOP, 8, "cosine, first"].values) == 3
    assert len(found[STOP, 8, "cosine, last"].values) == 2
    assert len(found[STOP, 8, "log train loss from its end, own - true"].values) == 2
    del cut["continued"]
    assert found[STOP, 8, "log train loss from its end, own - true"].values
    assert not effects_of(cut, [STOP], [8])[STOP, 8, "log train loss from its end, own - true"].values


def decided(**changes: float) -> dict[str, str]:
    """The readings of stop-gradient, where effects have been given other means."""
    found: Effects = effects_of(tables(), [STOP], [8])
    for effect, value in changes.items():
        found[STOP, 8, effect] = estimate(np.array([value - 0.01, value, value + 0.01]))
    decisions = decide(found, [STOP], 8)
    assert [margin for _, margin, _ in decisions.values()] == ["0.1", "0.05", "0.693", "0.693"]
    return {name.removeprefix(f"{STOP}: "): reading for name, (_, _, reading) in decisions.items()}


def test_decisions_need_whole_intervals() -> None:
    assert decided() == {
        "cosine, last - first": "turns towards the true gradient",
        "uphill share": "uphill more often than the true gradient",
        "loss from its end": "the true gradient goes further than its own",
        "loss from the true end": "it does not stay",
    }
    text, *_ = decide(effects_of(tables(), [STOP], [8]), [STOP], 8)[f"{STOP}: cosine, last - first"]
    assert text == "+0.21 [+0.19, +0.23]"
    turn, share = "cosine, last - first", "uphill share, own - true"
    assert decided(**{turn: -0.2})[turn] == "turns away from it"
    assert decided(**{turn: 0.0})[turn] == "keeps its angle"
    assert decided(**{turn: 0.1})[turn] == "undecided"
    assert decided(**{share: 0.0})["uphill share"] == "no more often than the true gradient"
    assert decided(**{share: 0.05})["uphill share"] == "undecided"
    ends = [f"log train loss from {whose} end, own - true" for whose in ("its", "the true")]
    assert decided(**{ends[0]: 0.5})["loss from its end"] == "the true gradient goes no further"
    assert decided(**{ends[0]: 0.69})["loss from its end"] == "undecided"
    assert decided(**{ends[1]: 0.5})["loss from the true end"] == "it stays"
    assert decided(**{ends[1]: 0.69})["loss from the true end"] == "undecided"
    nothing = dict.fromkeys(effects_of(tables(), [STOP], [8]), NO_ESTIMATE)
    assert set(decide(nothing, [STOP], 8).values()) == {
        ("-", margin, "no seed has finished") for margin in ("0.1", "0.05", "0.693")
    }


def test_the_course_holds_the_whole_network_and_the_steps() -> None:
    made = tables()
    rows = over_epochs(made["alignment"], made["steps"])
    assert pick(rows, arm=STOP, seed=1, epoch=2, quantity="cosine")["value"].item() == pytest.approx(0.52)
    assert pick(rows, arm="residual", seed=1, quantity="uphill share")["value"].tolist() == [0, 0.5]


def test_which_arms_are_trained_and_continued() -> None:
    settings = Settings(arms=(STOP, "gradient-only"))
    assert settings.trained() == ["residual", STOP, "gradient-only", "plain"]
    assert settings.continuation(STOP) == Continuation(arms("residual", STOP), 3)
    assert settings.continuation("residual") == Continuation(arms("residual", STOP), 3)
    assert settings.continuation("plain") == Continuation(arms("plain", "gradient-only"), 3)
    assert Settings().continuation("residual").arms == arms("residual", STOP, "shortest-path")


def test_the_true_arm_of_every_arm() -> None:
    wanted = {"gradient-only": "plain", "plain": "plain"}
    assert {arm: true_arm(arm) for arm in ARMS} == {arm: wanted.get(arm, "residual") for arm in ARMS}


def test_an_arm_whose_true_gradient_no_arm_has_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ARMS, "uneven", Flow(shortcut=0.5, shortcut_gradient=1.0))
    with pytest.raises(
        ValueError, match=r"no arm of models.ARMS has the true gradient of 'uneven': add one with Flow\("
    ):
        true_arm("uneven")
    wanted = "--arms uneven: no arm has its true gradient; give some of stop-gradient, gradient-only, shortest-path$"
    with pytest.raises(BadInput, match=wanted):
        Settings(arms=("uneven",)).check()


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load(Data(train_limit=256))


def arms(*names: str) -> dict[str, Flow]:
    return {name: ARMS[name] for name in names}


def made_run(digits: Dataset, continuation: Continuation) -> Run:
    training = Training(epochs=1, batch_size=64, learning_rate=0.05, momentum=0, weight_decay=0, schedule="step")
    recipe = Recipe("resnet", 4, digits.digest, training, AS_WRITTEN, "cpu", treatment=continuation)
    return Run("alignment", STOP, 8, 0, recipe, outputs=("alignment", "steps", "continued"))


def test_training_continues_from_the_same_weights(digits: Dataset) -> None:
    """As a copy whose flows are set by hand and that is trained by itself; the network stays as it is."""
    torch.manual_seed(3)
    model = cifar_resnet(8, flow=STOP_GRADIENT, width=4, in_channels=1)
    twin, before = copy.deepcopy(model), copy.deepcopy(model.state_dict())
    set_flows(twin, [RESIDUAL] * 3)
    run = made_run(digits, Continuation(arms("residual"), 2))
    batches = Batches(digits, torch.device("cpu"))
    for _ in train(twin, batches, replace(run.recipe.training, epochs=2), seed=0):
        pass
    recompute_bn_statistics(twin, batches)
    ended = continue_training(model, run, "residual", digits)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert (set(ended["effect"]), set(ended["then"])) == ({"then residual"}, {"residual"})
    for split in ("train", "test"):
        for quantity, value in evaluate(twin, batches, split).items():
            assert pick(ended, split=split, quantity=quantity)["value"].item() == value


def test_every_field_of_the_treatment_changes_the_name_and_what_is_done(digits: Dataset) -> None:
    def end(run: Run) -> float:
        ends = train_and_continue(run, dataset=digits).tables["continued"].query("then == then")
        return pick(ends, split="train", quantity="loss")["value"].item()

    each_field_counts(made_run(digits, Continuation(arms("residual"), 1)), end, {"arms": arms(STOP), "epochs": 2})


@pytest.mark.slow
def test_a_run_at_toy_size(tmp_path: Path) -> None:
    arguments = ["--depths", 8, "--arms", STOP, "--seeds", 0, 1, 2, "--tuning-seeds", 100, "--epochs", 2]
    arguments += ["--width", 2, "--train-limit", 256, "--further", 1]
    with short_search():
        folder, _ = toy_run("alignment", *arguments, cwd=tmp_path)
    found = pd.read_csv(folder / "alignment.csv")
    true = found[found["arm"] == "residual"]
    assert pick(true, quantity="cosine")["value"].to_numpy() == pytest.approx(1, abs=1e-9)
    assert pick(true, quantity="norm ratio")["value"].to_numpy() == pytest.approx(1, abs=1e-9)
    own = pick(found, arm=STOP, block="network", quantity="cosine")
    assert own["epoch"].tolist() == [0, 1, 2] * 3
    assert own["value"].between(0, 0.999).all()
    last = pick(found, arm=STOP, block="layer3.0", quantity="cosine")["value"]
    assert last.to_numpy() == pytest.approx(1, abs=1e-5)  # nothing lies between the last block and the loss
    steps = pd.read_csv(folder / "steps.csv")
    assert (steps.groupby(["arm", "seed"]).size() == 2 * 2).all()
    continued = pd.read_csv(folder / "continued.csv")
    assert set(continued["effect"]) == {"before", "then residual", f"then {STOP}"}
    assert ("then " + continued["then"]).fillna("before").equals(continued["effect"])
    outcomes = pd.read_csv(folder / "outcomes.csv")
    before = pick(continued, effect="before")["value"].to_numpy()
    np.testing.assert_array_equal(before, outcomes["value"])
    assert drawn(folder) >= {"alignment", "alignment_over_epochs"}
