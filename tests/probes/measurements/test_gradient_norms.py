"""`gradient_norms` against autograd's own gradients, cases done on paper, and the ends of float32's range."""

import copy
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from models import ARMS, cifar_resnet
from probes import Recording, gradient_norms, record
from tests.support.networks import (
    FLOAT64,
    Apply,
    Residual,
    chain,
    gradients_at,
    images,
    linear,
    one,
    perceptron,
    recorded,
    scalars,
    values,
)

PARTS = ("shortcut", "branch", "other")


def loss(logits: Tensor) -> Tensor:
    return F.cross_entropy(logits, torch.arange(len(logits)))


def parts(recording: Recording, depth: int) -> dict[str, Tensor]:
    site = recording.sites[depth]
    return {name: recording.gradient(site, name) for name in ("total", "shortcut", "branch", "junction")}


def test_two_scalar_blocks_as_on_paper() -> None:
    """y = x + 2x, z = y + 3y, loss 5z: 20 arrive at y, 5 by the shortcut and 15 by the branch; 60 at x, 20 and 40."""
    recording = recorded(scalars(2.0, 3.0), one(), lambda y: 5 * y.sum(), keep=True)
    table = gradient_norms(recording)
    assert list(table.columns) == ["block", "depth", "quantity", "value"]
    assert table["block"].tolist() == ["0"] * 4 + ["1"] * 4
    assert table["depth"].tolist() == [0] * 4 + [1] * 4
    assert table["quantity"].tolist() == ["total", *PARTS] * 2
    assert table["value"].tolist() == [60, 20, 40, 0, 20, 5, 15, 0]
    assert [parts(recording, depth)["junction"].item() for depth in (0, 1)] == [20, 5]


BLOCKS: dict[str, tuple[Callable[..., Tensor], list[float]]] = {
    "x + f": (lambda block, x: x + block.f(x), [3, 1, 2, 0]),
    "f + x": (lambda block, x: block.f(x) + x, [3, 1, 2, 0]),
    "a product of two reads": (lambda block, x: x + block.f(x) * block.g(x), [13, 1, 12, 0]),  # the slope at x = 1
    "a square": (lambda block, x: x + block.h(x * x), [13, 1, 12, 0]),
}


@pytest.mark.parametrize(("block", "wanted"), BLOCKS.values(), ids=BLOCKS)
def test_ways_to_write_a_block(block: Callable[..., Tensor], wanted: list[float]) -> None:
    model = Apply(block, f=linear(2.0), g=linear(3.0), h=linear(6.0))
    assert gradient_norms(recorded(model, one()))["value"].tolist() == wanted


@pytest.mark.parametrize("projection", ["A", "B", "C"])
@pytest.mark.parametrize("arm", ARMS)
def test_totals_are_autograd_s_and_the_parts_add_up(arm: str, projection: str) -> None:
    model = cifar_resnet(14, flow=ARMS[arm], width=4, projection=projection).double()  # pyright: ignore[reportArgumentType]
    x = images()
    names = [f"layer{stage}.{index}" for stage in (1, 2, 3) for index in (0, 1)]
    wanted = gradients_at(model, names, x, loss)
    recording = recorded(model, x, loss, keep=True)
    table = gradient_norms(recording)
    assert [site.name for site in recording.sites] == names
    for depth, gradient in enumerate(wanted):
        got = parts(recording, depth)
        assert torch.equal(got["total"], gradient)
        assert torch.equal(got["shortcut"] + got["branch"], gradient)
    assert values(table, "other") == [0] * 6
    assert values(table, "total") == pytest.approx([g.norm().item() for g in wanted], rel=1e-14)
    cut = {name for name in ("shortcut", "branch") if not any(values(table, name))}
    assert cut == {"plain": {"shortcut"}, "stop-gradient": {"shortcut"}, "shortest-path": {"branch"}}.get(arm, set())


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_totals_of_a_foreign_network_are_autograd_s(name: str) -> None:
    model = getattr(torchvision.models, name)(weights=None, num_classes=10).double()
    x = images(2, 32)
    recording = recorded(copy.deepcopy(model), x, loss, keep=True)
    wanted = gradients_at(model, [site.name for site in recording.sites], x, loss)
    assert all(torch.equal(parts(recording, depth)["total"], g) for depth, g in enumerate(wanted))
    assert values(gradient_norms(recording), "other") == [0] * len(wanted)


def test_what_an_auxiliary_head_sends_back_is_other() -> None:
    def forward(self: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.get_submodule("first")(x)
        return self.get_submodule("last")(hidden), self.get_submodule("head")(hidden)

    model = Apply(forward, first=Residual(linear(2.0)), last=Residual(linear(3.0)), head=linear(7.0))
    recording = recorded(model, one(), lambda outputs: (outputs[0] + 10 * outputs[1]).sum())
    assert gradient_norms(recording)["value"].tolist() == [3 * 74, 74, 2 * 74, 0, 1 + 3 + 70, 1, 3, 70]


def test_what_a_head_on_the_inside_of_a_branch_sends_back_came_by_the_branch() -> None:
    def forward(self: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        inside = self.get_submodule("f")(x)
        return x + self.get_submodule("g")(inside), inside

    model = Apply(forward, f=linear(2.0), g=linear(3.0))
    recording = recorded(model, one(), lambda outputs: outputs[0].sum() + outputs[1].sum())
    assert gradient_norms(recording)["value"].tolist() == [9, 1, 8, 0]


def test_what_a_long_skip_sends_back_is_other_as_a_tensor() -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        hidden = self.get_submodule("first")(x)
        return self.get_submodule("head")(torch.cat([self.get_submodule("last")(hidden), hidden], dim=1))

    head = linear([[1.0, 2.0, 30.0, 40.0], [0.0, 1.0, 0.0, -5.0]])
    model = Apply(forward, first=Residual(perceptron(2)), last=Residual(perceptron(2)), head=head)
    with record(model, keep=True) as recording:
        model(torch.randn(1, 2, dtype=FLOAT64)).backward(torch.tensor([[1.0, 3.0]], dtype=FLOAT64))
    got = parts(recording, 1)
    assert got["junction"].tolist() == [[1, 5]]
    other = got["total"] - (got["shortcut"] + got["branch"])
    # By hand: (30, 40) + 3 · (0, -5). The total is around 30, and float64 rounds it at 1e-14.
    assert other.tolist() == [pytest.approx([30, 25], abs=1e-13)]
    assert values(gradient_norms(recording), "other") == pytest.approx([0, math.hypot(30, 25)], abs=1e-13)


@pytest.mark.parametrize("scale", [1e-30, 1e-25, 1e-10, 1.0, 1e25])
def test_gradients_that_vanish_or_explode_in_float32_keep_their_norms(scale: float) -> None:
    model, x = cifar_resnet(14, width=4), images(dtype=torch.float32)
    tables = []
    for net, dtype in ((model, torch.float32), (copy.deepcopy(model).double(), FLOAT64)):
        tables.append(gradient_norms(recorded(net, x.to(dtype), lambda logits: loss(logits) * scale)))
    for quantity in ("total", "shortcut", "branch"):
        # Float32 rounds at 6e-8 an operation, over some hundred operations on sums of a few hundred terms.
        assert values(tables[0], quantity) == pytest.approx(values(tables[1], quantity), rel=1e-4, abs=0)
        assert min(values(tables[0], quantity)) > 0


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_gradients_that_are_not_finite_are_reported_as_they_are(value: float) -> None:
    model = chain(2)
    with record(model) as recording:
        model(torch.ones(1, 3, dtype=FLOAT64)).backward(torch.full((1, 3), value, dtype=FLOAT64))
    assert not any(map(math.isfinite, values(gradient_norms(recording), "total")))


def test_a_sum_over_the_batch_gives_n_times_the_norm_of_a_mean() -> None:
    model, x = chain(3), torch.randn(5, 3, dtype=FLOAT64)
    tables = []
    for reduction in (torch.mean, torch.sum):
        recording = recorded(model, x, lambda y, reduction=reduction: reduction(y.square().sum(1)))
        tables.append(gradient_norms(recording))
    assert tables[1]["value"].tolist() == pytest.approx((5 * tables[0]["value"]).tolist(), rel=1e-14)


def vgg_like() -> nn.Sequential:
    def layer(in_channels: int, out_channels: int) -> list[nn.Module]:
        return [nn.Conv2d(in_channels, out_channels, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2)]

    return nn.Sequential(*layer(3, 4), *layer(4, 8), nn.Flatten(), nn.Linear(8 * 2 * 2, 10)).double()


def test_blocks_named_by_hand_give_autograd_s_total_and_nothing_else() -> None:
    model, x = vgg_like(), images()
    wanted = gradients_at(model, ["0", "3", "7"], x, loss)
    recording = recorded(model, x, loss, blocks=[model[0], model[3], model[7]], keep=True)
    table = gradient_norms(recording)
    assert table["block"].tolist() == ["0", "3", "7"]
    assert table["depth"].tolist() == [0, 1, 2]
    assert table["quantity"].tolist() == ["total"] * 3
    assert table["value"].tolist() == pytest.approx([g.norm().item() for g in wanted], rel=1e-14)
    assert all(torch.equal(recording.gradient(s, "total"), g) for s, g in zip(recording.sites, wanted, strict=True))


def test_blocks_come_in_the_order_in_which_they_run() -> None:
    model = vgg_like()
    recording = recorded(model, images(), blocks=[model[7], model[0]])
    assert gradient_norms(recording)["block"].tolist() == ["0", "7"]


def test_a_block_named_by_hand_counts_its_calls() -> None:
    block = linear(2.0)
    model = nn.Sequential(block, nn.Tanh(), block, block)
    recording = recorded(model, one(), blocks=[block])
    assert gradient_norms(recording)["block"].tolist() == ["0", "0@1", "0@2"]


@pytest.mark.parametrize("blocks", [[nn.Linear(1, 1)], []], ids=["another model's", "none"])
def test_blocks_that_are_no_part_of_the_model_are_refused(blocks: list[nn.Module]) -> None:
    with pytest.raises(ValueError, match="record: blocks must be modules of the model"):
        recorded(vgg_like(), images(), blocks=blocks)


# --- of each example and token ---


def test_two_examples_as_on_paper() -> None:
    """Two blocks, of which the first example sends back 5, the second 10."""
    x = torch.ones(2, 1, dtype=FLOAT64)
    weights = torch.tensor([[5.0], [10.0]], dtype=FLOAT64)
    recording = recorded(scalars(2.0, 3.0), x, lambda y: (weights * y).sum(), keep=True)
    table = gradient_norms(recording, per="example")
    assert list(table.columns) == ["block", "depth", "example", "quantity", "value"]
    assert table["example"].tolist() == [0, 1] * 8
    assert table["quantity"].tolist()[:8:2] == ["total", *PARTS]
    assert table["value"].tolist() == [60, 120, 20, 40, 40, 80, 0, 0, 20, 40, 5, 10, 15, 30, 0, 0]


@pytest.mark.parametrize("arm", ARMS)
def test_squares_of_examples_sum_to_the_batch_s(arm: str) -> None:
    """Also under BatchNorm, where examples meet, and where other is 0 exactly."""
    recording = recorded(cifar_resnet(14, flow=ARMS[arm], width=4).double(), images(), loss, keep=True)
    whole = gradient_norms(recording)
    for name in ("total", *PARTS):
        table = gradient_norms(recording, per="example")
        table = table[table["quantity"] == name]
        sums = table.assign(value=table["value"] ** 2).groupby("depth")["value"].sum() ** 0.5
        assert sums.tolist() == pytest.approx(values(whole, name), rel=1e-12, abs=0)


def test_norms_of_tokens_are_autograd_s() -> None:
    """And those of vanished gradients, whose squares are 0 in float64."""
    model, x = chain(2, width=5), torch.randn(3, 4, 5, dtype=FLOAT64)
    (wanted,) = gradients_at(model, ["0"], x, lambda y: y.square().sum())
    for scale in (1.0, 1e-200):
        recording = recorded(model, x, lambda y, scale=scale: scale * y.square().sum(), keep=True)
        table = gradient_norms(recording, per="token")
        assert list(table.columns) == ["block", "depth", "example", "token", "quantity", "value"]
        got = table[(table["depth"] == 0) & (table["quantity"] == "total")]
        assert got["value"].tolist() == pytest.approx((scale * wanted.norm(dim=-1)).flatten().tolist(), rel=1e-12)


def test_what_came_by_neither_addend_has_its_examples() -> None:
    def forward(self: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.get_submodule("first")(x)
        return self.get_submodule("last")(hidden), self.get_submodule("head")(hidden)

    model = Apply(forward, first=Residual(linear(2.0)), last=Residual(linear(3.0)), head=linear(7.0))
    weights = torch.tensor([[10.0], [0.0]], dtype=FLOAT64)
    x = torch.ones(2, 1, dtype=FLOAT64)
    table = gradient_norms(recorded(model, x, lambda y: (y[0] + weights * y[1]).sum(), keep=True), per="example")
    assert values(table, "other") == [0, 0, 70, 0]


def test_blocks_named_by_hand_have_totals_of_examples() -> None:
    model, x = perceptron(1), torch.ones(2, 1, dtype=FLOAT64)
    recording = recorded(model, x, lambda y: 3 * y[0].sum(), blocks=[model[2]], keep=True)
    table = gradient_norms(recording, per="example")
    assert table["quantity"].tolist() == ["total"] * 2
    assert table["value"].tolist() == pytest.approx([3 * model.get_parameter("2.weight").abs().item(), 0], rel=1e-15)


def test_norms_of_examples_need_the_tensors() -> None:
    with pytest.raises(ValueError, match=r"gradient_norms\(recording, per=\"example\"\) needs the tensors.*keep=True"):
        gradient_norms(recorded(scalars(2.0), one()), per="example")
    with pytest.raises(ValueError, match=r"gradient_norms: per is 'image': give"):
        gradient_norms(recorded(scalars(2.0), one()), per="image")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"per=\"token\" needs tensors \(N, T, D\), and '0' has \(1, 1\)"):
        gradient_norms(recorded(scalars(2.0), one(), keep=True), per="token")
