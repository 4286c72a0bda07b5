"""Networks in which nothing can be learned."""

import torch.nn.functional as F

from experiments.engine.cells import make_network, probing
from experiments.engine.data import Batches, Dataset
from experiments.engine.grid import Cell


def is_dead(cell: Cell, dataset: Dataset) -> bool:
    """Whether nothing in the cell's network but the classifier's bias, its last parameter, receives a gradient at its
    first weights, on one batch of training images.

    Such a network gives all images the same outputs, and stays so where its features are zeros: ReLU passes no gradient
    at 0, and zeros give the classifier's weights none.
    """
    model = make_network(cell, dataset)
    probe, images, labels = probing(model, Batches(dataset, next(model.parameters()).device))
    F.cross_entropy(probe(images), labels).backward()
    *others, _ = probe.parameters()
    return not any(parameter.grad is not None and parameter.grad.any() for parameter in others)
