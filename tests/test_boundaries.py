"""What may import what: computed from the import statements of the tree, and in fresh processes from what they load.

Every check runs on the project, and on a small tree made up to fail it.
"""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("benchmarks", "experiments", "figures", "models", "probes")
ENGINE = "experiments.engine"
RUNNING, TRAINING, CONDITIONS, STATISTICS, REPORTING = ROOMS = tuple(
    f"{ENGINE}.{room}" for room in ("running", "training", "conditions", "statistics", "reporting")
)
MAY_IMPORT = {
    "probes": set[str](),
    "figures": set[str](),
    "models": {"probes"},
    RUNNING: {"probes"},  # the columns of tables
    TRAINING: {"models", "probes", RUNNING},
    CONDITIONS: {"models", "probes", RUNNING, TRAINING, STATISTICS},
    STATISTICS: {"probes"},  # the columns of tables
    REPORTING: {"figures", RUNNING, STATISTICS},
    "experiments": {"figures", "models", "probes", *ROOMS},  # the scripts, and what belongs to one of them
    "benchmarks": {"experiments", "models", "probes", *ROOMS},
}
MOST_FILES = 24
NOT_OURS = {"build", "dist", "results"}
Arrows = Mapping[str, set[str]]


def modules(root: Path) -> dict[str, Path]:
    """Every module of the top-level folders, by its name; a package is named after its folder."""
    found = {}
    for folder in FOLDERS:
        for path in (root / folder).rglob("*.py"):
            parts = path.relative_to(root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def named_in(name: str, path: Path) -> Iterator[str]:
    """What the import statements of a module name, also those inside functions and under `TYPE_CHECKING`."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: 1 - node.level or None] if node.level else []
            source = [*parents, *([node.module] if node.module else [])]
            yield from (".".join([*source, alias.name]) for alias in node.names)


def imports(root: Path) -> Arrows:
    """The modules of the tree that each of them imports: of `from package import name` the module `package.name`, or
    the package where there is none."""
    known = modules(root)
    arrows = {name: set[str]() for name in known}
    for name, path in known.items():
        for target in named_in(name, path):
            while target and target not in known:
                target = target.rpartition(".")[0]
            if target:
                arrows[name].add(target)
    return arrows


def circle(arrows: Arrows) -> list[str]:
    """Modules each of which imports the next, the last one being the first; none is found in a tree without circles."""
    try:
        TopologicalSorter(arrows).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def wrong_arrows(arrows: Arrows) -> list[str]:
    """The imports from one area into another that `MAY_IMPORT` does not know."""

    def area(module: str) -> str:
        return max((area for area in MAY_IMPORT if f"{module}.".startswith(f"{area}.")), key=len)

    return [
        f"{module} -> {target}"
        for module, targets in arrows.items()
        for target in targets
        if area(target) not in {area(module), *MAY_IMPORT[area(module)]}
    ]


def full_folders(root: Path) -> list[str]:
    """The folders that hold more Python files than one can look over."""
    found = []
    for folder, inner, files in os.walk(root):
        inner[:] = [name for name in inner if not name.startswith(".") and name not in NOT_OURS]
        if sum(name.endswith(".py") for name in files) > MOST_FILES:
            found.append(Path(folder).relative_to(root).as_posix())
    return found


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A small tree in which nothing is wrong: a file in every area, and an import along each arrow."""
    for area, targets in MAY_IMPORT.items():
        folder = tmp_path.joinpath(*area.split("."))
        folder.mkdir(parents=True, exist_ok=True)
        lines = [f"from {target}.file import thing" for target in sorted(targets)]
        (folder / "file.py").write_text("\n".join([*lines, "import torch", "thing = 1", ""]))
    return tmp_path


def test_no_module_imports_itself_by_way_of_others() -> None:
    arrows = imports(ROOT)
    assert sum(map(len, arrows.values())) > 100
    assert circle(arrows) == []


@pytest.mark.parametrize(
    "back",
    [
        "from probes.file import thing",
        "import probes.file",
        "from ..file import thing",
        "def later():\n    from probes import file",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .. import file",
    ],
)
def test_a_circle_would_be_found(tree: Path, back: str) -> None:
    (tree / "probes" / "room").mkdir()
    (tree / "probes" / "room" / "other.py").write_text(back)
    assert circle(imports(tree)) == []
    (tree / "probes" / "file.py").write_text("from probes.room.other import thing")
    assert set(circle(imports(tree))) == {"probes.file", "probes.room.other"}


def test_folders_and_rooms_import_only_what_they_may() -> None:
    assert wrong_arrows(imports(ROOT)) == []


@pytest.mark.parametrize(
    ("module", "target"),
    [
        ("probes.file", "models.file"),
        ("figures.file", "probes.file"),
        ("models.file", "experiments.file"),
        (f"{RUNNING}.file", f"{TRAINING}.file"),
        (f"{RUNNING}.file", "models.file"),
        (f"{TRAINING}.file", f"{CONDITIONS}.file"),
        (f"{CONDITIONS}.file", f"{REPORTING}.file"),
        (f"{CONDITIONS}.file", "figures.file"),
        (f"{STATISTICS}.file", f"{RUNNING}.file"),
        (f"{REPORTING}.file", f"{TRAINING}.file"),
        (f"{REPORTING}.file", "experiments.file"),
        ("experiments.file", "benchmarks.file"),
    ],
)
def test_a_wrong_arrow_would_be_found(tree: Path, module: str, target: str) -> None:
    assert wrong_arrows(imports(tree)) == []
    path = modules(tree)[module]
    path.write_text(f"def later():\n    from {target} import thing\n" + path.read_text())
    assert wrong_arrows(imports(tree)) == [f"{module} -> {target}"]


def test_the_engine_is_its_rooms() -> None:
    """A room that is missing has no wrong arrows, nor has a file that stands beside the rooms."""
    inside = [name.split(".") for name in modules(ROOT) if name.startswith(f"{ENGINE}.")]
    assert {".".join(path[:3]) for path in inside} == set(ROOMS)


def test_no_folder_is_full() -> None:
    assert full_folders(ROOT) == []


def test_a_full_folder_would_be_found(tmp_path: Path) -> None:
    for folder in ("tests/engine", ".hidden", "results"):
        (tmp_path / folder).mkdir(parents=True)
        for index in range(MOST_FILES):
            (tmp_path / folder / f"{index}.py").touch()
    assert full_folders(tmp_path) == []
    (tmp_path / "tests" / "engine" / "one_more.py").touch()
    (tmp_path / ".hidden" / "one_more.py").touch()
    assert full_folders(tmp_path) == ["tests/engine"]


IMPORT_ALL = """
import importlib, pkgutil, sys
for name in sys.argv[2:]:
    importlib.import_module(name)
before = set(sys.modules)
package = importlib.import_module(sys.argv[1])
for module in pkgutil.walk_packages(package.__path__, sys.argv[1] + "."):
    importlib.import_module(module.name)
print(*sys.modules.keys() - before)
"""


def brought_along(package: str, *before: str, root: Path = ROOT) -> set[str]:
    """The top-level names, but those of the standard library, that a fresh process loads with a package and all
    modules in it once `before` are imported."""
    command = [sys.executable, "-c", IMPORT_ALL, package, *before]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {name.partition(".")[0] for name in done.stdout.split()} - sys.stdlib_module_names


def test_probes_import_torch_and_pandas_alone() -> None:
    assert brought_along("probes", "torch", "pandas") == {"probes"}


def test_a_further_import_would_be_found(tree: Path) -> None:
    (tree / "probes" / "__init__.py").touch()
    (tree / "probes" / "file.py").write_text("import torch, pandas, rich")
    assert brought_along("probes", "torch", "pandas", root=tree) == {"probes", "rich"}


def test_figures_redraw_without_torch() -> None:
    loaded = brought_along("figures")
    assert loaded >= {"figures", "pandas", "matplotlib"}
    assert loaded & {"torch", "torchvision", "captum", *FOLDERS} == {"figures"}
