"""A trained network goes on with another gradient."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import pandas as pd
from torch import nn

from experiments.engine.alignment import measure_alignment
from experiments.engine.block_gradients import true_flow
from experiments.engine.cells import make_network, train_cell
from experiments.engine.conditions import training_of
from experiments.engine.controls import NO_CONTROL
from experiments.engine.data import Dataset
from experiments.engine.first_order import Watch
from experiments.engine.grid import Cell, Outcome
from experiments.engine.training import Training
from models import ARMS

BEFORE = "before"


def true_arm(arm: str) -> str:
    """The arm that computes the same function and learns from its true gradient."""
    return next(name for name, flow in ARMS.items() if flow == true_flow(ARMS[arm]))


def watch_and_go_on(cell: Cell, *, dataset: Dataset, training: Training) -> Outcome:
    """Train a cell while its gradient is compared with the true one, then let its end go on in other arms.

    The cell's settings tell beside a condition's: `then`, the arms in which it goes on, and `further`, for how many
    epochs. Tables beside those of `train_cell`: alignment (after every epoch), steps (the true loss's first-order
    changes), continued.
    """
    model, watch = make_network(cell, dataset), Watch()
    own = training_of(cell, training)
    measure = partial(measure_alignment, control=NO_CONTROL, seed=cell.seed, throughout=True)
    outcome = train_cell(cell, dataset, own, model=model, watch=watch, validate=False, measure=measure)
    outcome.tables["steps"] = watch.table(model)
    if outcome.diverged_at is None:
        first, then = outcome.tables["outcomes"].assign(effect=BEFORE), cell.settings["then"]
        assert isinstance(then, Sequence)
        further = replace(own, epochs=int(str(cell.settings["further"])))
        ends = [go_on(model, replace(cell, arm=arm), dataset, further) for arm in then]
        outcome.tables["continued"] = pd.concat([first, *(end for end in ends if len(end))], ignore_index=True)
    return outcome


def go_on(model: nn.Module, cell: Cell, dataset: Dataset, training: Training) -> pd.DataFrame:
    """The outcomes of further training from a network's weights in the cell's arm, as effect "then ARM"; none where it
    diverges. The network itself stays as it is.

    The schedule begins anew, and the batches come in the order of the cell's seed again.
    """
    twin = make_network(cell, dataset)
    twin.load_state_dict(model.state_dict())
    outcomes = train_cell(cell, dataset, training, model=twin, validate=False).tables.get("outcomes", pd.DataFrame())
    return outcomes.assign(effect=f"then {cell.arm}")
