"""The figures of layer use: what is drawn equals what plain pandas gives."""

import numpy as np
import pytest
from matplotlib.colors import to_hex

import figures
from figures import ARMS
from figures.layer_use import PANELS
from tests.support.drawings import NAMES, blocks, centres, close, dots_of, geometric, means_of, pick, texts, xy


def test_every_panel_draws_each_seed_and_the_mean() -> None:
    table = blocks()
    axes = figures.layer_use(table)
    for axis, panel in zip(axes.flat, PANELS, strict=True):
        rows = pick(table, quantity=panel.quantity, epoch=0 if panel.at_start else 10)
        rows = pick(rows, statistics=panel.statistics) if panel.statistics else rows
        assert axis.get_yscale() == ("log" if panel.log else "linear")
        for arm in set(rows["arm"]):
            of_arm = pick(rows, arm=arm)
            lines = [k for k in axis.lines if to_hex(k.get_color()) == to_hex(ARMS[arm].colour)]
            (thick,) = [k for k in lines if k.get_linewidth() == 1]
            mean = geometric(of_arm, "depth") if panel.log else of_arm.groupby("depth")["value"].mean()
            close(xy(thick), mean)
            assert len([k for k in lines if k.get_linewidth() == 0.5]) == 3
            dotted = [k for k in lines if k.get_linewidth() == 0.6]
            if panel.unit == "test error (%)":
                whole = pick(table, arm=arm, quantity="whole", statistics=panel.statistics or "kept")["value"].mean()
                assert [float(np.asarray(k.get_ydata())[0]) for k in dotted] == [pytest.approx(whole)]
    assert "each of 3 seeds" in texts(axes[0, 0].figure)
    assert axes[0, 2].get_title() == "gradient, after epoch 10"


def test_what_no_arm_has_is_said() -> None:
    axes = figures.layer_use(blocks(("plain",), seeds=1))
    missing = [panel.quantity in ("read-out", "attribution") for panel in PANELS]
    assert ["not measured" in texts(axis) for axis in axes.flat] == missing
    with pytest.raises(ValueError, match=r"^layer_use: the table lacks depth; its columns are"):
        figures.layer_use(blocks().drop(columns="depth"))


def test_centres_draw_seeds_mean_and_interval_in_their_row() -> None:
    table = centres()
    (axis,) = figures.depth_centres(table).flat
    names = list(dict.fromkeys(table["outcome"]))
    assert [text.get_text().replace("\n", " ") for text in axis.get_yticklabels()] == names
    for arm in NAMES:
        values = pick(table, arm=arm, quantity="centre").groupby("outcome")["value"]
        assert means_of(axis, arm, horizontal=True) == pytest.approx(values.mean()[names].tolist())
        assert sorted(dots_of(axis, arm, horizontal=True)) == sorted(pick(table, arm=arm, quantity="centre")["value"])
        lines = [k for k in axis.lines if to_hex(k.get_color()) == to_hex(ARMS[arm].colour)]
        intervals = [k for k in lines if list(k.get_xdata()) == [0.2, 0.7]]
        assert [round(float(np.mean(k.get_ydata()))) for k in intervals] == [0, 1, 2]
    assert "small: each of 3 seeds; bars: 95 % t interval" in " ".join(texts(axis.figure).split())
    bare = figures.depth_centres(table[table["quantity"] == "centre"])
    assert "interval" not in texts(bare[0, 0].figure)
