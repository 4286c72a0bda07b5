"""The answer in one figure: conditions in the panel of their first weights, shares at their place on the scale."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.lines import Line2D

import figures
from figures.answer import CONDITIONS
from figures.parts.style import ARMS, GREY
from tests.support.drawings import (
    EXAMPLES,
    FIRST_WEIGHTS,
    answer_losses,
    answers,
    caption_of,
    close,
    geometric,
    pick,
    share,
    suits_a_paper,
    texts,
    xy,
)

LOOKS = ARMS | CONDITIONS


def means_of(axis: Axes) -> dict[str, Line2D]:
    """The lines of means, by condition, known by their colour and marker, which is hollow in conditioned ones."""
    lines = [line for line in axis.lines if line.get_markersize() == 4 and line.get_linewidth() == 1]
    looks = {(to_hex(LOOKS[k].colour), LOOKS[k].marker, of != "he"): k for k, of in FIRST_WEIGHTS.items()}
    return {
        looks[to_hex(line.get_color()), str(line.get_marker()), line.get_markerfacecolor() == "white"]: line
        for line in lines
    }


def greys(axis: Axes) -> list[Line2D]:
    return [line for line in axis.lines if line.get_color() == GREY and line.get_linewidth() == 0.8]


def legend(axes: Any) -> dict[str, str]:
    """The markers' fillings in the legend, by label."""
    found = axes[0, 0].figure.legends[0]
    handles = zip(found.get_texts(), found.legend_handles, strict=True)
    return {text.get_text().replace("\n", " "): line.get_markerfacecolor() for text, line in handles}


def test_conditions_stand_in_the_panel_of_their_first_weights_through_their_means() -> None:
    table = EXAMPLES["answer"]
    axes = figures.answer(table)
    assert axes.shape == (2, 3)
    assert [axis.get_ylabel() for axis in axes[:, 0]] == ["digits\ntest error (%)", "CIFAR-10\ntest error (%)"]
    assert [text.get_text() for text in axes[0, 0].get_xticklabels()] == ["80", "400", "2,000"]
    for axis, is_he in ((axes[0, 0], True), (axes[0, 1], False)):
        drawn = means_of(axis)
        assert set(drawn) == {name for name, weights in FIRST_WEIGHTS.items() if (weights == "he") == is_he}
        for name, line in drawn.items():
            expected = pick(table, data="digits", control=name).groupby("step")["value"].mean()
            np.testing.assert_allclose(np.asarray(line.get_ydata(), float), expected)
            np.testing.assert_allclose(np.asarray(line.get_xdata(), float), expected.index, rtol=0.35)
        points = [line for line in axis.lines if line.get_marker() == "." and len(xy(line)) == 9]
        assert len(points) == len(drawn)
    assert axes[0, 0].get_ylim() == axes[0, 1].get_ylim()
    assert axes[0, 0].get_xlim() == axes[0, 1].get_xlim()


def test_the_conditioned_panel_has_the_ends_at_he_s_weights_in_grey() -> None:
    table = EXAMPLES["answer"]
    axes = figures.answer(table)
    for line, name in zip(greys(axes[0, 1]), ("residual", "plain"), strict=True):
        close(xy(line), pick(table, data="digits", control=name).groupby("step")["value"].mean())
    flat = [line.get_ydata() for line in greys(axes[1, 1])]  # one budget: a horizontal
    wanted = [pick(table, data="CIFAR-10", control=name)["value"].mean() for name in ("residual", "plain")]
    assert flat == [[mean, mean] for mean in wanted]
    assert greys(axes[0, 0]) == []
    assert "grey in (b): residual and plain of (a); dashed in (c): the margins 0.1 and 0.5" in caption_of(axes)
    assert "each of 2–3 seeds" in caption_of(axes)
    shown = legend(axes)
    assert set(shown) == set(FIRST_WEIGHTS)
    assert {name for name, face in shown.items() if face == "white"} == {
        name for name, weights in FIRST_WEIGHTS.items() if weights != "he"
    }


def test_a_condition_of_another_name_goes_by_its_first_weights_also_where_they_are_a_number() -> None:
    table = answers()
    half = pick(table, control="plain, looks-linear").assign(control="half", first_weights=0.5)
    other = pick(table, control="stop-gradient").assign(control="frozen", value=0.5)
    axes = figures.answer(pd.concat([table, half, other], ignore_index=True))
    shown = legend(axes)
    assert shown["half"] == "white"
    assert shown["frozen"] not in ("white", shown["half"])
    suits_a_paper(axes)


def test_no_mean_is_that_of_the_survivors() -> None:
    """A seed that the plan has not leaves the mean; one whose value is missing removes it."""
    table = answers()
    of_plain = (table["control"] == "plain") & (table["data"] == "digits") & (table["seed"] == 0)
    fewer = figures.answer(table[~(of_plain & (table["step"] == 400))])
    assert np.isfinite(np.asarray(means_of(fewer[0, 0])["plain"].get_ydata(), float)).all()
    assert "no mean" not in caption_of(fewer)
    for value in (np.nan, np.inf):
        lost = figures.answer(table.assign(value=table["value"].mask(of_plain & (table["step"] == 400), value)))
        drawn = np.asarray(means_of(lost[0, 0])["plain"].get_ydata(), float)
        assert np.isnan(drawn).tolist() == [False, True, False]
        assert "no mean where a seed has no value" in caption_of(lost)


def forest(axis: Axes) -> dict[float, list[tuple[str, float]]]:
    """A panel's marks by row: their marker and where they are."""
    found: dict[float, list[tuple[str, float]]] = {}
    for line in axis.lines:
        if line.get_marker() in ("o", "<", ">"):
            (x, y), marker = np.asarray(line.get_xydata(), float)[0], str(line.get_marker())
            found.setdefault(float(y), []).append((marker, float(x)))
    return found


def bars(axis: Axes) -> list[list[float]]:
    return [segment[:, 0].tolist() for lines in axis.collections for segment in lines.get_segments()]  # type: ignore[attr-defined]


def test_shares_stand_at_their_place_with_their_reading() -> None:
    axes = figures.answer(EXAMPLES["answer"])
    axis = axes[0, 2]
    ys = list(axis.get_yticks())
    assert [text.get_text() for text in axis.get_yticklabels()] == ["80 steps", "400 steps", "80 steps"]
    said = [text.get_text() for text in axis.texts]
    assert said == ["explains most", "explains most", "contributes", "conditioning", "short paths"]
    assert [axis.texts[i].get_position()[1] for i in range(3)] == ys
    assert forest(axis) == {ys[0]: [("o", 0.91)], ys[1]: [("o", 0.91), (">", 1.5)], ys[2]: [("o", 0.6)]}
    assert bars(axis) == [[0.88, 0.94], [0.88, 1.5], [0.45, 0.75]]
    verticals = {line.get_xdata()[0]: line.get_linestyle() for line in axis.lines if len(xy(line)) == 2}
    assert verticals == {0: "-", 1: "-", 0.1: "--", 0.5: "--"}
    none = axes[1, 2]
    assert [text.get_text() for text in none.texts] == ["no gap", "conditioning"]
    assert (forest(none), bars(none)) == ({}, [])


@pytest.mark.parametrize(
    ("values", "marks", "bar"),
    [
        ((1.9, 1.6, np.inf), [(">", 1.5)], []),
        ((-0.9, -np.inf, 0.25), [("<", -0.5)], [[-0.5, 0.25]]),
        ((0.5, -1.0, 2.0), [("o", 0.5), ("<", -0.5), (">", 1.5)], [[-0.5, 1.5]]),
        ((0.5, np.nan, np.nan), [("o", 0.5)], []),
    ],
)
def test_what_leaves_the_scale_is_cut_with_an_arrow(
    values: tuple[float, float, float], marks: list[tuple[str, float]], bar: list[list[float]]
) -> None:
    table = answers()
    of_digits = pick(table[table["effect"].isna()], data="digits")
    axes = figures.answer(pd.concat([of_digits, share("digits", "value", 80, values, "undecided")]))
    assert list(forest(axes[0, 2]).values()) == [marks]
    assert bars(axes[0, 2]) == bar
    assert axes[0, 2].get_xlim() == (-0.5, 1.5)


def test_other_numbers_of_a_share_and_other_outcomes_are_left_out() -> None:
    table = answers()
    of_shares = table[table["effect"].notna()]
    more = [of_shares.assign(quantity="p"), of_shares.assign(outcome="training error", value=0.2)]
    axes = figures.answer(pd.concat([table, *more], ignore_index=True))
    assert forest(axes[0, 2]) == forest(figures.answer(table)[0, 2])


def test_without_shares_there_are_two_panels() -> None:
    table = answers()
    errors = table[table["effect"].isna()]
    for given in (errors, errors.drop(columns=["effect", "reading", "quantity"])):
        axes = figures.answer(given)
        assert axes.shape == (2, 2)
        assert "(c)" not in texts(axes[0, 0].figure)
    some = table[table["effect"].isna() | (table["data"] == "digits")]
    assert [axis.axison for axis in figures.answer(some)[:, 2]] == [True, False]


def test_tables_that_cannot_be_drawn_are_refused() -> None:
    table = answers()
    with pytest.raises(ValueError, match=r"^answer: no test error of a condition among 12 rows, which are all of sha"):
        figures.answer(table[table["effect"].notna()])
    with pytest.raises(ValueError, match=r"^answer: the table lacks reading; its columns are data, control"):
        figures.answer(table.drop(columns="reading"))
    with pytest.raises(ValueError, match=r"^answer: shares of CIFAR, but no test error of a condition there\.$"):
        figures.answer(table.assign(data=table["data"].mask(table["effect"].notna(), "CIFAR")))
    twice = pd.concat([table, share("digits", "short paths", 80, (0.1, 0.2, 0.3), "undecided")])
    with pytest.raises(
        ValueError, match=r"several values for data digits, effect short paths, step 80.*, outcome test"
    ):
        figures.answer(twice)
    unknown = table.assign(first_weights=table["first_weights"].mask(table["control"] == "plain"))
    with pytest.raises(ValueError, match=r"^answer: no first_weights of plain; give he, or what they were\.$"):
        figures.answer(unknown)


# Losses


def test_losses_are_lines_of_seeds_with_the_targets() -> None:
    table = EXAMPLES["answer_losses"]
    axes = figures.answer_losses(table)
    assert axes.shape == (1, 2)
    assert [axis.get_yscale() for axis in axes[0]] == ["log", "log"]
    assert axes[0, 0].get_ylabel() == "training loss (nats),\nmean of 8 steps"
    for axis, name in ((axes[0, 0], "residual"), (axes[0, 1], "plain, near-identity")):
        look = LOOKS[name]
        own = [line for line in axis.lines if to_hex(line.get_color()) == to_hex(look.colour)]
        thick = next(line for line in own if line.get_marker() == look.marker)
        close(xy(thick), geometric(pick(table, control=name), "step"))
        assert len([line for line in own if line.get_linewidth() == 0.5]) == 3
    for axis in axes[0]:
        assert [line.get_ydata()[0] for line in axis.lines if len(line.get_xdata()) == 2] == [0.5, 0.1]
    close(xy(greys(axes[0, 1])[1]), geometric(pick(table, control="residual"), "step"))
    assert greys(axes[0, 0]) == []
    assert "thin: each of 3 seeds" in caption_of(axes)
    assert "loss 0.5 and 0.1" in legend(axes)


def test_means_have_bands() -> None:
    keys = ["data", "control", "first_weights", "budget", "step"]
    of_seeds = answer_losses().groupby(keys)["value"]
    ends = {"mean": of_seeds.mean(), "low": of_seeds.min(), "high": of_seeds.max()}
    table = pd.concat([found.reset_index().assign(quantity=name) for name, found in ends.items()])
    for given in (table, table.assign(seed=np.nan)):
        axes = figures.answer_losses(given)
        assert [len(axis.collections) for axis in axes[0]] == [4, 5]
        assert axes[0, 0].get_ylabel() == "training loss (nats)"
        assert "lines: means; bands: low to high" in caption_of(axes)
        thick = next(line for line in axes[0, 0].lines if line.get_marker() == "o")
        close(xy(thick), pick(table, control="residual", quantity="mean").set_index("step")["value"])
        band = axes[0, 0].collections[0].get_paths()[0].get_extents()
        of_residual = pick(answer_losses(), control="residual")["value"]
        assert (band.y0, band.y1) == pytest.approx((of_residual.min(), of_residual.max()))


def test_one_budget_at_a_time() -> None:
    table = answer_losses()
    longer = table.assign(budget=5, step=10 * table["step"] + 3)
    with pytest.raises(ValueError, match=r"^answer_losses: budgets \[1, 5\] of digits\. Draw one at a time\.$"):
        figures.answer_losses(pd.concat([table, longer]))
    axes = figures.answer_losses(pd.concat([longer.assign(data="CIFAR-10"), table]))
    labels = [" ".join(axis.get_ylabel().split()) for axis in axes[:, 0]]  # broken where the page needs it
    assert labels == [f"{name}: training loss (nats), mean of 8 steps" for name in ("digits", "CIFAR-10")]
    suits_a_paper(axes)
