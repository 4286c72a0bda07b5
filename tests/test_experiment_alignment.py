"""The alignment experiment: its effects on paper, and a run at toy size."""

from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from experiments.alignment import Settings
from experiments.engine.alignment_effects import EFFECTS, Effects, effect_table, effects_of, over_epochs, sentence
from experiments.engine.effects import estimate
from tests.conditions import short_search
from tests.scripts import print_of, run
from tests.support.drawings import pick

STOP, SEEDS = "stop-gradient", (0, 1, 2)
LOSSES = {  # of networks that end in the first arm and go on in the second
    (STOP, STOP): 0.8,
    (STOP, "residual"): 0.1,
    ("residual", STOP): 0.4,
    ("residual", "residual"): 0.1,
}


def cell(arm: str, seed: int) -> dict[str, object]:
    return {"arm": arm, "depth_total": 8, "seed": seed}


def tables() -> dict[str, pd.DataFrame]:
    """Cosines 0.3 to 0.5, ratios 0.1 to 0.01, half of the steps uphill; each number a little larger with the seed."""
    lines: list[dict[str, object]] = []
    steps, ends = [], []
    for arm, seed in product((STOP, "residual"), SEEDS):
        stop, more = arm == STOP, 0.01 * seed
        for epoch, cosine, ratio, norm in ((0, 0.3 + more, 0.1, 10.0), (2, 0.5 + 2 * more, 0.01, 1.0)):
            values = {"cosine": cosine if stop else 1.0, "norm ratio": ratio if stop else 1.0, "true norm": norm}
            about = {**cell(arm, seed), "epoch": epoch}
            lines += [{**about, "block": "network", "quantity": q, "value": v} for q, v in values.items()]
            lines.append({**about, "block": "layer1.0", "depth": 0, "quantity": "cosine", "value": -1.0})
        for step, epoch in ((1, 1), (2, 1), (3, 2), (4, 2)):
            up = step % 2 == 0 if stop else step == 4
            steps.append({**cell(arm, seed), "step": step, "epoch": epoch, "value": 1.0 if up else -1.0})
        for then in (STOP, "residual"):
            about = {**cell(arm, seed), "effect": f"then {then}"}
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


def said(**changes: float) -> str:
    found: Effects = effects_of(tables(), [STOP], [8])
    for effect, value in changes.items():
        found[STOP, 8, effect.replace("_", " ")] = estimate(np.array([value - 0.01, value, value + 0.01]))
    return sentence(found, [STOP], 8, "paper")


def test_the_sentence_needs_whole_intervals() -> None:
    text = said()
    assert "a cosine of 0.31 with the true one at first and turns towards the true one (+0.21 [+0.19, +0.23])" in text
    assert "uphill more often than the true one (50 %; difference +0.25" in text
    assert "where it ends, the true gradient goes further than its own (log train loss +2.08" in text
    assert "where the true one ends, it does not stay (log train loss +1.39" in text
    turn, share = "cosine, last - first", "uphill share, own - true"
    assert "turns away from it" in said(**{turn: -0.2})
    assert "keeps its angle" in said(**{turn: 0.0})
    assert "whether it turns is undecided" in said(**{turn: 0.1})
    assert "uphill no more often than the true one" in said(**{share: 0.0})
    assert "uphill in an undecided share" in said(**{share: 0.05})
    ends = [f"log train loss from {whose} end, own - true" for whose in ("its", "the true")]
    assert "goes no further than its own" in said(**{ends[0]: 0.5})
    assert "may or may not go further" in said(**{ends[0]: 0.69})
    assert "where the true one ends, it stays" in said(**{ends[1]: 0.5})
    assert "may or may not stay" in said(**{ends[1]: 0.69})
    assert "their number, 4." in text


def test_the_course_holds_the_whole_network_and_the_steps() -> None:
    made = tables()
    rows = over_epochs(made["alignment"], made["steps"])
    assert pick(rows, arm=STOP, seed=1, epoch=2, quantity="cosine")["value"].item() == pytest.approx(0.52)
    assert pick(rows, arm="residual", seed=1, quantity="uphill share")["value"].tolist() == [0, 0.5]


def test_which_arms_are_trained_and_go_on() -> None:
    settings = Settings(arms=(STOP, "gradient-only"))
    assert settings.trained() == ["residual", STOP, "gradient-only", "plain"]
    assert settings.then(STOP) == ["residual", STOP]
    assert settings.then("residual") == ["residual", STOP]
    assert settings.then("plain") == ["plain", "gradient-only"]
    assert Settings().then("residual") == ["residual", STOP, "shortest-path"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--arms", "plain"], "--arms plain: its gradient is the true one; give some of stop-gradient, gradient-only"),
        (["--further", "0"], "--further 0: give at least 1 epoch"),
        (["--depths", "9"], "--depths 9: depth 9 is not 6n + 2"),
        (["--seeds", "100"], "--tuning-seeds 100: that seed is reported"),
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
    shown = print_of("alignment", arguments, capsys, status=2)
    assert (message in shown, len(shown.splitlines())) == (True, 1)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_run_at_toy_size_resumes(tmp_path: Path) -> None:
    arguments = ["--depths", 8, "--arms", STOP, "--seeds", 0, 1, 2, "--tuning-seeds", 100, "--epochs", 2]
    arguments += ["--width", 2, "--train-limit", 256, "--further", 1]
    with short_search():
        done = run("alignment", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "results" / "alignment"
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
    outcomes = pd.read_csv(folder / "outcomes.csv")
    before = pick(continued, effect="before")["value"].to_numpy()
    np.testing.assert_array_equal(before, outcomes["value"])
    for name in ("alignment", "alignment_over_epochs"):
        assert {file.suffix for file in (folder / "figures").glob(f"{name}.*")} == {".csv", ".pdf", ".png"}
    with short_search():
        again = run("alignment", *arguments, cwd=tmp_path)
    assert "6 of 6 cells are already done" in again.stderr
    assert again.stdout == done.stdout
