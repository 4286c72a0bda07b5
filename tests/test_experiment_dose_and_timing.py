"""Dose and timing: each word of its sentence on paper, bad input and a toy run."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from experiments import dose_and_timing
from experiments.dose_and_timing import ARMS, Settings, differences
from experiments.engine.answer import COINS, DOSES, PLACES, timing
from experiments.engine.dose_rules import against_ordinary, pairs_of_coins, pairs_of_timing, sentence
from experiments.engine.training import Training
from tests.conditions import Ran, cells_of, run_twice
from tests.scripts import print_of
from tests.support.drawings import pick

EPOCHS = 10
EVERY = (*ARMS, *DOSES, *COINS, *timing(EPOCHS), *PLACES)
ORDINARY, WORSE = (0.09, 0.10, 0.11), (0.29, 0.30, 0.31)
SCATTERED = (0.02, 0.10, 0.18)
BEGINS = "paper, depth 8, n = 3: "


def said(**errors: Sequence[float]) -> str:
    """The sentence where conditions have these errors (weight_0_1=..., until_epoch_5=...), residual ORDINARY and
    stop-gradient WORSE."""
    names = {name.replace(" ", "_").replace(",", "").replace(".", "_"): name for name in (c.name for c in EVERY)}
    given = {"residual": ORDINARY, "stop-gradient": WORSE} | {names[name]: value for name, value in errors.items()}
    cells, conditions = cells_of(given), [c for c in EVERY if c.name in given]
    found = against_ordinary(cells, conditions, 8)
    return sentence(cells, found, conditions, depth=8, epochs=EPOCHS, title="paper")


def test_the_smallest_weight_from_which_on_all_recover() -> None:
    text = said(weight_0_1=ORDINARY, weight_0_25=WORSE, weight_0_5=ORDINARY, weight_0_75=ORDINARY)
    assert f"{BEGINS}ordinary training is recovered from weight 0.5 of the shortcut's gradient on" in text
    assert "on (falls short at 0, 0.25); early and late cuts of one length were not both run; biased and unb" in text
    text = said(weight_0_1=ORDINARY, weight_0_25=WORSE, weight_0_5=ORDINARY, weight_0_75=SCATTERED)
    assert f"{BEGINS}no weight tested below 1 of the shortcut's gradient is shown to recover ordinary" in text
    assert "(undecided at 0.75) (falls short at 0, 0.25);" in text
    assert "their number, 10. One data set" in text


def test_a_seed_that_is_lost_falls_short() -> None:
    assert "(falls short at 0, 0.75)" in said(weight_0_75=ORDINARY[:2])


def test_a_training_loss_above_twice_the_ordinary_one_falls_short() -> None:
    """A test error of 0.3 beside 0.1 is one of loss 3 beside 1 here."""
    cells = cells_of({"residual": ORDINARY, "stop-gradient": ORDINARY})
    cells.loc[cells["arm"] == "stop-gradient", "log train loss"] += np.log(3)
    assert against_ordinary(cells, ARMS, 8)["stop-gradient"].verdict == "falls short"


@pytest.mark.parametrize(
    ("early", "late", "words"),
    [
        (WORSE, ORDINARY, "an early cut costs more than a late one (5 of 10 epochs, late minus early: +0.200 [+0.2"),
        (ORDINARY, WORSE, "a late cut costs more than an early one (5 of 10 epochs, late minus early: -0.200 [-0.2"),
        (WORSE, WORSE, "early and late cuts cost the same (5 of 10 epochs, late minus early: +0.000 [+0.000, +0.000"),
        (SCATTERED, (0.1,) * 3, "whether early or late cuts cost more is undecided (5 of 10 epochs, late minus early:"),
        (WORSE, (), "whether early or late cuts cost more is undecided (5 of 10 epochs, late minus early: -)"),
    ],
)
def test_early_or_late(early: Sequence[float], late: Sequence[float], words: str) -> None:
    others = {"until_epoch_2": ORDINARY, "from_epoch_8": SCATTERED}
    assert f"; {words}" in said(until_epoch_5=early, from_epoch_5=late, **others)


@pytest.mark.parametrize(
    ("biased", "unbiased", "words"),
    [
        (WORSE, ORDINARY, "do better than biased ones (+0.200 [+0.200, +0.200]) and recover ordinary training"),
        (ORDINARY, WORSE, "do worse than biased ones (-0.200 [-0.200, -0.200]) and fall short of ordinary training"),
        (WORSE, WORSE, "do as well as biased ones (+0.000 [+0.000, +0.000]) and fall short of ordinary training"),
        (ORDINARY, SCATTERED, "are undecided against biased ones (+0.000 [-0.1"),
        (ORDINARY, SCATTERED, "and may or may not recover ordinary training. Differences are of"),
    ],
)
def test_biased_or_not(biased: Sequence[float], unbiased: Sequence[float], words: str) -> None:
    text = said(biased_coin_0_9=biased, unbiased_coin_0_9=unbiased)
    assert "; unbiased coins at chance 0.9 " in text
    assert words in text


def test_cuts_of_one_length_are_paired() -> None:
    pairs = pairs_of_timing(EVERY, EPOCHS)
    assert pairs == {n: (f"until epoch {n}", f"from epoch {10 - n}") for n in (2, 5, 8)}
    assert pairs_of_timing([c for c in EVERY if c.name != "from epoch 8"], EPOCHS).keys() == {5, 8}
    assert pairs_of_timing(timing(1), 1) == {}
    assert pairs_of_coins(EVERY) == {x: (f"biased coin, {x}", f"unbiased coin, {x}") for x in (0.5, 0.9)}
    assert pairs_of_coins(EVERY[:-1][: len(ARMS) + len(DOSES) + 3]).keys() == {0.5}
    minus = differences(EVERY, EPOCHS)
    assert minus["minus the early cut"]["from epoch 8"] == "until epoch 2"
    assert minus["minus the biased coin"]["unbiased coin, 0.5"] == "biased coin, 0.5"


def test_which_conditions_there_are() -> None:
    assert [c.name for c in Settings().chosen()] == [c.name for c in EVERY]
    short = Settings(training=Training(epochs=4), conditions=("until epoch 2",)).chosen()
    assert [c.name for c in short] == ["residual", "stop-gradient", "plain", "until epoch 2"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--conditions", "weight 0.2"], "--conditions: unknown 'weight 0.2'; choose from residual, stop-gradient,"),
        (["--epochs", "4", "--conditions", "until epoch 5"], "unknown 'until epoch 5'; choose from"),
        (["--depths", "9"], "--depths 9: depth 9 is not 6n + 2"),
        (["--tuning-seeds", "0"], "--tuning-seeds 0: that seed is reported; choose learning rates on others"),
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
    shown = print_of("dose_and_timing", arguments, capsys, status=2)
    assert (message in shown, len(shown.splitlines())) == (True, 1)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    chosen = ("weight 0.5", "unbiased coin, 0.5")
    return run_twice(dose_and_timing, tmp_path_factory.mktemp("out"), conditions=chosen)


def test_a_toy_run_writes_every_condition(ran: Ran) -> None:
    found = pd.read_csv(ran.folder / "outcomes.csv")
    names = ["residual", "stop-gradient", "plain", "weight 0.5", "unbiased coin, 0.5"]
    assert list(dict.fromkeys(found["control"])) == names
    assert len(pick(found, split="test", quantity="accuracy")) == 5 * 2
    assert pick(found, split="train", quantity="loss", seed=0)["value"].nunique() == 5
    aligned = pick(pd.read_csv(ran.folder / "alignment.csv"), epoch=0, block="layer1.0", quantity="cosine", seed=0)
    cosines = aligned.set_index("control")["value"]
    assert cosines["stop-gradient"] < cosines["weight 0.5"] < cosines["residual"]
    assert {file.stem for file in (ran.folder / "figures").iterdir()} == {"dose_and_timing_8", "recovery_scores"}
    assert "depth 8, n = 2: no weight tested below 1 of the shortcut's gradient is shown to recover" in ran.shown
    assert "(undecided at 0, 0.5); early and late cuts of one length were not both run; biased and unbia" in ran.shown


def test_a_second_call_repeats_no_cell(ran: Ran) -> None:
    assert not ran.repeated
    assert "10 of 10 cells are already done" in ran.log
    assert ran.again == ran.shown
