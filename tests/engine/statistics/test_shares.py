"""Shares: on paper, against root finding, a bootstrap's exact variance, simulated coverage and false readings."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from scipy import optimize, stats

from experiments.engine.statistics import shares as module
from experiments.engine.statistics.shares import (
    ALPHA,
    MOST,
    NO_GAP_IN_FAMILY,
    NOT_FINITE,
    READINGS,
    RIGHT,
    SMALL,
    TOO_FEW,
    Means,
    Ratios,
    Readings,
    Share,
    ShareEstimate,
    bootstrap,
    condition_means,
    fieller,
    meets_power,
    p_value,
    power,
    ratios,
    read,
    read_shares,
    seed_correlation,
    share_table,
)

GAP = {"residual": 1.0, "plain": -1.0}
CONDITIONING = Share("conditioning", {**GAP, "residual, C": -1, "plain, C": 1}, GAP)
VALUE = Share("value", {"size kept, C": 1, "plain, C": -1}, GAP)
PATHS = Share("short paths", {"at most 3": 1, "at least 4": -1}, GAP)
FAMILY = (CONDITIONING, VALUE, PATHS)
TRUE = {
    "residual": 0.8, "plain": 0.4, "residual, C": 0.8, "plain, C": 0.7, "size kept, C": 0.74, "at most 3": 0.6,
    "at least 4": 0.6,
}  # fmt: skip
"""Shares of 0.75, 0.1 and 0."""
SEEDS = {name: 8 if index % 2 else 10 for index, name in enumerate(TRUE)}


def answers(generator: np.random.Generator, images: int = 200, spread: float = 0.15) -> dict[str, np.ndarray]:
    """Whether each run is right on each image: of probability TRUE + seed + image + image of this condition, uniform,
    and in [0, 1] without a cut, so that TRUE are the means exactly."""
    common = generator.uniform(-0.04, 0.04, images)
    found = {}
    for name, mean in TRUE.items():
        image = common + generator.uniform(-0.01, 0.01, images)
        seed = generator.uniform(-spread, spread, (SEEDS[name], 1))
        found[name] = generator.random((SEEDS[name], images)) < mean + seed + image
    return found


def numbers(generator: np.random.Generator, sd: float = 0.02) -> dict[str, np.ndarray]:
    return {name: generator.normal(mean, sd, SEEDS[name]) for name, mean in TRUE.items()}


def by_name(outcomes: Mapping[str, np.ndarray], family: tuple[Share, ...] = FAMILY) -> dict[str, ShareEstimate]:
    return {found.name: found for found in read_shares(condition_means(outcomes), family)}


def ends(found: ShareEstimate) -> tuple[float, ...]:
    return found.value, found.se, found.low, found.high, found.family_low, found.family_high, found.p, found.df


def test_one_condition_that_varies_is_a_t_interval_on_paper() -> None:
    """Only the numerator's condition varies: mean 2, s² = 1, n = 3 over a gap of 4: 0.5 ± 4.303 / (4 sqrt 3)."""
    share = Share("share", {"arm": 1, "plain": -1}, GAP)
    found = by_name({"residual": np.full(5, 4.0), "plain": np.zeros(5), "arm": np.array([1.0, 2, 3])}, (share,))[
        "share"
    ]
    half = stats.t.ppf(0.975, 2) / (4 * np.sqrt(3))
    # the same few operations in another order: some eps
    assert ends(found)[:4] == pytest.approx((0.5, 1 / (4 * np.sqrt(3)), 0.5 - half, 0.5 + half), rel=1e-13)
    assert found.df == pytest.approx(2)
    assert found.p == pytest.approx(2 * stats.t.sf(0.4 * 4 * np.sqrt(3), 2))
    assert (found.gap, found.gap_low, found.gap_high) == (4, 4, 4)
    assert (found.level, found.reading) == (0.95, "undecided")


def test_a_denominator_that_varies_alone_is_the_reciprocal_of_its_interval() -> None:
    share = Share("share", {"arm": 1, "other": -1}, GAP)
    residual = np.array([3.0, 4, 5, 4])
    alike = {"plain": np.zeros(3), "arm": np.full(3, 2.0), "other": np.zeros(3)}
    found = by_name({"residual": residual, **alike}, (share,))["share"]
    half = stats.t.ppf(0.975, 3) * stats.sem(residual)
    assert (found.low, found.high) == pytest.approx((2 / (4 + half), 2 / (4 - half)), rel=1e-12)


def test_no_variance_at_all_is_a_point() -> None:
    found = by_name({name: np.full(3, mean) for name, mean in TRUE.items()})
    assert ends(found["conditioning"])[:4] == pytest.approx((0.75, 0, 0.75, 0.75), abs=1e-12)
    assert [share.reading for share in found.values()][::2] == ["explains most", "negligible"]


def test_the_covariance_is_that_of_seeds_and_of_images_by_hand() -> None:
    """Two shares of two conditions in common, each variance written out."""
    outcomes = answers(np.random.default_rng(1))
    found = ratios(condition_means(outcomes), FAMILY)
    per_image = {name: array.mean(0) for name, array in outcomes.items()}
    seeds = {name: np.var(array.mean(1), ddof=1) / len(array) for name, array in outcomes.items()}
    top = per_image["size kept, C"] - per_image["plain, C"]
    bottom = per_image["residual"] - per_image["plain"]
    images = np.cov(top, bottom) / 200
    above, both, below = (array[1] for array in found.covariance())
    assert above == pytest.approx(seeds["size kept, C"] + seeds["plain, C"] + images[0, 0], rel=1e-10)
    assert below == pytest.approx(seeds["residual"] + seeds["plain"] + images[1, 1], rel=1e-10)
    assert both == pytest.approx(images[0, 1], abs=1e-10 * below)  # no condition in common
    welch = below**2 / (seeds["residual"] ** 2 / 9 + seeds["plain"] ** 2 / 7 + images[1, 1] ** 2 / 199)
    assert found.df(of_gap=True)[1] == pytest.approx(welch, rel=1e-10)
    # conditioning has the gap in its numerator, too
    closed = per_image["residual, C"] - per_image["plain, C"]
    shared = seeds["residual"] + seeds["plain"] + np.cov(bottom - closed, bottom)[0, 1] / 200
    assert found.covariance()[1][0] == pytest.approx(shared, rel=1e-10)


@pytest.mark.parametrize("level", [0.8, 0.95, 1 - 0.05 / 3])
@pytest.mark.parametrize("kind", ["answers", "numbers"])
def test_fieller_ends_are_where_the_t_statistic_is_the_quantile(level: float, kind: str) -> None:
    generator = np.random.default_rng(2)
    found = ratios(condition_means(answers(generator) if kind == "answers" else numbers(generator)), FAMILY)
    above, both, below = found.covariance()
    for index, (low, high) in enumerate(zip(*fieller(found, level), strict=True)):
        quantile = stats.t.ppf((1 + level) / 2, found.df()[index])

        def excess(share: float, k: int = index, t: float = float(quantile)) -> float:
            error = np.sqrt(above[k] - 2 * share * both[k] + share**2 * below[k])
            return abs(found.above[k] - share * found.below[k]) / error - t

        value = found.value[index]
        roots = [optimize.brentq(excess, value, value + side, xtol=1e-13) for side in (-3, 3)]
        assert (low, high) == pytest.approx(roots, abs=1e-9)  # brentq's xtol, and cancellation in its variance


def test_p_is_below_a_level_exactly_where_the_interval_leaves_out_the_small_share() -> None:
    generator = np.random.default_rng(3)
    for _ in range(300):
        found = ratios(condition_means(numbers(generator, 0.05)), FAMILY)
        low, high = fieller(found, 0.9)
        outside = (low > SMALL) | (high < SMALL)
        assert (outside == (p_value(found) < 0.1))[~np.isnan(low)].all()


@pytest.mark.parametrize("kind", ["answers", "numbers"])
def test_intervals_cover_what_they_promise(kind: str) -> None:
    """2,000 draws of a 95 % event: a standard error of 0.005; the range allows for Welch's approximation and for what
    is counted twice."""
    generator = np.random.default_rng(4)
    inside = []
    for _ in range(2000):
        outcomes = answers(generator) if kind == "answers" else numbers(generator, 0.03)
        low, high = fieller(ratios(condition_means(outcomes), FAMILY))
        inside.append((low <= [0.75, 0.1, 0]) & (high >= [0.75, 0.1, 0]))
    covered = np.mean(inside, axis=0)
    assert ((covered >= 0.93) & (covered <= 0.97)).all(), covered


def contrast_variance(outcomes: Mapping[str, np.ndarray], weights: Mapping[str, float]) -> float:
    """Of the two-way bootstrap's contrast, exactly: rows, columns, and what is left, each with divisors n and m."""
    columns = sum(weight * outcomes[name].mean(0) for name, weight in weights.items())
    variance = np.var(columns) / np.size(columns)
    for name, weight in weights.items():
        array = outcomes[name].astype(float)
        rows = array.mean(1)
        rest = array - rows[:, None] - array.mean(0) + array.mean()
        variance += weight**2 * (np.var(rows) / len(rows) + (rest**2).mean() / array.size)
    return float(variance)


def test_the_bootstrap_has_its_exact_variance_and_resembles_fieller() -> None:
    outcomes = answers(np.random.default_rng(5))
    share = Share("value", VALUE.above, {"right": 1, "wrong": -1})  # a denominator without variance
    fixed = {"right": np.ones((8, 200), bool), "wrong": np.zeros((8, 200), bool)}
    found = bootstrap(outcomes | fixed, share)
    # the standard deviation of 4,000 normal draws has a relative standard error of 1 / sqrt(8000) = 0.011
    assert found.se == pytest.approx(np.sqrt(contrast_variance(outcomes, VALUE.above)), rel=4 * 0.011)
    for ratio, analytic in by_name(outcomes).items():
        drawn = bootstrap(outcomes, next(share for share in FAMILY if share.name == ratio))
        assert drawn.value == pytest.approx(analytic.value)
        # (n - 1) / n of the seeds' variance, three times that of single answers and not twice
        assert drawn.se == pytest.approx(analytic.se, rel=0.12)
        assert (drawn.low, drawn.high) == pytest.approx((analytic.low, analytic.high), abs=0.7 * analytic.se)


def test_the_bootstrap_of_numbers_and_its_seed() -> None:
    outcomes = numbers(np.random.default_rng(6))
    first, again, other = (bootstrap(outcomes, VALUE, seed=seed) for seed in (0, 0, 1))
    assert first == again != other
    # sqrt(8 / 9) of the analytic error in the middle of n = 8 and 10, within 4 * 0.011
    assert first.se == pytest.approx(by_name(outcomes)["value"].se * np.sqrt(8 / 9), rel=0.06)


def known(values: list[float], errors: list[float], df: int = 10**6) -> Ratios:
    """Independent shares of these values and standard errors, of a gap of 1 that is known."""
    count = len(values)
    none = np.zeros((count, count))
    return Ratios(
        np.array(values), np.ones(count), np.diag(errors), none, none, none, np.full(count, df), 0, np.zeros(count)
    )


def test_levels_by_hand() -> None:
    """Of three shares two are final at 1 - 0.05 / 3, p < 0.0167; the last, with p = 0.03, is read at 95 %."""
    z = stats.norm.isf(0.03 / 2)
    found = known([0.9, 0.0, SMALL + 0.05 * z], [0.1, 0.03, 0.05])
    assert p_value(found)[2] == pytest.approx(0.03, rel=1e-4)  # a normal distribution for a million degrees of freedom
    result = read(found)
    assert result.reading.tolist() == ["explains most", "negligible", "contributes"]
    assert result.level == pytest.approx([1 - 0.05 / 3, 1 - 0.05 / 3, 0.95])
    assert result.low[2] == pytest.approx(SMALL + 0.05 * (z - stats.norm.isf(0.025)), rel=1e-4)
    # where only one is final, 0.05 / 2 is left, which 0.03 is not below; a share that contributes leaves nothing
    result = read(known([0.9, 0.3, SMALL + 0.05 * z], [0.1, 0.01, 0.05]))
    assert result.reading.tolist() == ["explains most", "contributes", "undecided"]
    assert result.level == pytest.approx([1 - 0.05 / 3, 0.975, 0.975])
    # none is final at 0.05 / 3: none is read at less
    result = read(known([SMALL + 0.05 * z] * 3, [0.05] * 3))
    assert result.reading.tolist() == ["undecided"] * 3
    assert result.level == pytest.approx([1 - 0.05 / 3] * 3)


def test_final_readings_are_freed_one_after_the_other() -> None:
    """Each p, 0.016, 0.024 and 0.049, is below 0.05 / k only when the one before it is final."""
    z = stats.norm.isf(np.array([0.016, 0.024, 0.049]) / 2)
    result = read(known((SMALL - 0.1 * z).tolist(), [0.1] * 3))
    assert result.reading.tolist() == ["negligible"] * 3
    assert result.level == pytest.approx([1 - 0.05 / 3, 0.975, 0.95])


def holm(found: Ratios) -> Readings:
    """Holm's procedure for share = SMALL alone, in which a share that contributes leaves its part to the others."""
    p = p_value(found)
    rank = p.argsort(-1).argsort(-1)
    level = 1 - ALPHA / (p.shape[-1] - rank)
    low, high = fieller(found, level)
    reading = module.words(found, low, high)
    decided = p < 1 - level
    after = np.take_along_axis(np.minimum.accumulate(np.take_along_axis(decided, p.argsort(-1), -1), -1), rank, -1)
    return Readings(np.where(after, reading, "undecided"), low, high, level)


def false_readings(reading: np.ndarray, truth: np.ndarray) -> np.ndarray:
    most, some, none = (reading == word for word in ("explains most", "contributes", "negligible"))
    return (most & (truth <= MOST)) | (some & (truth <= SMALL)) | (none & (truth >= SMALL))


WORLDS = {
    "all at 0.1": ([0.1, 0.1, 0.1], [0.05, 0.05, 0.05]),
    "all at 0.5": ([0.5, 0.5, 0.5], [0.02, 0.03, 0.05]),
    "two at 0.5, precise, and one at 0.1": ([0.5, 0.5, 0.1], [0.01, 0.02, 0.05]),
    "two at 0.5, precise, and one uncertain": ([0.5, 0.5, 0.3], [0.01, 0.02, 3]),
    "one of each": ([0.0, 0.1, 0.5], [0.01, 0.05, 0.05]),
    "just below and above": ([0.099, 0.101, 0.501], [0.05, 0.05, 0.05]),
    "none that is easy": ([0.05, 0.15, 0.6], [0.04, 0.1, 0.2]),
}


@pytest.mark.parametrize("common", [0.0, 0.05], ids=["independent", "denominator in common"])
@pytest.mark.parametrize("name", WORLDS)
def test_any_false_reading_has_probability_of_at_most_5_percent(name: str, common: float) -> None:
    """10,000 worlds of eight seeds: a standard error of 0.0022."""
    truth, errors = map(np.array, WORLDS[name])
    found = simulated(truth, errors, common)
    assert false_readings(read(found).reading, truth).any(-1).mean() < ALPHA + 4 * 0.0022


def test_holm_alone_would_have_more_false_readings() -> None:
    for name in ("two at 0.5, precise, and one at 0.1", "two at 0.5, precise, and one uncertain"):
        truth, errors = map(np.array, WORLDS[name])
        assert false_readings(holm(simulated(truth, errors, 0)).reading, truth).any(-1).mean() > 0.06


def simulated(truth: np.ndarray, errors: np.ndarray, common: float, worlds: int = 10_000, seeds: int = 8) -> Ratios:
    """Shares of these true values; their own numerators' standard errors, and that of the gap of 1 in common."""
    generator = np.random.default_rng(7)
    sds = np.sqrt(seeds) * np.array([*errors, common, 0])
    names = ("a", "b", "c", "residual", "plain")
    drawn = np.array([*truth, 1, 0])[:, None] + sds[:, None] * generator.standard_normal((worlds, len(names), seeds))
    family = [Share(name, {name: 1, "plain": -1}, GAP) for name in names[:3]]
    count = np.full(len(names), seeds)
    means = Means(names, drawn.mean(-1), drawn.var(-1, ddof=1), count, np.zeros((len(names),) * 2), 0)
    return ratios(means, family)


@pytest.mark.parametrize("kind", ["answers", "numbers"])
def test_power_of_the_rule(kind: str) -> None:
    generator = np.random.default_rng(8)
    precise = answers(generator, images=5000, spread=0.005) if kind == "answers" else numbers(generator, 0.005)
    found = power(condition_means(precise), FAMILY)
    assert list(found) == ["amount", "effect", "count", "reading", "quantity", "value"]
    assert len(found) == len(FAMILY) * len(RIGHT) * len(READINGS)
    assert set(found["count"]) == {2000}
    assert found.groupby(["effect", "amount"])["value"].sum().to_numpy() == pytest.approx(1)
    assert meets_power(found)
    assert meets_power(found, truths=list(RIGHT))
    assert found.equals(power(condition_means(precise), FAMILY))  # its own generator
    assert not meets_power(power(condition_means(numbers(generator, 0.2)), FAMILY))  # too much noise


def test_power_agrees_with_the_normal_distribution() -> None:
    """A numerator of known error: at a true 0 it is negligible where an error of 0.05 is below 0.1 - t * s."""
    share = Share("share", {"arm": 1, "plain": -1}, GAP)
    names, seeds = ("residual", "plain", "arm"), np.full(3, 10_000)
    spread = Means(names, np.array([1.0, 0, 0.4]), np.array([0, 0, 25.0]), seeds, np.zeros((3, 3)), 0)
    found = power(spread, [share], worlds=500).set_index(["amount", "reading"])["value"]
    right = stats.norm.cdf((SMALL - 0) / 0.05 - stats.norm.isf(0.025))
    assert found[0.0, "negligible"] == pytest.approx(right, abs=4 * np.sqrt(0.25 / 500))
    # images add to the variance of the contrast: sqrt(0.05² + 0.05²)
    images = replace(spread, image_covariance=np.diag([0, 0, 0.05**2]), images=10_000)
    found = power(images, [share], worlds=500).set_index(["amount", "reading"])["value"]
    right = stats.norm.cdf(SMALL / (0.05 * np.sqrt(2)) - stats.norm.isf(0.025))
    assert found[0.0, "negligible"] == pytest.approx(right, abs=4 * np.sqrt(0.25 / 500))


def swapped(found: Ratios) -> Readings:
    result = read(found)
    words = {"explains most": "negligible", "negligible": "explains most"}
    return replace(result, reading=np.vectorize(lambda word: words.get(word, word))(result.reading))


def never(found: Ratios) -> Readings:
    result = read(found)
    return replace(result, reading=np.where(result.reading == "explains most", "undecided", result.reading))


def always(found: Ratios) -> Readings:
    return replace(read(found), reading=np.full(found.above.shape, "explains most"))


@pytest.mark.parametrize("rule", [swapped, never, always])
def test_a_broken_rule_does_not_meet_the_power_asked_for(rule: module.Rule) -> None:
    precise = condition_means(numbers(np.random.default_rng(9), 0.005))
    assert meets_power(power(precise, FAMILY, worlds=200))
    assert not meets_power(power(precise, FAMILY, worlds=200, rule=rule))


def test_an_incomplete_power_table_is_not_met() -> None:
    found = power(condition_means(numbers(np.random.default_rng(9), 0.005)), FAMILY, worlds=50)
    assert not meets_power(found[found["amount"] > 0])
    assert not meets_power(found[:0])


def test_scale_offset_sign_and_names_change_no_share() -> None:
    """Powers of two scale exactly; offsets round at 1e-16 of a gap of 0.4."""
    outcomes = numbers(np.random.default_rng(10))
    there = by_name(outcomes)
    for change in (lambda y: y * 1024, lambda y: y / 2**40, lambda y: -y, lambda y: y + 3):
        for name, share in by_name({name: change(array) for name, array in outcomes.items()}).items():
            assert ends(share) == pytest.approx(ends(there[name]), rel=1e-9, abs=1e-12)
            assert share.reading == there[name].reading
    backwards = by_name(dict(reversed(outcomes.items())), tuple(reversed(FAMILY)))
    assert all(ends(backwards[name]) == pytest.approx(ends(there[name]), rel=1e-10) for name in there)
    swap = {"residual": "plain", "plain": "residual", "at most 3": "at least 4", "at least 4": "at most 3"}
    renamed = by_name({swap.get(name, name): array for name, array in outcomes.items()}, (PATHS,))["short paths"]
    assert renamed.value == pytest.approx(there["short paths"].value)  # both contrasts change their sign


def test_without_a_gap_there_is_no_share() -> None:
    outcomes = numbers(np.random.default_rng(11))
    for plain in (outcomes["residual"], outcomes["residual"] + np.linspace(-1, 1, SEEDS["residual"])):
        found = by_name(outcomes | {"plain": plain})
        for share in found.values():
            assert (share.reading, share.note) == ("no gap", "no gap")
            assert np.isnan([share.value, share.low, share.high, share.p]).all()
            assert share.gap_low <= 0 <= share.gap_high
    same = by_name({name: np.full(8, 0.1) for name in TRUE})  # 0.1 is not a binary fraction: rounding makes no gap
    assert {share.reading for share in same.values()} == {"no gap"}
    answered = np.random.default_rng(0).random((8, 50)) < 0.5
    assert {share.reading for share in by_name(dict.fromkeys(TRUE, answered)).values()} == {"no gap"}


def test_a_gap_is_one_whose_own_t_interval_leaves_out_0() -> None:
    """A gap of t standard errors, a hundredth more or less; t is that of 95 %, and for two shares that of 97.5 %."""
    spread = np.array([-1.0, -0.5, 0.2, 1.3])
    alike = {"plain": np.zeros(3), "arm": np.full(3, 2.0), "other": np.zeros(3)}
    family = (Share("share", {"arm": 1, "other": -1}, GAP), Share("again", {"arm": 1, "other": -1}, GAP))
    for level, count in ((0.95, 1), (0.975, 2)):
        half = stats.t.ppf((1 + level) / 2, 3) * stats.sem(spread)
        for factor, gap in ((0.99, False), (1.01, True)):
            found = by_name({"residual": spread + factor * half, **alike}, family[:count])["share"]
            assert (found.reading == "no gap") == np.isnan(found.family_low) == (not gap)
            assert (found.note == NO_GAP_IN_FAMILY) == (count == 2 and not gap)
            assert np.isnan(found.value) == np.isnan(found.low) == (count == 1 and not gap)


@pytest.mark.parametrize("seeds", [1, 2])
def test_few_seeds_give_no_interval(seeds: int) -> None:
    for outcomes in (numbers(np.random.default_rng(12)), answers(np.random.default_rng(12))):
        found = by_name(outcomes | {"at most 3": outcomes["at most 3"][:seeds]})
        assert (found["short paths"].reading, found["short paths"].note) == ("undecided", TOO_FEW)
        assert np.isnan(ends(found["short paths"])[1:]).all()
        assert not np.isnan(found["short paths"].value)
        assert not np.isnan(found["value"].low)  # which does not need it
        assert not meets_power(power(condition_means({n: a[:seeds] for n, a in outcomes.items()}), FAMILY, worlds=20))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_outcome_that_is_not_finite_undoes_only_its_own_shares(bad: float) -> None:
    outcomes = numbers(np.random.default_rng(13))
    there = by_name(outcomes)
    found = by_name(outcomes | {"at most 3": np.array([*outcomes["at most 3"][1:], bad])})
    assert (found["short paths"].reading, found["short paths"].note) == ("undecided", NOT_FINITE)
    assert np.isnan(ends(found["short paths"])).all()
    assert ends(found["value"])[:4] == ends(there["value"])[:4]


def test_tables_and_corrections_cover_the_family() -> None:
    found = read_shares(condition_means(numbers(np.random.default_rng(14))), FAMILY)
    rows = share_table(found, depth_total=56)
    assert list(rows) == ["depth_total", "effect", "reading", "quantity", "value"]
    assert len(rows) == 3 * 12
    assert rows[rows["quantity"] == "estimate"]["value"].tolist() == [share.value for share in found]


@pytest.mark.parametrize(
    ("outcomes", "message"),
    [
        ({"a": np.zeros((3, 4)), "b": np.zeros((3, 5))}, "of the same images"),
        ({"a": np.zeros((3, 4)), "b": np.zeros(3)}, "of the same images"),
        ({"a": np.zeros((3, 1))}, "of the same images"),
        ({"a": np.zeros(0)}, r"shapes \{'a': \(0,\)\}"),
    ],
)
def test_wrong_shapes_are_refused(outcomes: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        condition_means(outcomes)


def test_wrong_weights_and_conditions_are_refused() -> None:
    with pytest.raises(ValueError, match=r"share: weights above are \{'a': 1\}, but must sum to 0"):
        Share("share", {"a": 1}, GAP)
    with pytest.raises(ValueError, match="weights below"):
        Share("share", GAP, {"a": 0})
    means = condition_means({"residual": np.zeros(3), "plain": np.zeros(3)})
    with pytest.raises(ValueError, match=r"no outcomes of \['at least 4', 'at most 3'\]: there are residual, plain"):
        ratios(means, [PATHS])
    with pytest.raises(ValueError, match="no mean can be shifted"):
        power(means, [Share("share", GAP, GAP)])


def test_correlation_by_seed() -> None:
    assert seed_correlation(np.array([1.0, 2, 3]), np.array([2.0, 4, 6])) == (pytest.approx(1), 3)
    right = np.array([[1, 0], [1, 1], [0, 0]], bool)
    assert seed_correlation(right, np.array([-1.0, -2, 0])) == (pytest.approx(-1), 3)
    assert seed_correlation(np.array([1.0, 2, 3, np.inf]), np.array([1.0, 2, 3, 4]))[1] == 3
    for first in ([1.0, 2], [1.0, 1, 1]):
        found, count = seed_correlation(np.array(first), np.arange(len(first)))
        assert np.isnan(found)
        assert count == len(first)
