"""Alignment with the true gradient: what is drawn equals what plain pandas gives."""

from itertools import product

import numpy as np

import figures
from tests.support.drawings import EXAMPLES, close, pick, xy

ARMS = ("gradient-only", "plain")


def test_every_block_at_first_and_at_last() -> None:
    table = EXAMPLES["alignment"]
    axes = figures.alignment(table)
    assert axes.shape == (2, 4)
    titles = [axis.get_title() for axis in axes[0]]
    assert titles[0] == "depth 8,\nat initialisation"
    assert titles[3] == "depth 20,\nafter epoch 2"
    assert [axis.get_yscale() for axis in axes[:, 0]] == ["linear", "log"]
    for row, quantity in enumerate(("cosine", "norm ratio")):
        for column, (depth, epoch) in enumerate(product((8, 20), (0, 2))):
            thick = [line for line in axes[row, column].lines if line.get_linewidth() > 1]
            for line, arm in zip(thick, ARMS, strict=True):
                rows = pick(table, arm=arm, depth_total=depth, epoch=epoch, quantity=quantity)
                logs = rows.assign(value=np.log(rows["value"])) if row else rows
                means = logs.groupby("depth")["value"].mean()
                close(xy(line), means.apply(np.exp) if row else means)
                assert line.get_color() == figures.ARMS[arm].colour


def test_the_course_is_drawn_for_each_depth() -> None:
    table = EXAMPLES["alignment_over_epochs"]
    axes = figures.alignment_over_epochs(table)
    assert axes.shape == (2, 2)
    for row, quantity in enumerate(("cosine", "uphill share")):
        thick = [line for line in axes[row, 1].lines if line.get_linewidth() > 1]
        for line, arm in zip(thick, ARMS, strict=True):
            close(xy(line), pick(table, arm=arm, depth_total=20, quantity=quantity).groupby("epoch")["value"].mean())
    assert axes[1, 0].yaxis.get_major_formatter()(0.25, 0) == "25"
