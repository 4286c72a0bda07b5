"""Checks and selections of long tables before they are drawn; the errors name the figure."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from pandas.api.types import is_numeric_dtype

from .style import UNNAMED, UNSAID, Look, Looks, epoch_title, looks_of

NETWORK: dict[str, Any] = {"arm": UNNAMED, "depth_total": UNSAID, "seed": UNSAID, "epoch": UNSAID}
NAMES = {"arm", "control", "data", "network"}


def of_networks(table: pd.DataFrame) -> pd.DataFrame:
    """The table of an experiment as it is; that of a probe, of one network, with the columns that it lacks."""
    return table.assign(**{column: value for column, value in NETWORK.items() if column not in table})


def select(table: pd.DataFrame, keys: Sequence[str], *, figure: str, **where: Sequence[Any]) -> pd.DataFrame:
    """The rows with a finite value in which every column of `where` holds one of its values.

    keys: the columns that, with those of `where`, tell the values apart; the table needs them all, and `value`.
    Raises ValueError for missing columns, an empty table, nothing left, rows without a name, two values for one key.
    """
    keys = [*keys, *where]
    check_columns(table, [*keys, "value"], figure=figure)
    wanted = pd.Series(True, index=table.index)
    for column, values in where.items():
        wanted &= table[column].isin(values)
    rows = table[wanted & np.isfinite(table["value"])]
    if rows.empty:
        raise ValueError(f"{figure}: no finite value {_words(where)}among {len(table)} rows.")
    for column in NAMES & set(keys):
        if nameless := int(rows[column].isna().sum()):
            raise ValueError(f"{figure}: {nameless} of {len(rows)} rows have no {column}; name it, or leave them out.")
    check_values(rows, keys, figure=figure)
    return rows


def check_columns(table: pd.DataFrame, needed: Sequence[str], *, figure: str) -> None:
    """ValueError where the table lacks a column, has no rows, or values that are no numbers."""
    missing = [column for column in needed if column not in table.columns]
    if missing:
        raise ValueError(
            f"{figure}: the table lacks {', '.join(missing)}; its columns are {', '.join(map(str, table.columns))}."
        )
    if table.empty:
        raise ValueError(f"{figure}: the table is empty; there is nothing to draw.")
    if "value" in needed and not is_numeric_dtype(table["value"]):
        wrong = table["value"][pd.to_numeric(table["value"], errors="coerce").isna() & table["value"].notna()]
        held = repr(wrong.iloc[0]) if len(wrong) else "text"
        raise ValueError(f"{figure}: the column value holds {held}, which is no number. Is this one table?")


def check_quantities(rows: pd.DataFrame, needed: Sequence[str], *, figure: str) -> None:
    """ValueError where the rows lack a quantity."""
    present = list(rows["quantity"].unique())
    if missing := [name for name in needed if name not in present]:
        raise ValueError(f"{figure}: no {', '.join(missing)} among the quantities, which are {', '.join(present)}.")


def check_values(rows: pd.DataFrame, keys: Sequence[str], *, figure: str) -> None:
    """ValueError where two rows have the same keys."""
    twice = rows[rows.duplicated(list(keys))]
    if len(twice):
        which = ", ".join(f"{key} {twice.iloc[0][key]}" for key in keys)
        raise ValueError(f"{figure}: several values for {which}. Draw one experiment at a time, one value an epoch.")


def _words(where: dict[str, Sequence[Any]]) -> str:
    parts = [f"{column} is {' or '.join(map(str, values))}" for column, values in where.items()]
    return f"where {' and '.join(parts)}, " * bool(parts)


def arms_of(rows: pd.DataFrame, own: Looks = None) -> dict[str, Look]:
    """The looks of the arms in the table: the caller's own, those of ARMS in its order, then others as they appear."""
    return looks_of(rows["arm"], own)


def depths_of(rows: pd.DataFrame) -> list[int]:
    """The depths of the networks in the table, from shallow to deep."""
    return sorted(int(depth) for depth in set(rows["depth_total"]))


def moments(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The rows of the first and of the last epoch that each depth has, by title; one entry where they are the same."""
    epochs = rows.groupby("depth_total")["epoch"]
    first = rows["epoch"] == epochs.transform("min")
    last = (rows["epoch"] == epochs.transform("max")) & ~first
    parts = {"at the start": rows[first], "at the end": rows[last]}
    return {_moment(part["epoch"], mixed): part for mixed, part in parts.items() if len(part)}


def _moment(epochs: "pd.Series[float]", mixed: str) -> str:
    return epoch_title(epochs.iloc[0]) if epochs.nunique() == 1 else mixed


def stage_starts(rows: pd.DataFrame) -> list[int]:
    """The depths of the first block of each stage but the first, of blocks named like "layer2.0"."""
    blocks = rows.drop_duplicates("depth")
    return sorted(int(depth) for depth in blocks[blocks["block"].str.endswith(".0")]["depth"] if depth > 0)


def counts_text(rows: pd.DataFrame) -> str:
    """The numbers of seeds among the rows of quantity "n": "3" or "3–5", "0" where no seed has a value."""
    counts = sorted({int(count) for count in rows[rows["quantity"] == "n"]["value"]} - {0}) or [0]
    return "–".join(map(str, dict.fromkeys((counts[0], counts[-1]))))


def seeds_text(rows: pd.DataFrame) -> str:
    """How many seeds each arm has at each depth (epoch, learning rate, budget): "1 seed", "3 seeds" or "2–3 seeds"; of
    tables that name no seed, "1 network"."""
    keys = [key for key in ("arm", "depth_total", "epoch", "learning_rate", "budget") if key in rows.columns]
    counts: Iterable[int] = rows.groupby(keys)["seed"].nunique()
    low, high = min(counts), max(counts)
    if set(rows["seed"]) == {UNSAID}:
        return "1 network" if rows["arm"].nunique() == 1 else "1 network each"
    return "1 seed" if high == 1 else f"{low}–{high} seeds" if low < high else f"{high} seeds"


def several(count: str) -> bool:
    """Whether a text of `seeds_text` counts more than one seed: then there is a mean."""
    return not count.startswith("1 ")
