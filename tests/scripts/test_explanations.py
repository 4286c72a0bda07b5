"""Which measurement predicts what trains: made-up networks whose truth is known, and a toy run."""

import io
import math
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from experiments import explanations
from experiments.engine.running.messages import BadInput
from experiments.engine.running.run import Tables
from experiments.explanations import BASELINES, FAMILIES, Settings, networks_of
from experiments.questions.answer.plan import PLAIN, PLAIN_NEAR, RESIDUAL
from tests.support.conditions import run_small
from tests.support.drawings import pick
from tests.support.scripts import drawn

SMALL: dict[str, Any] = {"seeds": (1200, 1201), "tuning_seeds": (2200,), "wide_depth": None, "width": 4}
NAMES = (PLAIN.name, PLAIN_NEAR.name)


def made_up(errors: dict[str, list[float]], *, depth: int = 8) -> Tables:
    """The tables of runs whose test errors are given by seed; fewer than two diverged."""
    ends, losses, measured = [], [], []
    for name, values in errors.items():
        for seed, error in enumerate(values):
            about = {"control": name, "depth_total": depth, "seed": seed}
            ends.append({**about, "split": "test", "quantity": "accuracy", "value": 1 - error})
            losses += [{**about, "step": step, "value": error + 1 / step} for step in range(1, 13)]
            measured += [{**about, "measurement": "size", "value": 10 * error + seed}]
    return {"outcomes": pd.DataFrame(ends), "losses": pd.DataFrame(losses), "measured": pd.DataFrame(measured)}


def test_networks_are_means_over_seeds_on_the_scale_from_chance_to_residual() -> None:
    settings = Settings(depths=(8,), families=NAMES, seeds=(0, 1))
    tables = made_up({RESIDUAL.name: [0.1, 0.1], PLAIN.name: [0.5, 0.7], PLAIN_NEAR.name: [0.1]})
    found = networks_of(tables, settings, chance=0.9)
    outcomes = pick(found, quantity="outcome", measurement="size").set_index("control")["value"]
    wanted = {RESIDUAL.name: 1, PLAIN.name: 0.3 / 0.8, PLAIN_NEAR.name: 0.4 / 0.8}  # one seed diverged: mean 0.5
    assert outcomes.to_dict() == pytest.approx(wanted)
    measured = pick(found, quantity="measured", control=PLAIN.name).set_index("measurement")["value"]
    assert measured.to_dict() == pytest.approx({"size": 6.5, "depth": 8, BASELINES[1]: 0.6 + 0.1})
    about = found[["control", "arm", "first_weights", "depth_total", "width"]].drop_duplicates()
    assert about.to_numpy().tolist() == [
        ["residual", "residual", "he", 8, 8],
        ["plain", "plain", "he", 8, 8],
        ["plain, near-identity", "plain", "near-identity", 8, 8],
    ]


def test_a_network_all_of_whose_runs_diverged_is_at_chance_and_keeps_its_place() -> None:
    settings = Settings(depths=(8,), families=(PLAIN.name,), seeds=(0, 1))
    found = networks_of(made_up({RESIDUAL.name: [0.1, 0.1]}), settings, chance=0.9)
    own = pick(found, control=PLAIN.name)
    assert pick(own, quantity="outcome")["value"].tolist() == [0, 0]
    assert pick(own, quantity="measured", measurement=BASELINES[0])["value"].tolist() == [8]
    assert math.isnan(pick(own, quantity="measured", measurement=BASELINES[1])["value"].item())


@pytest.mark.slow
def test_the_report_finds_what_predicts(tmp_path: Path) -> None:
    """Forty networks of ten families: `good` orders them, `inside` within families alone, `bad` not at all."""
    generator, rows = np.random.default_rng(0), []
    for index, family in enumerate(FAMILIES[:10]):
        for depth in (8, 20, 56, 110):
            outcome = index / 10 - depth / 5000
            values = {"good": -(outcome**3), "inside": -depth + 0.0, "bad": generator.normal()}
            values |= {BASELINES[0]: float(depth), BASELINES[1]: generator.normal()}
            about = {"control": family.name, "arm": family.arm, "first_weights": "he", "depth_total": depth, "width": 8}
            for name, value in values.items():
                own = {**about, "measurement": name}
                rows += [
                    {**own, "quantity": "measured", "value": value},
                    {**own, "quantity": "outcome", "value": outcome},
                ]
    with redirect_stdout(io.StringIO()) as text:
        explanations.report(pd.DataFrame(rows), Settings(out=tmp_path).output("explanations"))
    said = " ".join(text.getvalue().split())
    assert "40 networks of 10 families" in said
    assert "has a rank correlation of 1.00 on the other half" in said
    assert "Chosen most often: good." in said
    assert "Predict within families alone: depth, inside." in said
    found = pd.read_csv(tmp_path / "explanations" / "correlations.csv")
    assert pick(found, measurement="good", quantity="rho")["value"].item() == pytest.approx(-1)
    assert set(pick(found, treatment="baseline")["measurement"]) == set(BASELINES)
    assert drawn(tmp_path / "explanations") == {"explanations"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"families": ("dense",)}, "--families: unknown 'dense'; choose from residual, stop-gradient"),
        ({"wide": 8}, "--wide 8: give another than --width, or no --wide-depth"),
        ({"depths": (8,), "families": ("plain",), "wide_depth": None}, "2 networks: a rank correlation needs 4; give"),
        ({"depths": (9,)}, "--depths 9: depth 9 is not 6n"),
    ],
)
def test_mistakes(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        Settings(**changes).check()


@pytest.mark.slow  # a minute: every measurement of four networks
def test_a_toy_run_measures_at_the_first_weights_what_the_probes_say(tmp_path: Path) -> None:
    folder, shown = run_small(explanations, tmp_path, **SMALL, families=(PLAIN.name,), depths=(8, 14))
    found = pd.read_csv(folder / "networks.csv")
    assert set(found["control"]) == {RESIDUAL.name, PLAIN.name}
    per_network = found[found["quantity"] == "measured"].groupby("control")["measurement"].nunique()
    assert set(per_network) == {len(found["measurement"].unique())}
    assert set(found["measurement"]) >= {*BASELINES, "Jacobian of the stream: size", "mean path length"}
    runs = list((tmp_path / "answer" / "runs").glob("*/measured.csv"))
    assert len(runs) == 2 * 2 * 2  # the reported seeds alone
    for file in runs:
        assert set(pd.read_csv(file)["epoch"]) == {0}
    plain = pick(found, control=PLAIN.name, quantity="measured", depth_total=8).set_index("measurement")["value"]
    assert plain["mean path length"] == pytest.approx(1)  # the longest path alone
    assert plain["gradient: cosine with the true one"] == pytest.approx(1)
    assert plain["tangent kernel: negative part"] == 0
    assert "Rank correlation with the gap to chance closed, 4 networks of 2 families" in shown
