"""The band that holds most of a spectrum and the fall of its norms, on spectra written down by hand."""

import math

import numpy as np
import pandas as pd
import pytest

from experiments.engine.spectra import bands, central_band, column, fall
from experiments.engine.spectra_ending import band, bands_sentence, sentence


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


def test_a_single_network_in_words() -> None:
    said = bands_sentence(bands(*tables(mass=[0, 1, 1, 0], norm=[0, 0, 1, 1])), 3, 10)
    assert "path lengths 0 to 3: 95 % of the sampled mass lies at 1 to 2 branches (10 paths a length)" in said
    assert "of the exact sums' norms at 2 to 3" in said
    assert "changes by -1.000 a branch (R² 1.00)" in said


def test_bands_in_words() -> None:
    wide = pd.DataFrame({"mass_low": [4.0, 5.0], "mass_high": [11.0, 12.0], "norm_low": [9.0] * 2, "norm_high": 9.0})
    assert band(wide, "mass") == "4.5 to 11.5"
    assert band(wide, "norm") == "9 alone"
    assert band(wide * np.nan, "norm") == "-"


def test_without_the_residual_arm_nothing_is_said() -> None:
    empty = pd.DataFrame({"depth_total": [8], "arm": ["plain"]})
    assert "the residual arm was left out" in sentence({"bands": empty}, 8, title="digits")
