"""The ends of conditions and the gap that they close: rows in their groups, marks at their values."""

import pandas as pd
import pytest

import figures
from tests.support.drawings import CONTROLS, EXAMPLES, dots_of, means_of, pick, texts

GROUPS = {"as they are": ["plain", "residual"], "changed": ["true norms", "frozen"], "absent": ["other"]}


def test_a_row_is_a_condition_in_its_arm_s_colour() -> None:
    table = EXAMPLES["conditions"]
    lost = (table["control"] == "frozen") & (table["depth_total"] == 14)
    axes = figures.conditions(table[~lost], groups=GROUPS)
    names = [text.get_text() for text in axes[0, 0].get_yticklabels()]
    assert names == ["plain", "residual", "true norms", "frozen"]
    assert list(axes[0, 0].get_yticks()) == sorted(axes[0, 0].get_yticks())
    for arm in ("plain", "stop-gradient"):
        values = pick(table, arm=arm, depth_total=8)["value"]
        assert sorted(dots_of(axes[0, 0], arm, horizontal=True)) == pytest.approx(sorted(values))
        assert [x for x in means_of(axes[0, 0], arm, horizontal=True) if x == x] == pytest.approx([values.mean()])
    both = pick(table, arm="residual", depth_total=8).groupby("control")["value"].mean()
    means = [x for x in means_of(axes[0, 0], "residual", horizontal=True) if x == x]
    assert means == pytest.approx(both[["residual", "frozen"]].tolist())
    crosses = [[line for line in axis.lines if line.get_marker() == "x"] for axis in axes[0]]
    assert [len(found) for found in crosses] == [0, 1]
    assert crosses[1][0].get_ydata()[0] == axes[0, 0].get_yticks()[3]
    shown = texts(axes[0, 0].figure)
    assert ("as they are" in shown, "changed" in shown, "absent" in shown) == (True, True, False)
    assert "each of 3 seeds; ×: no value" in shown


def test_losses_are_drawn_as_they_are() -> None:
    table = EXAMPLES["conditions"].assign(quantity="loss")
    axes = figures.conditions(table, quantity="loss")
    assert axes[0, 0].get_xlabel() == "test loss (nats)"
    assert axes[0, 0].xaxis.get_major_formatter()(0.25, 0) != "25"
    values = pick(table, arm="plain", depth_total=8)["value"]
    assert sorted(dots_of(axes[0, 0], "plain", horizontal=True)) == pytest.approx(sorted(values))


def gap(name: str, values: dict[str, float], outcome: str = "test error") -> pd.DataFrame:
    rows = [{"control": name, "arm": "stop-gradient", "depth_total": 8, "outcome": outcome}] * len(values)
    return pd.DataFrame(rows).assign(quantity=list(values), value=list(values.values()))


def test_gaps_are_cut_at_the_border_and_what_lacks_is_said() -> None:
    inside = gap("a", {"R": 0.5, "R low": 0.25, "R high": 0.75, "n": 3})
    whole = pd.concat([inside, gap("a", {"R": 0.4, "R low": 0.3, "R high": 0.6, "n": 3}, "log train loss")])
    axes = figures.gap_closed(whole)
    full, hollow = (line for line in axes[0, 0].lines if len(line.get_xdata()) == 1)
    assert (full.get_xdata()[0], full.get_fillstyle()) == (0.5, "full")
    assert (hollow.get_xdata()[0], hollow.get_fillstyle()) == (0.4, "none")
    bar = axes[0, 0].collections[0].get_segments()[0]
    assert bar[:, 0].tolist() == [0.25, 0.75]
    shown = texts(axes[0, 0].figure)
    assert "intervals over n = 3 seeds" in shown.replace("\n", " ")
    assert "cut at" not in shown
    assert "no mark" not in shown
    wide = figures.gap_closed(pd.concat([whole, gap("b", {"R": 3.0, "R low": 1.5, "R high": 9.0, "n": 3})]))
    assert 2.0 in [line.get_xdata()[0] for line in wide[0, 0].lines if len(line.get_xdata()) == 1]
    assert "cut at -1 and 2" in texts(wide[0, 0].figure)
    none = figures.gap_closed(pd.concat([whole, gap("b", {"n": 3})]))
    assert "no mark: no gap to close, or too few seeds" in texts(none[0, 0].figure).replace("\n", " ")
    assert [text.get_text() for text in none[0, 0].get_yticklabels()] == ["a", "b"]


def test_gaps_stand_in_the_order_of_their_groups() -> None:
    axes = figures.gap_closed(EXAMPLES["gap_closed"], groups=GROUPS)
    assert sorted(text.get_text() for text in axes[0, 0].get_yticklabels()) == sorted(CONTROLS)
    assert axes[0, 0].get_xlabel() == "gap closed (0: plain, 1: residual)"
