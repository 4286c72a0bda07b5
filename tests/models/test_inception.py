"""Inception-ResNet: sizes on paper, its towers by hand, and what it refuses."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import PLAIN, inception_resnet
from models.inception import TOWERS, inception_branch, reduction
from probes import find_junctions, gate, path_contributions, record, scale_gradient
from tests.support.networks import FLOAT64, Residual, images, relative_error


def test_parameters_on_paper() -> None:
    """Width 16: stem 464; blocks 2,208 + 400, 4,736 + 1,056 and 10,496 + 4,160 (towers + expansion); reductions 2,496
    and 9,856; classifier 650. A convolution with BatchNorm has in x out x kernel + 2 out, an expansion has biases."""
    blocks = 2_608 + 5_792 + 14_656
    for depth, n in ((20, 1), (32, 2), (56, 4)):
        size = sum(p.numel() for p in inception_resnet(depth).parameters())
        assert size == 464 + n * blocks + 2_496 + 9_856 + 650
    assert sum(p.numel() for p in inception_resnet(20).parameters()) == 36_522


@pytest.mark.parametrize("depth", [20, 32, 44, 56])
def test_depth_counts_the_layers_of_the_longest_way(depth: int) -> None:
    """Of the towers side by side the longest counts."""

    def longest(module: nn.Module) -> int:
        inner = [longest(child) for child in module.children()]
        weighted = int(isinstance(module, nn.Conv2d | nn.Linear))
        return weighted + (max(inner) if isinstance(module, nn.ModuleList) else sum(inner))

    assert longest(inception_resnet(depth, width=2)) == depth


@pytest.mark.parametrize(("channels", "classes", "size"), [(3, 10, 32), (1, 7, 8), (2, 3, 9)])
def test_maps_halve_and_channels_double_between_stages(channels: int, classes: int, size: int) -> None:
    model = inception_resnet(32, width=4, in_channels=channels, num_classes=classes)
    x = model.stem(torch.randn(2, channels, size, size))
    for stage, width in ((model.layer1, 4), (model.layer2, 8), (model.layer3, 16)):
        x = stage(x)
        assert x.shape == (2, width, size, size)
        size = (size + 1) // 2
    assert model(torch.randn(2, channels, 8, 8)).shape == (2, classes)


def test_a_branch_is_its_towers_concatenated_expanded_and_scaled() -> None:
    """Block B, layer by layer in functions: 1x1 | 1x1, 1x7, 7x1; then 1x1, without activation, times 0.2."""
    branch, x = inception_branch(4, TOWERS[1], 0.2).double().eval(), torch.randn(2, 4, 5, 5, dtype=FLOAT64)
    for norm in branch.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.constant_(norm.bias, 0.1)  # so that a border of zeros is seen
    left, *rest, expand, bias = [p for p in branch.parameters() if p.dim() == 4 or p.shape == (4,)]

    def layer(x: Tensor, weight: Tensor, padding: tuple[int, int] = (0, 0)) -> Tensor:
        y = F.conv2d(x, weight, padding=padding) / (1 + 1e-5) ** 0.5  # BatchNorm's statistics at 0 and 1
        return (y + 0.1).relu()

    right = layer(layer(layer(x, rest[0]), rest[1], (0, 3)), rest[2], (3, 0))
    assert [tuple(p.shape[2:]) for p in rest] == [(1, 1), (1, 7), (7, 1)]
    wanted = 0.2 * F.conv2d(torch.cat([layer(x, left), right], 1), expand, bias)
    assert (wanted < 0).any()
    torch.testing.assert_close(branch(x), wanted, rtol=1e-12, atol=1e-12)


def test_branches_are_not_scaled_unless_asked() -> None:
    assert [block.branch.get_submodule("scaling").factor for block in inception_resnet(20, width=2).blocks] == [1] * 3


def test_a_reduction_keeps_the_pooled_maps_and_adds_two_strided_towers() -> None:
    x = torch.randn(2, 4, 8, 8)
    y = reduction(4)(x)
    assert y.shape == (2, 8, 4, 4)
    assert torch.equal(y[:, :4], F.max_pool2d(x, 3, stride=2, padding=1))
    strides = [m.stride[0] for m in reduction(4).modules() if isinstance(m, nn.Conv2d)]
    assert strides == [2, 1, 1, 2]  # a tower's last convolution strides


def test_gating_a_foreign_block_scales_every_tower() -> None:
    """x + branch(x), edited by hand where x enters the branch: the towers' gradients meet at x one by one."""
    block, x = Residual(inception_branch(4, TOWERS[0], 0.2).double()), torch.randn(2, 4, 5, 5, dtype=FLOAT64)
    upstream, model = torch.randn_like(x), nn.Sequential(nn.Tanh(), block)
    x.requires_grad_()
    z = x.tanh()
    (wanted,) = torch.autograd.grad(z + block.branch(scale_gradient(z, 0.3)), x, upstream)
    with gate(model, branch_gradient=0.3):
        (got,) = torch.autograd.grad(model(x), x, upstream)
    assert relative_error(got, wanted) < 1e-12
    assert relative_error(got, torch.autograd.grad(model(x), x, upstream)[0]) > 0.1


def test_a_plain_network_has_the_longest_path_alone() -> None:
    model = inception_resnet(20, width=4, flow=PLAIN).double()
    assert [junction.shortcut for junction in find_junctions(model, images())] == ["identity"] * 3
    with record(model) as recording:
        F.cross_entropy(model(images()), torch.arange(4)).backward(retain_graph=True)
    found = path_contributions(recording)
    assert found[found["quantity"] == "share"]["value"].tolist() == pytest.approx([0, 0, 0, 1])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"depth": 21}, r"depth 21 is not 12n \+ 8, as inception blocks need: the nearest are 20 and 32"),
        ({"depth": 8}, r"depth 8 is not 12n \+ 8, .* nearest are 20 and 32"),
        ({"depth": 20, "width": 5}, "width 5: give an even number from 2, since a tower has half"),
        ({"depth": 20, "scaling": 0.0}, "scaling 0.0: give a positive number .*0.1 to 0.3"),
        ({"depth": 20, "scaling": float("inf")}, "scaling inf: give a positive number"),
        ({"depth": 20, "in_channels": 0}, "in_channels 0: give at least 1"),
    ],
)
def test_refusals_say_what_to_give(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        inception_resnet(**settings)
