"""The verdict's figure: the grey band is the table's margin, or the argument's, or none."""

import pytest

import figures
from tests.support.drawings import EXAMPLES, legend_title


def bands(axes: object) -> list[float]:
    return [patch.get_width() / 2 for axis in axes.flat for patch in axis.patches]  # type: ignore[attr-defined]


def test_the_margin_comes_from_the_table_or_the_argument() -> None:
    table = EXAMPLES["verdict"]
    axes = figures.verdict(table)
    assert bands(axes) == pytest.approx([0.7 * 0.4343, 3])
    assert "grey band: the margin" in legend_title(axes)
    assert bands(figures.verdict(table, margin={"test accuracy": 0.1})) == pytest.approx([10])
    without = figures.verdict(table[table["quantity"] != "margin"])
    assert bands(without) == []
    assert "margin" not in legend_title(without)


def test_right_is_better_and_a_table_without_values_is_refused() -> None:
    loss, accuracy = figures.verdict(EXAMPLES["verdict"])[0]
    means = [
        {float(k.get_xdata()[0]) for k in axis.lines if k.get_markersize() == 4 and len(k.get_xdata()) == 1}
        for axis in (loss, accuracy)
    ]
    assert [means[0].pop(), means[1].pop()] == pytest.approx([-0.04343, 10])
    with pytest.raises(ValueError, match="verdict: no value of log train loss or test accuracy among 0 rows"):
        figures.verdict(EXAMPLES["verdict"].query("quantity == 'margin'"))
