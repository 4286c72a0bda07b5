"""Every network, kind of block and variant: one suite for what flow means in all of them."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import (
    ARMS,
    RESIDUAL,
    SHORTEST_PATH,
    STOP_GRADIENT,
    Flow,
    cifar_resnet,
    imagenet_resnet,
    inception_resnet,
    residual_blocks,
    residual_mlp,
    set_flows,
    vit,
)
from models.variants import BLOCK_KINDS, VARIANTS
from probes import find_junctions, gate, path_gradients, record
from tests.support.networks import images, relative_error


def cifar(block: str, variant: str, projection: str) -> Callable[..., nn.Module]:
    options: Any = {"block": block, "variant": variant, "projection": projection}
    return partial(cifar_resnet, 2 + 3 * BLOCK_KINDS[block].layers, width=4, gate_bias=-1.0, **options)


def transformer(*, flow: Flow | list[Flow] = RESIDUAL, **options: Any) -> nn.Module:
    model = vit(2, image_size=8, patch=4, width=8, heads=2, **options)
    set_flows(model, flow)
    return model


NETWORKS: dict[str, Callable[..., nn.Module]] = {
    **{f"{block}, {variant}": cifar(block, variant, "B") for block in BLOCK_KINDS for variant in VARIANTS},
    "imagenet 18": partial(imagenet_resnet, 18, num_classes=10),
    "inception": partial(inception_resnet, 32, width=4),
    "inception, scaled": partial(inception_resnet, 32, width=4, scaling=0.2),
    "mlp": partial(residual_mlp, 6, in_features=192, width=8),
    "vit": transformer,
    "vit, post-normalisation": partial(transformer, normalisation="post", pooling="mean"),
    "vit, near-identity": partial(transformer, first_weights="near-identity"),
}
PROJECTIONS = {
    f"{block}, {variant}, {projection}": cifar(block, variant, projection)
    for block in BLOCK_KINDS
    for variant in VARIANTS
    for projection in "AC"
}
every_network = pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)


def network(make: Callable[..., nn.Module], flow: Flow = RESIDUAL) -> nn.Module:
    """A network that has left its first weights, among which some kinds have zeros that would hide much."""
    torch.manual_seed(0)
    model = make(flow=flow).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def step(model: nn.Module, x: Tensor, **gates: Any) -> tuple[Tensor, list[Tensor]]:
    torch.manual_seed(1)  # dropout, stochastic depth
    with gate(model, **gates):
        output = model(x)
        F.cross_entropy(output, torch.arange(len(x))).backward()
    return output.detach(), [p.grad for p in model.parameters() if p.grad is not None]


@every_network
def test_arms_start_alike_and_no_parameter_goes_without_a_gradient(make: Callable[..., nn.Module]) -> None:
    x, outputs, weights = images(), {}, network(make).state_dict()
    for arm, flow in ARMS.items():
        model = network(make, flow)
        assert all(torch.equal(weights[key], value) for key, value in model.state_dict().items())
        outputs[arm], gradients = step(model, x)
        assert len(gradients) == len(list(model.parameters()))
        names = {module: name for name, module in model.named_modules()}
        assert [found.name for found in find_junctions(model, x)] == [names[block] for block in residual_blocks(model)]
    assert torch.equal(outputs["residual"], outputs["stop-gradient"])
    assert torch.equal(outputs["residual"], outputs["shortest-path"])
    assert torch.equal(outputs["plain"], outputs["gradient-only"])
    assert not torch.equal(outputs["residual"], outputs["plain"])


@pytest.mark.parametrize("make", (NETWORKS | PROJECTIONS).values(), ids=NETWORKS | PROJECTIONS)
def test_an_arm_is_the_gated_network_to_the_last_bit(make: Callable[..., nn.Module]) -> None:
    """A gate's own gradient counts as the shortcut's, in the block as in `gate`."""
    x = images()
    for flow, gates in ((STOP_GRADIENT, {"shortcut_gradient": 0.0}), (SHORTEST_PATH, {"branch_gradient": 0.0})):
        model = network(make, flow)
        output, wanted = step(model, x)
        gated, got = step(network(make), x, **gates)
        assert torch.equal(output, gated)
        assert len(got) == len(wanted) == len(list(model.parameters()))
        assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@every_network
def test_path_lengths_sum_to_autograd_and_their_ends_are_arms(make: Callable[..., nn.Module], training: bool) -> None:
    x, found = images(), {}
    for arm in ("residual", "stop-gradient", "shortest-path"):
        model = network(make, ARMS[arm]).train(training)
        torch.manual_seed(1)
        with record(model, keep=True) as recording:
            F.cross_entropy(model(x), torch.arange(4)).backward(retain_graph=True)
        found[arm] = path_gradients(recording), recording.gradient(recording.sites[0], "total")
    lengths, total = found["residual"]
    assert len(lengths) == len(residual_blocks(model)) + 1
    assert relative_error(lengths.sum(0), total) < 1e-12
    assert relative_error(lengths[-1], found["stop-gradient"][1]) < 1e-12
    assert relative_error(lengths[0], found["shortest-path"][1]) < 1e-12


@every_network
def test_each_block_may_have_its_own_flow(make: Callable[..., nn.Module]) -> None:
    blocks = len(residual_blocks(make()))
    flows = [Flow(shortcut_gradient=k / 8) for k in range(blocks)]
    assert [block.flow for block in residual_blocks(make(flow=flows))] == flows
    model = make(flow=STOP_GRADIENT)
    assert [block.flow for block in residual_blocks(model)] == [STOP_GRADIENT] * blocks
    set_flows(model, flows)
    assert [block.flow for block in residual_blocks(model)] == flows
    set_flows(model, SHORTEST_PATH)
    assert [block.flow for block in residual_blocks(model)] == [SHORTEST_PATH] * blocks
    for change in (partial(make, flow=flows[1:]), partial(set_flows, model, flows[1:])):
        with pytest.raises(ValueError, match=f"got {blocks - 1} flows for {blocks} blocks: give one Flow for all, or"):
            change()
    assert [block.flow for block in residual_blocks(model)] == [SHORTEST_PATH] * blocks


def test_flows_need_blocks() -> None:
    with pytest.raises(ValueError, match="Linear has no block with a flow: give a network made by `models`"):
        set_flows(nn.Linear(1, 1), RESIDUAL)
