"""The notebooks are as they were executed, and show something soon; nbmake executes them (marked slow)."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "docs" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
FIRST = 5  # cells, the last of which may be that of the first picture
LARGEST = 300_000  # bytes


def cells_of(file: Path) -> list[dict[str, Any]]:
    return json.loads(file.read_text(encoding="utf-8"))["cells"]


def shows_a_picture(cell: dict[str, Any]) -> bool:
    found = [output.get("data", {}) for output in cell.get("outputs", [])]
    return any("image/png" in data or "<svg" in "".join(data.get("text/html", "")) for data in found)


def problems(cells: list[dict[str, Any]]) -> list[str]:
    """What is wrong with the outputs of a notebook."""
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    outputs = [output for cell in code for output in cell["outputs"]]
    wrong = {
        "not executed from top to bottom": [c["execution_count"] for c in code] != list(range(1, len(code) + 1)),
        "an error or a warning": any(o["output_type"] == "error" or o.get("name") == "stderr" for o in outputs),
        "no picture in the first cells": not any(map(shows_a_picture, cells[:FIRST])),
        "says when it was executed": any("execution" in cell["metadata"] for cell in code),
    }
    return [name for name, holds in wrong.items() if holds]


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_it_is_as_it_was_executed_and_soon_shows_a_picture(file: Path) -> None:
    cells = cells_of(file)
    assert problems(cells) == []
    assert len(cells) <= 20
    assert all(len(cell["source"]) <= 25 for cell in cells)
    assert file.stat().st_size < LARGEST


def test_there_are_four_and_the_docs_show_them() -> None:
    pages = (FOLDER.parent / "index.md").read_text(encoding="utf-8")
    assert len(NOTEBOOKS) == 4
    assert set(re.findall(r"^notebooks/(\w+)$", pages, re.MULTILINE)) == {file.stem for file in NOTEBOOKS}


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_its_links_lead_somewhere(file: Path) -> None:
    text = "".join(line for cell in cells_of(file) if cell["cell_type"] == "markdown" for line in cell["source"])
    targets = re.findall(r"\]\((?!http)([^)#]+)\)", text)
    assert targets
    assert all((file.parent / target).exists() for target in targets), targets


def test_what_is_wrong_would_be_found() -> None:
    picture = {"output_type": "display_data", "data": {"image/png": ""}}
    good = {"cell_type": "code", "execution_count": 1, "metadata": {}, "outputs": [picture]}
    text = {"cell_type": "markdown", "metadata": {}, "source": []}
    assert problems([text, good]) == []
    assert problems([good, good | {"execution_count": 3}]) == ["not executed from top to bottom"]
    assert problems([good, {**good, "execution_count": 2, "outputs": [{"output_type": "error"}]}]) == [
        "an error or a warning"
    ]
    assert problems([*[text] * FIRST, good]) == ["no picture in the first cells"]
    assert problems([good | {"metadata": {"execution": {}}}]) == ["says when it was executed"]


if __name__ == "__main__":  # after `make notebooks`
    for notebook in NOTEBOOKS:
        content = json.loads(notebook.read_text(encoding="utf-8"))
        for each in content["cells"]:
            each["metadata"].pop("execution", None)
        notebook.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
