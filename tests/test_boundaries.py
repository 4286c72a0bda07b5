"""What an import brings along, in fresh processes: probes is a guest, figures redraw without torch."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
IMPORT_ALL = """
import importlib, pkgutil, sys
package = importlib.import_module(sys.argv[1])
for module in pkgutil.walk_packages(package.__path__, sys.argv[1] + "."):
    importlib.import_module(module.name)
print(*sys.modules)
"""


def brought_along(package: str) -> set[str]:
    """The top-level names that are loaded once a package and all modules in it are imported."""
    command = [sys.executable, "-c", IMPORT_ALL, package]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {name.partition(".")[0] for name in done.stdout.split()}


@pytest.mark.parametrize(
    ("package", "strangers"),
    [
        ("probes", {"models", "experiments", "figures", "torchvision", "captum", "matplotlib", "seaborn"}),
        ("models", {"experiments", "figures"}),
        ("figures", {"torch", "torchvision", "captum", "probes", "models", "experiments"}),
    ],
)
def test_a_package_does_not_bring_along(package: str, strangers: set[str]) -> None:
    assert brought_along(package) & strangers == set()


@pytest.mark.parametrize(("package", "needed"), [("probes", {"torch", "pandas"}), ("models", {"probes", "torch"})])
def test_the_check_sees_what_a_package_does_bring_along(package: str, needed: set[str]) -> None:
    assert needed <= brought_along(package)
