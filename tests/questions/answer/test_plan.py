"""The plan as data is the plan that experiments/answer.md fixes."""

import re
from pathlib import Path

import pytest

from experiments.engine.conditions.learning_rate_search import rate_of
from experiments.questions.answer.plan import CLOSED, PARTS, PRIMARY, SEEDS, SHARES, TUNING_SEEDS

PAGE = (Path(__file__).parents[3] / "experiments" / "answer.md").read_text()


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


@pytest.mark.parametrize("number", range(1, len(PARTS) + 1))
def test_each_part_is_the_one_of_the_page(number: int) -> None:
    part = PARTS[number - 1]
    _, _, text = PAGE.partition(f"**Part {number}**: ")
    text, _, _ = text.partition(f"**Part {number + 1}**")
    rates = ", ".join(f"{rate_of(exponent):g}" for exponent in part.exponents)
    tuning = f"{part.tuning_seeds} tuning seed{'s' * (part.tuning_seeds > 1)}"
    head = (
        f"{part.data}, {part.budget} times the epochs; learning rates {rates} on {tuning}; {part.seeds} reported seeds."
    )
    assert text.splitlines()[0] == head
    known = re.search(r"Conditions as above: (.*)\.", text)
    listed = [] if known is None else known[1].split("; ")
    rows = [cells(line) for line in text.splitlines() if line.startswith("| ") and not line.startswith("| condition")]
    rows = [row for row in rows if set(row[0]) != {"-"}]
    assert sorted([*listed, *(row[0] for row in rows)]) == sorted(condition.name for condition in part.conditions)
    by_name = {condition.name: condition for condition in part.conditions}
    for name, arm, first_weights, _ in rows:
        assert (by_name[name].arm, str(by_name[name].first_weights or "he")) == (arm, first_weights)


def test_seeds_are_fresh_and_those_of_the_page() -> None:
    assert not ({*SEEDS} & {*TUNING_SEEDS}) | ({*SEEDS, *TUNING_SEEDS} & {*range(10), 100, 101, 3000})
    assert f"Reported seeds: {SEEDS[0]} to {SEEDS[-1]}" in PAGE
    assert f"Tuning seeds: {TUNING_SEEDS[0]} and {TUNING_SEEDS[1]}" in PAGE


def test_conditions_differ_and_the_primary_part_has_all_that_its_shares_need() -> None:
    conditions = {condition for part in PARTS for condition in part.conditions}
    names = [condition.name for condition in conditions]
    assert len(set(names)) == len(names)
    assert {name for share in SHARES for name in share.conditions} == {condition.name for condition in PRIMARY}
    assert {name for share in CLOSED for name in share.conditions} <= set(names)


def test_shares_of_a_world_whose_shares_are_known() -> None:
    errors = {
        "residual": 0.0, "plain": 1.0, "plain, near-identity": 0.2, "residual, near-identity": 0.1,
        "value alone, near-identity": 0.15, "paths of at most 3": 0.3, "paths of at least 4": 0.7,
    }  # fmt: skip
    found = {
        share.name: sum(weight * errors[name] for name, weight in share.above.items())
        / sum(weight * errors[name] for name, weight in share.below.items())
        for share in SHARES
    }
    assert found == pytest.approx({"conditioning": 0.9, "value": 0.05, "short paths": 0.4}, abs=1e-12)  # rounding alone
