"""How well a measurement orders networks: rank correlation with an outcome, over all, within and between families,
among networks of one size, and on families that did not choose it.

A table of networks has a row for each, the columns `family`, `size` and `outcome`, and a column for each measurement.
Networks in which a measurement has no value (nan) are left out of its correlations, and counted; ranks take infinite
values.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from probes.tables import table

FEWEST = 4
"""Networks that a correlation is taken of."""


def spearman(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's rank correlation of the pairs without nan; nan for fewer than FEWEST, or where one is constant."""
    known = ~(np.isnan(first) | np.isnan(second))
    return pearson(*(stats.rankdata(values[known]) for values in (first, second)))


def pearson(first: np.ndarray, second: np.ndarray) -> float:
    """nan where fewer than FEWEST pairs are given, or one is constant."""
    if len(first) < FEWEST or np.ptp(first) == 0 or np.ptp(second) == 0:
        return np.nan
    return float(np.corrcoef(first, second)[0, 1])


def rank_correlations(
    networks: pd.DataFrame, measurements: Sequence[str], *, draws: int = 2000, seed: int = 0
) -> pd.DataFrame:
    """Of each measurement: rho with the outcome over all networks, within families and between their means.

    Returns a long table, measurement, quantity, value, with

    - ``rho``; ``low``, ``high``: the 95 % percentile interval by drawing networks again;
    - ``family low``, ``family high``: the same by drawing whole families, which lets go of the pretence that networks
      of a family are independent;
    - ``within``: of the ranks of both among the networks of one family, with each family's mean taken off;
    - ``same size``: likewise among the networks of one size, which differ in family alone;
    - ``between``: of the families' mean ranks;
    - ``n``: networks with a value.
    """
    rows: list[dict[str, object]] = []
    generator = np.random.default_rng(seed)
    outcome = networks["outcome"].to_numpy(float)
    members = [np.flatnonzero(networks["family"] == family) for family in networks["family"].unique()]
    drawn = [generator.integers(0, len(networks), len(networks)) for _ in range(draws)]
    by_family = [
        np.concatenate([members[index] for index in generator.integers(0, len(members), len(members))])
        for _ in range(draws)
    ]
    for name in measurements:
        values = networks[name].to_numpy(float)
        known = ~np.isnan(values)
        numbers = {"rho": spearman(values, outcome)}
        for word, samples in (("", drawn), ("family ", by_family)):
            found = np.array([spearman(values[sample], outcome[sample]) for sample in samples])
            enough = np.isfinite(found).mean() > 0.5
            low, high = np.nanquantile(found, (0.025, 0.975)) if enough else (np.nan, np.nan)
            numbers |= {f"{word}low": float(low), f"{word}high": float(high)}
        ranks = pd.DataFrame(
            {
                "family": networks["family"].to_numpy()[known],
                "size": networks["size"].to_numpy()[known],
                "value": stats.rankdata(values[known]),
                "outcome": stats.rankdata(outcome[known]),
            }
        )
        numbers["between"] = spearman(*ranks.groupby("family")[["value", "outcome"]].mean().to_numpy().T)
        for word, group in (("within", "family"), ("same size", "size")):
            means = ranks.groupby(group)[["value", "outcome"]].transform("mean")
            numbers[word] = pearson(*(ranks[["value", "outcome"]] - means).to_numpy().T)
        numbers["n"] = float(known.sum())
        rows += [{"measurement": name, "quantity": quantity, "value": value} for quantity, value in numbers.items()]
    return table(rows)


@dataclass(frozen=True)
class HeldOut:
    """Measurements that were chosen on half of the families, on the other half."""

    table: pd.DataFrame
    """measurement, quantity, value. Quantities: `chosen` (in how many of the splits it was the best of its half) and
    `held out` (its mean rho there over all splits, with the sign that it had where it was chosen)."""
    best: np.ndarray
    """(splits,): rho on the other half of the best of each half, with the sign of the choosing half."""
    baselines: dict[str, np.ndarray]
    """(splits,) of each baseline, likewise."""


def held_out(
    networks: pd.DataFrame,
    measurements: Sequence[str],
    *,
    baselines: Sequence[str] = (),
    splits: int = 200,
    seed: int = 0,
) -> HeldOut:
    """Choose the measurement of largest |rho| on a random half of the families, and take its rho on the other half.

    Each split gives two choices, one for each half. A rho of the wrong sign on the other half counts against it.
    """
    generator = np.random.default_rng(seed)
    families = networks["family"].unique()
    every = list(dict.fromkeys([*measurements, *baselines]))
    signed: dict[str, list[float]] = {name: [] for name in every}
    chosen: dict[str, int] = dict.fromkeys(measurements, 0)
    best: list[float] = []
    for _ in range(splits):
        mixed = generator.permutation(families)
        first = networks["family"].isin(mixed[: len(mixed) // 2]).to_numpy()
        rhos = [
            {
                name: spearman(networks[name].to_numpy(float)[part], networks["outcome"].to_numpy(float)[part])
                for name in every
            }
            for part in (first, ~first)
        ]
        for here, there in (rhos, rhos[::-1]):
            of_other = {name: float(np.sign(here[name]) * there[name]) for name in every}
            for name in every:
                signed[name].append(of_other[name])
            known = [name for name in measurements if np.isfinite(here[name])]
            if known:
                winner = max(known, key=lambda name: abs(here[name]))
                chosen[winner] += 1
                best.append(of_other[winner])
    rows = [
        {"measurement": name, "quantity": quantity, "value": value}
        for name in every
        for quantity, value in (
            ("held out", float(np.nanmean(signed[name])) if np.isfinite(signed[name]).any() else np.nan),
            ("chosen", chosen.get(name, 0) / max(len(best), 1)),
        )
    ]
    return HeldOut(table(rows), np.array(best), {name: np.array(signed[name]) for name in baselines})
