"""An experiment's report page: what was shown in the terminal, beside its figures, runs and settings; and, while runs
are under way, how far they are."""

import json
import shlex
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import pandas as pd
from PIL import Image

import figures
from experiments.engine.running.messages import duration, logger
from experiments.engine.running.output import Grid, Output
from experiments.engine.running.provenance import provenance
from experiments.engine.running.run import Run
from experiments.engine.running.store import read_report
from figures.page import Code, Facts, Page, Part, Picture, Progress, Section, Table, Text, picture

T = TypeVar("T", Table, Text)
PAGE = "report.html"
AFTER = 5.0
"""Seconds after which a grid has a page, and between two writings of it, at least."""
SHARE = 0.05
"""Of the time, at most, that goes into pages while runs are under way."""
MOST_LINES = 10
"""In the figure of curves so far."""
MOST_VALUES = 8
"""Of a setting in which runs differ, that are listed."""


@dataclass
class Shown:
    """What a script has shown in the terminal."""

    results: list[Table | Text] = field(default_factory=list)
    decisions: list[Table | Text] = field(default_factory=list)
    """Begins with the first table of decisions, and has all that followed."""

    def keep(self, part: Table | Text, *, decides: bool = False) -> None:
        """Keep a table, or a sentence that was not shown before."""
        if isinstance(part, Table) or part not in [one for one in self.decisions if isinstance(one, Text)]:
            (self.decisions if decides or self.decisions else self.results).append(part)

    def last(self, kind: type[T]) -> T | None:
        """The last table or sentence, of the decisions if they have one."""
        return next((part for part in reversed([*self.results, *self.decisions]) if isinstance(part, kind)), None)


def write_page(output: Output, shown: Shown, answer: str) -> Path:
    """Write the report of finished work, and decisions.csv; the page's file."""
    script = _script(output.settings)
    made = Page(
        title=name_of(output),
        question=question_of(script),
        answer=answer,
        sections=[
            Section("Decisions", _with_file(output, shown.decisions)),
            Section("Figures", pictures(output)),
            Section("Results", shown.results),
            Section("Runs, versions, hardware", run_parts(output)),
            Section("How to repeat it", [Code(how_to_repeat(output))]),
            Section("All settings", [Facts(flags_of(output.settings))], folded=True),
        ],
        footer="Made by residual-probes. To read it, nothing but this file is needed; links lead to tables beside it.",
    )
    page = replace(made, sections=[section for section in made.sections if _has_content(section)])
    return page.write(output.folder / PAGE)


def _has_content(section: Section) -> bool:
    return any(part.facts if isinstance(part, Facts) else True for part in section.parts)


def _with_file(output: Output, decisions: Sequence[Table | Text]) -> list[Part]:
    """The same, once all tables of decisions are written to one file."""
    rows = [table.rows.assign(table=table.title) for table in decisions if isinstance(table, Table)]
    if rows:
        output.table("decisions", pd.concat(rows, ignore_index=True).fillna(""))
    return [replace(part, file="decisions.csv") if isinstance(part, Table) else part for part in decisions]


# What was asked


def _script(settings: object) -> ModuleType | None:
    """The script's module, which defines its settings."""
    return sys.modules.get(type(settings).__module__) if is_dataclass(settings) else None


def question_of(script: ModuleType | None) -> str:
    """The first paragraph of the script's docstring."""
    return " ".join(((script and script.__doc__) or "").split("\n\n")[0].split())


def name_of(output: Output) -> str:
    """The experiment's folder below that of all results."""
    out = getattr(output.settings, "out", output.folder.parent)
    try:
        return output.folder.relative_to(out).as_posix()
    except ValueError:
        return output.folder.name


def flags_of(settings: object) -> dict[str, str]:
    """Every setting by its flag, with its value as text."""
    return {flag: " ".join(words) or "none" for flag, words in _words(settings).items()}


def _words(settings: object) -> dict[str, list[str]]:
    """Every setting by its flag, with the words of its value."""
    found: dict[str, list[str]] = {}
    if not is_dataclass(settings):
        return found
    for one in fields(settings):
        value = getattr(settings, one.name)
        if is_dataclass(value):
            found |= _words(value)
        else:
            found[f"--{one.name.replace('_', '-')}"] = [*map(str, value)] if isinstance(value, tuple) else [str(value)]
    return found


def command_of(settings: object) -> str:
    """The command line that gives these settings."""
    script = _script(settings)
    if script is None:
        return ""
    usual: Any = script.Settings()
    words = ["python", f"experiments/{script.__name__.rpartition('.')[2]}.py"]
    if getattr(settings, "quick", False):
        usual = replace(getattr(script, "QUICK", usual), quick=True)
        words.append("--quick")
    before = _words(usual)
    for flag, value in _words(settings).items():
        if value != before[flag]:
            words += [flag] if value == ["True"] else [f"--no-{flag[2:]}"] if value == ["False"] else [flag, *value]
    return shlex.join(words)


def how_to_repeat(output: Output) -> str:
    """The commit, the installation, and the command line."""
    if not (command := command_of(output.settings)):
        return ""
    commits = sorted({str(report["commit"]) for _, report in _reports(output)} or {_made_here()["commit"]})
    lines = [f"git checkout {commit.removesuffix('-dirty')}" for commit in commits if commit != "unknown"]
    if any(commit.endswith("-dirty") for commit in commits):
        lines.append("# with changes that were not committed")
    return "\n".join([*lines, "pip install -e '.[experiments]'", command])


# What was run


def run_parts(output: Output) -> list[Part]:
    """How many runs there were, which diverged, on what machine, and the settings that they share or differ in."""
    reports = list(_reports(output))
    if not reports:
        return [Facts(_where([_made_here()]) if output.settings else {})]
    diverged = {_run_name(run): report["outcome"] for (_, run), report in reports if report["outcome"] != "finished"}
    seconds = sum(float(report["wall_seconds"]) for _, report in reports)
    facts = {
        "data": _listed({str(run.about["title"]) for (_, run), _ in reports if "title" in run.about}),
        "computing time": f"{duration(seconds)}, summed over runs",
        **_where([report for _, report in reports]),
        "diverged runs": "; ".join(f"{name}: {outcome}" for name, outcome in diverged.items()) or "none",
    }
    return [
        Table(_counts(output, reports), title="Runs that these results come from"),
        Facts({name: value for name, value in facts.items() if value}),
        Facts(
            recipe_facts([report["run"]["recipe"] for _, report in reports]), title="What the runs were trained with"
        ),
    ]


def _reports(output: Output) -> Iterator[tuple[tuple[Grid, Run], dict[str, Any]]]:
    """Every run that has ended, once for each folder whose tables it is in, and its run.json."""
    seen = set[tuple[Path, str]]()
    for grid in reversed(output.grids):  # a search begins several grids, each of which has the runs of the one before
        for run in grid.runs:
            if (grid.folder, run.name) not in seen and run.name in grid.ended:
                seen.add((grid.folder, run.name))
                with suppress(OSError, ValueError):  # another invocation may be replacing it
                    yield (grid, run), read_report(grid.home / run.name)


def _counts(output: Output, reports: Sequence[tuple[tuple[Grid, Run], dict[str, Any]]]) -> pd.DataFrame:
    """By folder: runs, diverged ones, and seeds."""
    rows = []
    for folder in dict.fromkeys(grid.folder for grid in output.grids):
        own = [(run, report) for (grid, run), report in reports if grid.folder == folder]
        rows.append(
            {
                "tables in": _below(folder, output),
                "runs": str(len(own)),
                "diverged": str(sum(report["outcome"] != "finished" for _, report in own)),
                "arms": str(len({_name(run) for run, _ in own})),
                "depths": _listed({run.depth for run, _ in own}),
                "seeds": _listed({run.seed for run, _ in own}),
            }
        )
    return pd.DataFrame(rows)


def _below(folder: Path, output: Output) -> str:
    """A grid's folder as seen from the page's."""
    inner = folder.relative_to(output.folder).as_posix() if folder.is_relative_to(output.folder) else folder.name
    return "this folder" if inner == "." else f"{inner}/"


def _name(run: Run) -> str:
    """Of its condition, or its arm."""
    return str(run.labels.get("control", run.arm))


def _run_name(run: Run) -> str:
    labels = "".join(f", {name} {value}" for name, value in run.labels.items())
    return f"{run.arm}, depth {run.depth}, seed {run.seed}{labels}"


def _made_here() -> dict[str, Any]:
    return provenance("cpu")


def _where(reports: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Versions, commits and hardware."""
    versions: dict[str, set[str]] = {}
    for report in reports:
        for name, number in report["versions"].items():
            versions.setdefault(name, set()).add(number)
    return {
        "hardware": _listed({report["hardware"] for report in reports}),
        "versions": ", ".join(f"{name} {_listed(numbers)}" for name, numbers in versions.items()),
        "commit": _listed({_short(report["commit"]) for report in reports}),
    }


def _short(commit: str) -> str:
    """The first digits of a commit, and whether files differed from it."""
    digits, dirty, _ = commit.partition("-dirty")
    return digits[:12] + dirty


def recipe_facts(recipes: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Every field of recipes as run.json has them: its value, or its values where runs differ."""
    values: dict[str, set[str]] = {}
    for recipe in recipes:
        for name, value in _leaves(recipe):
            values.setdefault(name, set()).add(value)
    return {name: _listed(found) for name, found in values.items()}


def _leaves(recipe: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    for name, value in recipe.items():
        if name == "class":
            continue
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{above}{name}.".replace("training.", "").replace("computing.", ""))
        else:
            yield f"{above}{name}".replace("_", " "), json.dumps(value) if isinstance(value, list) else str(value)


def _listed(values: set[Any]) -> str:
    """Values in order, not all if there are many."""
    try:
        ordered = sorted(values, key=float)
    except (TypeError, ValueError):
        ordered = sorted(values, key=str)
    shown = ", ".join(map(str, ordered[:MOST_VALUES]))
    return shown + f" and {len(ordered) - MOST_VALUES} more" * (len(ordered) > MOST_VALUES)


# Figures


def pictures(output: Output) -> list[Part]:
    """Every figure that was written, with its caption and the table that it was drawn from."""
    found: list[Part] = []
    for file in output.files:
        if file.suffix != ".png" or not file.exists():  # another call with this folder may have deleted it
            continue
        with Image.open(file) as image:
            alt = str(image.info.get("Description", file.stem))
        caption, data = file.with_suffix(".txt"), file.with_suffix(".csv")
        found.append(
            Picture(
                file.read_bytes(),
                alt,
                title=file.stem.replace("_", " "),
                caption=caption.read_text(encoding="utf-8").strip() if caption.exists() else "",
                file=(data if data.exists() else data.with_suffix(".npz")).relative_to(output.folder).as_posix(),
            )
        )
    return found


# While runs are under way


class LivePage:
    """Called when a run has ended: writes the page of unfinished work, from time to time."""

    def __init__(self, output: Output) -> None:
        self.output, self.written = output, False
        self.next = time.monotonic() + AFTER
        self.curves: dict[Path, pd.DataFrame] = {}
        """Of runs that have ended, by their folder."""

    def __call__(self) -> None:
        """Write the page if it is time; an error in it is logged, and ends no run."""
        file, now = self.output.folder / PAGE, time.monotonic()
        gone = self.written and not file.exists()  # deleted with the tables of an earlier call
        if now < self.next and not gone:
            return
        try:
            self.page().write(file)
            self.written = True
            self.next = time.monotonic() + max(AFTER, (time.monotonic() - now) / SHARE)
        except Exception as error:
            logger.warning(f"{file} is not written while runs are under way: {type(error).__name__}: {error}")
            self.next, self.written = float("inf"), False

    def page(self) -> Page:
        """How far the last grid is, the curves of its runs so far, and what is known of all."""
        grid = self.output.grids[-1]
        before = sum(run.work for run in grid.runs if run.name in grid.before)
        done, total = (float(sum(run.work for run in runs)) for runs in (self._ended(grid), grid.runs))
        seconds = time.monotonic() - grid.begun
        left = f", about {duration(seconds * (total - done) / (done - before))} left" if before < done < total else ""
        text = f"{len(grid.ended)} of {len(grid.runs)} runs, after {duration(seconds)}{left}"
        folder = _below(grid.folder, self.output)
        where = "" if folder == "this folder" else f" (of {folder})"
        sections = [
            Section("Learning curves so far", self._drawn(grid)),
            Section("Runs so far", run_parts(self.output)),
            Section("How to repeat it", [Code(how_to_repeat(self.output))]),
        ]
        return Page(
            title=name_of(self.output),
            question=question_of(_script(self.output.settings)),
            sections=[section for section in sections if _has_content(section)],
            progress=Progress(done, total, f"{text}{where}"),
            footer="Under way: this page is written again as runs end, and read again by the browser.",
        )

    def _ended(self, grid: Grid) -> list[Run]:
        return [run for run in grid.runs if run.name in grid.ended]

    def _drawn(self, grid: Grid) -> list[Part]:
        rows = self._rows(grid)
        if rows is None:
            return []
        losses = rows[(rows["split"] == "train") & (rows["quantity"] == "loss")]
        last = losses.sort_values("epoch").groupby(["arm", "depth_total", "seed"])["value"].last()
        names = last.groupby("arm").mean().sort_values().index
        few = list(names[:MOST_LINES])
        axes = figures.learning_curves(rows[rows["arm"].isin(few)])
        drawn = picture(axes)
        left_out = len(names) - len(few)
        note = f" Of {len(names)}, the {len(few)} of the lowest training loss." if left_out else ""
        return [replace(drawn, caption=drawn.caption + note)]

    def _rows(self, grid: Grid) -> pd.DataFrame | None:
        """The curves of the runs that have ended, each arm (or condition) by its name and what else runs differ in."""
        ended = self._ended(grid)
        values: dict[tuple[str, int, str], set[str]] = {}
        for run in grid.runs:
            for label, value in run.labels.items():
                values.setdefault((_name(run), run.depth, label), set()).add(str(value))
        parts, times = list[pd.DataFrame](), Counter[tuple[str, int, int]]()
        for run in ended:
            file = grid.home / run.name / "curves.csv"
            if file not in self.curves:
                if not file.exists():
                    continue
                self.curves[file] = pd.read_csv(file)
            differ = [label for label in run.labels if len(values[_name(run), run.depth, label]) > 1]
            name = ", ".join([_name(run), *(f"{label} {run.labels[label]}" for label in differ)])
            times[key := (name, run.depth, run.seed)] += 1
            name += f" ({times[key]})" * (times[key] > 1)  # what tells them apart is in no label
            parts.append(self.curves[file].assign(arm=name.replace("_", " ")))
        rows = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
        wanted = {"epoch", "split", "quantity", "value", "depth_total", "seed"}
        return rows if wanted <= set(rows) else None
