"""Learning curves: what is drawn equals what plain pandas gives."""

from itertools import product

import figures
from tests.support.drawings import MAIN, NAMES, close, lines_of, pick, texts, xy


def test_learning_curves_draw_every_seed_and_their_mean() -> None:
    axes = figures.learning_curves(MAIN["curves"])
    assert [axis.get_title() for axis in axes[0]] == ["depth 20", "depth 56"]
    assert [axis.get_yscale() for axis in axes[:, 0]] == ["log", "linear"]
    for (row, (split, quantity)), (column, depth), arm in product(
        enumerate([("train", "loss"), ("validation", "accuracy")]), enumerate([20, 56]), NAMES
    ):
        rows = pick(MAIN["curves"], split=split, quantity=quantity, depth_total=depth, arm=arm)
        thin, thick = lines_of(axes[row, column], arm)
        assert len(thin) == 3
        assert len(thick) == 1
        close(xy(thick[0]), rows.groupby("epoch")["value"].mean())
        for seed, line in enumerate(thin):
            close(xy(line), rows[rows["seed"] == seed].set_index("epoch")["value"])


def test_a_mean_ends_where_a_seed_does_and_a_cross_marks_it() -> None:
    curves = MAIN["curves"]
    curves = curves[~((curves["arm"] == "plain") & (curves["seed"] == 2) & (curves["epoch"] > 1))]
    axes = figures.learning_curves(curves)
    thin, thick = lines_of(axes[0, 0], "plain")
    assert [len(xy(line)) for line in thin if line.get_marker() != "x"] == [3, 3, 2]
    assert max(xy(thick[0]).index) == 1
    crosses = [line for line in axes[0, 0].lines if line.get_marker() == "x"]
    assert [list(line.get_xdata()) for line in crosses] == [[1]]
    assert "each of 2–3 seeds; ×: ended early" in texts(axes[0, 0].figure)
