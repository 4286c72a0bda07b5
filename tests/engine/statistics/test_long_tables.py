"""Rows of long tables, selected by the values of their columns."""

import pandas as pd

from experiments.engine.statistics.long_tables import errors_and_losses, select

OUTCOMES = pd.DataFrame(
    [("train", "loss", 0.5), ("train", "accuracy", 0.75), ("test", "loss", 1.5), ("test", "accuracy", 0.25)],
    columns=["split", "quantity", "value"],
).assign(arm="plain", seed=[0, 1, 0, 1])


def test_every_named_column_has_its_value() -> None:
    assert select(OUTCOMES, split="test", quantity="loss")["value"].tolist() == [1.5]
    assert select(OUTCOMES, seed=1)["value"].tolist() == [0.75, 0.25]
    assert select(OUTCOMES, arm="residual").empty
    assert select(OUTCOMES).equals(OUTCOMES)


def test_errors_are_of_test_images_and_losses_of_training() -> None:
    found = errors_and_losses(OUTCOMES)
    assert found[["split", "quantity", "value"]].values.tolist() == [["test", "error", 0.75], ["train", "loss", 0.5]]
