"""Probes are guests: they change no number, and they leave nothing behind, also when something raises."""

import copy
import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from models import ARMS, Flow, cifar_resnet
from probes import (
    contributions,
    gate,
    gradient_norms,
    iterative_inference,
    lesion,
    limit_paths,
    path_gradients,
    record,
    residual_magnitudes,
    stream_statistics,
)
from tests.support.networks import Apply, Raising, RaisingBackward, Tag, images, left_as_it_was, network, visible


def ours(flow: Flow) -> nn.Module:
    return cifar_resnet(14, flow=flow, width=4, projection="B")


MODELS: dict[str, Callable[[], nn.Module]] = {
    "resnet18": lambda: torchvision.models.resnet18(weights=None, num_classes=10),
    "dropout": lambda: nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 3), network()),
    **{name: partial(ours, flow) for name, flow in ARMS.items()},
}


def step(model: nn.Module, x: Tensor) -> list[Tensor]:
    """All that a training step makes: outputs, gradients, buffers and random state."""
    torch.manual_seed(3)
    logits = model(x)
    F.cross_entropy(logits, torch.arange(len(x))).backward(retain_graph=True)
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return [logits, *gradients, *model.buffers(), torch.get_rng_state()]


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_recording_changes_no_output_gradient_buffer_or_random_state_by_a_bit(make: Callable[[], nn.Module]) -> None:
    model, x = make(), images(3, 32, dtype=torch.float32)
    twin, by_name, keeping = (copy.deepcopy(model) for _ in range(3))
    wanted = step(model, x)
    with record(twin) as recording:
        got = step(twin, x)
        for probe in (gradient_norms, residual_magnitudes, path_gradients):
            probe(recording)
    with record(by_name, blocks=list(by_name.children())):
        also = step(by_name, x)
    with record(keeping, keep=True) as recording:
        kept = step(keeping, x)
        for probe in (contributions, stream_statistics, iterative_inference):
            probe(recording)
    for made in (got, also, kept):
        assert len(made) == len(wanted)
        assert all(torch.equal(a, b) for a, b in zip(made, wanted, strict=True))


@contextmanager
def nested_gates(model: nn.Module) -> Iterator[None]:
    with gate(model, shortcut_gradient=0.0), gate(model, branch_gradient=0.0, where="1"):
        yield


CONTEXTS: dict[str, Callable[[Any], AbstractContextManager[object]]] = {
    "record": record,
    "record, blocks": lambda model: record(model, blocks=list(model)),
    "record, keep": lambda model: record(model, keep=True),
    "gates": nested_gates,
    "limit_paths": lambda model: limit_paths(model, at_most=1),
    "lesion": lambda model: lesion(model, skip=[model[2]]),
}
every_context = pytest.mark.parametrize("context", CONTEXTS.values(), ids=CONTEXTS)


@every_context
def test_nothing_stays_on_the_model(context: Callable[[Any], AbstractContextManager[object]]) -> None:
    model = network()
    handle = model[0].register_forward_hook(own := lambda *_: None)
    with left_as_it_was(model):
        with context(model):
            inside = visible(model)
            model(torch.randn(4, 3)).sum().backward()
        model.zero_grad()
        assert inside != visible(model), "the check must be able to fail"
    assert list(model[0]._forward_hooks.values()) == [own]
    handle.remove()


@every_context
@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt, GeneratorExit])
def test_nothing_stays_when_the_forward_raises_and_the_next_one_works(
    error: type[BaseException], context: Callable[[Any], AbstractContextManager[object]]
) -> None:
    model = network(raising := Raising(error))
    with left_as_it_was(model):
        with context(model):
            with pytest.raises(error):
                model(torch.randn(4, 3))
            raising.armed = False
            model(torch.randn(4, 3)).sum().backward()
        model.zero_grad()
        raising.armed = True
        with pytest.raises(error), context(model):
            model(torch.randn(4, 3))


@every_context
def test_nothing_stays_when_the_backward_raises(context: Callable[[Any], AbstractContextManager[object]]) -> None:
    model = network(Apply(lambda _, x: RaisingBackward.apply(x)))
    with left_as_it_was(model):
        with pytest.raises(ZeroDivisionError), context(model):
            model(torch.randn(4, 3)).sum().backward()
        model.zero_grad()


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_a_forward_that_was_cut_short_does_not_disturb_the_next_recording(error: type[BaseException]) -> None:
    model = network(raising := Raising(error))
    with record(model) as recording:
        with pytest.raises(error):
            model(torch.randn(4, 3))
        raising.armed = False
        model(torch.randn(4, 3)).sum().backward()
    assert [site.name for site in recording.sites] == ["0", "1", "2"]
    assert len(gradient_norms(recording)) == 12


@pytest.mark.parametrize("by_name", [False, True], ids=["junctions", "blocks"])
def test_every_hook_that_was_put_anywhere_is_taken_away(by_name: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model, removed, remove = network(), set(), RemovableHandle.remove

    def noted(handle: RemovableHandle) -> None:
        removed.add(handle.id)
        remove(handle)

    monkeypatch.setattr(RemovableHandle, "remove", noted)
    first = RemovableHandle.next_id
    with record(model, blocks=list(model) if by_name else None) as recording:
        for _ in range(2):
            model(torch.randn(4, 3)).sum().backward(retain_graph=True)
    for probe in [gradient_norms] if by_name else [gradient_norms, residual_magnitudes, path_gradients]:
        probe(recording)
    last = RemovableHandle.next_id
    assert last - first >= 2 * len(model), "at least one hook a block and forward"
    assert removed == set(range(first, last))


def test_the_node_s_hooks_leave_with_the_context() -> None:
    model = network()
    with record(model) as recording:
        loss = model(torch.randn(4, 3)).square().sum()
        loss.backward(retain_graph=True)
    before = gradient_norms(recording)
    (1000 * loss).backward(retain_graph=True)
    assert gradient_norms(recording).equals(before)


def test_the_user_s_own_hooks_survive_and_run() -> None:
    model, calls = network(), []
    model.register_forward_pre_hook(lambda *_: calls.append("pre"))
    model[1].register_forward_hook(lambda *_: calls.append("forward"))
    model[2].register_full_backward_hook(lambda *_: calls.append("backward"))
    with left_as_it_was(model):
        with record(model) as recording:
            model[0].register_forward_hook(own := lambda *_: calls.append("inside"))
            model(torch.randn(4, 3)).sum().backward()
        assert calls == ["pre", "inside", "forward", "backward"]
        assert len(recording.sites) == 3
        assert list(model[0]._forward_hooks.values()) == [own]
        model[0]._forward_hooks.clear()
        model.zero_grad()


@pytest.mark.parametrize("keep", [False, True], ids=["", "keep"])
@pytest.mark.parametrize("by_name", [False, True], ids=["junctions", "blocks"])
def test_memory_returns_without_the_garbage_collector(by_name: bool, keep: bool) -> None:
    model = network(tag := Tag())
    gc.disable()
    try:
        with record(model, blocks=list(model) if by_name else None, keep=keep) as recording:
            loss = model(torch.randn(4, 3)).sum()
            loss.backward(retain_graph=True)
        for probe in [gradient_norms] if by_name else [gradient_norms, residual_magnitudes, path_gradients]:
            probe(recording)
        if keep and not by_name:
            contributions(recording)
        kept = weakref.ref(recording.gradient(recording.sites[0], "total"))
        del loss
        assert by_name or tag.newest() is not None, "a recording keeps its graph"
        del recording
        assert tag.newest() is None
        assert kept() is None
    finally:
        gc.enable()


def test_a_graph_is_freed_after_each_step_of_a_training_loop() -> None:
    model = network(tag := Tag())
    gc.disable()
    try:
        with record(model) as recording:
            model(torch.randn(4, 3)).sum().backward()
            first = tag.newest
            model(torch.randn(4, 3)).sum().backward()
            assert first() is None
            assert tag.newest() is not None
        assert len(recording.sites) == 3
    finally:
        gc.enable()
