"""The wheel ships `probes` alone, and it works beside a `models` folder that is the user's own."""

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow

USERS_SCRIPT = """
import sys
users_folder, target, site_packages = sys.argv[1:]
# Run with -I -S, no .pth file is read: the checkout's editable install cannot be found.
sys.path += [users_folder, target, site_packages]

import models, probes
assert models.__file__.startswith(users_folder), models.__file__
assert probes.__file__.startswith(target), probes.__file__

import torch
net = models.build()
with probes.record(net) as recording:
    net(torch.ones(2, 3)).sum().backward()
print(*probes.gradient_norms(recording)["quantity"])
print(*[junction.name for junction in probes.find_junctions(net, torch.ones(2, 3))])
for name in ("experiments", "figures"):
    try:
        __import__(name)
    except ModuleNotFoundError:
        print("no", name)
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
    shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(".*", "results", "dist", "__pycache__"))
    run("-m", "build", "--wheel", "--no-isolation", "--outdir", tree / "dist", tree, cwd=tree)
    (built,) = (tree / "dist").iterdir()
    return built


def test_the_wheel_holds_probes_and_nothing_else(wheel: Path) -> None:
    names = ZipFile(wheel).namelist()
    folders = {name.partition("/")[0] for name in names}
    assert {folder for folder in folders if not folder.endswith(".dist-info")} == {"probes"}
    assert len(folders) == 2
    shipped = {name.partition("/")[2] for name in names if name.startswith("probes/")}
    present = [path for path in (ROOT / "probes").rglob("*") if path.suffix in (".py", ".typed")]
    assert shipped == {path.relative_to(ROOT / "probes").as_posix() for path in present}


def test_installed_it_works_beside_the_user_s_own_models(wheel: Path, tmp_path: Path) -> None:
    target, users_folder = tmp_path / "target", tmp_path / "theirs"
    run("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", target, wheel, cwd=tmp_path)
    (users_folder / "models").mkdir(parents=True)
    (users_folder / "models" / "__init__.py").write_text(USERS_MODELS)
    (tmp_path / "script.py").write_text(USERS_SCRIPT)
    paths = (users_folder, target, sysconfig.get_path("purelib"))
    printed = run("-I", "-S", tmp_path / "script.py", *paths, cwd=users_folder)
    assert printed.splitlines() == ["total shortcut branch other", "1", "no experiments", "no figures"]
