"""Centres of mass over depth, done on paper, and what their sentence may say."""

import math

import pandas as pd
import pytest

from experiments.engine.depth_centres import (
    MEASURES,
    Measure,
    centre_of_mass,
    centres,
    estimate_table,
    estimates,
    sentence,
    used,
)


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


def test_intervals_end_with_the_scale_and_the_sentence_says_what_they_decide() -> None:
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
    assert sentence(found, ["residual", "plain"], title="digits", depth=8) == (
        "digits, depth 8, n = 3: residual leans on its shallow blocks by weight movement (0.31), on its deep blocks by "
        "reset cost (0.81), undecided by read-out gain (0.60); plain has nothing to measure. One data set, one "
        "learning rate, one budget."
    )
    assert len({measure.name for measure in MEASURES}) == len(MEASURES)
