"""What holds for every figure: size and fonts, any arm, any order of rows, the way through a CSV, errors that help."""

import io
from functools import cache
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

import figures
from tests.support.drawings import EXAMPLES, MAIN, NAMES, suits_a_paper, tables, texts

UNORDERED = {"conditions", "depth_centres", "dose_and_timing", "gap_closed", "training_speed", "variants"}
WITHOUT_ARMS = {"profiles"}
KIND = {
    "accuracy_by_depth": "outcomes", "gradient_norms": "gradients", "gradient_split": "gradients",
    "interaction": "outcomes", "learning_curves": "curves", "path_lengths": "paths",
    "residual_magnitudes": "magnitudes",
}  # fmt: skip


def draw(name: str, table: pd.DataFrame) -> Any:
    return getattr(figures, name)(table)


@cache
def example(name: str) -> Any:
    return draw(name, EXAMPLES[name])


def same(one: Any, other: Any) -> None:
    """Lines, points, bands and words are equal."""
    assert one.shape == other.shape
    for axis, twin in zip(one.flat, other.flat, strict=True):
        for line, its in zip(axis.lines, twin.lines, strict=True):
            np.testing.assert_allclose(*(np.array(k.get_xydata(), float) for k in (line, its)), rtol=1e-9)
        for drawn, its in zip(axis.collections, twin.collections, strict=True):
            offsets = [np.sort(np.asarray(k.get_offsets(), float), axis=0) for k in (drawn, its)]
            np.testing.assert_allclose(*offsets, rtol=1e-9)
    assert words(one) == words(other)


def words(axes: Any) -> list[str]:
    """Labels, titles and the legend, but no ticks."""
    own = [text for axis in axes.flat for text in (axis.xaxis.label, axis.yaxis.label, axis.title, *axis.texts)]
    return [text.get_text() for text in own] + [texts(legend) for legend in axes.flat[0].figure.legends]


@pytest.mark.parametrize("name", EXAMPLES)
def test_size_fonts_and_legend_suit_a_paper(name: str) -> None:
    axes = example(name)
    suits_a_paper(axes)
    assert axes.flat[0].figure.legends
    for axis in axes.flat:
        assert axis.get_xlabel() or axis.get_subplotspec().rowspan.stop < len(axes)


@pytest.mark.parametrize("name", EXAMPLES)
def test_it_is_redrawn_from_its_csv_in_any_order_and_leaves_settings_and_table_alone(name: str) -> None:
    settings, table = matplotlib.rcParams.copy(), pd.read_csv(io.StringIO(EXAMPLES[name].to_csv(index=False)))
    if name not in UNORDERED:
        table = table.sample(frac=1, random_state=0).set_axis([0] * len(table))
    before = table.copy()
    same(example(name), draw(name, table))
    assert matplotlib.rcParams.copy() == settings
    pd.testing.assert_frame_equal(table, before)


@pytest.mark.parametrize("name", [name for name in EXAMPLES if name not in WITHOUT_ARMS])
def test_an_arm_that_figures_does_not_know_is_drawn_and_named(name: str) -> None:
    table = EXAMPLES[name].replace({"arm": {"plain": "mine"}, "control": {"plain": "mine"}})
    if name in ("ensemble", "sampled_paths", "short_path_changes"):  # have no plain networks
        table = EXAMPLES[name].replace({"arm": {"residual": "mine"}, "treatment": {"at-most": "mine"}})
    said = texts(draw(name, table).flat[0].figure)
    assert ("mine" in said) == (name != "interaction")  # whose four corners have names


def test_a_look_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    curves = MAIN["curves"].replace({"arm": {"plain": "mine"}})
    monkeypatch.setitem(figures.ARMS, "mine", figures.Look("my arm", "#E69F00", "P", "-"))
    assert "my arm" in texts(figures.learning_curves(curves)[0, 0].figure)


@pytest.mark.parametrize(
    ("arms", "depths", "seeds", "count"),
    [(NAMES, [20], [0], "1 seed"), (["residual", "plain"], [32, 110], [0, 1], "2 seeds")],
)
@pytest.mark.parametrize("name", KIND)
def test_one_seed_one_depth_or_a_few_arms_are_enough(
    name: str, arms: list[str], depths: list[int], seeds: list[int], count: str
) -> None:
    axes = draw(name, tables(arms, depths, seeds)[KIND[name]])
    assert isinstance(axes, np.ndarray)
    assert axes.ndim == 2
    assert count in texts(axes[0, 0].figure)
    assert all(axis.lines for axis in axes.flat)


def test_axes_of_the_caller_are_drawn_on() -> None:
    own = Figure(layout="constrained").subplots(1, 2)
    axes = figures.accuracy_by_depth(MAIN["outcomes"], axes=own)
    assert list(axes.flat) == list(own)
    message = r"learning_curves draws 2 x 2 panels of this table; got 2 axes\. Leave axes out\?"
    with pytest.raises(ValueError, match=message):
        figures.learning_curves(MAIN["curves"], axes=own)


@pytest.mark.parametrize("name", [name for name in EXAMPLES if name not in WITHOUT_ARMS])
def test_errors_name_the_figure_and_what_is_missing(name: str) -> None:
    table = EXAMPLES[name]
    missing = r"seed, value" if name in KIND else "(seed, )?.*value"
    of = "outcome" if name == "answer" else "quantity"
    with pytest.raises(ValueError, match=rf"^{name}: the table lacks {missing}; its columns are .*arm"):
        draw(name, table.assign(arm="plain").drop(columns=["seed", "value"], errors="ignore"))
    with pytest.raises(ValueError, match=rf"^{name}: the table is empty; there is nothing to draw\.$"):
        draw(name, table[:0])
    with pytest.raises(ValueError, match=rf"^{name}: no finite value (where .*{of} is .*, )?among \d+ rows\.$"):
        draw(name, table.assign(value=np.nan))
    with pytest.raises(ValueError, match=rf"^{name}: several values for .*Draw one experiment at a time"):
        draw(name, pd.concat([table, table.assign(experiment="another")]))
