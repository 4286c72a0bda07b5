"""Path lengths: bands and falls of spectra written down by hand, and a run at toy size."""

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from experiments.engine.running.cli import run_script
from experiments.engine.running.run import Run
from experiments.engine.training.data import Data, Dataset, load
from experiments.engine.training.optimisation import Training
from experiments.path_lengths import Probing, Settings, train_probed
from experiments.questions.path_spectra import bands, central_band, column, fall, format_band
from tests.support.scripts import drawn, each_field_counts

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


def test_tables_hold_three_moments_of_every_run(toy: Path) -> None:
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


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return load(Data(train_limit=64))


def run_of(dataset: Dataset, probing: Probing, *, seed: int = 0) -> Run:
    settings = Settings(depths=(8,), seeds=(seed,), width=2, probing=probing, training=Training(epochs=3))
    outputs = ("paths", "sampled", "bands")
    (made,) = settings.runs("toy", dataset, arms=("residual",), depths=(8,), outputs=outputs, treatment=probing)
    return made


def test_every_field_of_the_probing_changes_the_run_and_what_it_measures_alone(dataset: Dataset) -> None:
    trained = set[str]()

    def measure(run: Run) -> str:
        tables = train_probed(run, dataset=dataset).tables
        trained.add(tables["outcomes"].to_csv())
        return tables["sampled"].to_csv()

    made = run_of(dataset, Probing(early=1, samples=2, probe_size=4))
    each_field_counts(made, measure, {"early": 2, "samples": 3, "probe_size": 5})
    assert len(trained) == 1


def test_each_seed_draws_paths_of_its_own(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []

    def spectra(recording: object, *, samples: int, seed: int) -> dict[str, Any]:
        seeds.append(seed)
        return {}

    monkeypatch.setattr("experiments.path_lengths.spectra", spectra)
    for seed in (0, 3):
        train_probed(run_of(dataset, Probing(), seed=seed), dataset=dataset)
    assert seeds == [0, 0, 0, 3, 3, 3]


def test_bands_lie_within_the_lengths(toy: Path) -> None:
    rows = pd.read_csv(toy / "bands.csv")
    found = rows.pivot_table(index=["arm", "seed", "epoch"], columns="quantity", values="value")
    assert (found["mass_low"] <= found["mass_high"]).to_numpy().all()
    assert found[["mass_low", "norm_low"]].to_numpy().min() >= 0
    assert found[["mass_high", "norm_high"]].to_numpy().max() <= 3
    assert (found.loc["stop-gradient", ["mass_low", "mass_high", "norm_low", "norm_high"]] == 3).to_numpy().all()


def test_figures_lie_beside_their_tables(toy: Path) -> None:
    assert drawn(toy) == {"path_lengths", "sampled_paths"}
    assert all(len(pd.read_csv(toy / "figures" / f"{name}.csv")) for name in drawn(toy))


def test_bands_are_shown_and_other_samples_are_another_run(toy: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run(*TOY, *ARMS, "--samples", 3, "--seeds", 0, "--arms", "residual", "--out", toy.parent)
    shown = " ".join(capfd.readouterr().out.split())
    for text in ("sampled mass", "residual epoch 0", "epoch 2", "at depth 8", "3 blocks, 3 paths", "5 to 17 of 54"):
        assert text in shown
    assert len(list(toy.glob("runs/*"))) == 5


def series(*values: float) -> "pd.Series[float]":
    return pd.Series(values, index=range(len(values)), dtype=float)


@pytest.mark.parametrize(
    ("weights", "wanted"),
    [
        ([1, 1, 1, 1], (0, 3)),
        ([0, 0, 5, 0], (2, 2)),  # a single path
        ([0.02, 0.48, 0.48, 0.02], (1, 2)),  # 2 % on either side are left out
        ([0.03, 0.94, 0.03], (0, 2)),
        ([1e300, 1e300, 1e300], (0, 2)),  # their sum is no number
        ([1e-310, 0, 1e-310], (0, 2)),
    ],
)
def test_the_central_band(weights: list[float], wanted: tuple[int, int]) -> None:
    assert central_band(series(*weights)) == wanted


def test_the_band_holds_95_percent_of_a_binomial() -> None:
    """Of the paths of 54 blocks themselves, 95 % have 20 to 34 branches."""
    paths = series(*(math.comb(54, k) for k in range(55)))
    assert central_band(paths) == (20, 34)
    assert paths.loc[20:34].sum() / paths.sum() >= 0.95 > paths.loc[21:34].sum() / paths.sum()


def test_nothing_has_no_band() -> None:
    assert all(math.isnan(end) for end in central_band(series(0, 0)))
    assert all(math.isnan(end) for end in central_band(series(math.nan, 0)))


def test_an_exponential_fall_is_found_and_fits() -> None:
    assert fall(series(*(3 * 10 ** (-0.25 * k) for k in range(20)))) == pytest.approx((-0.25, 1))
    assert fall(series(0, 1, 10, 0, 1000)) == pytest.approx((1, 1))  # zeros are no points
    slope, fit = fall(series(1, 10, 1, 10, 1))
    assert slope == pytest.approx(0)
    assert fit == pytest.approx(0)
    assert all(math.isnan(value) for value in fall(series(1, 0, 2)))


def tables(mass: list[float], norm: list[float]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """An exact and a sampled table of paths of as many lengths."""
    exact = [{"path_length": k, "quantity": "norm", "value": value} for k, value in enumerate(norm)]
    sampled = [{"path_length": k, "quantity": "mass", "value": value} for k, value in enumerate(mass)]
    sampled += [{"path_length": k, "quantity": "path_norm", "value": 10.0**-k} for k in range(len(mass))]
    return pd.DataFrame(exact), pd.DataFrame(sampled)


def test_two_bands_of_two_quantities() -> None:
    exact, sampled = tables(mass=[0, 1, 1, 0], norm=[0, 0, 1, 1])
    found = bands(exact, sampled).set_index("quantity")["value"]
    assert found[["mass_low", "mass_high", "norm_low", "norm_high"]].tolist() == [1, 2, 2, 3]
    assert found[["slope", "fit"]].tolist() == pytest.approx([-1, 1])
    assert column(sampled, "mass").tolist() == [0, 1, 1, 0]


def test_bands_as_text() -> None:
    wide = pd.DataFrame({"mass_low": [4.0, 5.0], "mass_high": [11.0, 12.0], "norm_low": [9.0] * 2, "norm_high": 9.0})
    assert format_band(wide, "mass") == "4.5 to 11.5"
    assert format_band(wide, "norm") == "9 alone"
    assert format_band(wide * np.nan, "norm") == "-"
