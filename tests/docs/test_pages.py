"""README and docs: their Python runs as printed, their links lead somewhere, their numbers are in committed tables, and
the scripts, flags and files that they name exist."""

import csv
import io
import re
import runpy
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import probes
from experiments.engine.training.networks import NETWORKS
from figures.__main__ import parser_of
from probes import __main__ as command
from tests.test_boundaries import MAY_IMPORT, ROOMS

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
DOCS = ROOT / "docs"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted(p for p in DOCS.rglob("*.md") if "_build" not in p.parts)]
TABLES = sorted((DOCS / "tables").glob("*.csv"))
SCRIPTS = {path.stem for path in (ROOT / "experiments").glob("*.py")} - {"__init__"}
ARTICLES = {path.stem for path in (DOCS / "experiments").glob("*.md")} - {"index"}

# Of torchrun, ray, sbatch, pip.
FOREIGN = {"--nproc-per-node", "--head", "--port", "--address", "--nodes", "--ntasks", "--ntasks-per-node", "--block",
           "--cpus-per-task", "--gpus-per-task", "--num-cpus", "--num-gpus", "--time", "--help"}  # fmt: skip

DECIMAL = re.compile(r"\d+\.\d+")
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def rows(file: Path) -> list[list[str]]:
    """A table's rows, its head among them."""
    with file.open(newline="") as opened:
        return list(csv.reader(opened))


def name_of(page: Path) -> str:
    """A page's path in the checkout."""
    return str(page.relative_to(ROOT))


# Python


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page.read_text(), "python")], ids=name_of)
def test_python_blocks_run_as_printed(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    printed, space = io.StringIO(), dict[str, Any]()
    with redirect_stdout(printed):
        for number, block in enumerate(blocks(page.read_text(), "python")):  # a page reads from top to bottom
            exec(compile(block, f"{name_of(page)}, block {number}", "exec"), space)
    if page == README:
        (block,) = blocks(page.read_text(), "python")
        assert len(block.strip().splitlines()) <= 12
        assert re.findall(r"# (Junction\(.*\))", block) == printed.getvalue().splitlines()[:1]


# Links and files


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_pictures_and_tables_exist(page: Path) -> None:
    text = page.read_text()
    targets = re.findall(r"\]\((?!http)([^)#]+)\)", FENCE.sub("", text)) + re.findall(
        r"^:file: (.+)$", text, re.MULTILINE
    )
    assert all((page.parent / target).exists() for target in targets), targets


def test_named_files_and_folders_exist() -> None:
    pattern = re.compile(
        r"(?:probes|models|figures|experiments|benchmarks|tests|docs)/(?:[\w/]+\.(?:py|md|csv)|(?:[\w]+/)*)"
    )
    for page in PAGES:
        for name in pattern.findall(re.sub(r"\]\([^)]*\)", "", page.read_text())):
            if "NAME" not in name:
                assert (ROOT / name).exists(), f"{name_of(page)} names {name}"


def test_named_functions_are_in_the_files_that_are_named_with_them() -> None:
    found = 0
    for page in PAGES:
        text = " ".join(FENCE.sub("", page.read_text()).split())
        for names, file in re.findall(r"((?:`[\w.]+`(?:, | and )?)+)(?: in | \()`([\w/]+/\w+\.py)`", text):
            for name in re.findall(r"(\w+)`", names):
                found += 1
                assert re.search(rf"(?:def|class) {name}\b|^{name}\b", in_checkout(file).read_text(), re.MULTILINE), (
                    f"{name_of(page)}: {name} is not in {file}"
                )
    assert found > 20


def in_checkout(file: str) -> Path:
    """A file by its path in the checkout or in the engine."""
    return next(path for path in (ROOT / file, ROOT / "experiments" / "engine" / file) if path.exists())


# The architecture


def table_under(heading: str) -> list[list[str]]:
    """The rows, without the head, of the first table behind a heading of the architecture's page."""
    _, _, text = (DOCS / "architecture.md").read_text().partition(f"\n{heading}\n")
    table = re.search(r"^\|.*\n\| ---.*\n((?:\|.*\n)+)", text, re.MULTILINE)
    assert table is not None, heading
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in table[1].splitlines()]


def test_the_table_of_imports_is_the_one_under_test() -> None:
    listed: dict[str, set[str]] = {}
    for where, _, imported in table_under("## The rooms and their arrows"):
        (area,) = named_areas(where)
        above = set(listed) if imported.startswith("all of the above") else set[str]()
        listed[area] = above ^ named_areas(imported)  # "but": what is named is taken from all
        assert listed[area] <= set(listed) - {area}, f"{area} imports from a row below it"
    assert listed == MAY_IMPORT


def named_areas(cell: str) -> set[str]:
    """The areas whose folders a cell names."""
    named = {name.replace("/", ".") for name in re.findall(r"`([\w/]+)/`", cell)}
    return {f"experiments.{name}" if name.startswith("engine.") else name for name in named}


@pytest.mark.parametrize(
    "folder",
    ["probes", "models", "figures/parts", "experiments/questions", *(room.replace(".", "/") for room in ROOMS)],
)
def test_every_file_of_a_room_is_listed(folder: str) -> None:
    there = {path.relative_to(ROOT / folder).as_posix() for path in (ROOT / folder).rglob("*.py")}
    listed = [row[0].strip("`| ") for row in table_under(f"### `{folder}/`")]
    assert sorted(listed) == sorted(file for file in there if not file.endswith("__init__.py"))


def test_a_measurement_is_a_file_a_test_file_and_a_row() -> None:
    calls = [line for line in (DOCS / "probes.md").read_text().splitlines() if line.startswith("| `")]
    files = {path.stem for path in (ROOT / "probes/measurements").glob("*.py")} - {"__init__", "per"}
    functions = {name: getattr(getattr(probes, name), "__module__", "") for name in probes.__all__}
    measurements = {name: m.rpartition(".")[2] for name, m in functions.items() if m.startswith("probes.measurements.")}
    assert set(measurements.values()) == files
    for name, stem in measurements.items():
        assert (ROOT / f"tests/probes/measurements/test_{stem}.py").is_file()
        assert any(f"`{name}(" in line for line in calls), f"{name} has no row on the page of the probes"


# Numbers


def numbers_without_table(text: str, tables: list[Path]) -> list[str]:
    """The decimal numbers of a text, code and links aside, that are in no table; those of a row of its own tables must
    be in one row."""
    prose = re.sub(r"`[^`]*`|\]\([^)]*\)|arXiv \S+|Python 3\.\d+", "", FENCE.sub("", text))
    known = [set(DECIMAL.findall(" ".join(row))) for file in tables for row in rows(file)]
    everywhere = set().union(*known)
    missing = []
    for line in prose.splitlines():
        wanted = set(DECIMAL.findall(line))
        if line.startswith("|") and not any(wanted <= row for row in known):
            missing.append(line)
        missing += sorted(wanted - everywhere)
    return missing


def test_the_readme_has_one_page_and_no_number_of_its_own() -> None:
    text = README.read_text()
    assert len(text.splitlines()) <= 200
    assert DECIMAL.search(FENCE.sub("", text))
    assert numbers_without_table(text, TABLES) == []


def test_a_number_of_no_table_or_of_another_row_would_be_found(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("arm,value\nresidual,0.96\nplain,0.20 ± 0.04\n")
    assert numbers_without_table("| plain | 0.20 ± 0.04 |\n0.96 and `0.1`\n", [table]) == []
    assert numbers_without_table("plain has 0.21", [table]) == ["0.21"]
    assert numbers_without_table("| plain | 0.96 ± 0.04 |", [table]) == ["| plain | 0.96 ± 0.04 |"]


def test_results_on_pages_come_from_tables() -> None:
    by_hand = re.compile(r"\d ± \d|\[[-+]?\d[\d.,]*, [-+]?\d[\d.,]*\]")
    pages = [page for page in PAGES if page.is_relative_to(DOCS)]
    assert [name_of(page) for page in pages if by_hand.search(FENCE.sub("", page.read_text()))] == []
    assert by_hand.search("0.40 [+0.27, +0.53]")
    assert by_hand.search("0.96 ± 0.01")


def test_every_table_is_shown_and_rectangular() -> None:
    shown = {Path(name).name for page in PAGES for name in re.findall(r"^:file: (.+)$", page.read_text(), re.MULTILINE)}
    assert shown == {file.name for file in TABLES}
    assert all(len({len(row) for row in rows(file)}) == 1 for file in TABLES)


def test_the_picture_of_the_rooms_is_what_its_script_draws() -> None:
    script = DOCS / "images" / "rooms.py"
    assert runpy.run_path(str(script))["draw"]() == script.with_suffix(".svg").read_text()


# Scripts and networks


def test_every_script_has_a_page_and_a_line_in_both_lists() -> None:
    assert ARTICLES == SCRIPTS
    for page, start in ((README, "docs/experiments/"), (DOCS / "experiments" / "index.md", "")):
        linked = re.findall(rf"\[\w+\]\({start}(\w+)\.md\)", page.read_text())
        assert set(linked) >= ARTICLES, name_of(page)


@pytest.mark.parametrize("script", sorted(ARTICLES))
def test_pages_of_scripts_have_the_same_parts(script: str) -> None:
    text = (DOCS / "experiments" / f"{script}.md").read_text()
    assert text.startswith(f"# {script}\n\n*")
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == ["Run", "Output", "Results", "Reading"]
    assert any(f"experiments/{script}.py" in block for block in blocks(text, "sh"))


def flags_of(settings: Any) -> Iterator[str]:
    """The flags of a script's settings."""
    for field in fields(settings):
        value = getattr(settings, field.name)
        if is_dataclass(value):
            yield from flags_of(value)
        else:
            yield "--" + field.name.replace("_", "-")


def test_scripts_and_flags_exist() -> None:
    modules = {script: import_module(f"experiments.{script}") for script in SCRIPTS}
    known = {script: {"--help", *flags_of(module.Settings())} for script, module in modules.items()}
    commands = (parser_of([]), command.parser_of())
    of_commands = {option for parser in commands for action in parser._actions for option in action.option_strings}
    anywhere = FOREIGN.union(of_commands, *known.values())
    texts = {name_of(path): path.read_text().replace("\\\n", " ") for path in [*PAGES, *TABLES]}
    found = 0
    for name, text in texts.items():
        for line in text.splitlines():
            assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", line)) <= anywhere, f"{name}: {line}"
            for script, arguments in re.findall(r"(\w+)\.py((?: [^`#]*)?)", line):
                if script in known:
                    found += 1
                    assert set(re.findall(r"(?<!\S)--[a-z-]+", arguments)) <= known[script], f"{name}: {line}"
    assert found > len(SCRIPTS)


def test_the_list_of_networks_is_complete() -> None:
    (listed,) = re.findall(
        r"\| name \| what it is \| source \|\n\| --- .*\n((?:\|.*\n)+)", (DOCS / "networks.md").read_text()
    )
    names = [name for row in listed.splitlines() for name in re.findall(r"`([^`]+)`", row.split("|")[1])]
    assert sorted(names) == sorted(NETWORKS)
