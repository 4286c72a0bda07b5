"""The experiment on identities: its effects on paper, and a run at toy size."""

from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from experiments.engine import identity_ending as ending
from experiments.engine.effects import Estimate, decide, estimate
from experiments.engine.ending import terminal
from experiments.engine.identity_effects import (
    best_rates,
    copying_table,
    harder,
    inserted_changes,
    insertions,
    is_harder,
    mean_changes,
)
from tests.scripts import print_of, run
from tests.support.drawings import pick

ERRORS = {  # of copies by arm and rate, a seed each
    ("residual", "learning rate 0.1"): (1e-3, 1e-3, 1e-3),
    ("residual", "learning rate 0.01"): (1e-2, 1e-2, 1e-2),
    ("plain", "learning rate 0.1"): (0.5, 0.5, 0.5),
    ("plain", "learning rate 0.01"): (1e-1, 2e-2, 5e-2),
}


def copying_tables(depths: tuple[int, ...] = (2, 8)) -> dict[str, pd.DataFrame]:
    """What the cells of copying write: validation and test alike at the end, ten times as much at the start."""
    tables: dict[str, list[dict[str, object]]] = {"outcomes": [], "starts": [], "curves": [], "blocks": []}
    for depth, ((arm, rate), errors) in product(depths, ERRORS.items()):
        for seed, error in enumerate(errors):
            cell = {"experiment": "copying", "arm": arm, "depth_total": depth, "seed": seed, "effect": rate}
            for split in ("train", "validation", "test"):
                row = {**cell, "split": split, "quantity": "error"}
                tables["outcomes"].append({**row, "value": error})
                tables["starts"].append({**row, "epoch": 0, "value": 10 * error})
            for epoch in (1, 2):
                row = {**cell, "epoch": epoch, "split": "validation", "quantity": "error"}
                tables["curves"].append({**row, "value": error})
            for epoch, block in product((0, 2), range(depth // 2)):
                row = {**cell, "epoch": epoch, "block": f"blocks.{block}", "depth": block}
                tables["blocks"].append({**row, "quantity": "distance", "value": 0.1 + block})
                if arm == "residual":
                    tables["blocks"].append({**row, "quantity": "ratio", "value": 0.2 + epoch})
    return {name: pd.DataFrame(rows) for name, rows in tables.items()}


def test_each_arm_takes_the_rate_that_validation_chooses() -> None:
    outcomes = copying_tables()["outcomes"]
    found = best_rates(outcomes).set_index(["arm", "depth_total"])["effect"]
    assert found["residual", 2] == found["residual", 8] == "learning rate 0.1"
    assert found["plain", 2] == "learning rate 0.01"
    test = (outcomes["split"] == "test") & (outcomes["effect"] == "learning rate 0.01")
    outcomes.loc[test, "value"] = 9.0  # test plays no part
    assert best_rates(outcomes).set_index(["arm", "depth_total"])["effect"]["plain", 2] == "learning rate 0.01"
    lost = (outcomes["effect"] == "learning rate 0.1") & (outcomes["seed"] == 2)  # diverged
    assert set(best_rates(outcomes[~lost])["effect"]) == {"learning rate 0.01"}


def test_harder_on_paper() -> None:
    """log10 of 100, 20, 50: mean 5 / 3, deviation of 2, 1.30103, 1.69897."""
    found = harder(copying_table(copying_tables()))
    assert set(found) == {2, 8}
    logs = np.log10([100, 20, 50])
    assert found[8].mean == pytest.approx(5 / 3)
    assert found[8].high - found[8].mean == pytest.approx(4.3026527 * np.std(logs, ddof=1) / np.sqrt(3))
    assert is_harder(found[8]) == "harder"
    assert is_harder(Estimate((0.1, 0.1, 0.1), 0.1, 0.0, 0.2)) == "not harder"  # a factor of 1.6 at the most
    assert is_harder(estimate(np.array([0.0, 0.3, 0.9]))) == "undecided"
    assert is_harder(estimate(np.array([2.0, 2.0]))) == "undecided"  # two seeds have no interval
    assert "harder at 1 (error 46.4 [" in ending.copying_sentence(found)
    assert ending.factor(estimate(np.array([1.0, 2.0]))) == "31.6 (10, 100)"
    assert ending.copying_sentence({}).startswith("copying needs the arms plain and residual")


def test_the_tables_are_whole_where_the_output_is_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    tables = insertion_tables()
    ending.show_copying(terminal(), copying_table(copying_tables()), ["residual", "plain"])
    ending.show_insertions(terminal(), insertions(tables["outcomes"], 100), inserted_changes(tables["blocks"]))
    shown = capsys.readouterr().out
    assert "…" not in shown  # cut
    for text in ("0.567 ± 0.404", "0.0567 ± 0.0404", "1.600 ± 0.000", "identity, 20", "0.001 to 0.061"):
        assert text in shown
    assert ending.CLOSED.split(",")[0] not in shown  # an arm that was not run
    _, of_plain = insertions(tables["outcomes"], 100).values()
    ending.show_insertions(terminal(), {("stop-gradient", "identity", 20): of_plain}, {})
    assert "no gradient passes a block whose branch gives zeros" in capsys.readouterr().out.replace("\n", " ")


def test_an_error_of_exactly_0_is_the_smallest_that_is_told() -> None:
    tables = copying_tables()
    for name in ("outcomes", "curves"):
        tables[name].loc[tables[name]["arm"] == "residual", "value"] = 0.0
    assert harder(copying_table(tables))[2].mean == pytest.approx(np.mean(np.log10([1e11, 2e10, 5e10])))


def test_mean_changes_take_the_residual_where_there_is_one() -> None:
    found = mean_changes(copying_tables((8,))["blocks"]).set_index(["arm", "epoch", "seed"])["value"]
    assert found["plain", 0, 0].iloc[0] == pytest.approx(1.6)  # 0.1, 1.1, 2.1, 3.1
    assert found["residual", 0, 0].iloc[0] == pytest.approx(0.2)
    assert found["residual", 2, 0].iloc[0] == pytest.approx(2.2)


def insertion_tables() -> dict[str, pd.DataFrame]:
    """Deeper networks that equal the shallow one (residual), or lose 0.1 of test accuracy (plain)."""
    outcomes, blocks = [], []
    for arm, kind, seed in product(("residual", "plain"), ("none", "identity"), range(3)):
        deep = kind == "identity"
        cell = {"experiment": "insertion", "arm": arm, "depth_total": 20 if deep else 8, "seed": seed, "effect": kind}
        for split in ("train", "validation", "test"):
            accuracy = 0.9 + 0.01 * seed - 0.1 * (deep and arm == "plain")
            row = {**cell, "split": split}
            outcomes += [
                {**row, "quantity": "accuracy", "value": accuracy},
                {**row, "quantity": "loss", "value": 0.1},
            ]
        for epoch in (0, 3) if deep else ():
            name, value = ("ratio", 0.02 * epoch + 0.001 * seed) if arm == "residual" else ("distance", 0.5)
            row = {**cell, "epoch": epoch, "block": "layer1.1", "depth": 1}
            blocks.append({**row, "quantity": "distance", "value": value})
            if name == "ratio":
                blocks.append({**row, "quantity": "ratio", "value": value})
    return {"outcomes": pd.DataFrame(outcomes), "blocks": pd.DataFrame(blocks)}


def test_insertions_on_paper() -> None:
    tables = insertion_tables()
    found, changes = insertions(tables["outcomes"], 100), inserted_changes(tables["blocks"])
    assert set(found) == set(changes) == {("residual", "identity", 20), ("plain", "identity", 20)}
    assert found["residual", "identity", 20].verdict == "recovered"
    assert found["plain", "identity", 20].verdict == "falls short"
    assert found["plain", "identity", 20].changes["test accuracy"].mean == pytest.approx(-0.1)
    first, last = changes["residual", "identity", 20]
    assert (first.mean, last.mean) == (pytest.approx(0.001), pytest.approx(0.061))
    said = ending.insertion_sentence(found, changes)
    assert "residual keeps up with identity blocks at 20, plain is worse with identity blocks at 20" in said
    assert "residuals of inserted blocks end near zero with identity blocks at 20 (0.06 [" in said
    assert decide(Estimate((), 0.5, 0.4, 0.6), 0.1, ("not near zero", "near zero")) == "not near zero"
    lost = (tables["outcomes"]["effect"] == "identity") & (tables["outcomes"]["seed"] == 1)
    assert insertions(tables["outcomes"][~lost], 100)["residual", "identity", 20].verdict == "falls short"  # diverged


TOY = ["--seeds", 0, 1, 2, "--arms", "residual", "plain", "--epochs", 1, "--width", 2, "--train-limit", 256]
TOY += ["--blocks", 1, 2, "--copying-epochs", 2, "--deeper", 14]


@pytest.mark.slow
def test_a_run_at_toy_size_resumes(tmp_path: Path) -> None:
    done = run("identity_mapping", *TOY, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "results" / "identity_mapping"
    starts = pd.read_csv(folder / "starts.csv")
    assert len(pick(starts, experiment="copying")) == 2 * 2 * 2 * 3 * 3  # rates, blocks, arms, seeds, splits
    wide = pick(starts, experiment="insertion", quantity="loss", split="test").pivot(
        index=["arm", "seed"], columns="effect", values="value"
    )
    np.testing.assert_allclose(wide["identity"]["residual"], wide["none"]["residual"], rtol=1e-6)
    np.testing.assert_allclose(wide["identity"]["plain"], wide["none"]["plain"], rtol=0.05)  # statistics anew
    assert not np.allclose(wide["random"], wide["none"], rtol=1e-3)
    blocks = pick(pd.read_csv(folder / "blocks.csv"), experiment="insertion")
    assert set(blocks["block"]) == {"layer1.1", "layer2.1", "layer3.1"}
    first = pick(blocks, epoch=0, effect="identity")
    assert (pick(first, arm="residual")["value"] == 0).all()
    assert pick(first, arm="plain")["value"].between(1e-6, 0.2).all()
    outcomes = pd.read_csv(folder / "outcomes.csv")
    copied = pick(outcomes, experiment="copying", quantity="error", split="test").set_index(
        ["arm", "depth_total", "seed", "effect"]
    )["value"]
    table = pick(pd.read_csv(folder / "copying.csv"), quantity="error", split="test")
    ends = table[table["epoch"] == 2].set_index(copied.index.names)["value"]
    assert len(ends)
    assert copied.loc[ends.index].tolist() == pytest.approx(ends.tolist())
    assert len(table) == 2 * 2 * 2 * 3  # first and last, blocks, arms, seeds
    for name in ("copying", "insertion"):
        assert {file.suffix for file in (folder / "figures").glob(f"{name}.*")} == {".csv", ".pdf", ".png"}
    again = run("identity_mapping", *TOY, cwd=tmp_path)
    assert "42 of 42 cells are already done" in again.stderr  # 24 copying; 6 shallow, 12 deeper
    assert again.stdout == done.stdout


@pytest.mark.slow
def test_a_part_that_diverged_leaves_the_other(tmp_path: Path) -> None:
    arguments = ["--seeds", 0, "--arms", "plain", "--epochs", 1, "--width", 2, "--train-limit", 256, "--blocks", 1]
    arguments += ["--copying-epochs", 1, "--deeper", 14, "--learning-rate", 1e30, "--rates", 0.1]
    done = run("identity_mapping", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "diverged: insertion plain, depth 14, seed 0, random" in done.stdout
    assert "copying needs the arms plain and residual" in done.stdout
    assert not (tmp_path / "results" / "identity_mapping" / "insertion.csv").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--network", "bottleneck"], "--network: unknown 'bottleneck'; choose from resnet, skipinit"),
        (["--deeper", "8"], "--deeper 8: give more layers than --depth, 8"),
        (["--deeper", "21"], "--deeper 21: depth 21 is not 6n + 2"),
        (["--blocks", "0", "1"], "--blocks 0: give at least 1"),
        (["--rates", "0"], "--rates 0.0: give finite numbers above 0"),
        (["--rates", "0.1", "0.1"], "--rates: got 0.1 0.1; give one or more, each once"),
        (["--copying-epochs", "0"], "--copying-epochs 0: give at least 1"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    shown = print_of("identity_mapping", arguments, capsys, status=2)
    assert shown.startswith("error: ")
    assert message in shown
    assert not list(tmp_path.iterdir())
