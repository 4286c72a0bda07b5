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
from figures.parts.style import medium
from tests.support.drawings import EXAMPLES, MAIN, NAMES, pick, shown_texts, suits_a_paper, tables, texts

UNORDERED = {
    "checkpoints", "conditions", "depth_centres", "dose_and_timing", "gap_closed", "training_speed", "variants"
}  # fmt: skip
WITHOUT_ARMS = {"checkpoints", "compare", "profiles"}
PROBES = {  # by figure, the columns that the probe of its name gives
    "gradient_norms": ["block", "depth"], "gradient_split": ["block", "depth"], "layer_responses": ["depth"],
    "path_lengths": ["path_length"], "residual_magnitudes": ["block", "depth"], "sampled_paths": ["path_length"],
    "stream": ["depth"],
}  # fmt: skip
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
    legends = [texts(legend) for legend in axes.flat[0].figure.legends]
    return [text.get_text() for text in own] + legends + [figures.caption(axes)]


@pytest.mark.parametrize("name", EXAMPLES)
def test_size_fonts_and_legend_suit_a_paper(name: str) -> None:
    axes = example(name)
    suits_a_paper(axes)
    figure = axes.flat[0].figure
    assert figure.legends
    assert not figure.legends[0].get_title().get_text()  # venues forbid titles inside
    assert figures.caption(axes).endswith(".")
    assert figure.get_supxlabel() or all(
        axis.get_xlabel() or axis.get_subplotspec().rowspan.stop < len(axes) for axis in axes.flat
    )


def test_iclr_and_neurips_have_one_page_so_that_a_test_of_one_is_one_of_both() -> None:
    sizes = []
    for name in ("iclr", "neurips"):
        with figures.venue(name):
            sizes.append(medium())
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize(
    ("venue", "column", "width"),
    [
        ("icml", 0.5, 3.25),
        pytest.param("icml", 1.0, 6.75, marks=pytest.mark.slow),
        pytest.param("neurips", 1.0, 5.5, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("name", EXAMPLES)
def test_it_suits_a_venue(name: str, venue: Any, column: float, width: float) -> None:
    with figures.venue(venue, column=column):
        axes = draw(name, EXAMPLES[name])
    suits_a_paper(axes, width=width, least=6)
    pdf = io.BytesIO()
    axes.flat[0].figure.savefig(pdf, format="pdf")
    assert b"/FontFile2" in pdf.getvalue()  # embedded TrueType
    assert b"/Type3" not in pdf.getvalue()


@pytest.mark.parametrize("name", EXAMPLES)
def test_axes_of_the_caller_keep_their_fonts_and_their_figure_its_legends(name: str) -> None:
    rows, columns = example(name).shape
    with matplotlib.rc_context({"font.family": "DejaVu Sans", "font.size": 9, "axes.titlesize": 9}):
        figure = Figure(figsize=(3.25 * columns, 2.5 * rows))
        own = figure.subplots(rows, columns, squeeze=False)
        axes = getattr(figures, name)(EXAMPLES[name], axes=own)
    assert list(axes.flat) == list(own.flat)
    figure.draw_without_rendering()
    assert not figure.legends
    for axis in own.flat:
        ticks = [*axis.get_xticklabels(), *axis.get_yticklabels()]
        assert {text.get_fontsize() for text in (axis.title, axis.xaxis.label, axis.yaxis.label, *ticks)} == {9}
    assert {text.get_fontname() for text in shown_texts(figure)} == {"DejaVu Sans"}
    legend = own[0, 0].get_legend()
    assert legend.get_window_extent().y1 < own[0, 0].get_window_extent().y1 + 1  # not over the title


def test_the_caller_s_axes_have_no_legend_if_none_is_wanted() -> None:
    own = Figure().subplots(1, 2)
    assert figures.interaction(MAIN["outcomes"], axes=own, legend=False)[0, 0].get_legend() is None
    assert "small: each of 3 seeds" in figures.caption(own)


@pytest.mark.parametrize("name", PROBES)
def test_the_table_of_a_probe_is_drawn_as_it_is(name: str) -> None:
    table = EXAMPLES[name]
    arm = "residual" if "residual" in set(table["arm"]) else table["arm"].iloc[0]
    depth = table["depth_total"].max()
    last = {"epoch": table["epoch"].max()} if "epoch" in table else {}
    of_network = pick(table, arm=arm, depth_total=depth, seed=0, **last)
    axes = draw(name, of_network[[*PROBES[name], "quantity", "value"]])
    suits_a_paper(axes)
    named = draw(name, of_network)
    for axis, twin in zip(axes.flat, named.flat, strict=True):
        for line, its in zip(axis.lines, twin.lines, strict=True):
            np.testing.assert_array_equal(line.get_xydata(), its.get_xydata())
    said = " ".join(words(axes))
    assert "1 network" in said
    assert not [word for word in ("-1", "depth -", "epoch", "residual", "seed", "initialisation") if word in said]
    assert all(legend.get_texts() for legend in axes.flat[0].figure.legends)  # none without an entry


@pytest.mark.parametrize("name", ["learning_curves", "short_paths", "answer", "training_speed"])
def test_looks_of_the_caller_rename_recolour_and_come_first(name: str) -> None:
    looks = {"plain": figures.Look("my own arm", "#123456", "x", ":")}
    figure = getattr(figures, name)(EXAMPLES[name], looks=looks)[0, 0].figure
    (legend,) = figure.legends
    labels = [text.get_text() for text in legend.get_texts()]
    assert "plain" not in labels
    mine = legend.legend_handles[labels.index("my own arm")]
    assert (mine.get_color(), mine.get_linestyle()) == ("#123456", ":")
    if name in ("learning_curves", "training_speed"):
        assert labels[0] == "my own arm"
    assert any(line.get_color() == "#123456" for axis in figure.axes for line in axis.lines)


def test_a_long_label_is_broken_so_that_the_legend_fits() -> None:
    looks = {"plain": figures.Look(f"plain, {'and so on, ' * 9}", "#123456")}
    with figures.venue("icml", column=0.5):
        axes = figures.interaction(MAIN["outcomes"], looks=looks)
    suits_a_paper(axes, width=3.25, least=6)


@pytest.mark.parametrize("name", ["learning_curves", "answer", "profiles", "depth_centres"])
def test_a_legend_is_left_out(name: str) -> None:
    axes = getattr(figures, name)(EXAMPLES[name], legend=False)
    assert not axes.flat[0].figure.legends
    assert figures.caption(axes) == figures.caption(example(name))


def test_errors_of_venues_and_captions_say_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"^venue: 'cvpr' is unknown; the venues are acl, iclr, icml, "):
        figures.venue("cvpr")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^venue: column is 1\.5; it is a share of the text's width, above 0"):
        figures.venue("icml", column=1.5)
    with pytest.raises(ValueError, match=r"^looks: plain has 'red'; give a Look\(label, colour\), if need be with"):
        figures.interaction(MAIN["outcomes"], looks={"plain": "red"})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match=r"^caption: no figure of this package was drawn on these axes; give"):
        figures.caption(Figure().subplots())


@pytest.mark.parametrize(
    ("venue", "column", "width", "sizes"),
    [
        ("icml", 0.5, 3.25, {8, 6}), ("icml", 1.0, 6.75, {8, 6}), ("neurips", 0.5, 2.75, {9, 7}),
        ("tmlr", 1.0, 6.5, {9, 7}), ("acl", 0.5, 3.03, {9, 7}), ("acl", 1.0, 6.3, {9, 7}),
        ("nature", 0.5, 3.5, {7, 6}), ("nature", 0.25, 1.75, {7, 6}),
    ],
)  # fmt: skip
def test_a_venue_has_its_width_and_sizes(venue: Any, column: float, width: float, sizes: set[int]) -> None:
    with figures.venue(venue, column=column):
        figure = figures.interaction(MAIN["outcomes"][MAIN["outcomes"]["depth_total"] == 20])[0, 0].figure
    assert figure.get_figwidth() == pytest.approx(width, abs=0.01)
    assert {text.get_fontsize() for text in shown_texts(figure)} <= sizes
    serif = {text.get_fontname() for text in shown_texts(figure)} == {"STIXGeneral"}
    assert serif == (venue != "nature")


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
    missing = "(seed, )?.*value"
    of = "outcome" if name == "answer" else "quantity"
    with pytest.raises(ValueError, match=rf"^{name}: the table lacks {missing}; its columns are .*arm"):
        draw(name, table.assign(arm="plain").drop(columns=["seed", "value"], errors="ignore"))
    with pytest.raises(ValueError, match=rf"^{name}: the table is empty; there is nothing to draw\.$"):
        draw(name, table[:0])
    with pytest.raises(ValueError, match=rf"^{name}: no finite value (where .*{of} is .*, )?among \d+ rows\.$"):
        draw(name, table.assign(value=np.nan))
    with pytest.raises(ValueError, match=rf"^{name}: several values for .*Draw one experiment at a time"):
        draw(name, pd.concat([table, table.assign(experiment="another")]))
