"""`python -m figures`: a figure from its table, and one line for every mistake."""

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest

import figures
from figures.__main__ import NO_FIGURES, main
from tests.figures.test_saliency_maps import arrays
from tests.support.drawings import EXAMPLES, caption_of, pick


@pytest.fixture
def table(tmp_path: Path) -> Path:
    file = tmp_path / "paths.csv"
    EXAMPLES["path_lengths"].to_csv(file, index=False)
    return file


def test_the_file_is_the_one_that_python_writes(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "fig.pdf"
    options = ["--arms", "residual", "plain", "--depth", "56", "--venue", "icml", "--column", "0.5", "--out", str(out)]
    main(["path_lengths", str(table), *options])
    rows = pick(pd.read_csv(table), depth_total=56)
    rows = rows[rows["arm"].isin(["residual", "plain"])]
    with figures.venue("icml", column=0.5):
        axes = figures.path_lengths(rows)
        axes[0, 0].figure.savefig(tmp_path / "twin.pdf", metadata={"CreationDate": None})
    assert out.read_bytes() == (tmp_path / "twin.pdf").read_bytes()
    assert capsys.readouterr().out == f"{out}\n{figures.caption(axes)}\n"
    assert "no share curve: plain" in caption_of(axes)


def test_conditions_are_chosen_by_name_and_rows_without_one_stay(tmp_path: Path) -> None:
    EXAMPLES["answer"].to_csv(tmp_path / "answer.csv", index=False)
    drawn: list[pd.DataFrame] = []
    with pytest.MonkeyPatch.context() as patch:
        original = figures.answer
        patch.setattr(figures, "answer", lambda rows, **more: drawn.append(rows) or original(rows, **more))
        given = ["--arms", "plain, near-identity", "residual", "plain", "--no-legend", "--out", str(tmp_path / "a.png")]
        main(["answer", str(tmp_path / "answer.csv"), *given])
    assert set(drawn[0]["control"].dropna()) == {"plain, near-identity", "residual", "plain"}
    assert drawn[0]["effect"].notna().sum() == EXAMPLES["answer"]["effect"].notna().sum()


def test_maps_are_redrawn_from_their_arrays(tmp_path: Path) -> None:
    np.savez(tmp_path / "maps.npz", **cast(Any, arrays()))
    main(["saliency_maps", str(tmp_path / "maps.npz"), "--out", str(tmp_path / "maps.svg")])
    assert "<svg" in (tmp_path / "maps.svg").read_text()


ERRORS: list[tuple[str, str]] = [
    ("paths TABLE", "there is no figure 'paths'; the figures are accuracy_by_depth, alignment, "),
    (
        "path_lengths TABLE --venue cvpr",
        "venue: 'cvpr' is unknown; the venues are acl, iclr, icml, nature, neurips, tm",
    ),
    ("path_lengths TABLE --venue icml --column 2", "venue: column is 2; it is a share of the text's width, above 0"),
    ("path_lengths TABLE --venue icml --column 0", "venue: column is 0; it is a share of the text's width, above 0"),
    ("path_lengths TABLE --column 0.5", "--column is a share of a venue's text: name the --venue, too."),
    ("path_lengths TABLE --arms mine plain", "--arms: the table has no mine; it has residual, stop-gradient, gra"),
    ("path_lengths TABLE --depth 9", "--depth: the table has no 9; it has 20, 56."),
    ("ensemble BARE --depth 9", "--depth: the table has no column depth_total."),
    ("accuracy_by_depth BARE", "accuracy_by_depth: the table lacks depth_total, seed, split, value; its "),
    ("path_lengths gone.csv", "gone.csv: cannot be read (No such file or directory)."),
    ("path_lengths EMPTY", "EMPTY: cannot be read (No columns to parse from file)."),
    ("path_lengths BINARY", "BINARY: cannot be read ('utf-8' codec can't decode byte"),
    ("path_lengths maps.npz", "maps.npz: this figure is drawn from a .csv file, which lies beside it."),
    ("saliency_maps TABLE", "TABLE: this figure is drawn from a .npz file, which lies beside it."),
    ("saliency_maps BROKEN", "BROKEN: cannot be read ("),
    ("saliency_maps MAPS --depth 8", "--arms and --depth choose rows of a table, and saliency_maps is drawn from arr"),
    ("path_lengths TABLE --out fig.docx", "--out fig.docx: a figure is written as .pdf, .png, .svg; end the file's"),
    ("path_lengths TABLE --out GONE/fig.pdf", "[Errno 2] No such file or directory: "),
    ("path_lengths", "the following arguments are required: "),
    ("path_lengths TABLE --depth deep", "argument --depth: invalid int value: 'deep'"),
]


@pytest.mark.parametrize(("line", "message"), ERRORS, ids=[line for line, _ in ERRORS])
def test_a_mistake_is_one_line_and_exit_code_2(
    line: str, message: str, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {"TABLE": table, "GONE": tmp_path / "gone"}
    for name, content in {"BARE": b"arm,depth,quantity\nplain,1,x\n", "EMPTY": b"", "BINARY": b"\xff\xfe"}.items():
        files[name] = tmp_path / f"{name}.csv"
        files[name].write_bytes(content)
    files["BROKEN"], files["MAPS"] = tmp_path / "broken.npz", tmp_path / "maps.npz"
    files["BROKEN"].write_bytes(b"PK\x03\x04 no zip file")
    np.savez(files["MAPS"], **cast(Any, arrays()))

    def put(text: str) -> str:
        for name, file in files.items():
            text = text.replace(name, str(file))
        return text

    with pytest.raises(SystemExit) as ended:
        main(put(line).split())
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(f"python -m figures: {put(message)}")
    assert said.count("\n") == 1


def test_the_commands_of_the_page_draw(tmp_path: Path) -> None:
    page = Path(figures.__file__).parents[1] / "docs" / "redraw_a_figure.md"
    commands = [line for line in page.read_text().splitlines() if line.startswith("python -m figures ")]
    assert commands
    for command in commands:
        words = shlex.split(command)[3:]
        words[words.index("--out") + 1] = str(tmp_path / "fig.pdf")
        words[1] = str(page.parents[1] / words[1])
        main(words)
        assert (tmp_path / "fig.pdf").stat().st_size > 1000


def test_every_name_is_a_figure() -> None:
    names = [name for name in figures.__all__ if name not in NO_FIGURES]
    assert set(names) == {*EXAMPLES, "saliency_maps"}


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_table_without_a_column_is_drawn_or_refused_by_a_message(name: str) -> None:
    for column in EXAMPLES[name].columns:
        message = refused(name, EXAMPLES[name].drop(columns=column))
        assert not message or message.startswith(f"{name}: "), column


@pytest.mark.parametrize("name", EXAMPLES)
def test_values_that_are_no_numbers_are_refused(name: str) -> None:
    """As where two files were joined with their headings."""
    table = EXAMPLES[name]
    heading = pd.DataFrame([{column: column for column in table}])
    message = refused(name, pd.concat([table.astype(object), heading], ignore_index=True))
    assert message.startswith(f"{name}: ")


@pytest.mark.parametrize(
    ("name", "column", "left_out", "message"),
    [
        ("insertion", "quantity", "margin", "no margin among the quantities"),
        ("explanations", "quantity", "measured", "no measured among the quantities"),
        ("explanations", "quantity", "outcome", "no outcome among the quantities"),
        ("sampled_paths", "quantity", "path_norm_low", "no path_norm_low among the quantities"),
        ("sampled_paths", "quantity", "path_norm_high", "no path_norm_high among the quantities"),
        ("compare", "side", "a", ""),
        ("compare", "side", "b", ""),
    ],
)
def test_a_table_without_some_rows_is_drawn_or_refused_by_a_message(
    name: str, column: str, left_out: str, message: str
) -> None:
    table = EXAMPLES[name]
    assert message in refused(name, table[table[column] != left_out])


@pytest.mark.parametrize(
    ("name", "column"), [("answer", "control"), ("answer_losses", "data"), ("variants", "network")]
)
def test_a_row_without_a_name_is_refused(name: str, column: str) -> None:
    table = EXAMPLES[name].copy()
    table.loc[table.index[0], column] = None
    assert f"rows have no {column}; name it, or leave them out" in refused(name, table)


def refused(name: str, table: pd.DataFrame) -> str:
    """Why a figure cannot be drawn, empty if it can; no other error may come."""
    try:
        getattr(figures, name)(table)
    except ValueError as error:
        return str(error)
    return ""


def test_it_runs_inside_another_package(tmp_path: Path) -> None:
    """As `python -m probes.figures` of the wheel; the checkout is not on the path."""
    (tmp_path / "guest").mkdir()
    (tmp_path / "guest" / "__init__.py").touch()
    (tmp_path / "guest" / "figures").symlink_to(Path(figures.__file__).parent)
    command = [sys.executable, "-m", "guest.figures", "nothing", "table.csv"]
    done: Any = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("python -m guest.figures: there is no figure 'nothing'; the figures are ")
    assert done.stderr.count("\n") == 1
