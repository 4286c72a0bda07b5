"""Linear probes: classes that are or are not separable, against scikit-learn by hand, and refusals."""

import math
import sys
from typing import Any

import pandas as pd
import pytest
import torch
import torchvision
from sklearn.linear_model import RidgeClassifier
from torch import Tensor, nn

from models import ARMS, cifar_resnet
from probes import Recording, linear_probes, record
from tests.support.networks import FLOAT64, Apply, Residual, chain, images, left_as_it_was, linear, perceptron


def kept(model: nn.Module, x: Tensor, **options: Any) -> Recording:
    with record(model, keep=True, **options) as recording:
        model(x)
    return recording


def accuracy(table: pd.DataFrame, split: str, block: str | None = None) -> float:
    chosen = table[(table["split"] == split) & (table["block"] == (block or table["block"].iloc[0]))]
    return chosen["value"].item()


# On paper.


def exclusive_or() -> tuple[Tensor, Tensor]:
    """Four corners, ten of each with a little noise: equal signs are class 1."""
    corners = torch.tensor([[-1.0, -1], [1, 1], [-1, 1], [1, -1]], dtype=FLOAT64).repeat(10, 1)
    return corners + 0.01 * torch.randn(40, 2, dtype=FLOAT64), torch.tensor([1, 1, 0, 0]).repeat(10)


def test_the_depth_at_which_an_exclusive_or_becomes_linear() -> None:
    """No line separates it in (x, y); with the product xy as third feature one does. The first block adds nothing, the
    second the product."""
    x, labels = exclusive_or()
    stream = torch.cat([x, torch.zeros(40, 1, dtype=FLOAT64)], 1)
    unit = torch.tensor([0.0, 0, 1], dtype=FLOAT64)
    nothing = Residual(linear([[0.0] * 3] * 3))
    product = Apply(lambda m, h: h + m.f(h[:, :1] * h[:, 1:2] * unit), f=linear(torch.eye(3).double().tolist()))
    recording = kept(nn.Sequential(nothing, product), stream)
    found = linear_probes(recording, labels)
    assert list(found.columns) == ["split", "block", "depth", "quantity", "value"]
    assert found["depth"].tolist() == [0, 0, 1, 1]
    assert found["split"].tolist() == ["train", "held-out"] * 2
    assert found["quantity"].unique().tolist() == ["accuracy"]
    assert accuracy(found, "held-out", "0") <= 0.8
    assert accuracy(found, "train", "1") == accuracy(found, "held-out", "1") == 1
    # The residual itself is the product alone.
    branch = linear_probes(recording, labels, of="branch")
    assert accuracy(branch, "held-out", "1") == 1
    assert accuracy(linear_probes(recording, labels, of="shortcut"), "held-out", "1") <= 0.8


def test_random_labels_are_fitted_and_not_predicted() -> None:
    """More features than examples: all of the training set by heart, and chance (1/2 ± 0.07) on the rest."""
    x, labels = torch.randn(100, 300, dtype=FLOAT64), torch.randint(2, (100,))
    found = linear_probes(kept(chain(1, 300), x), labels)
    assert accuracy(found, "train") == 1
    assert accuracy(found, "held-out") == pytest.approx(0.5, abs=0.25)


# Against scikit-learn by hand.


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("positions", ["mean", "features"])
def test_equals_a_classifier_fitted_by_hand(arm: str, positions: Any) -> None:
    x, labels = images(30, 6), torch.randint(3, (30,))
    recording = kept(cifar_resnet(14, width=2, flow=ARMS[arm]).double(), x)
    mask = torch.zeros(30, dtype=torch.bool)
    mask[20:] = True
    found = linear_probes(recording, labels, held_out=mask, alpha=3.0, positions=positions)
    for site in recording.junctions:
        value = (site.shortcut + site.branch).detach()
        features = (value.mean((2, 3)) if positions == "mean" else value.flatten(1)).numpy()
        scale = features[:20].std(0)
        features = (features - features[:20].mean(0)) / (scale + (scale == 0))
        probe = RidgeClassifier(alpha=3.0).fit(features[:20], labels[:20].numpy())
        assert accuracy(found, "train", site.name) == probe.score(features[:20], labels[:20].numpy())
        assert accuracy(found, "held-out", site.name) == probe.score(features[20:], labels[20:].numpy())


def test_a_split_is_its_seeds() -> None:
    x, labels = torch.randn(40, 3, dtype=FLOAT64), torch.arange(40) % 2
    recording = kept(chain(3), x)
    random = torch.get_rng_state()
    a, b, c = (linear_probes(recording, labels, held_out=0.3, seed=seed) for seed in (1, 1, 2))
    pd.testing.assert_frame_equal(a, b)
    assert not a.equals(c)
    assert torch.equal(torch.get_rng_state(), random)
    # 12 of 40 are held out: accuracies are multiples of 1/12 and 1/28.
    assert (a[a["split"] == "held-out"]["value"] * 12).tolist() == pytest.approx(
        (a[a["split"] == "held-out"]["value"] * 12).round().tolist()
    )
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(40, dtype=torch.bool)
    mask[order[:12]] = True
    pd.testing.assert_frame_equal(linear_probes(recording, labels, held_out=mask), a)


def test_scales_change_nothing_and_infinities_are_nan() -> None:
    x, labels = torch.randn(30, 3, dtype=FLOAT64), torch.arange(30) % 3
    wanted = linear_probes(kept(nn.Sequential(Residual(linear([[0.5, 0, 0], [0, 1, 0], [0, 2, 0]]))), x), labels)
    for factor in (1e-200, 1e200):
        model = nn.Sequential(Residual(linear([[0.5, 0, 0], [0, 1, 0], [0, 2, 0]])))
        pd.testing.assert_frame_equal(linear_probes(kept(model, factor * x), labels), wanted)
    found = linear_probes(kept(nn.Sequential(Residual(linear([[math.inf, 0, 0], [0, 1, 0], [0, 0, 1]]))), x), labels)
    assert found["value"].isna().all()


def test_tokens_and_other_models() -> None:
    labels = torch.arange(12) % 2
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    found = linear_probes(kept(nn.TransformerEncoder(layer, 2).train(), torch.randn(12, 4, 8)), labels)
    assert len(found) == 4 * 2
    assert found["value"].between(0, 1).all()
    model = torchvision.models.resnet18(num_classes=3)
    recording = kept(model, images(12, 32, dtype=torch.float32))
    with left_as_it_was(model):
        assert len(linear_probes(recording, labels)) == 8 * 2


# Refusals.

X, Y = torch.randn(10, 3, dtype=FLOAT64), torch.arange(10) % 2
BAD: dict[str, tuple[Tensor, dict[str, Any], str]] = {
    "labels": (Y.double(), {}, r"labels are a tensor of torch.float64 of shape \(10,\); give a class, a whole number"),
    "one-hot": (torch.eye(10).long(), {}, r"labels are a tensor of torch.int64 of shape \(10, 10\); give a class"),
    "fewer": (
        Y[:9],
        {},
        r"'0' has values of shape \(10, 3\) for 9 labels: the first axis must be that of the examples",
    ),
    "share": (Y, {"held_out": 1.5}, "held_out is 1.5: give a share between 0 and 1, or a mask"),
    "mask": (
        Y,
        {"held_out": Y},
        r"held_out is a tensor of torch.int64 of shape \(10,\); give a boolean for each of the 10",
    ),
    "empty": (Y, {"held_out": 0.01}, "of 10 examples 0 are held out: leave some on both sides"),
    "one class": (Y, {"held_out": Y == 1}, "examples to be fitted have fewer than two classes: hold out fewer"),
    "alpha": (Y, {"alpha": 0.0}, "alpha is 0.0: give a number above 0"),
    "of": (Y, {"of": "x"}, "of is 'x': give 'sum' or 'branch' or 'shortcut'"),
    "positions": (Y, {"positions": "x"}, "positions is 'x': give 'mean' or 'features'"),
}


@pytest.mark.parametrize(("labels", "options", "text"), BAD.values(), ids=BAD)
def test_bad_input(labels: Tensor, options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        linear_probes(kept(chain(1), X), labels, **options)


def test_recordings_without_tensors_or_junctions() -> None:
    with record(model := chain(1)) as recording:
        model(X)
    with pytest.raises(ValueError, match=r"linear_probes needs the tensors themselves.*: record\(model, keep=True\)"):
        linear_probes(recording, Y)
    plain = perceptron()
    with pytest.raises(ValueError, match="no residual junctions"):
        linear_probes(kept(plain, X, blocks=[plain[0]]), Y)


def test_without_scikit_learn_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    recording = kept(chain(1), X)
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    with pytest.raises(ModuleNotFoundError, match=r"needs scikit-learn \(in the extra.*experiments.*pip install"):
        linear_probes(recording, Y)
