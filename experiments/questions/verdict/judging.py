"""Predictions against readings: holds, fails or undecided, and what that makes of each hypothesis."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from experiments.questions.verdict.measured import Reading, readings
from experiments.questions.verdict.verdict_file import READINGS, Claim, Source
from probes.tables import table

HOLDS, FAILS, UNDECIDED, NONE_MADE = "holds", "fails", "undecided", "-"
KINDS = ("fitting", "generalising")


@dataclass(frozen=True)
class Judged:
    """A claim on one data set: what was read, and how each hypothesis's prediction fares."""

    source: Source
    claim: Claim
    readings: tuple[Reading, ...]
    fares: Mapping[str, str]

    def rows(self) -> Iterator[dict[str, object]]:
        """The readings as rows of a long table."""
        for each in self.readings:
            about = {"data": self.source.title, "effect": self.claim.name, "outcome": self.claim.outcome.name}
            about |= {"control": each.version.name, "depth_total": each.depth, "reading": each.word}
            yield from each.found.rows(**about)
            for seed, value in zip(each.seeds, each.found.values, strict=True):
                yield {**about, "seed": seed, "quantity": "difference", "value": value}


def judge(runs: pd.DataFrame, source: Source, claims: Sequence[Claim]) -> list[Judged]:
    """Every claim, on one data set's runs."""
    judged = []
    for claim in claims:
        found = tuple(readings(runs, claim, source))
        fares = {hypothesis: fare(found, said) for hypothesis, said in claim.predictions.items()}
        judged.append(Judged(source, claim, found, fares))
    return judged


def fare(found: Sequence[Reading], said: Sequence[str]) -> str:
    """Whether a prediction holds, over the required versions; those that do not apply are not counted.

    It holds if all readings are as predicted, fails if one is another reading, and is undecided if neither: also where
    something was not run, and where nothing applies.
    """
    if not said:
        return NONE_MADE
    words = [each.word for each in found if each.version.required and each.word != "does not apply"]
    if any(word in READINGS and word not in said for word in words):
        return FAILS
    return HOLDS if words and all(word in said for word in words) else UNDECIDED


def standing(judged: Sequence[Judged], hypothesis: str, kind: str) -> str:
    """What a data set makes of a hypothesis on fitting or on generalising: supported, contradicted, undecided, or no
    prediction."""
    fares = {each.fares[hypothesis] for each in judged if each.claim.fitting == (kind == KINDS[0])} - {NONE_MADE}
    if not fares:
        return "no prediction"
    return "contradicted" if FAILS in fares else "supported" if fares == {HOLDS} else UNDECIDED


def headline(standings: Sequence[str]) -> str:
    """What data sets agree on, or undecided: one alone does not decide."""
    return standings[0] if len(standings) > 1 and len(set(standings)) == 1 else UNDECIDED


def judged_table(judged: Sequence[Judged]) -> pd.DataFrame:
    """All readings as a long table: data, control (the version), depth_total, outcome, effect (the claim), reading,
    quantity (mean | low | high | n; difference, of one seed), value."""
    return table(row for each in judged for row in each.rows())
