"""ImageNet ResNets: torchvision's state dicts and outputs, golden sizes, and flow."""

import pytest
import torch
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from models import GRADIENT_ONLY, PLAIN, Flow, imagenet_resnet
from probes import find_junctions

# Multiply-adds at 224 x 224 (torchvision's documentation, in 1e9) and parameters.
GOLDEN = {
    18: (1.814, 11_689_512), 34: (3.664, 21_797_672), 50: (4.089, 25_557_032), 101: (7.801, 44_549_160),
    152: (11.514, 60_192_808),
}  # fmt: skip
HE = {50: 3.8, 101: 7.6, 152: 11.3}  # He et al. 2015, Table 1


def multiply_adds(model: nn.Module) -> float:
    """In 1e9, for one image; the counter counts a multiply-add as two operations."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        model.to("meta").eval()(torch.empty(1, 3, 224, 224))
    return counter.get_total_flops() / 2e9


@pytest.mark.parametrize("depth", GOLDEN)
def test_golden_sizes(depth: int) -> None:
    with torch.device("meta"):
        model = imagenet_resnet(depth)
    macs, parameters = GOLDEN[depth]
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert multiply_adds(model) == pytest.approx(macs, abs=5e-4)


@pytest.mark.parametrize("depth", HE)
def test_with_the_stride_of_the_paper_the_paper_s_sizes(depth: int) -> None:
    with torch.device("meta"):
        model = imagenet_resnet(depth, stride_in="1x1")
    assert multiply_adds(model) == pytest.approx(HE[depth], abs=0.06)  # the paper gives two digits


@pytest.mark.parametrize("depth", [18, 50])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_torchvision_s_weights_load_both_ways_and_give_the_same_bits(depth: int, training: bool) -> None:
    torch.manual_seed(0)
    theirs = getattr(torchvision.models, f"resnet{depth}")(num_classes=5).train(training)
    torch.manual_seed(0)
    ours = imagenet_resnet(depth, num_classes=5).train(training)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert all(torch.equal(p, q) for p, q in zip(ours.parameters(), theirs.parameters(), strict=True))
    nn.init.ones_(theirs.conv1.weight)
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 3, 64, 64)
    outputs = [model(x) for model in (ours, theirs)]
    assert torch.equal(*outputs)
    for output in outputs:
        output.square().sum().backward()
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert p.grad is not None
        assert q.grad is not None
        assert torch.equal(p.grad, q.grad)
    assert all(torch.equal(a, b) for a, b in zip(ours.buffers(), theirs.buffers(), strict=True))


def test_the_first_convolution_of_other_images_is_torchvision_s_but_for_its_channels() -> None:
    """Its weights have He et al.'s standard deviation, sqrt(2 / (64 * 7 * 7)); 3,136 draws give it to 1.3 %."""
    model, theirs = imagenet_resnet(18, in_channels=1), torchvision.models.resnet18()
    assert repr(model.conv1) == repr(theirs.conv1).replace("Conv2d(3", "Conv2d(1")
    assert model.conv1.weight.std().item() == pytest.approx((2 / (64 * 49)) ** 0.5, rel=0.05)


@pytest.mark.parametrize("flow", [PLAIN, GRADIENT_ONLY], ids=["plain", "gradient-only"])
def test_plain_networks_do_not_see_their_shortcuts(flow: Flow) -> None:
    torch.manual_seed(0)
    model, x = imagenet_resnet(34, num_classes=5, flow=flow).eval(), torch.randn(1, 3, 64, 64)
    before = model(x)
    before.sum().backward()
    projections = [p for name, p in model.named_parameters() if "downsample" in name]
    assert all(p.grad is not None and not p.grad.any() for p in projections)
    for p in projections:
        nn.init.normal_(p)
    assert torch.equal(model(x), before)
    assert len(find_junctions(model, x)) == 16


@pytest.mark.parametrize(
    ("depth", "options", "message"),
    [
        (20, {}, "no depth 20: choose from 18, 34, 50, 101, 152"),
        (50, {"stride_in": "2x2"}, "stride_in is '2x2'"),
        (18, {"num_classes": 0}, "num_classes 0: give at least 1"),
    ],
)
def test_bad_input(depth: int, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        imagenet_resnet(depth, **options)  # type: ignore[arg-type]
