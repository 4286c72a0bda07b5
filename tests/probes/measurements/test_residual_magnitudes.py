"""`residual_magnitudes` on numbers done on paper, and on networks that overwrite their addends."""

import copy
import math

import pandas as pd
import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from models import GRADIENT_ONLY, PLAIN, Flow, ResidualBlock, cifar_resnet
from probes import record, residual_magnitudes
from tests.support.networks import FLOAT64, Apply, Residual, images, linear, one, values


def magnitudes(model: nn.Module, x: Tensor) -> pd.DataFrame:
    with record(model) as recording:
        model(x)
    return residual_magnitudes(recording)


def test_two_blocks_as_on_paper() -> None:
    """Over a batch of two: x = (3, 0), (0, 4) has norm 5; its branch (0, 0), (0, 8) norm 8 and x·F(x) = 32."""
    x = torch.tensor([[3.0, 0.0], [0.0, 4.0]], dtype=FLOAT64)
    swap = linear([[0.0, -1.0], [1.0, 0.0]])
    table = magnitudes(nn.Sequential(Residual(linear([[0.0, 0.0], [0.0, 2.0]])), Residual(swap)), x)
    assert list(table.columns) == ["block", "depth", "quantity", "value"]
    assert table["block"].tolist() == ["0"] * 4 + ["1"] * 4
    assert table["depth"].tolist() == [0] * 4 + [1] * 4
    assert table["quantity"].tolist() == ["branch", "shortcut", "ratio", "cosine"] * 2
    # The second block turns (3, 0), (0, 12) by a right angle. Square roots and quotients round at 2e-16.
    root = math.sqrt(153)
    assert table["value"].tolist() == pytest.approx([8, 5, 1.6, 0.8, root, root, 1, 0], rel=1e-15, abs=1e-15)


def test_a_residual_against_the_shortcut_has_a_negative_cosine() -> None:
    table = magnitudes(Residual(linear([[-0.5, 0.0], [0.0, -0.5]])), torch.tensor([[3.0, 4.0]], dtype=FLOAT64))
    assert table["value"].tolist() == pytest.approx([2.5, 5, 0.5, -1], rel=1e-15)


def test_addends_are_taken_as_they_were_added() -> None:
    """With forward weights 2 and 3 the addends are twice the fork and three times the branch."""
    block = ResidualBlock(linear([[0.0, 1.0], [1.0, 0.0]]), activation=nn.Identity(), flow=Flow(2, 3))
    table = magnitudes(block, torch.tensor([[3.0, 4.0]], dtype=FLOAT64))
    assert table["value"].tolist() == pytest.approx([15, 10, 1.5, 0.96], rel=1e-15)


def test_an_add_that_multiplies_its_addend_counts_as_it_does() -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        return torch.add(x, self.get_submodule("f")(x), alpha=2)

    x = torch.tensor([[3.0, 4.0]], dtype=FLOAT64)
    table = magnitudes(Apply(forward, f=linear([[0.0, 1.0], [1.0, 0.0]])), x)
    assert table["value"].tolist() == pytest.approx([10, 5, 2, 0.96], rel=1e-15)


@pytest.mark.parametrize("arm", [PLAIN, GRADIENT_ONLY], ids=["plain", "gradient-only"])
@pytest.mark.parametrize("projection", ["A", "B", "C"])
def test_a_shortcut_of_forward_weight_0_has_no_ratio_and_no_cosine(arm: Flow, projection: str) -> None:
    model = cifar_resnet(14, flow=arm, width=4, projection=projection).double()  # pyright: ignore[reportArgumentType]
    table = magnitudes(model, images())
    assert values(table, "shortcut") == [0] * 6
    assert min(values(table, "branch")) > 0
    assert all(map(math.isnan, values(table, "ratio") + values(table, "cosine")))


def test_a_branch_of_zero_has_ratio_0_and_no_cosine() -> None:
    table = magnitudes(Residual(linear([[0.0, 0.0], [0.0, 0.0]])), torch.tensor([[3.0, 4.0]], dtype=FLOAT64))
    assert values(table, "ratio") == [0]
    assert math.isnan(values(table, "cosine")[0])


class OutOfPlace(nn.Module):
    """A torchvision block whose add and ReLUs make new tensors."""

    def __init__(self, block: BasicBlock) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        block = self.block
        residual = block.bn2(block.conv2(block.bn1(block.conv1(x)).clamp(min=0)))
        shortcut = x if block.downsample is None else block.downsample(x)
        return (residual + shortcut).clamp(min=0)


def test_an_add_and_a_relu_in_place_give_the_numbers_of_the_out_of_place_twin() -> None:
    model = torchvision.models.resnet18(weights=None, num_classes=10).double()
    twin, x = copy.deepcopy(model), images(2, 32)
    for stage in (twin.layer1, twin.layer2, twin.layer3, twin.layer4):
        for index, block in enumerate(stage):
            assert isinstance(block, BasicBlock)
            stage[index] = OutOfPlace(block)
    pd.testing.assert_frame_equal(magnitudes(model, x), magnitudes(twin, x), rtol=1e-14)


@pytest.mark.parametrize("form", ["shortcut += branch", "branch += shortcut", "add_", "alpha"])
def test_an_operand_that_the_add_itself_overwrites_keeps_its_value(form: str) -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        x = self.get_submodule("stem")(x)
        y = self.get_submodule("f")(x)
        if form == "shortcut += branch":
            x += y
            return x
        if form == "branch += shortcut":
            y += x
            return y
        return x.add_(y) if form == "add_" else y.add_(x, alpha=10)

    model = Apply(forward, stem=linear([[1.0, 0.0], [0.0, 1.0]]), f=linear([[0.0, 1.0], [2.0, 0.0]]))
    table = magnitudes(model, torch.tensor([[3.0, 4.0]], dtype=FLOAT64))
    times = 10 if form == "alpha" else 1
    branch, shortcut, dot = math.sqrt(16 + 36), 5 * times, (12 + 24) * times
    wanted = [branch, shortcut, branch / shortcut, dot / branch / shortcut]
    assert table["value"].tolist() == pytest.approx(wanted, rel=1e-15)


@pytest.mark.parametrize("overwritten", ["shortcut", "branch"])
def test_an_addend_that_is_overwritten_later_was_measured_before(overwritten: str) -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        x = self.get_submodule("stem")(x)
        y = self.get_submodule("f")(x)
        total = x + y
        (x if overwritten == "shortcut" else y).mul_(2)
        return total

    model = Apply(forward, stem=linear(2.0), f=linear(3.0))
    assert magnitudes(model, one())["value"].tolist() == [6, 2, 3, 1]
    with record(model, keep=True) as recording:
        model(one())
    (site,) = recording.junctions
    assert (site.shortcut.item(), site.branch.item()) == (2, 6)


def test_float32_addends_too_small_to_be_squared_keep_their_digits() -> None:
    model = Residual(linear([[0.0, 1.0], [1.0, 0.0]]).float())
    table = magnitudes(model, torch.tensor([[3e-30, 4e-30]]))
    # Float32 itself rounds 3e-30 at 6e-8 of its size.
    assert table["value"].tolist() == pytest.approx([5e-30, 5e-30, 1, 0.96], rel=1e-6)


def test_magnitudes_of_each_example_and_token() -> None:
    """x = (3, 0), (0, 4) and (0, 0) have branches (0, 0), (0, 8) and (0, 0)."""
    x = torch.tensor([[3.0, 0.0], [0.0, 4.0], [0.0, 0.0]], dtype=FLOAT64)
    model = Residual(linear([[0.0, 0.0], [0.0, 2.0]]))
    with record(model, keep=True) as recording:
        model(x)
    table = residual_magnitudes(recording, per="example")
    assert list(table.columns) == ["block", "depth", "example", "quantity", "value"]
    assert values(table, "branch") == [0, 8, 0]
    assert values(table, "shortcut") == [3, 4, 0]
    assert values(table, "ratio") == pytest.approx([0, 2, math.nan], nan_ok=True)
    assert values(table, "cosine") == pytest.approx([math.nan, 1, math.nan], nan_ok=True)
    with record(model, keep=True) as recording:
        model(x[None])
    tokens = residual_magnitudes(recording, per="token")
    assert tokens["token"].tolist() == [0, 1, 2] * 4
    pd.testing.assert_series_equal(tokens["value"], table["value"])


def test_squares_of_examples_sum_to_the_batch_s() -> None:
    model, x = cifar_resnet(14, width=4).double(), images()
    with record(model, keep=True) as recording:
        model(x)
    whole, table = residual_magnitudes(recording), residual_magnitudes(recording, per="example")
    for name in ("branch", "shortcut"):
        part = table[table["quantity"] == name]
        sums = part.assign(value=part["value"] ** 2).groupby("depth")["value"].sum() ** 0.5
        assert sums.tolist() == pytest.approx(values(whole, name), rel=1e-12)
    site = recording.junctions[3]
    wanted = torch.cosine_similarity(site.branch.flatten(1), site.shortcut.flatten(1)).tolist()
    got = table[(table["depth"] == 3) & (table["quantity"] == "cosine")]["value"].tolist()
    assert got == pytest.approx(wanted, rel=1e-12)


def test_magnitudes_of_examples_need_the_tensors() -> None:
    model = Residual(linear(2.0))
    with record(model) as recording:
        model(one())
    with pytest.raises(
        ValueError, match=r"residual_magnitudes\(recording, per=\"token\"\) needs the tensors.*keep=True"
    ):
        residual_magnitudes(recording, per="token")
    with pytest.raises(ValueError, match="residual_magnitudes: per is 'channel': give"):
        residual_magnitudes(recording, per="channel")  # pyright: ignore[reportArgumentType]
