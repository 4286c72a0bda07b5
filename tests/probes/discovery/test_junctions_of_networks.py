"""The junctions of known networks, ours in every arm and torchvision's."""

import pytest
import torch
import torchvision

from models import ARMS, cifar_resnet
from models.projections import Projection
from probes import find_junctions


@pytest.mark.parametrize("projection", ["A", "B", "C"])
@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_of_ours_has_the_same_junctions(arm: str, projection: Projection) -> None:
    model = cifar_resnet(20, flow=ARMS[arm], width=4, projection=projection)
    junctions = find_junctions(model, torch.randn(2, 3, 8, 8))
    names = [f"layer{stage}.{index}" for stage in (1, 2, 3) for index in range(3)]
    assert [junction.name for junction in junctions] == names
    assert [junction.depth for junction in junctions] == list(range(9))
    projections = set(names) if projection == "C" else {"layer2.0", "layer3.0"}
    assert {junction.name for junction in junctions if junction.shortcut == "projection"} == projections


def test_depth_56_has_27() -> None:
    assert len(find_junctions(cifar_resnet(56, width=4), torch.randn(2, 3, 8, 8))) == 27


def test_bottlenecks_change_their_channels_in_the_first_block_too() -> None:
    junctions = find_junctions(cifar_resnet(29, block="bottleneck", width=4), torch.randn(2, 3, 8, 8))
    assert [j.shortcut for j in junctions] == ["projection", "identity", "identity"] * 3


@pytest.mark.parametrize(
    ("name", "blocks", "projections"),
    [
        ("resnet18", (2, 2, 2, 2), {"layer2.0", "layer3.0", "layer4.0"}),
        ("resnet50", (3, 4, 6, 3), {"layer1.0", "layer2.0", "layer3.0", "layer4.0"}),
    ],
)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_torchvision_s_resnets(name: str, blocks: tuple[int, ...], projections: set[str], training: bool) -> None:
    model = getattr(torchvision.models, name)(weights=None, num_classes=10).train(training)
    junctions = find_junctions(model, torch.randn(2, 3, 32, 32))
    names = [f"layer{stage}.{index}" for stage, count in enumerate(blocks, 1) for index in range(count)]
    assert [junction.name for junction in junctions] == names
    assert [junction.depth for junction in junctions] == list(range(sum(blocks)))
    assert {junction.name for junction in junctions if junction.shortcut == "projection"} == projections


def test_torchvision_s_plain_and_dense_networks_have_none() -> None:
    x = torch.randn(1, 3, 32, 32)
    assert find_junctions(torchvision.models.vgg11(weights=None, init_weights=False).features.eval(), x) == []
    assert find_junctions(torchvision.models.densenet121(weights=None, num_classes=10).eval(), x) == []
