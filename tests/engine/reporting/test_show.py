"""The terminal's tables cut nothing off, and a decision compares a whole interval with its margin."""

from io import StringIO

import pytest
from rich.console import Console

from experiments.engine.reporting import show
from experiments.engine.statistics.estimates import NO_ESTIMATE, Estimate

NAME = "true_direction_with_the_norms_of_stop-gradient_in_every_block_of_the_network"
NUMBERS = {f"outcome {i}": f"+0.{i}00 [-0.{i}00, +0.{i}00]" for i in range(1, 4)}


def test_long_names_and_readings_are_folded_and_numbers_whole() -> None:
    console = Console(file=(text := StringIO()), width=100)
    show.table(console, {("", NAME): {**NUMBERS, "reading": "undecided " * 6}}, title="toy")
    shown = text.getvalue()
    assert "…" not in shown
    assert all(number in shown for number in NUMBERS.values())
    rows = shown.splitlines()
    first = next(index for index, line in enumerate(rows) if NAME[:5] in line)
    width = rows[first].index("+")  # of the column of names
    assert "".join(line[:width].strip() for line in rows[first:]) == NAME
    assert shown.count("undecided") == 6


def test_a_caption_explains_the_mark_of_a_clipped_interval_where_there_is_one() -> None:
    for clipped in (True, False):
        console = Console(file=(text := StringIO()), width=100)
        found = show.estimate(Estimate((0.0,) * 3, 0.5, 0.2, 1.0, clipped=clipped))
        show.table(console, {("", "arm"): {"effect": found}}, title="toy", caption="a caption")
        assert (show.CLIPPED in text.getvalue(), "]*" in text.getvalue()) == (clipped, clipped)
        assert "a caption" in text.getvalue()


@pytest.mark.parametrize(
    ("ends", "one_sided", "reading"),
    [
        ((0.03, 0.05), False, "more"), ((-0.05, -0.03), False, "less"), ((-0.01, 0.01), False, "alike"),
        ((-0.05, -0.03), True, "alike"), ((-0.05, 0.01), True, "alike"), ((0.01, 0.03), True, "undecided"),
    ],
)  # fmt: skip
def test_a_decision(ends: tuple[float, float], one_sided: bool, reading: str) -> None:
    words = {"above": "more", "below": "less", "within": "alike"}
    found = Estimate((0.0,) * 3, 0.0, *ends)
    text = f"+0.000 [{ends[0]:+.3f}, {ends[1]:+.3f}]"
    assert show.decision(found, 0.02, words, one_sided=one_sided) == (text, "0.02", reading)
    assert show.decision(NO_ESTIMATE, 0.02, words, missing="no seed") == ("-", "0.02", "no seed")
