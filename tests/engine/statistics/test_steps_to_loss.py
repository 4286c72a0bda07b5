"""Steps to a loss: on paper, against a slow twin, censored where it is not reached."""

import math

import numpy as np
import pandas as pd

from experiments.engine.statistics.steps_to_loss import steps_to_loss, trailing_means


def losses(values: list[float], **about: object) -> pd.DataFrame:
    steps = range(1, len(values) + 1)
    return pd.DataFrame({**about, "step": steps, "split": "train", "quantity": "loss", "value": values})


def test_steps_on_paper() -> None:
    """Means of two: 3.5, 2, 0.75, 0.5, 0.75; the single 0.5 at step 3 does not count, a mean of exactly 0.5 does."""
    table = losses([4, 3, 1, 0.5, 0.5, 1], seed=7)
    assert trailing_means(table, window=2)["value"].tolist() == [3.5, 2, 0.75, 0.5, 0.75]
    assert trailing_means(table, window=2)["step"].tolist() == [2, 3, 4, 5, 6]
    found = steps_to_loss(table, (2.0, 0.5, 0.4), window=2)
    assert found["target"].tolist() == [2.0, 0.5, 0.4]
    assert found["value"].tolist()[:2] == [3, 5]
    assert math.isnan(found["value"].iloc[2])  # censored, not the last step
    assert (set(found["quantity"]), set(found["seed"])) == ({"steps"}, {7})
    assert steps_to_loss(table, (3.0,), window=1)["value"].item() == 2


def test_against_a_loop_over_runs() -> None:
    generator = np.random.default_rng(0)
    runs = {
        (arm, seed): (3 * np.exp(-np.arange(40) / 15) + generator.random(40) / 2).tolist()
        for arm in ("residual", "plain")
        for seed in (0, 1, 2)
    }
    table = pd.concat([losses(values, arm=arm, seed=seed) for (arm, seed), values in runs.items()])
    shuffled = table.sample(frac=1, random_state=0)  # neither rows nor index in order
    for window in (1, 5):
        found = steps_to_loss(shuffled, (2.0, 1.0, 0.3), window=window).set_index(["arm", "seed", "target"])["value"]
        assert len(found) == 6 * 3
        for (arm, seed, target), step in found.items():  # type: ignore[misc]
            values = runs[arm, seed]
            reached = [end for end in range(window, 41) if np.mean(values[end - window : end]) <= target]
            assert step == reached[0] if reached else math.isnan(step)
    assert found.isna().any()
    assert found.notna().any()


def test_a_run_shorter_than_the_window_reaches_nothing() -> None:
    both = pd.concat([losses([0.1, 0.1], seed=0), losses([0.1, 0.1, 0.1], seed=1)])
    assert steps_to_loss(both, (1.0,), window=3).set_index("seed")["value"].isna().tolist() == [True, False]
