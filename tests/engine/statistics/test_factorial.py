import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from experiments.engine.reporting import show
from experiments.engine.reporting.factorial import decide_factorial, show_outcomes
from experiments.engine.statistics.factorial import (
    EFFECTS,
    FACTORIAL,
    OUTCOMES,
    effect_table,
    effects,
    flags,
    outcome_table,
)

ACCURACY = {  # arm -> one value a seed; effects of seed 0 done by hand below
    "residual": (0.9, 0.8, 0.85),
    "stop-gradient": (0.6, 0.5, 0.6),
    "gradient-only": (0.3, 0.4, 0.3),
    "plain": (0.4, 0.3, 0.35),
}


def outcomes(accuracy: dict[str, tuple[float, ...]] = ACCURACY, seeds: int = 3) -> pd.DataFrame:
    rows = [
        {"arm": arm, "depth_total": 20, "seed": seed, "split": split, "quantity": quantity, "value": value}
        for arm, values in accuracy.items()
        for seed, right in enumerate(values[:seeds])
        for split, quantity, value in (("test", "accuracy", right), ("train", "loss", math.exp(-right)))
    ]
    return pd.DataFrame(rows)


def test_effects_of_one_seed_on_paper() -> None:
    found = effects(outcome_table(outcomes(), 100), 20, "test accuracy")
    first = {name: e.values[0] for name, e in found.items()}
    assert first == pytest.approx(
        {
            "whole shortcut": 0.9 - 0.4,
            "forward, backward on": 0.9 - 0.3,
            "forward, backward off": 0.6 - 0.4,
            "backward, forward on": 0.9 - 0.6,
            "backward, forward off": 0.3 - 0.4,
            "forward, main effect": 0.4,
            "backward, main effect": 0.1,
            "interaction / gradient mismatch": 0.9 + 0.4 - (0.6 + 0.3),
        }
    )


def test_log_loss_and_logit_are_measured_on_their_own_scale() -> None:
    runs = outcome_table(outcomes(), 100)
    loss = effects(runs, 20, "log train loss")["backward, forward on"]
    assert loss.values[0] == pytest.approx(-(0.9 - 0.6))  # the losses are exp(-accuracy)
    logit = effects(runs, 20, "logit test accuracy")["backward, forward on"]
    assert logit.values[0] == pytest.approx(math.log(90.5 / 10.5) - math.log(60.5 / 40.5))
    assert np.isfinite(outcome_table(outcomes(dict.fromkeys(FACTORIAL, (1.0,))), 100)["logit test accuracy"]).all()


def test_intervals_are_paired_t_intervals() -> None:
    found = effects(outcome_table(outcomes(), 100), 20, "test accuracy")["backward, forward on"]
    paired = stats.ttest_rel(ACCURACY["residual"], ACCURACY["stop-gradient"]).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((paired.low, paired.high))
    assert found.mean == pytest.approx(np.subtract(ACCURACY["residual"], ACCURACY["stop-gradient"]).mean())


def test_only_accuracies_have_a_scale_that_ends() -> None:
    """An accuracy's effect lies within +-1, an interaction within +-2: whole shortcut (0.9, 0.5, 0.5) with an upper
    end of 1.2, interaction (0.9, 1.1, 1.1) with one of 1.3. A log loss ends nowhere."""
    low = (0.1, 0.1, 0.2)
    arms = {"residual": (1.0, 0.9, 1.0), "stop-gradient": low, "gradient-only": low, "plain": (0.1, 0.4, 0.5)}
    runs = outcome_table(outcomes(arms), 100)
    found, losses = effects(runs, 20, "test accuracy"), effects(runs, 20, "log train loss")
    assert (found["whole shortcut"].high, found["whole shortcut"].clipped) == (1, True)
    assert found["interaction / gradient mismatch"].high == pytest.approx(1.0333 + 4.3027 / 15, abs=1e-4)
    assert losses["whole shortcut"].low < -1


def test_seeds_without_all_four_arms_are_left_out() -> None:
    lost = outcomes().query("not (arm == 'plain' and seed == 1)")
    assert len(effects(outcome_table(lost, 100), 20, "test accuracy")["forward, backward on"].values) == 2
    assert effects(outcome_table(outcomes().query("arm != 'plain'"), 100), 20, "test accuracy") == {}


def test_effects_balance() -> None:
    assert all(sum(weights) == 0 for weights in EFFECTS.values())
    simple = np.array([EFFECTS[name] for name in list(EFFECTS)[1:5]])
    assert EFFECTS["forward, main effect"] == pytest.approx(simple[:2].mean(0))
    assert EFFECTS["backward, main effect"] == pytest.approx(simple[2:].mean(0))
    assert EFFECTS["interaction / gradient mismatch"] == pytest.approx(simple[0] - simple[1])
    assert EFFECTS["interaction / gradient mismatch"] == pytest.approx(simple[2] - simple[3])


def test_floor_and_ceiling_are_flagged() -> None:
    runs = outcome_table(outcomes({**ACCURACY, "plain": (0.2, 0.15, 0.2), "residual": (0.97, 0.96, 0.95)}), 100)
    assert flags(runs, 20, classes=10) == {"plain": "floor", "residual": "ceiling"}
    at_the_ends = outcome_table(outcomes({"plain": (0.2,), "residual": (0.95,)}), 100)
    assert flags(at_the_ends, 20, classes=10) == {"plain": "floor", "residual": "ceiling"}


def test_effects_of_conditions_are_read_by_their_own_column() -> None:
    named = outcomes().rename(columns={"arm": "control"}).assign(arm="residual")
    runs = outcome_table(named, 100, by="control")
    assert effects(runs, 20, "test accuracy", by="control") == effects(
        outcome_table(outcomes(), 100), 20, "test accuracy"
    )
    assert flags(runs, 20, 3, by="control") == {"plain": "floor", "gradient-only": "floor"}


def test_decisions_state_effects_and_their_limits(capsys: pytest.CaptureFixture[str]) -> None:
    def printed(outcomes: pd.DataFrame) -> str:
        runs = outcome_table(outcomes, 100)
        decide_factorial(show.terminal(), runs, 20, title="toy", limits="One data set.", classes=10)
        return " ".join(capsys.readouterr().out.split())

    shown = printed(outcomes())
    assert "Decisions: toy, depth 20, test accuracy, n = 3 " in shown
    assert "whole shortcut +0.50 [+0.50, +0.50] 0.02 helps" in shown
    assert "gradient without value -0.02 [-0.28, +0.24] 0.02 undecided" in shown
    assert "both, beyond the sum +0.30 [+0.05, +0.55] 0 more than the sum" in shown
    assert "One data set. This alone does not say why residual connections help. More than the sum is what" in shown
    flagged = outcomes({**ACCURACY, "plain": (0.2, 0.15, 0.2), "residual": (0.97, 0.96, 0.95)})
    assert "cannot be read: plain at the floor, residual at the ceiling" in printed(flagged)
    assert "n = 2 of 3 seeds, the others diverged" in printed(outcomes().query("arm != 'plain' or seed"))
    assert "depth 20: no effects; no seed has finished" in printed(outcomes().query("arm != 'plain'"))


def test_an_arm_is_shown_at_the_depths_at_which_it_was_trained(capsys: pytest.CaptureFixture[str]) -> None:
    everywhere = outcomes().assign(depth_total=lambda t: np.where(t["arm"] == "plain", 8, 20))
    trained = everywhere[everywhere["split"] == "test"].assign(split="train")
    ends = pd.concat([everywhere, trained])
    show_outcomes(show.terminal(), ends, outcome_table(ends, 100), FACTORIAL, [], 10)
    first = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.strip()]
    named = [word for word in first if word in FACTORIAL]
    assert named == ["plain", "residual", "stop-gradient", "gradient-only"]


def test_the_table_of_effects_is_long() -> None:
    table = effect_table(outcome_table(outcomes(), 100))
    assert list(table.columns) == ["depth_total", "outcome", "effect", "quantity", "value"]
    assert len(table) == 3 * 8 * 4
    assert set(table[table["quantity"] == "n"]["value"]) == {3}


def test_a_seed_with_an_outcome_that_is_not_finite_counts_in_none() -> None:
    table = outcomes()
    table.loc[(table["arm"] == "plain") & (table["seed"] == 1) & (table["quantity"] == "loss"), "value"] = math.inf
    runs = outcome_table(table, 100)
    assert {len(effects(runs, 20, outcome)["whole shortcut"].values) for outcome in OUTCOMES} == {2}
