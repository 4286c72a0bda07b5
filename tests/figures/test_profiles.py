"""One network's profile: a panel for each table of the probes, and what is missing is named."""

import numpy as np
import pandas as pd
import pytest

import figures
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
