"""Gaps closed against the right references, differences by seed, and which conditions are run."""

import math

import numpy as np
import pandas as pd
import pytest

from experiments.engine.conditions import catalogue
from experiments.engine.conditions.conditions import Condition, choose, reference
from experiments.engine.conditions.controls import Control
from experiments.engine.conditions.gap_closed import (
    NO_GAP,
    by_seed,
    condition_table,
    difference,
    differences,
    gap_table,
    gaps_closed,
)
from experiments.engine.reporting import show
from experiments.engine.reporting.conditions import block_range, format_gap
from experiments.engine.running.messages import BadInput
from experiments.engine.statistics.estimates import NO_ESTIMATE
from tests.support.drawings import pick

EVERY = (*catalogue.UNMODIFIED_ARMS, *catalogue.MAGNITUDE, *catalogue.SCALE_FREE)
SHIFTS = (0.0, 0.01, -0.01)  # of the seeds: all conditions move together


def toy_outcomes(errors: dict[str, float], depth: int = 20, seeds: int = 3) -> pd.DataFrame:
    """Outcomes of conditions with these errors; the training loss is ten times the error."""
    return pd.DataFrame(
        {"control": name, "arm": "residual", "depth_total": depth, "seed": seed} | row
        for name, error in errors.items()
        for seed, shift in enumerate(SHIFTS[:seeds])
        for row in (
            {"split": "test", "quantity": "accuracy", "value": 1 - error - shift * (1 + error)},
            {"split": "train", "quantity": "loss", "value": 10 * error * (1 + shift)},
        )
    )


def runs_of(errors: dict[str, float], **options: int) -> pd.DataFrame:
    return condition_table(toy_outcomes(errors, **options), 360)


def test_r_is_taken_between_plain_and_residual_of_the_same_optimiser() -> None:
    """sgd: (0.8 - 0.5) / (0.8 - 0.2) = 1/2; adam: (0.6 - 0.3) / (0.6 - 0.2) = 3/4."""
    conditions = [c for c in EVERY if c.arm != "gradient-only" and c.optimiser != "sign" and c.name in ERRORS]
    found = gaps_closed(runs_of(ERRORS), conditions, [20])
    assert found["stop-gradient", 20, "test error"].mean == pytest.approx(0.5)
    assert found["stop-gradient, adam", 20, "test error"].mean == pytest.approx(0.75)
    assert found["stop-gradient", 20, "log train loss"].mean == pytest.approx(math.log(8 / 5) / math.log(8 / 2))
    for arm, wanted in (("plain", 0), ("residual", 1), ("plain, adam", 0), ("residual, adam", 1)):
        assert found[arm, 20, "test error"].mean == pytest.approx(wanted)
    rows = gap_table(found, conditions)
    its = pick(rows, control="stop-gradient, adam", outcome="test error").set_index("quantity")["value"]
    assert its["gap"] == pytest.approx(0.4)
    assert its["n"] == 3
    assert its["R low"] - 1e-12 < 0.75 < its["R high"] + 1e-12  # no seed differs from another


ERRORS = {
    "plain": 0.8, "stop-gradient": 0.5, "residual": 0.2,
    "plain, adam": 0.6, "stop-gradient, adam": 0.3, "residual, adam": 0.2,
}  # fmt: skip


def test_where_nothing_is_degraded_or_nothing_finished_there_is_no_r() -> None:
    conditions = catalogue.UNMODIFIED_ARMS[:2] + catalogue.UNMODIFIED_ARMS[3:4]
    alike = gaps_closed(runs_of({"plain": 0.2, "stop-gradient": 0.5, "residual": 0.2}), conditions, [20])
    assert alike["stop-gradient", 20, "test error"].note == NO_GAP
    rows = pick(gap_table(alike, conditions), control="stop-gradient", outcome="test error").set_index("quantity")
    assert format_gap(rows["value"].to_dict()) == "no degradation"
    gone = gaps_closed(runs_of({"stop-gradient": 0.5, "residual": 0.2}), conditions, [20])
    assert gone["stop-gradient", 20, "test error"].note == "no seed finished"
    assert not len(gone["residual", 20, "test error"].gap.values)


def test_a_seed_that_diverged_in_one_condition_leaves_its_pairs() -> None:
    outcomes = toy_outcomes({"plain": 0.8, "stop-gradient": 0.5, "residual": 0.2})
    gone = (outcomes["control"] == "stop-gradient") & (outcomes["seed"] == 1)
    runs = condition_table(outcomes[~gone], 360)
    assert len(difference(runs, 20, "stop-gradient", "residual").values) == 2
    assert len(difference(runs, 20, "plain", "residual").values) == 3
    conditions = catalogue.UNMODIFIED_ARMS[:2] + catalogue.UNMODIFIED_ARMS[3:4]
    assert gaps_closed(runs, conditions, [20])["stop-gradient", 20, "test error"].note == "fewer than three seeds"


@pytest.mark.parametrize("loss", [0.0, math.inf])
def test_a_seed_whose_log_loss_is_not_finite_leaves_its_pairs(loss: float) -> None:
    outcomes = toy_outcomes({"plain": 0.8, "residual": 0.2})
    outcomes.loc[
        (outcomes["control"] == "plain") & (outcomes["seed"] == 1) & (outcomes["split"] == "train"), "value"
    ] = loss
    runs = condition_table(outcomes, 360)
    losses = by_seed(runs, 20, ["plain", "residual"], "log train loss")
    assert losses == pytest.approx(np.log([[8, 7.92], [2, 1.98]]))
    assert by_seed(runs, 20, ["plain", "residual"], "test error").shape == (2, 3)


def test_differences_on_paper() -> None:
    """Accuracies 1 - e - s (1 + e): 0.3 + 0.3 s for errors 0.5 and 0.2."""
    runs = runs_of({"a": 0.2, "b": 0.5})
    found = difference(runs, 20, "a", "b")
    assert found.values == pytest.approx((0.3, 0.303, 0.297))
    assert found.high - found.mean == pytest.approx(4.3026527 * 0.003 / math.sqrt(3))
    assert show.estimate(found, digits=3) == "+0.300 [+0.293, +0.307]"
    assert difference(runs, 20, "a", "a") == difference(runs, 20, "a", "not run") == NO_ESTIMATE
    assert show.estimate(NO_ESTIMATE) == "-"


def test_differences_are_taken_where_a_condition_has_one() -> None:
    runs = runs_of({"a": 0.2, "b": 0.5, "c": 0.3})
    minus = {"from b": {"a": "b", "c": "b"}, "from c": {"a": "c"}}
    wanted = {
        "a": {"from b": difference(runs, 20, "a", "b"), "from c": difference(runs, 20, "a", "c")},
        "c": {"from b": difference(runs, 20, "c", "b"), "from c": NO_ESTIMATE},
    }
    assert differences(runs, [20], minus) == {20: wanted}


def test_a_condition_brings_its_references() -> None:
    names = [c.name for c in choose(["stop-gradient, sign"], EVERY, always=("residual",))]
    assert names == ["residual", "plain", "residual, sign", "stop-gradient, sign", "plain, sign"]
    assert choose((), EVERY, always=()) == EVERY
    with pytest.raises(BadInput, match="--conditions: unknown 'shuffled'; choose from residual, stop-gradient, gra"):
        choose(["shuffled"], EVERY, always=())
    with pytest.raises(BadInput, match="--conditions: got plain plain; give one or more, each once"):
        choose(["plain", "plain"], EVERY, always=())


def test_a_reference_is_of_the_same_optimiser_and_network_and_without_a_control() -> None:
    own = Condition("own", "stop-gradient", Control(rule="noise"), network="skipinit")
    plain = Condition("plain, skipinit", "plain", network="skipinit")
    frozen = Condition("frozen", "plain", Control(frozen=0.5), network="skipinit")
    assert reference(own, (*EVERY, frozen, plain), "plain") == plain
    with pytest.raises(ValueError, match="'own' needs 'plain' under sgd beside it: add that condition"):
        reference(own, EVERY, "plain")


def test_ranges_are_over_blocks_of_means_over_seeds() -> None:
    rows = pd.DataFrame({"depth": [0, 0, 1, 1, 2], "value": [0.1, 0.3, 0.5, 0.7, np.nan]})
    assert block_range(rows) == "0.2 to 0.6"
    assert block_range(rows[4:]) == "-"
