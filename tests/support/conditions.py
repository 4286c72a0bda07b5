"""What tests of experiments on conditions share: made-up outcomes, runs in this process, and a run without training."""

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pytest

import figures
from experiments.engine import conditions as module
from experiments.engine.condition_scores import condition_table
from experiments.engine.data import Data
from experiments.engine.grid import Cell, Outcome
from experiments.engine.training import Training
from experiments.engine.workers import Workers

TEST_SIZE = 1000  # images
SMALL = {
    "depths": (8,),
    "seeds": (0, 1),
    "tuning_seeds": (100,),
    "width": 2,
    "workers": Workers(1),  # cells run in this process
    "training": Training(epochs=1),
    "data": Data(train_limit=256),
}
Ends = Callable[[Cell], float | None]


def outcomes(errors: Mapping[str, Sequence[float]], *, depth: int = 8, arm: str | None = None) -> pd.DataFrame:
    """Each condition's test error by seed; its training loss is ten times as large, its training error half of it.
    arm: of all; if None, each condition's name."""
    return pd.DataFrame(
        {"control": name, "arm": arm or name, "depth_total": depth, "seed": seed} | row
        for name, values in errors.items()
        for seed, error in enumerate(values)
        for row in rows_of(error)
    )


def rows_of(error: float) -> Iterator[dict[str, Any]]:
    """One run's outcomes."""
    for split, share in (("train", error / 2), ("validation", error), ("test", error)):
        yield {"split": split, "quantity": "accuracy", "value": 1 - share}
        yield {"split": split, "quantity": "loss", "value": 10 * error}


def cells_of(errors: Mapping[str, Sequence[float]], *, depth: int = 8) -> pd.DataFrame:
    return condition_table(outcomes(errors, depth=depth), TEST_SIZE)


def is_best(rate: float, own: pd.DataFrame) -> bool:
    """Whether a rate is the best of its search on digits: the highest accuracy, or the lowest rate where no network
    has learned anything."""
    rates, accuracies = own["learning_rate"], own["value"]
    if accuracies.max() <= 0.1 + module.LEARNED:
        return rate == rates.min()
    return accuracies[rates == rate].item() == accuracies.max()


@contextmanager
def short_search() -> Iterator[pytest.MonkeyPatch]:
    """Two learning rates, 0.1 and 0.316, and none beyond."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "LEVELS", range(-2, 0))
        patch.setattr(module, "SHORT", dict.fromkeys(module.SHORT, range(-2, 0)))
        patch.setattr(module, "FURTHEST", 0)
        yield patch


@dataclass(frozen=True)
class Ran:
    """A script's run at toy size, and the same call once more."""

    folder: Path
    shown: str
    again: str
    repeated: list[Path]
    """Files of cells that the second call wrote."""
    log: str
    """What the second call told of its cells."""


def run_twice(script: ModuleType, out: Path, **changes: Any) -> Ran:
    settings = script.Settings(out=out, **SMALL | changes)
    log, shown = io.StringIO(), list[str]()
    before: dict[Path, int] = {}
    with short_search():
        for _ in range(2):
            before = {path: path.stat().st_mtime_ns for path in settings.store.glob("*/*")}
            with redirect_stdout(io.StringIO()) as text, redirect_stderr(log := io.StringIO()):
                script.main(settings)
            shown.append(" ".join(text.getvalue().split()))
    after = {path: path.stat().st_mtime_ns for path in settings.store.glob("*/*")}
    repeated = [path for path, moment in after.items() if before.get(path) != moment]
    return Ran(out / script.EXPERIMENT, shown[0], shown[1], repeated, log.getvalue())


def run_made_up(script: ModuleType, out: Path, ends: Ends, **changes: Any) -> str:
    """What the script prints where each cell ends with the test error that `ends` tells, or diverges at None; nothing
    is trained or drawn to disk."""

    def run(cell: Cell, **_: object) -> Outcome:
        error = ends(cell)
        if error is None:
            return Outcome({}, diverged_at=1)
        epochs = int(str(cell.settings["epochs"]))
        losses = pd.DataFrame({"step": range(1, 2 * epochs + 1), "split": "train", "quantity": "loss", "value": 1.0})
        return Outcome({"outcomes": pd.DataFrame(rows_of(error)), "losses": losses})

    with short_search() as patch, redirect_stdout(io.StringIO()) as text:
        patch.setattr(module, "run_condition", run)
        patch.setattr(figures, "save", lambda *_: None)
        script.main(script.Settings(out=out, **SMALL | changes))
    return " ".join(text.getvalue().split())
