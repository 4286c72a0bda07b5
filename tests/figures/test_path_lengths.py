"""The figure of sampled paths: what is drawn equals what plain pandas gives for the same tiny table."""

import math
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.lines import Line2D
from matplotlib.text import Text

import figures
from figures import ARMS

BLOCKS = 4
ONLY = {"stop-gradient": 4, "shortest-path": 0}


def table(epochs: tuple[int, ...] = (0, 1, 3), depths: tuple[int, ...] = (8, 20)) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    for arm, depth, seed, epoch in product(["residual", *ONLY], depths, (0, 1), epochs):
        now = {"experiment": "toy", "arm": arm, "depth_total": depth, "seed": seed, "epoch": epoch}
        for k in range(BLOCKS + 1):
            norm = (1 + seed) * 10.0 ** (-k * (1 + epoch) / 4) * (ONLY.get(arm, k) == k)
            at = {"path_norm": norm, "path_norm_low": 0.8 * norm, "path_norm_high": 1.2 * norm}
            at |= {"mass": norm * math.comb(BLOCKS, k), "samples": 7, "cancellation": 0.5 if norm else math.nan}
            rows += [now | {"path_length": k, "quantity": name, "value": value} for name, value in at.items()]
        ends = {"mass_low": 1 + seed, "mass_high": 3}
        rows += [now | {"quantity": name, "value": value} for name, value in ends.items()]
    return pd.DataFrame(rows)


def lines_of(axis: Axes, arm: str, *, thick: bool) -> list[Line2D]:
    lines = [line for line in axis.lines if to_hex(line.get_color()) == to_hex(ARMS[arm].colour)]
    return [line for line in lines if (line.get_linewidth() > 1.3) == thick and line.get_linewidth() != 1.2]


def texts(axes: Any) -> str:
    return "\n".join(text.get_text() for text in axes[0, 0].figure.findobj(Text))


def test_norms_shares_and_cancellation_of_the_deepest_network() -> None:
    drawn = table()
    axes = figures.sampled_paths(drawn)
    assert axes.shape == (3, 3)
    assert [axis.get_title() for axis in axes[0]] == ["at initialisation", "after epoch 1", "after epoch 3"]
    assert [axis.get_yscale() for axis in axes[:, 0]] == ["log", "linear", "log"]
    for column, epoch in enumerate((0, 1, 3)):
        norms = np.sqrt(2) * 10.0 ** (-np.arange(5) * (1 + epoch) / 4)  # the geometric mean of seeds with 1 and 2
        (mean,) = lines_of(axes[0, column], "residual", thick=True)
        np.testing.assert_allclose(np.asarray(mean.get_ydata(), float), norms)
        masses = norms * [math.comb(4, k) for k in range(5)]
        (share,) = lines_of(axes[1, column], "residual", thick=True)
        np.testing.assert_allclose(np.asarray(share.get_ydata(), float), masses / masses.sum())
        (cancelled,) = lines_of(axes[2, column], "residual", thick=True)
        np.testing.assert_allclose(np.asarray(cancelled.get_ydata(), float), 0.5)
        assert len(axes[0, column].collections) >= 2  # each seed's interval
    said = texts(axes)
    for text in ("depth 20, 7 paths a length", "each of 2 seeds", "95 % of the mass", "paths at right angles"):
        assert text in said
    assert "depth 8, 7 paths" in texts(figures.sampled_paths(drawn, depth_total=8))


def test_single_paths_are_points_of_norm_alone() -> None:
    axes = figures.sampled_paths(table())
    for arm, length in ONLY.items():
        (point,) = lines_of(axes[0, 0], arm, thick=True)
        assert list(np.asarray(point.get_xdata())) == [length]
        assert not lines_of(axes[1, 0], arm, thick=True) + lines_of(axes[2, 0], arm, thick=True)
    assert "a single path, no curves: stop-gradient, shortest-path" in texts(axes)
    alone = table()
    axes = figures.sampled_paths(alone[alone["arm"] != "residual"])
    assert axes.shape == (1, 3)
    assert "at right angles" not in texts(axes)


def test_the_bar_spans_the_band_above_the_curves() -> None:
    axes = figures.sampled_paths(table())
    heights = set()
    for axis in axes[1]:
        (bar,) = [line for line in axis.lines if line.get_linewidth() == 1.2]
        assert list(np.asarray(bar.get_xdata(), float)) == [1.5, 3]  # the seeds' mean ends
        heights |= set(np.asarray(bar.get_ydata(), float))
    curves = [np.asarray(line.get_ydata(), float).max() for line in axes[1, 0].lines if line.get_linewidth() != 1.2]
    assert len(heights) == 1
    assert heights.pop() > max(curves)


def test_the_line_of_right_angles() -> None:
    axes = figures.sampled_paths(table())
    (line,) = [line for line in axes[2, 0].lines if line.get_linewidth() == 0.8]
    np.testing.assert_allclose(np.asarray(line.get_ydata(), float), [1, 0.5, 6**-0.5, 0.5, 1])


def test_a_ratio_that_no_sum_can_have_is_explained() -> None:
    sampled = table()
    assert "too few paths" not in texts(figures.sampled_paths(sampled))
    high = (sampled["quantity"] == "cancellation") & (sampled["path_length"] == 2)
    assert "a ratio above 1: too few paths" in texts(
        figures.sampled_paths(sampled.assign(value=sampled["value"].where(~high | sampled["value"].isna(), 3.0)))
    )


def test_of_many_epochs_three_are_drawn() -> None:
    axes = figures.sampled_paths(table(epochs=(0, 1, 2, 5)))
    assert [axis.get_title() for axis in axes[0]] == ["at initialisation", "after epoch 1", "after epoch 5"]


def test_only_norms_are_enough() -> None:
    norms = table()
    axes = figures.sampled_paths(norms[norms["quantity"] == "path_norm"])
    assert axes.shape == (1, 3)
    assert "95 %" not in texts(axes)
    assert "paths a length" not in texts(axes)


def test_errors_name_the_figure() -> None:
    with pytest.raises(ValueError, match=r"^sampled_paths: the table lacks seed, value"):
        figures.sampled_paths(table().drop(columns=["seed", "value"]))
    with pytest.raises(ValueError, match=r"^sampled_paths: no finite value where .*depth_total is 99"):
        figures.sampled_paths(table(), depth_total=99)
    with pytest.raises(ValueError, match=r"sampled_paths draws 3 x 3 panels of this table; got 2 axes"):
        figures.sampled_paths(table(), axes=figures.sampled_paths(table())[0, :2])


def test_it_can_be_redrawn_from_its_csv(tmp_path: Path) -> None:
    axes = figures.sampled_paths(table())
    png, csv = figures.save(axes, table(), tmp_path, "one")[1:]
    redrawn = pd.read_csv(csv)
    other = figures.save(figures.sampled_paths(redrawn), redrawn, tmp_path, "other")[1]
    assert png.read_bytes() == other.read_bytes()
