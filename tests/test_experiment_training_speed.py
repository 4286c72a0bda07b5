"""The experiment on training speed: a run at toy size."""

from pathlib import Path

import pandas as pd
import pytest

from tests.scripts import print_of, run
from tests.support.drawings import pick

ARMS, SEEDS, NETWORKS = ("residual", "plain"), (0, 1, 2), ("resnet", "inception")


@pytest.mark.slow
def test_a_run_at_toy_size_resumes(tmp_path: Path) -> None:
    arguments = ["--seeds", 0, 1, 2, "--epochs", 2, "--width", 2, "--train-limit", 256, "--losses", 100, 1e-9]
    done = run("training_speed", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "results" / "training_speed"
    outcomes, losses, steps = (pd.read_csv(folder / f"{name}.csv") for name in ("outcomes", "losses", "steps"))
    assert len(losses) == 2 * 3 * 3 * 4  # networks, arms, seeds, steps
    assert set(losses["network"]) == {"resnet", "inception"}
    assert len(steps) == 2 * 3 * 3 * 2  # targets
    assert (pick(steps, target=100)["value"] == 2).all()  # of 256 images two batches, at once
    assert pick(steps, target=1e-9)["value"].isna().all()
    assert "0 of 3" in done.stdout
    compared = pd.read_csv(folder / "comparisons.csv")
    assert set(compared[compared["outcome"] == "steps ratio"]["target"]) == {100}
    accuracy = outcomes.query("split == 'test' and quantity == 'accuracy'")
    wide = accuracy.pivot(index=["network", "seed"], columns="arm", values="value")
    change = pick(compared, outcome="test error", arm="plain", quantity="mean").set_index("network")["value"]
    wanted = (wide["residual"] - wide["plain"]).groupby("network").mean()
    pd.testing.assert_series_equal(change.sort_index(), wanted.sort_index(), check_names=False)
    drawn = pd.read_csv(folder / "figures" / "training_speed.csv")
    first = losses.query("network == 'resnet' and arm == 'plain' and seed == 1").set_index("step")["value"]
    at_2 = drawn.query("network == 'resnet' and arm == 'plain' and seed == 1 and step == 2")["value"].item()
    assert at_2 == pytest.approx(first[[1, 2]].mean())
    assert {file.suffix for file in (folder / "figures").glob("training_speed.*")} == {".csv", ".pdf", ".png"}
    again = run("training_speed", *arguments, cwd=tmp_path)
    assert "18 of 18 cells are already done" in again.stderr
    assert again.stdout == done.stdout


@pytest.mark.slow
def test_a_run_in_which_all_diverges_says_so(tmp_path: Path) -> None:
    arguments = ["--networks", "resnet", "--arms", "residual", "--depth", 8, "--seeds", 0, "--epochs", 2, "--width", 2]
    done = run("training_speed", *arguments, "--learning-rate", 1e30, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Every cell diverged" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--depth", "26"], "--depth 26: depth 26 is not 12n + 8, as inception blocks need: the nearest are 20 and 32"),
        (["--networks", "resnet", "vgg"], "--networks: unknown 'vgg'; choose from resnet, "),
        (["--networks", "resnet", "resnet"], "--networks: got resnet resnet; give one or more, each once"),
        (["--arms", "plain"], "--arms plain: add residual, which the others are compared with"),
        (["--losses", "0.3", "-1"], "--losses 0.3 -1: give positive numbers"),
        (["--losses"], "--losses: got none; give one or more"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    shown = print_of("training_speed", arguments, capsys, status=2)
    assert shown.startswith("error: ")
    assert message in shown


def test_the_networks_are_the_only_choice_of_networks(capsys: pytest.CaptureFixture[str]) -> None:
    shown = print_of("training_speed", ["--help"], capsys, status=0)
    assert "--networks " in shown
    assert "--network " not in shown
