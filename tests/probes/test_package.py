"""The package as a whole: its rooms import one way, and a copy of it works under another name."""

import ast
import inspect
import shutil
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import probes
from models import cifar_resnet

FOLDER = Path(probes.__file__).parent
USERS_SCRIPT = """
import torch, my_probes, probes
assert probes.OWN and my_probes.__version__

class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 3)
    def forward(self, x):
        return x + self.layer(x).tanh()

net = torch.nn.Sequential(torch.nn.Linear(3, 3), Block())
with my_probes.record(net) as recording:
    net(torch.ones(2, 3)).sum().backward(retain_graph=True)
print(*my_probes.gradient_norms(recording)["quantity"], len(my_probes.path_gradients(recording)))
"""


def imports(source: str, package: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """What a module of a package imports relatively, also inside functions and for type checkers alone."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.level:
            yield (*package[: len(package) - node.level + 1], *(node.module or "").split("."))


def rooms(sources: dict[tuple[str, ...], str]) -> dict[str, set[str]]:
    """From room to room (a sub-package, or a file beside them): who imports whom."""
    arrows: dict[str, set[str]] = {}
    for module, source in sources.items():
        found = {name[0] for name in imports(source, module[:-1])}
        arrows.setdefault(module[0], set()).update(found - {module[0]})
    return arrows


def sources() -> dict[tuple[str, ...], str]:
    paths = [path for path in FOLDER.rglob("*.py") if path.parent != FOLDER or path.name != "__init__.py"]
    return {path.relative_to(FOLDER).with_suffix("").parts: path.read_text() for path in paths}


def test_rooms_import_one_way() -> None:
    order = list(TopologicalSorter(rooms(sources())).static_order())
    wanted = ["scaling", "discovery", "gradients", "recording", "measurements"]
    assert [room for room in order if room in wanted] == wanted


def test_the_check_sees_a_circle_also_for_type_checkers_alone() -> None:
    circle = "if TYPE_CHECKING:\n    from ..recording import Recording"
    with pytest.raises(CycleError):
        list(TopologicalSorter(rooms(sources() | {("discovery", "new"): circle})).static_order())


EXAMPLES = {name: doc for name in probes.__all__ if "Example::" in (doc := inspect.getdoc(getattr(probes, name)) or "")}


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_examples_of_docstrings_run(name: str) -> None:
    names: dict[str, object] = {public: getattr(probes, public) for public in probes.__all__}
    names |= {"torch": torch, "F": F, "model": cifar_resnet(14, width=2), "images": torch.randn(2, 3, 8, 8)}
    names |= {"labels": torch.tensor([0, 1]), "x": torch.randn(2, 3), "branch": torch.nn.Linear(3, 3)}
    exec(inspect.cleandoc(EXAMPLES[name].split("Example::")[1]), names)


def test_every_function_has_an_example_and_says_what_it_takes() -> None:
    functions = {name for name in probes.__all__ if inspect.isfunction(getattr(probes, name))}
    assert functions == EXAMPLES.keys()
    assert all("Args:" in doc and "Raises:" in doc for doc in EXAMPLES.values())


def test_a_renamed_copy_works_beside_a_user_s_own_probes(tmp_path: Path) -> None:
    shutil.copytree(FOLDER, tmp_path / "my_probes", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "probes.py").write_text("OWN = True")
    (tmp_path / "script.py").write_text(USERS_SCRIPT)
    command = [sys.executable, str(tmp_path / "script.py")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["total", "shortcut", "branch", "other", "2"], done.stderr
