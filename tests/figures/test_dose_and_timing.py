"""Dose and timing: every treatment stands in its panel, at its amount, which columns give, not names."""

import numpy as np
import pytest
from matplotlib.axes import Axes

import figures
from tests.support.drawings import COINS, EPOCHS, EXAMPLES, WEIGHTS, caption_of, pick, suits_a_paper

ARMS = ("residual", "stop-gradient", "plain")


def drawn(axis: Axes) -> dict[float, list[float]]:
    """A panel's small points, by where they stand."""
    offsets = np.concatenate([np.asarray(dots.get_offsets(), float) for dots in axis.collections])
    return {x: sorted(offsets[offsets[:, 0] == x, 1]) for x in sorted(set(offsets[:, 0]))}


def test_every_treatment_stands_in_its_panel() -> None:
    table = EXAMPLES["dose_and_timing"]
    anonymous = table["control"].where(table["control"].isin(ARMS), [f"{c!r}"[::-1] for c in table["control"]])
    for named in (table, table.assign(control=anonymous)):  # nothing is read from names
        axes = figures.dose_and_timing(named)
        assert axes.shape == (2, 4)
        assert [axis.get_yscale() for axis in axes[:, 0]] == ["linear", "log"]
        weights = {w: ("weight", w) for w in WEIGHTS}
        coins = {i + s: (f"{k} coin", c) for i, c in enumerate(COINS) for s, k in ((-0.2, "biased"), (0.2, "unbiased"))}
        epochs = {i + s: (f"{w} epoch", e) for i, e in enumerate(EPOCHS) for s, w in ((-0.2, "until"), (0.2, "from"))}
        places = {i: ("stage", i + 1) for i in range(3)} | {i + 1: ("every n-th block", i) for i in (2, 3)}
        for row, (split, quantity) in enumerate((("test", "accuracy"), ("train", "loss"))):
            rows = pick(named, split=split, quantity=quantity)
            for axis, wanted in zip(axes[row], (weights, coins, epochs, places), strict=True):
                found = drawn(axis)
                expected = {x: pick(rows, treatment=t, amount=a)["value"].tolist() for x, (t, a) in wanted.items()}
                if wanted is weights:
                    ends = {0: "stop-gradient", 1: "residual"}
                    expected |= {x: pick(rows, control=arm)["value"].tolist() for x, arm in ends.items()}
                assert list(found) == pytest.approx(sorted(expected))
                for x, values in zip(found, (expected[x] for x in sorted(expected)), strict=True):
                    assert found[x] == pytest.approx(sorted(values))
                lines = [line.get_ydata()[0] for line in axis.lines if line.get_linewidth() == 0.8]
                assert lines == [pick(rows, control=arm)["value"].mean() for arm in ARMS]
    axes = figures.dose_and_timing(table)
    assert [text.get_text() for text in axes[1, 1].get_xticklabels()] == ["0.5", "0.9"]
    assert [text.get_text() for text in axes[1, 2].get_xticklabels()] == ["2", "5", "8"]
    assert [text.get_text() for text in axes[1, 3].get_xticklabels()][2:4] == ["stage 3", "every 2. block"]
    legend = [text.get_text() for text in axes[0, 0].figure.legends[0].get_texts()]
    assert legend[3:] == ["biased coin", "unbiased coin", "cut until an epoch", "cut from an epoch on"]
    assert "each of 3 seeds" in caption_of(axes)


def test_few_conditions_need_few_panels() -> None:
    table = EXAMPLES["dose_and_timing"]
    few = table[table["control"].isin(["residual", "weight 0.5", "stage 3"])]
    axes = figures.dose_and_timing(few)
    assert axes.shape == (2, 2)
    assert [axis.get_xlabel() for axis in axes[1]] == ["weight of the\nshortcut's gradient", "cut shortcuts"]


def test_a_condition_without_a_treatment_of_its_own_is_a_place() -> None:
    """Also in a table without these columns."""
    table = EXAMPLES["dose_and_timing"]
    other = table.replace({"treatment": {"stage": "something else"}})
    assert figures.dose_and_timing(other).shape == (2, 4)
    axes = figures.dose_and_timing(pick(table, treatment="stage").drop(columns=["treatment", "amount"]))
    assert [text.get_text() for text in axes[1, 1].get_xticklabels()] == ["stage 1", "stage 2", "stage 3"]
    suits_a_paper(axes)
