"""What a reported run of `answer` gives beside its outcomes: what its gradient was made of, and what each image says."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.engine.conditions.block_gradients import movement
from experiments.engine.conditions.controls import Control
from experiments.engine.conditions.gradient_alignment import measure_alignment, path_part_cosines
from experiments.engine.conditions.learning_rate_search import train_condition
from experiments.engine.running.run import Outcome, Run, Tables
from experiments.engine.training.data import Batches, Dataset
from experiments.engine.training.train_run import make_network, probing_batch
from probes import gradient_norms, jacobian_spectrum, path_contributions, record

OUTPUTS = ("alignment", "gradients", "paths", "movement", "jacobians", "parts", "correct")
IMAGES = {"paths": 32, "jacobians": 8}
"""Of training, on which these are measured; alignment takes a batch of 128."""
SHORT = 3
"""Branches of the longest short path."""


def train_replicate(run: Run, checkpoint: Path | None = None, *, datasets: Mapping[str, Dataset]) -> Outcome:
    """Train a run; a reported one also gives the tables and the array of OUTPUTS."""
    if not run.outputs:
        return train_condition(run, checkpoint, datasets=datasets)
    dataset = datasets[run.recipe.data]
    first = {name: weight.detach().clone() for name, weight in make_network(run, dataset).named_parameters()}
    correct: list[Tensor] = []

    def measure(model: nn.Module, batches: Batches, epoch: int, last: bool) -> Tables:
        if epoch and not last:
            return {}
        if last:
            correct.append(correct_on_test(model, batches))
        tables = measure_alignment(model, batches, epoch, last, control=run.recipe.treatment, seed=run.seed)
        return tables | gradient_tables(model, batches) | {"movement": movement(first, model)} | (
            {} if last else {"jacobians": jacobians(model, batches)}
        )

    outcome = train_condition(run, checkpoint, datasets=datasets, measure=measure)
    outcome.arrays = {"correct": correct[0].numpy()} if correct else {}
    return outcome
