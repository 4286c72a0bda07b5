"""The CIFAR ResNet: sizes from the paper, shapes, option A done on paper, public weights, and what it refuses."""

import copy
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.handwritten import HandwrittenResNet
from models import RESIDUAL, STOP_GRADIENT, CifarResNet, Flow, ResidualBlock, cifar_resnet, rename_public_weights
from models.projections import make_shortcut
from probes import gradient_norms, path_contributions, record, residual_magnitudes
from tests.support.networks import images

DATA = Path(__file__).parents[3] / "shared" / "data"
needs_data = pytest.mark.skipif(
    not (DATA / "akamaster-resnet56.th").exists(), reason=f"the public weights and test images are not in {DATA}"
)


@pytest.mark.parametrize(
    ("depth", "parameters"),
    [(20, 269_722), (32, 464_154), (44, 658_586), (56, 853_018), (110, 1_727_962), (1202, 19_421_274)],
)
def test_sizes_are_those_of_the_paper(depth: int, parameters: int) -> None:
    """He et al. 2015, Table 6: 0.27 M, 0.46 M, 0.66 M, 0.85 M, 1.7 M, 19.4 M."""
    model = cifar_resnet(depth)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert len(model.blocks) == (depth - 2) // 2
    # The weighted layers on the longest way, which give the network its name.
    assert sum(isinstance(module, (nn.Conv2d, nn.Linear)) for module in model.modules()) == depth


@pytest.mark.slow
@pytest.mark.parametrize("depth", [110, 1202])
def test_hundreds_of_layers_train(depth: int) -> None:
    """Two steps forward, backward and SGD; every weight moves, and nothing stops being finite."""
    torch.manual_seed(0)
    model, x = cifar_resnet(depth, width=4), images(4, 8, dtype=torch.float32)
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-3)
    first = [parameter.detach().clone() for parameter in model.parameters()]
    for _ in range(2):
        optimiser.zero_grad()
        F.cross_entropy(model(x), torch.arange(4)).backward()
        optimiser.step()
    for before, after in zip(first, model.parameters(), strict=True):
        assert after.isfinite().all()
        assert not torch.equal(before, after)


def test_projections_add_their_convolutions_and_norms() -> None:
    """Option B at the two stage changes: 1x1 convolutions 16 -> 32 -> 64 and BatchNorms of 32 and 64 channels."""
    sizes = {p: sum(q.numel() for q in cifar_resnet(20, projection=p).parameters()) for p in ("A", "B", "C")}
    assert sizes["B"] - sizes["A"] == 16 * 32 + 32 * 64 + 2 * (32 + 64)
    rest = 3 * (16 * 16 + 2 * 16) + 2 * (32 * 32 + 2 * 32) + 2 * (64 * 64 + 2 * 64)
    assert sizes["C"] - sizes["B"] == rest


def test_bottlenecks_have_three_layers_a_block_and_four_times_the_channels() -> None:
    model = cifar_resnet(29, block="bottleneck", width=8, projection="B")
    assert len(model.blocks) == 9
    assert model(images(2, 16, dtype=torch.float32)).shape == (2, 10)
    assert model.layer3(torch.zeros(1, 64, 4, 4)).shape == (1, 128, 2, 2)
    on_branches = [m for name, m in model.named_modules() if isinstance(m, nn.Conv2d) and ".shortcut." not in name]
    assert len(on_branches) + 1 == 29


@pytest.mark.parametrize("projection", ["A", "B", "C"])
@pytest.mark.parametrize(("channels", "classes", "size"), [(3, 10, 32), (1, 7, 8), (2, 3, 9)])
def test_shapes(projection: Any, channels: int, classes: int, size: int) -> None:
    model = cifar_resnet(8, width=4, in_channels=channels, num_classes=classes, projection=projection)
    x = torch.randn(2, channels, size, size)
    stages = [model.layer1, nn.Sequential(model.layer1, model.layer2)]
    assert model(x).shape == (2, classes)
    assert [stage(model.stem(x)).shape[1:] for stage in stages] == [(4, size, size), (8, *[(size + 1) // 2] * 2)]


def test_option_a_takes_every_second_pixel_and_pads_both_sides_equally() -> None:
    x = torch.arange(18.0).reshape(1, 2, 3, 3)
    zeros = [[0.0, 0.0], [0.0, 0.0]]
    wanted = [zeros, [[0.0, 2.0], [6.0, 8.0]], [[9.0, 11.0], [15.0, 17.0]], zeros]
    assert make_shortcut(2, 4, stride=2, projection="A")(x).tolist() == [wanted]


@pytest.mark.parametrize("projection", ["A", "B"])
def test_a_shortcut_that_keeps_the_shape_is_the_identity(projection: Any) -> None:
    assert isinstance(make_shortcut(4, 4, stride=1, projection=projection), nn.Identity)
    identities = [isinstance(block.shortcut, nn.Identity) for block in cifar_resnet(14, projection=projection).blocks]
    assert identities == [True, True, False, True, False, True]


def test_blocks_are_in_order_of_depth() -> None:
    model = cifar_resnet(20, width=4)
    seen: list[nn.Module] = []
    for block in model.modules():
        if isinstance(block, ResidualBlock):
            block.register_forward_pre_hook(lambda module, _: seen.append(module))
    model(images(2, dtype=torch.float32))
    assert len(seen) == 9
    assert all(a is b for a, b in zip(model.blocks, seen, strict=True))


def test_a_block_applies_its_activation_to_the_sum() -> None:
    block = cifar_resnet(8, width=4).blocks[0].eval()
    x = torch.randn(2, 4, 5, 5)
    wanted = (x + block.branch(x)).clamp(min=0)
    assert torch.equal(block(x), wanted)
    assert (wanted == 0).any()


@pytest.mark.parametrize("copied", ["deepcopy", "state_dict"])
def test_copies_compute_the_same_and_are_independent(copied: str) -> None:
    model = cifar_resnet(14, width=4, projection="B")
    if copied == "deepcopy":
        twin = copy.deepcopy(model)
    else:
        twin = cifar_resnet(14, width=4, projection="B")
        assert twin.load_state_dict(model.state_dict()).missing_keys == []
    x = images(2, dtype=torch.float32)
    wanted = model(x)
    assert torch.equal(twin(x), wanted)
    twin.blocks[0].flow = Flow(shortcut=0)
    assert not torch.equal(twin(x), wanted)
    assert model.blocks[0].flow == RESIDUAL
    assert torch.equal(model(x), wanted)


def test_repr_shows_each_block_s_flow() -> None:
    assert repr(cifar_resnet(8)).count("Flow(shortcut=1.0, branch=1.0") == 3


def trained(depth: int) -> nn.Module:
    stored = torch.load(DATA / f"akamaster-resnet{depth}.th", weights_only=True, map_location="cpu")
    model = cifar_resnet(depth)
    model.load_state_dict(rename_public_weights(stored["state_dict"]))
    return model.eval()


def public_images() -> tuple[Tensor, Tensor]:
    with np.load(DATA / "cifar10_test_lossless_1017.npz") as data:
        images, labels = torch.tensor(data["x"]).float() / 255, torch.tensor(data["y"])
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (images - mean.view(3, 1, 1)) / std.view(3, 1, 1), labels


@needs_data
@pytest.mark.parametrize(("depth", "accuracy"), [(20, 0.9164), (56, 0.9272)])
def test_trained_networks_score_what_their_authors_report(depth: int, accuracy: float) -> None:
    images, labels = public_images()
    model = trained(depth)
    with torch.no_grad():
        right = torch.cat([model(batch).argmax(1) for batch in images.split(128)]) == labels
    assert right.double().mean().item() == pytest.approx(accuracy, abs=5e-5)  # the fourth digit of 1,017 images


@needs_data
@pytest.mark.slow
def test_a_trained_network_gives_sensible_profiles() -> None:
    images, labels = public_images()
    model = trained(56)
    with record(model) as recording:
        F.cross_entropy(model(images[:64]), labels[:64]).backward(retain_graph=True)
    total = gradient_norms(recording).query("quantity == 'total'")["value"]
    assert len(total) == 27
    assert 1e-6 < total.min() < total.max() < 1e3
    ratio = residual_magnitudes(recording).query("quantity == 'ratio'")["value"].to_numpy()
    assert (ratio > 0).all()
    assert np.median(ratio) < 1  # residuals are smaller than what they are added to
    shares = path_contributions(recording).query("quantity == 'share'")["value"].to_numpy()
    assert shares.sum() == pytest.approx(1)
    assert shares[:14].sum() > 0.9  # the shorter half of the lengths


def test_names_that_are_no_cifar_resnet() -> None:
    with pytest.raises(ValueError, match="names such as state_dict, epoch; wanted conv1, bn1"):
        rename_public_weights({"state_dict": torch.zeros(1), "epoch": torch.zeros(1)})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"depth": 21}, "depth 21 is not 6n + 2, .*basic blocks.* nearest are 20 and 26"),
        ({"depth": 2}, "depth 2 is not 6n + 2, .*basic blocks.* nearest .*8"),
        ({"depth": 30, "block": "bottleneck"}, "depth 30 is not 9n + 2, .*bottleneck blocks.* nearest are 29 and 38"),
        ({"depth": 20, "block": "wide"}, "unknown block 'wide': choose basic, bottleneck, .* or dirac"),
        ({"depth": 20, "projection": "D"}, "unknown projection 'D': choose A .zero-padding., B or C"),
        ({"depth": 8, "flow": "plain"}, "flow is 'plain': give a Flow, such as STOP_GRADIENT, or a list"),
        ({"depth": 8, "flow": None}, "flow is None: give a Flow"),
        ({"depth": 8, "width": 0}, "width 0: give at least 1"),
        ({"depth": 8, "num_classes": 0}, "num_classes 0: give at least 1"),
        ({"depth": 8, "in_channels": -1}, "in_channels -1: give at least 1"),
        ({"depth": 8, "width": 5}, "projection A pads channels equally on both sides, which 5 -> 10 does not allow"),
    ],
)
def test_refusals_say_what_to_give(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("+", r"\+")):
        cifar_resnet(**settings)


def test_an_odd_width_is_fine_with_option_b() -> None:
    assert isinstance(cifar_resnet(8, width=5, projection="B"), CifarResNet)


class Kernels(TorchDispatchMode):
    """Counts operations, but for those that only look at memory otherwise; in place or not."""

    def __init__(self) -> None:
        super().__init__()
        self.count = Counter[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view and func.overloadpacket is not torch.ops.aten.detach:
            self.count[func.overloadpacket.__name__.rstrip("_")] += 1
        return func(*args, **(kwargs or {}))


def test_shortcuts_that_are_not_switched_cost_no_kernel() -> None:
    """Forward and backward, beside the network that one writes by hand; stop-gradient adds zeros for each block."""

    def kernels(model: nn.Module) -> Counter[str]:
        with Kernels() as kernels:
            model(torch.ones(4, 3, 8, 8)).sum().backward()
        return kernels.count

    by_hand = kernels(HandwrittenResNet(14))
    assert kernels(cifar_resnet(14)) == by_hand
    stopped = kernels(cifar_resnet(14, flow=STOP_GRADIENT)) - by_hand
    assert stopped == {"zeros_like": 6}
