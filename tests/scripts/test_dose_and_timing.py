"""Dose and timing: what is done to the shortcut's gradient as columns, each decision on paper, and a toy run."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from experiments import dose_and_timing
from experiments.dose_and_timing import (
    REFERENCE_ARMS,
    Settings,
    against_residual,
    decide,
    pairs_of_coins,
    pairs_of_timing,
    subtractions,
    with_treatments,
)
from experiments.engine.conditions.catalogue import COINS, DOSES, PLACES, timing
from experiments.engine.conditions.gap_closed import condition_table
from experiments.engine.training.optimisation import Training
from tests.support.conditions import TEST_SIZE, outcomes, run_small
from tests.support.drawings import pick

EPOCHS = 10
EVERY = (*REFERENCE_ARMS, *DOSES, *COINS, *timing(EPOCHS), *PLACES)
ORDINARY, WORSE = (0.09, 0.10, 0.11), (0.29, 0.30, 0.31)
SCATTERED = (0.02, 0.10, 0.18)
WEIGHT, CUT = "smallest weight that suffices", "late cut - early cut, 5 of 10 epochs"
COIN = "unbiased coin - biased coin, chance 0.9"


def decided(**errors: Sequence[float]) -> dict[str, tuple[str, str, str]]:
    """The decisions where conditions have these errors (weight_0_1=..., until_epoch_5=...), residual ORDINARY and
    stop-gradient WORSE."""
    names = {name.replace(" ", "_").replace(",", "").replace(".", "_"): name for name in (c.name for c in EVERY)}
    given = {"residual": ORDINARY, "stop-gradient": WORSE} | {names[name]: value for name, value in errors.items()}
    runs, conditions = condition_table(outcomes(given), TEST_SIZE), [c for c in EVERY if c.name in given]
    return decide(runs, against_residual(runs, conditions, 8), conditions, depth=8, epochs=EPOCHS)


def test_the_smallest_weight_from_which_on_all_recover() -> None:
    found = decided(weight_0_1=ORDINARY, weight_0_25=WORSE, weight_0_5=ORDINARY, weight_0_75=ORDINARY)
    assert found == {WEIGHT: ("0.5", "loss x 2, 0.02", "falls short at 0, 0.25")}
    found = decided(weight_0_1=ORDINARY, weight_0_25=WORSE, weight_0_5=ORDINARY, weight_0_75=SCATTERED)
    none = "none below 1 is shown to recover from there on"
    assert found[WEIGHT] == ("-", "loss x 2, 0.02", f"{none}; undecided at 0.75; falls short at 0, 0.25")


def test_a_seed_that_is_lost_falls_short() -> None:
    assert decided(weight_0_75=ORDINARY[:2])[WEIGHT][2].endswith("falls short at 0, 0.75")


def test_a_training_loss_above_twice_the_ordinary_one_falls_short() -> None:
    runs = condition_table(outcomes({"residual": ORDINARY, "stop-gradient": ORDINARY}), TEST_SIZE)
    assert against_residual(runs, REFERENCE_ARMS, 8)["stop-gradient"].reading == "recovered"
    runs.loc[runs["control"] == "stop-gradient", "log train loss"] += np.log(3)
    assert against_residual(runs, REFERENCE_ARMS, 8)["stop-gradient"].reading == "falls short"


@pytest.mark.parametrize(
    ("early", "late", "decision"),
    [
        (WORSE, ORDINARY, ("+0.200 [+0.200, +0.200]", "0.02", "the early cut costs more")),
        (ORDINARY, WORSE, ("-0.200 [-0.200, -0.200]", "0.02", "the late cut costs more")),
        (WORSE, WORSE, ("+0.000 [+0.000, +0.000]", "0.02", "the same cost")),
        (SCATTERED, (0.1,) * 3, ("+0.000 [-0.199, +0.199]", "0.02", "undecided")),
        (WORSE, (), ("-", "0.02", "undecided")),
    ],
)
def test_early_or_late(early: Sequence[float], late: Sequence[float], decision: tuple[str, str, str]) -> None:
    others = {"until_epoch_2": ORDINARY, "from_epoch_8": SCATTERED}
    assert decided(until_epoch_5=early, from_epoch_5=late, **others)[CUT] == decision


@pytest.mark.parametrize(
    ("biased", "unbiased", "estimate", "reading"),
    [
        (WORSE, ORDINARY, "+0.200 [+0.200, +0.200]", "unbiased is better; unbiased: recovered"),
        (ORDINARY, WORSE, "-0.200 [-0.200, -0.200]", "unbiased is worse; unbiased: falls short"),
        (WORSE, WORSE, "+0.000 [+0.000, +0.000]", "unbiased is as good; unbiased: falls short"),
        (ORDINARY, SCATTERED, "+0.000 [-0.174, +0.174]", "undecided; unbiased: undecided"),
    ],
)
def test_biased_or_not(biased: Sequence[float], unbiased: Sequence[float], estimate: str, reading: str) -> None:
    assert decided(biased_coin_0_9=biased, unbiased_coin_0_9=unbiased)[COIN] == (estimate, "0.02", reading)


def test_cuts_of_one_length_are_paired() -> None:
    pairs = pairs_of_timing(EVERY, EPOCHS)
    assert pairs == {n: (f"until epoch {n}", f"from epoch {10 - n}") for n in (2, 5, 8)}
    assert pairs_of_timing([c for c in EVERY if c.name != "from epoch 8"], EPOCHS).keys() == {5, 8}
    assert pairs_of_timing(timing(1), 1) == {}
    assert pairs_of_coins(EVERY) == {x: (f"biased coin, {x}", f"unbiased coin, {x}") for x in (0.5, 0.9)}
    assert pairs_of_coins(EVERY[: len(REFERENCE_ARMS) + len(DOSES) + 3]).keys() == {0.5}
    minus = subtractions(EVERY, EPOCHS)
    assert minus["minus the early cut"]["from epoch 8"] == "until epoch 2"
    assert minus["minus the biased coin"]["unbiased coin, 0.5"] == "biased coin, 0.5"


def test_a_condition_s_treatment_and_amount_are_columns() -> None:
    found = with_treatments(outcomes({c.name: ORDINARY for c in EVERY}), EVERY)
    by_name = found.drop_duplicates("control").set_index("control")
    assert by_name.loc[[arm.name for arm in REFERENCE_ARMS], ["treatment", "amount"]].isna().all(axis=None)
    treated = by_name.drop([arm.name for arm in REFERENCE_ARMS])[["treatment", "amount"]]
    rows = dict(zip(treated.index, treated.itertuples(index=False, name=None), strict=True))
    wanted = {f"weight {w:g}": ("weight", w) for w in (0.1, 0.25, 0.5, 0.75)}
    wanted |= {f"{kind} coin, {c}": (f"{kind} coin", c) for c in (0.5, 0.9) for kind in ("biased", "unbiased")}
    wanted |= {f"{when} epoch {e}": (f"{when} epoch", e) for e in (2, 5, 8) for when in ("until", "from")}
    wanted |= {f"stage {n}": ("stage", n) for n in (1, 2, 3)}
    wanted |= {f"every {n}. block": ("every n-th block", n) for n in (2, 3)}
    assert rows == wanted


def test_which_conditions_there_are() -> None:
    assert [c.name for c in Settings().chosen()] == [c.name for c in EVERY]
    short = Settings(training=Training(epochs=4), conditions=("until epoch 2",)).chosen()
    assert [c.name for c in short] == ["residual", "stop-gradient", "plain", "until epoch 2"]


def test_a_toy_run_writes_every_condition(tmp_path: Path) -> None:
    folder, shown = run_small(dose_and_timing, tmp_path, conditions=("weight 0.5", "unbiased coin, 0.5"))
    found = pd.read_csv(folder / "outcomes.csv")
    names = ["residual", "stop-gradient", "plain", "weight 0.5", "unbiased coin, 0.5"]
    assert list(dict.fromkeys(found["control"])) == names
    assert len(pick(found, split="test", quantity="accuracy")) == 5 * 2
    assert pick(found, split="train", quantity="loss", seed=0)["value"].nunique() == 5
    aligned = pick(pd.read_csv(folder / "alignment.csv"), epoch=0, block="layer1.0", quantity="cosine", seed=0)
    cosines = aligned.set_index("control")["value"]
    assert cosines["stop-gradient"] < cosines["weight 0.5"] < cosines["residual"]
    drawn = pd.read_csv(folder / "figures" / "dose_and_timing_8.csv")
    assert set(pick(drawn, treatment="unbiased coin", amount=0.5)["control"]) == {"unbiased coin, 0.5"}
    assert "Decisions: digits 8x8, depth 8, n = 2" in shown
    assert "loss x 2, 0.02" in shown
