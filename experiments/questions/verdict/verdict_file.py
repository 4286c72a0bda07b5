"""The verdict file: what each hypothesis predicts, as tables of a Markdown page that people and programs read alike."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.engine.running.messages import BadInput

READINGS = ("better", "equal", "worse")
WHICH = ("all", "first", "last")
Row = Mapping[str, str]


@dataclass(frozen=True)
class Source:
    """A data set: its title, its folder under the results, and the depths at which it is judged."""

    title: str
    folder: str
    depths: tuple[int, ...]

    def asked(self, which: str) -> tuple[int, ...]:
        """all, the first or the last of the depths."""
        ends = {"first": self.depths[:1], "last": self.depths[-1:]}
        return ends.get(which, self.depths)


@dataclass(frozen=True)
class Outcome:
    """On what is compared: a column of the runs, which way is better, and how much counts."""

    name: str
    better: str
    margin: float


@dataclass(frozen=True)
class Version:
    """The arms in another form, by the names of conditions; an arm without one is not read in this version."""

    name: str
    required: bool
    depths: str
    budget: int
    arms: Mapping[str, str]


@dataclass(frozen=True)
class Claim:
    """A comparison, and what each hypothesis predicts: readings, or none (any)."""

    name: str
    this: str
    than: str
    outcome: Outcome
    predictions: Mapping[str, tuple[str, ...]]
    versions: tuple[Version, ...]

    @property
    def fitting(self) -> bool:
        """Whether it is of fitting, else of generalising."""
        return self.outcome.better == "lower"


@dataclass(frozen=True)
class Verdicts:
    """A verdict file's tables."""

    sources: tuple[Source, ...]
    effects: tuple[Claim, ...]
    controls: tuple[Claim, ...]

    @property
    def hypotheses(self) -> list[str]:
        return list(self.effects[0].predictions)


def read_verdicts(file: Path) -> Verdicts:
    """Parse a verdict file.

    Raises BadInput, naming the file and the place, where it is missing or a table, column or word is not as it must be.
    """
    try:
        tables = tables_of(file.read_text())
        outcomes = {row["outcome"]: outcome(row) for row in tables["outcome"]}
        versions = tuple(version(row) for row in tables["version"])
        sources = tuple(map(source, tables["data"]))
        effects = tuple(claim(row, "effect", outcomes, versions) for row in tables["effect"])
        controls = tuple(claim(row, "control", outcomes, (as_given(row),)) for row in tables["control"])
        if not sources or not effects:
            raise ValueError("a table of data or of effects has no row: there is nothing to judge")
    except OSError as error:
        raise BadInput(f"{file}: cannot be read ({error.strerror or error}); give a verdict file") from None
    except KeyError as error:
        raise BadInput(f"{file}: there is no table or column {error}; see the file that the project has") from None
    except ValueError as error:
        raise BadInput(f"{file}: {error}") from None
    return Verdicts(sources, effects, controls)


def tables_of(text: str) -> dict[str, list[Row]]:
    """Every Markdown table of a page, by its first column's title: its rows by column."""
    found: dict[str, list[Row]] = {}
    for block in blocks_of_lines(text):
        head, _, *body = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in block]
        for cells in body:
            if len(cells) != len(head):
                raise ValueError(f"the row {' | '.join(cells)!r} has {len(cells)} columns, its table {len(head)}")
        if head[0] in found:
            raise ValueError(f"two tables begin with a column {head[0]!r}: give it once")
        found[head[0]] = [dict(zip(head, cells, strict=True)) for cells in body]
    return found


def blocks_of_lines(text: str) -> Iterator[list[str]]:
    """The lines of every table of at least a head and a rule."""
    block: list[str] = []
    for line in [*text.splitlines(), ""]:
        if line.startswith("|"):
            block.append(line)
        elif block:
            if len(block) >= 2:
                yield block
            block = []


def outcome(row: Row) -> Outcome:
    """A row of the table of outcomes."""
    margin = float(row["margin"])
    if not margin >= 0:
        raise ValueError(f"{row['outcome']!r} has a margin of {margin:g}: give 0 or more")
    return Outcome(row["outcome"], one_of(row["better is"], ("lower", "higher")), margin)


def source(row: Row) -> Source:
    """A row of the table of data sets."""
    depths = tuple(sorted(map(int, row["depths"].split())))
    if not depths:
        raise ValueError(f"{row['data']!r} has no depth at which it is judged: give one or more")
    return Source(row["data"], row["folder"], depths)


def version(row: Row) -> Version:
    """A row of the table of versions."""
    fixed = ("version", "required", "depths", "budget")
    arms = {arm: name for arm, name in row.items() if arm not in fixed and name}
    required = one_of(row["required"], ("yes", "no")) == "yes"
    return Version(row["version"], required, one_of(row["depths"], WHICH), int(row["budget"]), arms)


def as_given(row: Row) -> Version:
    """The one version of a control: its conditions as they are named."""
    return Version("", True, one_of(row["depths"], WHICH), 1, {row[key]: row[key] for key in ("this", "than")})


def claim(row: Row, kind: str, outcomes: Mapping[str, Outcome], versions: Sequence[Version]) -> Claim:
    """A row of the table of effects or of controls; all columns behind the known ones are hypotheses."""
    known = (kind, "this", "than", "outcome", "depths")
    predictions = {name: readings(words) for name, words in row.items() if name not in known}
    if not predictions:
        raise ValueError(f"{row[kind]!r} has no hypothesis: its table needs a column for each")
    asked = tuple(each for each in versions if {row["this"], row["than"]} <= set(each.arms))
    if not asked:
        raise ValueError(f"{row[kind]!r} compares {row['this']!r} with {row['than']!r}, which no version has")
    return Claim(row[kind], row["this"], row["than"], outcomes[row["outcome"]], predictions, asked)


def readings(words: str) -> tuple[str, ...]:
    """ "equal or worse" as ("equal", "worse"); "any" as ()."""
    return () if words == "any" else tuple(one_of(word.strip(), READINGS) for word in words.split(" or "))


def one_of(word: str, words: Sequence[str]) -> str:
    """The word; raises ValueError if it is none of them."""
    if word not in words:
        raise ValueError(f"{word!r} is none of {', '.join(words)}")
    return word
