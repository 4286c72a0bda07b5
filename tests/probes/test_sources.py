"""Models by name, their weights, and inputs that they take."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from probes.sources import first_output, load_model, load_weights, make_inputs, one_line

WITH_A_NEIGHBOUR = """
from __future__ import annotations
from dataclasses import dataclass
from neighbour import WIDTH
from torch import nn

@dataclass
class Size:
    width: int

def build():
    return nn.Linear(Size(WIDTH).width, 2)
"""


def test_a_file_is_imported_as_a_script_is(tmp_path: Path) -> None:
    """Files beside it are found, dataclasses find their module, and its name hides no other module's."""
    (tmp_path / "neighbour.py").write_text("WIDTH = 3\n")
    (tmp_path / "random.py").write_text(WITH_A_NEIGHBOUR)
    model = load_model(f"{tmp_path}/random.py:build")
    assert isinstance(model, nn.Linear)
    assert model.in_features == 3
    import random

    assert random.randint(1, 1) == 1


def test_a_further_source_is_offered_and_used() -> None:
    further = {"width:NUMBER": lambda rest: nn.Linear(int(rest), 1)}
    made = load_model("width:5", further)
    assert isinstance(made, nn.Linear)
    assert made.in_features == 5
    with pytest.raises(ValueError, match=r"no such source; give torchvision:NAME, timm:NAME, hf:TYPE, width:NUMBER or"):
        load_model("height:5", further)


@pytest.mark.parametrize(
    "wrap", [dict, lambda state: {"state_dict": state, "epoch": 3}, lambda state: {"model": state}]
)
def test_weights_are_loaded_whatever_they_are_wrapped_in(tmp_path: Path, wrap: type[dict]) -> None:
    twin, model = nn.Linear(2, 2), nn.Linear(2, 2)
    torch.save(wrap({f"module.{name}": value for name, value in twin.state_dict().items()}), tmp_path / "w.pt")
    load_weights(model, tmp_path / "w.pt")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_model_may_have_a_module_of_the_name_module(tmp_path: Path, prefix: str) -> None:
    twin, model = (nn.ModuleDict({"module": nn.Linear(2, 2), "head": nn.Linear(2, 1)}) for _ in range(2))
    torch.save({prefix + name: value for name, value in twin.state_dict().items()}, tmp_path / "w.pt")
    load_weights(model, tmp_path / "w.pt")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


def test_weights_of_hugging_face_s_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    twin, model = nn.Linear(2, 2), nn.Linear(2, 2)
    safetensors.save_file(twin.state_dict(), tmp_path / "model.safetensors")
    load_weights(model, tmp_path / "model.safetensors")
    assert torch.equal(model.weight, twin.weight)
    with pytest.raises(ValueError, match=r"gone\.safetensors: there is no such file$"):
        load_weights(model, tmp_path / "gone.safetensors")
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(ValueError, match=r"--weights .*: safetensors.* is not installed; pip install safetensors"):
        load_weights(model, tmp_path / "model.safetensors")


def test_images_and_labels_of_a_file(tmp_path: Path) -> None:
    """White and black pixels, by the mean and deviation of ImageNet's channels."""
    x = np.stack([np.full((3, 2, 2), 255, np.uint8), np.zeros((3, 2, 2), np.uint8), np.zeros((3, 2, 2), np.uint8)])
    np.savez(tmp_path / "some.npz", x=x, y=[4, 5, 6])
    inputs, labels = make_inputs(nn.Identity(), batch_size=2, images=tmp_path / "some.npz")
    assert labels is not None
    assert labels.tolist() == [4, 5]
    expected = torch.tensor([[(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225]])
    torch.testing.assert_close(inputs[""][0, :, 0, 0], expected[0])
    torch.testing.assert_close(inputs[""][1, :, 1, 1], torch.tensor([-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225]))


def test_inputs_have_the_shape_that_is_asked_for() -> None:
    inputs, labels = make_inputs(nn.Identity(), batch_size=2, shape=(1, 28, 28))
    assert (inputs[""].shape, labels) == ((2, 1, 28, 28), None)
    inputs, _ = make_inputs(nn.Identity(), batch_size=2, size=16)
    assert inputs[""].shape == (2, 3, 16, 16)
    with pytest.raises(ValueError, match=r"^--shape \[3\] --image a\.png: give one of the two$"):
        make_inputs(nn.Identity(), batch_size=2, shape=[3], image=Path("a.png"))


def test_the_first_floating_output_and_errors_in_one_line() -> None:
    ids, floats = torch.tensor([1]), torch.tensor([2.0])
    assert first_output({"ids": ids, "more": (floats, floats + 1)}) is floats
    with pytest.raises(ValueError, match="no floating tensor"):
        first_output([ids])
    assert one_line(KeyError("a\n  b")) == r"KeyError: 'a\n b'"
    assert one_line(ValueError("a\n  b")) == "ValueError: a b"
    assert len(one_line(ValueError("word " * 200))) == 300
