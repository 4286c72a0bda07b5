"""The finished runs of `answer` as tables: made-up runs whose outcomes, shares and sentences are known."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from experiments.engine.running.messages import BadInput
from experiments.engine.running.run import Run, Tables
from experiments.engine.statistics.shares import condition_means, read_shares
from experiments.questions.answer.plan import (
    LONG,
    PARTS,
    PLAIN,
    PLAIN_LOOKS_LINEAR,
    PLAIN_NEAR,
    PLAIN_ORTHOGONAL,
    PRIMARY,
    RESIDUAL,
    SHARES,
    VALUE_AT_NORMS,
    Part,
)
from experiments.questions.answer.results import (
    Family,
    Trained,
    conclusions,
    errors_by_image,
    families,
    jacobians,
    joined,
    loss_curves,
    name_of_first_share,
    parallel_blocks,
    power_text,
    primary_family,
    profiles,
    read_tables,
    replicates,
    right_images,
    summary,
    tables_of,
)
from tests.support.drawings import pick

IMAGES, CLASSES, WINDOW, STEPS, SEEDS = 203, 10, 2, 8, 6
DIVERGED = None
# plain 0.8, residual 0.1; conditioning 1, value 0, short paths 0.5 of the gap of 0.7
TRUE = {
    "residual": 0.1, "plain": 0.8, "residual, near-identity": 0.15, "plain, near-identity": 0.15,
    "value alone, near-identity": 0.15, "paths of at most 3": 0.2, "paths of at least 4": 0.55,
}  # fmt: skip


@dataclass(frozen=True)
class Weights:
    """All of a recipe that these tables say."""

    first_weights: str = "he"


def made_up(
    folder: Path,
    errors: Mapping[str, Sequence[float | None]],
    *,
    losses: Mapping[str, Sequence[float]] | None = None,
    cosines: Mapping[str, Sequence[float]] | None = None,
    data: str = "digits",
    part: Part = PARTS[0],
    images: int = IMAGES,
) -> Trained:
    """Runs with these test errors by condition and seed (None: diverged), on images drawn for each run, in a store
    below the folder. losses: of every step, for each run. cosines: of short and long paths, by block, at epoch 0."""
    draws, runs, tables = np.random.default_rng(0), list[Run](), dict[str, list[pd.DataFrame]]()
    conditions = {condition.name: condition for condition in (*PRIMARY, *PARTS[1].conditions, VALUE_AT_NORMS)}
    for name, of_seeds in errors.items():
        for seed, error in enumerate(of_seeds):
            weights = str(conditions[name].first_weights or "he")
            labels = {"control": name, "learning_rate": 0.1}
            run = Run(name.replace(" ", "_").replace("/", "_"), "arm", 8, seed, Weights(weights), (), labels)
            run = replace(run, arm=f"{data}-{run.experiment}")
            runs.append(run)
            about = {"control": name, "seed": seed, "learning_rate": 0.1}
            if losses:
                of_run = pd.DataFrame({"step": range(1, STEPS + 1), "value": losses[name], "split": "train"})
                tables.setdefault("losses", []).append(of_run.assign(quantity="loss", **about))
            if error is not None:
                tables.setdefault("outcomes", []).append(ends(error).assign(**about))
                wrong = draws.permutation(images) < round(error * images)
                (folder / run.name).mkdir()
                np.savez_compressed(folder / run.name / "arrays.npz", correct=~wrong)
    for name, values in (cosines or {}).items():
        rows = pd.DataFrame({"depth": range(len(values)), "value": values, "epoch": 0, "quantity": "cosine"})
        last = rows.assign(epoch=9, value=0.9)
        tables.setdefault("parts", []).append(pd.concat([rows, last]).assign(control=name, seed=0))
    joined: Tables = {name: pd.concat(parts, ignore_index=True) for name, parts in tables.items()}
    return Trained(part, data, CLASSES, images, STEPS, WINDOW, runs, joined, pd.DataFrame(), folder)


def ends(error: float) -> pd.DataFrame:
    """A run's outcomes: the training error is half of the test error, the training loss its root."""
    values = {("train", "accuracy"): 1 - error / 2, ("test", "accuracy"): 1 - error, ("train", "loss"): error**0.5}
    return pd.DataFrame(
        {"split": split, "quantity": quantity, "value": value} for (split, quantity), value in values.items()
    )


def spread(errors: Mapping[str, float], *, sd: float = 0.005, seeds: int = SEEDS) -> dict[str, list[float]]:
    """Errors of seeds whose mean is exactly the given one, to a whole number of 1000 images."""
    around = np.linspace(-1, 1, seeds) * sd
    return {name: [round(error + shift, 3) for shift in around] for name, error in errors.items()}


def found_in(parts: Sequence[Trained]) -> Tables:
    return joined([tables_of(part) for part in parts])


def families_of(parts: Sequence[Trained]) -> list[Family]:
    found = found_in(parts)
    return families(found["replicates"], found["correct"])


def read_of(parts: Sequence[Trained]) -> dict[tuple[str, str], Family]:
    return {(f.about["treatment"], f.about["outcome"]): f for f in families_of(parts)}


def errors_of(trained: Trained) -> dict[str, np.ndarray]:
    return errors_by_image(replicates(trained), right_images(trained))


def test_replicates_are_outcomes_of_runs(tmp_path: Path) -> None:
    falling = [2, 1, 0.8, 0.2, 0.1, 0.1, 0.05, 0.05]  # means of two: 1.5, 0.9, 0.5, 0.15, 0.1, ...
    trained = made_up(tmp_path, {"residual": [0.04, DIVERGED]}, losses={"residual": falling})
    found = replicates(trained)
    numbers = [pick(found, seed=seed).set_index("outcome")["value"] for seed in (0, 1)]
    assert numbers[0].to_dict() == pytest.approx({
        "test error": 0.04, "training error": 0.02, "log training loss": np.log(0.2),
        "steps to loss 0.5": 4, "steps to loss 0.1": 6,
    })  # fmt: skip
    assert numbers[1][["test error", "training error"]].tolist() == pytest.approx([0.9, 0.9])
    assert np.isnan(numbers[1]["log training loss"])
    about = found[["data", "control", "first_weights", "learning_rate", "budget", "step"]].drop_duplicates()
    assert about.to_numpy().tolist() == [["digits", "residual", "he", 0.1, 1, STEPS]]


def test_where_every_run_diverged_there_are_chance_errors_and_no_curves(tmp_path: Path) -> None:
    trained = made_up(tmp_path, {"residual": [DIVERGED] * 3, "plain": [DIVERGED] * 3})
    found = replicates(trained)
    assert pick(found, outcome="test error")["value"].tolist() == pytest.approx([0.9] * 6)
    assert pick(found, outcome="steps to loss 0.5")["value"].isna().all()
    assert loss_curves(trained).empty
    assert jacobians(trained).empty
    assert set(right_images(trained)["correct"]) == {""}
    assert errors_of(trained)["plain"] == pytest.approx(np.full((3, IMAGES), 0.9))


def test_a_mean_of_steps_is_taken_where_all_runs_reach_the_loss(tmp_path: Path) -> None:
    slow = [2.0, 1, 0.6, 0.2, 0.2, 0.2, 0.2, 0.2]
    trained = made_up(tmp_path, {"residual": [0.1, 0.2, 0.3], "plain": [0.4] * 3},
                      losses={"residual": slow, "plain": [1.0] * STEPS})  # fmt: skip
    found = summary(replicates(trained))

    def of(control: str, outcome: str) -> dict[Any, Any]:
        return pick(found, control=control, outcome=outcome).set_index("quantity")["value"].to_dict()

    assert of("residual", "test error") == pytest.approx(
        {"mean": 0.2, "sd": 0.1, "low": max(-1, 0.2 - 4.3027 * 0.1 / 3**0.5), "high": 0.2 + 4.3027 * 0.1 / 3**0.5,
         "n": 3, "reached": 3}, rel=1e-4,
    )  # fmt: skip
    assert of("residual", "steps to loss 0.5")["mean"] == 4
    censored = of("plain", "steps to loss 0.5")
    assert (censored["n"], censored["reached"]) == (3, 0)
    assert np.isnan([censored[name] for name in ("mean", "sd", "low", "high")]).all()
    values = replicates(trained)
    some = values.assign(value=values["value"].mask((values["seed"] == 1) & (values["outcome"] == "steps to loss 0.5")))
    found = summary(some)
    one = of("residual", "steps to loss 0.5")
    assert (one["n"], one["reached"], np.isnan(one["mean"])) == (3, 2, True)


def test_right_images_can_be_read_back(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    trained = made_up(tmp_path / "store", {"residual": [0.3, DIVERGED, 0.1], "plain": [1.0]})
    right_images(trained).to_csv(tmp_path / "correct.csv", index=False)
    read = pd.read_csv(tmp_path / "correct.csv", dtype={"correct": str}, keep_default_na=False)
    assert read[["control", "seed", "count"]].to_numpy().tolist() == [
        ["residual", 0, IMAGES], ["residual", 1, IMAGES], ["residual", 2, IMAGES], ["plain", 0, IMAGES],
    ]  # fmt: skip
    wanted = {name: iter(rows) for name, rows in errors_of(trained).items()}
    for row in read.to_dict("records"):
        errors = next(wanted[row["control"]])
        if row["seed"] == 1:
            assert row["correct"] == ""
            assert errors == pytest.approx(np.full(IMAGES, 0.9))
            continue
        packed = np.frombuffer(bytes.fromhex(row["correct"]), np.uint8)
        assert (np.unpackbits(packed, count=IMAGES) == 1 - errors).all()
        assert not np.unpackbits(packed)[IMAGES:].any()


def test_loss_curves_are_means_of_an_epoch_at_moments_that_all_runs_share(tmp_path: Path) -> None:
    losses = {"residual": [8.0, 6, 4, 2, 1, 1, 0.5, 0.5], "plain": [3.0] * STEPS}
    found = loss_curves(made_up(tmp_path, {"residual": [0.1] * 2, "plain": [0.5] * 2}, losses=losses))
    residual = pick(found, control="residual", seed=1).set_index("step")["value"]
    assert residual.to_dict() == {2: 7, 3: 5, 4: 3, 5: 1.5, 6: 1, 7: 0.75, 8: 0.5}
    assert len(found) == 4 * 7
    assert set(found["outcome"]) == {"training loss"}


@pytest.mark.parametrize("truth", [0.0, 0.5, 1.0])
def test_shares_of_made_up_runs_are_the_true_ones(tmp_path: Path, truth: float) -> None:
    """The gap is 0.7, of which conditioning leaves 1 - truth; value and paths make a difference of truth of it."""
    gap = 0.7
    errors = {
        "residual": 0.1, "plain": 0.8,
        "residual, near-identity": 0.1, "plain, near-identity": 0.1 + (1 - truth) * gap,
        "value alone, near-identity": 0.1 + max(1 - 2 * truth, 0) * gap,  # no more than conditioning leaves
        "paths of at most 3": 0.15, "paths of at least 4": 0.15 + truth * gap,
    }  # fmt: skip
    found = read_of([made_up(tmp_path, spread(errors), images=1000)])
    primary = found["shares", "test error"]
    shares = {of.name: of.value for of in primary.estimates}
    value = min(truth, 1 - truth)
    assert shares == pytest.approx({"conditioning": truth, "value": value, "short paths": truth}, abs=2e-3)
    words = {0.0: "negligible", 0.5: "contributes", 1.0: "explains most"}
    assert {primary.reading(of) for of in primary.estimates if of.name != "value"} == {words[truth]}
    of_training = {of.name: of.value for of in found["shares", "training error"].estimates}
    assert of_training == pytest.approx(shares, abs=2e-3)
    closed = {of.name: of.value for of in found["gap closed", "test error"].estimates}
    assert closed["plain, near-identity"] == pytest.approx(truth, abs=2e-3)
    assert set(closed) == set(errors) - {"plain", "residual"}


def test_images_count_in_the_interval_of_test_errors_and_not_in_that_of_training_errors(tmp_path: Path) -> None:
    few = read_of([made_up(tmp_path, spread(TRUE, sd=0.0), images=1000)])
    by_image, by_run = few["shares", "test error"], few["shares", "training error"]
    assert (by_image.means.images, by_run.means.images) == (1000, 0)
    assert by_image.means.image_covariance.any()
    for of_images, of_runs in zip(by_image.estimates, by_run.estimates, strict=True):
        assert of_images.high - of_images.low > 0.01
        assert of_runs.high - of_runs.low < 1e-9
        assert of_images.df == pytest.approx(999)


def test_a_family_has_the_shares_whose_conditions_were_trained(tmp_path: Path) -> None:
    names = ("residual", "plain", "plain, near-identity")
    found = read_of([made_up(tmp_path, spread({name: TRUE[name] for name in names}), images=1000)])
    assert {key: [share.name for share in family.shares] for key, family in found.items()} == {
        ("gap closed", outcome): ["plain, near-identity"]
        for outcome in ("test error", "training error", "log training loss")
    }
    shown = found["gap closed", "log training loss"]
    assert not shown.is_judged
    assert set(shown.table["reading"]) == {"shown, not judged"}


def test_budgets_are_read_apart_and_their_parts_together(tmp_path: Path) -> None:
    parts = []
    for index, (data, names) in enumerate(
        (("digits", list(TRUE)[:3]), ("CIFAR-10", list(TRUE)), ("digits", list(TRUE)[3:]))
    ):
        (tmp_path / str(index)).mkdir()
        parts.append(made_up(tmp_path / str(index), {name: [TRUE[name]] * 3 for name in names}, data=data))
    longer = replace(parts[1], data="digits", part=PARTS[2], steps=5 * STEPS)
    found = families_of([*parts, longer])
    counts = {
        (f.about["data"], f.about["step"]): len(f.shares)
        for f in found
        if (f.about["treatment"], f.about["outcome"]) == ("shares", "test error")
    }
    assert counts == {("digits", STEPS): 3, ("CIFAR-10", STEPS): 3, ("digits", 5 * STEPS): 3}
    primary = primary_family(found)
    assert primary is not None
    assert (primary.about["data"], primary.about["step"]) == ("digits", STEPS)
    assert primary_family(families_of([parts[1], longer])) is None


def test_tables_that_were_written_are_read_as_they_were(tmp_path: Path) -> None:
    """Also a run that diverged, and a folder without the tables that are not needed."""
    (tmp_path / "store").mkdir()
    errors = {"plain": [0.8, 0.85, DIVERGED], "residual": [0.1, 0.2, 0.1], "plain, near-identity": [0.2] * 3}
    written = found_in([made_up(tmp_path / "store", errors)])
    for name in ("replicates", "correct"):
        written[name].to_csv(tmp_path / f"{name}.csv", index=False)
    read = read_tables(tmp_path)
    for name in ("replicates", "correct"):
        pd.testing.assert_frame_equal(read[name], written[name])
    assert read["profiles"].empty
    before, after = (families(found["replicates"], found["correct"]) for found in (written, read))
    for first, second in zip(before, after, strict=True):
        pd.testing.assert_frame_equal(first.table, second.table)
    (tmp_path / "correct.csv").unlink()
    with pytest.raises(BadInput, match=r"has no correct\.csv; give a folder that this script wrote"):
        read_tables(tmp_path)


@pytest.mark.parametrize(
    ("near", "sd", "word"),
    [
        (0.15, 0.005, "explains most"),
        (0.15, 0.25, "explains most"),
        (0.73, 0.05, "undecided"),
        (0.73, 0.15, "underpowered"),
    ],
)
def test_a_wide_interval_is_underpowered_where_it_decides_nothing(near: float, sd: float, word: str) -> None:
    """A share of 0.17 is too near to 0.1 to be read with these spreads; one of 1 is above 0.5 at any of them."""
    errors = {**TRUE, "plain, near-identity": near}
    draws = {name: error + np.linspace(-sd, sd, SEEDS) for name, error in errors.items()}
    means = condition_means(draws)
    family = Family({"outcome": "training error"}, means, SHARES[:1], read_shares(means, SHARES[:1]), draws)
    (found,) = family.estimates
    assert (found.high - found.low > 0.5) == (sd > 0.1)
    assert family.reading(found) == word
    assert found.reading == ("undecided" if word == "underpowered" else word)


def test_tables_of_a_family_have_its_words_bootstrap_and_power(tmp_path: Path) -> None:
    family = read_of([made_up(tmp_path, spread(TRUE), images=1000)])["shares", "test error"]
    found = family.table
    assert set(pick(found, effect="conditioning")["reading"]) == {"explains most"}
    assert set(pick(found, effect="value")["reading"]) == {"negligible"}
    ends_of = pick(found, effect="short paths").set_index("quantity")["value"]
    assert ends_of["bootstrap low"] < 0.5 < ends_of["bootstrap high"]
    assert (ends_of["bootstrap low"], ends_of["bootstrap high"]) == pytest.approx(
        (ends_of["low"], ends_of["high"]), abs=0.02
    )
    assert power_text(family.power, "value") == "1.00, 1.00, 1.00, 1.00"
    assert power_text(family.power, "none") == "-"
    assert set(family.power["treatment"]) == {"shares"}


@pytest.mark.parametrize(
    ("cosines", "part"), [([0.1, 0.2, 0.9, np.nan], 2 / 3), ([0.6, 0.5, 0.1], 1 / 3), ([np.nan], np.nan)]
)
def test_parallel_blocks_are_counted_at_the_first_weights(tmp_path: Path, cosines: list[float], part: float) -> None:
    errors = {name: [0.1, 0.1, 0.1] for name in (RESIDUAL.name, LONG.name)}
    trained = made_up(tmp_path, errors, cosines={RESIDUAL.name: cosines, LONG.name: [0.9] * 4})
    assert parallel_blocks(profiles(trained), budget=1) == pytest.approx(part, nan_ok=True)
    assert np.isnan(parallel_blocks(profiles(trained), budget=5))
    (tmp_path / "other").mkdir()
    without = made_up(tmp_path / "other", {PLAIN.name: [0.1] * 3}, cosines={PLAIN.name: [0.0]})
    assert np.isnan(parallel_blocks(profiles(without)))
    assert np.isnan(parallel_blocks(pd.DataFrame()))


def test_the_mean_over_seeds_decides_whether_blocks_are_parallel(tmp_path: Path) -> None:
    trained = made_up(tmp_path, {RESIDUAL.name: [0.1]}, cosines={RESIDUAL.name: [0.4, 0.4]})
    more = trained.tables["parts"].assign(seed=1, value=[0.2, 0.8, 0.9, 0.9])
    both = replace(trained, tables={"parts": pd.concat([trained.tables["parts"], more])})
    assert parallel_blocks(profiles(both)) == 0.5  # means 0.3 and 0.6


@pytest.mark.parametrize(
    ("near", "far", "sd", "word"),
    [
        (0.15, 0.15, 0.005, "as good as"),
        (0.15, 0.05, 0.005, "as good as"),  # better
        (0.15, 0.3, 0.005, "worse than"),
        (0.15, 0.2, 0.005, "perhaps as good as"),
        (0.15, 0.15, 0.2, "perhaps as good as"),
    ],
)
def test_the_first_share_is_named_by_networks_far_from_the_identity(
    tmp_path: Path, near: float, far: float, sd: float, word: str
) -> None:
    errors = spread({PLAIN_NEAR.name: near, PLAIN_ORTHOGONAL.name: far}, sd=0.0)
    shifts = np.linspace(-sd, sd, SEEDS)
    errors = {
        name: [float(np.clip(e + s, 1e-3, 1)) for e, s in zip(of, shifts, strict=True)] for name, of in errors.items()
    }
    (line,) = name_of_first_share(errors_of(made_up(tmp_path, errors, images=4000)))
    assert line.startswith(f"{PLAIN_ORTHOGONAL.name} is {word} near-identity: test error ")
    assert line.endswith("margin 0.05.")


def test_conclusions_say_the_readings_and_what_may_not_be_read(tmp_path: Path) -> None:
    errors = spread({**TRUE, PLAIN_LOOKS_LINEAR.name: 0.15, PLAIN_ORTHOGONAL.name: 0.7})

    def lines(cosines: Sequence[float], errors: Mapping[str, list[float]] = errors) -> list[str]:
        folder = tmp_path / f"{cosines}"
        folder.mkdir()
        return conclusions_of(made_up(folder, errors, images=1000, cosines={RESIDUAL.name: cosines}))

    first, second, third, *named, correlation, last = lines([0.1, 0.2, 0.9])
    assert first == (
        "digits, 8 steps, test error. conditioning: explains most; value: negligible; short paths: contributes."
    )
    assert second.startswith("Underpowered: a true share of 0, or of 1,")
    assert third == "The cosine of short and long paths is below 0.5 in 67 % of blocks."
    assert [line.split(" near-identity")[0] for line in named] == [
        "digits, 8 steps: plain, looks-linear is as good as", "digits, 8 steps: plain, delta-orthogonal is worse than",
    ]  # fmt: skip
    assert correlation == "digits, 8 steps: plain and residual errors correlate by 1.00 over 6 seeds."
    assert last == "Shares need not sum to 1; all but these three are secondary."
    assert not any("correlate" in line for line in lines([0.1], {**errors, PLAIN.name: [0.6] * SEEDS}))
    assert lines([0.9, 0.2, 0.9])[2].endswith(
        "33 % of blocks: they are one gradient, and their share is not to be read."
    )


def conclusions_of(trained: Trained) -> list[str]:
    return conclusions(families_of([trained]), profiles(trained), pd.DataFrame())


def test_what_was_added_is_a_family_of_its_own(tmp_path: Path) -> None:
    """It changes no other reading, and the closing sentences say that it was added."""
    before = read_of([made_up(tmp_path, spread(TRUE), images=1000)])
    (tmp_path / "added").mkdir()
    trained = made_up(tmp_path / "added", spread({**TRUE, VALUE_AT_NORMS.name: 0.15}), images=1000)
    after = read_of([trained])
    of_added = after["added later", "test error"].estimates
    assert [of.value for of in of_added] == pytest.approx([0.65 / 0.7, 0.0], abs=2e-3)
    assert {key: [of.level for of in family.estimates] for key, family in before.items()} == {
        key: [of.level for of in after[key].estimates] for key in before
    }
    said = [line for line in conclusions_of(trained) if "added after the primary runs" in line]
    assert [line.rpartition(": ")[2] for line in said] == ["explains most.", "negligible."]


def test_conclusions_say_which_readings_have_little_power(tmp_path: Path) -> None:
    """With these spreads a share of 0 would be read right too rarely, though one of 1 is read."""
    trained = made_up(tmp_path, spread(TRUE, sd=0.09), images=1000)
    found = read_of([trained])
    primary = found["shares", "test error"]
    (conditioning, *_) = primary.estimates
    assert not primary.is_powered(conditioning)
    assert "conditioning: explains most (underpowered)" in conclusions_of(trained)[0]


def test_conclusions_of_a_budget_without_the_primary_shares(tmp_path: Path) -> None:
    names = ("residual", "plain", "plain, near-identity")
    trained = made_up(tmp_path, spread({name: TRUE[name] for name in names}), images=1000, part=PARTS[4])
    first, *_ = conclusions_of(trained)
    assert first == "The primary shares were not trained: --parts 1 has them."


def test_jacobians_are_those_of_the_first_part_that_has_a_condition(tmp_path: Path) -> None:
    def part(name: str, controls: Sequence[str], shift: float) -> Trained:
        (tmp_path / name).mkdir()
        rows = pd.DataFrame(
            {"control": control, "seed": seed, "outcome": "blocks", "quantity": "spread", "value": shift + seed + block}
            for control in controls
            for seed in range(3)
            for block in (-1, 1)
        )
        trained = made_up(tmp_path / name, {control: [0.1] * 3 for control in controls})
        return replace(trained, tables={**trained.tables, "jacobians": rows})

    found = found_in([part("once", ["plain"], 1.0), part("longer", ["plain", "residual"], 7.0)])["jacobians"]
    assert found[["control", "mean", "sd"]].to_numpy().tolist() == [["plain", 2, 1], ["residual", 8, 1]]
