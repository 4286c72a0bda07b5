"""The figure of limited path lengths: what is drawn equals what plain pandas gives."""

from itertools import product

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.text import Text

import figures
from figures import ARMS
from figures.short_paths import SERIES
from tests.test_figures import close, number, pick, texts, xy

LIMITS = {"at-most-0": 0, "at-most-1": 1, "at-most-4": 4, "sampled-4": 4}
LENGTHS = LIMITS | {"residual": 9, "stop-gradient": 9, "plain": 9}


def outcomes(arms: dict[str, int] = LENGTHS, depths: tuple[int, ...] = (20,), seeds: int = 3) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "experiment": "toy", "arm": arm, "depth_total": depth, "seed": seed, "split": split, "path_length": length,
            "quantity": quantity, "value": number(arm, depth, seed, split, quantity),
        }
        for (arm, length), depth, seed, split, quantity in product(
            arms.items(), depths, range(seeds), ("train", "validation", "test"), ("loss", "accuracy")
        )
    )  # fmt: skip


def test_at_most_ends_in_the_residual_arm_and_the_others_lie_across() -> None:
    table = outcomes()
    axes = figures.short_paths(table)
    assert [axis.get_ylabel() for axis in axes[0]] == ["training accuracy (%)", "test accuracy (%)"]
    for axis, split in zip(axes[0], ("train", "test"), strict=True):
        rows = pick(table, split=split, quantity="accuracy")
        limited = rows[rows["arm"].str.startswith("at-most") | (rows["arm"] == "residual")]
        (thick,) = [line for line in axis.lines if line.get_linewidth() > 1 and len(line.get_xdata()) == 4]
        close(xy(thick), limited.groupby("path_length")["value"].mean())
        thin = [line for line in axis.lines if line.get_linewidth() < 0.6 and len(line.get_xdata()) == 4]
        for seed, line in enumerate(thin):
            close(xy(line), pick(limited, seed=seed).set_index("path_length")["value"])
        for arm in ("residual", "stop-gradient", "plain"):
            across = {float(line.get_ydata()[0]) for line in axis.lines if len(set(line.get_ydata())) == 1}
            assert pick(rows, arm=arm)["value"].mean() in across
        bands = {round(patch.get_extents().height / axis.bbox.height, 9) for patch in axis.patches}
        assert len(bands) == 3


def test_the_sampled_point_has_its_own_ring() -> None:
    table = outcomes()
    axes = figures.short_paths(table)
    (ring,) = [line for line in axes[0, 1].lines if line.get_markerfacecolor() == "none"]
    assert to_hex(ring.get_color()) == to_hex(SERIES["sampled"].colour)
    mean = pick(table, arm="sampled-4", split="test", quantity="accuracy")["value"].mean()
    assert xy(ring).to_dict() == {4.0: pytest.approx(mean)}


def test_zero_is_on_the_axis_and_ticks_are_limits() -> None:
    axes = figures.short_paths(outcomes({"at-most-0": 0, "at-most-16": 16, "residual": 27}))
    assert axes[0, 0].get_xscale() == "symlog"
    assert axes[0, 0].get_xlim()[0] < 0
    assert [text.get_text() for text in axes[0, 0].get_xticklabels()] == ["0", "1", "2", "4", "8", "16", "27"]


@pytest.mark.parametrize("depths", [(20,), (20, 56)])
def test_size_fonts_and_legend_suit_a_paper(depths: tuple[int, ...]) -> None:
    figure = figures.short_paths(outcomes(depths=depths))[0, 0].figure
    figure.draw_without_rendering()
    legend = figure.legends[0].get_window_extent()
    assert figure.get_figwidth() == pytest.approx(5.5)
    shown = [text for text in figure.findobj(Text) if text.get_text() and text.get_visible()]
    assert min(text.get_fontsize() for text in shown) >= 7
    assert 0 <= legend.x0 < legend.x1 <= figure.bbox.x1
    assert all(legend.y0 >= axis.get_window_extent().y1 for axis in figure.axes)
    assert "each of 3 seeds; bands: their range" in texts(figure)


def test_one_seed_one_arm_and_any_order_of_rows_are_enough() -> None:
    assert "1 seed" in texts(figures.short_paths(outcomes({"exactly-2": 2}, seeds=1))[0, 0].figure)
    table = outcomes()
    shuffled = table.sample(frac=1, random_state=0).set_axis([0] * len(table))
    before = table.copy()
    for one, other in zip(figures.short_paths(table).flat, figures.short_paths(shuffled).flat, strict=True):
        for line, twin in zip(one.lines, other.lines, strict=True):
            np.testing.assert_allclose(np.asarray(line.get_ydata(), float), np.asarray(twin.get_ydata(), float))
    pd.testing.assert_frame_equal(table, before)


def test_errors_name_the_figure_and_what_is_missing() -> None:
    table = outcomes()
    with pytest.raises(ValueError, match=r"^short_paths: the table lacks arm, path_length; its columns are"):
        figures.short_paths(table.drop(columns=["arm", "path_length"]))
    with pytest.raises(ValueError, match=r"^short_paths: the table is empty"):
        figures.short_paths(table[:0])
    with pytest.raises(ValueError, match=r"no look for the arm at-most-few; known are residual, .*, at-most"):
        figures.short_paths(table.replace({"arm": {"at-most-1": "at-most-few"}}))
    with pytest.raises(ValueError, match=r"^short_paths: several values for arm at-most.*path_length 0"):
        figures.short_paths(pd.concat([table, table]))
    assert set(ARMS) & set(SERIES) == set()


def changes(*, intervals: bool = True) -> pd.DataFrame:
    ends = {"low": -0.2, "high": 0.3} if intervals else {"low": np.nan, "high": np.nan}
    rows = []
    for (arm, length), outcome in product(LIMITS.items(), ("log train loss", "test accuracy")):
        numbers = {quantity: value * (1 + length) for quantity, value in ({"mean": 0.1} | ends).items()}
        for quantity, value in (numbers | {"n": 3, "margin": 0.25}).items():
            row = {"arm": arm, "depth_total": 20, "outcome": outcome, "path_length": length}
            rows.append(row | {"quantity": quantity, "value": value})
    return pd.DataFrame(rows)


def test_changes_show_factors_points_intervals_and_margin() -> None:
    loss, accuracy = figures.short_path_changes(changes())[0]
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
    axes = figures.short_path_changes(changes(intervals=False))
    assert "n = 3 seeds, no intervals" in texts(axes[0, 0].figure)
    with pytest.raises(ValueError, match=r"^short_path_changes: the table is empty"):
        figures.short_path_changes(changes()[:0])
