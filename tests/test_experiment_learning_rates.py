"""The experiment on learning rates: its sentence and its table on paper, bad input and a toy run."""

import io
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from experiments import learning_rates
from experiments.engine.conditions import rate_of
from experiments.engine.rates import curves, sentence, show_search
from models import ARMS
from tests.conditions import Ran, cells_of, is_best, run_twice
from tests.scripts import print_of
from tests.support.drawings import pick

RATES = {(arm, 8): rate for arm, rate in zip(ARMS, (0.1, 0.0316, 0.1, 0.316, 0.1), strict=True)}
ERRORS = {
    "residual": (0.10, 0.11, 0.12),
    "stop-gradient": (0.30, 0.31, 0.32),
    "gradient-only": (0.50, 0.51, 0.52),
    "plain": (0.60, 0.61, 0.62),
}


def searched(depths: tuple[int, ...] = (8,)) -> pd.DataFrame:
    """Accuracies of two seeds that differ by 0.02; residual alone is also tried at 1, plain at 0.01."""
    rows = []
    for arm, depth, rate, seed in product(ARMS, depths, (0.01, 0.0316, 0.1, 0.316, 1.0), (100, 101)):
        if (rate == 1 and arm != "residual") or (rate == 0.01 and arm != "plain"):
            continue
        at_best = 0.9 - 0.1 * list(ARMS).index(arm)
        value = at_best - 0.2 * abs(np.log10(rate / RATES[arm, 8])) + (0.01 if seed == 100 else -0.01)
        about = {"control": arm, "depth_total": depth, "learning_rate": rate, "seed": seed, "split": "validation"}
        rows += [about | {"quantity": "accuracy", "value": value}, about | {"quantity": "loss", "value": 9.0}]
    return pd.DataFrame(rows)


def test_curves_are_means_over_tuning_seeds_of_accuracy_alone() -> None:
    found = curves(searched(), 8)
    assert list(found.index) == list(ARMS)
    assert found.at["residual", 0.1] == pytest.approx(0.9)
    assert found.at["plain", 0.316] == pytest.approx(0.6)
    assert found.at["plain", 0.01] == pytest.approx(0.6 - 0.2 * 1.5, abs=1e-3)
    assert found.isna().at["plain", 1.0]


def test_the_table_brackets_the_best_and_leaves_out_what_was_not_tried() -> None:
    with io.StringIO() as text:
        show_search(Console(file=text, width=100, highlight=False), searched(), RATES)
        shown = text.getvalue()
    rows = {line.split()[0]: line.split()[1:] for line in shown.splitlines() if line.strip()}
    assert rows["residual"] == ["0.800", "[0.900]", "0.800", "0.700"]
    assert rows["plain"] == ["0.300", "0.400", "0.500", "[0.600]"]
    assert "by the mean over n = 2 tuning seeds" in shown


def test_rates_are_found_again_in_a_file(tmp_path: Path) -> None:
    rates = [rate_of(level) for level in range(-12, 4)]
    pd.DataFrame({"rate": rates}).to_csv(tmp_path / "rates.csv")
    assert pd.read_csv(tmp_path / "rates.csv")["rate"].tolist() == rates


def test_the_sentence_on_paper() -> None:
    said = sentence(searched(), cells_of(ERRORS), RATES, depth=8, title="paper")
    assert said.startswith("paper, depth 8, n = 3: test accuracy at each arm's own best learning rate is residual ")
    assert "is residual 0.890 at 0.1, stop-gradient 0.690 at 0.0316, gradient-only 0.490 at 0.1, plain 0.390" in said
    assert "the value without the gradient is worth +0.300 [+0.300, +0.300]" in said
    assert "the gradient without the value +0.100 [+0.100, +0.100], both +0.500 [" in said
    assert "Over rates from 0.0316 to 0.316 validation accuracy runs over residual 0.80 to 0.90, stop-" in said
    assert "plain 0.40 to 0.60" in said


def test_without_an_arm_there_are_no_effects() -> None:
    two = {arm: ERRORS[arm] for arm in ("residual", "plain")}
    said = sentence(searched(), cells_of(two), RATES, depth=8, title="paper")
    assert "is residual 0.890 at 0.1, plain 0.390 at 0.316; there are no effects, since no seed has finished" in said
    none = sentence(searched((8, 14)), cells_of(two), RATES, depth=14, title="paper")
    assert none.startswith("paper, depth 14: nothing can be said, since every cell diverged. Over rates from 0.0316")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--depths", "9"], "--depths 9: depth 9 is not 6n + 2"),
        (["--tuning-seeds", "100", "4"], "--tuning-seeds 4: that seed is reported; choose learning rates on others"),
        (["--tuning-seeds"], "--tuning-seeds: got none; give one or more, each once"),
    ],
)
def test_a_users_mistake_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    shown = print_of("learning_rates", arguments, capsys, status=2)
    assert (message in shown, len(shown.splitlines())) == (True, 1)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    return run_twice(learning_rates, tmp_path_factory.mktemp("out"))


def test_a_toy_run_reports_each_arm_at_its_best_rate(ran: Ran) -> None:
    outcomes, search = (pd.read_csv(ran.folder / name) for name in ("outcomes.csv", "tuning/tuning.csv"))
    assert set(search["seed"]) == {100}
    assert set(outcomes["seed"]) == {0, 1}
    for arm in ARMS:
        own = pick(search, control=arm, quantity="accuracy").sort_values("learning_rate")
        assert own["learning_rate"].tolist() == [0.1, 0.316]
        (rate,) = set(pick(outcomes, arm=arm)["learning_rate"])
        assert is_best(rate, own)
    assert len(pick(outcomes, split="test", quantity="accuracy")) == 5 * 2
    effects = pd.read_csv(ran.folder / "effects.csv")
    wide = pick(outcomes, split="test", quantity="accuracy").pivot(index="seed", columns="arm", values="value")
    found = pick(effects, effect="whole shortcut", outcome="test accuracy", quantity="mean")["value"].item()
    assert found == pytest.approx((wide["residual"] - wide["plain"]).mean())
    drawn = {file.name for file in (ran.folder / "figures").iterdir()}
    assert drawn == {f"{n}.{e}" for n in ("learning_rates", "accuracy_by_depth") for e in ("csv", "pdf", "png")}
    assert "depth 8, n = 2: test accuracy at each arm's own best learning rate is residual 0." in ran.shown


def test_a_second_call_repeats_no_cell(ran: Ran) -> None:
    assert not ran.repeated
    assert "10 of 10 cells are already done" in ran.log
    assert ran.again == ran.shown
