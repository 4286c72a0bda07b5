"""The package as a whole: its rooms import one way, and the examples of its docstrings run."""

import copy
import inspect
import itertools
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import probes
from models import cifar_resnet
from tests.test_boundaries import imports


def rooms() -> dict[str, set[str]]:
    """From room to room (a sub-package, or a file beside them): who imports whom."""
    arrows: dict[str, set[str]] = {}
    for module, targets in imports(Path(probes.__file__).parents[1]).items():
        package, _, rest = module.partition(".")
        if package == "probes" and rest:
            found = {target.split(".")[1] for target in targets if target.startswith("probes.")}
            arrows.setdefault(room := rest.split(".")[0], set()).update(found - {room})
    return arrows


def test_rooms_import_one_way() -> None:
    order = list(TopologicalSorter(rooms()).static_order())
    wanted = ["scaling", "discovery", "gradients", "recording", "measurements"]
    assert [room for room in order if room in wanted] == wanted
    (back := rooms())["discovery"].add("recording")
    with pytest.raises(CycleError):
        list(TopologicalSorter(back).static_order())


EXAMPLES = {name: doc for name in probes.__all__ if "Example::" in (doc := inspect.getdoc(getattr(probes, name)) or "")}


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_examples_of_docstrings_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # some write a file
    names: dict[str, object] = {public: getattr(probes, public) for public in probes.__all__}
    names |= {"torch": torch, "F": F, "model": cifar_resnet(14, width=2), "images": torch.randn(8, 3, 8, 8)}
    names |= {"labels": torch.tensor([0, 1] * 4), "x": torch.randn(2, 3), "branch": torch.nn.Linear(3, 3)}
    names |= {"image": torch.randn(3, 8, 8), "other": torch.randn(3, 8, 8), "tokens": torch.tensor([[1, 2, 3]])}
    names |= {"copy": copy, "itertools": itertools, "resnet18": names["model"]}
    names["loader"] = [(names["images"], names["labels"])] * 2
    exec(inspect.cleandoc(EXAMPLES[name].split("Example::")[1]), names)


def test_every_function_has_an_example_and_says_what_it_takes() -> None:
    functions = {name for name in probes.__all__ if inspect.isfunction(getattr(probes, name))}
    assert functions == EXAMPLES.keys()
    assert all("Args:" in doc and "Raises:" in doc for doc in EXAMPLES.values())
