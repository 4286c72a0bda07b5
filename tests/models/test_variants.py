"""Every kind of block and every variant of `cifar_resnet`: one suite for what flow means."""

from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import ARMS, RESIDUAL, SHORTEST_PATH, STOP_GRADIENT, CifarResNet, Flow, ResidualBlock, cifar_resnet
from models.block import ExclusiveGateBlock
from models.variants import BLOCK_KINDS, VARIANTS, Block, Variant
from probes import find_junctions, gate, path_gradients, record
from tests.support.networks import FLOAT64, images, linear, relative_error

DEPTHS = {block: 2 + 3 * kind.layers for block, kind in BLOCK_KINDS.items()}
EACH = [(block, variant) for block in BLOCK_KINDS for variant in VARIANTS]


def network(block: str, variant: str, flow: Flow = RESIDUAL, projection: str = "B") -> CifarResNet:
    """A network that has left its first weights, among which some kinds have zeros that would hide much."""
    torch.manual_seed(0)
    options = {"block": block, "variant": variant, "projection": projection, "gate_bias": -1.0}
    model = cifar_resnet(DEPTHS[block], flow=flow, width=4, **options).double()  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def step(model: nn.Module, x: Tensor, **gates: float) -> tuple[Tensor, list[Tensor]]:
    torch.manual_seed(1)  # dropout, stochastic depth
    with gate(model, **gates):  # type: ignore[arg-type]
        output = model(x)
        F.cross_entropy(output, torch.arange(len(x))).backward()
    return output.detach(), [p.grad for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize(("block", "variant"), EACH)
def test_arms_start_alike_and_no_parameter_goes_without_a_gradient(block: str, variant: str) -> None:
    x = images()
    outputs = {}
    for arm, flow in ARMS.items():
        model = network(block, variant, flow)
        outputs[arm], gradients = step(model, x)
        assert len(gradients) == len(list(model.parameters()))
        assert len(find_junctions(model, x)) == 3
    assert torch.equal(outputs["residual"], outputs["stop-gradient"])
    assert torch.equal(outputs["residual"], outputs["shortest-path"])
    assert torch.equal(outputs["plain"], outputs["gradient-only"])
    assert not torch.equal(outputs["residual"], outputs["plain"])


@pytest.mark.parametrize("projection", ["A", "B", "C"])
@pytest.mark.parametrize(("block", "variant"), EACH)
def test_an_arm_is_the_gated_network(block: str, variant: str, projection: str) -> None:
    """A gate's own gradient counts as the shortcut's, in the block as in `gate`."""
    x = images()
    for flow, gates in ((STOP_GRADIENT, {"shortcut_gradient": 0.0}), (SHORTEST_PATH, {"branch_gradient": 0.0})):
        output, wanted = step(network(block, variant, flow, projection), x)
        gated, got = step(network(block, variant, projection=projection), x, **gates)
        assert torch.equal(output, gated)
        assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


@pytest.mark.parametrize(("block", "variant"), EACH)
def test_path_lengths_sum_to_autograd(block: str, variant: str) -> None:
    model, x = network(block, variant).eval(), images()
    with record(model, keep=True) as recording:
        F.cross_entropy(model(x), torch.arange(4)).backward(retain_graph=True)
    lengths = path_gradients(recording)
    assert relative_error(lengths.sum(0), recording.gradient(recording.sites[0], "total")) < 1e-12


def test_exclusive_gating_on_paper() -> None:
    """y = (1 - g) x + g · 3x with g = sigmoid(0 · x + 0) = 1/2, whose derivative is 1/4 of the gate's weight, here 2:
    dy/dx = 1/2 · 1 + 1/2 · 3 + (3x - x) · 1/4 · 2, at x = 0 the last is 0, at x = 1 with g = sigmoid(2 - 2) it is 1."""
    gate_module = nn.Linear(1, 1, dtype=FLOAT64)
    nn.init.constant_(gate_module.weight, 2.0)
    nn.init.constant_(gate_module.bias, -2.0)
    for flow, wanted in ((RESIDUAL, 3.0), (STOP_GRADIENT, 1.5), (SHORTEST_PATH, 1.5)):
        block = ExclusiveGateBlock(linear(3.0), gate_module, activation=nn.Identity(), flow=flow)
        x = torch.ones(1, 1, dtype=FLOAT64, requires_grad=True)
        y = block(x)
        y.backward()
        assert y.item() == 2
        assert x.grad is not None
        assert x.grad.item() == wanted


def test_any_module_is_a_branch() -> None:
    """One layer, y = W x + x; a recurrent network's output would do as well."""
    block, x = ResidualBlock(nn.Linear(3, 3), activation=nn.Identity()), torch.randn(2, 3)
    assert torch.equal(block(x), x + block.branch(x))


def test_the_types_name_every_kind_and_variant() -> None:
    assert get_args(Block) == tuple(BLOCK_KINDS)
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
