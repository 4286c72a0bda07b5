"""`update_sizes` on paper, against one step of SGD, and against two copies of a network that are run by hand."""

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import cifar_resnet
from probes import update_sizes
from tests.support.networks import (
    Apply,
    chain,
    images,
    left_as_it_was,
    linear,
    network,
    one,
    perceptron,
    scalars,
    values,
)
from tests.support.zoo import GPT, hugging_face, tokens

QUANTITIES = ["weights", "function", "output"]


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: x.detach().clone() for name, x in model.state_dict().items()}


def test_two_scalar_blocks_as_on_paper() -> None:
    """x + 2x becomes x + 2.5x: 3 becomes 3.5. The second block, x + 3x, is the same function of another input."""
    model = scalars(2.0, 3.0)
    before = snapshot(model)
    model.get_parameter("0.branch.weight").data += 0.5
    table = update_sizes(model, before, one())
    assert list(table.columns) == ["block", "depth", "quantity", "value"]
    assert table["block"].tolist() == ["0"] * 3 + ["1"] * 3
    assert table["depth"].tolist() == [0] * 3 + [1] * 3
    assert table["quantity"].tolist() == QUANTITIES * 2
    assert table["value"].tolist() == pytest.approx([0.25, 1 / 6, 1 / 6, 0, 0, 1 / 6], rel=1e-15)


def test_a_step_of_sgd_moves_weights_by_the_rate_times_the_gradient() -> None:
    model, x = cifar_resnet(14, width=4).double(), images()
    before = snapshot(model)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.03)
    F.cross_entropy(model(x), torch.arange(4)).backward()
    optimiser.step()
    table = update_sizes(model, before, x)
    blocks = [f"layer{stage}.{index}" for stage in (1, 2, 3) for index in (0, 1)]
    assert table["block"].tolist()[::3] == blocks
    for name, moved in zip(blocks, values(table, "weights"), strict=True):
        parameters = dict(model.get_submodule(name).named_parameters())
        gradient = torch.cat([p.grad.flatten() for p in parameters.values() if p.grad is not None])
        weights = torch.cat([before[f"{name}.{key}"].flatten() for key in parameters])
        # The subtraction of weights that are 30 times their change loses two digits.
        assert moved == pytest.approx((0.03 * gradient.norm() / weights.norm()).item(), rel=1e-12)


def test_functions_and_outputs_are_those_of_two_copies_run_by_hand() -> None:
    model, x = chain(3), torch.randn(5, 3, dtype=torch.float64)
    old = copy.deepcopy(model)
    for p in model.parameters():
        p.data += 0.1 * torch.randn_like(p)
    table = update_sizes(model, snapshot(old), x)
    was = now = x
    for depth, (first, after) in enumerate(zip(old, model, strict=True)):
        given, was, now = was, first(was), after(now)
        wanted = [(after(given) - was).norm() / was.norm(), (now - was).norm() / was.norm()]
        got = table[table["depth"] == depth]["value"].tolist()[1:]
        assert got == pytest.approx([value.item() for value in wanted], rel=1e-13)


def test_dropout_and_batch_statistics_are_the_same_in_every_run() -> None:
    """A model that has not changed: exactly 0, in train mode, too, and nothing is left of the measurement."""
    model, x = network(), torch.randn(4, 3)
    buffers, state = snapshot(model), torch.get_rng_state()
    with left_as_it_was(model):
        table = update_sizes(model, snapshot(model), x)
    assert table["value"].tolist() == [0] * 9
    assert all(torch.equal(buffers[name], now) for name, now in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_transformer_that_keeps_keys_and_values() -> None:
    model = hugging_face("GPT2LMHeadModel", "GPT2Config", **GPT)()
    given = tokens()
    assert update_sizes(model, snapshot(model), **given, use_cache=True)["value"].tolist() == [0] * 6
    before = snapshot(model)
    model.get_parameter("transformer.h.0.mlp.c_proj.weight").data.mul_(2)
    table = update_sizes(model, before, **given, use_cache=True)
    assert table["block"].tolist() == ["transformer.h.0"] * 3 + ["transformer.h.1"] * 3
    assert min(values(table, "weights")[0], values(table, "function")[0], *values(table, "output")) > 1e-4
    assert [values(table, name)[1] for name in ("weights", "function")] == [0, 0]
    assert values(table, "function")[0] == values(table, "output")[0]


class Tally:
    """What a block is given and changes, as a cache is."""

    calls = 0


def test_an_argument_that_the_block_changes_is_given_as_it_was() -> None:
    def block(self: nn.Module, x: Tensor, tally: Tally) -> Tensor:
        tally.calls += 1
        return self.get_submodule("w")(x) * tally.calls

    class Block(Apply):
        def forward(self, x: Tensor, tally: Tally) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
            return block(self, x, tally)

    model = Apply(lambda m, x: m.get_submodule("block")(x, Tally()), block=Block(block, w=linear(2.0)))
    table = update_sizes(model, snapshot(model), one(), blocks=[model.get_submodule("block")])
    assert table["value"].tolist() == [0, 0, 0]


def test_blocks_named_by_hand_and_states_of_some_names() -> None:
    """Weights that vanish keep their digits; names that the state leaves out have not changed."""
    model = perceptron(2)
    with torch.no_grad():
        for p in model[0].parameters():
            p.mul_(1e-200)
    before = {"0.weight": model.get_parameter("0.weight").detach().clone()}
    model.get_parameter("0.weight").data *= 1.5
    table = update_sizes(model, before, torch.randn(3, 2, dtype=torch.float64), blocks=[model[0], model[2]])
    weight, bias = before["0.weight"] / 1e-200, model.get_parameter("0.bias").detach() / 1e-200
    assert values(table, "weights") == pytest.approx(
        [0.5 * (weight.norm() / torch.cat([weight, bias[None]]).norm()).item(), 0]
    )
    assert table["block"].tolist()[::3] == ["0", "2"]


def test_a_block_without_parameters_has_no_size() -> None:
    model = nn.Sequential(linear(2.0), nn.Identity())
    before = snapshot(model)
    model.get_parameter("0.weight").data *= 2
    table = update_sizes(model, before, one(), blocks=list(model))
    assert table["value"].tolist() == pytest.approx([1, 1, 1, math.nan, 0, 1], nan_ok=True)


def test_errors_say_what_to_do() -> None:
    model = scalars(2.0)
    before = snapshot(model)
    x: Any = one()
    with pytest.raises(ValueError, match=r"before holds the model's own tensors.*clone them, \{name: x"):
        update_sizes(model, model.state_dict(), x)
    with pytest.raises(ValueError, match=r"before holds 'w', which the model does not: give a copy"):
        update_sizes(model, {"w": one()}, x)
    with pytest.raises(ValueError, match=r"'0.branch.weight' had the shape \(2,\) before, and has \(1, 1\)"):
        update_sizes(model, {"0.branch.weight": torch.ones(2)}, x)
    with pytest.raises(ValueError, match=r"no residual junctions: name the modules .*blocks=\[\.\.\.\]"):
        update_sizes(linear(2.0), {}, x)
    with pytest.raises(ValueError, match=r"blocks must be modules of the model.*got \['Linear'\]"):
        update_sizes(model, before, x, blocks=[linear(1.0)])
    unused = Apply(lambda m, y: m.get_submodule("used")(y), used=linear(1.0), unused=linear(1.0))
    with pytest.raises(ValueError, match=r"the forward did not call \['unused'\]"):
        update_sizes(unused, {}, x, blocks=[unused.get_submodule("unused")])
    named = Apply(lambda m, y: m.get_submodule("text")(y) and y, text=Apply(lambda m, y: "text"))
    with pytest.raises(TypeError, match="block 'text' gives a str: name blocks that give a tensor"):
        update_sizes(named, {}, x, blocks=[named.get_submodule("text")])
