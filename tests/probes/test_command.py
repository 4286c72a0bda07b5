"""`residual-probes`: what it prints and writes, and one line for every mistake."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import figures
from probes import __main__ as command
from probes.sources import load_model
from tests.support.browser import browser

HOME_MADE = """
from torch import nn

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.branch = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.Tanh())

    def forward(self, x):
        return x + self.branch(x)

def network():
    return nn.Sequential(Block(), Block(), Block())

def classes():
    return nn.Sequential(nn.Conv2d(3, 1, 1), Block(), nn.Conv2d(1, 3, 4), nn.Flatten())

def image():
    return nn.Sequential(nn.Conv2d(3, 1, 1), Block())

def plain():
    return nn.Sequential(nn.Conv2d(1, 1, 3))
"""
MINE = ["mine.py:network", "--shape", "1", "4", "4"]
TABLES = {
    *("adds.csv", "gradient_norms.csv", "residual_magnitudes.csv", "contributions.csv", "stream_statistics.csv"),
    *("iterative_inference.csv", "path_contributions.csv"),
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(HOME_MADE)
    return tmp_path


def written(folder: Path) -> set[str]:
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()} - {"written.json"}


def save_checkpoints(*files: str) -> None:
    for k, file in enumerate(files):
        model = load_model("mine.py:network")
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(0.1 * (k + 1))
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        torch.save(model.state_dict(), file)


def test_a_model_of_ones_own_is_printed_written_and_drawn(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command.main([*MINE, "--out", "out"])
    said = capsys.readouterr().out
    assert said.startswith(
        "mine.py:network, eval mode, random weights, 4 x random inputs\n\n3 junctions: 3 identity; 0"
    )
    drawn = {f"figures/profiles.{suffix}" for suffix in ("pdf", "png", "csv")}
    assert written(here / "out") == {*TABLES, *drawn, "report.html"}
    norms = pd.read_csv(here / "out" / "gradient_norms.csv")
    assert norms.query("quantity == 'total'")["value"].map("{:.2e}".format).isin(said.split()).all()
    with Image.open(here / "out" / "figures" / "profiles.png") as image:
        assert min(image.size) > 300
    page = (here / "out" / "report.html").read_text()
    assert "residual-probes mine.py:network --shape 1 4 4 --out out" in page


def test_a_second_call_deletes_what_the_first_wrote_and_nothing_else(here: Path) -> None:
    command.main([*MINE, "--out", "out"])
    (here / "out" / "mine.txt").write_text("mine")
    (here / "kept.csv").write_text("mine")
    save_checkpoints("a.pt", "b.pt")
    command.main([*MINE, "--out", "out", "--weights", "a.pt", "b.pt"])
    drawn = {f"figures/checkpoints.{suffix}" for suffix in ("pdf", "png", "csv")}
    assert written(here / "out") == {"adds.csv", "checkpoints.csv", *drawn, "report.html", "mine.txt"}
    (here / "out" / "written.json").write_text('["../kept.csv", "gone.csv"]')  # not by this command
    command.main([*MINE, "--out", "out", "--paths", "0"])
    assert (here / "kept.csv").read_text() == "mine"
    (here / "out" / "written.json").write_text("{")
    command.main([*MINE, "--out", "out", "--paths", "0"])


def test_checkpoints_are_one_table_each_as_if_alone(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_checkpoints("run/step-0/weights.pt", "run/step-9/weights.pt")
    files = ["run/step-0/weights.pt", "run/step-9/weights.pt"]
    command.main([*MINE, "--weights", *files, "--out", "both"])
    assert "step-0" in capsys.readouterr().out
    both = pd.read_csv(here / "both" / "checkpoints.csv", dtype={"block": str})
    assert list(dict.fromkeys(both["checkpoint"])) == ["step-0", "step-9"]
    first, last = (both[both["checkpoint"] == name]["value"].to_numpy() for name in ("step-0", "step-9"))
    assert (first != last).mean() > 0.5
    for name, file in zip(("step-0", "step-9"), files, strict=True):
        command.main([*MINE, "--weights", file, "--out", name])
        alone = pd.read_csv(here / name / "gradient_norms.csv", dtype={"block": str})
        rows = both[(both["checkpoint"] == name) & (both["probe"] == "gradient_norms")]
        pd.testing.assert_frame_equal(
            rows[list(alone.columns)].reset_index(drop=True), alone, check_dtype=False, check_exact=True
        )
    axes = figures.checkpoints(pd.read_csv(here / "both" / "figures" / "checkpoints.csv"))
    assert axes.shape == (1, 3)


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (["a/step_1.pt", "a/step_2.pt"], ["step_1.pt", "step_2.pt"]),
        (["a/1/model.pt", "a/2/model.pt"], ["1", "2"]),
        (["a/1/model.pt", "b/model.pt"], ["a/1", "b"]),
        (["model.pt"], ["model.pt"]),
        (["model.pt", "a/model.pt"], ["model.pt", "a/model.pt"]),
        ([], []),
    ],
)
def test_names_of_checkpoints_are_short_and_differ(files: list[str], names: list[str]) -> None:
    assert command.short_names([Path(file) for file in files]) == names


def test_dropout_is_the_same_for_all_checkpoints(here: Path) -> None:
    (here / "dropped.py").write_text(HOME_MADE.replace("nn.Tanh()", "nn.Tanh(), nn.Dropout(0.5)"))
    save_checkpoints("a.pt")
    (here / "b.pt").write_bytes((here / "a.pt").read_bytes())
    command.main(["dropped.py:network", *MINE[1:], "--train", "--weights", "a.pt", "b.pt", "--out", "out"])
    table = pd.read_csv(here / "out" / "checkpoints.csv")
    a, b = (table[table["checkpoint"] == name]["value"].reset_index(drop=True) for name in ("a.pt", "b.pt"))
    pd.testing.assert_series_equal(a, b)


def test_without_the_extra_there_are_tables_and_a_message(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for name in [name for name in sys.modules if name.partition(".")[0] == "figures"]:
        monkeypatch.delitem(sys.modules, name)
    command.main([*MINE, "--out", "out"])
    assert written(here / "out") == TABLES
    said = capsys.readouterr().out.splitlines()
    wanted = "No figures and no page: matplotlib is not installed; pip install 'residual-probes[figures]'"
    assert said[-1] == wanted


def test_figures_of_another_project_are_not_taken_for_ours(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of `probes` beside a user's own folder `figures`."""
    (here / "figures").mkdir()
    monkeypatch.setattr(command, "__file__", str(here / "probes" / "__main__.py"))
    with pytest.raises(ModuleNotFoundError, match=r"probes\.figures"):
        command._figures()


def test_the_page_shows_what_it_should_in_a_browser(here: Path) -> None:
    name = "<script>alert(1)</script>.py"
    (here / name.replace("/", "")).write_text(HOME_MADE)
    command.main([f"{name.replace('/', '')}:network", *MINE[1:], "--out", "out"])
    with browser() as tab:
        for width in (380, 1400):
            tab.open(here / "out" / "report.html", width=width)
            assert tab.complaints() == []
            assert tab.overflow() == []
        shown = tab.evaluate("document.body.innerText")
    assert "<script>alert(1)" in shown
    assert "3 junctions: 3 identity; 0 other adds" in shown


def test_a_fresh_process_runs_it(here: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "probes", *MINE, "--batch-size", "2"], capture_output=True, text=True, check=True
    )
    assert "3 junctions: 3 identity; 0 other adds" in done.stdout
    assert done.stderr == ""


MISTAKES = [
    (
        "mine.py:plain --shape 1 4 4",
        "mine.py:plain: none of the model's 0 adds is a residual junction; for such a netw",
    ),
    ("mine.py:network", "mine.py:network: the model fails on an input of shape (4, 3, 224, 224) (change it by --shap"),
    ("mine.py:absent", "model mine.py:absent: AttributeError: "),
    ("gone.py:network", "model gone.py:network: there is no such file"),
    (
        "nowhere:resnet18",
        "model nowhere:resnet18: there is no such source; give torchvision:NAME, timm:NAME, hf:TYPE or",
    ),
    ("cifar_resnet:8", "model cifar_resnet:8: there is no such source"),
    ("resnet18", "model resnet18: there is no such source"),
    ("torchvision:", "model torchvision:: there is no such source"),
    ("torchvision:resnet19", "model torchvision:resnet19: ValueError: Unknown model resnet19"),
    ("{mine} --weights gone.pt", "--weights gone.pt: there is no such file"),
    ("{mine} --weights mine.py", "--weights mine.py: "),
    ("{mine} --weights whole.pt", "--weights whole.pt: is no state dict, or holds more than one, which is not read"),
    ("{mine} --weights list.pt", "--weights list.pt: holds a list; wanted a state dict, names with tensors"),
    (
        "{mine} --weights other.pt",
        "--weights other.pt: do not fit the model: RuntimeError: Error(s) in loading state_d",
    ),
    ("{mine} --weights a.pt a.pt", "--weights a.pt a.pt: give each file once"),
    ("{mine} --images few.npz", "--shape [1, 4, 4] --images few.npz: give one of the two"),
    ("mine.py:network --images mine.py", "--images mine.py: cannot be read as an .npz with images x"),
    ("mine.py:network --images few.npz", "--images few.npz: x is uint8 (1, 3, 4, 4); wanted uint8 (4 or more, 3, hei"),
    ("mine.py:network --image mine.py", "--image mine.py: cannot be read as an image"),
    ("{mine} --out mine.py", "--out mine.py: is a file; choose another folder"),
    ("{mine} --out mine.py/out", "--out mine.py/out: cannot be written (Not a directory); choose another folder"),
    ("mine.py:network --images text.npz", "--images text.npz: y is <U3 (4,); wanted whole numbers (4,)"),
    ("mine.py:network --images two.npz", "--images two.npz: y is int64 (2,); wanted whole numbers (4,)"),
    ("mine.py:classes --images labelled.npz", "mine.py:classes: labels hold 3, and there are 3 classes: give 0 to 2"),
    (
        "mine.py:image --images labelled.npz",
        "mine.py:image: labels (4,) want an output (4, classes), and it is (4, 1, 4, 4)",
    ),
    ("{mine} --batch-size 0", "--batch-size 0: give at least 1"),
    ("{mine} --batch-size 1" + 18 * "0", "the inputs cannot be made (RuntimeError: Storage size"),
    ("{mine} --batch-size 1" + 30 * "0", "the inputs cannot be made (TypeError: randn()"),
    ("mine.py:network --shape 0", "--shape 0: give sizes from 1"),
    ("{mine} --device nowhere", "--device nowhere: "),
    ("{mine} --paths many", "argument --paths: invalid int value: 'many'"),
    ("", "the following arguments are required: MODEL"),
]


@pytest.mark.parametrize(("line", "message"), MISTAKES, ids=[line for line, _ in MISTAKES])
def test_a_mistake_is_one_line_and_exit_code_2(
    line: str, message: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez("few.npz", x=np.zeros((1, 3, 4, 4), dtype=np.uint8))
    for name, y in {"text": ["cat"] * 4, "two": [0, 1], "labelled": [0, 1, 2, 3]}.items():
        np.savez(f"{name}.npz", x=np.zeros((4, 3, 4, 4), dtype=np.uint8), y=y)
    torch.save(torch.nn.Linear(1, 1), "whole.pt")
    torch.save([1], "list.pt")
    torch.save({"weight": torch.ones(1)}, "other.pt")
    before = set(here.iterdir())
    with pytest.raises(SystemExit) as ended:
        command.main(line.format(mine=" ".join(MINE)).split())
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(f"residual-probes: {message}")
    assert said.count("\n") == 1
    assert {file for file in here.iterdir() if file.name != "__pycache__"} == before
