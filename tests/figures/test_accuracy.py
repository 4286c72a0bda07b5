"""Accuracy by depth, budget and learning rate, and the factorial: what is drawn equals what plain pandas gives."""

from itertools import product

import numpy as np
import pytest
from matplotlib.colors import to_hex

import figures
from figures import ARMS
from tests.support.drawings import (
    EXAMPLES,
    MAIN,
    NAMES,
    close,
    dots_of,
    drawn_y,
    lines_of,
    means_of,
    pick,
    tables,
    texts,
    xy,
)


def test_accuracy_by_depth_shows_every_seed_and_the_mean() -> None:
    axes = figures.accuracy_by_depth(MAIN["outcomes"])
    assert [axis.get_ylabel() for axis in axes[0]] == ["training accuracy (%)", "test accuracy (%)"]
    assert all(axis.yaxis.label.get_visible() for axis in axes[0])
    for axis, split in zip(axes[0], ("train", "test"), strict=True):
        for arm in NAMES:
            rows = pick(MAIN["outcomes"], split=split, quantity="accuracy", arm=arm)
            assert sorted(dots_of(axis, arm)) == sorted(rows["value"])
            assert means_of(axis, arm) == pytest.approx(rows.groupby("depth_total")["value"].mean().tolist())
        assert [text.get_text() for text in axis.get_xticklabels()] == ["20", "56"]
    assert "large: mean; small: each of 3 seeds" in texts(axes[0, 0].figure)


def test_accuracy_by_depth_marks_what_is_missing() -> None:
    outcomes = MAIN["outcomes"].copy()
    outcomes.loc[(outcomes["arm"] == "plain") & (outcomes["depth_total"] == 56), "value"] = np.nan
    axes = figures.accuracy_by_depth(outcomes)
    crosses = [line for line in axes[0, 1].lines if line.get_marker() == "x"]
    assert [to_hex(line.get_color()) for line in crosses] == [to_hex(ARMS["plain"].colour)]
    assert crosses[0].get_xdata()[0] == pytest.approx(1 + 0.5 * 0.8 / 6)  # the fourth of six arms, at the second depth
    assert "each of 3 seeds; ×: no value" in texts(axes[0, 0].figure)


def test_budget_draws_both_accuracies() -> None:
    table = EXAMPLES["budget"]
    axes = figures.budget(table)
    assert axes.shape == (2, 2)
    for (row, depth), (column, split) in product(enumerate((8, 14)), enumerate(("train", "test"))):
        axis = axes[row, column]
        assert axis.get_ylabel() == ("test accuracy (%)" if column else "training accuracy (%)")
        assert (axis.get_xscale(), axis.get_title()) == ("log", f"depth {depth}")
        for arm in NAMES:
            rows = pick(table, arm=arm, depth_total=depth, split=split)
            thin, (thick,) = lines_of(axis, arm)
            close(xy(thick), rows.groupby("budget")["value"].mean())
            assert len(thin) == 3
    assert [text.get_text() for text in axes[1, 0].get_xticklabels()] == ["1", "3", "10"]
    assert "each of 3 seeds" in texts(axes[0, 0].figure)


def test_learning_rates_draw_each_arm_at_each_depth() -> None:
    table = EXAMPLES["learning_rates"]
    axes = figures.learning_rates(table)
    assert axes.shape == (1, 2)
    for axis, depth in zip(axes[0], (8, 14), strict=True):
        assert (axis.get_xscale(), axis.get_title()) == ("log", f"depth {depth}")
        for arm in NAMES:
            rows = pick(table, control=arm, depth_total=depth, quantity="accuracy")
            thin, (thick,) = lines_of(axis, arm)
            close(xy(thick), rows.groupby("learning_rate")["value"].mean())
            for line, seed in zip(thin, (100, 101), strict=True):
                close(xy(line), pick(rows, seed=seed).set_index("learning_rate")["value"])
    assert axes[0, 0].yaxis.get_major_formatter()(0.5, 0) == "50"
    assert "thin: each of 2 seeds" in texts(axes[0, 0].figure)
    assert "0: diverged" not in texts(axes[0, 0].figure)
    gone = table.assign(value=table["value"].where(table["learning_rate"] < 0.3, 0.0))
    assert "0: diverged" in texts(figures.learning_rates(gone)[0, 0].figure)


def test_interaction_joins_the_four_means() -> None:
    axes = figures.interaction(MAIN["outcomes"])
    mean = pick(MAIN["outcomes"], split="test", quantity="accuracy").groupby(["depth_total", "arm"])["value"].mean()
    for axis, depth in zip(axes[0], (20, 56), strict=True):
        joins = [drawn_y(line) for line in axis.lines if list(line.get_xdata()) == [0, 1] and line.get_linewidth() > 1]
        pairs = (("stop-gradient", "residual"), ("plain", "gradient-only"))
        np.testing.assert_allclose(joins, [[mean[depth, arm] for arm in pair] for pair in pairs])
        for arm, backward in {"plain": 0, "stop-gradient": 0, "gradient-only": 1, "residual": 1}.items():
            rows = pick(MAIN["outcomes"], split="test", quantity="accuracy", depth_total=depth, arm=arm)
            assert sorted(dots_of(axis, arm)) == sorted(rows["value"])
            drawn = means_of(axis, arm)
            assert drawn[backward] == pytest.approx(rows["value"].mean())
            assert np.isnan(drawn[1 - backward])
    assert "shortest-path" not in texts(axes[0, 0].figure)


def test_arms_outside_the_factorial_get_a_panel_that_says_so() -> None:
    axes = figures.interaction(tables(["shortest-path"])["outcomes"])
    assert "none of the arms\nstop-gradient, residual, plain, gradient-only" in texts(axes[0, 0])
