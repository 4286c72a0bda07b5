"""The figures of degradation: what is drawn equals what plain pandas gives."""

from itertools import product

import numpy as np
import pandas as pd

import figures
from figures.degradation import strengths
from figures.style import ARMS, shade
from tests.test_figures import close, number, pick, xy


def toy(quantity: str, **more: tuple[object, ...]) -> pd.DataFrame:
    keys = {"arm": ("plain", "residual"), "depth_total": (8, 20, 56), "seed": (0, 1, 2), **more}
    rows = pd.DataFrame(list(product(*keys.values())), columns=list(keys))
    values = [number(*row) for row in rows.itertuples(index=False)]
    return rows.assign(experiment="toy", quantity=quantity, value=values)


def test_the_figure_shows_each_arm_s_errors_the_deeper_the_darker() -> None:
    table = toy("error", split=("train", "test"), epoch=(1, 2, 3))
    axes = figures.degradation(table)
    assert axes.shape == (2, 2)
    assert [axis.get_title() for axis in axes[0]] == ["residual", "plain"]
    for column, arm in enumerate(("residual", "plain")):
        for row, split in enumerate(("train", "test")):
            thick = [line for line in axes[row, column].lines if line.get_linewidth() > 1]
            for line, (depth, strength) in zip(thick, strengths([8, 20, 56]), strict=True):
                close(xy(line), pick(table, arm=arm, split=split, depth_total=depth).groupby("epoch")["value"].mean())
                assert line.get_color() == shade(ARMS[arm].colour, strength)
    colours = [shade("#000000", strength) for _, strength in strengths([8, 20, 56])]
    assert colours == sorted(colours, reverse=True)  # from pale to black


def test_layer_responses_are_drawn_in_order_and_sorted() -> None:
    table = toy("std", depth=(0, 1, 2, 3))
    axes = figures.layer_responses(table)
    for axis, ordered in zip(axes[0], (False, True), strict=True):
        thick = iter([line for line in axis.lines if line.get_linewidth() > 1])
        for arm, depth in product(("residual", "plain"), (8, 20, 56)):
            wide = pick(table, arm=arm, depth_total=depth).pivot(index="depth", columns="seed", values="value")
            values = -np.sort(-wide.to_numpy(), axis=0) if ordered else wide.to_numpy()
            np.testing.assert_allclose(next(thick).get_ydata(), np.exp(np.log(values).mean(axis=1)), rtol=1e-12)
