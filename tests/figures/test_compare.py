"""Two networks' measurements, paired: each side's values, the ratio, and rings for what one side alone has."""

import numpy as np
import pandas as pd
import pytest

import figures
from figures.compare import SIDES
from tests.support.drawings import EXAMPLES, pick, texts


def test_both_sides_their_ratio_and_what_one_side_alone_has() -> None:
    table = EXAMPLES["compare"]
    axes = figures.compare(table)
    assert axes.shape == (2, 2)
    assert [axis.get_title() for axis in axes[0]] == ["gradient norms: total", "residual magnitudes: ratio"]
    for (above, below), quantity in zip(axes.T, ("total", "ratio"), strict=True):
        rows = pick(table, quantity=quantity)
        joined = rows[rows["block"] != "layer2.0"]
        for line, side in zip((above.lines[0], above.lines[2]), SIDES, strict=True):
            assert np.asarray(line.get_ydata()).tolist() == pick(joined, side=side)["value"].tolist()
            assert line.get_color() == SIDES[side].colour
        rings = [line for line in above.lines if line.get_markerfacecolor() == "none"]
        assert [len(line.get_xdata()) for line in rings] == [0, 1]
        assert (rings[1].get_xdata()[0], rings[1].get_ydata()[0]) == (4, 0.3)
        verticals = above.collections[0].get_segments()
        assert [segment[:, 1].tolist() for segment in verticals] == [
            [pick(joined, depth=depth, side=side)["value"].item() for side in SIDES] for depth in range(4)
        ]
        assert np.asarray(below.lines[1].get_ydata()).tolist() == pick(joined, side="ratio")["value"].tolist()
    assert "on one side alone" in texts(axes[0, 0].figure)
    whole = figures.compare(table[table["block"] != "layer2.0"], looks={"b": figures.Look("trained", "#123456")})
    assert "on one side alone" not in texts(whole[0, 0].figure)
    assert "trained" in texts(whole[0, 0].figure)
    assert "a and trained" in figures.caption(whole)


def test_path_lengths_and_chosen_quantities() -> None:
    rows = [(k, q, s) for k in range(3) for q in ("norm", "share") for s in ("a", "b", "ratio")]
    table = pd.DataFrame(rows, columns=["path_length", "quantity", "side"]).assign(measurement="path_contributions")
    table["value"] = np.arange(len(table)) / 10 - 0.5 * (table["quantity"] == "share")
    axes = figures.compare(table)
    assert axes.shape == (2, 1)
    assert axes[1, 0].get_xlabel() == "path length\n(branches)"
    share = figures.compare(table, quantities=["share"])
    assert (axes[0, 0].get_yscale(), share[0, 0].get_yscale()) == ("log", "linear")
    with pytest.raises(ValueError, match=r"^compare: the table has no total; its quantities are norm, share\.$"):
        figures.compare(table, quantities=["total"])
    with pytest.raises(ValueError, match=r"^compare: several values for measurement path_contributions, quantity norm"):
        figures.compare(pd.concat([table, table]))
    with pytest.raises(ValueError, match=r"^compare: the table lacks side; its columns are path_length, quantity, "):
        figures.compare(table.drop(columns="side"))
