"""Path lengths, exact and sampled: what is drawn equals what plain pandas gives for the same tiny table."""

import math
from itertools import product
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

import figures
from figures import ARMS
from tests.support.drawings import MAIN, NAMES, SINGLE, close, geometric, lines_of, pick, sampled, texts, xy


def test_path_lengths_draw_curves_and_single_points() -> None:
    axes = figures.path_lengths(MAIN["paths"])
    assert [axis.get_yscale() for axis in axes[:, 0]] == ["log", "log", "linear", "linear"]
    for (row, (quantity, epoch)), arm in product(enumerate(product(("norm", "share"), (0, 2))), NAMES):
        rows = pick(MAIN["paths"], quantity=quantity, epoch=epoch, depth_total=56, arm=arm)
        rows = rows[rows["value"] != 0]
        thick = lines_of(axes[row, 1], arm)[1]
        if quantity == "share" and arm not in ("residual", "gradient-only"):
            assert not thick
            continue
        expected = geometric(rows, "path_length") if quantity == "norm" else rows.groupby("path_length")["value"].mean()
        close(xy(thick[0]), expected)
        assert thick[0].get_marker() == ARMS[arm].marker
    assert "no share curve: stop-gradient, plain, shortest-path, near-identity (one length, share 1)" in texts(
        axes[0, 0].figure
    )


def test_shares_that_cancel_each_other_get_an_axis_for_both_signs() -> None:
    paths = MAIN["paths"].copy()
    large = (paths["quantity"] == "share") & (paths["arm"] == "residual") & (paths["path_length"] < 2)
    paths.loc[large, "value"] = np.where(paths.loc[large, "path_length"] == 0, -5000.0, 5001.0)
    axes = figures.path_lengths(paths)
    assert [axis.get_yscale() for axis in axes[:, 0]] == ["log", "log", "symlog", "symlog"]
    assert list(axes[2, 0].get_yticks()) == [-1000, 0, 1000]  # there is no room for the decades between


def curves_of(axis: Axes, arm: str, *, thick: bool) -> list[Line2D]:
    """An arm's lines but for the bars above them."""
    thin, means = lines_of(axis, arm)
    return [line for line in (means if thick else thin) if line.get_linewidth() != 1.2]


def said(axes: Any) -> str:
    return texts(axes[0, 0].figure)


@pytest.fixture(scope="module")
def axes() -> Any:
    return figures.sampled_paths(sampled())


def test_norms_shares_and_cancellation_of_the_deepest_network(axes: Any) -> None:
    assert axes.shape == (3, 3)
    assert [axis.get_title() for axis in axes[0]] == ["at initialisation", "after epoch 1", "after epoch 3"]
    assert [axis.get_yscale() for axis in axes[:, 0]] == ["log", "linear", "log"]
    for column, epoch in enumerate((0, 1, 3)):
        norms = np.sqrt(2) * 10.0 ** (-np.arange(5) * (1 + epoch) / 4)  # the geometric mean of seeds with 1 and 2
        (mean,) = curves_of(axes[0, column], "residual", thick=True)
        np.testing.assert_allclose(np.asarray(mean.get_ydata(), float), norms)
        masses = norms * [math.comb(4, k) for k in range(5)]
        (share,) = curves_of(axes[1, column], "residual", thick=True)
        np.testing.assert_allclose(np.asarray(share.get_ydata(), float), masses / masses.sum())
        (cancelled,) = curves_of(axes[2, column], "residual", thick=True)
        np.testing.assert_allclose(np.asarray(cancelled.get_ydata(), float), 0.5)
        assert len(axes[0, column].collections) >= 2  # each seed's interval
    shown = said(axes)
    for text in ("depth 20, 7 paths a length", "each of 2 seeds", "95 % of the mass", "paths at right angles"):
        assert text in shown
    assert "depth 8, 7 paths" in said(figures.sampled_paths(sampled(), depth_total=8))


def test_single_paths_are_points_of_norm_alone(axes: Any) -> None:
    for arm, length in SINGLE.items():
        (point,) = curves_of(axes[0, 0], arm, thick=True)
        assert list(np.asarray(point.get_xdata())) == [length]
        assert not curves_of(axes[1, 0], arm, thick=True) + curves_of(axes[2, 0], arm, thick=True)
    assert "a single path, no curves: stop-gradient, shortest-path" in said(axes)
    alone = figures.sampled_paths(sampled().query("arm != 'residual'"))
    assert alone.shape == (1, 3)
    assert "at right angles" not in said(alone)


def test_the_bar_spans_the_band_above_the_curves(axes: Any) -> None:
    heights = set()
    for axis in axes[1]:
        (bar,) = [line for line in axis.lines if line.get_linewidth() == 1.2]
        assert list(np.asarray(bar.get_xdata(), float)) == [1.5, 3]  # the seeds' mean ends
        heights |= set(np.asarray(bar.get_ydata(), float))
    curves = [np.asarray(line.get_ydata(), float).max() for line in axes[1, 0].lines if line.get_linewidth() != 1.2]
    assert len(heights) == 1
    assert heights.pop() > max(curves)


def test_the_line_of_right_angles(axes: Any) -> None:
    (line,) = [line for line in axes[2, 0].lines if line.get_linewidth() == 0.8]
    np.testing.assert_allclose(np.asarray(line.get_ydata(), float), [1, 0.5, 6**-0.5, 0.5, 1])


def test_a_ratio_that_no_sum_can_have_is_explained(axes: Any) -> None:
    assert "too few paths" not in said(axes)
    paths = sampled()
    high = (paths["quantity"] == "cancellation") & (paths["path_length"] == 2)
    above = paths.assign(value=paths["value"].where(~high | paths["value"].isna(), 3.0))
    assert "a ratio above 1: too few paths" in said(figures.sampled_paths(above))


def test_of_many_epochs_three_are_drawn() -> None:
    axes = figures.sampled_paths(sampled(epochs=(0, 1, 2, 5)))
    assert [axis.get_title() for axis in axes[0]] == ["at initialisation", "after epoch 1", "after epoch 5"]


def test_only_norms_are_enough() -> None:
    norms = sampled()
    axes = figures.sampled_paths(norms[norms["quantity"] == "path_norm"])
    assert axes.shape == (1, 3)
    assert "95 %" not in said(axes)
    assert "paths a length" not in said(axes)


def test_a_network_that_the_table_lacks_is_named() -> None:
    with pytest.raises(ValueError, match=r"^sampled_paths: no finite value where .*depth_total is 99"):
        figures.sampled_paths(sampled(), depth_total=99)
