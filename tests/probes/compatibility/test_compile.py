"""`gate` and torch.compile: whatever was compiled, and whenever, the right gradients or a refusal, no silent miss."""

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from probes import Junction, find_junctions, gate, track
from tests.support.gated_by_hand import UNGATED, Gradients, assert_recorded, equal, inputs, model, not_silent, step


@pytest.fixture
def compiler() -> Iterator[Callable[[Any], Any]]:
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's own, which change from version to version
        yield lambda thing: torch.compile(thing, backend="aot_eager")
        torch._dynamo.reset()


def gated(network: nn.Module, call: Callable[[Tensor], Any] | None = None) -> Gradients:
    with gate(network, shortcut_gradient=0.0):
        return step(network, call)


CLEAR = "compile|matches none of the model's junctions|call the model"


def assert_gated_or_refused(run: Callable[[], Gradients]) -> None:
    outcome = not_silent(run)
    assert outcome == "works" or any(word in outcome for word in CLEAR.split("|")), outcome


@pytest.mark.parametrize("called_before", [True, False])
@pytest.mark.parametrize("outer", ["compiled", "function", "inner"])
def test_a_compiled_model(compiler: Callable[[Any], Any], called_before: bool, outer: str) -> None:
    network = model()
    compiled: Any = compiler((lambda x: network(x)) if outer == "function" else network)
    if called_before:
        assert equal(step(network, compiled), UNGATED)
    watched = compiled if outer == "compiled" else network
    assert_gated_or_refused(lambda: gated(watched, compiled) if outer != "compiled" else prefixed(watched))
    assert equal(step(network, compiled), UNGATED), "afterwards"


def prefixed(compiled: nn.Module) -> Gradients:
    return {name.removeprefix("_orig_mod."): gradient for name, gradient in gated(compiled).items()}


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("called_before", [True, False])
@pytest.mark.parametrize("part", ["model.compile()", "block.compile()", "block.forward", "model.forward", "branch"])
def test_compiled_in_place(compiler: Callable[[Any], Any], part: str, called_before: bool, inside: bool) -> None:
    network = model()

    def compile_it() -> None:
        if part.endswith("compile()"):
            (network if part.startswith("model") else network[2]).compile(backend="aot_eager")
        elif part == "branch":
            network[1].branch = compiler(network[1].branch)
        else:
            module = network[2] if part.startswith("block") else network
            module.forward = compiler(module.forward)

    def run() -> Gradients:
        if not inside:
            compile_it()
            if called_before:
                step(network)
        with gate(network, shortcut_gradient=0.0):
            if inside:
                compile_it()
                if called_before:
                    step(network)
            return {name.replace("_orig_mod.", ""): gradient for name, gradient in step(network).items()}

    assert_gated_or_refused(run)


def test_a_compiled_function_within_the_model(compiler: Callable[[Any], Any]) -> None:
    network = model()
    for block in network[1:]:
        block.add = compiler(block.add)
    step(network)
    assert_gated_or_refused(lambda: gated(network))


def test_compiled_after_a_gate_has_gone(compiler: Callable[[Any], Any]) -> None:
    network = model()
    gated(network)
    assert equal(step(network, compiler(network)), UNGATED)


@pytest.mark.parametrize("called_before", [True, False])
@pytest.mark.parametrize("part", ["model", "block"])
def test_a_recording_of_what_was_compiled_is_whole_or_refused(
    compiler: Callable[[Any], Any], part: str, called_before: bool
) -> None:
    network = model()
    if part == "block":
        network[2].forward = compiler(network[2].forward)
    call: Any = compiler(network) if part == "model" else network
    if called_before:
        step(network, call)
    refusals = (*CLEAR.split("|"), "nothing was recorded")
    for look in (lambda: assert_recorded(network, call), lambda: assert_three(find_junctions(network, inputs()))):
        try:
            look()
        except (RuntimeError, ValueError) as refusal:
            outcome = str(refusal)
            assert any(word in outcome for word in refusals), outcome


def assert_three(junctions: list[Junction]) -> None:
    assert len(junctions) == 3


def tracked(network: nn.Module, loss: Callable[[Tensor], Tensor]) -> tuple[pd.DataFrame, list[nn.Parameter]]:
    """The tables of every second step, and the weights afterwards."""
    found, optimizer = dict[int, pd.DataFrame](), torch.optim.SGD(network.parameters(), lr=0.01)
    with track(network, every=2, to=found.__setitem__):
        for _ in range(5):
            optimizer.zero_grad()
            loss(inputs()).backward()
            optimizer.step()
    assert list(found) == [0, 2, 4]
    return pd.concat(found.values()), list(network.parameters())


@pytest.mark.parametrize("outer", ["model", "step"])
def test_a_compiled_training_is_tracked_as_it_was_written(compiler: Callable[[Any], Any], outer: str) -> None:
    """Recorded steps run uncompiled, the others compiled."""
    network, twin = model(), model()
    table, weights = tracked(twin, lambda x: twin(x).square().sum())
    if outer == "model":
        call: Any = compiler(network)
        compiled_table, compiled_weights = tracked(network, lambda x: call(x).square().sum())
    else:
        compiled_table, compiled_weights = tracked(network, compiler(lambda x: network(x).square().sum()))
    # Float64: the compiled steps in between sum in another order.
    pd.testing.assert_frame_equal(compiled_table, table, rtol=1e-10)
    assert all(torch.allclose(a, b, rtol=1e-10, atol=1e-14) for a, b in zip(compiled_weights, weights, strict=True))


def test_tracking_the_compiled_module_itself_is_refused(compiler: Callable[[Any], Any]) -> None:
    message = r"use the module as it was before torch\.compile"
    with pytest.raises(RuntimeError, match=message), track(compiler(model()), to=print):
        pytest.fail("it must not begin")
