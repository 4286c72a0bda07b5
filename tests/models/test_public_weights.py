from pathlib import Path

import numpy as np
import pytest
import torch

from models import cifar_resnet, rename_public_weights
from probes import gradient_norms, path_contributions, record, residual_magnitudes

DATA = Path(__file__).parents[2] / "shared" / "data"
needs_data = pytest.mark.skipif(
    not (DATA / "akamaster-resnet56.th").exists(), reason=f"the public weights and test images are not in {DATA}"
)


def trained(depth: int) -> torch.nn.Module:
    stored = torch.load(DATA / f"akamaster-resnet{depth}.th", weights_only=True, map_location="cpu")
    model = cifar_resnet(depth)
    model.load_state_dict(rename_public_weights(stored["state_dict"]))
    return model.eval()


def test_images() -> tuple[torch.Tensor, torch.Tensor]:
    with np.load(DATA / "cifar10_test_lossless_1017.npz") as data:
        images, labels = torch.tensor(data["x"]).float() / 255, torch.tensor(data["y"])
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (images - mean.view(3, 1, 1)) / std.view(3, 1, 1), labels


test_images.__test__ = False  # pyright: ignore[reportFunctionMemberAccess]


@needs_data
@pytest.mark.parametrize(("depth", "accuracy"), [(20, 0.9164), (56, 0.9272)])
def test_trained_networks_score_what_their_authors_report(depth: int, accuracy: float) -> None:
    images, labels = test_images()
    model = trained(depth)
    with torch.no_grad():
        right = torch.cat([model(batch).argmax(1) for batch in images.split(128)]) == labels
    assert right.double().mean().item() == pytest.approx(accuracy, abs=5e-5)  # the fourth digit of 1,017 images


@needs_data
def test_a_trained_network_gives_sensible_profiles() -> None:
    images, labels = test_images()
    model = trained(56)
    with record(model) as recording:
        torch.nn.functional.cross_entropy(model(images[:64]), labels[:64]).backward(retain_graph=True)
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
