"""Selections from the long tables that runs write: one value a row."""

import pandas as pd


def select(table: pd.DataFrame, **wanted: object) -> pd.DataFrame:
    """The rows in which each of the named columns has the wanted value."""
    chosen = pd.Series(True, index=table.index)
    for column, value in wanted.items():
        chosen &= table[column] == value
    return table[chosen]


def errors_on_test(outcomes: pd.DataFrame) -> pd.DataFrame:
    """Each run's final error on test images (from 0 to 1): the outcomes' columns."""
    rows = select(outcomes, split="test", quantity="accuracy")
    return rows.assign(quantity="error", value=1 - rows["value"])


def errors_and_losses(outcomes: pd.DataFrame) -> pd.DataFrame:
    """Each run's final error on test images (from 0 to 1), and its training loss."""
    train = select(outcomes, split="train", quantity="loss")
    return pd.concat([errors_on_test(outcomes), train], ignore_index=True)
