"""What every script in experiments/ shows and does: help, dry runs, mistakes, a second call."""

import ast
import re
import runpy
import shlex
import sys
from dataclasses import fields
from importlib import import_module
from pathlib import Path

import pandas as pd
import pytest

from experiments.engine.reporting import show
from experiments.engine.reporting.page import command_of
from experiments.engine.running.cli import parse, run_script
from models import ARMS, Flow
from tests.support.conditions import short_search
from tests.support.pages import cells, read
from tests.support.scripts import ROOT, file_of, print_of, run, toy_run

SCRIPTS = sorted(path.stem for path in (ROOT / "experiments").glob("*.py") if path.stem != "__init__")
NO_GRID = {"probe_model"}
TOY_APART = {"answer"}  # the least of its plan takes minutes: test_answer has a smaller one
SHORT = "--seeds 0 --epochs 1 --train-limit 256"
NETWORK = f"{SHORT} --width 2"
CONDITIONS = f"{NETWORK} --tuning-seeds 100 --depths 8"
TOY = {  # the least that every script with a grid can be asked
    "alignment": f"{CONDITIONS} --arms stop-gradient --further 1",
    "budget": f"{CONDITIONS} --budgets 1 2",
    "degradation": f"{NETWORK} --depths 8 14",
    "dose_and_timing": f"{CONDITIONS} --conditions|weight 0.5",
    "ensemble": f"{NETWORK} --depths 8 14",
    "explanations": f"{NETWORK} --tuning-seeds 100 --depths 8 14 --wide-depth None --families plain",
    "forward_statistics": f"{NETWORK} --tuning-seeds 100 --depth 8 --networks resnet",
    "identity_mapping": f"{NETWORK} --blocks 1 --rates 0.1",
    "inserted_identities": f"{NETWORK} --depth 8 --deeper 14",
    "layer_use": f"{NETWORK} --depth 8 --arms residual plain --attributed 4 --steps 2",
    "learning_rates": CONDITIONS,
    "lesions": f"{NETWORK} --depth 14 --arms residual --counts 1 --draws 1",
    "magnitude_or_direction": f"{CONDITIONS} --conditions|stop-gradient, true norms",
    "path_lengths": f"{NETWORK} --depths 8 --arms residual --samples 2 --probe-size 4",
    "robustness": f"{SHORT} --tuning-seeds 100 --most-layers 8 --rows|learning rate 0.1 for all",
    "short_paths": f"{NETWORK} --depth 8 --at-most 0",
    "stopgrad_shortcut": f"{NETWORK} --depths 8",
    "training_speed": f"{NETWORK} --depth 20 --networks resnet --arms residual plain",
    "transformer": "--seeds 0 --epochs 1 --layers 1 --width 4 --heads 2 --context 8 --characters 1000 --rates 0.01 "
    "--arms residual --longer-arms residual",
    "variants": f"{NETWORK} --depth 8 --networks resnet dirac",
}
NOT_WEIGHTS = f"--depth 8 --width 2 --weights {__file__}"
NEW_ARMS = {"half": Flow(shortcut_gradient=0.5), "uneven": Flow(shortcut=0.5, shortcut_gradient=1.0)}
REPORTED = "that seed is reported; choose learning rates on others"
MISTAKES = {
    "alignment": {
        "--arms plain": "--arms plain: its gradient is the true one; give some of stop-gradient, gradient-only",
        "--arms near-identity": "--arms near-identity: its gradient is the true one; give some of stop-gradient",
        "--further 0": "--further 0: give at least 1",
        "--depths 9": "--depths 9: depth 9 is not 6n + 2",
    },
    "answer": {
        "--depths 20 56": "--depths 20 56: the plan has one depth",
        "--depths 21": "--depths 21: depth 21 is not 6n + 2",
        "--depths 8": "'paths of at least 4' on resnet: no path has 4 branches: the network has 3 blocks; give other",
        "--depths 14 --parts 1 7": "--parts 7: the plan has 1 to 6",
        "--depths 14 --parts 1 1": "--parts: got 1 1; give one or more, each once",
        "--parts 4": "nothing to train: give --parts (4 with --cifar10 DIR), or --tables DIR to report alone",
        "--parts 1 --tables .": "--tables .: has no replicates.csv; give a folder that this script wrote",
        "--depths 14 --cifar10 nowhere": "--cifar10 nowhere: there is no such folder",
        "--depths 14 --cifar10 .": "--cifar10 .: found no train/ beside test/ or val/",
        "--depths 14 --cifar10-depth 9": "--cifar10-depth 9: depth 9 is not 6n + 2",
        "--depths 14 --cifar10-width 3": "--cifar10-depth 32: projection A pads channels equally on both sides",
        "--depths 14 --network dirac": "'residual, near-identity' on dirac: first_weights 'near-identity': dirac",
        "--tuning-seeds 1000": f"--tuning-seeds 1000: {REPORTED}",
    },
    "budget": {
        "--budgets 0 1": "--budgets 0: give whole numbers from 1",
        "--budgets 3 3": "--budgets: got 3 3; give one or more, each once",
        "--targets 0.1 -1": "--targets -1: give losses above 0",
        "--targets 0": "--targets 0: give losses above 0",
        "--targets": "--targets: got none; give one or more, each once",
    },
    "degradation": {"--depths 8 9": "--depths 9: depth 9 is not 6n + 2", "--arms": "--arms: got none"},
    "dose_and_timing": {
        "--conditions|weight 0.2": "--conditions: unknown 'weight 0.2'; choose from residual, stop-gradient,",
        "--epochs 4 --conditions|until epoch 5": "unknown 'until epoch 5'; choose from",
        "--tuning-seeds 0": f"--tuning-seeds 0: {REPORTED}",
    },
    "ensemble": {"--depths 8": "--depths 8: an ensemble has two members or more", "--arm dense": "unknown 'dense'"},
    "forward_statistics": {
        "--networks vgg": "--networks: unknown 'vgg'; choose from resnet",
        "--networks resnet resnet": "--networks: got resnet resnet; give one or more, each once",
        "--depth -300": "--depth -300: depth -300 is not 6n + 2",
    },
    "identity_mapping": {
        "--network bottleneck": "--network: unknown 'bottleneck'; choose from resnet, skipinit",
        "--blocks 0 1": "--blocks 0: give at least 1",
        "--rates 0": "--rates 0.0: give finite numbers above 0",
        "--rates 0.1 0.1": "--rates: got 0.1 0.1; give one or more, each once",
    },
    "inserted_identities": {
        "--network bottleneck": "--network: unknown 'bottleneck'; choose from resnet, skipinit",
        "--deeper 8": "--deeper 8: give more layers than --depth, 8",
        "--deeper 21": "--deeper 21: depth 21 is not 6n + 2",
    },
    "explanations": {
        "--families dense": "--families: unknown 'dense'; choose from residual, stop-gradient",
        "--wide 8": "--wide 8: give another than --width, or no --wide-depth",
        "--families plain --depths 8 --wide-depth None": "2 networks: a rank correlation needs 4; give more --families",
        "--depths 9": "--depths 9: depth 9 is not 6n + 2",
    },
    "layer_use": {
        "--depth 21": "--depth 21: depth 21 is not 6n",
        "--arms residual dense": "unknown 'dense'; choose from residual",
        "--attributed 0": "--attributed 0",
        "--steps 0": "--steps 0",
    },
    "learning_rates": {
        "--depths 9": "--depths 9: depth 9 is not 6n + 2",
        "--tuning-seeds 100 4": f"--tuning-seeds 4: {REPORTED}",
        "--tuning-seeds": "--tuning-seeds: got none; give one or more, each once",
    },
    "lesions": {"--draws 0": "--draws 0", "--weights nowhere.pt": "--weights nowhere.pt: No such file"},
    "magnitude_or_direction": {
        "--conditions dropout": "--conditions: unknown 'dropout'; choose from residual, stop-gradient, gr",
        "--conditions plain plain": "--conditions: got plain plain; give one or more, each once",
        "--seeds 100": f"--tuning-seeds 100: {REPORTED}",
    },
    "path_lengths": {
        "--samples 1": "--samples 1: give at least 2",
        "--early 0": "--early 0: give at least 1",
        "--probe-size 1": "--probe-size 1: give at least 2",
    },
    "probe_model": {
        "--model resnet18": "give torchvision:NAME, timm:NAME, hf:TYPE, cifar_resnet:DEPTH or FILE.py:FUNCTION",
        "--samples 1": "--samples 1: give at least 2, or 0 for none",
        "--model torchvision:vgg11": "--model torchvision:vgg11: none of the model's 0 adds is a residual junction",
        "--batch-size 0": "--batch-size 0: give at least 1",
        "--model absent.py:network": "there is no such file",
    },
    "robustness": {
        "--rows|depth 21": "--rows: unknown 'depth 21'; choose from width 16, depth 20,",
        "--rows AdamW AdamW": "--rows: got AdamW AdamW; give one or more, each once",
        "--most-layers 7": "--most-layers 7: give at least 8",
        "--width 16": "--width: each row has its own; choose among them with --rows",
        "--schedule step": "--schedule: each row has its own; choose among them with --rows",
        "--seeds 2100": f"--tuning-seeds 2100: {REPORTED}",
    },
    "short_paths": {
        "--at-most": "--at-most: got none; give one or more",
        "--at-most 1 1": "--at-most: got 1 1; give one or more, each once",
        "--depth 8 --at-most 2 -1": "--at-most -1: give numbers from 0; from 3 on, nothing is limited",
        "--depth 8 --exactly 4": "--exactly 4: depth 8 has 3 blocks; give 0 to 3",
        "--depth 8 --at-least 0": "--at-least 0: depth 8 has 3 blocks; give 1 to 3",
        "--depth 8 --sampled 1 12": "--sampled 12: depth 8 has 3 blocks; give 0 to 3",
    },
    "stopgrad_shortcut": {
        "--arms residual dense": "unknown 'dense'; choose from residual, stop-gradient",
        "--arms near-identity --network fixup": "first_weights 'near-identity': fixup blocks begin with",
        "--arms plain plain": "--arms: got plain plain; give one or more, each once",
        "--dataset mnist": "unknown 'mnist'; choose from digits, cifar10",
        "--depths 21": "--depths 21: depth 21 is not 6n + 2, as basic blocks need: the nearest are 20 and 26",
        "--seeds": "--seeds: got none; give one or more",
        "--seeds -1": "give numbers from 0",
        "--seeds 99999999999": "give numbers from 0 to 4294967295",
        "--train-limit 1070": "--train-limit 1070: give 10 (one a class) to 1067 images",
        "--device meta": "--device meta: not available here",
        "--device cuda:99": "--device cuda:99: not available here; this machine has cpu",
        "--width 7": "--width 7: give an even number from 2 to 65536",
        "--width 1000000000": "--width 1000000000: give an even number from 2 to 65536",
        "--workers 0": "--workers 0: give at least 1",
        "--epochs 0": "--epochs 0: give at least 1",
        "--momentum 1": "--momentum 1.0: give at least 0 and less than 1",
        "--data-dir .": "--data-dir means nothing to --dataset digits",
        "--dataset folder": "--dataset folder needs --data-dir",
        "--dataset folder --data-dir nowhere": "--data-dir nowhere: there is no such folder",
        "--dataset folder --data-dir .": "found no train/ beside test/ or val/",
        "--network densenet": "--network: unknown 'densenet'; choose from resnet, ",
        "--network imagenet": "an imagenet network begins with 64 channels, not 8: add --width 64",
        "--network imagenet --width 64": "imagenet_resnet has no depth 20: choose from 18",
        "--network bottleneck --depths 21": "--depths 21: depth 21 is not 9n + 2, as bottleneck blocks",
        "--network mlp --depths 2": "--depths 2: depth 2 leaves no block",
    },
    "training_speed": {
        "--arms plain": "--arms plain: add residual, which the others are compared with",
        "--networks resnet dirac --arms residual near-identity": "first_weights 'near-identity': dirac blocks",
        "--losses 0": "--losses 0: give positive numbers",
        "--depth 21": "--depth 21: depth 21 is not 6n + 2",
    },
    "transformer": {
        "--arms dense": "--arms: unknown 'dense'; choose from residual, stop-gradient",
        "--heads 3": "--width 64: give a multiple of --heads, 3",
        "--rates 0": "--rates 0.0: give finite numbers above 0",
        "--learning-rate 0.2": "--learning-rate 0.2: give --rates instead; one alone is taken untried",
        "--layers 0": "--layers 0: give at least 1",
        "--layers 3": "--layers 3: only-last-4 needs more; leave that arm out (--arms)",
        "--tuning-seeds 40": f"--tuning-seeds 40: {REPORTED}",
        "--budgets 0": "--budgets 0: give at least 1",
        "--longer-rates 0.1 0.1": "--longer-rates: got 0.1 0.1; give one or more, each once",
        "--text nowhere.txt": "--text nowhere.txt: there is no such file",
        "--characters 1000": "pydoc_data.topics has 1000 characters: sequences of 64 need 1300",
    },
    "variants": {
        "--networks vgg": "--networks: unknown 'vgg'; choose from resnet",
        "--depth 0": "--depth 0: give at least 1",
    },
}


def arguments(flags: str) -> list[str]:
    """Flags as a shell would split them; what follows a | is one argument."""
    words, _, last = flags.partition("|")
    return words.split() + ([last] if last else [])


def test_no_script_or_folder_hides_a_module() -> None:
    taken = {path.name for path in ROOT.iterdir() if path.is_dir()} | sys.stdlib_module_names
    folders = {path.name for path in (ROOT / "experiments").iterdir() if path.is_dir()}
    assert SCRIPTS
    assert not ({*SCRIPTS, *folders} & taken)
    assert not set(SCRIPTS) & folders
    assert set(TOY) == set(SCRIPTS) - NO_GRID - TOY_APART
    assert set(MISTAKES) == set(SCRIPTS)


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_reads_like_documentation(script: str, capsys: pytest.CaptureFixture[str]) -> None:
    shown = print_of(script, ["--help"], capsys, status=0)
    question = str(ast.get_docstring(ast.parse(Path(file_of(script)).read_text()))).split("\n\n")[0]
    assert question.endswith("?")
    assert " ".join(question.split()) in " ".join(shown.split("options")[0].split())
    for flag in ("device", "out", "quick"):
        assert f"--{flag} " in shown
    assert not ("--network " in shown and "--networks " in shown)  # one network or several


@pytest.mark.parametrize("script", [*TOY, *TOY_APART])
def test_a_dry_run_prints_the_runs_and_writes_nothing(
    script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [script, "--quick", "--dry-run"])
    run_script(f"experiments.{script}")
    lines = capsys.readouterr().out.splitlines()
    (summary,) = (index for index, line in enumerate(lines) if " runs to do; their duration is unknown" in line)
    assert summary > 0
    assert all(line.startswith("to do ") for line in lines[:summary])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("script", [*TOY, *TOY_APART])
def test_a_new_arm_is_in_no_scripts_way(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for arm, flow in NEW_ARMS.items():
        monkeypatch.setitem(ARMS, arm, flow)
    runpy.run_path(file_of(script), run_name="fresh")["QUICK"].check()


@pytest.mark.parametrize("script", sorted(set(TOY) - {"alignment"}))
def test_every_script_with_arms_trains_the_one_that_begins_near_the_identity(script: str, tmp_path: Path) -> None:
    """`alignment` refuses it, as it does plain: its gradient is the true one."""
    names = {field.name for field in fields(import_module(f"experiments.{script}").Settings)}
    flag = next((name for name in ("arm", "arms") if name in names), None)
    if flag is None:
        pytest.skip("has no flag for arms")
    arms = ["near-identity"] if flag == "arm" else ["residual", "plain", "near-identity"]
    networks = ["--networks", "resnet"] if "networks" in names else []
    done = run(script, "--quick", "--dry-run", *networks, f"--{flag}", *arms, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "to do near-identity-depth" in done.stdout


@pytest.mark.parametrize(
    ("script", "flags"), [(script, flags) for script, mistakes in MISTAKES.items() for flags in mistakes]
)
def test_a_users_mistake_is_one_line_and_writes_nothing(
    script: str, flags: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shown = print_of(script, arguments(flags), capsys, status=2)
    assert shown.startswith("error: ")
    assert MISTAKES[script][flags] in shown
    assert len(shown.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_file_that_holds_no_weights_is_named(tmp_path: Path) -> None:
    """Only when it is loaded, by a run."""
    done = run("lesions", *arguments(NOT_WEIGHTS), cwd=tmp_path)
    assert (done.returncode, done.stderr.count("error: --weights")) == (2, 1)
    assert "is no state dict, or holds more than one" in done.stderr


@pytest.mark.parametrize("script", ["ensemble", "inserted_identities", "layer_use", "training_speed"])
def test_where_every_run_diverged_that_is_said(script: str, tmp_path: Path) -> None:
    flags = arguments(f"{TOY[script]} --epochs 2 --learning-rate 1e30")
    folder, shown = toy_run(script, *flags, cwd=tmp_path)
    assert ("Of every seed a network diverged" if script == "ensemble" else "Every run diverged: there") in shown
    assert not {"insertion.csv", "errors.csv", "figures"} & {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("script", TOY)
def test_a_second_call_repeats_no_run_and_prints_the_same(
    script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And its page, which is the same, too, has the question, an answer, and the decisions' numbers."""
    monkeypatch.setattr(show, "save_figure", lambda *_: None)  # drawing takes longer than all the rest
    files, shown, pages, log = [], [], [], ""
    with short_search():
        for _ in range(2):
            done = run(script, *arguments(TOY[script].replace("--", "--out results --", 1)), cwd=tmp_path)
            assert done.returncode == 0, done.stderr
            shown.append(done.stdout)
            log = done.stderr
            pages.append((tmp_path / "results" / script / "report.html").read_text())
            files.append({path: path.stat().st_mtime_ns for path in tmp_path.glob("results/*/runs/*/*")})
    assert shown[0] == shown[1]
    assert files[0] == files[1]
    assert files[0]
    assert "are already finished" in log
    assert re.sub("[^,;>]* summed", "", pages[0]) == re.sub("[^,;>]* summed", "", pages[1])
    page = read(tmp_path / "results" / script / "report.html")
    question = str(import_module(f"experiments.{script}").__doc__).split("\n\n")[0]
    assert page.one("h1").text == " ".join(question.split())
    assert len(page.one("p", class_="answer").text) > 20
    if (decisions := tmp_path / "results" / script / "decisions.csv").exists():
        csv = pd.read_csv(decisions, dtype=str, keep_default_na=False)
        tables = [table for table in page.all("figure", class_="table") if "decisions.csv" in table.text]
        shown_cells = [cell for table in tables for row in cells(table.one("table")) for cell in row]
        wanted = [cell for row in csv.drop(columns=["where", "table"]).to_numpy().tolist() for cell in row]
        assert [cell for cell in shown_cells if cell] == [cell for cell in wanted if cell]


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_command_on_the_page_gives_the_same_settings(script: str) -> None:
    module = import_module(f"experiments.{script}")
    own = {"answer": "--parts 1 3", "probe_model": "--model hf:gpt2 --train"}
    for flags in ("", "--quick", TOY.get(script, own.get(script, "")), "--quick --device cuda"):
        settings = parse(module, arguments(flags))
        python, file, *given = shlex.split(command_of(settings))
        assert (python, file) == ("python", f"experiments/{script}.py")
        assert parse(module, given) == settings
    assert command_of(parse(module, [])) == f"python experiments/{script}.py"
