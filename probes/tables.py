"""The columns of every table: long form, one value a row."""

from collections.abc import Iterable, Sequence
from itertools import takewhile

import pandas as pd

COLUMNS = (
    "experiment", "data", "network", "arm", "control", "first_weights", "treatment", "amount", "learning_rate",
    "budget", "depth_total", "width", "seed", "step", "checkpoint", "epoch", "split", "outcome", "target", "effect",
    "then", "lesion", "statistics", "count", "draw", "probe", "block", "depth", "other_block", "other_depth", "module",
    "example", "token", "path_length", "lag", "order", "reading", "measurement", "quantity", "side", "correct", "value",
)  # fmt: skip
KINDS_AT = COLUMNS.index("path_length") + 1


def table(rows: Iterable[dict[str, object]], kinds: Iterable[str] = ()) -> pd.DataFrame:
    """Rows as a table whose columns are in the one fixed order; raises ValueError for a column that is not in it."""
    return ordered(pd.DataFrame(list(rows)), kinds)


def ordered(frame: pd.DataFrame, kinds: Iterable[str] = ()) -> pd.DataFrame:
    """A table with its columns in the one fixed order; raises ValueError for a column that is not in it.

    kinds: Further columns, behind path_length: how many branches of each kind of junction a path takes.
    """
    given, order = list(frame.columns), [*COLUMNS[:KINDS_AT], *kinds, *COLUMNS[KINDS_AT:]]
    unknown = sorted(set(given) - set(order))
    if unknown:
        raise ValueError(f"unknown columns {unknown}: the tables' columns are {', '.join(COLUMNS)}")
    wanted = sorted(given, key=order.index)
    return frame if given == wanted else frame[wanted]  # most are: a selection costs more than the table itself


def kinds_of(frames: Iterable[pd.DataFrame]) -> list[str]:
    """The columns of kinds that tables have: those behind path_length, up to the next in the fixed order."""
    of_paths = [list(map(str, frame)) for frame in frames if "path_length" in frame]
    behind = [columns[columns.index("path_length") + 1 :] for columns in of_paths]
    return list(dict.fromkeys(name for columns in behind for name in takewhile(lambda c: c not in COLUMNS, columns)))


def stacked(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Tables of different columns as one; places in depth and counts stay whole numbers where some have none."""
    frame, kinds = pd.concat(frames, ignore_index=True), kinds_of(frames)
    for column in frame.columns.intersection(["depth", "path_length", *kinds]):
        if pd.api.types.is_float_dtype(frame[column]) and not (frame[column].dropna() % 1).any():
            frame[column] = frame[column].astype("Int64")
    return ordered(frame, kinds)
