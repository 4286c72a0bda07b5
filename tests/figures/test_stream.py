"""The stream against depth: what is drawn equals what plain pandas gives."""

from itertools import product

import numpy as np

import figures
from tests.support.drawings import EXAMPLES, close, pick, xy

ARMS = ("gradient-only", "plain")


def test_every_quantity_at_first_and_at_last() -> None:
    table = EXAMPLES["stream"]
    axes = figures.stream(table)
    assert axes.shape == (3, 4)
    assert [axis.get_yscale() for axis in axes[:, 0]] == ["log", "linear", "linear"]
    for row, quantity in enumerate(("effective_rank", "cosine", "loss")):
        for column, (depth, epoch) in enumerate(product((8, 20), (0, 2))):
            thick = [line for line in axes[row, column].lines if line.get_linewidth() > 1]
            for line, arm in zip(thick, ARMS, strict=True):
                rows = pick(table, arm=arm, depth_total=depth, epoch=epoch, quantity=quantity)
                logs = rows if row else rows.assign(value=np.log(rows["value"]))
                means = logs.groupby("depth")["value"].mean()
                close(xy(line), means if row else means.apply(np.exp))


def test_what_the_table_lacks_has_no_row() -> None:
    table = EXAMPLES["stream"]
    axes = figures.stream(table[table["quantity"] != "cosine"])
    assert [axis.get_ylabel().split("\n")[0] for axis in axes[:, 0]] == ["effective", "loss of the"]
