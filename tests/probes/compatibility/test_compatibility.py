"""What `gate` and `record` do under PyTorch's other machinery: the same as a model edited by hand, or a clear refusal.

In no case may a model run silently un-gated or unrecorded.
"""

import warnings
from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from probes import find_junctions, gate, gradient_norms, record
from tests.support.gated_by_hand import (
    BY_HAND,
    UNGATED,
    Gradients,
    assert_recorded,
    equal,
    gradients,
    inputs,
    model,
    not_silent,
    step,
    table_by_hand,
)
from tests.support.networks import left_as_it_was


def test_the_reference_tells_gated_from_not() -> None:
    assert not equal(BY_HAND, UNGATED, 1e-3)
    with gate(network := model(), shortcut_gradient=0.0):
        assert equal(step(network), BY_HAND)


# Autocast.


def test_bf16_autocast() -> None:
    """Every product in bfloat16: equal to the model edited by hand to the last bit."""

    def run(network: nn.Module) -> Gradients:
        with torch.autocast("cpu", torch.bfloat16):
            out = network(inputs().float())
        assert out.dtype == torch.bfloat16
        out.float().square().sum().backward()
        return gradients(network)

    wanted, ungated, network = run(model(0.0).float()), run(model().float()), model().float()
    with gate(network, shortcut_gradient=0.0):
        got = run(network)
    assert equal(got, wanted, 0.0)
    assert not equal(got, ungated, 0.1)
    with record(recorded := model().float()) as recording:
        assert equal(run(recorded), ungated, 0.0)
    assert len(gradient_norms(recording)) == 3 * 4
    with torch.autocast("cpu", torch.bfloat16):
        assert [j.shortcut for j in find_junctions(model().float(), inputs().float())] == [
            "identity", "projection", "identity",
        ]  # fmt: skip


# Activation checkpointing.


@pytest.mark.parametrize("where", [(0, 1, 2), (1,), (0, 2)])
def test_checkpointing_that_is_not_reentrant(where: tuple[int, ...]) -> None:
    network = model(reentrant=tuple(False if index in where else None for index in range(3)))
    with left_as_it_was(network):
        with gate(network, shortcut_gradient=0.0):
            assert equal(step(network), BY_HAND)
        with gate(network, shortcut_gradient=0.0):
            network.zero_grad()
            loss = network(inputs()).square().sum()
        loss.backward()  # the forward is computed again after the context
        assert equal(gradients(network), BY_HAND)
        network.zero_grad()
    assert_recorded(network)


@pytest.mark.parametrize("where", [(0, 1, 2), (0,), (1,), (2,)])
def test_reentrant_checkpointing_is_refused_also_of_a_part(where: tuple[int, ...]) -> None:
    network = model(reentrant=tuple(True if index in where else None for index in range(3)))
    message = r"reentrant activation checkpointing hides .* use_reentrant=False"
    with left_as_it_was(network):
        with gate(network, shortcut_gradient=0.0), pytest.raises(RuntimeError, match=message):
            network(inputs())
        with record(network), pytest.raises(RuntimeError, match=message):
            network(inputs())
        with pytest.raises(RuntimeError, match=message):
            find_junctions(network, inputs())


@pytest.mark.parametrize("reentrant", [False, True])
def test_the_whole_model_checkpointed_from_outside(reentrant: bool) -> None:
    def outside(x: Tensor) -> Any:
        return checkpoint(network, x.requires_grad_(), use_reentrant=reentrant)

    network = model()
    if reentrant:
        with gate(network, shortcut_gradient=0.0), pytest.raises(RuntimeError, match="reentrant activation checkpoint"):
            step(network, outside)
    else:
        with gate(network, shortcut_gradient=0.0):
            assert equal(step(network, outside), BY_HAND)
    not_silent(lambda: late(network, outside))
    not_silent(lambda: assert_recorded(network, outside) or BY_HAND)


def late(network: nn.Module, call: Callable[[Tensor], Any]) -> Gradients:
    """The backward after the context."""
    network.zero_grad()
    with gate(network, shortcut_gradient=0.0):
        loss = call(inputs()).square().sum()
    loss.backward()
    return gradients(network)


# Ways to call a model, and to differentiate it.


@pytest.mark.parametrize("given", ["parameters", "tensors"])
def test_functional_call(given: str) -> None:
    """The weights may be parameters or, as when they are an optimiser's or a hypernetwork's, other tensors."""
    network = model()
    as_leaf = nn.Parameter if given == "parameters" else Tensor.requires_grad_
    elsewhere = {name: as_leaf(p.detach().clone()) for name, p in network.named_parameters()}
    with torch.no_grad():
        for p in network.parameters():
            p.zero_()

    def run() -> Gradients:
        for p in elsewhere.values():
            p.grad = None
        functional_call(network, elsewhere, (inputs(),)).square().sum().backward()
        return {name: p.grad for name, p in elsewhere.items() if p.grad is not None}

    with gate(network, shortcut_gradient=0.0):
        assert equal(run(), BY_HAND)
    with record(network) as recording:
        assert equal(run(), UNGATED)
    pd.testing.assert_frame_equal(gradient_norms(recording), table_by_hand())


def test_gradients_are_accumulated() -> None:
    """Three micro-batches, their weights changing in between: the sum of what each gives by itself."""
    network, weights = model(), {"2": 0.0}
    wanted = [step(twin) for twin in (model(), model(0.0), model(0.5))]
    with gate(network, shortcut_gradient=lambda _: weights["2"]):
        for weights["2"] in (1.0, 0.0, 0.5):
            network(inputs()).square().sum().backward()
    total = {name: sum((each[name] for each in wanted), torch.zeros(())) for name in BY_HAND}
    assert equal(gradients(network), total)


def penalty(network: nn.Module) -> Gradients:
    """The gradient is itself differentiated, as a gradient penalty does."""
    network.zero_grad()
    loss = network(inputs()).square().sum()
    first = torch.autograd.grad(loss, list(network.parameters()), create_graph=True)
    sum((g.square().sum() for g in first), torch.zeros(())).backward()
    return gradients(network)


@pytest.mark.parametrize("weight", [0.0, 0.3])
@pytest.mark.parametrize("project", [False, True], ids=["identity", "projection"])
def test_double_backward(project: bool, weight: float) -> None:
    def build(shortcut_gradient: float) -> nn.Sequential:
        return model(shortcut_gradient) if project else nn.Sequential(*(model(shortcut_gradient)[i] for i in (0, 1, 3)))

    network, wanted = build(1.0), penalty(build(weight))
    assert not equal(wanted, penalty(build(1.0)), 1e-3)
    try:
        with gate(network, shortcut_gradient=weight):
            got = penalty(network)
    except RuntimeError as error:
        refusal = str(error)
        assert "create_graph" in refusal
    else:
        assert equal(got, wanted, 1e-12), "silently wrong"


def test_double_backward_under_record() -> None:
    with record(network := model()) as recording:
        assert equal(penalty(network), penalty(model()), 1e-12)
        step(network)
    pd.testing.assert_frame_equal(gradient_norms(recording), table_by_hand())


def test_a_module_that_is_called_again() -> None:
    """The gate acts at each call, and `where` tells them apart."""

    def again(weights: tuple[float, float]) -> nn.Module:
        network = model()
        calls = iter(weights * 100)

        def next_weight(block: Any, _: object) -> None:
            block.shortcut_gradient = next(calls)

        network.append(network[1])
        network[1].register_forward_pre_hook(next_weight)
        return network

    both, second = step(again((0.0, 0.0))), step(again((1.0, 0.0)))
    with gate(network := again((1.0, 1.0)), shortcut_gradient=0.0, where="1*"):
        assert equal(step(network), both)
    with gate(network, shortcut_gradient=0.0, where="1@1"):
        assert equal(step(network), second)
    with record(network) as recording:
        step(network)
    assert [site.name for site in recording.sites] == ["1", "2", "3", "1@1"]


def test_eval_mode_and_forwards_without_gradients() -> None:
    network = model().eval()
    with left_as_it_was(network), gate(network, shortcut_gradient=0.0):
        wanted = network(inputs()).detach()
        for context in (torch.no_grad, torch.inference_mode):
            with context():
                assert torch.equal(network(inputs()), wanted)
        assert equal(step(network), BY_HAND)
        network.zero_grad()
    with record(network) as recording, torch.no_grad():
        network(inputs())
    with pytest.raises(ValueError, match=r"nothing was recorded: .* with gradients enabled"):
        gradient_norms(recording)
    assert_recorded(network)


@pytest.mark.parametrize("kind", ["parts", "forward"])
def test_what_bypasses_the_model_s_own_call_is_not_silent(kind: str) -> None:
    """`model.forward(x)`, or its parts one by one: the hooks that tell the model is running do not run."""
    network = model()

    def parts(x: Tensor) -> Tensor:
        for module in network:
            x = module(x)
        return x

    def run() -> Gradients:
        with gate(network, shortcut_gradient=0.0):
            return step(network, parts if kind == "parts" else network.forward)

    assert "call the model" in (outcome := not_silent(run)) or outcome == "works"


# Transforms of functions.


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:FutureWarning")  # by torch's own forward mode
@pytest.mark.parametrize("transform", ["grad", "vmap", "vjp", "jvp"])
def test_torch_func_works_or_is_refused_in_words(transform: str) -> None:
    network = model()
    parameters = {name: p.detach() for name, p in network.named_parameters()}

    def loss(parameters: Gradients, x: Tensor) -> Tensor:
        return functional_call(network, parameters, (x,)).square().sum()

    def run() -> Gradients:
        with gate(network, shortcut_gradient=0.0):
            if transform == "grad":
                return torch.func.grad(loss)(parameters, inputs())  # pyright: ignore[reportReturnType]
            if transform == "vmap":
                each: Any = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, inputs())
                return {name: gradient.sum(0) for name, gradient in each.items()}
            if transform == "vjp":
                out, back = torch.func.vjp(lambda p: loss(p, inputs()), parameters)[:2]
                return back(torch.ones_like(out))[0]
            torch.func.jvp(network, (inputs(),), (inputs(),))
            return BY_HAND

    with left_as_it_was(network):
        outcome = not_silent(run)
        assert outcome == "works" or "torch.func" in outcome or "functorch" in outcome


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:FutureWarning")  # by torch's own forward mode
@pytest.mark.parametrize("context", [gate, record])
def test_forward_mode_derivatives_are_left_as_they_are(context: Callable[[nn.Module], Any]) -> None:
    network, x = model(), inputs()

    def tangent() -> Tensor | None:
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(x, x.cos())
            return torch.autograd.forward_ad.unpack_dual(network(dual)).tangent

    wanted = tangent()
    assert wanted is not None
    with context(network):
        got = tangent()
    assert got is not None
    assert torch.equal(got, wanted)


# Refused.


@pytest.mark.parametrize("strict", [False, True])
def test_export_inside_is_refused(strict: bool) -> None:
    network = model()
    # strict: its compiler's error, with ours inside; torch 2.7 has an assertion of its own
    message = "exception|Unexpectedly found" if strict else "hides the model's adds"
    for context in (gate(network), record(network)):
        with left_as_it_was(network), context, pytest.raises((RuntimeError, AssertionError), match=message):
            torch.export.export(network, (inputs(),), strict=strict)


def test_tracing_inside_is_refused() -> None:
    network = model()
    for context in (gate(network), record(network)):
        with left_as_it_was(network), context, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.jit is deprecated
            with pytest.raises(RuntimeError, match=r"torch\.jit hides the model's adds"):
                torch.jit.trace(network, (inputs(),))


@pytest.mark.parametrize("part", [False, True], ids=["whole", "part"])
def test_a_traced_model_is_refused(part: bool) -> None:
    network: Any = model()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated
        if part:
            network[2] = torch.jit.trace(network[2], (inputs(),))
        else:
            network = torch.jit.trace(network, (inputs(),))
    for context in (gate, record):
        with pytest.raises(RuntimeError, match=r"torch\.jit hides the model's adds"), context(network):
            pytest.fail("it must not begin")


def test_data_parallel_is_refused() -> None:
    network = model()
    for whole in (nn.DataParallel(network), nn.Sequential(nn.DataParallel(network))):
        for context in (gate, record):
            with pytest.raises(RuntimeError, match=r"DataParallel hides .* its \.module"), context(whole):
                pytest.fail("it must not begin")


def test_a_replica_inside_is_refused() -> None:
    """What DataParallel makes of its module, and runs in a thread of its own."""
    network: Any = model()
    for context in (gate(network, shortcut_gradient=0.0), record(network)):
        with left_as_it_was(network), context:
            replica = network._replicate_for_data_parallel()
            with pytest.raises(RuntimeError, match="DataParallel hides the model's adds"):
                replica(inputs())
