"""Gradient norms and their two parts: what is drawn equals what plain pandas gives."""

from itertools import product
from pathlib import Path

import figures
from tests.support.drawings import MAIN, NAMES, close, geometric, lines_of, pick, texts, xy


def test_gradient_norms_draw_the_geometric_mean_at_the_start_and_at_the_end() -> None:
    axes = figures.gradient_norms(MAIN["gradients"])
    assert {axis.get_yscale() for axis in axes.flat} == {"log"}
    assert "at initialisation" in texts(axes[0, -1])
    assert "after epoch 2" in texts(axes[1, -1])
    for (row, epoch), (column, depth), arm in product(enumerate([0, 2]), enumerate([20, 56]), NAMES):
        rows = pick(MAIN["gradients"], quantity="total", epoch=epoch, depth_total=depth, arm=arm)
        thin, thick = lines_of(axes[row, column], arm)
        assert len(thin) == 3
        close(xy(thick[0]), geometric(rows, "depth"))


def test_zeros_are_left_out_of_log_axes() -> None:
    gradients = MAIN["gradients"].copy()
    zero = (gradients["arm"] == "plain") & (gradients["seed"] == 1) & (gradients["depth"] == 2)
    gradients.loc[zero, "value"] = 0.0
    axes = figures.gradient_norms(gradients)
    thin, thick = lines_of(axes[0, 0], "plain")
    assert [list(xy(line).index) for line in thin] == [[0, 1, 2, 3], [0, 1, 3], [0, 1, 2, 3]]
    assert list(xy(thick[0]).index) == [0, 1, 3]
    assert axes[0, 0].get_ylim()[0] > 1e-7
    assert "thin: each of 3 seeds; exact zeros left out" in texts(axes[0, 0].figure)
    assert "exact zeros" not in texts(figures.gradient_norms(MAIN["gradients"])[0, 0].figure)
    assert "exact zeros" not in texts(figures.path_lengths(MAIN["paths"])[0, 0].figure)
    assert "exact zeros" not in texts(figures.gradient_split(MAIN["gradients"])[0, 0].figure)


def test_arms_whose_gradients_are_all_zero_are_named(tmp_path: Path) -> None:
    """As those of a plain network whose branches begin at zero; alone, a log axis has limits all the same."""
    gradients = MAIN["gradients"]
    zeros = gradients.assign(value=gradients["value"].mask(gradients["arm"] == "plain", 0.0))
    assert "zero: plain" in texts(figures.gradient_norms(zeros)[0, 0])
    alone = pick(zeros, arm="plain")
    axes = figures.gradient_norms(alone)
    assert axes[0, 0].get_yscale() == "log"
    figures.save(axes, alone, tmp_path, "zeros")  # ticks are placed as it is drawn
    assert "zero" not in texts(figures.gradient_norms(gradients)[0, 0])


def test_an_arm_without_values_is_named() -> None:
    gradients = MAIN["gradients"].query("arm != 'plain' or epoch != 2 or depth_total != 56")
    axes = figures.gradient_norms(gradients)
    assert "no value: plain" in texts(axes[1, 1])
    assert "no value" not in texts(axes[1, 0]) + texts(axes[0, 1])
    assert "no value" in texts(figures.gradient_split(gradients)[1, 3])


def test_gradient_split_draws_both_parts_of_the_deepest_network() -> None:
    axes = figures.gradient_split(MAIN["gradients"])
    assert [axis.get_title() for axis in axes[0]] == NAMES
    for (row, epoch), (column, arm) in product(enumerate([0, 2]), enumerate(NAMES)):
        rows = pick(MAIN["gradients"], epoch=epoch, depth_total=56, arm=arm)
        drawn = {name: pick(rows, quantity=name) for name in ("shortcut", "branch")}
        drawn = {name: part for name, part in drawn.items() if part["value"].any()}
        thick = lines_of(axes[row, column], arm)[1]
        assert len(thick) == len(drawn)
        for line, (name, part) in zip(thick, drawn.items(), strict=True):
            close(xy(line), geometric(part, "depth"))
            assert (line.get_linestyle() == "-") == (name == "shortcut")
    assert "shortcut = 0" in texts(axes[0, 1])
    assert "branch = 0" in texts(axes[1, 4])
    assert "depth 20" in texts(figures.gradient_split(MAIN["gradients"], depth_total=20)[0, 0].figure)
