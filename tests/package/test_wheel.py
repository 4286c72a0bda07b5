"""The wheel ships `probes` and, inside it, `figures`; it asks for torch and pandas, and works in a user's project."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from email.parser import Parser
from pathlib import Path
from zipfile import ZipFile

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]

USERS_SCRIPT = """
import sys
users_folder, target, site_packages = sys.argv[1:]
# Run with -I -S, no .pth file is read: the checkout's editable install cannot be found.
sys.path += [users_folder, target, site_packages]

import models, probes, probes.figures
assert models.__file__.startswith(users_folder), models.__file__
assert probes.__file__.startswith(target), probes.__file__
assert probes.figures.__file__.startswith(target), probes.figures.__file__

import torch
net = models.build()
with probes.record(net) as recording:
    net(torch.ones(2, 3)).sum().backward()
print(probes.__version__, *probes.gradient_norms(recording)["quantity"])
print(*[junction.name for junction in probes.find_junctions(net, torch.ones(2, 3))])
for name in ("experiments", "figures"):
    try:
        __import__(name)
    except ModuleNotFoundError:
        print("no", name)

import pandas
table = pandas.read_csv(users_folder + "/table.csv")
for file in probes.figures.save(probes.figures.accuracy_by_depth(table), table, users_folder + "/drawn", "accuracy"):
    print(file.suffix, file.stat().st_size > 0)
"""
USERS_MODELS = """
from torch import nn

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)
    def forward(self, x):
        return x + self.layer(x).tanh()

def build():
    return nn.Sequential(nn.Linear(3, 3), Block())
"""


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run([sys.executable, *map(str, command)], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tree = tmp_path_factory.mktemp("tree") / "project"
    shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(".*", "results", "dist", "_build", "__pycache__"))
    run("-m", "build", "--wheel", "--no-isolation", "--outdir", tree / "dist", tree, cwd=tree)
    (built,) = (tree / "dist").iterdir()
    return built


def test_the_wheel_holds_probes_and_figures_and_nothing_else(wheel: Path) -> None:
    shipped = {name for name in ZipFile(wheel).namelist() if ".dist-info/" not in name}
    sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / "probes").rglob("*.py")}
    sources |= {f"probes/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "figures").rglob("*.py")}
    assert shipped == sources | {"probes/py.typed", "probes/figures/page/page.html"}


def test_it_asks_for_torch_and_pandas_and_for_nothing_else_without_an_extra(wheel: Path) -> None:
    (name,) = [name for name in ZipFile(wheel).namelist() if name.endswith(".dist-info/METADATA")]
    metadata = Parser().parsestr(ZipFile(wheel).read(name).decode())
    wanted: dict[str, set[str]] = {}
    for extra in ("", "figures", "attribution", "vision"):
        asked = [Requirement(line) for line in metadata.get_all("Requires-Dist", [])]
        wanted[extra] = {one.name for one in asked if one.marker is None or one.marker.evaluate({"extra": extra})}
    core = {"torch", "pandas"}
    assert wanted[""] == core
    assert wanted["figures"] - core == {"matplotlib", "seaborn", "tueplots", "jinja2", "numpy"}
    assert (wanted["attribution"] - core, wanted["vision"] - core) == ({"captum"}, {"torchvision"})
    assert metadata["Version"] == VERSION


def test_it_changes_nothing_in_a_notebook_s_environment(wheel: Path, tmp_path: Path) -> None:
    """Beside torch, pandas and numpy as pip sees them it is the only package to install; pip may look nowhere else, and
    so finds nothing where pandas is missing."""
    theirs = tmp_path / "theirs"
    venv.create(theirs, with_pip=False)
    (site_packages,) = theirs.glob("lib/python*/site-packages")
    for name, version in (("torch", "2.11.0"), ("pandas", "2.2.3"), ("numpy", "2.1.3")):
        metadata = site_packages / f"{name}-{version}.dist-info" / "METADATA"
        metadata.parent.mkdir()
        metadata.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    plan = ("-m", "pip", "--python", theirs / "bin" / "python", "install", "--dry-run", "--no-index", wheel)
    assert f"Would install residual-probes-{VERSION}" in run(*plan, cwd=tmp_path).splitlines()
    shutil.rmtree(site_packages / "pandas-2.2.3.dist-info")
    with pytest.raises(AssertionError, match="No matching distribution found for pandas>="):
        run(*plan, cwd=tmp_path)


@pytest.mark.slow
def test_installed_it_works_beside_the_user_s_own_models(wheel: Path, tmp_path: Path) -> None:
    """`probes.figures` brings torch along, since importing it imports `probes` first; the figures themselves do not."""
    target, users_folder = tmp_path / "target", tmp_path / "theirs"
    ZipFile(wheel).extractall(target)
    (users_folder / "models").mkdir(parents=True)
    (users_folder / "models" / "__init__.py").write_text(USERS_MODELS)
    shutil.copy(ROOT / "figures" / "gallery" / "accuracy_by_depth.csv", users_folder / "table.csv")
    (tmp_path / "script.py").write_text(USERS_SCRIPT)
    paths = (users_folder, target, sysconfig.get_path("purelib"))
    printed = run("-I", "-S", tmp_path / "script.py", *paths, cwd=users_folder)
    assert printed.splitlines() == [
        f"{VERSION} total shortcut branch other",
        "1",
        *("no experiments", "no figures"),
        *(".pdf True", ".png True", ".csv True"),
    ]


@pytest.mark.slow
def test_the_command_of_the_installed_wheel_works_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    """Installed by pip with the extras for figures and vision into an environment of its own. The packages that it asks
    for are these ones: a path alone, in which no .pth file is read, so that the editable install is not found."""
    home, work = tmp_path / "environment", tmp_path / "work"
    venv.create(home, with_pip=False)
    (site_packages,) = home.glob("lib/python*/site-packages")
    (site_packages / "packages.pth").write_text(sysconfig.get_path("purelib") + "\n")
    wanted = f"{wheel}[figures,vision]"
    run("-m", "pip", "--python", home / "bin" / "python", "install", "--no-index", wanted, cwd=tmp_path)
    work.mkdir()

    def outside(*command: str) -> str:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        words = [home / "bin" / command[0], *command[1:]]
        done = subprocess.run(words, cwd=work, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    where = outside("python", "-c", "import probes, probes.figures.page as page; print(probes.__file__, page.__file__)")
    assert all(Path(file).is_relative_to(site_packages) for file in where.split())
    model = ("torchvision:resnet18", "--image-size", "32", "--batch-size", "2")
    printed = outside("residual-probes", *model, "--out", "out")
    assert printed == outside("python", "-m", "probes", *model, "--out", "out")
    assert "8 junctions: 5 identity, 3 projection; 0 other adds" in printed
    assert "data:image/png" in (work / "out" / "report.html").read_text()
    assert len(list((work / "out").glob("*.csv"))) == 7
    redrawn = outside("python", "-m", "probes.figures", "profiles", "out/figures/profiles.csv", "--out", "redrawn.pdf")
    assert redrawn.startswith("redrawn.pdf\n")
    assert (work / "redrawn.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.slow
def test_a_renamed_copy_runs_the_readme_s_snippet_beside_the_user_s_own_probes(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "probes", tmp_path / "my_probes", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "probes").mkdir()
    (tmp_path / "probes" / "__init__.py").write_text("raise ImportError('the probes of the user, not these')")
    snippets = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    (snippet,) = [snippet for snippet in snippets if "record(" in snippet]
    (tmp_path / "script.py").write_text(
        re.sub(r"\b(from|import) probes\b", r"\1 my_probes", snippet)
        + "\nimport sys, my_probes\nassert my_probes.record is record\nassert 'probes' not in sys.modules\n"
    )
    run("script.py", cwd=tmp_path)
