"""The figures of limited path lengths: what is drawn equals what plain pandas gives; treatments are a column."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

import figures
from figures import ARMS
from figures.parts.style import MARKERS
from figures.short_paths import SERIES
from tests.support.drawings import close, limited, limited_changes, pick, suits_a_paper, texts, xy


def test_at_most_ends_in_the_residual_arm_and_the_others_are_horizontal() -> None:
    table = limited()
    table["arm"] = table["arm"].where(table["treatment"].isna(), "residual")  # nothing is read from names
    axes = figures.short_paths(table)
    assert [axis.get_ylabel() for axis in axes[0]] == ["training accuracy (%)", "test accuracy (%)"]
    for axis, split in zip(axes[0], ("train", "test"), strict=True):
        rows = pick(table, split=split, quantity="accuracy")
        at_most = rows[(rows["treatment"] == "at-most") | ((rows["arm"] == "residual") & rows["treatment"].isna())]
        (thick,) = [line for line in axis.lines if line.get_linewidth() > 1 and len(line.get_xdata()) == 4]
        close(xy(thick), at_most.groupby("path_length")["value"].mean())
        thin = [line for line in axis.lines if line.get_linewidth() < 0.6 and len(line.get_xdata()) == 4]
        for seed, line in enumerate(thin):
            close(xy(line), pick(at_most, seed=seed).set_index("path_length")["value"])
        for arm in ("residual", "stop-gradient", "plain"):
            horizontal = {float(line.get_ydata()[0]) for line in axis.lines if len(set(line.get_ydata())) == 1}
            assert pick(rows[rows["treatment"].isna()], arm=arm)["value"].mean() in horizontal
        bands = {round(patch.get_extents().height / axis.bbox.height, 9) for patch in axis.patches}
        assert len(bands) == 3


def test_the_sampled_point_has_its_own_ring() -> None:
    table = limited()
    axes = figures.short_paths(table)
    (ring,) = [line for line in axes[0, 1].lines if line.get_markerfacecolor() == "none"]
    assert to_hex(ring.get_color()) == to_hex(SERIES["sampled"].colour)
    mean = pick(table, treatment="sampled", split="test", quantity="accuracy")["value"].mean()
    assert xy(ring).to_dict() == {4.0: pytest.approx(mean)}


def test_zero_is_on_the_axis_and_ticks_are_limits() -> None:
    axes = figures.short_paths(limited({"at-most": (0, 16, 27)}))
    assert axes[0, 0].get_xscale() == "symlog"
    assert axes[0, 0].get_xlim()[0] < 0
    assert [text.get_text() for text in axes[0, 0].get_xticklabels()] == ["0", "1", "2", "4", "8", "16", "27"]


def test_two_depths_are_two_rows() -> None:
    axes = figures.short_paths(limited(depths=(20, 56)))
    assert axes.shape == (2, 2)
    suits_a_paper(axes)
    assert "each of 3 seeds; bands: their range" in texts(axes[0, 0].figure)


def test_other_treatments_and_tables_without_any_are_drawn() -> None:
    one = texts(figures.short_paths(limited({"exactly": (2,)}, seeds=1))[0, 0].figure)
    assert "1 seed" in one
    assert "exactly K branches" in one
    named = limited({"by weight": (0, 2)})
    axes = figures.short_paths(named)
    assert "by weight" in texts(axes[0, 0].figure)
    assert [line for line in axes[0, 0].lines if line.get_marker() == MARKERS[0]]  # the first look that no arm has
    assert "by weight-2" in texts(figures.short_paths(named.drop(columns="treatment"))[0, 0].figure)
    empty = named.assign(treatment=named["treatment"].fillna(""))
    assert texts(figures.short_paths(empty)[0, 0].figure.legends[0]) == texts(axes[0, 0].figure.legends[0])
    assert set(ARMS) & set(SERIES) == set()


def test_changes_show_factors_points_intervals_and_margin() -> None:
    loss, accuracy = figures.short_path_changes(limited_changes())[0]
    assert [axis.get_yscale() for axis in (loss, accuracy)] == ["log", "linear"]
    limits = np.array([0, 1, 4])
    for axis, scale in ((loss, np.exp), (accuracy, lambda value: 100 * value)):
        points, bars = axis.containers[0][0], axis.containers[0][2][0]
        close(xy(points), pd.Series(scale(0.1 * (1 + limits)), limits))
        ends = np.array([segment[:, 1] for segment in bars.get_segments()])
        np.testing.assert_allclose(ends, np.stack([scale(-0.2 * (1 + limits)), scale(0.3 * (1 + limits))], 1))
    (shade,) = accuracy.patches
    assert shade.get_y() == pytest.approx(25)
    assert "n = 3 seeds, 95 % paired t intervals" in texts(loss.figure)


def test_changes_without_intervals_are_points() -> None:
    axes = figures.short_path_changes(limited_changes(intervals=False))
    assert "n = 3 seeds, no intervals" in texts(axes[0, 0].figure)
