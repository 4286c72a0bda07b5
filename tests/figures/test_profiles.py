"""One network's profile: a panel for each table of the probes, and what is missing is named."""

import numpy as np
import pandas as pd
import pytest

import figures
from figures.parts.style import ONE, shade
from tests.support.drawings import EXAMPLES


def test_profiles_draw_what_the_probes_give() -> None:
    axes = figures.profiles(EXAMPLES["profiles"], title="toy")
    assert figures.caption(axes) == "Of toy. Zeros are left out of log axes."
    gradient, ratio, share = axes.flat
    assert gradient.get_yscale() == "log"
    assert len(gradient.lines) == 2 * 3  # `other` is zero everywhere
    assert np.allclose(ratio.lines[0].get_ydata(), [1, 0.1, 0.01])
    assert "not measured" in " ".join(text.get_text() for text in share.texts)
    with pytest.raises(ValueError, match="profiles: the table has no quantity of branch, other, ratio"):
        figures.profiles(pd.DataFrame({"depth": [0], "quantity": ["loss"], "value": [1.0]}))


def over_training(count: int, *quantities: str) -> pd.DataFrame:
    table = EXAMPLES["profiles"]
    parts = [table.assign(checkpoint=str(k), value=table["value"] * (k + 1)) for k in range(count)]
    rows = pd.concat(parts, ignore_index=True)
    return rows[rows["quantity"].isin(quantities)]


def test_checkpoints_become_darker_and_panels_are_those_of_the_table() -> None:
    axes = figures.checkpoints(over_training(3, "total", "branch"), title="toy")
    assert axes.shape == (1, 1)
    points = axes[0, 0].lines[1::2]
    assert [line.get_color() for line in points] == [shade(ONE.colour, k) for k in (0.25, 0.625, 1)]
    for k, line in enumerate(points):
        assert np.allclose(line.get_ydata(), np.array([1, 0.1, 0.01]) * (k + 1))
    assert figures.caption(axes).startswith("Of toy. Light to dark: early to late checkpoints. Zeros are left out")
    assert figures.checkpoints(over_training(1, "total", "ratio")).shape == (1, 2)


def test_of_many_checkpoints_six_are_drawn() -> None:
    axes = figures.checkpoints(over_training(11, "total"))
    (legend,) = axes[0, 0].figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["0", "2", "4", "6", "8", "10"]
    assert "6 of 11 are drawn" in figures.caption(axes)


def test_a_table_without_checkpoints_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^checkpoints: the table lacks checkpoint; its columns are depth, quantity"):
        figures.checkpoints(EXAMPLES["profiles"])
    with pytest.raises(ValueError, match=r"^checkpoints: several values for checkpoint 0, depth 0, quantity total"):
        figures.checkpoints(pd.concat([over_training(1, "total")] * 2))
