"""What tests of experiments on conditions share: made-up outcomes, runs in this process, and a run without training."""

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pytest

from experiments.engine.conditions import learning_rate_search as module
from experiments.engine.conditions.gap_closed import condition_table
from experiments.engine.reporting import show
from experiments.engine.running.run import Outcome, Run
from experiments.engine.running.workers import Execution
from experiments.engine.training.data import Data
from experiments.engine.training.optimisation import Training

TEST_SIZE = 1000  # images
SMALL = {
    "depths": (8,),
    "seeds": (0, 1),
    "tuning_seeds": (100,),
    "width": 2,
    "execution": Execution(1),  # in this process
    "training": Training(epochs=1),
    "data": Data(train_limit=256),
}
Ends = Callable[[Run], float | None]


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


def runs_of(errors: Mapping[str, Sequence[float]], *, depth: int = 8) -> pd.DataFrame:
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
        patch.setattr(module, "LR_EXPONENTS", range(-2, 0))
        short = dict.fromkeys(module.LR_EXPONENTS_SHORT, range(-2, 0))
        patch.setattr(module, "LR_EXPONENTS_SHORT", short)
        patch.setattr(module, "MAX_EXTENSION", 0)
        yield patch


def run_small(script: ModuleType, out: Path, **changes: Any) -> tuple[Path, str]:
    """A run of the script at toy size: its folder, and what it printed, on one line."""
    with short_search(), redirect_stdout(io.StringIO()) as text, redirect_stderr(io.StringIO()):
        script.main(script.Settings(out=out, **SMALL | changes))
    return out / script.EXPERIMENT, " ".join(text.getvalue().split())


def run_made_up(script: ModuleType, out: Path, ends: Ends, **changes: Any) -> str:
    """What the script prints where each run ends with the test error that `ends` gives, or diverges at None; nothing
    is trained or drawn to disk."""

    def train(run: Run, checkpoint: Path, **_: object) -> Outcome:
        error = ends(run)
        if error is None:
            return Outcome({}, diverged_at=1)
        steps = range(1, 2 * run.recipe.training.epochs + 1)
        losses = pd.DataFrame({"step": steps, "split": "train", "quantity": "loss", "value": 1.0})
        blocks = pd.DataFrame({"block": ["network"], "quantity": ["cosine"], "value": [1.0], "epoch": 0, "depth": 0})
        tables = {"outcomes": pd.DataFrame(rows_of(error)), "losses": losses, "alignment": blocks}
        return Outcome(tables)

    with short_search() as patch, redirect_stdout(io.StringIO()) as text:
        patch.setattr(script, "ConditionRunner", partial(module.ConditionRunner, task=train))
        patch.setattr(show, "save_figure", lambda *_: None)
        script.main(script.Settings(out=out, **SMALL | changes))
    return " ".join(text.getvalue().split())
