"""The shares of `answer` against a second implementation that knows nothing of the first: on made-up tables, and on the
committed ones."""

import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from experiments.engine.statistics.shares import Share, bootstrap, condition_means, read_shares, share_table
from experiments.questions.answer.plan import ADDED, CLOSED, PARTS, SHARES
from tests.docs import recompute_answer
from tests.docs.recompute_answer import (
    FINAL,
    Group,
    Interval,
    Means,
    Name,
    compare_folder,
    definitions,
    fieller,
    read_family,
    recompute_group,
)

ROOT = Path(__file__).parents[2]
SCRIPT = Path(recompute_answer.__file__)
COMMITTED = ROOT / "docs/tables/answer"
IMAGES, DIVERGED = 203, 0.9
"""Not a multiple of 8."""
TRUE = {
    "residual": 0.04, "plain": 0.74, "residual, near-identity": 0.04, "plain, near-identity": 0.1,
    "value alone, near-identity": 0.08, "paths of at most 3": 0.1, "paths of at least 4": 0.7,
    "pre-activation, residual": 0.06, "pre-activation, plain": 0.4,
}  # fmt: skip
"""Test errors; of every other condition 0.3."""
Outcomes = dict[str, np.ndarray]
Row = dict[str, object]
Tables = dict[str, pd.DataFrame]


def seeds_by_condition(data: str, budget: int) -> dict[str, int]:
    parts = (part for part in PARTS if (part.data, part.budget) == (data, budget))
    return {condition.name: part.seeds for part in parts for condition in part.conditions}


def made_up_errors(counts: Mapping[str, int], spread: float, seed: int = 0) -> Outcomes:
    """Whether each run is wrong on each image; one run of a condition diverged."""
    generator = np.random.default_rng(seed)
    found = {}
    for name, count in counts.items():
        rates = np.clip(TRUE.get(name, 0.3) + spread * generator.standard_normal((count, 1)), 0.01, 0.99)
        of_images = np.clip(rates + 0.1 * generator.standard_normal(IMAGES), 0, 1)
        found[name] = (generator.random((count, IMAGES)) < of_images).astype(float)
    found["plain"][1] = DIVERGED
    return found


def packed(wrong: np.ndarray) -> str:
    """Nothing of a run that diverged."""
    return "" if (wrong == DIVERGED).any() else np.packbits(wrong < 0.5).tobytes().hex()


def family_rows(outcomes: Outcomes, shares: tuple[Share, ...], about: Row) -> list[Row]:
    """Of one family, as the script writes it."""
    known = [share for share in shares if set(share.conditions) <= set(outcomes)]
    found = read_shares(condition_means(outcomes), known) if known else []
    rows: list[Row] = [
        {str(key): value for key, value in row.items()}
        for row in (share_table(found, **about).to_dict("records") if found else [])
    ]
    for share, estimate in zip(known, found, strict=True):
        if np.isfinite(estimate.low):
            drawn = bootstrap(outcomes, share)
            own = {**about, "effect": share.name, "reading": estimate.reading}
            rows += [{**own, "quantity": f"bootstrap {end}", "value": getattr(drawn, end)} for end in ("low", "high")]
    if about["outcome"] == "log training loss":
        rows = [{**row, "reading": "shown, not judged"} for row in rows]
    return rows


def tables(data: str, budget: int, errors: Outcomes, others: Mapping[str, Outcomes]) -> Tables:
    """The three tables of one data set and budget."""
    about, correct, replicates, shares = {"data": data, "budget": budget, "step": 80 * budget}, [], [], []
    values = {"test error": {name: wrong.mean(1) for name, wrong in errors.items()}, **others}
    for name, wrong in errors.items():
        for index, row in enumerate(wrong):
            run = {**about, "control": name, "seed": 1000 + index}
            correct.append({**run, "count": len(row), "correct": packed(row)})
            replicates += [{**run, "outcome": key, "value": found[name][index]} for key, found in values.items()]
    for outcome, found in {**values, "test error": errors}.items():
        for treatment, family in (("shares", SHARES), ("gap closed", CLOSED), ("added later", ADDED)):
            shares += family_rows(found, family, {**about, "outcome": outcome, "treatment": treatment})
    return {"correct": pd.DataFrame(correct), "replicates": pd.DataFrame(replicates), "shares": pd.DataFrame(shares)}


def write(folder: Path, *parts: Tables) -> None:
    for name in parts[0]:
        pd.concat([part[name] for part in parts]).to_csv(folder / f"{name}.csv", index=False)


def made_up_tables(data: str, budget: int, spread: float = 0.03) -> Tables:
    """The longest training leaves no gap in training error."""
    errors = made_up_errors(seeds_by_condition(data, budget), spread, budget)
    generator = np.random.default_rng(1)
    kept = int(budget < 25)
    training = {name: kept * wrong.mean(1) + generator.normal(0, 0.01, len(wrong)) for name, wrong in errors.items()}
    losses = {name: np.log(np.abs(found)) for name, found in training.items()}
    return tables(data, budget, errors, {"training error": training, "log training loss": losses})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tables of three parts of the plan, without CIFAR-10, where the shares are from precise to unreadable."""
    folder = tmp_path_factory.mktemp("answer")
    write(folder, made_up_tables("digits", 1), made_up_tables("digits", 5, 0.001), made_up_tables("digits", 25, 0.2))
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tables of the smallest part."""
    folder = tmp_path_factory.mktemp("small")
    write(folder, made_up_tables("digits", 25, 0.001))
    return folder


def edited(folder: Path, there: Path, name: str, edit: Callable[[pd.DataFrame], None]) -> Path:
    """A copy of the tables, one of them changed."""
    for file in folder.glob("*.csv"):
        frame = pd.read_csv(file, dtype=str, keep_default_na=False)
        if file.stem == name:
            edit(frame)
        frame.to_csv(there / file.name, index=False)
    return there


def exit_status(folder: Path) -> int:
    return recompute_answer.main([str(folder)])


def test_two_implementations_agree(folder: Path) -> None:
    """To 1e-9 of every number, and in every reading."""
    found = compare_folder(folder)
    assert found.differences == []
    assert 0 < found.largest < 1e-9
    read = {line.rpartition(" | ")[2] for line in found.lines if not line.startswith("  ")}
    assert read == {"explains most", "contributes", "negligible", "undecided", "no gap", "shown, not judged"}


def test_the_script_alone(folder: Path) -> None:
    """In a process in which nothing of the project can be imported, nor pandas."""
    barred = ["experiments", "figures", "models", "pandas", "probes", "tests"]
    code = f"import runpy, sys; sys.modules |= dict.fromkeys({barred}); sys.argv = [{str(SCRIPT)!r}, {str(folder)!r}]"
    run = f"{code}; runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", run], cwd=folder, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "digits, 1, 80, test error, shares, conditioning: explains most | explains most" in done.stdout


@pytest.mark.parametrize("bit", [0, IMAGES - 1, IMAGES])
def test_a_changed_bit_is_found(small: Path, tmp_path: Path, bit: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Also one behind the last image, which says nothing and must be 0."""

    def flip(frame: pd.DataFrame) -> None:
        row = frame.index[frame["control"] == "plain, near-identity"][0]
        bits = bytearray.fromhex(str(frame.loc[row, "correct"]))
        bits[bit // 8] ^= 128 >> bit % 8
        frame.loc[row, "correct"] = bits.hex()

    changed = edited(small, tmp_path, "correct", flip)
    if bit < IMAGES:
        assert exit_status(changed) == 1
        assert "gap closed, plain, near-identity: estimate" in capsys.readouterr().out
    else:
        with pytest.raises(SystemExit, match="not those of 203 images"):
            exit_status(changed)


@pytest.mark.parametrize(
    "quantity", ["estimate", "se", "low", "high", "family low", "family high", "level", "df", "gap"]
)
def test_a_changed_number_is_found(small: Path, tmp_path: Path, quantity: str) -> None:
    def change(frame: pd.DataFrame) -> None:
        row = frame.index[frame["quantity"] == quantity][0]
        frame.loc[row, "value"] = repr(float(str(frame.loc[row, "value"])) * (1 + 1e-7))

    changed = edited(small, tmp_path, "shares", change)
    assert exit_status(changed) == 1
    assert len(compare_folder(changed).differences) == 1


def test_a_changed_bootstrap_reading_or_share_is_found(small: Path, tmp_path: Path) -> None:
    def move(frame: pd.DataFrame) -> None:
        row = frame.index[frame["quantity"] == "bootstrap low"][0]
        frame.loc[row, "value"] = str(float(str(frame.loc[row, "value"])) - 0.5)

    def reread(frame: pd.DataFrame) -> None:
        frame.loc[frame["effect"] == "plain, near-identity", "reading"] = "contributes"

    def rename(frame: pd.DataFrame) -> None:
        frame.loc[frame["effect"] == "plain, looks-linear", "effect"] = "another"

    for change in (move, reread, rename):
        assert exit_status(edited(small, tmp_path, "shares", change)) == 1


def test_a_changed_outcome_is_found(small: Path, tmp_path: Path) -> None:
    def change(frame: pd.DataFrame) -> None:
        row = frame.index[frame["outcome"] == "test error"][0]
        frame.loc[row, "value"] = "0.5"

    assert exit_status(edited(small, tmp_path, "replicates", change)) == 1


@pytest.mark.parametrize("gap", [0.0, 0.3])
def test_outcomes_without_spread(tmp_path: Path, gap: float) -> None:
    """As training errors after many steps: where all are 0 there is no gap; else an interval is a point."""
    counts = seeds_by_condition("digits", 1)
    errors = made_up_errors(counts, 0.03)
    alike = {name: np.full(count, gap * (name == "plain")) for name, count in counts.items()}
    write(tmp_path, tables("digits", 1, errors, {"training error": alike}))
    assert compare_folder(tmp_path).differences == []


def test_a_loss_that_is_not_known_undoes_only_its_own_shares(tmp_path: Path) -> None:
    """A run that diverged has no loss; the gap between two other conditions keeps its interval."""
    errors = made_up_errors(seeds_by_condition("digits", 25), 0.001)
    losses = {name: np.log(wrong.mean(1)) for name, wrong in errors.items()}
    losses["plain, near-identity"][0] = np.nan
    write(tmp_path, tables("digits", 25, errors, {"log training loss": losses}))
    assert compare_folder(tmp_path).differences == []


def test_wide_intervals_are_underpowered(tmp_path: Path) -> None:
    """As the plan says of CIFAR-10; where only the table says so, or has another word, there is a note."""
    for data, noted in (("CIFAR-10", False), ("digits", True)):
        part = tables(data, 25, made_up_errors(seeds_by_condition("digits", 25), 0.2, 25), {})
        wide = part["shares"].pivot(index="effect", columns="quantity", values="value")
        wide = set(wide.index[wide["high"] - wide["low"] > 0.5])
        undecided = part["shares"]["effect"].isin(wide) & (part["shares"]["reading"] == "undecided")
        assert undecided.any()
        part["shares"].loc[undecided, "reading"] = "underpowered"
        write(tmp_path, part)
        found = compare_folder(tmp_path)
        assert found.differences == []
        assert bool([note for note in found.notes if "read as underpowered" in note]) == noted


def test_the_definitions_are_those_of_the_plan() -> None:
    """Shares of an effect, and the gap that each condition closes, by the weights of their conditions."""
    names = {condition.name for part in PARTS for condition in part.conditions}
    planned = {Name("shares", share.name): (dict(share.above), dict(share.below)) for share in SHARES}
    planned |= {Name("gap closed", share.name): (dict(share.above), dict(share.below)) for share in CLOSED}
    planned |= {Name("added later", share.name): (dict(share.above), dict(share.below)) for share in ADDED}
    assert {name: (dict(a), dict(b)) for name, (a, b) in definitions(names).items()} == planned


def test_fieller_by_hand() -> None:
    """All ends are where the t statistic is the quantile of the degrees of freedom at the estimate; the variances are
    written out."""
    generator = np.random.default_rng(5)
    runs = {
        name: generator.normal(mean, 0.1, (count, 40))
        for name, mean, count in (("a", 1, 5), ("b", 0, 7), ("c", 0.6, 4))
    }
    means = Means(runs)
    interval = fieller(means, {"a": 1.0, "c": -1.0}, {"a": 1.0, "b": -1.0}, 0.9)
    assert interval is not None

    def parts(share: float) -> list[tuple[float, int]]:
        weights = {"a": 1 - share, "b": share, "c": -1.0}
        of_images = sum(weight * runs[name].mean(0) for name, weight in weights.items())
        of_seeds = [(w**2 * runs[n].mean(1).var(ddof=1) / len(runs[n]), len(runs[n]) - 1) for n, w in weights.items()]
        return [*of_seeds, (np.var(of_images, ddof=1) / 40, 39)]

    a, b, c = (runs[name].mean() for name in "abc")
    at_estimate = parts((a - c) / (a - b))
    freedom = sum(part for part, _ in at_estimate) ** 2 / sum(part**2 / df for part, df in at_estimate)
    for end in interval:
        statistic = abs((a - c) - end * (a - b)) / sum(part for part, _ in parts(end)) ** 0.5
        assert statistic == pytest.approx(stats.t.ppf(0.95, freedom), rel=1e-9)


def test_the_rule_by_hand() -> None:
    """Each half width is that of a normal distribution: the second share can be read after the first alone."""

    def normal(centre: float, error: float) -> Callable[[float], Interval]:
        def at(level: float) -> Interval:
            half = error * float(stats.norm.ppf((1 + level) / 2))
            return Interval(centre - half, centre + half)

        return at

    family = {
        Name("shares", "first"): normal(0.9, 0.1),
        Name("shares", "second"): normal(0.1 - 2.3 * 0.05, 0.05),
        Name("shares", "third"): normal(0.1 + 2 * 0.05, 0.05),
    }
    found = read_family(family)
    assert [reading.word for reading in found.values()] == [*FINAL, "contributes"]
    assert [reading.level for reading in found.values()] == pytest.approx([1 - 0.05 / 3, 1 - 0.05 / 2, 0.95])


def test_one_seed_is_read_as_nothing() -> None:
    runs = {name: np.array([[float(index)], [index + 0.1]]) for index, name in enumerate(("residual", "plain"))}
    found = recompute_group(Means({**runs, "other": np.array([[0.5]])}))[Name("gap closed", "other")]
    assert found.word == "undecided"
    assert np.isnan(found.numbers["low"])


@pytest.mark.skipif(not COMMITTED.is_dir(), reason="docs/tables/answer is not there yet")
def test_the_committed_shares() -> None:
    assert compare_folder(COMMITTED).differences == []


def test_groups_are_told_apart(folder: Path) -> None:
    groups = recompute_answer.read_groups(folder)
    outcomes = ("test error", "training error", "log training loss")
    steps = (("1", "80"), ("5", "400"), ("25", "2000"))
    assert set(groups) == {Group("digits", *of, outcome) for of in steps for outcome in outcomes}
