"""One run of a grid: the description that decides what it computes, and what it gives."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Protocol

import numpy as np
import pandas as pd


class RunRecipe(Protocol):
    """A frozen dataclass: everything that decides what a run computes, beside its arm, depth and seed."""

    @property
    def device(self) -> str: ...


@dataclass(frozen=True)
class Run:
    """One training of a grid. Its recipe is hashed into its name, and is the very object that is trained with."""

    experiment: str
    arm: str
    depth: int
    seed: int
    recipe: Any
    """A `RunRecipe` (in trainings `training.recipe.Recipe`); another recipe is another run."""
    outputs: tuple[str, ...] = ()
    """The tables and arrays that it must give unless its loss diverges; a finished run that lacks one is rerun."""
    labels: Mapping[str, Any] = field(default_factory=dict)
    """Further columns of its tables, by which an experiment tells runs of one arm, depth and seed apart."""
    about: Mapping[str, object] = field(default_factory=dict)
    """Further facts for `run.json`, such as the source of the data."""
    work: float = 1.0
    """How long it takes compared with other runs at the same pace: layers times epochs."""
    pace: str = ""
    """Runs of one pace take the same time for the same work."""

    @property
    def name(self) -> str:
        """Of its folder: arm, depth, seed and eight digits of the recipe's hash."""
        recipe = json.dumps(described(self.recipe), sort_keys=True)
        return f"{self.arm}-depth{self.depth}-seed{self.seed}-{hashlib.sha256(recipe.encode()).hexdigest()[:8]}"


Tables = dict[str, pd.DataFrame]
"""By name."""


@dataclass
class Outcome:
    """The result of a run: tables and arrays by name; the step at which its loss stopped being finite, if it did."""

    tables: Tables = field(default_factory=dict)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    """Such as images: they go into one arrays.npz."""
    diverged_at: int | None = None


def described(value: object) -> object:
    """A recipe as JSON can hold it: every field of every dataclass in it, with the classes' names.

    Raises TypeError for a value whose text might not tell it from another.
    """
    if is_dataclass(value) and not isinstance(value, type):
        return {"class": type(value).__name__} | {f.name: described(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): described(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [described(item) for item in value]
    if value is None or isinstance(value, str | int | float):
        return value
    raise TypeError(f"a recipe holds a {type(value).__name__}: give dataclasses, mappings, sequences, texts, numbers")
