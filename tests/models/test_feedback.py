"""Permuted shortcuts: values, names and gradients stay until they are switched on; what they then pass on, on paper.
Random feedback is tested with the controls."""

import copy
from collections.abc import Callable
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import (
    GRADIENT_ONLY,
    PLAIN,
    RESIDUAL,
    Flow,
    ResidualBlock,
    cifar_resnet,
    imagenet_resnet,
    permuted_shortcuts,
    residual_blocks,
)
from models.feedback import cyclic_permutation
from models.variants import BlockName
from probes import find_junctions
from tests.support.networks import FLOAT64, images, relative_error

IMAGES, LABELS = images(), torch.arange(4)


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(block: BlockName = "basic", *, flow: Flow = GRADIENT_ONLY, projection: str = "A") -> nn.Module:
    """With weights that no kind begins with: some begin at zeros, where no gradient arrives."""
    torch.manual_seed(0)
    model = cifar_resnet(11 if block == "bottleneck" else 8, block=block, flow=flow, width=4, projection=projection)  # type: ignore[arg-type]
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model.double()


def gradients(model: nn.Module, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(model.parameters()), retain_graph=True))


def equal(given: list[Tensor], wanted: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(given, wanted, strict=True))


@pytest.mark.parametrize(("flow", "weight"), [(GRADIENT_ONLY, 1), (RESIDUAL, 1), (Flow(shortcut=0.5), 0.5), (PLAIN, 0)])
def test_on_paper(flow: Flow, weight: float) -> None:
    """y = a x + 0 x with gradients 1, 2, 3 of its channels: those of x are weight times 1, 2, 3, and then permuted."""
    branch = nn.Conv2d(3, 3, 1, bias=False).double()
    nn.init.zeros_(branch.weight)
    block = ResidualBlock(branch, activation=nn.Identity(), flow=flow)
    switch = permuted_shortcuts(block, draws())
    permutation = cyclic_permutation(3, draws())
    x = torch.ones(1, 3, 1, 1, dtype=FLOAT64, requires_grad=True)
    y, given = block(x), torch.tensor([1.0, 2, 3], dtype=FLOAT64).view(1, 3, 1, 1)
    for switch.active in (False, True, False):
        (got,) = torch.autograd.grad(y, x, given, retain_graph=True)
        wanted = given[:, permutation] if switch.active else given
        assert torch.equal(got, weight * wanted)


@pytest.mark.parametrize("flow", [GRADIENT_ONLY, RESIDUAL], ids=["gradient-only", "residual"])
@pytest.mark.parametrize("block", get_args(BlockName))
def test_all_is_as_it_was_until_it_is_switched_on(block: BlockName, flow: Flow) -> None:
    model, twin = network(block, flow=flow), network(block, flow=flow)
    switch = permuted_shortcuts(model, draws())
    assert not switch.active
    assert list(model.state_dict()) == list(twin.state_dict())
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in twin.named_parameters()]
    outputs = model(IMAGES)
    assert torch.equal(outputs, twin(IMAGES))
    loss, wanted = F.cross_entropy(outputs, LABELS), gradients(twin, F.cross_entropy(twin(IMAGES), LABELS))
    assert equal(gradients(model, loss), wanted)
    switch.active = True
    permuted = gradients(model, loss)
    assert relative_error(permuted[0], wanted[0]) > 0.1
    assert equal(permuted[-2:], wanted[-2:])  # the classifier
    switch.active = False
    assert equal(gradients(model, loss), wanted)


@pytest.mark.parametrize("projection", ["A", "B", "C"])
def test_the_shortcut_s_part_keeps_its_norm_and_projections_their_gradients(projection: str) -> None:
    """Into x by the shortcut alone: the same numbers in other channels, so the same norm to the rounding of its sum."""
    model = network(flow=Flow(branch_gradient=0.0), projection=projection)
    switch, seeded = permuted_shortcuts(model, draws()), draws()
    x = torch.randn(2, 4, 8, 8, dtype=FLOAT64)
    for block in residual_blocks(model):
        permutation = cyclic_permutation(x.shape[1], seeded)
        x = x.detach().requires_grad_()
        y = block(x)
        given, found = torch.randn_like(y), []
        for switch.active in (False, True):
            found.append(torch.autograd.grad(y, [x, *block.parameters()], given, retain_graph=True))
        assert torch.equal(found[1][0], found[0][0][:, permutation])
        assert not torch.equal(found[1][0], found[0][0])
        assert relative_error(found[1][0].norm(), found[0][0].norm()) < 1e-12
        assert equal(list(found[1][1:]), list(found[0][1:]))
        x = y


def test_where_the_shortcut_has_no_value_it_adds_none_even_to_infinity() -> None:
    block = ResidualBlock(nn.Conv2d(2, 2, 1), flow=GRADIENT_ONLY)
    permuted_shortcuts(block, draws())
    block.branch = nn.Flatten(0, 0)
    infinite = torch.full((1, 2, 3, 3), float("inf"))
    assert torch.equal(block(infinite), infinite)


def test_junctions_are_found_as_they_were() -> None:
    wanted = find_junctions(network(projection="B"), IMAGES)
    model = network(projection="B")
    permuted_shortcuts(model, draws())
    assert find_junctions(model, IMAGES) == wanted
    assert [junction.shortcut for junction in wanted] == ["identity", "projection", "projection"]


def test_a_copy_has_a_switch_of_its_own() -> None:
    model = network()
    switch = permuted_shortcuts(model, draws())
    twin = copy.deepcopy(model)
    switch.active = True
    wanted, got = (gradients(net, F.cross_entropy(net(IMAGES), LABELS)) for net in (network(), twin))
    assert equal(got, wanted)


@pytest.mark.parametrize("size", [1, 2, 3, 16])
def test_permutations_have_no_fixed_points(size: int) -> None:
    state = torch.get_rng_state()
    seen = {tuple(cyclic_permutation(size, draws(seed)).tolist()) for seed in range(50)}
    assert all(sorted(permutation) == list(range(size)) for permutation in seen)
    assert size == 1 or not any(index == to for permutation in seen for index, to in enumerate(permutation))
    assert len(seen) == {1: 1, 2: 1, 3: 2, 16: 50}[size]  # of (n - 1)! cycles
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Linear(2, 2), "got 0 among the 0 blocks of Linear"),
        (lambda: imagenet_resnet(18), "got 3 among the 8 blocks of ResNet"),
    ],
)
def test_a_network_whose_shortcuts_cannot_be_permuted_is_refused(make: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        permuted_shortcuts(make(), draws())
