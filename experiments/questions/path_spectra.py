"""Spectra of path lengths: exact and sampled, the band that holds most of each, how fast the norms of paths fall."""

import math

import numpy as np
import pandas as pd

from probes import Recording, path_contributions, sample_paths

HOLDS = 0.95
VEIT = "Veit et al. (2016) report 5 to 17 of 54 for a trained network with pre-activation blocks"


def spectra(recording: Recording, *, samples: int, seed: int = 0) -> dict[str, pd.DataFrame]:
    """Three tables: `paths`, the exact spectrum; `sampled`, that of single paths, with their `cancellation` (norm of
    the sum over the sum of norms); `bands`, the summary of the two."""
    exact, sampled = path_contributions(recording), sample_paths(recording, samples=samples, seed=seed)
    norms, masses = column(exact, "norm"), column(sampled, "mass")
    cancelled = (norms / masses.where(masses > 0)).reset_index().assign(quantity="cancellation")
    sampled = pd.concat([sampled, cancelled[list(sampled.columns)]], ignore_index=True)
    return {"paths": exact, "sampled": sampled, "bands": bands(exact, sampled)}


def column(table: pd.DataFrame, quantity: str) -> "pd.Series[float]":
    """One quantity of a probe's table, by path length."""
    rows = table[table["quantity"] == quantity]
    return rows.set_index("path_length")["value"].sort_index()


def bands(exact: pd.DataFrame, sampled: pd.DataFrame) -> pd.DataFrame:
    """quantity, value: `mass_low` and `mass_high`, the central lengths that hold 95 % of the sampled mass; `norm_low`
    and `norm_high`, of the norms of the exact sums; `slope` and `fit` of the single paths' mean norms (see `fall`)."""
    found: dict[str, float] = {}
    for name, weights in (("mass", column(sampled, "mass")), ("norm", column(exact, "norm"))):
        found[f"{name}_low"], found[f"{name}_high"] = central_band(weights)
    found["slope"], found["fit"] = fall(column(sampled, "path_norm"))
    return pd.DataFrame({"quantity": name, "value": value} for name, value in found.items())


def central_band(weights: "pd.Series[float]") -> tuple[float, float]:
    """From the 2.5 % to the 97.5 % quantile of the path lengths, each weighted; nan where all weights are 0.

    The lengths below the band hold less than 2.5 % of the weight, those above at most 2.5 %.
    """
    if not weights.max() > 0:
        return math.nan, math.nan
    scaled = weights / weights.max()  # sums of the largest masses stay in range
    up_to = scaled.cumsum() / scaled.sum()
    ends = [(1 - HOLDS) / 2, (1 + HOLDS) / 2]
    low, high = (up_to.index[int(np.searchsorted(up_to.to_numpy(), end))] for end in ends)
    return float(low), float(high)


def fall(path_norms: "pd.Series[float]") -> tuple[float, float]:
    """The slope of the line through log10 of the norms, per branch, and its R²: -1 is a tenth with each branch.

    Least squares over all lengths whose norm is not 0; nan for fewer than three of them.
    """
    norms = path_norms[path_norms > 0]
    if len(norms) < 3:
        return math.nan, math.nan
    length, height = norms.index.to_numpy(dtype=float), np.log10(norms.to_numpy())
    slope = np.polyfit(length, height, 1)[0]
    return float(slope), float(np.corrcoef(length, height)[0, 1] ** 2)


def format_band(bands: pd.DataFrame, name: str) -> str:
    """`5.3 to 12.7`, the means of both ends; `27 alone` where all ends are one length, `-` where there is none.

    bands: a row for each seed, a column for each quantity of `bands`. name: "mass" or "norm".
    """
    low, high = bands[f"{name}_low"].dropna(), bands[f"{name}_high"].dropna()
    if low.empty:
        return "-"
    if low.min() == high.max():
        return f"{low.min():.0f} alone"
    return f"{low.mean():.3g} to {high.mean():.3g}"
