"""The main experiment at toy size, as a user runs it, and what it wrote."""

import errno
import io
import json
import logging
import os
import runpy
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from rich.console import Console

from experiments.engine.conditions import catalogue
from experiments.engine.running.cli import run_script
from experiments.engine.training.data import Data, Dataset, load
from experiments.engine.training.settings import arm_names
from experiments.engine.training.train_run import make_network
from experiments.stopgrad_shortcut import Settings, gaps_closed, show_gaps
from models import ARMS, Flow, residual_blocks
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


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return load(Data())


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
    assert set(outcomes["arm"]) == {*ARMS, "near-identity"}
    assert len(outcomes) == 6 * 2 * 3 * 2  # arms, seeds, splits, loss and accuracy
    assert outcomes[outcomes["quantity"] == "accuracy"]["value"].between(0, 1).all()
    gradients = pd.read_csv(folder / "gradients.csv")
    assert len(gradients) == 6 * 2 * 2 * 3 * 4  # arms, seeds, epochs 0 and 1, blocks, parts
    assert (gradients[gradients["quantity"] == "other"]["value"] == 0).all()
    paths = pd.read_csv(folder / "paths.csv").pivot_table(
        index=["arm", "seed", "epoch"], columns=["quantity", "path_length"], values="value"
    )
    assert paths["share"].to_numpy().sum(1) == pytest.approx(1)
    norms = paths.loc[["stop-gradient", "plain", "near-identity"], "norm"].to_numpy()
    assert (norms[:, :3] == 0).all()
    assert (norms[:, 3] > 0).all()


def test_the_sixth_arm_is_named_by_its_first_weights_in_every_table(toy: tuple[Path, str]) -> None:
    folder, _ = toy
    for name in ("outcomes", "curves", "losses", "gradients", "magnitudes", "paths"):
        found = pd.read_csv(folder / f"{name}.csv")
        assert (found["first_weights"] == found["arm"].map({"near-identity": "near-identity"}).fillna("he")).all()
    for path in folder.glob("runs/*/run.json"):
        recipe = json.loads(path.read_text())["run"]["recipe"]
        assert recipe["first_weights"] == ("near-identity" if path.parent.name.startswith("near-identity") else "he")


def test_only_first_weights_of_branches_set_the_sixth_arm_apart(dataset: Dataset) -> None:
    """The five others begin alike; it has plain's flow, and its weights but for those in branches."""
    made = Settings(width=2).runs("toy", dataset, arms=arm_names(), depths=(8,), seeds=(0,))
    models = {run.arm: make_network(run, dataset) for run in made}
    assert list(models) == [*ARMS, "near-identity"]
    plain, near = models["plain"].state_dict(), models["near-identity"].state_dict()
    assert all(torch.equal(plain[key], model.state_dict()[key]) for key in plain for model in list(models.values())[:5])
    changed = {key for key in plain if not torch.equal(plain[key], near[key])}
    assert changed == {key for key in plain if ".branch.conv" in key}
    assert {block.flow for block in residual_blocks(models["near-identity"])} == {ARMS["plain"]}
    recipes = {run.arm: run.recipe for run in made}
    assert replace(recipes["near-identity"], first_weights="he") == recipes["plain"]
    given = Settings(width=2, first_weights=0.5).runs("toy", dataset, arms=arm_names(), depths=(8,), seeds=(0,))
    assert [run.recipe.first_weights for run in given] == [0.5] * 5 + ["near-identity"]


def made_up(accuracies: dict[str, list[float]], depth: int = 20) -> pd.DataFrame:
    """Outcomes of the runs of each arm, by seed."""
    rows = [
        {"depth_total": depth, "seed": seed, "arm": arm, "test accuracy": value}
        for arm, values in accuracies.items()
        for seed, value in enumerate(values)
    ]
    return pd.DataFrame(rows)


def said(runs: pd.DataFrame) -> str:
    """What is printed of the sixth arm, on one line."""
    console = Console(file=io.StringIO(), width=1000)
    show_gaps(console, runs, gaps_closed(runs, Settings(depths=(20,))), title="digits")
    return " ".join(console.file.getvalue().split())  # type: ignore[attr-defined]


def test_the_gap_that_the_sixth_arm_closes_on_paper() -> None:
    """0.6 of 0.8 in each seed, and no more of the factorial than of the arms that it lacks."""
    arms = {"plain": [0.1, 0.12, 0.14], "near-identity": [0.7, 0.72, 0.74], "residual": [0.9, 0.92, 0.94]}
    shown = said(made_up(arms | {"stop-gradient": [0.5] * 3}))
    assert "digits, depth 20, n = 3: mean test accuracy plain 0.120, near-identity 0.720, residual 0.920." in shown
    assert "begins near the identity closes 0.75 [0.75, 0.75] of the gap between plain and residual" in shown
    assert "95 % Fieller interval, paired by seed" in shown
    assert "The factorial alone cannot see this" in shown
    assert "One learning rate for all" in shown


@pytest.mark.parametrize(
    ("plain", "seeds", "why"),
    [([0.1, 0.2, 0.3], 2, "fewer than three seeds"), ([0.89, 0.93, 0.92], 3, "no degradation to explain")],
)
def test_where_no_part_of_a_gap_can_be_named_that_is_said(plain: list[float], seeds: int, why: str) -> None:
    arms = {"plain": plain, "near-identity": [0.7, 0.72, 0.74], "residual": [0.9, 0.92, 0.94]}
    shown = said(made_up({arm: values[:seeds] for arm, values in arms.items()}))
    assert f"n = {seeds}: mean test accuracy" in shown
    assert f"No part of a gap can be named: {why}." in shown
    assert "closes" not in shown


def test_seeds_that_lack_one_of_the_three_are_left_out() -> None:
    arms = {"plain": [0.1, 0.12, 0.14, 0.5], "near-identity": [0.7, 0.72, 0.74], "residual": [0.9, 0.92, 0.94, 0.9]}
    assert "n = 3: mean test accuracy plain 0.120" in said(made_up(arms))
    runs = made_up({"plain": [0.1], "residual": [0.9]})
    assert gaps_closed(runs, Settings(depths=(20,))) == {}
    assert gaps_closed(made_up(arms), Settings(depths=(8,))) == {}


def test_what_the_sixth_arm_closes_is_written_beside_the_effects(toy: tuple[Path, str]) -> None:
    folder, shown = toy
    scores = pd.read_csv(folder / "scores.csv")
    assert set(scores["arm"]) == {"near-identity"}
    assert scores["quantity"].tolist() == ["R", "R low", "R high", "gap", "gap low", "gap high", "n"]
    outcomes = pd.read_csv(folder / "outcomes.csv").query("split == 'test' and quantity == 'accuracy'")
    means = outcomes.groupby("arm")["value"].mean()
    assert scores.set_index("quantity")["value"]["gap"] == pytest.approx(means["residual"] - means["plain"])
    assert f"near-identity {means['near-identity']:.3f}" in " ".join(shown.split())


@pytest.mark.slow
def test_a_network_that_cannot_begin_near_the_identity_goes_without_the_sixth_arm(tmp_path: Path) -> None:
    arguments = [*TOY, "--seeds", "0", "--network", "skipinit"]
    done = run("stopgrad_shortcut", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    reason = "first_weights 'near-identity': skipinit blocks begin with weights of their own; leave it out"
    assert f"the arm near-identity is left out: {reason}" in done.stderr
    folder = tmp_path / "results" / "stopgrad_shortcut"
    assert set(pd.read_csv(folder / "outcomes.csv")["arm"]) == set(ARMS)
    assert not (folder / "scores.csv").exists()
    assert "near-identity" not in done.stdout


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
    files = ("outcomes.csv", "figures/interaction.{csv,pdf,png,txt}")
    for text in (
        *ARMS,
        "near-identity",
        "fewer than three seeds",
        "interaction / gradient",
        "Decisions: digits 8x8, depth 8",
        "n = 2",
        *files,
    ):
        assert text in shown
    reports = [json.loads(path.read_text()) for path in folder.glob("runs/*/run.json")]
    assert len(reports) == 12
    assert {report["outcome"] for report in reports} == {"finished"}


def test_a_diverged_run_is_a_result_and_the_rest_goes_on(tmp_path: Path) -> None:
    arguments = [*TOY, "--arms", "residual", "--learning-rate", "1e30", "--epochs", "2", "--seeds", "0"]
    _, shown = toy_run("stopgrad_shortcut", *arguments, cwd=tmp_path)
    assert "Every run diverged" in shown
    (report,) = (tmp_path / "results" / "stopgrad_shortcut" / "runs").glob("*/run.json")
    assert json.loads(report.read_text())["outcome"].startswith("diverged at step ")
    assert pd.read_csv(report.with_name("gradients.csv"))["epoch"].tolist() == [0] * 12


@pytest.mark.slow
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
@pytest.mark.slow
def test_real_colour_images_from_a_folder(tmp_path: Path) -> None:
    unpack_cifar(tmp_path / "cifar10-jpeg", per_class=20)
    arguments = ["--dataset", "folder", "--data-dir", tmp_path / "cifar10-jpeg", "--augment", "crop-flip"]
    arguments += ["--depths", 8, "--seeds", 0, "--epochs", 1, "--width", 2, "--batch-size", 64]
    folder, _ = toy_run("stopgrad_shortcut", *arguments, cwd=tmp_path)
    outcomes = pd.read_csv(folder / "outcomes.csv")
    assert set(outcomes["arm"]) == {*ARMS, "near-identity"}
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
