"""Path lengths at inputs and parameters sum to autograd, deep and on foreign models, and limits are sums of lengths."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
import transformers
from torch import Tensor, nn

from models import cifar_resnet
from probes import limit_paths, path_contributions, path_gradients
from tests.support.networks import FLOAT64, Residual, gradients_at, images, perceptron, recorded, relative_error, values

# Train-mode BatchNorm in float64 rounds at about 1e-15 through 54 blocks; one path more or less is off by 1e-3.
CLOSE = 1e-12


def loss(output: Any) -> Tensor:
    return (output if isinstance(output, Tensor) else output.last_hidden_state).square().mean()


def own_gradients(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """What autograd itself says, of a copy, as BatchNorm changes."""
    twin = copy.deepcopy(model)
    loss(twin(x)).backward()
    return {name: p.grad for name, p in twin.named_parameters() if p.grad is not None}


def by_length(model: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The path lengths at the first fork and at the parameters."""
    recording = recorded(model, x, loss)
    return path_gradients(recording), path_gradients(recording, of="parameters")


def resnet18() -> tuple[nn.Module, Tensor]:
    return torchvision.models.resnet18(weights=None, num_classes=10).double(), images(2, 32)


def vit() -> tuple[nn.Module, Tensor]:
    return timm.create_model("vit_small_patch16_224", img_size=32, depth=4).double(), images(2, 32)


def gpt2() -> tuple[nn.Module, Tensor]:
    config = transformers.GPT2Config(n_layer=3, n_embd=16, n_head=2, vocab_size=50, n_positions=16, use_cache=False)
    return transformers.GPT2Model(config).double().eval(), torch.randint(50, (2, 8))


FOREIGN = pytest.mark.parametrize(("make", "junctions"), [(resnet18, 8), (vit, 8), (gpt2, 6)])
Make = Callable[[], tuple[nn.Module, Tensor]]


@pytest.mark.parametrize("depth", [56, 110])
def test_lengths_of_deep_networks_sum_to_autograd(depth: int) -> None:
    x, model = images(), cifar_resnet(depth, width=4).double().train()
    (wanted,) = gradients_at(model, ["layer1.0"], x, loss)
    of_parameters = own_gradients(model, x)
    lengths, parameters = by_length(model, x)
    assert len(lengths) == len(model.blocks) + 1 == (depth - 2) // 2 + 1
    assert relative_error(lengths.sum(0), wanted) < CLOSE
    assert of_parameters.keys() - parameters.keys() == {"classifier.weight", "classifier.bias"}
    for name, of_length in parameters.items():
        assert relative_error(of_length.sum(0), of_parameters[name]) < CLOSE, name
    # Several lengths matter, so that the sums above add something up.
    assert max(g.norm() for g in lengths) < 0.9 * sum(g.norm() for g in lengths)


@pytest.mark.parametrize("depth", [56, 110])
def test_shares_of_deep_networks_sum_to_1_at_every_parameter(depth: int) -> None:
    model = cifar_resnet(depth, width=4).double().train()
    recording = recorded(model, images(), loss)
    table = path_contributions(recording, of="parameters")
    assert list(table.columns) == ["block", "path_length", "quantity", "value"]
    shares = table[table["quantity"] == "share"].groupby("block")["value"].sum()
    assert shares.to_list() == pytest.approx([1] * len(shares), abs=CLOSE)
    counts = table[table["quantity"] == "norm"].groupby("block").size()
    assert counts["stem.0.weight"] == (depth - 2) // 2 + 1
    assert counts["layer1.0.branch.conv1.weight"] == (depth - 2) // 2
    assert counts[f"layer3.{(depth - 2) // 6 - 1}.branch.conv1.weight"] == 1


@FOREIGN
def test_lengths_at_parameters_of_foreign_models_sum_to_autograd(make: Make, junctions: int) -> None:
    model, x = make()
    wanted = own_gradients(model, x)
    lengths, parameters = by_length(model, x)
    assert len(lengths) == junctions + 1
    assert max(map(len, parameters.values())) == junctions + 1
    assert wanted.keys() >= parameters.keys()
    assert len(wanted.keys() - parameters.keys()) <= 4  # a last normalisation and a classifier
    for name, of_length in parameters.items():
        # Attention's key biases have no gradient but rounding: softmax does not see them.
        scale = max(1e-6 * of_length.norm(), *(g.norm() for g in of_length), wanted[name].norm())
        assert (of_length.sum(0) - wanted[name]).norm() < CLOSE * scale + 1e-15, name


@FOREIGN
@pytest.mark.parametrize("limits", [{"at_most": 0}, {"at_most": 2}, {"at_least": 2}, {"exactly": 1}])
def test_limits_on_foreign_models_are_sums_of_exact_lengths(make: Make, junctions: int, limits: dict[str, Any]) -> None:
    model, x = make()
    _, parameters = by_length(copy.deepcopy(model), x)
    with limit_paths(model, **limits) as limit:
        loss(model(x)).backward()
    assert len(limit.junctions) == junctions
    low = limits.get("at_least", limits.get("exactly", 0))
    high = limits.get("at_most", limits.get("exactly", junctions))
    got = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    for name, of_length in parameters.items():
        wanted = of_length[low : high + 1].sum(0)
        scale = max([g.norm() for g in of_length])
        assert (got[name] - wanted).norm() <= CLOSE * scale + 1e-15, name


def test_lengths_at_the_parameters_of_one_block_on_paper() -> None:
    """A tanh block of width 1 between two maps: the gradient of each parameter, by the chain rule."""
    first, last = nn.Linear(1, 1, dtype=FLOAT64), nn.Linear(1, 1, dtype=FLOAT64)
    branch, x = perceptron(1), torch.randn(1, 1, dtype=FLOAT64)
    model = nn.Sequential(first, Residual(branch), last)
    lengths = path_gradients(recorded(model, x), of="parameters")
    hidden = torch.tanh(branch[0](first(x)))
    slope = branch.get_parameter("2.weight") * (1 - hidden**2) * branch.get_parameter("0.weight")
    wanted = torch.stack([last.weight, last.weight * slope]).flatten()
    assert torch.allclose(lengths["0.bias"].flatten(), wanted, rtol=1e-14)
    assert torch.allclose(lengths["0.weight"].flatten(), wanted * x.flatten(), rtol=1e-14)
    assert torch.allclose(lengths["1.branch.2.weight"].flatten(), (last.weight * hidden).flatten(), rtol=1e-14)
    assert set(lengths) == {name for name, _ in model.named_parameters() if not name.startswith("2.")}


def test_max_length_leaves_out_longer_paths_only() -> None:
    model, x = cifar_resnet(20, width=4).double(), images()
    recording = recorded(model, x, loss)
    whole, short = (path_gradients(recording, of="parameters", max_length=most) for most in (None, 2))
    assert whole.keys() == short.keys()
    for name, of_length in short.items():
        assert len(of_length) == min(3, len(whole[name]))
        assert torch.allclose(of_length, whole[name][:3], rtol=CLOSE, atol=1e-18), name


def test_twice_the_loss_has_twice_the_norms_and_the_same_shares() -> None:
    model, x = cifar_resnet(8, width=4).double(), images()
    tables = []
    for scale in (1, 2):
        recording = recorded(model, x, lambda y, scale=scale: scale * F.cross_entropy(y, torch.arange(4)))
        tables.append(path_contributions(recording, of="parameters"))
    one, two = tables
    assert values(two, "norm") == pytest.approx([2 * norm for norm in values(one, "norm")], rel=CLOSE)
    assert values(two, "share") == pytest.approx(values(one, "share"), abs=CLOSE)
