"""How far the weights of each block have moved."""

import pytest
import torch

from experiments.engine.conditions.block_gradients import movement
from models import cifar_resnet, imagenet_resnet


def test_movement_is_relative_to_the_first_weights() -> None:
    model = cifar_resnet(8, width=2)
    first = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert movement(first, model)["value"].tolist() == [0, 0, 0]
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "conv" in name and "layer3" in name:
                weight.mul_(1.5)
            if "bn" in name or "classifier" in name:
                weight.add_(100)  # does not count
    found = movement(first, model)
    assert found["value"].tolist() == pytest.approx([0, 0, 0.5])
    assert found["block"].tolist() == ["layer1.0", "layer2.0", "layer3.0"]
    assert found["depth"].tolist() == [0, 1, 2]
    assert set(found["quantity"]) == {"movement"}


def test_movement_of_one_layer_on_paper() -> None:
    """torchvision's blocks, too: one of two layers of 64 * 64 * 9 ones goes to 3, so that |w - w0| / |w0| = √2."""
    model = imagenet_resnet(18)
    first = {name: torch.ones_like(parameter) for name, parameter in model.named_parameters()}
    model.load_state_dict(first, strict=False)
    torch.nn.init.constant_(model.layer1[0].conv1.weight, 3.0)  # type: ignore[arg-type, union-attr]
    assert movement(first, model)["value"].tolist() == pytest.approx([2**0.5, *[0] * 7], rel=1e-6)
