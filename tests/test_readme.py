"""The README's snippets run as they are printed, and its links lead somewhere."""

import re
from pathlib import Path

import pytest

from experiments.engine.networks import NETWORKS

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda snippet: snippet.split("\n")[0][:40])
def test_snippets_run_as_printed(snippet: str) -> None:
    exec(compile(snippet, "README.md", "exec"), {})


def test_the_snippet_on_foreign_models_prints_what_its_comment_says(capsys: pytest.CaptureFixture[str]) -> None:
    (snippet,) = [snippet for snippet in SNIPPETS if "find_junctions" in snippet]
    exec(compile(snippet, "README.md", "exec"), {})
    shown = capsys.readouterr().out
    assert re.search(r"# (Junction\(.*\))", snippet)[1] == shown.splitlines()[0]  # pyright: ignore[reportOptionalSubscript]
    assert len(snippet.strip().splitlines()) <= 12


def test_links_and_pictures_exist() -> None:
    targets = re.findall(r"\]\((?!http)([^)#]+)\)", TEXT)
    assert targets
    assert all((ROOT / target).exists() for target in targets)


def test_skip_connection_is_named_once_for_searchers() -> None:
    assert len(re.findall(r"skip connection", TEXT, re.IGNORECASE)) == 1


def test_the_list_of_networks_is_complete() -> None:
    (rows,) = re.findall(r"\| name \| what it is \| source \|\n\| --- .*\n((?:\|.*\n)+)", TEXT)
    names = [name for row in rows.splitlines() for name in re.findall(r"`([^`]+)`", row.split("|")[1])]
    assert sorted(names) == sorted(NETWORKS)
