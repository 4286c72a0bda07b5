"""timm's Inception networks at full size, untouched, with residual connections and without."""

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from probes import Recording, find_junctions, gradient_norms, record, residual_magnitudes
from tests.support.zoo import ModuleValues

pytestmark = pytest.mark.slow
SCALES = {"repeat": 0.17, "repeat_1": 0.10, "repeat_2": 0.20, "block8": 1.0}  # of the residuals, as timm writes them
COUNTS = {"repeat": 10, "repeat_1": 20, "repeat_2": 9}  # of blocks A, B and C; a tenth C, "block8", stands alone
BLOCKS = [*(f"{stage}.{index}" for stage, count in COUNTS.items() for index in range(count)), "block8"]


def made(name: str) -> tuple[nn.Module, Tensor, Tensor]:
    """The network at random weights, two of the smallest images that it takes, and their labels."""
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=5).train(), torch.randn(2, 3, 75, 75), torch.arange(2)


def recorded(model: nn.Module, images: Tensor, labels: Tensor, **options: object) -> tuple[Recording, Tensor]:
    with record(model, **options) as recording:  # type: ignore[arg-type]
        output = model(images)
        F.cross_entropy(output, labels).backward()
    return recording, output.detach()


def test_inception_resnet_v2_has_its_forty_junctions_with_scaled_residuals() -> None:
    model, images, labels = made("inception_resnet_v2")
    junctions = find_junctions(model, images)
    assert [junction.name for junction in junctions] == BLOCKS
    assert {junction.shortcut for junction in junctions} == {"identity"}

    values = ModuleValues(model)
    recording, _ = recorded(model, images, labels, keep=True)
    for site in recording.junctions:
        (fork,), (expanded,) = values.kept[f"<{site.name}"], values.kept[f"{site.name}.conv2d>"]
        assert torch.equal(site.shortcut, fork), site.name
        assert torch.equal(site.branch, expanded * SCALES[site.name.split(".")[0]]), site.name

    norms, magnitudes = gradient_norms(recording), residual_magnitudes(recording)
    assert np.isfinite(norms["value"]).all()
    assert np.isfinite(magnitudes["value"]).all()
    wide = norms.pivot(index="depth", columns="quantity", values="value")
    assert len(wide) == 40
    assert (wide[["total", "shortcut", "branch"]] > 0).all(axis=None)
    # A branch's towers each pass a gradient to the fork: what is left is the rounding of their sum (float32's 6e-8).
    assert (wide["other"] < 1e-6 * wide["total"]).all()


def test_inception_v4_has_no_junctions_and_its_named_blocks_have_gradients() -> None:
    model, images, labels = made("inception_v4")
    assert find_junctions(model, images) == []
    blocks = list(model.get_submodule("features"))  # type: ignore[arg-type]
    recording, output = recorded(model, images, labels, blocks=blocks)
    norms = gradient_norms(recording)
    assert norms["block"].tolist() == [f"features.{index}" for index in range(22)]
    assert set(norms["quantity"]) == {"total"}
    assert np.isfinite(norms["value"]).all()
    assert (norms["value"] > 0).all()
    with pytest.raises(ValueError, match="no residual junctions"):
        residual_magnitudes(recording)
    assert torch.equal(output, model(images).detach())  # BatchNorm in train mode: batch statistics alone
