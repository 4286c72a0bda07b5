"""Where in an image a network finds a class: integrated gradients of its score, by captum."""

import numpy as np
import torch
from torch import nn

from experiments.engine.block_use import with_true_gradient
from experiments.engine.data import Batches, Dataset


def chosen_images(dataset: Dataset, *, most: int = 4) -> list[int]:
    """The first test image of each of the first classes: a choice made without a look at them."""
    labels = dataset.splits["test"][1]
    return [int(np.flatnonzero(labels == label)[0]) for label in np.unique(labels)[:most]]


def saliency(model: nn.Module, batches: Batches, indices: list[int], *, steps: int = 64) -> dict[str, np.ndarray]:
    """Integrated gradients (Sundararajan et al. 2017, arXiv 1703.01365) of the true class's score on test images.

    The straight line begins at the training images' mean. maps (n, H, W): summed over channels, in the score's units;
    predictions (n,): class numbers; scores (n,): what a map should sum to; delta (n,): by how much it misses that.
    """
    from captum.attr import IntegratedGradients

    copied = with_true_gradient(model)
    images, labels = batches.get("test", torch.tensor(indices))
    parts, delta = IntegratedGradients(copied).attribute(
        images, target=labels, n_steps=steps, internal_batch_size=128, return_convergence_delta=True
    )
    with torch.no_grad():
        outputs, start = copied(images), copied(torch.zeros_like(images))
    scores = (outputs - start).gather(1, labels[:, None]).squeeze(1)
    arrays = {"maps": parts.sum(1), "predictions": outputs.argmax(1), "scores": scores, "delta": delta}
    return {name: array.detach().cpu().numpy() for name, array in arrays.items()}
