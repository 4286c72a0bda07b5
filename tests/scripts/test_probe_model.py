"""experiments/probe_model.py on small models, as a user runs it."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from experiments.engine.running.cli import run_script
from experiments.probe_model import describe_bands
from models import cifar_resnet
from tests.support.pages import cells, read, section

HOME_MADE = """
from torch import nn

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.branch = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU())

    def forward(self, x):
        return x + self.branch(x)

def network():
    return nn.Sequential(Block(), Block())

def number():
    return 3
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(HOME_MADE)
    np.savez(tmp_path / "few.npz", x=np.zeros((1, 3, 4, 4), dtype=np.uint8))
    return tmp_path


def probe(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["probe_model", "--quick", *map(str, arguments)])
    run_script("experiments.probe_model")


@pytest.mark.parametrize(
    ("model", "junctions"),
    [("torchvision:resnet18", 8), ("mine.py:network", 2), ("timm:convnext_atto", 12), ("hf:gpt2", 24)],
)
def test_any_model_is_listed_measured_and_drawn(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], model: str, junctions: int
) -> None:
    paths = 0 if model == "hf:gpt2" else 12  # a second of time
    probe(monkeypatch, "--model", model, "--paths", paths, "--length", 4)
    (folder,) = (here / "results" / "probe_model").iterdir()
    assert f"{junctions} junctions" in capsys.readouterr().out
    adds = pd.read_csv(folder / "adds.csv")
    assert (adds["verdict"] != "none").sum() == junctions
    assert adds["reason"].notna().all()
    norms = pd.read_csv(folder / "gradient_norms.csv")
    assert len(norms) == 4 * junctions
    assert (norms.query("quantity == 'total'")["value"] > 0).all()
    for name, quantities in (("contributions", 5), ("stream_statistics", 5), ("iterative_inference", 1)):
        assert len(pd.read_csv(folder / f"{name}.csv")) == quantities * junctions
    assert (folder / "path_contributions.csv").exists() == bool(paths)
    with Image.open(folder / "figures" / "profiles.png") as image:
        assert min(image.size) > 300


def test_its_page_shows_names_from_outside_as_text(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nasty = "<script>alert('&')</script>"
    code = f"""{HOME_MADE}
class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.add_module({nasty!r}, Block())
    def forward(self, x):
        return self.get_submodule({nasty!r})(x)
def named():
    return Named()
"""
    (here / "<b>mine.py").write_text(code)
    probe(monkeypatch, "--model", "<b>mine.py:named")
    (folder,) = (here / "results" / "probe_model").iterdir()
    page = read(folder / "report.html")
    assert page.one("title").text == "probe_model/<b>mine.py-named"
    ((*what, total, ratio),) = cells(section(page, "Results").one("table"))
    assert what == [nasty, "0", "identity"]
    assert (f"{float(total):.3g}", f"{float(ratio):.3g}") == ("0.017", "0.447")
    assert "Of <b>mine.py:named, eval mode, random weights." in page.one("figcaption").text
    assert page.one("p", class_="answer").text.startswith("Answer1 junction: 1 identity; 0 other adds")
    assert page.one("img").attributes["alt"].startswith("Figure of 3 panels: gradient norm at the fork, branch")
    assert "--model '<b>mine.py:named'" in section(page, "How to repeat it").text


def test_weights_and_an_image(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (40, 30), (200, 10, 10)).save(here / "red.png")
    (here / "cifar.py").write_text("from models import cifar_resnet\ndef net():\n    return cifar_resnet(8)\n")
    torch.manual_seed(5)
    torch.save({"state_dict": cifar_resnet(8).state_dict()}, here / "weights.pt")
    probe(monkeypatch, "--model", "cifar.py:net", "--image", "red.png", "--weights", "weights.pt", "--seed", 1)
    table = here / "results" / "probe_model" / "cifar.py-net" / "gradient_norms.csv"
    first = table.read_bytes()
    probe(monkeypatch, "--model", "cifar.py:net", "--image", "red.png", "--weights", "weights.pt", "--seed", 2)
    assert table.read_bytes() == first  # neither weights nor input were random


def test_images_with_labels_public_weights_and_single_paths(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    x = np.random.default_rng(0).integers(0, 256, (3, 3, 8, 8), dtype=np.uint8)
    np.savez(here / "some.npz", x=x, y=np.array([1, 2, 3]))
    public = {"conv1": "stem.0", "bn1": "stem.1", "linear": "classifier"}
    state = {name.replace(".branch", ""): value for name, value in cifar_resnet(8).state_dict().items()}
    for theirs, ours in public.items():
        state = {f"module.{name.removeprefix('module.')}".replace(ours, theirs): v for name, v in state.items()}
    torch.save({"state_dict": state}, here / "public.th")
    arguments = ["--model", "cifar_resnet:8", "--weights", "public.th", "--images", "some.npz", "--batch-size", 3]
    tables = []
    for seed in (1, 2):  # neither weights nor input are random, and all of three blocks' paths are walked
        probe(monkeypatch, *arguments, "--samples", 3, "--seed", seed)
        folder = here / "results" / "probe_model" / "cifar_resnet-8"
        tables.append((folder / "sampled_paths.csv").read_bytes())
    assert tables[0] == tables[1]
    assert "path lengths 0 to 3: 95 % of the sampled mass lies at" in capsys.readouterr().out
    found = pd.read_csv(folder / "path_bands.csv").set_index("quantity")["value"]
    assert 0 <= found["mass_low"] <= found["mass_high"] <= 3
    assert set(pd.read_csv(folder / "figures" / "profiles.csv")["quantity"]) >= {"share", "ratio", "total"}


def test_bands_are_described() -> None:
    numbers = {"mass_low": 1, "mass_high": 2, "norm_low": 2, "norm_high": 3, "slope": -1, "fit": 1}
    bands = pd.DataFrame({"quantity": list(numbers), "value": [float(value) for value in numbers.values()]})
    said = describe_bands(bands, 3, 10)
    assert "path lengths 0 to 3: 95 % of the sampled mass lies at 1 to 2 branches (10 paths a length)" in said
    assert "of the exact sums' norms at 2 to 3" in said
    assert "changes by -1.000 a branch (R² 1.00)" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "cifar_resnet:9"], "depth 9 is not 6n + 2"),
        (["--model", "mine.py:network", "--images", "mine.py"], "--images mine.py: cannot be read as an .npz"),
        (["--model", "mine.py:network", "--images", "few.npz"], "x is uint8 (1, 3, 4, 4); wanted uint8 (2 or more, 3"),
        (["--model", "mine.py:network", "--images", "few.npz", "--image", "mine.py"], "give one of the two"),
        (["--model", "torchvision:resnet19"], "Unknown model resnet19"),
        (["--model", "timm:nothing"], "nothing"),
        (["--model", "hf:nothing"], "nothing"),
        (["--model", "mine.py:absent"], "absent"),
        (["--model", "mine.py:number"], "it must return a torch.nn.Module"),
        (["--model", "mine.py:network", "--weights", "mine.py"], "--weights mine.py: "),
        (["--model", "mine.py:network", "--image", "mine.py"], "cannot be read as an image"),
    ],
)
def test_a_model_or_input_that_cannot_be_had_is_one_line(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as end:
        probe(monkeypatch, *arguments)
    shown = capsys.readouterr().err
    assert end.value.code == 2
    assert shown.startswith("error: ")
    assert message in shown
    assert len(shown.splitlines()) == 1
    assert not (here / "results").exists()
