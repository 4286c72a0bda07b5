"""The figure of variants: a row for each network, values at the edges, and what is missing."""

import numpy as np
import pytest

import figures
from tests.support.drawings import EXAMPLES, caption_of, dots_of, means_of, pick

NETWORKS, ARMS = ("resnet", "bottleneck", "mlp"), ("residual", "stop-gradient", "plain")


def test_a_row_for_each_network_with_every_seed() -> None:
    table = EXAMPLES["variants"]
    axes = figures.variants(table)
    assert [label.get_text() for label in axes[0, 0].get_yticklabels()] == ["resnet", "bottleneck (11)", "mlp"]
    for axis, quantity in zip(axes[0], ("error", "loss"), strict=True):
        assert axis.get_xscale() == "log"
        for arm in ARMS:
            rows = pick(table, arm=arm, quantity=quantity)
            assert sorted(dots_of(axis, arm, horizontal=True)) == pytest.approx(sorted(rows["value"]))
            means = rows.groupby("network")["value"].mean()  # also on a log axis
            assert means_of(axis, arm, horizontal=True) == pytest.approx(means[list(NETWORKS)].tolist())
    assert caption_of(axes) == "depth 8, or as in brackets; large: mean; small: each of 3 seeds."


def test_what_stands_at_the_edges_is_said() -> None:
    table = EXAMPLES["variants"].copy()
    table.loc[(table["arm"] == "plain") & (table["seed"] == 0), "value"] = 0.0
    axes = figures.variants(table)
    left = axes[0, 0].get_xlim()[0]
    assert 0 < left < table.loc[table["value"] > 0, "value"].min()
    assert dots_of(axes[0, 0], "plain", horizontal=True).count(left) == 3
    assert "at the left edge: 0" in caption_of(axes)
    high = EXAMPLES["variants"].copy()
    high.loc[(high["arm"] == "plain") & (high["quantity"] == "loss"), "value"] = 1e7
    axes = figures.variants(high)
    assert "at the right edge: above 10" in caption_of(axes)
    assert set(dots_of(axes[0, 1], "plain", horizontal=True)) == {10.0}


def test_an_arm_that_was_lost_has_a_cross() -> None:
    axes = figures.variants(EXAMPLES["variants"].query("network != 'mlp' or arm != 'plain'"))
    assert "×: no value" in caption_of(axes)
    crosses = [line for line in axes[0, 0].lines if line.get_marker() == "x"]
    places = [(line.get_color(), round(float(np.asarray(line.get_ydata())[0]))) for line in crosses]
    assert places == [(figures.ARMS["plain"].colour, 2)]
