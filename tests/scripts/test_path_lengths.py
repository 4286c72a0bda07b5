"""experiments/path_lengths.py at toy size: what it wrote, printed, and refuses."""

import sys
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from experiments.engine.command import run_script

TOY = ["--depths", 8, "--epochs", 2, "--early", 1, "--width", 2, "--train-limit", 256, "--samples", 4, "--workers", 1]
ARMS = ["--arms", "residual", "stop-gradient", "--seeds", 0, 1]


def run(*arguments: object) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["path_lengths", *map(str, arguments)])
        run_script("experiments.path_lengths")


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    run(*TOY, *ARMS, "--out", folder)
    return folder / "path_lengths"


def wide(file: Path) -> pd.DataFrame:
    keys = ["arm", "seed", "epoch"]
    return pd.read_csv(file).pivot_table(index=keys, columns=["quantity", "path_length"], values="value")


def test_tables_hold_three_moments_of_every_cell(toy: Path) -> None:
    exact, sampled = wide(toy / "paths.csv"), wide(toy / "sampled.csv")
    assert len(exact) == len(sampled) == 2 * 2 * 3  # arms, seeds, epochs 0, 1, 2
    assert sorted(set(exact.index.get_level_values("epoch"))) == [0, 1, 2]
    assert exact["share"].to_numpy().sum(1) == pytest.approx(1)
    assert {"path_norm", "mass", "samples"} <= set(sampled.columns.get_level_values("quantity"))
    assert sampled["samples"].to_numpy().tolist() == [[1, 3, 3, 1]] * 12  # four samples are all of three blocks' paths


def test_exact_and_sampled_agree_where_they_must(toy: Path) -> None:
    """One path, a length without choice, or all paths walked: float32 rounds at 1e-6 or so."""
    exact, sampled = wide(toy / "paths.csv")["norm"], wide(toy / "sampled.csv")
    np.testing.assert_allclose(exact[[0, 3]], sampled["mass"][[0, 3]], rtol=1e-4)
    assert (exact.to_numpy() <= sampled["mass"].to_numpy() * (1 + 1e-4)).all()
    alone = sampled["mass"].loc["stop-gradient"]
    assert (alone[[0, 1, 2]] == 0).to_numpy().all()
    assert (alone[3] > 0).all()
    cancellation = pd.read_csv(toy / "sampled.csv").query("quantity == 'cancellation' and arm == 'residual'")["value"]
    assert cancellation.between(0, 1 + 1e-4).all()
    assert cancellation.min() < 0.99


def test_each_seed_draws_paths_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    from experiments import path_lengths as script
    from experiments.engine.grid import Cell

    drawn = []

    def train_cell(cell: Cell, dataset: object, training: object, *, measure: partial[object]) -> None:
        drawn.append(measure.keywords["seed"])

    monkeypatch.setattr(script, "train_cell", train_cell)
    for seed in (0, 3):
        cell = Cell("path_lengths", "residual", 8, seed, {})
        script.run_cell(cell, dataset=None, training=None, probed={})  # type: ignore[arg-type]
    assert drawn == [0, 3]


def test_bands_lie_within_the_lengths(toy: Path) -> None:
    found = pd.read_csv(toy / "bands.csv").pivot_table(
        index=["arm", "seed", "epoch"], columns="quantity", values="value"
    )
    assert (found["mass_low"] <= found["mass_high"]).to_numpy().all()
    assert found[["mass_low", "norm_low"]].to_numpy().min() >= 0
    assert found[["mass_high", "norm_high"]].to_numpy().max() <= 3
    assert (found.loc["stop-gradient", ["mass_low", "mass_high", "norm_low", "norm_high"]] == 3).to_numpy().all()


def test_figures_lie_beside_their_tables(toy: Path) -> None:
    for name in ("path_lengths", "sampled_paths"):
        with Image.open(toy / "figures" / f"{name}.png") as image:
            assert min(image.size) > 300
        assert len(pd.read_csv(toy / "figures" / f"{name}.csv"))
        assert (toy / "figures" / f"{name}.pdf").exists()


def test_a_second_call_repeats_no_cell_and_ends_with_the_band(toy: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in toy.glob("cells/*/*")}
    run(*TOY, *ARMS, "--out", toy.parent)
    shown = " ".join(capfd.readouterr().out.split())
    assert {path: path.stat().st_mtime_ns for path in toy.glob("cells/*/*")} == before
    for text in ("sampled mass", "3 alone", "depth 8 (3 blocks), n = 2", "branches after epoch 2", "5 to 17 of 54"):
        assert text in shown
    run(*TOY, *ARMS, "--samples", 3, "--seeds", 0, "--arms", "residual", "--out", toy.parent)
    assert len(list(toy.glob("cells/*"))) == 5  # other samples are another cell


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--samples", 1], "--samples 1: give at least 2"),
        (["--early", 0], "--early 0: give at least 1"),
        (["--probe-size", 1], "--probe-size 1: give at least 2"),
        (["--depths", 9], "--depths 9: depth 9 is not 6n + 2"),
        (["--arms", "dense"], "unknown 'dense'"),
    ],
)
def test_a_users_mistake_is_one_line_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[object], message: str
) -> None:
    with pytest.raises(SystemExit) as end:
        run(*arguments, "--out", tmp_path / "new")
    shown = capsys.readouterr().err
    assert end.value.code == 2
    assert message in shown
    assert len(shown.splitlines()) == 1
    assert not (tmp_path / "new").exists()
