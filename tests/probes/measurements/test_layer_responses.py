"""Layer responses: a case done on paper, a twin by hand, and nothing left behind."""

import pytest
import torch
from torch import nn

from models import PLAIN, cifar_resnet
from probes import layer_responses
from tests.support.networks import Apply


def times(factor: float) -> nn.Module:
    return Apply(lambda _, x: factor * x)


def test_on_paper() -> None:
    """Values -1 and 1 have a standard deviation of 1; times 2, then times 3."""
    model = nn.Sequential(times(2), nn.Identity(), times(3))
    found = layer_responses(model, torch.tensor([[-1.0, 1.0]]), layers=[model[2], model[0]])
    assert list(found["block"]) == ["0", "2"]  # as they run, not as they are named
    assert list(found["depth"]) == [0, 1]
    assert list(found["value"]) == [2.0, 6.0]


def test_equals_what_a_batchnorm_gives_by_hand() -> None:
    model, images = cifar_resnet(8, width=4, flow=PLAIN).double().eval(), torch.randn(5, 3, 8, 8).double()
    found = layer_responses(model, images)
    assert len(found) == 7  # the stem's and two in each of three blocks
    part = model.get_submodule
    stem = part("stem.1")(part("stem.0")(images))
    second = stem.relu()
    for name in ("conv1", "bn1", "relu", "conv2", "bn2"):
        second = part(f"layer1.0.branch.{name}")(second)
    by_name = found.set_index("block")["value"]
    # The same operations in the same order: equal but for the sum's order within std.
    assert by_name["stem.1"] == pytest.approx(stem.std(correction=0).item(), rel=1e-12)
    assert by_name["layer1.0.branch.bn2"] == pytest.approx(second.std(correction=0).item(), rel=1e-12)


def test_after_a_fresh_batchnorm_in_train_mode_it_is_one() -> None:
    """Scale 1, shift 0, statistics of the batch: 1 but for BatchNorm's epsilon of 1e-5."""
    found = layer_responses(cifar_resnet(8, width=4), torch.randn(16, 3, 8, 8))
    assert found["value"].to_numpy() == pytest.approx(1, abs=1e-3)


def test_a_layer_that_runs_twice_has_two_rows() -> None:
    norm = nn.LayerNorm(4)
    found = layer_responses(nn.Sequential(norm, times(2), norm), torch.randn(3, 4))
    assert list(found["block"]) == ["0", "0@1"]


@pytest.mark.parametrize(
    ("model", "layers", "error", "text"),
    [
        (nn.Linear(2, 2), None, ValueError, "needs its layers named"),
        (nn.Linear(2, 2), [nn.ReLU()], ValueError, "must be modules of the model.*ReLU"),
        (nn.LSTM(2, 2), "itself", TypeError, "'\\(model\\)' gives a tuple"),
    ],
)
def test_bad_input(model: nn.Module, layers: object, error: type[Exception], text: str) -> None:
    chosen = [model] if layers == "itself" else layers
    with pytest.raises(error, match=text):
        layer_responses(model, torch.randn(3, 2), layers=chosen)  # type: ignore[arg-type]
    assert not any(module._forward_hooks for module in model.modules())
