"""The main experiment at toy size, as a user runs it, and what it wrote."""

import errno
import json
import logging
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from experiments.engine.conditions import catalogue
from experiments.engine.running.cli import run_script
from models import ARMS, Flow
from tests.engine.training.test_data import CIFAR_JPEG, unpack_cifar
from tests.support.scripts import command, drawn, print_of, run, run_apart, toy_run

TOY = ["--depths", "8", "--seeds", "0", "1", "--epochs", "1", "--width", "2", "--train-limit", "256"]


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The main experiment's folder and what it printed, after one toy run in processes of its own."""
    folder = tmp_path_factory.mktemp("toy")
    done = run_apart("stopgrad_shortcut", *TOY, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "results" / "stopgrad_shortcut", done.stdout


@pytest.mark.parametrize(("arguments", "level"), [([], "INFO"), (["--log-level", "warning"], "WARNING")])
def test_the_log_level_is_set_for_a_run(monkeypatch: pytest.MonkeyPatch, arguments: list[str], level: str) -> None:
    levels = []
    logger = logging.getLogger("experiments")
    monkeypatch.setattr("experiments.stopgrad_shortcut.main", lambda settings: levels.append(logger.level))
    monkeypatch.setattr(sys, "argv", ["stopgrad_shortcut", *arguments])
    run_script("experiments.stopgrad_shortcut")
    assert [*map(logging.getLevelName, levels), logger.level] == [level, logging.INFO]


def test_tables_hold_every_run(toy: tuple[Path, str]) -> None:
    folder, _ = toy
    outcomes = pd.read_csv(folder / "outcomes.csv")
    assert set(outcomes["arm"]) == set(ARMS)
    assert len(outcomes) == 5 * 2 * 3 * 2  # arms, seeds, splits, loss and accuracy
    assert outcomes[outcomes["quantity"] == "accuracy"]["value"].between(0, 1).all()
    gradients = pd.read_csv(folder / "gradients.csv")
    assert len(gradients) == 5 * 2 * 2 * 3 * 4  # arms, seeds, epochs 0 and 1, blocks, parts
    assert (gradients[gradients["quantity"] == "other"]["value"] == 0).all()
    paths = pd.read_csv(folder / "paths.csv").pivot_table(
        index=["arm", "seed", "epoch"], columns=["quantity", "path_length"], values="value"
    )
    assert paths["share"].to_numpy().sum(1) == pytest.approx(1)
    norms = paths.loc[["stop-gradient", "plain"], "norm"].to_numpy()
    assert (norms[:, :3] == 0).all()
    assert (norms[:, 3] > 0).all()


def test_a_new_arm_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ARMS, "half", Flow(shortcut_gradient=0.5))
    few = ["--depths", "8", "--seeds", "0", "--epochs", "1", "--width", "2", "--train-limit", "256"]
    done = run("stopgrad_shortcut", "--quick", *few, "--arms", *ARMS, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "results" / "stopgrad_shortcut"
    for name in ("outcomes", "curves", "gradients", "magnitudes", "paths"):
        assert set(pd.read_csv(folder / f"{name}.csv")["arm"]) == set(ARMS)
    assert (folder / "effects.csv").is_file()
    assert len(list((folder / "figures").glob("*.pdf"))) == 7
    assert "half" in done.stdout
    assert runpy.run_path(catalogue.__file__)["UNMODIFIED_ARMS"] == catalogue.UNMODIFIED_ARMS


def test_arms_that_compute_the_same_function_begin_alike(toy: tuple[Path, str]) -> None:
    start = pd.read_csv(toy[0] / "magnitudes.csv").query("epoch == 0").set_index(["arm", "seed", "depth", "quantity"])
    value = start["value"]
    for arm in ("stop-gradient", "shortest-path"):
        assert (value[arm] == value["residual"]).all()
    pd.testing.assert_series_equal(value["gradient-only"], value["plain"])
    assert value["plain"].xs("ratio", level="quantity").isna().all()


def test_every_figure_lies_beside_its_table(toy: tuple[Path, str]) -> None:
    names = ("gradient_norms", "gradient_split", "interaction", "learning_curves", "path_lengths")
    assert drawn(toy[0]) == {*names, "accuracy_by_depth", "residual_magnitudes"}
    for name in drawn(toy[0]):
        with Image.open(toy[0] / "figures" / f"{name}.png") as image:
            assert min(image.size) > 300
        assert len(pd.read_csv(toy[0] / "figures" / f"{name}.csv"))


def test_the_ending_names_arms_effects_and_files(toy: tuple[Path, str]) -> None:
    folder, shown = toy
    files = ("outcomes.csv", "figures/interaction.{csv,pdf,png}")
    for text in (*ARMS, "interaction / gradient", "Decisions: digits 8x8, depth 8", "n = 2", *files):
        assert text in shown
    reports = [json.loads(path.read_text()) for path in folder.glob("runs/*/run.json")]
    assert len(reports) == 10
    assert {report["outcome"] for report in reports} == {"finished"}


def test_a_diverged_run_is_a_result_and_the_rest_goes_on(tmp_path: Path) -> None:
    arguments = [*TOY, "--arms", "residual", "--learning-rate", "1e30", "--epochs", "2", "--seeds", "0"]
    _, shown = toy_run("stopgrad_shortcut", *arguments, cwd=tmp_path)
    assert "Every run diverged" in shown
    (report,) = (tmp_path / "results" / "stopgrad_shortcut" / "runs").glob("*/run.json")
    assert json.loads(report.read_text())["outcome"].startswith("diverged at step ")
    assert pd.read_csv(report.with_name("gradients.csv"))["epoch"].tolist() == [0] * 12


def test_ctrl_c_keeps_the_finished_runs(tmp_path: Path) -> None:
    arguments = [*TOY, "--arms", "residual", "--seeds", *map(str, range(10))]
    process = subprocess.Popen(
        command("stopgrad_shortcut", *arguments),
        cwd=tmp_path,
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    runs = tmp_path / "results" / "stopgrad_shortcut" / "runs"
    deadline = time.monotonic() + 120
    while not list(runs.glob("*/run.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, shown = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in shown
    assert shown.splitlines()[-1] == "interrupted: finished runs are kept; run the same command again to resume"
    finished = [path.parent.name for path in runs.glob("*/run.json")]
    assert 0 < len(finished) < 10
    again = run("stopgrad_shortcut", *arguments, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert f"{len(finished)} of 10 runs are already finished" in again.stderr


@pytest.mark.skipif(not CIFAR_JPEG.exists(), reason=f"the CIFAR-10 JPEG archive is not at {CIFAR_JPEG}")
def test_real_colour_images_from_a_folder(tmp_path: Path) -> None:
    unpack_cifar(tmp_path / "cifar10-jpeg", per_class=20)
    arguments = ["--dataset", "folder", "--data-dir", tmp_path / "cifar10-jpeg", "--augment", "crop-flip"]
    arguments += ["--depths", 8, "--seeds", 0, "--epochs", 1, "--width", 2, "--batch-size", 64]
    folder, _ = toy_run("stopgrad_shortcut", *arguments, cwd=tmp_path)
    outcomes = pd.read_csv(folder / "outcomes.csv")
    assert set(outcomes["arm"]) == set(ARMS)
    assert np.isfinite(outcomes["value"]).all()
    assert len(list((folder / "figures").glob("*.png"))) == 7
    about = json.loads(next(folder.glob("runs/*/run.json")).read_text())["run"]["about"]
    assert (about["title"], about["augment"]) == ("cifar10-jpeg", "crop-flip")


def test_an_output_folder_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    shown = print_of("stopgrad_shortcut", ["--out", str(tmp_path / "file" / "results")], capsys, status=2)
    assert "cannot be written (Not a directory); choose another folder" in shown
    assert len(shown.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def main(settings: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("experiments.stopgrad_shortcut.main", main)
    assert print_of("stopgrad_shortcut", [], capsys, status=1) == (
        "error: No space left on device: finished runs are kept; make room, and run the same command again to resume\n"
    )
