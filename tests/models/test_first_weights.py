"""First weights of branches: a residual network is a plain one that begins at the identity, and what each choice is."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import PLAIN, RESIDUAL, ResidualMLP, cifar_resnet, imagenet_resnet, residual_blocks, residual_mlp
from models.first_weights import (
    NAMES,
    NOISE,
    FirstWeights,
    central_tap,
    check_first_weights,
    delta,
    mirrored,
    orthogonal,
    set_first_weights,
)
from models.projections import ZeroPad
from tests.support.networks import FLOAT64, images

CHOICES: tuple[FirstWeights, ...] = (*NAMES, 0.0, 0.3, 1.0)
SHAPES = [(6, 6, 3, 3), (8, 4, 3, 3), (4, 8, 1, 1), (6, 6)]
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=FLOAT64)


def layer(shape: Sequence[int]) -> nn.Conv2d | nn.Linear:
    """A convolution or a linear layer whose weight has normal numbers."""
    outputs, inputs, *kernel = shape
    if not kernel:
        made: nn.Conv2d | nn.Linear = nn.Linear(inputs, outputs, bias=False, dtype=FLOAT64)
    else:
        made = nn.Conv2d(inputs, outputs, kernel[0], padding=kernel[0] // 2, bias=False, dtype=FLOAT64)
    nn.init.normal_(made.weight)
    return made


def begun(shape: Sequence[int], first_weights: FirstWeights) -> tuple[Tensor, Tensor]:
    """The weight of a layer as it was (He), and as it begins."""
    made = layer(shape)
    he = made.weight.detach().clone()
    set_first_weights([made], first_weights)
    return he, made.weight.detach()


def largest(difference: Tensor) -> float:
    return difference.abs().max().item()


# A residual network of one-layer branches is the plain network whose weights begin at the identity


def twins(noise: FirstWeights) -> tuple[ResidualMLP, ResidualMLP]:
    """A residual network and a plain one of the weights I + W, all else alike."""
    make = partial(residual_mlp, 6, in_features=12, width=8, num_classes=4)
    torch.manual_seed(0)
    plain = make(flow=PLAIN, first_weights=noise).double()
    torch.manual_seed(0)
    residual = make(flow=RESIDUAL, first_weights=noise).double()
    changed = plain if noise == "he" else residual
    with torch.no_grad():
        for block in changed.blocks:
            weight = block.get_submodule("branch").weight
            weight.add_(torch.eye(8, dtype=FLOAT64), alpha=1 if noise == "he" else -1)  # type: ignore[operator, union-attr]
    return residual, plain


def steps_of(
    model: ResidualMLP, batches: Tensor, labels: Tensor, *, weight_decay: float = 0.0
) -> tuple[list[float], list[Tensor]]:
    """Each step's loss, and all parameters after it as one vector."""
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=weight_decay)
    losses, weights = [], []
    for batch in batches:
        optimiser.zero_grad()
        loss = F.cross_entropy(model(batch), labels)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    return losses, weights


def identities(model: ResidualMLP) -> Tensor:
    """The identity in the place of each block's matrix, and zeros elsewhere, as one vector."""
    parts = [
        torch.eye(8) if name.startswith("blocks.") and name.endswith("weight") else torch.zeros_like(p)
        for name, p in model.named_parameters()
    ]
    return torch.cat([part.double().flatten() for part in parts])


@pytest.mark.parametrize("noise", ["he", "near-identity"])
def test_a_residual_network_trains_as_the_plain_one_that_begins_at_the_identity(noise: FirstWeights) -> None:
    """relu(x + W x + b) = relu((I + W) x + b), and W has the gradient of I + W: without weight decay the shortcut of a
    branch of one layer is a choice of first weights, and nothing else."""
    batches, labels = normal(20, 16, 12), torch.arange(16) % 4
    (residual, plain) = twins(noise)
    shift = identities(plain)
    (losses, weights), (wanted, others) = (steps_of(model, batches, labels) for model in (residual, plain))
    assert losses == pytest.approx(wanted, rel=0, abs=1e-12)
    assert losses[-1] < losses[0] - 0.05
    assert max(largest(a + shift - b) for a, b in zip(weights, others, strict=True)) < 1e-12
    assert largest(weights[-1] - weights[0]) > 0.01


def test_with_weight_decay_they_part() -> None:
    """One is drawn to the identity, the other to 0."""
    batches, labels = normal(20, 16, 12), torch.arange(16) % 4
    losses, wanted = (steps_of(model, batches, labels, weight_decay=0.1)[0] for model in twins("he"))
    assert losses[0] == pytest.approx(wanted[0], abs=1e-12)
    assert abs(losses[-1] - wanted[-1]) > 1e-4


# What each choice is


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("inputs", "outputs", "size"), [(4, 4, 3), (4, 8, 3), (6, 12, 3), (4, 10, 1)])
def test_delta_passes_its_input_on_as_option_a(inputs: int, outputs: int, size: int, stride: int) -> None:
    x = normal(2, inputs, 7, 6)
    passed = F.conv2d(x, delta(normal(outputs, inputs, size, size)), stride=stride, padding=size // 2)
    assert torch.equal(passed, ZeroPad(inputs, outputs, stride)(x))
    if (inputs, stride) == (outputs, 1):
        assert torch.equal(passed, x)


def test_delta_passes_the_middle_channels_where_there_are_fewer() -> None:
    x = normal(2, 8, 5, 5)
    assert torch.equal(F.conv2d(x, delta(normal(4, 8, 1, 1))), x[:, 2:6])
    assert torch.equal(delta(normal(5, 5)), torch.eye(5, dtype=FLOAT64))


@every_shape
def test_near_identity_is_delta_and_a_tenth_of_he_s_direction(shape: tuple[int, ...]) -> None:
    he, weight = begun(shape, "near-identity")
    noise = (weight - delta(he)).flatten(1)
    assert noise.norm(dim=1).tolist() == pytest.approx([0.1] * shape[0], abs=1e-12)
    assert F.cosine_similarity(noise, he.flatten(1)).tolist() == pytest.approx([1] * shape[0], abs=1e-12)


@every_shape
def test_delta_orthogonal_is_an_isometry_in_its_central_tap(shape: tuple[int, ...]) -> None:
    he, weight = begun(shape, "delta-orthogonal")
    singular = torch.linalg.svdvals(central_tap(weight))
    assert singular.tolist() == pytest.approx([1] * min(shape[:2]), abs=1e-12)
    rest = weight.clone()
    central_tap(rest).zero_()
    assert not rest.any()
    assert torch.equal(central_tap(weight), orthogonal(central_tap(he)))


def test_a_delta_orthogonal_convolution_keeps_norms() -> None:
    _, weight = begun((6, 6, 3, 3), "delta-orthogonal")
    x = normal(2, 6, 7, 7)
    assert F.conv2d(x, weight, padding=1).norm().item() == pytest.approx(x.norm().item(), rel=1e-12)


@pytest.mark.parametrize("shape", [(3, 3), (5, 3), (3, 5)], ids=str)
def test_orthogonal_matrices_are_uniform_and_so_have_no_sign_in_the_mean(shape: tuple[int, int]) -> None:
    """LAPACK's QR alone has negative diagonals; under Haar's measure each entry has mean 0 and mean square 1 / n, n the
    longer side."""
    drawn = torch.stack([orthogonal(normal(*shape)) for _ in range(2000)])
    assert largest(drawn.mean(0)) < 5 / (2000 * max(shape)) ** 0.5  # five standard errors
    assert (drawn**2).mean(0).flatten().tolist() == pytest.approx([1 / max(shape)] * 3 * max(shape), abs=0.05)


def test_orthogonal_is_that_of_the_qr_with_a_positive_diagonal() -> None:
    """G = Q R with a positive diagonal of R is unique; a rotation of G rotates Q."""
    g, turn = normal(4, 4), orthogonal(normal(4, 4))
    r = orthogonal(g).T @ g
    assert largest(r.tril(-1)) < 1e-12
    assert (r.diagonal() > 0).all()
    assert largest(orthogonal(turn @ g) - turn @ orthogonal(g)) < 1e-12


def test_looks_linear_layers_multiply_as_their_orthogonal_matrices_do() -> None:
    """On pairs relu([z, -z]), without noise: W relu([z, -z]) = [Qz, -Qz], to which the next ReLU does the same."""
    z = normal(3, 4, 5, 5)
    pairs, wanted = torch.cat([z, -z], 1).relu(), z
    for outputs, inputs in ((4, 4), (6, 4), (6, 6)):
        q = orthogonal(normal(outputs, inputs))
        weight = mirrored(q, like=normal(2 * outputs, 2 * inputs, 3, 3))
        pairs = F.conv2d(pairs, weight, padding=1).relu()
        wanted = torch.einsum("oi,nihw->nohw", q, wanted)
    assert largest(pairs - torch.cat([wanted, -wanted], 1).relu()) < 1e-12
    assert pairs.norm().item() == pytest.approx(z.norm().item(), rel=1e-12)


@pytest.mark.parametrize("shape", [(6, 6, 3, 3), (8, 4, 3, 3), (6, 6)], ids=str)
def test_looks_linear_is_mirrored_and_has_the_noise_of_near_identity(shape: tuple[int, ...]) -> None:
    he, weight = begun(shape, "looks-linear")
    noise = NOISE * F.normalize(he.flatten(1)).view_as(he)
    bare = weight - noise
    half_out, half_in = shape[0] // 2, shape[1] // 2
    q = orthogonal(central_tap(he)[:half_out, :half_in])
    assert largest(bare - mirrored(q, like=he)) < 1e-12
    corners = [central_tap(bare)[i::half_out][:1, j : j + half_in] for i in (0, half_out) for j in (0, half_in)]
    assert all(largest(corner - sign * q[:1]) < 1e-12 for corner, sign in zip(corners, (1, -1, -1, 1), strict=True))


def test_mirrored_he_layers_are_linear_on_pairs_at_every_tap() -> None:
    """relu([z, -z]) through three layers is relu([z', -z']), z' the convolutions of z with the quarters of He's."""
    z = normal(3, 4, 5, 5)
    pairs, wanted = torch.cat([z, -z], 1).relu(), z
    for outputs, inputs in ((8, 8), (12, 8), (12, 12)):
        he, weight = begun((outputs, inputs, 3, 3), "mirrored-he")
        pairs = F.conv2d(pairs, weight, padding=1).relu()
        wanted = F.conv2d(wanted, he[: outputs // 2, : inputs // 2], padding=1)
    assert largest(pairs - torch.cat([wanted, -wanted], 1).relu()) < 1e-12
    assert wanted.norm() > 0


@pytest.mark.parametrize("shape", [(5, 4), (4, 5), (3, 3, 3, 3)], ids=str)
def test_looks_linear_refuses_odd_channels(shape: tuple[int, ...]) -> None:
    for choice in ("looks-linear", "mirrored-he"):
        with pytest.raises(ValueError, match=rf"'{choice}' pairs channels: \(\d, \d\) are odd, give even numbers"):
            set_first_weights([layer(shape)], choice)  # type: ignore[arg-type]


@every_shape
def test_a_number_lies_between_delta_and_he(shape: tuple[int, ...]) -> None:
    he, weight = begun(shape, 0)
    assert torch.equal(weight, delta(he))
    for one in (1, 1.0, "he"):
        he, weight = begun(shape, one)  # type: ignore[arg-type]
        assert torch.equal(weight, he)
    he, weight = begun(shape, 0.25)
    assert largest(weight - (0.75 * delta(he) + 0.25 * he)) < 1e-12


@pytest.mark.parametrize("given", ["orthogonal", "", "0.5", -0.1, 1.001, float("nan"), True, False, None])
def test_other_first_weights_are_refused(given: Any) -> None:
    message = (
        rf"first_weights is {given!r}: give he, near-identity, delta-orthogonal, looks-linear, mirrored-he, or a "
        r"number t from 0 to 1 for \(1 - t\) delta \+ t He"
    )
    module = layer((4, 4))
    before = module.weight.detach().clone()
    for refuse in (check_first_weights, partial(set_first_weights, [module]), partial(made_mlp, 0)):
        with pytest.raises(ValueError, match=message):
            refuse(given)
    assert torch.equal(module.weight, before)


# Networks


def made_cifar(seed: int, first_weights: FirstWeights, **options: Any) -> nn.Module:
    torch.manual_seed(seed)
    return cifar_resnet(**{"depth": 8, "width": 4, **options}, first_weights=first_weights)


def made_mlp(seed: int, first_weights: FirstWeights) -> nn.Module:
    torch.manual_seed(seed)
    return residual_mlp(5, in_features=192, width=8, first_weights=first_weights)


def made_imagenet(seed: int, first_weights: FirstWeights, *, depth: int) -> nn.Module:
    torch.manual_seed(seed)
    return imagenet_resnet(depth, num_classes=10, first_weights=first_weights)


MAKERS = {
    "basic": made_cifar,
    "bottleneck": partial(made_cifar, depth=11, block="bottleneck"),
    "preactivation": partial(made_cifar, block="preactivation", projection="B"),
    "norm-after-sum": partial(made_cifar, block="norm-after-sum", variant="exclusive-gate"),
    "mlp": made_mlp,
    "imagenet": partial(made_imagenet, depth=18),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_networks_of_one_seed_differ_in_the_weights_of_branches_alone(make: Any) -> None:
    """No random number is drawn for another choice, and a default is He's."""
    he, state = make(0, "he"), torch.get_rng_state()
    assert all(torch.equal(a, b) for a, b in zip(he.parameters(), make(0, 1.0).parameters(), strict=True))
    branches = {
        module.weight
        for block in residual_blocks(he)
        for module in block.branch.modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    }
    assert branches
    for choice in CHOICES[1:-1]:
        other = make(0, choice)
        assert torch.equal(torch.get_rng_state(), state)
        for p, q in zip(he.parameters(), other.parameters(), strict=True):
            assert torch.equal(p, q) == (p not in branches)
        assert torch.isfinite(other(images().float())).all()


def test_he_is_the_default() -> None:
    he: dict[str, Any] = {"first_weights": "he"}
    for make in (
        partial(residual_mlp, 5, in_features=3),
        partial(cifar_resnet, 8, width=4),
        partial(imagenet_resnet, 18),
    ):
        states = []
        for options in ({}, he):
            torch.manual_seed(0)
            states.append(make(**options).state_dict())
        assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


def test_a_deep_imagenet_network_s_bottlenecks_pass_the_middle_quarter() -> None:
    model = made_imagenet(0, 0.0, depth=50)
    block = residual_blocks(model)[1]
    x = torch.rand(2, 256, 4, 4)
    for name, wanted in (("conv1", x[:, 96:160]), ("conv3", F.pad(x[:, 96:160], (0, 0, 0, 0, 96, 96)))):
        weight = block.get_submodule(name).weight  # type: ignore[attr-defined]
        given = x if name == "conv1" else x[:, 96:160]
        assert torch.equal(F.conv2d(given, weight), wanted)  # type: ignore[arg-type]


@pytest.mark.parametrize("block", ["skipinit", "fixup", "dirac"])
def test_kinds_with_weights_of_their_own_refuse(block: str) -> None:
    made_cifar(0, "he", block=block)
    with pytest.raises(
        ValueError, match=f"'near-identity': {block} blocks begin with weights of their own; leave it out"
    ):
        made_cifar(0, "near-identity", block=block)


def test_a_plain_near_identity_block_is_near_the_identity() -> None:
    """relu(x + N x) for x that is not negative, and rows of N of norm 0.1: no value moves by more than 0.1 |x|."""
    x = torch.rand(16, 8, dtype=FLOAT64)
    for choice, near in (("near-identity", True), ("he", False), ("delta-orthogonal", False)):
        torch.manual_seed(0)
        model = residual_mlp(6, in_features=3, width=8, flow=PLAIN, first_weights=choice).double()  # type: ignore[arg-type]
        moved = [(block(x) - x).abs() / x.norm(dim=1, keepdim=True) for block in model.blocks]
        assert (largest(torch.stack(moved)) <= 0.1) == near


def test_a_plain_near_identity_network_carries_its_input_through() -> None:
    """Without a shortcut, in eval mode (BatchNorm then divides by sqrt(1 + 1e-5) and nothing else)."""
    x = torch.rand(4, 8, 6, 6, dtype=FLOAT64)
    distances = {}
    for choice in CHOICES:
        torch.manual_seed(0)
        model = cifar_resnet(20, width=8, flow=PLAIN, first_weights=choice).double().eval()
        first = model.blocks[0]
        distances[choice] = ((first(x) - x).norm() / x.norm()).item()
    assert distances[0.0] < 2e-5
    assert 0.01 < distances["near-identity"] < 0.3
    assert all(distances[choice] > 0.5 for choice in ("he", "delta-orthogonal", "looks-linear", "mirrored-he", 1.0))
