"""Rank correlations over networks: by hand, by scipy, and in worlds whose truth is known."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from experiments.engine.statistics.rank_correlation import held_out, rank_correlations, spearman


def numbers(table: pd.DataFrame, name: str) -> dict[str, float]:
    rows = table[table["measurement"] == name]
    return dict(zip(rows["quantity"], rows["value"], strict=True))


def test_spearman_is_scipy_s_with_ties_infinities_and_values_left_out() -> None:
    generator = np.random.default_rng(0)
    first, second = generator.integers(0, 5, 40).astype(float), generator.normal(size=40)
    assert spearman(first, second) == pytest.approx(stats.spearmanr(first, second).statistic, abs=1e-12)
    assert spearman(np.array([1, 2, 3, np.inf]), np.array([1.0, 2, 3, 4])) == 1
    some = np.where(np.arange(40) % 3 == 0, np.nan, first)
    kept = ~np.isnan(some)
    assert spearman(some, second) == pytest.approx(stats.spearmanr(first[kept], second[kept]).statistic, abs=1e-12)
    assert math.isnan(spearman(np.ones(9), np.arange(9.0)))
    assert math.isnan(spearman(np.arange(3.0), np.arange(3.0)))


def test_within_and_between_families_on_paper() -> None:
    """`between` orders families and, in each, networks the wrong way round; `within` the other way. Every family has a
    network of each of three sizes; of one size, `between` orders the four as the outcome does."""
    networks = pd.DataFrame(
        {
            "family": np.repeat(list("abcd"), 3),
            "size": np.tile(["8", "20", "56"], 4),
            "outcome": np.arange(12.0),
            "between": [2.0, 1, 0, 5, 4, 3, 8, 7, 6, 11, 10, 9],
            "within": [9.0, 10, 11, 6, 7, 8, 3, 4, 5, 0, 1, 2],
            "gaps": [np.nan, *range(1, 12)],
        }
    )
    found = rank_correlations(networks, ["between", "within", "gaps"], draws=200)
    assert numbers(found, "between")["between"] == pytest.approx(1)
    assert numbers(found, "between")["within"] == pytest.approx(-1)
    assert numbers(found, "within")["between"] == pytest.approx(-1)
    assert numbers(found, "within")["within"] == pytest.approx(1)
    assert numbers(found, "between")["same size"] == pytest.approx(1)
    assert numbers(found, "within")["same size"] == pytest.approx(-1)
    assert numbers(found, "gaps")["n"] == 11
    assert numbers(found, "gaps")["rho"] == pytest.approx(1)
    of = numbers(found, "between")
    assert of["low"] <= of["rho"] <= of["high"]
    assert of["rho"] == pytest.approx(stats.spearmanr(networks["between"], networks["outcome"]).statistic)


def test_families_that_are_alike_inside_widen_the_interval() -> None:
    """Twelve copies of each of eight networks say no more than the eight: the interval by families is wider, by about
    the root of twelve."""
    generator = np.random.default_rng(1)
    values, outcomes = generator.normal(size=(2, 8)) + generator.normal(size=8)
    networks = pd.DataFrame(
        {"family": np.repeat(np.arange(8), 12), "outcome": np.repeat(outcomes, 12), "copied": np.repeat(values, 12)}
    ).assign(size=8)
    of = numbers(rank_correlations(networks, ["copied"], draws=500), "copied")
    assert of["family high"] - of["family low"] > 2 * (of["high"] - of["low"])


def world(truth: float, seed: int = 0) -> pd.DataFrame:
    """Sixteen families of five networks; of twenty measurements the first correlates with the outcome, the others do
    only by chance."""
    generator = np.random.default_rng(seed)
    outcome = np.repeat(generator.normal(size=16), 5) + 0.1 * generator.normal(size=80)
    columns = {f"m{i}": np.repeat(generator.normal(size=16), 5) for i in range(1, 20)}
    noise = np.repeat(generator.normal(size=16), 5)
    first = truth * outcome + (1 - truth) * noise
    return pd.DataFrame({"family": np.repeat(np.arange(16), 5), "outcome": outcome, "m0": -first, **columns})


def test_what_predicts_is_found_on_half_and_holds_on_the_other() -> None:
    names = [f"m{i}" for i in range(20)]
    found = held_out(world(0.9), names, baselines=["m19"], splits=50)
    assert numbers(found.table, "m0")["chosen"] > 0.9
    assert numbers(found.table, "m0")["held out"] > 0.9
    assert found.best.mean() > 0.8
    assert (found.best.shape, found.baselines["m19"].shape) == ((100,), (100,))
    assert sum(numbers(found.table, name)["chosen"] for name in names) == pytest.approx(1)


def test_of_chance_alone_nothing_holds_on_the_other_half() -> None:
    """The best of twenty on its own half looks good there; over ten worlds its mean on the other half is near 0: eight
    families have a standard error of about 0.4, and ten worlds one of about 0.1."""
    names = [f"m{i}" for i in range(20)]
    best = [held_out(world(0.0, seed), names, splits=20, seed=seed).best.mean() for seed in range(10)]
    inside = [max(abs(spearman(w[n].to_numpy(), w["outcome"].to_numpy())) for n in names) for w in [world(0.0)]]
    assert abs(float(np.mean(best))) < 0.3
    assert inside[0] > 0.4
