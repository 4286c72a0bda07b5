"""Blocks that are named by hand are recorded in the model's own forward, each call once."""

from functools import partial
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD
from torch.utils.checkpoint import checkpoint

from probes import gradient_norms, record, track
from tests.support.networks import FLOAT64, Apply, Residual, linear, network, one, recorded, scalars, squares


def checkpointed(*blocks: nn.Module, reentrant: bool = False) -> Apply:
    """Each block under activation checkpointing of its own."""

    def forward(self: nn.Module, x: Any) -> Any:
        for block in self.children():
            x = checkpoint(block, x, use_reentrant=reentrant)
        return x

    return Apply(forward, **{str(index): block for index, block in enumerate(blocks)})


def x() -> Tensor:
    return torch.ones(2, 3, dtype=FLOAT64)


@pytest.mark.parametrize("whole", [False, True], ids=["each block", "the model"])
def test_a_forward_that_is_computed_again_in_the_backward_is_recorded_once(whole: bool) -> None:
    model = network().double().eval()
    blocks = list(model)
    wanted = gradient_norms(recorded(model, x(), squares, blocks=blocks))
    net: Any = model if whole else checkpointed(*blocks)
    call: Any = partial(checkpoint, net, use_reentrant=False) if whole else net
    with record(net, blocks=blocks) as recording:
        squares(call(x())).backward()
    pd.testing.assert_frame_equal(gradient_norms(recording), wanted, rtol=1e-14)
    found: dict[int, pd.DataFrame] = {}
    with track(net, blocks=blocks, every=1, to=found.__setitem__, measure=gradient_norms):
        squares(call(x())).backward()
        SGD(net.parameters(), lr=0.0).step()
    pd.testing.assert_frame_equal(found[0][list(wanted)], wanted, rtol=1e-14)


def test_reentrant_checkpointing_is_refused() -> None:
    model = checkpointed(*scalars(), reentrant=True)
    with (
        record(model, blocks=list(model.children())),
        pytest.raises(RuntimeError, match="reentrant activation checkpointing hides"),
    ):
        model(one().requires_grad_())


@pytest.mark.parametrize("leaf", [False, True], ids=["", "of an input that requires a gradient"])
@pytest.mark.parametrize("by_name", [False, True], ids=["junctions", "blocks"])
def test_a_forward_without_gradients_leaves_what_was_recorded(by_name: bool, leaf: bool) -> None:
    model = scalars(2.0, 3.0)
    with record(model, blocks=list(model) if by_name else None) as recording:
        model(one()).sum().backward()
        with torch.no_grad():
            model(one().requires_grad_(leaf))
            model[0](one().requires_grad_(leaf))
    assert gradient_norms(recording).query("quantity == 'total'")["value"].tolist() == [12, 4]


@pytest.mark.parametrize("by_name", [False, True], ids=["junctions", "blocks"])
@pytest.mark.parametrize("call", [lambda model: model[0], lambda model: model.forward], ids=["a block", "forward"])
def test_a_block_that_runs_by_itself_is_refused(by_name: bool, call: Any) -> None:
    model = scalars(2.0, 3.0)
    with record(model, blocks=list(model) if by_name else None) as recording:
        model(one()).sum().backward()
        with pytest.raises(RuntimeError, match=r"'0' runs by itself, .*call the model itself \(not its .forward\)"):
            call(model)(one())
    assert [site.name for site in recording.sites] == ["0", "1"]


@pytest.mark.parametrize("in_place", [False, True])
def test_compiled_code_runs_as_it_was_written(in_place: bool) -> None:
    torch._dynamo.reset()
    model: Any = scalars(2.0, 3.0)
    call = model if in_place else torch.compile(model, backend="eager")
    if in_place:
        model.compile(backend="eager")
    call(one())
    with record(model, blocks=list(model)) as recording:
        call(one()).sum().backward()
    assert gradient_norms(recording)["value"].tolist() == [12, 4]


def test_a_block_that_is_named_twice_is_recorded_once() -> None:
    a, b = model = scalars(2.0, 3.0)
    recording = recorded(model, one(), blocks=[a, a, b])
    assert [site.name for site in recording.sites] == ["0", "1"]


def test_a_model_that_calls_itself_has_one_forward() -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        x = self.get_submodule("block")(x)
        return x if x.max() > 5 else self(x)

    recording = recorded(model := Apply(forward, block=Residual(linear(2.0))), one(), blocks=[*model.children()])
    assert [site.name for site in recording.sites] == ["block", "block@1"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_forward_that_was_cut_short_is_forgotten(error: type[BaseException]) -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        x = self.get_submodule("first")(x)
        if x.sum() < 0:
            raise error
        return self.get_submodule("last")(x)

    model = Apply(forward, first=Residual(linear(2.0)), last=Residual(linear(3.0)))
    with record(model, blocks=[*model.children()]) as recording:
        with pytest.raises(error):
            model(-one())
        with pytest.raises(RuntimeError, match="'last' runs by itself"):
            model.get_submodule("last")(one())
        model(one())
    assert [site.name for site in recording.sites] == ["first", "last"]
