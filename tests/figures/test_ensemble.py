"""The ensemble's figure: members by depth, and all of them together at the right."""

import pytest

import figures
from tests.support.drawings import EXAMPLES, dots_of, means_of, pick


def test_members_and_ensemble() -> None:
    table = EXAMPLES["ensemble"]
    axes = figures.ensemble(table)
    for axis, quantity in zip(axes[0], ("top-1 error", "top-5 error"), strict=True):
        assert [label.get_text() for label in axis.get_xticklabels()] == ["8", "14", "all 2"]
        rows = pick(table, quantity=quantity)
        parts = [pick(rows, depth_total=8), pick(rows, depth_total=14), rows[rows["depth_total"].isna()]]
        assert means_of(axis, "residual") == pytest.approx([part["value"].mean() for part in parts])
        assert sorted(dots_of(axis, "residual")) == sorted(rows["value"])
        assert axis.get_ylabel() == f"test {quantity} (%)"
