"""The verdict: readings on paper, predictions against them, and the script on tables made up to decide and not to."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from experiments import verdict
from experiments.engine.running.messages import BadInput
from experiments.engine.statistics.estimates import Estimate
from experiments.questions.verdict.judging import fare, headline, judge, standing
from experiments.questions.verdict.measured import Reading, collect, read, word_of
from experiments.questions.verdict.verdict_file import Outcome, Version, read_verdicts
from experiments.verdict import FILE, Settings

VERDICTS = read_verdicts(FILE)
LOSS, ACCURACY = Outcome("log train loss", "lower", 0.693), Outcome("test accuracy", "higher", 0.02)
REQUIRED, OTHER = Version("a", True, "all", 1, {}), Version("b", False, "all", 1, {})
# Accuracies and losses: the value alone helps, the gradient alone does not, both together help most.
ENDS = {
    "residual": (0.96, 0.001), "stop-gradient": (0.60, 0.1), "gradient-only": (0.20, 2.0), "plain": (0.20, 2.0),
    "shortest-path": (0.85, 0.01),
}  # fmt: skip


def between(low: float, high: float) -> Estimate:
    return Estimate((low, high), (low + high) / 2, low, high)


@pytest.mark.parametrize(
    ("found", "outcome", "word"),
    [
        (between(0.03, 0.05), ACCURACY, "better"),
        (between(0.01, 0.05), ACCURACY, "better"),  # excludes 0, and the mean is beyond the margin
        (between(-0.05, -0.01), ACCURACY, "worse"),
        (between(0.001, 0.025), ACCURACY, "undecided"),  # excludes 0, but the mean is within it
        (between(0.001, 0.019), ACCURACY, "equal"),
        (between(-0.01, 0.05), ACCURACY, "undecided"),
        (between(-2, -1), LOSS, "better"),
        (between(1, 2), LOSS, "worse"),
        (between(-0.6, 0.6), LOSS, "equal"),
        (Estimate((1.0, 2.0), 1.5, math.nan, math.nan), LOSS, "undecided"),  # two seeds
    ],
)
def test_a_reading_on_paper(found: Estimate, outcome: Outcome, word: str) -> None:
    assert word_of(found, outcome) == word


def reading(word: str, version: Version = REQUIRED) -> Reading:
    return Reading(version, 56, between(0, 0), word)


@pytest.mark.parametrize(
    ("words", "said", "fares"),
    [
        (["better", "better"], ("better",), "holds"),
        (["better", "equal"], ("better",), "fails"),
        (["better", "undecided"], ("better",), "undecided"),
        (["undecided", "worse"], ("better",), "fails"),
        (["better", "not run"], ("better",), "undecided"),
        (["better", "no degradation"], ("better",), "undecided"),
        (["better", "does not apply"], ("better",), "holds"),
        (["does not apply"], ("better",), "undecided"),
        (["equal", "worse"], ("equal", "worse"), "holds"),
        (["worse"], (), "-"),
    ],
)
def test_how_a_prediction_fares(words: list[str], said: tuple[str, ...], fares: str) -> None:
    assert fare([*map(reading, words), reading("worse", OTHER)], said) == fares


def test_one_data_set_does_not_decide() -> None:
    assert headline(["supported", "supported"]) == "supported"
    assert headline(["supported", "contradicted"]) == "undecided"
    assert headline(["supported", "undecided"]) == "undecided"
    assert headline(["supported"]) == "undecided"


def outcomes(names: dict[str, str], depths: tuple[int, ...], budget: int, seeds: int = 5) -> pd.DataFrame:
    """Finished runs; names: the arm of each condition."""
    spread = np.linspace(-0.004, 0.004, seeds)
    rows = [
        {
            "arm": arm, "control": name, "depth_total": depth, "budget": budget, "seed": seed, "split": split,
            "quantity": quantity, "learning_rate": 0.1,
            "value": {"accuracy": ENDS[arm][0], "loss": ENDS[arm][1]}[quantity] * (1 + float(spread[seed])),
        }
        for name, arm in names.items()
        for depth in depths
        for seed in range(seeds)
        for split in ("train", "test")
        for quantity in ("accuracy", "loss")
    ]  # fmt: skip
    return pd.DataFrame(rows)


def write(folder: Path, depths: tuple[int, ...]) -> None:
    arms = {arm: arm for arm in ENDS}
    norms = {f"{arm}, true norms": arm for arm in ("stop-gradient", "gradient-only")}
    for name, table in {
        "learning_rates": outcomes(arms, depths, 1),
        "magnitude_or_direction": outcomes(arms | norms, depths, 1, seeds=3),
        "budget": outcomes(arms, depths[-1:], 10, seeds=3),
    }.items():
        (folder / name).mkdir(parents=True)
        if name != "learning_rates":  # the runs that they share are the same
            shared = outcomes(arms, depths, 1)
            table = pd.concat([table[table["control"].isin(norms) | (table["budget"] > 1)], shared])
        table.to_csv(folder / name / "outcomes.csv", index=False)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    write(tmp_path, (20, 32, 56))
    write(tmp_path / "cifar10", (32,))
    return tmp_path


def test_hypotheses_are_judged_on_finished_runs(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    verdict.main(Settings(out=results))
    shown = " ".join(capsys.readouterr().out.split())
    # The value alone helps, which contradicts the first; cutting the gradient hurts, which contradicts the second.
    assert "short gradient paths, fitting: contradicted; short gradient paths, generalising: contradicted" in shown
    assert "a simpler residue, fitting: contradicted; a simpler residue, generalising: contradicted" in shown
    assert "a prior over path lengths, generalising: undecided" in shown  # no arm but residual would have to fit
    filled = (results / "verdict" / "verdict.md").read_text()
    assert "as they are, depth 56: better (+0.40 [+0.40, +0.40]); true norms, depth 32: better" in filled
    assert "| half the dose | weight 0.5 - stop-gradient, test accuracy | depth 56: not run |" in filled
    table = pd.read_csv(results / "verdict" / "effects.csv")
    assert set(table["depth_total"]) == {32, 56}  # nothing is judged at depth 20
    mean = table[(table["effect"] == "gradient beside the value") & (table["quantity"] == "mean")]
    assert mean["value"].dropna().to_numpy() == pytest.approx(0.36, abs=0.002)  # 3 seeds of 5 are a bit lower
    assert (results / "verdict" / "figures" / "verdict.png").is_file()


def test_a_simpler_residue_can_be_supported(results: Path) -> None:
    """Stop-gradient as good as residual: the gradient's way back does not count."""
    for file in results.glob("**/outcomes.csv"):
        rows = pd.read_csv(file)
        keys = ["depth_total", "budget", "seed", "split", "quantity"]
        good = rows[rows["arm"] == "residual"].drop_duplicates(keys).set_index(keys)["value"].rename("good")
        same, stop = rows.join(good, on=keys)["good"], rows["arm"] == "stop-gradient"
        rows.loc[stop, "value"] = same[stop].fillna(rows["value"])
        rows.to_csv(file, index=False)
    runs, source = collect(results), VERDICTS.sources[0]
    found = judge(runs, source, VERDICTS.effects)
    assert {each.claim.name: each.fares["a simpler residue"] for each in found[:2]} == {
        "value alone, fitting": "holds", "gradient alone, fitting": "holds",
    }  # fmt: skip
    assert standing(found, "short gradient paths", "fitting") == "contradicted"
    assert standing(found, "a prior over path lengths", "fitting") == "no prediction"


def test_nothing_is_read_where_plain_networks_do_not_degrade(results: Path) -> None:
    runs = collect(results)
    plain = (runs["control"] == "plain") & (runs["depth_total"] == 56)
    runs.loc[plain, "test accuracy"] = 0.97
    claim = VERDICTS.effects[4]
    assert read(runs, claim, claim.versions[0], 56).word == "no degradation"
    assert read(runs, claim, claim.versions[0], 32).word == "better"


def test_networks_are_compared_where_both_fit(results: Path) -> None:
    runs, claim = collect(results), VERDICTS.effects[8]
    assert read(runs, claim, claim.versions[0], 56).word == "does not apply"
    fitted = runs.assign(**{"train accuracy": 1.0})
    assert read(fitted, claim, claim.versions[0], 56).word == "better"


def test_networks_that_went_on_are_conditions(results: Path) -> None:
    parts = [
        outcomes({arm: arm}, (56,), 1, seeds=3).assign(arm="stop-gradient", effect="any words", then=then)
        for arm, then in (("plain", None), ("residual", "residual"), ("stop-gradient", "stop-gradient"))
    ]
    (results / "alignment").mkdir()
    pd.concat(parts).to_csv(results / "alignment" / "continued.csv", index=False)
    (claim,) = (control for control in VERDICTS.controls if control.name == "the true gradient from its end")
    found = read(collect(results), claim, claim.versions[0], 56)
    assert (found.word, found.seeds) == ("better", (0, 1, 2))
    assert found.found.mean == pytest.approx(math.log(0.001 / 0.1))


def test_an_interval_beyond_the_scale_is_read_like_any(results: Path) -> None:
    """Differences of 0.71, 0.70 and 0.40: 0.60 [0.17, 1.03] excludes 0."""
    runs, claim = collect(results), VERDICTS.effects[4]
    depth = runs["depth_total"] == 56
    for seed, accuracy in enumerate((0.81, 0.80, 0.50)):
        at_seed = depth & (runs["seed"] == seed) & (runs["budget"] == 1)
        runs.loc[at_seed & (runs["control"] == "stop-gradient"), "test accuracy"] = accuracy
        runs.loc[at_seed & (runs["control"] == "plain"), "test accuracy"] = 0.1
    few = runs[runs["seed"] < 3]
    found = read(few, claim, claim.versions[0], 56)
    assert found.word == "better"
    assert found.found.high == pytest.approx(1.04, abs=0.01)


def test_missing_runs_leave_it_undecided(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    verdict.main(Settings(out=tmp_path))
    shown = " ".join(capsys.readouterr().out.split())
    assert "short gradient paths, fitting: undecided" in shown
    assert "0 of 80 required comparisons are decided, 80 of them not run" in shown
    assert not (tmp_path / "verdict" / "figures").exists()


def test_experiments_that_disagree_are_refused(results: Path) -> None:
    file = results / "budget" / "outcomes.csv"
    rows = pd.read_csv(file)
    rows.loc[(rows["budget"] == 1) & (rows["arm"] == "plain"), "value"] += 0.01
    rows.to_csv(file, index=False)
    with pytest.raises(BadInput, match="disagree on 'plain', depth 20, seed 0: they ran with other settings"):
        verdict.main(Settings(out=results))
