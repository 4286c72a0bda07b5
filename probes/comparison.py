"""Two recordings, or the tables of two experiments, block by block."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pandas as pd

from .files import read_csv
from .measured import load
from .recording import Recording
from .tables import stacked

Source: TypeAlias = Recording | pd.DataFrame | str | os.PathLike[str]
ALONE = "table"  # the name of a table that has none
SIDES = ("a", "b")


def compare(a: Source, b: Source) -> pd.DataFrame:
    """Join what was measured of two networks, or of one at two times, and divide: b / a.

    Rows belong together where all columns but ``value`` agree; of blocks, the name, wherever they stand. A column that
    holds one value in a and another in b (``arm`` residual and plain, say) is what the two differ in, and is left out.

    Args:
        a: A recording, or what ``load`` gives: its ``tables()``. A file that ``Recording.save`` wrote. A long table, or
            its CSV. A folder of such CSVs, as an experiment writes.
        b: As a, compared with it. A single table is joined with a single one, whatever their names.

    Returns:
        Columns ``measurement`` (the table's name, such as ``gradient_norms``), those by which the rows were joined,
        such as ``block`` and ``quantity``, ``depth`` (of the block in a; in b where a lacks it), ``side`` and
        ``value``, with the sides

        - ``a`` and ``b``: what was measured, in its own unit;
        - ``ratio``: b / a; inf where a alone is 0, nan where both are. What one side alone has, has no ratio.

        Rows are in a's order; what b alone has comes last in its table.

    Raises:
        FileNotFoundError: There is no such file or folder.
        ValueError: Nothing was recorded, a file holds no such table, a column that only one side has holds several
            values, two rows of a side are alike, or no row of a has one in b.

    Example::

        with record(model) as before:
            F.cross_entropy(model(images), labels).backward()
        before = before.tables()["gradient_norms"]    # or before.save("before.zip"), and compare that
        with record(model) as after:
            F.cross_entropy(2 * model(images), labels).backward()
        table = compare(before, after.tables()["gradient_norms"])
        table.pivot(index=["block", "quantity"], columns="side", values="value")
    """
    found = {side: _tables(source, side) for side, source in zip(SIDES, (a, b), strict=True)}
    if len(found["a"]) == len(found["b"]) == 1:
        found["b"] = dict(zip(found["a"], found["b"].values(), strict=True))
    names = dict.fromkeys([*found["a"], *found["b"]])
    parts = [_joined(name, *(found[side].get(name) for side in SIDES)) for name in names]
    table = stacked(parts)
    if not (table["side"] == "ratio").any():
        raise ValueError(f"compare: no row of a has one in b. a has {_has(found['a'])}; b has {_has(found['b'])}")
    return table


def _tables(source: Source, side: str) -> dict[str, pd.DataFrame]:
    """The long tables of a source, by name."""
    if isinstance(source, Recording):
        return source.tables()
    if isinstance(source, pd.DataFrame):
        tables = {ALONE: source}
    elif (path := Path(source)).is_dir():
        tables = {file.stem: read_csv(file) for file in sorted(path.glob("*.csv"))}
        tables = {name: table for name, table in tables.items() if not _lacking(table)}
        if not tables:
            raise ValueError(
                f"compare: {side} is a folder without a CSV of the columns quantity and value: {path}; name one with "
                "the tables themselves, such as results/EXPERIMENT"
            )
    elif path.suffix == ".csv":
        tables = {path.stem: read_csv(path)}
    else:
        return load(path).tables()
    for name, table in tables.items():
        if lacking := _lacking(table):
            raise ValueError(f"compare: {name} of {side} lacks {', '.join(lacking)}: a long table has one value a row")
    return tables


def _lacking(table: pd.DataFrame) -> list[str]:
    return [column for column in ("quantity", "value") if column not in table]


def _joined(name: str, a: pd.DataFrame | None, b: pd.DataFrame | None) -> pd.DataFrame:
    """One table's rows of both sides, and their ratios."""
    if a is None or b is None:
        (alone, side) = (b, "b") if a is None else (a, "a")
        assert alone is not None
        return alone.assign(measurement=name, side=side)
    keys = _keys(name, a, b)
    sides = [_by_keys(name, of, side, keys) for of, side in ((a, "a"), (b, "b"))]
    both = sides[0].merge(sides[1], on=keys, how="outer", suffixes=("_a", "_b"), indicator=True)
    both = both.sort_values(["order_a", "order_b"], ignore_index=True)  # what is in b alone has no order in a: last
    if "depth_a" in both:
        both["depth"] = both["depth_a"].fillna(both["depth_b"])
    with np.errstate(divide="ignore", invalid="ignore"):
        both["value_ratio"] = both["value_b"].to_numpy(float) / both["value_a"].to_numpy(float)
    has = {"a": both["_merge"] != "right_only", "b": both["_merge"] != "left_only", "ratio": both["_merge"] == "both"}
    columns = [*keys, *(["depth"] if "depth_a" in both else [])]
    parts = [both.loc[rows, columns].assign(side=side, value=both[f"value_{side}"]) for side, rows in has.items()]
    return pd.concat(parts).sort_index(kind="stable").assign(measurement=name)


def _keys(name: str, a: pd.DataFrame, b: pd.DataFrame) -> list[str]:
    """The columns by which rows are joined."""
    by_block = "block" in a and "block" in b
    keys = []
    for column in dict.fromkeys([*a, *b]):
        if column == "value" or (column == "depth" and by_block):
            continue
        values = {side: of[column].unique() for side, of in (("a", a), ("b", b)) if column in of}
        if len(values) == 1:
            (side,) = values
            if len(values[side]) > 1:
                raise ValueError(
                    f"compare: {name} of {side} has several values of {column}, and the other has no such column: "
                    "choose one"
                )
            continue
        one_each = all(len(of) == 1 for of in values.values())
        if column in ("block", "quantity") or not one_each or _same(values["a"][0], values["b"][0]):
            keys.append(column)
    return keys


def _same(one: object, other: object) -> bool:
    return one == other or bool(pd.isna(one) and pd.isna(other))  # type: ignore[call-overload]


def _by_keys(name: str, table: pd.DataFrame, side: str, keys: Sequence[str]) -> pd.DataFrame:
    twice = table[table.duplicated(list(keys))]
    if len(twice):
        which = ", ".join(f"{key} {twice.iloc[0][key]}" for key in keys)
        raise ValueError(f"compare: {name} of {side} has several values for {which}: choose one network, seed or time")
    depth = {"depth": table["depth"]} if "depth" in table and "depth" not in keys else {}
    return table[list(keys)].assign(value=table["value"], order=range(len(table)), **depth)


def _has(tables: dict[str, pd.DataFrame]) -> str:
    """The blocks, or the quantities, of each table, the first few."""
    said = []
    for name, table in tables.items():
        column = "block" if "block" in table else "quantity"
        values = [str(value) for value in table[column].unique()]
        said.append(f"{name}: {column} {', '.join(values[:3])}{', …' * (len(values) > 3)}")
    return "; ".join(said)
