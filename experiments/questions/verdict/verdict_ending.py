"""How the verdict is told: every prediction beside what was read, and the standing of each hypothesis, as Markdown."""

from collections.abc import Iterator, Sequence

from experiments.engine.reporting import show
from experiments.questions.verdict.judging import KINDS, NONE_MADE, Judged, headline, standing
from experiments.questions.verdict.measured import Reading
from experiments.questions.verdict.verdict_file import READINGS, Verdicts


def page(verdicts: Verdicts, effects: Sequence[Sequence[Judged]], controls: Sequence[Sequence[Judged]]) -> str:
    """The verdict as a Markdown page. effects, controls: for each data set."""
    parts = ["# The verdict, filled in", *standings(verdicts, effects)]
    for of_source in effects:
        parts += ["", f"## {of_source[0].source.title}: effects", "", *rows(verdicts, of_source)]
    for of_source in controls:
        parts += ["", f"## {of_source[0].source.title}: controls", "", *rows(verdicts, of_source)]
    return "\n".join(parts) + "\n"


def standings(verdicts: Verdicts, effects: Sequence[Sequence[Judged]]) -> Iterator[str]:
    """A row for each hypothesis and kind: its standing on every data set, and the headline."""
    titles = [of_source[0].source.title for of_source in effects]
    yield from ["", line("hypothesis", "on", *titles, "headline"), rule(len(titles) + 3)]
    for hypothesis in verdicts.hypotheses:
        for kind in KINDS:
            each = [standing(of_source, hypothesis, kind) for of_source in effects]
            yield line(hypothesis, kind, *each, f"**{headline(each)}**")


def fares(verdicts: Verdicts, effects: Sequence[Sequence[Judged]]) -> Iterator[str]:
    """A row for each data set and effect: how every prediction fares."""
    yield from ["", line("data", "effect", *verdicts.hypotheses), rule(2 + len(verdicts.hypotheses))]
    for each in (judged for of_source in effects for judged in of_source):
        said = [predicted(each, hypothesis) for hypothesis in verdicts.hypotheses]
        yield line(each.source.title, each.claim.name, *said)


def rows(verdicts: Verdicts, judged: Sequence[Judged]) -> Iterator[str]:
    """A row for each claim: what was read, and how every prediction fares."""
    yield from [line("", "this - than", "read", *verdicts.hypotheses), rule(3 + len(verdicts.hypotheses))]
    for each in judged:
        said = [predicted(each, hypothesis) for hypothesis in verdicts.hypotheses]
        shown = "; ".join(map(show_reading, each.readings))
        yield line(each.claim.name, f"{each.claim.this} - {each.claim.than}, {each.claim.outcome.name}", shown, *said)


def predicted(judged: Judged, hypothesis: str) -> str:
    """`better: holds`, or a dash where nothing is predicted."""
    said = " or ".join(judged.claim.predictions[hypothesis])
    return f"{said}: {judged.fares[hypothesis]}" if said else NONE_MADE


def show_reading(reading: Reading) -> str:
    """`as they are, depth 56: better (+0.30 [+0.20, +0.40])`; what is not required in brackets."""
    name = f"{reading.version.name}, depth {reading.depth}" if reading.version.name else f"depth {reading.depth}"
    word = reading.word
    if reading.found.values:
        word += f" ({show.estimate(reading.found)})"
    return f"{name}: {word}" if reading.version.required else f"[{name}: {word}]"


def sentence(verdicts: Verdicts, effects: Sequence[Sequence[Judged]]) -> str:
    """The headline, how many comparisons it rests on, and what was not run."""
    said = []
    for hypothesis in verdicts.hypotheses:
        for kind in KINDS:
            word = headline([standing(of_source, hypothesis, kind) for of_source in effects])
            if word != "no prediction":
                said.append(f"{hypothesis}, {kind}: {word}")
    every = [reading for of_source in effects for each in of_source for reading in each.readings]
    required = [reading for reading in every if reading.version.required]
    missing = sum(reading.word == "not run" for reading in required)
    decided = sum(reading.word in READINGS for reading in required)
    lost = f", {missing} of them not run" if missing else ""
    return (
        f"{'; '.join(said)}. {decided} of {len(required)} required comparisons are decided{lost}; intervals are not "
        "corrected for their number."
    )


def line(*cells: str) -> str:
    """A row of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def rule(columns: int) -> str:
    """The line under its head."""
    return line(*["---"] * columns)
