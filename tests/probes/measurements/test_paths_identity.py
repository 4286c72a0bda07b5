"""The identity that ties the project together: arms of the experiment are terms of the ordinary net's path lengths."""

from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models import ARMS, CifarResNet, cifar_resnet
from models.projections import Projection
from probes import path_gradients, record
from tests.support.networks import gradients_at, images, relative_error

Block = Literal["basic", "bottleneck"]
NETS: list[tuple[int, Projection, Block]] = [
    (20, "A", "basic"), (20, "B", "basic"), (20, "C", "basic"), (29, "B", "bottleneck"), (56, "A", "basic"),
]  # fmt: skip
# A chain of 27 train-mode blocks in float64 rounds at about 1e-15; one path more or less is off by more than 1e-3.
CLOSE = 1e-12


def arm(name: str, depth: int, projection: Projection, block: Block = "basic") -> CifarResNet:
    torch.manual_seed(2)
    return cifar_resnet(depth, flow=ARMS[name], width=4, projection=projection, block=block).double().train()


def loss(logits: Tensor) -> Tensor:
    return F.cross_entropy(logits, torch.arange(len(logits)))


def lengths_of(model: CifarResNet, x: Tensor) -> Tensor:
    with record(model) as recording:
        loss(model(x)).backward(retain_graph=True)
    return path_gradients(recording)


@pytest.mark.parametrize(("depth", "projection", "block"), NETS)
def test_twins_are_terms_of_the_ordinary_net(depth: int, projection: Projection, block: Block) -> None:
    x = images()
    lengths = lengths_of(arm("residual", depth, projection, block), x)
    whole, longest, shortest = (
        gradients_at(arm(name, depth, projection, block), ["layer1.0"], x, loss)[0]
        for name in ("residual", "stop-gradient", "shortest-path")
    )
    assert len(lengths) == len(arm("residual", depth, projection, block).blocks) + 1
    assert relative_error(lengths[-1], longest) < CLOSE
    assert relative_error(lengths[0], shortest) < CLOSE
    assert relative_error(lengths.sum(0), whole) < CLOSE
    # The three are different gradients, so that the lines above compare something.
    assert min(relative_error(a, b) for a, b in [(whole, longest), (whole, shortest), (longest, shortest)]) > 0.1


@pytest.mark.parametrize("depth", [20, 56])
@pytest.mark.parametrize("name", ARMS)
def test_lengths_sum_to_autograd_s_gradient_and_arms_that_cut_have_one(name: str, depth: int) -> None:
    """The longest path alone without the shortcuts' gradients, the empty one without the branches'."""
    x, model = images(), arm(name, depth, "A")
    lengths = lengths_of(model, x)
    (whole,) = gradients_at(arm(name, depth, "A"), ["layer1.0"], x, loss)
    assert relative_error(lengths.sum(0), whole) < CLOSE
    last = len(model.blocks)
    found = [length for length, gradient in enumerate(lengths) if gradient.any()]
    assert found == {"plain": [last], "stop-gradient": [last], "shortest-path": [0]}.get(name, found)
    assert len(found) > 1 or name not in ("residual", "gradient-only")


def test_one_forward_and_a_backward_of_other_weights_give_those_weights_lengths() -> None:
    model, x = arm("residual", 14, "A"), images()
    with record(model) as recording:
        value = loss(model(x))
        value.backward(retain_graph=True)
        ordinary = path_gradients(recording)
        for block in model.blocks:
            block.flow = ARMS["stop-gradient"]
        value.backward(retain_graph=True)
    assert ordinary[:-1].any()
    assert not path_gradients(recording)[:-1].any()
    assert relative_error(path_gradients(recording)[-1], ordinary[-1]) < CLOSE


def test_taking_lengths_leaves_gradients_and_recording_as_they_were() -> None:
    model = arm("residual", 14, "A")
    with record(model, keep=True) as recording:
        loss(model(images())).backward(retain_graph=True)
        before = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        totals = [recording.gradient(site, "total").clone() for site in recording.sites]
        once, twice = path_gradients(recording), path_gradients(recording)
    assert torch.equal(once, twice)
    after = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))
    kept = [recording.gradient(site, "total") for site in recording.sites]
    assert all(torch.equal(a, b) for a, b in zip(kept, totals, strict=True))
