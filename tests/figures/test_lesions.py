"""The figures of lesions: what is drawn equals the table."""

import numpy as np
import pandas as pd
import pytest

import figures
from figures import ARMS
from tests.support.drawings import lesions


def test_errors_by_block_are_drawn_for_every_seed() -> None:
    axes = figures.lesions_by_block(lesions("delete"))
    for axis in axes.flat:
        drawn = [np.asarray(line.get_ydata(), float) for line in axis.lines if line.get_color() == ARMS["plain"].colour]
        for seed in (0, 1):
            assert any(np.allclose(y, 0.2 + 0.1 * np.arange(4) + 0.01 * seed) for y in drawn if len(y) == 4)
        assert any(np.allclose(y, 0.205 + 0.1 * np.arange(4)) for y in drawn if len(y) == 4)
        assert [line.get_xdata()[0] for line in axis.lines if line.get_color() == "0.45"] == [2]  # type: ignore[index]


def test_errors_by_count_begin_with_the_whole_network() -> None:
    axis = figures.lesions_by_count(lesions("delete at random")).flat[0]
    drawn = [np.asarray(line.get_ydata(), float) for line in axis.lines if line.get_color() == ARMS["plain"].colour]
    assert any(np.allclose(y, [0.1, 0.255, 0.455]) for y in drawn if len(y) == 3)


def test_permutations_are_drawn_against_tau() -> None:
    axis = figures.lesions_by_count(lesions("permute")).flat[0]
    own = [line for line in axis.lines if line.get_color() == ARMS["plain"].colour]
    points = [np.asarray(line.get_xdata(), float) for line in own if line.get_linestyle() == "None"]
    assert sorted(np.concatenate(points)) == pytest.approx(sorted([0.7, 0.8, 0.9, 1.0] * 2))
    assert axis.xaxis_inverted()


def test_one_lesion_at_a_time() -> None:
    with pytest.raises(ValueError, match="give one lesion's rows; got delete, swap"):
        figures.lesions_by_block(pd.concat([lesions("delete"), lesions("swap")]))
