"""Kinds of block and variants on paper: sizes, first weights, what is normalised and what is dropped."""

import math
from collections import OrderedDict
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from models import PLAIN, CifarResNet, Flow, ResidualBlock, cifar_resnet
from models.branches import DiracConv2d, Scalar, fixup_weights, skipinit_branch
from models.variants import BLOCK_KINDS, VARIANTS, BlockName, Variant
from tests.support.networks import FLOAT64, images


def network(depth: int = 8, **options: Any) -> CifarResNet:
    torch.manual_seed(0)
    return cifar_resnet(depth, width=4, **options).double()


def stream() -> Tensor:
    """An input of a first block, not negative: ReLU leaves it as it is."""
    return torch.rand(2, 4, 6, 6, dtype=FLOAT64)


def part(block: nn.Module, name: str) -> Any:
    """A module inside a block, whose type is known to the test alone."""
    return block.get_submodule(name)


NORMS = 32 + 3 * 2 * (32 + 64 + 128)  # parameters of ResNet-20's BatchNorms: the stem's, and two a block


@pytest.mark.parametrize(
    ("depth", "options", "parameters"),
    [
        (110, {"block": "preactivation"}, 1_727_962),  # He et al. 2016: 1.7 M
        (110, {"block": "norm-after-sum"}, 1_727_962),
        (110, {"variant": "stochastic-depth"}, 1_727_962),  # Huang et al. 2016: as ResNet-110
        (164, {"block": "bottleneck"}, 1_661_274),  # He et al. 2016: 1.7 M
        (20, {"block": "fixup"}, 269_722 - NORMS + 9 * 5 + 2),  # 4 biases and a factor a block; two biases around
        (20, {"block": "dirac"}, 269_722 + 3 * 2 * 2 * (16 + 32 + 64)),  # alpha and beta of each filter
    ],
)
def test_sizes(depth: int, options: Any, parameters: int) -> None:
    assert sum(p.numel() for p in cifar_resnet(depth, **options).parameters()) == parameters


def test_preactivation_has_nothing_behind_the_sum() -> None:
    model = network(block="preactivation")
    assert all(isinstance(block.activation, nn.Identity) for block in model.blocks)
    assert [type(module) for module in model.pool][:2] == [nn.BatchNorm2d, nn.ReLU]
    assert len(model.stem) == 1  # type: ignore[arg-type]


def test_unnormalised_branches_are_two_convolutions_and_a_relu() -> None:
    """In plain functions, at a stride, too: nothing is normalised, and biases count."""
    model = network(block="unnormalised")
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert [type(module) for module in model.stem] == [nn.Conv2d, nn.ReLU]  # type: ignore[union-attr]
    for block, stride in zip(model.blocks, (1, 2, 2), strict=True):
        first, second = part(block, "branch.conv1"), part(block, "branch.conv2")
        x = torch.rand(2, first.in_channels, 6, 6, dtype=FLOAT64)
        inner = torch.conv2d(x, first.weight, first.bias, stride=stride, padding=1).clamp(min=0)
        wanted = torch.conv2d(inner, second.weight, second.bias, padding=1)
        torch.testing.assert_close(block.branch(x), wanted, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(block(x), (block.shortcut(x) + wanted).clamp(min=0), rtol=1e-12, atol=1e-12)


def test_unnormalised_values_stay_in_range_where_branches_are_scaled() -> None:
    """Of 27 blocks, each of which adds to the stream as much as it holds: 2^27 without the weight 1 / sqrt(27), and
    about e with it."""

    def growth(flow: Flow) -> float:
        torch.manual_seed(0)
        model = cifar_resnet(56, width=8, block="unnormalised", flow=flow).double()
        sizes: list[float] = []
        for block in (model.blocks[0], model.blocks[-1]):
            block.register_forward_hook(lambda _, __, y: sizes.append(y.square().mean().sqrt().item()))
        model(images(8, 16))
        return sizes[1] / sizes[0]

    assert growth(Flow()) > 1e3
    assert 0.1 < growth(Flow(1.0, 1 / math.sqrt(27))) < 10


def test_a_plain_unnormalised_network_can_begin_near_the_identity() -> None:
    model = network(20, block="unnormalised", flow=PLAIN, first_weights="near-identity")
    for block in (model.blocks[0], model.blocks[4]):
        x = torch.rand(2, part(block, "branch.conv1").in_channels, 6, 6, dtype=FLOAT64)
        torch.testing.assert_close(block.branch(x), x, rtol=0, atol=0.5)
        assert not torch.equal(block.branch(x), x)


def test_skipinit_s_weights_are_those_of_its_layers_in_their_order() -> None:
    """Written down as they were before its branch was made of the unnormalised one: the same keys, in the same order,
    with the same first weights under a seed."""
    torch.manual_seed(0)
    made = skipinit_branch(4, 8, 2)
    torch.manual_seed(0)
    layers = [
        ("conv1", nn.Conv2d(4, 8, 3, stride=2, padding=1)), ("relu", nn.ReLU()),
        ("conv2", nn.Conv2d(8, 8, 3, padding=1)), ("scale", Scalar(0.0)),
    ]  # fmt: skip
    wanted = nn.Sequential(OrderedDict(layers))
    assert list(made.state_dict()) == list(wanted.state_dict())
    assert [name for name, _ in made.named_children()] == ["conv1", "relu", "conv2", "scale"]
    assert all(torch.equal(value, made.state_dict()[name]) for name, value in wanted.state_dict().items())
    x = torch.rand(2, 4, 6, 6)
    made.scale.alpha.data.fill_(0.7)  # type: ignore[union-attr,operator]
    wanted.scale.alpha.data.fill_(0.7)  # type: ignore[union-attr,operator]
    assert torch.equal(made(x), wanted(x))


def test_skipinit_begins_as_its_shortcuts_and_learns_from_the_gate_on() -> None:
    """At alpha = 0 a branch adds nothing, and its convolutions get zeros: only alpha moves in the first step."""
    model, x = network(block="skipinit"), stream()
    block = model.blocks[0]
    assert torch.equal(block(x), x)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    nn.functional.cross_entropy(model(images()), torch.arange(4)).backward()
    gradients = {name: parameter.grad for name, parameter in block.branch.named_parameters()}
    alpha = gradients.pop("scale.alpha")
    assert alpha is not None
    assert alpha.item() != 0
    assert all(gradient is not None and not gradient.any() for gradient in gradients.values())


@pytest.mark.parametrize("depth", [8, 20])
def test_fixup_begins_as_its_shortcuts_with_scaled_convolutions(depth: int) -> None:
    """L = 3 or 9 branches of m = 2 convolutions: the first has L^(-1 / (2m - 2)) = L^(-1/2) of He et al.'s weights,
    which are those of the basic blocks under the same seed; the last has zeros."""
    model, basic, x = network(depth, block="fixup"), network(depth), stream()
    assert torch.equal(model.blocks[0](x), x)
    for block, twin in zip(model.blocks, basic.blocks, strict=True):
        first = part(block, "branch.conv1")
        given = torch.rand(2, first.in_channels, 6, 6, dtype=FLOAT64)
        assert not block.branch(given).any()
        wanted = part(twin, "branch.conv1").weight / math.sqrt(len(model.blocks))
        torch.testing.assert_close(first.weight, wanted, rtol=1e-6, atol=0)  # made in float32
    assert torch.equal(model.stem[0].weight, basic.stem[0].weight)  # type: ignore[index]
    assert not model(images()).any()
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def test_fixup_scales_all_convolutions_of_a_branch_but_the_last() -> None:
    """Two branches of m = 3: 2^(-1 / (2m - 2)) = 2^(-1/4) of the first two, zeros in the last and the classifier."""
    branches = [nn.Sequential(*(nn.Conv2d(1, 1, 1, dtype=FLOAT64) for _ in range(3))) for _ in range(2)]
    classifier = nn.Linear(2, 2)
    for branch in branches:
        for convolution in branch:
            nn.init.ones_(convolution.weight)  # type: ignore[arg-type]
    fixup_weights([ResidualBlock(branch) for branch in branches], classifier)
    weights = [convolution.weight.item() for branch in branches for convolution in branch]  # type: ignore[operator]
    assert weights == pytest.approx([2**-0.25, 2**-0.25, 0] * 2, abs=1e-15)
    assert not any(parameter.any() for parameter in classifier.parameters())


def test_fixup_s_numbers_stand_where_the_paper_has_them() -> None:
    """scale * conv2(relu(conv1(x + b1) + b2) + b3) + b4, in plain functions."""
    branch, x = network(block="fixup").blocks[0].branch, stream()
    assert [p.item() for p in branch.parameters() if not p.dim()] == [0, 0, 0, 1, 0]  # biases and the factor
    with torch.no_grad():
        for value, parameter in enumerate(branch.parameters(), 1):
            parameter.copy_(value / 10 * torch.randn_like(parameter))
    b1, w1, b2, b3, w2, scale, b4 = branch.parameters()
    inner = torch.conv2d(x + b1, w1, padding=1) + b2
    wanted = scale * torch.conv2d(inner.clamp(min=0) + b3, w2, padding=1) + b4
    torch.testing.assert_close(branch(x), wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("channels_in", "channels_out", "stride"), [(4, 4, 1), (4, 8, 2), (4, 4, 2)])
def test_a_dirac_convolution_without_w_is_the_identity(channels_in: int, channels_out: int, stride: int) -> None:
    layer, x = DiracConv2d(channels_in, channels_out, stride=stride).double(), stream()
    assert layer.beta.tolist() == pytest.approx([0.1] * channels_out)  # the paper's first weight of W
    nn.init.zeros_(layer.weight)
    y = layer(x)
    assert torch.equal(y[:, :channels_in], x[:, :, ::stride, ::stride])
    assert not y[:, channels_in:].any()


def test_a_dirac_convolution_s_filters_on_paper() -> None:
    """Each filter of W has norm 1 whatever its size: the filter is alpha at the centre of its own channel, and beta at
    a W that has one entry, 7."""
    layer = DiracConv2d(2, 2).double()
    with torch.no_grad():
        layer.weight.zero_()[:, 0, 0, 0] = 7
        layer.alpha.copy_(torch.tensor([2.0, 3.0]))
        layer.beta.copy_(torch.tensor([0.5, -0.25]))
    wanted = torch.zeros(2, 2, 3, 3, dtype=FLOAT64)
    wanted[0, 0, 1, 1], wanted[1, 1, 1, 1] = 2, 3
    wanted[0, 0, 0, 0], wanted[1, 0, 0, 0] = 0.5, -0.25
    torch.testing.assert_close(layer.filters, wanted, rtol=0, atol=1e-15)
    layer(torch.randn(1, 2, 5, 5, dtype=FLOAT64)).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in layer.parameters())


def test_norm_after_sum_normalises_the_sum_and_its_plain_network_is_resnet_s() -> None:
    model = network(block="norm-after-sum")
    block, x = model.blocks[1], torch.randn(4, 4, 6, 6, dtype=FLOAT64) * 5 + 3
    sums: list[Tensor] = []
    block.activation[0].register_forward_hook(lambda module, args, out: sums.append(out))  # type: ignore[index]
    y = block(x)
    (normalised,) = sums
    total = block.shortcut(x) + block.branch(x)
    centred = total - total.mean((0, 2, 3), keepdim=True)
    wanted = centred / (centred.square().mean((0, 2, 3), keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(normalised, wanted, rtol=1e-9, atol=1e-9)
    assert torch.equal(y, normalised.clamp(min=0))
    pictures = images()
    assert torch.equal(network(block="norm-after-sum", flow=PLAIN)(pictures), network(flow=PLAIN)(pictures))


def test_a_dropped_branch_is_whole_on_average() -> None:
    """Both draws of each block, weighted by their probabilities, give the branch; its survival is 1 - l / 2L."""
    model, survival = network(20, variant="stochastic-depth"), []
    for block in model.blocks:
        *rest, drop = block.branch.children()
        x = torch.randn(2, part(block, "branch.conv1").in_channels, 6, 6, dtype=FLOAT64)
        assert isinstance(drop, StochasticDepth)
        draws = {bool(y.any()): y for y in (block.branch(x) for _ in range(200))}
        whole = nn.Sequential(*rest)(x)  # in train mode: BatchNorm as in the draws
        survival.append(1 - drop.p)
        expected = survival[-1] * draws[True] + (1 - survival[-1]) * draws[False]
        torch.testing.assert_close(expected, whole, rtol=1e-14, atol=1e-14)
        block.eval()
        assert torch.equal(block.branch(x), nn.Sequential(*rest)(x))
    assert survival == pytest.approx([1 - block / 18 for block in range(1, 10)])


def test_the_types_name_every_kind_and_variant() -> None:
    assert get_args(BlockName) == tuple(BLOCK_KINDS)
    assert get_args(Variant) == tuple(VARIANTS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "gate"}, "unknown variant 'gate': choose identity, dropout, .*-gate or stochastic-depth"),
        ({"block": "postactivation"}, "unknown block 'postactivation': choose basic, bottleneck, .*fixup or dirac"),
    ],
)
def test_unknown_options(options: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cifar_resnet(8, **options)  # type: ignore[arg-type]
