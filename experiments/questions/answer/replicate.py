"""What a reported run of `answer` gives beside its outcomes: which test images are right, and what its gradient was."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.engine.conditions.block_gradients import movement
from experiments.engine.conditions.gradient_alignment import measure_alignment, path_part_cosines
from experiments.engine.conditions.learning_rate_search import train_condition
from experiments.engine.running.run import Outcome, Run, Tables
from experiments.engine.training.data import Batches, Dataset
from experiments.engine.training.train_run import make_network, probing_batch
from experiments.questions.answer.plan import SHORT_PATH
from models.residual_blocks import set_exact_flows
from probes import gradient_norms, jacobian_spectrum, path_contributions, record

OUTPUTS = ("alignment", "correct", "gradients", "jacobians", "movement", "parts", "paths")
MEASURED = 3
"""Of so many seeds gradients are measured; all others give `correct` alone."""
IMAGES = {"paths": 32, "jacobians": 8}
"""Of training, on which these are measured; alignment takes a batch of 128."""


def train_replicate(run: Run, checkpoint: Path | None = None, *, datasets: Mapping[str, Dataset]) -> Outcome:
    """Train a run; a reported one also gives its outputs: for each test image whether it is right, and, if asked
    for, tables at its first weights and its last."""
    if not run.outputs:
        return train_condition(run, checkpoint, datasets=datasets)
    measured = "alignment" in run.outputs
    first = {name: w.detach().clone() for name, w in make_network(run, datasets[run.recipe.data]).named_parameters()}
    correct: list[Tensor] = []

    def measure(model: nn.Module, batches: Batches, epoch: int, last: bool) -> Tables:
        if last:
            correct.append(right_on_test(model, batches))
        if not measured or (epoch and not last):
            return {}
        tables = measure_alignment(model, batches, epoch, last, control=run.recipe.treatment, seed=run.seed)
        tables |= gradient_tables(model, batches) | {"movement": movement(first, model)}
        return tables if last else tables | {"jacobians": jacobians(model, batches)}

    outcome = train_condition(run, checkpoint, datasets=datasets, measure=measure)
    outcome.arrays = {"correct": correct[0].numpy()} if correct else {}
    return outcome


@torch.no_grad()
def right_on_test(model: nn.Module, batches: Batches) -> Tensor:
    """Whether each test image is classified right, (N,)."""
    parts = torch.arange(batches.size("test")).split(512)
    model.eval()
    return torch.cat([(model(images).argmax(1) == labels).cpu() for images, labels in batches.in_turn("test", parts)])


def gradient_tables(model: nn.Module, batches: Batches) -> Tables:
    """Gradient norms, exact path lengths, and how parallel short and long paths are, as the network's flow has them."""
    copied, images, labels = probing_batch(model, batches, most=IMAGES["paths"])
    with record(copied) as recording:
        F.cross_entropy(copied(images), labels).backward(retain_graph=True)
    tables = {"gradients": gradient_norms(recording), "paths": path_contributions(recording)}
    return tables | {"parts": path_part_cosines(copied, images, labels, at_most=SHORT_PATH)}


def jacobians(model: nn.Module, batches: Batches) -> pd.DataFrame:
    """The spectrum of every block's Jacobian, of the stages' and of the stream's, of the function that is computed."""
    copied, images, _ = probing_batch(model, batches, most=IMAGES["jacobians"])
    set_exact_flows(copied)
    kinds = ("blocks", "stages", "stream")
    return pd.concat([jacobian_spectrum(copied, images, of=kind).assign(outcome=kind) for kind in kinds])
