"""Which forward and which backward a recording describes, and what it says where there was none."""

import threading
from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from probes import (
    Recording,
    gradient_norms,
    iterative_inference,
    path_contributions,
    path_gradients,
    record,
    residual_magnitudes,
    sample_paths,
)
from tests.support.networks import (
    FLOAT64,
    Apply,
    Residual,
    chain,
    linear,
    network,
    one,
    perceptron,
    recorded,
    scalars,
    squares,
    values,
)


def test_two_backwards_of_one_forward_leave_the_last() -> None:
    model = scalars(2.0, 3.0)
    with record(model) as recording:
        loss = model(one()).sum()
        loss.backward(retain_graph=True)
        (10 * loss).backward()
    assert gradient_norms(recording)["value"].tolist() == [120, 40, 80, 0, 40, 10, 30, 0]


def test_two_forwards_leave_the_last() -> None:
    model = scalars(2.0, 3.0)
    with record(model) as recording:
        model(7 * one()).sum().backward()
        (10 * model(one())).sum().backward()
    assert values(gradient_norms(recording), "total") == [120, 40]
    assert values(residual_magnitudes(recording), "shortcut") == [1, 3]


def test_a_backward_of_an_earlier_forward_is_not_the_last_forward_s() -> None:
    model = scalars(2.0, 3.0)
    with record(model) as recording:
        first, second = model(one()).sum(), model(one()).sum()
        second.backward()
        (1000 * first).backward()
    assert values(gradient_norms(recording), "total") == [12, 4]


def two_outputs() -> nn.Module:
    def forward(self: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.get_submodule("first")(x)
        return self.get_submodule("last")(self.get_submodule("between")(hidden)), hidden

    return Apply(forward, first=Residual(linear(2.0)), between=linear(1.0), last=Residual(linear(3.0)))


def test_a_backward_that_ends_early_leaves_nothing_of_the_one_before() -> None:
    model = two_outputs()
    with record(model) as recording:
        out, hidden = model(one())
        out.sum().backward(retain_graph=True)
        hidden.sum().backward(retain_graph=True)
    with pytest.warns(UserWarning, match="gradient_norms: no gradient reached 'last', of which there are no rows"):
        table = gradient_norms(recording)
    assert table["block"].unique().tolist() == ["first"]
    assert values(table, "total") == [3]
    pd.testing.assert_frame_equal(recording.tables()["gradient_norms"], table)
    assert path_gradients(recording).flatten().tolist() == [1, 2, 0]
    with pytest.raises(
        ValueError, match=r"no chain: no gradient reached 'last' .* take any graph\): let the loss depend"
    ):
        sample_paths(recording)


@pytest.mark.parametrize("per", [None, "example"])
def test_a_part_that_gets_no_gradient_is_missing_from_the_tables_and_named_once(per: Any) -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        x = self.get_submodule("body")(x)
        for index in range(10):
            self.get_submodule(f"head{index}")(x)
        return x

    heads = {f"head{index}": nn.Sequential(linear(1.0), Residual(linear(3.0))) for index in range(10)}
    recording = recorded(Apply(forward, body=Residual(linear(2.0)), **heads), one(), keep=True)
    for measure in (gradient_norms, iterative_inference):
        with pytest.warns(UserWarning, match="no gradient reached 'head0.1', .*, 'head7.1' and 2 more") as caught:
            table = measure(recording, per=per)
        assert len(caught) == 1
        assert caught[0].filename == __file__
        assert table["block"].unique().tolist() == ["body"]
    assert len(residual_magnitudes(recording)["block"].unique()) == 11


def test_a_pooler_that_nobody_uses() -> None:
    """Hugging Face's BERT computes it always; it has no junction, and nothing is missing."""
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    model = transformers.BertModel(transformers.BertConfig(**sizes, vocab_size=9))
    with record(model) as recording:
        model(torch.tensor([[1, 2, 3]])).last_hidden_state.square().sum().backward()
    assert model.pooler.dense.weight.grad is None
    table = gradient_norms(recording)
    assert set(table["block"]) == {site.name for site in recording.sites}
    assert len(recording.sites) == 2


def test_a_backward_that_enters_inside_a_branch_is_not_added_to_the_one_before() -> None:
    def forward(self: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.get_submodule("stem")(x)
        inside = self.get_submodule("f")(x)
        return x + self.get_submodule("g")(inside), inside

    model = Apply(forward, stem=linear(1.0), f=linear(2.0), g=linear(3.0))
    tables = []
    for first_backward in (False, True):
        with record(model) as recording:
            out, inside = model(one())
            if first_backward:
                out.sum().backward(retain_graph=True)
            inside.sum().backward()
        tables.append(gradient_norms(recording))
    pd.testing.assert_frame_equal(tables[0], tables[1])


@pytest.mark.parametrize("blocks", [True, False], ids=["blocks", "junctions"])
def test_a_recorded_gradient_is_not_the_tensor_that_the_user_may_change(blocks: bool) -> None:
    model, x = scalars(2.0, 3.0), one().requires_grad_()
    recording = recorded(model, x, blocks=list(model) if blocks else None)
    assert x.grad is not None
    x.grad.zero_()
    assert values(gradient_norms(recording), "total") == [12, 4]


def test_a_position_s_gradient_may_be_clipped_in_place() -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        return self.get_submodule("block")(self.get_submodule("stem")(x) + self.get_submodule("position").weight)

    model = Apply(forward, stem=linear(1.0), position=linear(1.0), block=Residual(linear(2.0)))
    with record(model) as recording:
        model(one()).sum().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
    assert values(gradient_norms(recording), "total") == [3]


def test_gradients_that_can_be_differentiated_again_are_recorded_as_plain_tensors() -> None:
    model = nn.Sequential(linear(1.0), Residual(perceptron(1)))
    with record(model, keep=True) as recording:
        torch.autograd.grad(model(one()).sum(), list(model.parameters()), create_graph=True)
    (site,) = recording.junctions
    assert not any(recording.gradient(site, name).requires_grad for name in ("total", "shortcut", "branch", "junction"))


def test_sites_of_a_model_inside_another_are_named_from_the_model_that_is_recorded() -> None:
    inner = chain(2)
    outer = nn.Sequential(nn.Linear(3, 3, dtype=FLOAT64), inner)
    with record(inner) as recording:
        outer(torch.randn(2, 3, dtype=FLOAT64)).sum().backward()
    assert [site.name for site in recording.sites] == ["0", "1"]


def test_two_recordings_may_be_nested() -> None:
    model = scalars(2.0, 3.0)
    with record(model) as outer, record(model) as inner:
        model(one()).sum().backward()
    assert values(gradient_norms(outer), "total") == values(gradient_norms(inner), "total") == [12, 4]


def test_a_forward_that_is_computed_again_in_the_backward_is_recorded_once() -> None:
    def checkpointed(self: nn.Module, x: Tensor) -> Tensor:
        for block in self.children():
            x = checkpoint(block, x, use_reentrant=False)  # pyright: ignore[reportAssignmentType]
        return x

    model, x = chain(2), torch.randn(2, 3, dtype=FLOAT64)
    tables = []
    for net in (model, Apply(checkpointed, **dict(model.named_children()))):
        tables.append(gradient_norms(recorded(net, x, squares)))
    pd.testing.assert_frame_equal(tables[0], tables[1])


def test_the_model_s_input_stays_without_a_gradient() -> None:
    recorded(scalars(2.0, 3.0), x := one())
    assert not x.requires_grad
    assert x.grad is None


class Pausing(torch.autograd.Function):
    """The identity, whose backward in another thread than the first waits until it may go on."""

    reached, resumed = threading.Event(), threading.Event()

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        if threading.current_thread() is not threading.main_thread():
            Pausing.reached.set()
            assert Pausing.resumed.wait(60)
        return gradients[0]


def test_a_probe_s_backward_in_one_thread_does_not_hide_a_training_step_in_another() -> None:
    model = nn.Sequential(Residual(Apply(lambda self, x: Pausing.apply(self.get_submodule("w")(x)), w=linear(2.0))))
    first = recorded(model, one())
    found: list[Tensor] = []
    thread = threading.Thread(target=lambda: found.append(path_gradients(first)))
    thread.start()
    assert Pausing.reached.wait(60)
    second = recorded(scalars(2.0, 3.0), one())
    Pausing.resumed.set()
    thread.join()
    assert values(gradient_norms(second), "total") == [12, 4]
    assert found[0].flatten().tolist() == [1, 2]


def test_a_whole_model_checkpointed_from_outside_is_recorded_each_time() -> None:
    model, x = network().eval(), torch.randn(4, 3)
    wanted = gradient_norms(recorded(model, x, squares))
    for _ in range(2):
        with record(model) as recording:
            outputs: Any = checkpoint(model, x, use_reentrant=False)
            outputs.square().sum().backward()
        assert gradient_norms(recording).equals(wanted)


PROBES = {
    probe.__name__: probe
    for probe in (gradient_norms, residual_magnitudes, path_gradients, path_contributions, sample_paths)
}
every_probe = pytest.mark.parametrize("probe", PROBES.values(), ids=PROBES)


@every_probe
@pytest.mark.parametrize("forward", ["none", "without gradients", "without junctions"])
def test_no_forward_that_could_be_recorded(probe: Callable[[Recording], object], forward: str) -> None:
    model = perceptron(1) if forward == "without junctions" else scalars(2.0, 3.0)
    with record(model) as recording, torch.set_grad_enabled(forward != "without gradients"):
        if forward != "none":
            model(one())
    with pytest.raises(ValueError, match=r"nothing was recorded: .* gradients enabled; .*record\(model, blocks="):
        probe(recording)


@every_probe
def test_no_backward_inside_the_context(probe: Callable[[Recording], object]) -> None:
    model = scalars(2.0, 3.0)
    with record(model) as recording:
        out = model(one())
    out.sum().backward()
    if probe is residual_magnitudes:
        assert values(residual_magnitudes(recording), "ratio") == [2, 3]
    else:
        with pytest.raises(ValueError, match=r"no gradient reached '[01]': .*backward"):
            probe(recording)


@every_probe
def test_blocks_named_by_hand(probe: Callable[[Recording], object]) -> None:
    model = perceptron(1)
    recording = recorded(model, one(), blocks=[model[0], model[2]])
    if probe is gradient_norms:
        assert len(gradient_norms(recording)) == 2
    else:
        with pytest.raises(
            ValueError, match=r"no residual junctions .*only gradient_norms and stream_statistics can be taken of it"
        ):
            probe(recording)


@pytest.mark.parametrize("first_out", [0, 1])
def test_contexts_that_are_left_in_any_order_leave_torch_as_it_was(first_out: int) -> None:
    before = torch._dynamo.eval_frame._stance
    contexts = [record(nn.Linear(1, 1)), record(nn.Linear(1, 1))]
    for context in contexts:
        context.__enter__()
    contexts[first_out].__exit__(None, None, None)
    assert torch._dynamo.eval_frame._stance.stance == "force_eager"
    contexts[1 - first_out].__exit__(None, None, None)
    assert torch._dynamo.eval_frame._stance == before
