"""The residual MLP: its gradients on paper, its layers, and what it refuses."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from models import PLAIN, residual_mlp
from probes import path_contributions, record
from tests.support.networks import FLOAT64


def test_path_lengths_on_paper() -> None:
    """Three scalar blocks x + w x with w = 2, 3, 5, all positive so that ReLU is silent: the gradient 72 has
    parts 1, 2 + 3 + 5, 2 * 3 + 2 * 5 + 3 * 5, 2 * 3 * 5 by path length."""
    model = residual_mlp(5, in_features=1, width=1, num_classes=1).double()
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), (1, 0, 2, 0, 3, 0, 5, 0, 1, 0), strict=True):
            parameter.fill_(value)
    with record(model) as recording:
        model(torch.ones(1, 1, dtype=FLOAT64)).sum().backward(retain_graph=True)
    found = path_contributions(recording)
    assert found[found["quantity"] == "norm"]["value"].tolist() == [1, 10, 31, 30]


def test_sizes_on_paper() -> None:
    """Of 2 -> 64, one block 64 -> 64, and 64 -> 10, with biases."""
    size = sum(parameter.numel() for parameter in residual_mlp(3, in_features=2).parameters())
    assert size == (2 + 1) * 64 + (64 + 1) * 64 + (64 + 1) * 10


def test_a_plain_layer_is_a_linear_layer() -> None:
    """At forward weight 0 the shortcut adds exactly nothing."""
    model, x = residual_mlp(6, in_features=12, width=8, flow=PLAIN).double(), torch.randn(5, 8, dtype=FLOAT64)
    block = model.blocks[0]
    assert torch.equal(block(x), F.relu(model.get_submodule("blocks.0.branch")(x)))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [({"depth": 2, "in_features": 4}, "depth 2 leaves no block"), ({"depth": 8, "in_features": 0}, "give at least 1")],
)
def test_bad_input(sizes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        residual_mlp(**sizes)
