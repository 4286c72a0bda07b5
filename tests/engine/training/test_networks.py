"""Every network that --network names: the question can be asked of it."""

import math
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from experiments.engine.running.cli import run_script
from experiments.engine.running.messages import BadInput
from experiments.engine.training.data import Data, load
from experiments.engine.training.networks import NETWORKS, make, outline
from experiments.engine.training.optimisation import parameter_groups
from experiments.engine.training.settings import NetworkSettings
from experiments.engine.training.train_run import make_network
from models import ARMS, PLAIN, FirstWeights, ViT, residual_blocks
from models.first_weights import NAMES
from models.residual_blocks import Block
from probes import find_junctions, gate
from tests.support.scripts import print_of, toy_run

DEPTHS = {"bottleneck": 11, "imagenet": 18, "inception": 20, "inception-scaled": 20, "vit": 10}
SHAPE = (1, 8, 8)
# The others are `models`' own, whose tests ask the same of them.
every_rescaled = pytest.mark.parametrize("name", ["halved-shortcut", "halved-sum", "rescaled-sum", "depth-scaled"])


def network(name: str, arm: str) -> torch.nn.Module:
    torch.manual_seed(0)
    width = 64 if name == "imagenet" else 4
    return make(name, DEPTHS.get(name, 8), flow=ARMS[arm], width=width, shape=SHAPE, num_classes=10)


@every_rescaled
def test_arms_share_weights_junctions_and_parameters_with_gradients(name: str) -> None:
    images = torch.randn(4, *SHAPE)
    weights = network(name, "residual").state_dict()
    for arm in ARMS:
        model = network(name, arm)
        assert all(torch.equal(weights[key], value) for key, value in model.state_dict().items())
        assert len(find_junctions(model, images)) == len(residual_blocks(model)) > 0
        F.cross_entropy(model(images), torch.arange(4)).backward()
        assert all(parameter.grad is not None for parameter in model.parameters())


@every_rescaled
def test_stop_gradient_is_the_gated_residual_network(name: str) -> None:
    images, gradients = torch.randn(4, *SHAPE), []
    for arm, weight in (("stop-gradient", 1.0), ("residual", 0.0)):
        model = network(name, arm)
        torch.manual_seed(1)  # dropout
        with gate(model, shortcut_gradient=weight):
            F.cross_entropy(model(images), torch.arange(4)).backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", NETWORKS)
def test_what_the_loss_does_not_depend_on_gets_no_weight_decay(name: str) -> None:
    _, fixed = parameter_groups(network(name, "plain"), 0.1)
    shortcuts = [p for block in residual_blocks(network(name, "plain")) for p in block.shortcut.parameters()]
    assert len(fixed["params"]) == len(shortcuts)  # type: ignore[arg-type]


def test_no_two_names_are_one_network() -> None:
    """Away from the first weights, where some are alike, all names give other outputs in training."""
    images, outputs = torch.randn(4, *SHAPE), {}
    for name in NETWORKS:
        model = network(name, "residual")
        for parameter in model.parameters():
            parameter.data += 0.1
        torch.manual_seed(1)  # dropout, stochastic depth
        outputs[name] = model(images)
    equal = [(one, other) for one, other in combinations(outputs, 2) if torch.equal(outputs[one], outputs[other])]
    assert equal == []


def test_an_outline_holds_no_weights() -> None:
    assert {parameter.device.type for parameter in outline("resnet", 1202, width=16).parameters()} == {"meta"}


@pytest.mark.slow
def test_an_experiment_asks_of_another_network(tmp_path: Path) -> None:
    arguments = ["--network", "mlp", "--depths", 5, "--seeds", 0, "--epochs", 1, "--width", 2, "--train-limit", 256]
    folder, _ = toy_run("stopgrad_shortcut", *arguments, cwd=tmp_path)
    gradients = pd.read_csv(folder / "gradients.csv")
    assert set(gradients["block"]) == {"blocks.0", "blocks.1", "blocks.2"}


@pytest.mark.parametrize(
    ("name", "shortcut", "branch"),
    [
        ("halved-shortcut", 1 / 2, 1),
        ("halved-sum", 1 / 2, 1 / 2),
        ("rescaled-sum", 1 / math.sqrt(2), 1 / math.sqrt(2)),
        ("depth-scaled", 1, 1 / 3),  # of 9 blocks
    ],
)
def test_rescaled_networks_on_paper(name: str, shortcut: float, branch: float) -> None:
    def blocks(arm: str) -> list[Block]:
        return residual_blocks(make(name, 20, flow=ARMS[arm], width=4, shape=SHAPE, num_classes=10).double())

    block, x = blocks("residual")[1].eval(), torch.rand(2, 4, 6, 6).double()  # not negative: ReLU leaves it as it is
    wanted = (shortcut * x + branch * block.branch(x)).clamp(min=0)
    torch.testing.assert_close(block(x), wanted, rtol=1e-14, atol=1e-14)
    for arm, flow in ARMS.items():
        got = blocks(arm)[8].flow
        assert (got.shortcut, got.shortcut_gradient) == pytest.approx(
            (shortcut * flow.shortcut, shortcut * flow.shortcut_gradient)
        )
        assert (got.branch, got.branch_gradient) == pytest.approx((branch * flow.branch, branch * flow.branch_gradient))


@pytest.mark.parametrize(
    ("height", "across", "patch"), [(8, 8, 2), (28, 28, 4), (32, 32, 4), (64, 64, 8), (6, 12, 2), (36, 24, 4)]
)
def test_a_vision_transformer_s_patches_are_the_smallest_that_are_at_most_64(
    height: int, across: int, patch: int
) -> None:
    model = make("vit", 6, flow=PLAIN, width=2, shape=(3, height, across), num_classes=10)
    assert isinstance(model, ViT)
    assert model.patches.kernel_size == (patch, patch)
    assert [block.flow for block in residual_blocks(model)] == [PLAIN, PLAIN]
    assert model(torch.randn(2, 3, height, across)).shape == (2, 10)


def test_a_vision_transformer_refuses_what_it_cannot_be() -> None:
    options: dict[str, Any] = {"flow": PLAIN, "width": 2, "num_classes": 10}
    with pytest.raises(ValueError, match="no square patches tile 17 x 32 pixels in at most 64: give --image-size"):
        make("vit", 6, shape=(3, 17, 32), **options)
    with pytest.raises(ValueError, match=r"depth 20 is not 4n \+ 2, as transformer blocks need: .* 18 and 22"):
        make("vit", 20, shape=SHAPE, **options)


# First weights

OWN_WEIGHTS = {
    **{name: f"{name} blocks begin with weights of their own; leave it out" for name in ("skipinit", "fixup", "dirac")},
    **dict.fromkeys(("inception", "inception-scaled"), "towers side by side have no identity; leave them out"),
    "vit": r"a transformer begins at its own \(he\) or near-identity; leave them out",
}
TAKEN = {"vit": ("he", "near-identity")}


@pytest.mark.parametrize("choice", ["he", "near-identity", "delta-orthogonal", "looks-linear", "mirrored-he", 0.0, 0.5])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_takes_first_weights_or_refuses_them_before_it_is_made(name: str, choice: FirstWeights) -> None:
    """An outline, which has no weights, refuses what `make` does."""
    depth, width = DEPTHS.get(name, 8), 64 if name == "imagenet" else 4
    if name in OWN_WEIGHTS and choice not in TAKEN.get(name, ("he",)):
        with pytest.raises(ValueError, match=f"{choice!r}: {OWN_WEIGHTS[name]}"):
            outline(name, depth, width=width, first_weights=choice)
        with pytest.raises(ValueError, match=f"{choice!r}: {OWN_WEIGHTS[name]}"):
            make(name, depth, flow=PLAIN, width=width, shape=SHAPE, num_classes=10, first_weights=choice)
    else:
        outlined = outline(name, depth, width=width, first_weights=choice)
        torch.manual_seed(0)
        made = make(name, depth, flow=PLAIN, width=width, shape=SHAPE, num_classes=10, first_weights=choice)
        assert len(list(outlined.parameters())) == len(list(made.parameters()))
        he = network(name, "plain")
        same = all(torch.equal(p, q) for p, q in zip(he.parameters(), made.parameters(), strict=True))
        assert same == (choice == "he")


def settings_of(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> NetworkSettings:
    """The settings that a script's flags become."""
    found: list[NetworkSettings] = []
    monkeypatch.setattr("experiments.stopgrad_shortcut.main", found.append)
    monkeypatch.setattr(sys, "argv", ["stopgrad_shortcut", *arguments])
    run_script("experiments.stopgrad_shortcut")
    return found[0]


@pytest.mark.parametrize(
    ("given", "value"),
    [(None, "he"), *((name, name) for name in NAMES), ("0", 0.0), ("0.25", 0.25), ("1", 1.0)],
)
def test_first_weights_are_a_flag(monkeypatch: pytest.MonkeyPatch, given: str | None, value: FirstWeights) -> None:
    """It reaches the recipe, and so the run's name, and the network that is made."""
    settings = settings_of(monkeypatch, *(() if given is None else ("--first-weights", given)), "--width", "2")
    settings.check()
    settings.check_depths("--depths", 8)
    dataset = load(Data())
    (run,) = settings.runs("toy", dataset, arms=("plain",), depths=(8,), seeds=(0,))
    (usual,) = NetworkSettings(width=2).runs("toy", dataset, arms=("plain",), depths=(8,), seeds=(0,))
    assert run.recipe.first_weights == value
    assert type(run.recipe.first_weights) is type(value)
    assert (run.name == usual.name) == (value == "he")
    he, made = (make_network(of, dataset).state_dict() for of in (usual, run))
    assert all(torch.equal(he[key], made[key]) for key in he) == (value in ("he", 1))


@pytest.mark.parametrize("given", ["orthogonal", "1.5", "-0.1", "nan", "true"])
def test_other_first_weights_are_one_line(given: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    shown = print_of("stopgrad_shortcut", [f"--first-weights={given}", "--out", str(tmp_path)], capsys, status=2)
    assert len(shown.splitlines()) == 1
    assert shown.startswith(
        f"error: --first-weights: first_weights is {given if given[-1] in '15n' else repr(given)}: "
    )
    assert "give he, near-identity, delta-orthogonal, looks-linear, mirrored-he, or a number t from 0 to 1" in shown
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", OWN_WEIGHTS)
def test_first_weights_that_a_network_cannot_have_are_refused_with_its_depths(name: str) -> None:
    settings = NetworkSettings(network=name, width=4, first_weights=0.5)
    settings.check()
    with pytest.raises(BadInput, match=f"--depths {DEPTHS.get(name, 8)}: first.weights 0.5: {OWN_WEIGHTS[name]}"):
        settings.check_depths("--depths", DEPTHS.get(name, 8))
