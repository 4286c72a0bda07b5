"""The verdict file: what it says is what is read, and what cannot be read is named."""

from pathlib import Path

import pytest

from experiments.engine.conditions.catalogue import (
    COINS,
    DOSES,
    FORWARDS,
    MAGNITUDE,
    PLACES,
    SCALE_FREE,
    UNMODIFIED_ARMS,
    on_networks,
    timing,
)
from experiments.engine.running.messages import BadInput
from experiments.engine.training.optimisation import Training
from experiments.questions.verdict.verdict_file import Verdicts, read_verdicts
from experiments.verdict import FILE

TEXT = FILE.read_text()


def changed(folder: Path, old: str, new: str) -> Path:
    assert TEXT.count(old) >= 1
    (folder / "verdict.md").write_text(TEXT.replace(old, new, 1))
    return folder / "verdict.md"


@pytest.fixture(scope="module")
def verdicts() -> Verdicts:
    return read_verdicts(FILE)


def test_it_reads_as_it_is_written(verdicts: Verdicts) -> None:
    assert verdicts.hypotheses == ["short gradient paths", "a simpler residue", "a prior over path lengths"]
    assert [(source.folder, source.depths) for source in verdicts.sources] == [(".", (32, 56)), ("cifar10", (32,))]
    alone = verdicts.effects[0]
    assert (alone.name, alone.this, alone.than, alone.fitting) == (
        "value alone, fitting", "stop-gradient", "plain", True,
    )  # fmt: skip
    assert (alone.outcome.margin, alone.outcome.better) == (0.693, "lower")
    assert list(alone.predictions.values()) == [("equal", "worse"), ("better",), ()]
    names = [(version.name, version.budget, version.required) for version in alone.versions]
    assert names[:3] == [("as they are", 1, True), ("true norms", 1, True), ("ten times the steps", 10, True)]
    assert {name for name, _, required in names if not required} == {"three times the steps", "Adam", "signs"}
    assert alone.versions[1].arms["stop-gradient"] == "stop-gradient, true norms"
    shortest = verdicts.effects[-1]  # there is no Adam for it
    assert {version.name for version in shortest.versions} == {name for name, _, _ in names} - {"Adam", "signs"}


def test_depths_are_asked_for_by_place(verdicts: Verdicts) -> None:
    digits = verdicts.sources[0]
    assert [digits.asked(which) for which in ("all", "first", "last")] == [(32, 56), (32,), (56,)]


def test_every_name_is_a_condition_of_some_experiment(verdicts: Verdicts) -> None:
    every = (*UNMODIFIED_ARMS, *MAGNITUDE, *SCALE_FREE, *DOSES, *COINS, *timing(Training().epochs), *PLACES)
    known = {condition.name for condition in (*every, *on_networks(FORWARDS))}
    known |= {f"stop-gradient then {arm}" for arm in ("residual", "stop-gradient")}  # alignment.py goes on with them
    claims = (*verdicts.effects, *verdicts.controls)
    assert {name for claim in claims for version in claim.versions for name in version.arms.values()} <= known


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("| value alone | stop-gradient |", "| value alone |", "has 6 columns, its table 7"),
        ("| as they are | yes |", "| as they are | perhaps |", "'perhaps' is none of yes, no"),
        ("| equal or worse | better | any |", "| equal or bad | better | any |", "'bad' is none of better, equal, "),
        ("| log train loss | lower | 0.693 |", "| log train loss | lower | two |", "could not convert string to float"),
        ("| outcome | better is |", "| result | better is |", "no table or column 'outcome'"),
        ("| plain | log train loss | equal", "| plain | loss | equal", "no table or column 'loss'"),
        ("| stop-gradient | plain | log", "| stop-gradient | dense | log", "'dense', which no version has"),
        ("| digits 8x8 | . | 32 56 |", "| digits 8x8 | . | deep |", "invalid literal"),
        ("| digits 8x8 | . | 32 56 |", "| digits 8x8 | . |  |", "'digits 8x8' has no depth"),
        ("| lower | 0.693 |", "| lower | -0.693 |", "'log train loss' has a margin of -0.693: give 0 or more"),
        ("| lower | 0.693 |", "| lower | nan |", "has a margin of nan"),
        ("| control | this |", "| effect | this |", "two tables begin with a column 'effect'"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, old: str, new: str, said: str) -> None:
    file = changed(tmp_path, old, new)
    with pytest.raises(BadInput) as error:
        read_verdicts(file)
    assert said in str(error.value)
    assert str(file) in str(error.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot be read \\(No such file or directory\\); give a verdict file"):
        read_verdicts(tmp_path / "none.md")


def test_a_file_without_effects(tmp_path: Path) -> None:
    """All rows below the head of the table are gone."""
    lines = TEXT.splitlines()
    head = next(place for place, line in enumerate(lines) if line.startswith("| effect |"))
    end = lines.index("", head)
    (tmp_path / "verdict.md").write_text("\n".join(lines[: head + 2] + lines[end:]))
    with pytest.raises(BadInput, match="a table of data or of effects has no row: there is nothing to judge"):
        read_verdicts(tmp_path / "verdict.md")
