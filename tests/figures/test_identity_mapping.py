"""Copying and insertion: what is drawn equals what plain pandas gives."""

import numpy as np
import pytest

import figures
from tests.support.drawings import EXAMPLES, dots_of, geometric, means_of, pick

ARMS = ("residual", "plain")


def test_copying_shows_every_seed_and_geometric_means() -> None:
    table = EXAMPLES["copying"]
    by_blocks, over_time, by_block = figures.copying(table)[0]
    assert [tick.get_text() for tick in by_blocks.get_xticklabels()] == ["1", "4"]
    assert {axis.get_yscale() for axis in (by_blocks, over_time, by_block)} == {"log"}
    for arm in ARMS:
        last = pick(table, arm=arm, quantity="error", split="test", epoch=2)
        assert sorted(dots_of(by_blocks, arm)) == pytest.approx(sorted(last["value"]))
        assert means_of(by_blocks, arm) == pytest.approx(geometric(last, "depth_total").tolist())
        changes = [pick(table, arm=arm, quantity="change", epoch=epoch) for epoch in (0, 2)]
        assert sorted(dots_of(by_block, arm)) == pytest.approx(sorted(changes[1]["value"]))
        both = [value for part in changes for value in geometric(part, "depth_total")]
        assert means_of(by_block, arm) == pytest.approx(both)
    hollow = [line.get_markerfacecolor() == "none" for line in by_block.lines if line.get_markersize() == 4.5]
    assert hollow == [True, True, False, False]  # before training
    thick = [line for line in over_time.lines if line.get_linewidth() > 1]
    for line, arm in zip(thick, ARMS, strict=True):
        course = pick(table, arm=arm, quantity="error", split="validation", depth_total=8)
        np.testing.assert_allclose(line.get_ydata(), geometric(course, "epoch"))


def test_an_error_of_0_is_left_out_of_the_log_axes() -> None:
    table = EXAMPLES["copying"].copy()
    zero = (table["arm"] == "plain") & (table["seed"] == 1)
    table.loc[zero, "value"] = 0.0
    by_blocks, _, by_block = figures.copying(table)[0]
    for axis in (by_blocks, by_block):
        assert len(dots_of(axis, "plain")) == 2 * 2
        assert axis.get_ylim()[0] > 0.01


def test_insertion_shows_means_intervals_seeds_and_margins() -> None:
    table = EXAMPLES["insertion"]
    loss, accuracy, change = figures.insertion(table)[0]
    scales = {loss: np.exp, accuracy: lambda value: 100 * value, change: lambda value: value}
    outcomes = dict(zip(scales, ("log train loss", "test accuracy", "change last"), strict=True))
    for axis, scale in scales.items():
        assert len(axis.containers) == len(ARMS)
        for arm, container, shift in zip(ARMS, axis.containers, (-0.2, 0.2), strict=True):
            assert list(container.lines[0].get_xdata()) == pytest.approx([i + shift for i in range(4)])
            assert list(container.lines[0].get_ydata()) == pytest.approx([scale(0.1)] * 4)
            for segment in container.lines[2][0].get_segments():
                assert segment[:, 1] == pytest.approx([scale(-0.2), scale(0.3)])
            own = pick(table, arm=arm, outcome=outcomes[axis], quantity="seed")["value"]
            colour = figures.ARMS[arm].colour
            seeds = [k for k in axis.lines if k.get_marker() == "." and k.get_color() == colour]
            assert sorted(seeds[0].get_ydata()) == pytest.approx(sorted(scale(own)))
        assert [tick.get_text() for tick in axis.get_xticklabels()] == ["20", "32", "20", "32"]
        assert [text.get_text() for text in axis.texts] == ["identity", "random"]
    (shade,) = accuracy.patches
    assert shade.get_y() == pytest.approx(-2)  # a margin for the worse: what is above it is as good
    hollow = [line for line in change.lines if line.get_markerfacecolor() == "none"]
    assert [list(line.get_ydata()) for line in hollow] == [pytest.approx([0.1] * 4)] * 2
