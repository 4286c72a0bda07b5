"""The columns of every table: long form, one value a row."""

from collections.abc import Iterable

import pandas as pd

COLUMNS = (
    "experiment", "data", "network", "arm", "control", "first_weights", "treatment", "amount", "learning_rate",
    "budget", "depth_total", "width", "seed", "step", "checkpoint", "epoch", "split", "outcome", "target", "effect",
    "then", "lesion", "statistics", "count", "draw", "probe", "block", "depth", "other_block", "other_depth", "module",
    "example", "token", "path_length", "lag", "order", "reading", "measurement", "quantity", "side", "correct", "value",
)  # fmt: skip


def table(rows: Iterable[dict[str, object]]) -> pd.DataFrame:
    """Rows as a table whose columns are in the one fixed order; raises ValueError for a column that is not in it."""
    return ordered(pd.DataFrame(list(rows)))


def ordered(frame: pd.DataFrame) -> pd.DataFrame:
    """A table with its columns in the one fixed order; raises ValueError for a column that is not in it."""
    given = list(frame.columns)
    unknown = sorted(set(given) - set(COLUMNS))
    if unknown:
        raise ValueError(f"unknown columns {unknown}: the tables' columns are {', '.join(COLUMNS)}")
    wanted = sorted(given, key=COLUMNS.index)
    return frame if given == wanted else frame[wanted]  # most are: a selection costs more than the table itself
