"""Today's residual streams: their junctions, their addends, and `gate` equal to copies that were edited by hand."""

import copy
from collections.abc import Sequence
from functools import partial
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from models import GRADIENT_ONLY, PLAIN, SHORTEST_PATH, STOP_GRADIENT, Flow
from probes import (
    Junction,
    Recording,
    find_junctions,
    gate,
    gradient_norms,
    lesion,
    limit_paths,
    path_gradients,
    record,
    residual_magnitudes,
)
from tests.support.networks import left_as_it_was, relative_error
from tests.support.streams import TABLE, Arm, Stream, StreamModel, tokens, unit

FLOWS = [
    STOP_GRADIENT, SHORTEST_PATH, PLAIN, Flow(branch=0.0), Flow(0.5, 2.0), Flow(0.5, 2.0, 1.0, 0.0), GRADIENT_ONLY,
]  # fmt: skip
REFUSED_PARTS = {
    (False, False): "works",
    (False, True): "works; gradient-only is refused",
    (True, False): "works; forward weights are refused",
}
every_stream = pytest.mark.parametrize("stream", TABLE.values(), ids=TABLE)


def step(model: nn.Module) -> tuple[Tensor, dict[str, Tensor | None]]:
    model.zero_grad()
    out = model(tokens())
    (out * torch.randn(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(1))).sum().backward()
    return out.detach(), {name: p.grad for name, p in model.named_parameters()}


def assert_equal(got: dict[str, Tensor | None], wanted: dict[str, Tensor | None]) -> None:
    """To 1e-12 of itself or 1e-14 of the largest: sums of a fork's gradients in another order, weights in another."""
    largest = max(g.norm().item() for g in wanted.values() if g is not None)
    for name, reference in wanted.items():
        gradient = got[name]
        assert (gradient is None) == (reference is None), name
        if gradient is not None and reference is not None:
            assert (gradient - reference).norm() <= 1e-12 * reference.norm() + 1e-14 * largest, name


@every_stream
def test_the_junctions_of_a_stream(stream: Stream) -> None:
    model = StreamModel(stream.body)
    for training in (True, False):
        with left_as_it_was(model.train(training)):
            assert tuple(junction.shortcut for junction in find_junctions(model, tokens())) == stream.kinds
    model.requires_grad_(False)
    assert tuple(junction.shortcut for junction in find_junctions(model, tokens())) == stream.kinds


@every_stream
def test_the_addends_and_gradients_of_a_stream(stream: Stream) -> None:
    model = StreamModel(stream.body)
    wanted = step(copy.deepcopy(model))
    with record(model, keep=True) as recording:
        out, gradients = step(model)
    assert torch.equal(out, wanted[0]), "recording changes nothing"
    for name, gradient in gradients.items():
        assert (gradient is None) == (wanted[1][name] is None)
        assert gradient is None or torch.equal(gradient, wanted[1][name]), name  # pyright: ignore[reportArgumentType]
    assert tuple(site.match.kind for site in recording.junctions) == stream.kinds
    for site in recording.junctions:  # lerp and the rest sum in another order than their addends: a few roundings
        torch.testing.assert_close(site.shortcut + site.branch, site.sum, rtol=1e-13, atol=1e-14)
    if stream.gated is None and model.arm.seen:
        assert len(model.arm.seen) == len(stream.kinds)
        for site, (shortcut, branch) in zip(recording.junctions, model.arm.seen, strict=True):
            torch.testing.assert_close(site.shortcut, shortcut, rtol=1e-13, atol=1e-14)
            torch.testing.assert_close(site.branch, branch, rtol=1e-13, atol=1e-14)
    table = gradient_norms(recording)
    assert (table.loc[table["quantity"] == "total", "value"] > 0).all()
    assert (table.loc[table["quantity"] == "branch", "value"] > 0).all()
    assert len(residual_magnitudes(recording)) == 4 * len(stream.kinds)


@pytest.mark.parametrize("flow", FLOWS, ids=str)
@every_stream
def test_a_gated_stream_is_the_one_edited_by_hand(stream: Stream, flow: Flow) -> None:
    model = StreamModel(stream.body)
    twin = copy.deepcopy(model)
    twin.arm = Arm(flow)
    weights: dict[str, Any] = {"shortcut": flow.shortcut, "branch": flow.branch}
    if flow != flow.exact:
        weights |= {"shortcut_gradient": flow.shortcut_gradient, "branch_gradient": flow.branch_gradient}

    def gated(junction: Junction) -> bool:
        return stream.gated is None or junction.depth in stream.gated

    _, untouched = step(copy.deepcopy(model))
    if stream.backwards and (flow.shortcut, flow.branch) != (1, 1):
        with (
            gate(model, **weights),
            pytest.raises(ValueError, match=r"computes x - a \(x - f\(x\)\), whose difference"),
        ):
            step(model)
        return
    if flow == GRADIENT_ONLY and stream.shares_gate:
        with gate(model, **weights, where=gated), pytest.raises(ValueError, match="a gate computed from the fork"):
            step(model)
        return
    with gate(model, **weights, where=gated):
        out, got = step(model)
    wanted_out, wanted = step(twin)
    if flow == GRADIENT_ONLY and stream.learns:  # those of the shortcut must get nothing, at forward weight 0
        if (mix := got["mix"]) is not None:
            assert not mix.any()
        got = {name: gradient for name, gradient in got.items() if name not in ("scale", "gamma", "mix")}
        wanted, untouched = [{name: gradients[name] for name in got} for gradients in (wanted, untouched)]
    assert (out - wanted_out).norm() <= 1e-13 * wanted_out.norm()
    assert_equal(got, wanted)
    with pytest.raises(AssertionError):
        assert_equal(got, untouched)
    with torch.no_grad(), gate(model, **weights, where=gated):
        assert (model(tokens()) - wanted_out).norm() <= 1e-13 * wanted_out.norm()


@every_stream
def test_a_stream_under_activation_checkpointing(stream: Stream) -> None:
    """What is computed again in the backward is computed without us, and must save as many tensors."""
    model = StreamModel(stream.body)
    tables: list[pd.DataFrame] = []
    gradients: list[dict[str, Tensor | None]] = []
    for model.checkpointed in (False, True):
        with record(model, keep=True) as recording, gate(model, shortcut_gradient=0.5):
            gradients.append(step(model)[1])
        tables.append(gradient_norms(recording))
    assert_equal(*gradients)
    pd.testing.assert_frame_equal(tables[0], tables[1], rtol=1e-12, atol=1e-13)
    if not stream.backwards:
        with gate(model, branch=0.5), pytest.raises(RuntimeError, match="is under activation checkpointing"):
            step(model)
    with gate(model, branch=lambda junction: 1.0):
        assert_equal(step(model)[1], step(StreamModel(stream.body))[1])


@every_stream
def test_a_record_inside_and_outside_of_a_gate_sees_what_is_added_or_says_that_it_cannot(stream: Stream) -> None:
    if stream.backwards:
        return
    model = StreamModel(stream.body)
    with gate(model, shortcut=0.5, branch=2.0):
        wanted = model(tokens()).detach()
    with record(model, keep=True) as recording, gate(model, shortcut=0.5, branch=2.0):
        assert torch.equal(model(tokens()), wanted)
    assert len(recording.junctions) == len(stream.kinds)
    assert_sums(recording)
    with gate(model, shortcut=0.5, branch=2.0), record(model, keep=True) as recording:
        try:
            out = model(tokens())
        except RuntimeError as error:
            refused = str(error)
        else:
            assert torch.equal(out, wanted)
            assert_sums(recording)
            return
    assert "enter that gate last, inside of the other contexts" in refused


def assert_sums(recording: Recording) -> None:
    for site in recording.junctions:
        torch.testing.assert_close(site.shortcut + site.branch, site.sum, rtol=1e-13, atol=1e-14)


@every_stream
def test_a_lesion_of_every_branch_is_a_gate_of_value_0(stream: Stream) -> None:
    model = StreamModel(stream.body)
    junctions = [j for j in find_junctions(model, tokens()) if stream.gated is None or j.depth in stream.gated]
    with torch.no_grad():
        with lesion(model, delete=junctions):
            lesioned = model(tokens())
        if stream.interpolates:  # what is left is what went in
            x = model.tokens(tokens())
            wanted = model.head(x if stream.backwards else unit(x))
        else:
            with gate(model, branch=0.0, where=lambda junction: junction in junctions):
                wanted = model(tokens())
    torch.testing.assert_close(lesioned, wanted, rtol=1e-13, atol=1e-14)


def refused(error: ValueError) -> str:
    reasons = ("the junctions are no chain", "does not pass the last junction", "no way back")
    return "refused" if any(reason in str(error) for reason in reasons) else str(error)


def double(index: int, passed: Sequence[Tensor | None], _: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
    """A hook on a node, which doubles what it passes to one of its inputs."""
    return tuple(2 * g if i == index and g is not None else g for i, g in enumerate(passed))


def path_lengths(stream: Stream) -> str:
    """Whether the gradients of all lengths sum to autograd's at the first fork, also where each branch weighs 2: there
    a path of k branches has 2 ** k times its gradient."""
    model = StreamModel(stream.body)
    with record(model, keep=True) as recording:
        loss = model(tokens()).square().sum()
        loss.backward(retain_graph=True)
    lengths = path_gradients(recording)
    assert relative_error(lengths.sum(0), recording.gradient(recording.first, "total")) < 1e-12
    if stream.shares_gate:  # whose gradient is the shortcut's, as gate weighs it
        with gate(model, branch_gradient=2.0), record(model, keep=True) as doubled:
            model(tokens()).square().sum().backward()
        wanted = doubled.gradient(doubled.first, "total")
    else:  # at the sums: a branch may also lead to other tensors than its fork, which gate does not weigh
        for node, index in (entry for site in recording.junctions for entry in site.match.branches):
            node.register_hook(partial(double, index))
        (wanted,) = torch.autograd.grad(loss, [GradientEdge(*recording.first.match.fork)])
    by_weight = torch.stack([2**k * term for k, term in enumerate(lengths)]).sum(0)
    assert relative_error(by_weight, wanted) < 1e-12
    return "works"


def path_limits(model: nn.Module, depth: int) -> str:
    """Whether limiting to all lengths is ordinary backpropagation, or is refused."""
    _, wanted = step(copy.deepcopy(model))
    try:
        with limit_paths(model, at_most=depth):
            _, got = step(model)
        with limit_paths(model, at_most=0):
            _, short = step(model)
    except ValueError as error:
        return refused(error)
    assert_equal(got, wanted)
    with pytest.raises(AssertionError):
        assert_equal(short, wanted)
    return "works"


def test_the_table_of_streams_says_what_works() -> None:
    """docs/tables/streams.csv; what works for gate and record is what is tested above."""
    table = pd.read_csv("docs/tables/streams.csv").set_index("stream")
    found = {
        name: {
            "junctions": " ".join(sorted(set(stream.kinds))),
            "gate": REFUSED_PARTS[stream.backwards, stream.shares_gate],
            "record": "works",
            "path lengths": path_lengths(stream),
            "path limits": path_limits(StreamModel(stream.body), len(stream.kinds)),
        }
        for name, stream in TABLE.items()
    }
    pd.testing.assert_frame_equal(table, pd.DataFrame.from_dict(found, orient="index"), check_names=False)
