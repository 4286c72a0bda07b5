"""The answer: its plan at toy size, and what it writes against what the runs hold."""

import io
import json
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from torch import Tensor, nn

from experiments import answer
from experiments.engine.conditions import learning_rate_search
from experiments.engine.reporting import show
from experiments.engine.running.messages import BadInput
from experiments.engine.running.run import Outcome, Run
from experiments.engine.running.workers import Execution
from experiments.engine.training.optimisation import Training
from experiments.questions.answer import replicate, results
from experiments.questions.answer.plan import LONG, PARTS, PLAIN, PLAIN_LOOKS_LINEAR, PLAIN_NEAR, RESIDUAL, SHORT, Part
from probes import jacobian_spectrum
from tests.engine.training.test_data import make_folder
from tests.support.drawings import pick
from tests.support.pages import cells, read, section
from tests.support.scripts import drawn

RATE = (-1,)  # 0.316 alone
TOY_PARTS = (
    Part("digits", 1, (RESIDUAL, PLAIN, PLAIN_NEAR, SHORT, LONG), RATE, 1, 3),
    Part("digits", 2, (RESIDUAL, PLAIN), RATE, 1, 2),
    Part("CIFAR-10", 1, (RESIDUAL, PLAIN, PLAIN_LOOKS_LINEAR), RATE, 1, 3),
)
DIVERGES = (LONG.name, 1002)
TABLES = {
    "replicates", "conditions", "shares", "power", "correct", "tuning", "losses", "profiles", "jacobians",
    "linear", "text_outcomes", "text_shares", "text_jacobians",
}  # fmt: skip
TEST_IMAGES = {"digits 8x8": 360, "CIFAR-10": 30}
SHARE = {LONG.name: (1, 0), SHORT.name: (-1, 0), PLAIN.name: (0, 1), RESIDUAL.name: (0, -1)}
"""The weights of the share of short paths: above and below the line."""


@dataclass(frozen=True)
class Toy:
    """A finished call: its settings, its folder, what it printed, and the runs that it trained."""

    settings: answer.Settings
    folder: Path
    shown: str
    runs: list[Run]

    def table(self, name: str) -> pd.DataFrame:
        return pd.read_csv(self.folder / f"{name}.csv", dtype={"correct": str}, keep_default_na=name != "correct")

    def run(self, control: str, seed: int, *, data: str = "digits 8x8", budget: int = 1) -> Run:
        wanted = {"control": control, "budget": budget}
        (found,) = (
            run
            for run in self.runs
            if run.seed == seed and wanted.items() <= run.labels.items() and (data == "CIFAR-10") == (run.depth == 8)
        )
        return found

    def file(self, run: Run, name: str) -> Path:
        return self.folder / "runs" / run.name / name


def coarse_spectrum(model: nn.Module, images: Tensor, **options: Any) -> pd.DataFrame:
    """Of every second pixel: Jacobians of a sixteenth of the entries take most of the time otherwise."""
    return jacobian_spectrum(model, images[..., ::2, ::2], **options)


def call(settings: answer.Settings) -> str:
    """What it prints, on one line."""
    with redirect_stdout(io.StringIO()) as text, redirect_stderr(io.StringIO()):
        answer.main(settings)
    return " ".join(text.getvalue().split())


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Toy]:
    """On digits and on coloured squares; one reported run has a rate at which its loss overflows. The patches stay
    until the module's end."""
    out, runs = tmp_path_factory.mktemp("answer"), list[Run]()
    classes = {"a": 40, "b": 40, "c": 40}
    images = make_folder(out / "images", {"train": classes, "test": dict.fromkeys(classes, 10)})
    settings = answer.Settings(
        depths=(14,), width=4, parts=(1, 2, 3), training=Training(epochs=3), execution=Execution(1), out=out,
        cifar10=images, cifar10_images=60, cifar10_size=8, cifar10_depth=8, cifar10_width=4,
    )  # fmt: skip

    def train(run: Run, checkpoint: Path | None = None, **options: Any) -> Outcome:
        runs.append(run)
        if (run.labels["control"], run.seed) == DIVERGES:
            training = replace(run.recipe.training, learning_rate=1e30)
            run = replace(run, recipe=replace(run.recipe, training=training))
        return replicate.train_replicate(run, checkpoint, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learning_rate_search, "MAX_EXTENSION", 0)
        patch.setattr(answer, "PARTS", TOY_PARTS)
        patch.setattr(answer, "MEASURED", 1)
        patch.setattr(answer, "train_replicate", train)
        patch.setattr(replicate, "jacobian_spectrum", coarse_spectrum)
        patch.setattr(replicate, "IMAGES", {"paths": 8, "jacobians": 2})
        patch.setattr(results, "power", partial(results.power, worlds=50))
        yield Toy(settings, out / "answer", call(settings), runs)


def errors_of(toy: Toy) -> dict[str, np.ndarray]:
    """Those of the first part from correct.csv: (seeds, test images) by condition."""
    found: dict[str, list[np.ndarray]] = {}
    for row in pick(toy.table("correct"), data="digits 8x8", budget=1).to_dict("records"):
        packed = np.frombuffer(bytes.fromhex(row["correct"]), np.uint8)
        bits = np.unpackbits(packed, count=row["count"])
        found.setdefault(row["control"], []).append(1.0 - bits if row["correct"] else np.full(360, 0.9))
    return {name: np.array(rows) for name, rows in found.items()}


def test_every_table_and_figure_is_there(toy: Toy) -> None:
    assert {file.stem for file in toy.folder.glob("*.csv")} == TABLES | {"decisions"}
    shares = cells(section(read(toy.folder / "report.html"), "Decisions").one("table"))
    assert [row[:2] for row in shares] == toy.table("text_shares").fillna("").iloc[:, 1:3].to_numpy().tolist()
    assert drawn(toy.folder) == {"answer", "answer_losses"}
    assert all(len(toy.table(name)) for name in TABLES)
    written = set(json.loads((toy.folder / "written.json").read_text()))
    assert written >= {f"{name}.csv" for name in TABLES}
    found = toy.table("replicates")
    parts = found.drop_duplicates(["data", "budget", "control", "seed"]).groupby(["data", "budget"])
    assert parts.size().to_dict() == {("digits 8x8", 1): 15, ("digits 8x8", 2): 4, ("CIFAR-10", 1): 9}
    assert parts["step"].unique().map(list).to_dict() == {
        ("digits 8x8", 1): [24], ("digits 8x8", 2): [48], ("CIFAR-10", 1): [3],
    }  # fmt: skip
    assert set(found["learning_rate"]) == {0.316}
    assert set(pick(found, control=PLAIN_NEAR.name)["first_weights"]) == {"near-identity"}


def test_conditions_of_two_budgets_have_one_row_of_jacobians(toy: Toy) -> None:
    text = toy.table("text_jacobians")
    assert text.groupby("where")["Unnamed: 1"].apply(list).to_dict() == {
        "digits 8x8": [RESIDUAL.name, PLAIN.name, PLAIN_NEAR.name, SHORT.name, LONG.name],
        "CIFAR-10": [RESIDUAL.name, PLAIN.name, PLAIN_LOOKS_LINEAR.name],
    }
    found = toy.table("jacobians")
    assert not found.duplicated(["data", "control", "outcome", "quantity"]).any()
    of_stream = pd.read_csv(toy.file(toy.run(PLAIN.name, 1000), "jacobians.csv"))
    wanted = pick(of_stream, outcome="stream", quantity="spread")["value"].item()
    own = pick(found, data="digits 8x8", control=PLAIN.name, outcome="stream", quantity="spread")
    assert own["mean"].item() == pytest.approx(wanted)


def test_the_share_of_short_paths_is_that_of_the_images_in_the_table(toy: Toy) -> None:
    """Fieller's interval in plain numpy: all r for which t² Var(above - r below) >= (above - r below)²."""
    errors = errors_of(toy)
    weights, wrong = np.array(list(SHARE.values())).T, np.array([errors[name] for name in SHARE])
    above, below = weights @ wrong.mean((1, 2))
    of_seeds, by_image = wrong.mean(2).var(1, ddof=1) / 3, wrong.mean(1)
    covariance = (weights * of_seeds) @ weights.T + np.cov(weights @ by_image) / 360
    share = above / below
    parts = [*((weights[0] - share * weights[1]) ** 2 * of_seeds)]
    parts.append((weights[0] - share * weights[1]) @ np.cov(by_image) @ (weights[0] - share * weights[1]) / 360)
    df = sum(parts) ** 2 / sum(part**2 / n for part, n in zip(parts, (2, 2, 2, 2, 359), strict=True))
    t = stats.t.ppf(0.975, df)
    low, high = np.roots(
        [
            below**2 - t**2 * covariance[1, 1],
            -2 * (above * below - t**2 * covariance[0, 1]),
            above**2 - t**2 * covariance[0, 0],
        ]
    )[::-1]
    found = pick(toy.table("shares"), data="digits 8x8", budget=1, outcome="test error", effect="short paths")
    numbers = found.set_index("quantity")["value"]
    wanted = {"estimate": share, "low": low, "high": high, "df": df, "gap": below}
    assert {name: numbers[name] for name in wanted} == pytest.approx(wanted, rel=1e-9)
    assert numbers["bootstrap low"] < share < numbers["bootstrap high"]


def test_secondary_shares_are_there_where_their_conditions_are(toy: Toy) -> None:
    found = toy.table("shares").drop_duplicates(["data", "budget", "outcome", "treatment", "effect"])
    by_family = found.groupby(["data", "treatment", "outcome"])["effect"].apply(list).to_dict()
    closed = [PLAIN_NEAR.name, SHORT.name, LONG.name]
    assert by_family[("digits 8x8", "shares", "test error")] == ["short paths"]
    for outcome in ("test error", "training error", "log training loss"):
        assert by_family[("digits 8x8", "gap closed", outcome)] == closed
        assert by_family[("CIFAR-10", "gap closed", outcome)] == [PLAIN_LOOKS_LINEAR.name]
    assert set(found["budget"]) == {1}  # of plain and residual alone there is no share
    assert set(pick(found, outcome="log training loss")["reading"]) == {"shown, not judged"}
    assert "log training loss" not in set(toy.table("power")["outcome"])


def test_runs_that_choose_rates_never_see_test_images(toy: Toy) -> None:
    tuning = [run for run in toy.runs if run.seed == 2000]
    assert len(tuning) == 5 + 2 + 3
    for run in tuning:
        folder = toy.folder / "runs" / run.name
        for file in folder.glob("*.csv"):
            table = pd.read_csv(file)
            assert "split" in table, file.name
            assert set(table["split"]) <= {"train", "validation"}
        assert {file.stem for file in folder.iterdir()} == {"run", "curves", "losses", "outcomes"}
        assert run.recipe.evaluated == ("train", "validation")
    for file in toy.folder.glob("parts/*/tuning/*.csv"):
        assert "test" not in file.read_text()
    searched = toy.table("tuning")
    assert set(searched["seed"]) == {2000}
    assert set(searched["split"]) == {"validation"}
    assert not set(toy.table("replicates")["seed"]) & {2000}


def test_reported_runs_hold_the_bits_that_their_accuracy_counts(toy: Toy) -> None:
    table = toy.table("correct")
    assert len(table) == 15 + 4 + 9
    for row in table.to_dict("records"):
        run = toy.run(row["control"], row["seed"], data=row["data"], budget=row["budget"])
        assert row["count"] == TEST_IMAGES[row["data"]]
        if (run.labels["control"], run.seed) == DIVERGES:
            continue
        right = np.load(toy.file(run, "arrays.npz"))["correct"]
        ends = pick(pd.read_csv(toy.file(run, "outcomes.csv")), split="test", quantity="accuracy")
        assert right.shape == (row["count"],)
        assert ends["value"].item() == pytest.approx(right.mean())
        assert np.packbits(right).tobytes().hex() == row["correct"]


def test_gradients_are_measured_of_the_first_seeds_alone(toy: Toy) -> None:
    for run in toy.runs:
        there = (toy.folder / "runs" / run.name / "jacobians.csv").exists()
        assert there == (run.seed == 1000), run.name
    parts = pick(toy.table("profiles"), data="digits 8x8", budget=1, control=RESIDUAL.name)
    assert set(parts["outcome"]) == {"alignment", "gradients", "movement", "parts", "paths"}
    assert set(parts["epoch"]) == {0, 3}


def test_a_run_that_diverged_counts_as_chance_and_has_no_bits(toy: Toy) -> None:
    control, seed = DIVERGES
    report = json.loads(toy.file(toy.run(control, seed), "run.json").read_text())
    assert report["outcome"].startswith("diverged at step")
    table = toy.table("correct")
    assert table[table["correct"] == ""][["control", "seed"]].to_numpy().tolist() == [[control, seed]]
    values = pick(toy.table("replicates"), control=control, seed=seed).set_index("outcome")["value"]
    assert values[["test error", "training error"]].tolist() == pytest.approx([0.9, 0.9])
    assert values[["log training loss", "steps to loss 0.5", "steps to loss 0.1"]].isna().all()
    errors = errors_of(toy)[control].mean(1)
    means = pick(toy.table("conditions"), control=control, outcome="test error", quantity="mean")["value"]
    assert means.item() == pytest.approx((errors[0] + errors[1] + 0.9) / 3)
    reached = pick(toy.table("conditions"), control=control, outcome="log training loss").set_index("quantity")["value"]
    assert (reached["n"], reached["reached"]) == (3, 2)
    assert np.isnan(reached["mean"])


def test_figures_have_the_conditions_of_the_plan(toy: Toy) -> None:
    table = pd.read_csv(toy.folder / "figures" / "answer.csv")
    assert set(table["control"].dropna()) == {RESIDUAL.name, PLAIN.name, PLAIN_NEAR.name, PLAIN_LOOKS_LINEAR.name}
    assert set(table["effect"].dropna()) == {"short paths", PLAIN_NEAR.name, PLAIN_LOOKS_LINEAR.name}
    losses = pd.read_csv(toy.folder / "figures" / "answer_losses.csv")
    assert set(losses["data"]) == {"digits 8x8"}
    assert losses["step"].agg(["min", "max"]).tolist() == [8, 24]


def test_the_default_is_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer, "PARTS", PARTS)  # the module's patches are there
    settings = answer.Settings()
    assert settings.chosen() == [part for part in PARTS if part.data == "digits"]
    assert replace(settings, cifar10=Path()).chosen() == list(PARTS)


def test_a_linear_classifier_stands_beside_the_networks(toy: Toy) -> None:
    """On each seed's own split, chosen by validation; coloured squares are no task for it."""
    found = toy.table("linear")
    assert found.groupby("data").size().to_dict() == {"digits 8x8": 3, "CIFAR-10": 3}
    errors = found.groupby("data")["value"].mean()
    assert 0.02 < errors["digits 8x8"] < 0.06
    assert f"digits 8x8: a linear classifier of the pixels has a test error of {errors['digits 8x8']:.3f}, n = 3" in (
        toy.shown
    )


def test_it_says_what_the_primary_shares_are(toy: Toy) -> None:
    found = pick(toy.table("shares"), data="digits 8x8", treatment="shares", outcome="test error")["reading"].iloc[0]
    assert f"digits 8x8, 24 steps, test error. short paths: {found}" in toy.shown
    assert "of short and long paths is below 0.5 in" in toy.shown
    assert "CIFAR-10 was left out" not in toy.shown


def test_a_second_call_trains_nothing_and_prints_the_same(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(show, "save_figure", lambda *_: None)
    before = {path: path.stat().st_mtime_ns for path in toy.folder.glob("runs/*/*")}
    tables = {name: toy.table(name) for name in TABLES}
    trained = len(toy.runs)
    shown = call(toy.settings)
    assert len(toy.runs) == trained == 38
    assert {path: path.stat().st_mtime_ns for path in toy.folder.glob("runs/*/*")} == before
    assert shown.split("digits 8x8, 24 steps, test error. ")[1] == toy.shown.split("24 steps, test error. ")[1]
    for name, table in tables.items():
        pd.testing.assert_frame_equal(toy.table(name), table)


def test_parts_that_were_finished_elsewhere_are_reported_as_if_they_were_trained_here(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of all parts, nothing is trained. Beside one that is trained, its own runs may not be there."""
    monkeypatch.setattr(show, "save_figure", lambda *_: None)
    trained = len(toy.runs)
    shown = call(replace(toy.settings, parts=(), tables=toy.folder, out=tmp_path))
    assert len(toy.runs) == trained
    for name in TABLES:
        found = pd.read_csv(
            tmp_path / "answer" / f"{name}.csv", dtype={"correct": str}, keep_default_na=name != "correct"
        )
        pd.testing.assert_frame_equal(found, toy.table(name))
    assert shown.split("digits 8x8, 24 steps, test error. ")[1] == toy.shown.split("24 steps, test error. ")[1]
    message = f"--tables {toy.folder}: has 'paths of at least 4' at 1 x epochs; leave part 1 out, by --parts"
    with pytest.raises(BadInput, match=message):
        call(replace(toy.settings, tables=toy.folder, out=tmp_path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cifar10_depth": 9}, "--cifar10-depth 9: depth 9 is not 6n + 2"),
        ({"network": "inception", "depths": (20,), "cifar10_depth": 20}, "'plain, near-identity' on inception: first"),
        ({"cifar10": Path("nowhere")}, "--cifar10 nowhere: there is no such folder"),
        ({"cifar10_size": 3}, "--cifar10-size 3: give at least 4"),
        ({"cifar10_images": 200}, "--cifar10-images 200: give 3 .one a class. to 105 images"),
        ({"parts": (3,), "cifar10": None}, "nothing to train: give --parts"),
        ({"parts": (7,)}, "--parts 7: the plan has 1 to 3"),
        ({"depths": (8,)}, "no path has 4 branches: the network has 3 blocks; give other --depths"),
    ],
)
def test_a_part_that_cannot_be_trained_is_refused_before_any_is(
    toy: Toy, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadInput, match=message.replace("+", r"\+")):
        call(replace(toy.settings, out=tmp_path / "none", **changes))
    assert not (tmp_path / "none").exists()


def test_a_folder_that_fixes_its_validation_images_is_refused_before_any_part_is_trained(
    toy: Toy, tmp_path: Path
) -> None:
    """Each seed draws its own split, which such a folder does not allow."""
    classes = {"a": 40, "b": 40, "c": 40}
    images = make_folder(tmp_path / "images", {"train": classes, "val": classes, "test": classes})
    with pytest.raises(BadInput, match="--seeds 1000: images has validation images of its own, in val/; to have them"):
        call(replace(toy.settings, cifar10=images, out=tmp_path / "none"))
    assert not (tmp_path / "none").exists()
