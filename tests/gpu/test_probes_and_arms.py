"""On a GPU: the probes measure what they measure on a CPU, arms keep their semantics, and no step waits.

What a test does stands in a function of the device, so that it can be run on a CPU by hand.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from torch import Tensor, nn

from experiments.engine.training.compute import Computing
from experiments.engine.training.data import Batches, Data, Dataset, load
from experiments.engine.training.image_files import ImageFiles, read_ahead
from experiments.engine.training.loop import train
from experiments.engine.training.optimisation import Training
from models import ARMS, CifarResNet, Flow, ResidualBlock, cifar_resnet
from models.branches import basic_branch
from probes import find_junctions, gate, gradient_norms, path_contributions, record, residual_magnitudes

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.filterwarnings("default"),  # what a GPU's libraries warn of is theirs
]
CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
ALL = Computing(autocast=True, channels_last=True)
ONE_STEP = Training(epochs=1, batch_size=300)


@pytest.fixture(autouse=True)
def same_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal inputs give equal sums."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)


def network(flow: Flow = ARMS["residual"], depth: int = 20) -> CifarResNet:
    torch.manual_seed(0)
    return cifar_resnet(depth, flow=flow, width=4, in_channels=1)


def some_batches(device: torch.device, augment: str = "auto") -> Batches:
    return Batches(load(Data(train_limit=300, augment=augment)), device)


def probed(device: torch.device, *, cut: float) -> dict[str, pd.DataFrame]:
    """What the probes tell of a network in float64, whose shortcuts are gated."""
    model = network().double().to(device)
    images, labels = (x.to(device) for x in (torch.randn(16, 1, 16, 16).double(), torch.arange(16) % 10))
    with gate(model, shortcut_gradient=cut), record(model) as recording:
        F.cross_entropy(model(images), labels).backward(retain_graph=True)
    of_weights = ((name, p.grad.norm().item()) for name, p in model.named_parameters() if p.grad is not None)
    return {
        "norms": gradient_norms(recording),
        "sizes": residual_magnitudes(recording),
        "paths": path_contributions(recording),
        "weights": pd.DataFrame(of_weights, columns=["block", "value"]),
    }


@pytest.mark.parametrize("cut", [1.0, 0.3, 0.0])
def test_probes_measure_what_they_measure_on_a_cpu(cut: float) -> None:
    """Float64 sums in other orders: 2^-53 each, made larger by 20 layers there and back; 1e-9 leaves six digits for
    that. Shares of lengths that all but cancel are sums of the same size as the largest: hence the absolute 1e-9."""
    there, here = probed(GPU, cut=cut), probed(CPU, cut=cut)
    for name, wanted in here.items():
        pd.testing.assert_frame_equal(there[name], wanted, rtol=1e-9, atol=1e-9, check_exact=False)
    assert (here["paths"].query("quantity == 'norm'")["value"] > 0).sum() == (10 if cut else 1)


class NormFirst(nn.Sequential):
    """Begins with a normalisation of its input."""

    def __init__(self) -> None:
        blocks = [ResidualBlock(basic_branch(3, 3, 1)) for _ in range(2)]
        super().__init__(nn.BatchNorm2d(3), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def attention() -> nn.Module:
    """A small vision transformer, whose attention is one operation of torch's."""
    return torchvision.models.VisionTransformer(64, 16, num_layers=3, num_heads=4, hidden_dim=32, mlp_dim=64)


OTHERS = [getattr(torchvision.models, name) for name in ("resnet18", "convnext_tiny", "swin_t")]


@pytest.mark.parametrize("make", [NormFirst, attention, *OTHERS])
def test_junctions_are_those_found_on_a_cpu(make: Callable[[], nn.Module]) -> None:
    """A GPU's operations have other names in autograd's graph. Twice, since a second forward leaves its input out."""
    model, images = make(), torch.randn(2, 3, 64, 64)
    wanted = find_junctions(model, images)
    assert wanted
    model, images = model.to(GPU), images.to(GPU)
    for _ in range(2):
        with record(model) as recording:
            model(images).square().mean().backward()
        found = [(site.name, site.match.kind) for site in recording.junctions]
        assert found == [(junction.name, junction.shortcut) for junction in wanted]


def recorded(device: torch.device, how: Computing) -> pd.Series:
    """Gradient norms that are recorded in a step of training."""
    with record(model := network().to(device)) as recording:
        list(train(model, some_batches(device), ONE_STEP, seed=0, computing=how))
    return gradient_norms(recording).set_index(["block", "depth", "quantity"])["value"]


def test_norms_under_autocast_are_those_of_float32_as_far_as_bfloat16_tells() -> None:
    """As on a CPU: 5 % is 26 roundings of bfloat16; those that a GPU takes in TF32 are an eighth of them."""
    wanted = recorded(CPU, Computing())
    for how in (Computing(), Computing(channels_last=True), Computing(autocast=True), ALL):
        pd.testing.assert_series_equal(recorded(GPU, how), wanted, rtol=0.05, atol=0, check_exact=False)


def update(device: torch.device, arm: str, **gated: Any) -> tuple[Tensor, Tensor]:
    """Outputs and all gradients of an arm in bfloat16, channels last."""
    model, batches = network(ARMS[arm]).to(device), some_batches(device)
    ALL.lay_out(model)
    images, labels = batches.get("train", slice(0, 128))
    with gate(model, **gated) if gated else nullcontext(), ALL.forward(device):
        outputs = model(ALL.laid_out(images))
        loss = F.cross_entropy(outputs, labels)
    loss.backward()
    return outputs, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def check_arms(device: torch.device) -> None:
    found = {arm: update(device, arm) for arm in ARMS}
    for arm, of, cut in (
        ("stop-gradient", "residual", "shortcut_gradient"),
        ("shortest-path", "residual", "branch_gradient"),
        ("plain", "gradient-only", "shortcut_gradient"),
    ):
        (outputs, own), (gated_outputs, gated) = found[arm], update(device, of, **{cut: 0.0})
        assert torch.equal(outputs, found[of][0]), "the same function"
        assert torch.equal(outputs, gated_outputs)
        assert (own - gated).norm() <= 1e-3 * own.norm()  # as a rule 0: the same kernels on the same numbers
        assert (own - found[of][1]).norm() > 0.1 * own.norm(), "another gradient"


def test_arms_keep_their_semantics_under_autocast_in_channels_last() -> None:
    check_arms(GPU)


class Strict(nullcontext[None]):
    """Fails where torch waits for the GPU; copies that wait count, too."""

    def __enter__(self) -> None:
        torch.cuda.set_sync_debug_mode("error")

    def __exit__(self, *_: object) -> None:
        torch.cuda.set_sync_debug_mode("default")


def check_no_waiting(
    batches: Batches, how: Computing, network: nn.Module, around: Callable[[nn.Module], AbstractContextManager[object]]
) -> None:
    training = Training(epochs=1, batch_size=16)
    list(train(network, batches, training, seed=0, computing=how))  # warms up what torch sets up once
    list(train(network, batches, training, seed=0, computing=how, gradient_context=around))


@pytest.mark.parametrize("how", [Computing(), Computing(autocast=True), ALL])
@pytest.mark.parametrize("variant", ["identity", "dropout", "stochastic-depth"])
@pytest.mark.parametrize("arm", ["stop-gradient", "plain"])
def test_no_step_waits_for_a_gpu(how: Computing, variant: str, arm: str) -> None:
    model = cifar_resnet(8, flow=ARMS[arm], width=4, in_channels=1, variant=variant)  # pyright: ignore[reportArgumentType]
    check_no_waiting(some_batches(GPU, augment="crop-flip"), how, model.to(GPU), lambda model: Strict())


def test_waiting_would_be_noticed() -> None:
    value = torch.ones((), device=GPU)
    with pytest.raises(RuntimeError, match="synchronizing"), Strict():
        value.item()


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, Dataset]:
    """48 photographs of noise, from memory and from files by two worker distributed."""
    folder, draws = tmp_path_factory.mktemp("noise"), np.random.default_rng(0)
    for part, count in (("train", 18), ("test", 6)):
        for name in ("a", "b"):
            (folder / part / name).mkdir(parents=True)
            for index in range(count):
                pixels = draws.integers(0, 256, (20, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / part / name / f"{index}.png")
    data = Data("folder", Path(folder), image_size=16, augment="crop-flip", normalise="imagenet")
    return load(data), load(replace(data, data_loader_workers=2))


def an_epoch(dataset: Dataset, device: torch.device) -> list[tuple[Tensor, Tensor]]:
    batches, generator = Batches(dataset, device), torch.Generator().manual_seed(3)
    order = torch.randperm(batches.size("train"), generator=generator).split(8)[:4]
    return list(batches.epoch(order, generator))


def check_files(both: tuple[Dataset, Dataset], device: torch.device) -> None:
    epochs = [an_epoch(dataset, device) for dataset in both]
    assert len(epochs[0]) == len(epochs[1]) == 4
    for wanted, got in zip(*epochs, strict=True):
        assert all(x.device == device for x in (*wanted, *got))
        assert all(map(torch.equal, wanted, got))
    for (images, labels), (same, as_well) in zip(epochs[0], an_epoch(both[0], CPU), strict=True):
        torch.testing.assert_close(images.cpu(), same, rtol=1e-6, atol=1e-6)  # a division, in float32
        assert torch.equal(labels.cpu(), as_well)


def test_images_in_files_come_pinned_and_give_the_batches_of_memory(both: tuple[Dataset, Dataset]) -> None:
    images = both[1].splits["train"][0]
    assert isinstance(images, ImageFiles)
    assert all(part.is_pinned() for part in read_ahead(images, [torch.arange(8)] * 3, pinned=True))
    check_files(both, GPU)
    check_no_waiting(Batches(both[1], GPU), ALL, cifar_resnet(8, width=4).to(GPU), lambda model: Strict())
