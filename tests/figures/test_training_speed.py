"""Training speed: what is drawn equals what plain pandas gives."""

import pytest

import figures
from tests.support.drawings import EXAMPLES, close, dots_of, drawn_y, lines_of, means_of, pick, texts, xy


def test_losses_targets_and_errors() -> None:
    table = EXAMPLES["training_speed"]
    axes = figures.training_speed(table)
    assert axes.shape == (2, 2)
    for (left, right), network in zip(axes, ("resnet", "inception"), strict=True):
        assert left.get_yscale() == "log"
        levels = [drawn_y(line)[0] for line in left.lines if len(set(drawn_y(line))) == 1]
        assert sorted(levels) == [0.05, 0.5]
        assert left.get_ylim()[0] < 0.05
        for arm in ("residual", "plain"):
            thin, (thick,) = lines_of(left, arm)
            of_arm = pick(table, network=network, arm=arm)
            assert len(thin) == 3
            close(xy(thick), pick(of_arm, quantity="loss").groupby("step")["value"].mean())
            errors = pick(of_arm, quantity="error")["value"]
            assert sorted(dots_of(right, arm)) == sorted(errors)
            assert means_of(right, arm) == pytest.approx([errors.mean()])
        assert [text.get_text() for text in (*left.texts, *right.texts)] == ["0.5", "0.05", network]
    assert "depth 20; thick: mean; thin: each of 3 seeds" in texts(axes[0, 0].get_figure(root=True))
