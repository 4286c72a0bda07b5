"""Residual magnitudes: from light to dark over training, for arms with a shortcut."""

from itertools import product

import pandas as pd
from matplotlib.colors import to_hex, to_rgb

import figures
from figures import ARMS
from tests.support.drawings import MAIN, close, geometric, pick, tables, texts, xy


def test_residual_magnitudes_go_from_light_to_dark_for_arms_with_a_shortcut() -> None:
    axes = figures.residual_magnitudes(MAIN["magnitudes"])
    assert [axis.get_title() for axis in axes[0]] == ["residual", "stop-gradient", "shortest-path"]
    arms = ("residual", "stop-gradient", "shortest-path")
    for (row, depth), (column, arm) in product(enumerate([20, 56]), enumerate(arms)):
        thick = [line for line in axes[row, column].lines if line.get_linewidth() > 1]
        rows = pick(MAIN["magnitudes"], quantity="ratio", depth_total=depth, arm=arm)
        for epoch, line in enumerate(thick):
            close(xy(line), geometric(rows[rows["epoch"] == epoch], "depth"))
        brightness = [sum(to_rgb(line.get_color())) for line in thick]
        assert brightness == sorted(brightness, reverse=True)
        assert to_hex(thick[-1].get_color()) == to_hex(ARMS[arm].colour)
    legend = texts(axes[0, 0].figure)
    assert all(f"epoch {epoch}" in legend for epoch in range(3))
    assert "no ratio: gradient-only, plain, near-identity (the shortcut carries zeros)" in legend


def test_an_arm_that_ended_early_has_fewer_epochs_of_magnitudes() -> None:
    magnitudes = MAIN["magnitudes"]
    magnitudes = magnitudes[~((magnitudes["arm"] == "residual") & (magnitudes["epoch"] == 2))]
    axes = figures.residual_magnitudes(magnitudes)
    drawn = [[len(xy(line)) for line in axis.lines if line.get_linewidth() > 1] for axis in axes[0]]
    assert drawn == [[4, 4], [4, 4, 4], [4, 4, 4]]


def test_residual_magnitudes_draw_six_of_many_epochs() -> None:
    first = tables(["residual"], [20], [0])["magnitudes"].query("epoch == 0")
    axes = figures.residual_magnitudes(pd.concat([first.assign(epoch=epoch) for epoch in range(61)]))
    legend = [entry.get_text() for entry in axes[0, 0].figure.legends[0].get_texts()]
    assert legend == [f"epoch {epoch}" for epoch in (0, 1, 4, 11, 26, 60)]


def test_arms_without_a_shortcut_get_a_panel_that_says_so() -> None:
    magnitudes = tables(["plain"])["magnitudes"]
    assert "no ratio: plain (the shortcut carries zeros)" in texts(figures.residual_magnitudes(magnitudes)[0, 0])
