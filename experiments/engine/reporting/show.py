"""The terminal: data frames as tables, numbers as text, the files that were written; it all goes to the page, too."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

import figures
from experiments.engine.reporting.page import PAGE, LivePage, Shown, write_page
from experiments.engine.running.output import Output, write_text
from experiments.engine.running.run import Run
from experiments.engine.statistics.equivalence import DEFINITION, MARGINS, Comparison
from experiments.engine.statistics.estimates import Estimate, classify
from figures.page import Table as PageTable
from figures.page import Text as PageText

Decision = tuple[str, str, str]
"""An estimate as text, its margin, and the reading."""
DECISIONS = "Decisions: "
RULE = "The whole 95 % interval is compared with the margin; intervals are not corrected for their number."
FEW, MANY = 6, 8
"""Decisions that are named with their estimates, and names of one reading, in the one line of a page."""
CLIPPED = "*: the interval goes beyond the scale, and is cut where that ends."
MARK = "]*"
"""The end of an interval that was cut."""
Rows = Mapping[tuple[str, str], Mapping[str, str]]
"""Text by (heading, row), then by column."""


class Terminal(Console):
    """A terminal that keeps what it shows, for the page: tables, and sentences (strings, not other renderables)."""

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, **options)
        self.shown = Shown()

    def print(self, *objects: Any, **options: Any) -> None:
        """Print, and keep a sentence."""
        super().print(*objects, **options)
        for sentence in objects:
            if isinstance(sentence, str) and sentence.strip():
                self.shown.keep(PageText(sentence))


def live(output: Output) -> Output:
    """The same output, whose report page says, while runs are under way, how far they are."""
    output.watch = LivePage(output)
    return output


def terminal() -> Terminal:
    """The terminal, or a console wide enough for the tables where the output is a file."""
    console = Terminal()
    return console if console.is_terminal else Terminal(width=100)


def text_table(rows: Rows, *, heading: str = "") -> pd.DataFrame:
    """Rows of text as a table, for a page: the headings in a column of that name, if one is given, an unnamed column of
    names, and the columns of the rows."""
    found = ({**({heading: above} if heading else {}), "": name, **row} for (above, name), row in rows.items())
    return pd.DataFrame(found).fillna("")


def table(console: Console, rows: Rows, *, title: str, caption: str = "", decides: bool | None = None) -> None:
    """Print rows of text as a table.

    Args:
        console: Where.
        rows: By (heading, name); a heading that is not empty stands in bold above its rows. Columns are in the order in
            which they first appear, and a row may lack some.
        title: Above the table.
        caption: One paragraph below it; where an interval is marked as cut, a line says what the mark means.
        decides: Whether it says what was decided; by default where it has a column "reading".
    """
    if any(MARK in text for row in rows.values() for text in row.values()):
        caption = f"{caption}\n{CLIPPED}" if caption else CLIPPED
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    shown = Table(title=title, box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for column in ("", *columns):  # names and remarks are wrapped where a table is too wide, and nothing is cut off
        words = column in ("", "note", "reading")
        shown.add_column(column, no_wrap=not words, overflow="fold" if words else "ellipsis")
    for index, (heading, name) in enumerate(rows):
        if heading and heading not in [before for before, _ in list(rows)[:index]]:
            shown.add_section()
            shown.add_row(heading, style="bold")
        shown.add_row(Text(name), *(Text(rows[heading, name].get(column, "")) for column in columns))
    console.print(shown)
    console.print(Text(f"{caption}\n" if caption else ""))
    if isinstance(console, Terminal):
        short = title.removeprefix(DECISIONS)  # the page has a heading above it
        kept = PageTable(text_table(rows, heading="where"), title=short, caption=caption, by="where")
        console.shown.keep(kept, decides="reading" in columns if decides is None else decides)


def decision(
    found: Estimate,
    margin: float,
    readings: Mapping[str, str],
    *,
    one_sided: bool = False,
    digits: int = 3,
    sign: bool = True,
    missing: str = "undecided",
) -> Decision:
    """What an estimate decides, by a rule that was fixed before any run.

    Args:
        found: The estimate.
        margin: With which its whole interval is compared.
        readings: The words for an interval "above", "below" and "within" the margin; else it is "undecided".
        one_sided: Whatever is not above the margin is within it.
        digits: Of the estimate as text, after the point.
        sign: Whether positive numbers have one.
        missing: The reading where no seed has a value.
    """
    side = classify(found, margin, low=-math.inf if one_sided else None)
    reading = readings.get(side, "undecided" if found.values else missing)
    return estimate(found, digits=digits, sign=sign), f"{margin:.3g}", reading


def conclusion(console: Console, output: Output, made: Mapping[str, Decision], *, title: str, remark: str) -> None:
    """End a report: the files that were written, what was decided (by effect), and its limits in a sentence."""
    files(console, output)
    decisions(console, made, title=title)
    end(console, output, remark=remark)


def end(console: Console, output: Output, *, answer: str = "", remark: str = "") -> None:
    """End a report: print its answer, by default the readings of the last decisions, and its limits; write the page.

    answer: one measured sentence. remark: sentences, one a line.
    """
    shown = console.shown if isinstance(console, Terminal) else Shown()
    if answer:
        console.print(Text(answer))  # the page has it at its top
    for sentence in remark.splitlines():
        console.print(sentence)
    if not output.dry_run:
        last = shown.last(PageText)
        write_page(output, shown, answer or readings(shown.last(PageTable)) or (last.text if last else ""))


def readings(decided: PageTable | None) -> str:
    """What a table of decisions says in one line: every effect by its reading, with its estimate where there are few;
    "" for another table."""
    if decided is None or "reading" not in decided.columns:
        return ""
    rows = decided.rows
    effect, estimate = decided.columns[:2]
    by_reading: dict[str, list[str]] = {}
    for row in rows.to_dict("records"):
        if row.get("reading"):
            name = f"{row[effect]} {row[estimate]}" if len(rows) <= FEW else str(row[effect])
            by_reading.setdefault(str(row["reading"]), []).append(name)
    parts = [
        f"{reading}: {', '.join(names[:MANY])}" + f" and {len(names) - MANY} more" * (len(names) > MANY)
        for reading, names in by_reading.items()
    ]
    return f"{decided.title}. {'; '.join(parts)}." if parts else ""


def decisions(console: Console, made: Mapping[str, Decision], *, title: str) -> None:
    """Print each effect's estimate, margin and reading."""
    table(console, decision_rows(made), title=f"{DECISIONS}{title}", caption=RULE)


def decision_rows(made: Mapping[str, Decision]) -> Rows:
    """Each effect's estimate, margin and reading."""
    return {
        ("", effect): {"estimate [95 % interval]": found, "margin": margin, "reading": reading}
        for effect, (found, margin, reading) in made.items()
    }


def save_figure(output: Output, axes: Any, table: pd.DataFrame | Mapping[str, np.ndarray], name: str) -> None:
    """Write a figure beside the table that it was drawn from and, as NAME.txt, the caption that says what it shows."""
    output.add(figures.save(axes, table, output.folder / "figures", name))
    words = output.folder / "figures" / f"{name}.txt"
    write_text(words, figures.caption(axes) + "\n")
    output.add([words])


def files(console: Console, output: Output) -> None:
    """Print where the files are, the report page among them, which `end` writes."""
    output.add([output.folder / PAGE])
    console.print(Text(f"Written to {output.folder}:"), soft_wrap=True)
    endings: dict[str, list[str]] = {}
    for file in sorted(output.files, key=lambda file: (len(file.parts), file)):
        stem = file.relative_to(output.folder).with_suffix("").as_posix()
        endings.setdefault(stem, []).append(file.suffix[1:])
    for stem, suffixes in endings.items():
        ending = suffixes[0] if len(suffixes) == 1 else "{" + ",".join(suffixes) + "}"
        console.print(Text(f"  {stem}.{ending}"), soft_wrap=True)


def all_diverged(
    console: Console,
    tables: Mapping[str, pd.DataFrame],
    output: Output,
    *,
    advice: str = "A lower --learning-rate may help.",
) -> bool:
    """Whether every run diverged; if so, say it."""
    if "outcomes" in tables:
        return False
    files(console, output)
    end(console, output, answer=f"Every run diverged: there is nothing to compare. {advice}")
    return True


def diverged(console: Console, runs: Sequence[Run]) -> None:
    """The runs that diverged, and so have no outcomes."""
    for run in runs:
        labels = "".join(f", {name} {value}" for name, value in run.labels.items())
        console.print(Text(f"diverged: {run.experiment}, {run.arm}, depth {run.depth}, seed {run.seed}{labels}"))


def changes(console: Console, comparisons: Sequence[Comparison], *, where: str = "") -> None:
    """Comparisons with ordinary training. where: of the title, as " at depth 56"."""
    rows = {
        ("", found.arm): {
            outcome: estimate(found.changes[outcome], digits=3) if found.changes else "-" for outcome in MARGINS
        }
        | {"n": str(found.pairs), "ordinary training is": found.reading}
        for found in comparisons
    }
    title = f"Change from ordinary training{where}: mean [95 % t interval], paired by seed"
    caption = f"{DEFINITION}.\nIntervals are not corrected for their number"
    table(console, rows, title=title, caption=caption, decides=True)


def mean_sd(values: pd.Series) -> str:
    """`0.965 ± 0.003`; without the deviation where there is one value, `-` where there is none."""
    if values.empty:
        return "-"
    digits = 3 if values.mean() >= 0.1 else 4
    return f"{values.mean():.{digits}f}" + (f" ± {values.std():.{digits}f}" if len(values) > 1 else "")


def steps(found: pd.Series, seeds: int) -> str:
    """`57 ± 3`, mean and deviation over seeds; `2 of 3` where a seed has not reached the target."""
    reached = found.dropna()
    if len(reached) < seeds:
        return f"{len(reached)} of {seeds}"
    return f"{reached.mean():.0f}" + (f" ± {reached.std():.0f}" if seeds > 1 else "")


def interval(mean: float, low: float, high: float, *, digits: int = 2) -> str:
    """`0.91 [0.88, 0.94]`, or `-` where there is no mean."""
    return "-" if mean != mean else f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def estimate(found: Estimate | None, *, digits: int = 2, sign: bool = True) -> str:
    """`-0.38 [-0.50, -0.26]`, or `+0.50 [+0.20, +1.00]*` where the interval is cut at the end of the scale; the seeds'
    own values where there is no interval, `-` where there is no value."""
    if found is None or not found.values:
        return "-"
    form = f"{'+' if sign else ''}.{digits}f"
    if found.low == found.low:
        return f"{found.mean:{form}} [{found.low:{form}}, {found.high:{form}}{MARK if found.clipped else ']'}"
    return f"{found.mean:{form}} ({', '.join(f'{value:{form}}' for value in found.values)})"
