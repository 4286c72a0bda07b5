"""Which steps `track` records, of what, and that it leaves nothing behind."""

import copy
import gc
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer, optimizer  # pyright: ignore[reportAttributeAccessIssue]

from models import cifar_resnet
from probes import (
    Junction,
    Recording,
    gradient_norms,
    path_contributions,
    record,
    residual_magnitudes,
    stream_statistics,
    track,
)
from tests.support.networks import (
    FLOAT64,
    Apply,
    Raising,
    RaisingBackward,
    Residual,
    Tag,
    chain,
    images,
    left_as_it_was,
    network,
    one,
    perceptron,
    scalars,
    squares,
)

Table = pd.DataFrame


class Kept(dict[int, Table]):
    """A place for tables: by step."""

    def __call__(self, step: int, table: Table) -> None:
        assert step not in self
        self[step] = table


def batch(count: int = 8) -> Tensor:
    return torch.randn(count, 3, dtype=FLOAT64)


def train(model: nn.Module, opt: Optimizer, batches: Iterator[Tensor] | list[Tensor]) -> None:
    for x in batches:
        opt.zero_grad()
        squares(model(x)).backward()
        opt.step()


def by_hand(model: nn.Module, x: Tensor, loss: Callable[[Any], Tensor] = squares) -> Table:
    """Norms and magnitudes of a copy of the model, through `record`."""
    with record(twin := copy.deepcopy(model)) as recording:
        loss(twin(x)).backward()
    named = {"gradient_norms": gradient_norms(recording), "residual_magnitudes": residual_magnitudes(recording)}
    return pd.concat([table.assign(probe=name) for name, table in named.items()], ignore_index=True)


def assert_equal(found: Table, wanted: Table, **tolerances: Any) -> None:
    columns = ["probe", "block", "depth", "quantity", "value"]
    tolerances = tolerances or {"check_exact": True}
    pd.testing.assert_frame_equal(found[columns], wanted[columns], **tolerances)


def step(model: nn.Module, parts: Iterable[Tensor], *, retain_graph: bool = False, **options: Any) -> Table:
    """The table of one step, of micro-batches."""
    found = Kept()
    with track(model, every=1, **{"to": found, **options}):
        for part in parts:
            squares(model(part)).backward(retain_graph=retain_graph)
        SGD(model.parameters(), lr=0.0).step()
    return found[0]


@contextmanager
def nothing_stays(model: nn.Module) -> Iterator[None]:
    hooks = [optimizer._global_optimizer_pre_hooks, optimizer._global_optimizer_post_hooks]
    before, stance = [list(of_kind) for of_kind in hooks], torch._dynamo.eval_frame._stance
    with left_as_it_was(model):
        yield
        for parameter in model.parameters():
            parameter.grad = None
    assert [list(of_kind) for of_kind in hooks] == before
    assert torch._dynamo.eval_frame._stance == stance


# Which steps


def test_every_third_step_is_what_record_says_of_it() -> None:
    """To the last bit, from the weights at that step; the training itself goes on as without."""
    model, batches, found = chain(3), [batch() for _ in range(7)], Kept()
    twin = copy.deepcopy(model)
    wanted, opt = {}, SGD(twin.parameters(), lr=0.05, momentum=0.9)
    for step, x in enumerate(batches):
        wanted[step] = by_hand(twin, x)
        train(twin, opt, [x])
    with nothing_stays(model), track(model, every=3, to=found):
        train(model, SGD(model.parameters(), lr=0.05, momentum=0.9), batches)
    assert list(found) == [0, 3, 6]
    for step, table in found.items():
        assert list(table) == ["step", "probe", "block", "depth", "quantity", "value"]
        assert set(table["step"]) == {step}
        assert_equal(table, wanted[step])
    assert not wanted[0].equals(wanted[3])
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


def test_hooks_are_on_the_model_in_recorded_steps_alone() -> None:
    model, seen = chain(1), []
    opt = SGD(model.parameters(), lr=0.0)
    with track(model, every=2, to=Kept()):
        for _ in range(4):
            seen.append(len(model._forward_pre_hooks))
            train(model, opt, [batch()])
    assert seen == [1, 0, 1, 0]


@pytest.mark.parametrize(("start", "steps"), [(0, [0, 4, 8]), (4, [4, 8, 12]), (5, [8, 12]), (7, [8, 12])])
def test_a_resumed_training_counts_on(start: int, steps: list[int]) -> None:
    model, found = scalars(2.0), Kept()
    with track(model, every=4, start=start, to=found):
        train(model, SGD(model.parameters(), lr=0.0), [one()] * 9)
    assert list(found) == steps


class Nested(SGD):
    """Its step calls that of its base, twice, and torch puts its hooks around all three."""

    def step(self, closure: Any = None) -> Any:
        super().step(closure)
        return super().step(closure)


def test_a_step_inside_a_step_counts_once() -> None:
    model, found = scalars(2.0), Kept()
    SGD(model.parameters(), lr=0.0)  # from now on torch's hooks are around SGD.step, too
    with track(model, every=1, to=found):
        train(model, Nested(model.parameters(), lr=0.0), [one()] * 3)
    assert list(found) == [0, 1, 2]


def test_other_models_optimizers_do_not_count_and_of_two_of_this_model_one_does() -> None:
    model, other, found = scalars(2.0, 3.0), scalars(2.0), Kept()
    opts = [SGD(part.parameters(), lr=0.0) for part in (other, model[0], model[1])]
    with track(model, every=1, to=found):
        for _ in range(3):
            squares(model(one())).backward()
            squares(other(one())).backward()
            for opt in opts:
                opt.step()
    assert list(found) == [0, 1, 2]


def test_a_second_optimizer_takes_over_where_the_first_has_ended() -> None:
    model, found = scalars(2.0), Kept()
    first, second = (SGD(model.parameters(), lr=0.0) for _ in range(2))
    with track(model, every=1, to=found):
        for opt in (first, second):
            train(model, opt, [one()] * 3)
    assert list(found) == [0, 1, 2, 3, 4]  # its first step may have belonged to the first's


def test_a_closure_is_recorded_once_as_it_is_first_evaluated() -> None:
    """As in Lightning's automatic optimisation, and in LBFGS, which evaluates it several times."""
    for make in (partial(SGD, lr=0.1), partial(torch.optim.LBFGS, max_iter=4)):
        model, x, found, evaluations = chain(2), batch(), Kept(), []
        wanted = by_hand(model, x)
        opt: Any = make(model.parameters())

        def closure(model: nn.Module = model, opt: Any = opt, x: Tensor = x, seen: list[int] = evaluations) -> Tensor:
            opt.zero_grad()
            loss = squares(model(x))
            loss.backward()
            seen.append(1)
            return loss

        with nothing_stays(model), track(model, every=2, to=found):
            opt.step(closure)
            opt.step(closure=closure)
            opt.step(closure=closure)
        assert list(found) == [0, 2]
        assert len(evaluations) >= 3
        assert_equal(found[0], wanted)


# Of what: all that one step takes its gradient from


@pytest.mark.parametrize("sizes", [[2, 2, 2, 2], [5, 1, 2], [8]])
def test_micro_batches_give_the_tables_of_the_whole_batch(sizes: list[int]) -> None:
    model, x = chain(4), batch(8)
    found = step(model, x.split(sizes))
    assert_equal(found, by_hand(model, x), rtol=1e-12, atol=1e-14)  # float64, summed in another order


def parity(junction: Junction) -> str:
    return "odd ones" if junction.depth % 2 else "even"


@pytest.mark.parametrize("by", [None, parity, "block"], ids=["lengths", "kinds", "blocks"])
def test_path_contributions_of_micro_batches_are_those_of_the_whole_batch(by: Any) -> None:
    model, x, found = chain(4), batch(8), Kept()
    with record(twin := copy.deepcopy(model)) as recording:
        squares(twin(x)).backward(retain_graph=True)
        wanted = path_contributions(recording, by=by)
    measure = [gradient_norms, partial(path_contributions, by=by)]
    with track(model, every=1, to=found, measure=measure):
        for parts in ([8], [2, 2, 2, 2], [1, 7]):
            for part in x.split(parts):
                squares(model(part)).backward(retain_graph=True)
            SGD(model.parameters(), lr=0.0).step()
    for table in found.values():
        paths = table.query("probe == 'path_contributions'").reset_index(drop=True)
        same = [column for column in table if column in wanted]
        assert same == list(wanted)
        pd.testing.assert_frame_equal(paths[same], wanted, check_dtype=False, rtol=1e-11, atol=1e-14)
        assert all(map(pd.api.types.is_integer_dtype, paths[same].drop(columns=["block"], errors="ignore").dtypes[:-2]))


def test_forwards_of_one_step_with_other_path_lengths_have_no_sum() -> None:
    blocks = {name: Residual(perceptron(3)) for name in "ab"}
    model = Apply(lambda self, x: self.get_submodule("b")(self.get_submodule("a")(x) if len(x) > 1 else x), **blocks)
    with pytest.raises(ValueError, match="forwards of one step have different path lengths"):
        step(model, [batch(1), batch(2)], measure=path_contributions, retain_graph=True)


def test_path_lengths_without_a_gradient_have_no_share() -> None:
    model, found = scalars(2.0), Kept()
    with track(model, every=1, to=found, measure=partial(path_contributions, max_length=1)):
        for scale in (0.0, 0.0):
            squares(scale * model(one())).backward(retain_graph=True)
        opt = SGD(model.parameters(), lr=0.0)
        opt.step()
        for scale in (0.0, 1.0):
            squares(scale * model(one())).backward(retain_graph=True)
        opt.step()
    shares = [table.query("quantity == 'share'")["value"].tolist() for table in found.values()]
    assert all(math.isnan(value) for value in shares[0])
    assert shares[1] == pytest.approx([1 / 3, 2 / 3], rel=1e-15)
    assert found[0].query("quantity == 'norm'")["value"].tolist() == [0, 0]


def test_two_forwards_of_one_loss_are_one_batch() -> None:
    model, x, found = chain(3), batch(8), Kept()
    with track(model, every=1, to=found):
        first, second = (model(part) for part in x.split(4))
        (squares(first) + squares(second)).backward()
        SGD(model.parameters(), lr=0.0).step()
    assert_equal(found[0], by_hand(model, x), rtol=1e-12, atol=1e-14)


def test_evaluations_inside_a_step_do_not_count() -> None:
    model, x, found = chain(3), batch(8), Kept()
    opt = SGD(model.parameters(), lr=0.0)
    with track(model, every=1, to=found):
        for part in x.split(4):
            model.eval()
            model(batch())
            with torch.no_grad():
                model(batch())
            model.train()
            out = model(part)
            with torch.inference_mode():
                model(batch())
            squares(out).backward()
            model(batch())
        opt.step()
    assert_equal(found[0], by_hand(model, x), rtol=1e-12, atol=1e-14)


def test_an_evaluation_with_gradients_holds_one_graph_at_a_time() -> None:
    model = network(tag := Tag())
    gc.disable()
    try:
        with track(model, every=1, to=Kept()):
            model.eval()
            model(torch.randn(4, 3))
            first = tag.newest
            model(torch.randn(4, 3))
            assert first() is None
            train(model.train(), SGD(model.parameters(), lr=0.0), [torch.randn(4, 3)])
            model(torch.randn(4, 3))
        assert tag.newest() is None
    finally:
        gc.enable()


def test_memory_returns_after_each_recorded_step() -> None:
    model = network(tag := Tag())
    opt = SGD(model.parameters(), lr=0.0)
    gc.disable()
    try:
        with track(model, every=1, to=Kept()):
            for _ in range(2):
                train(model, opt, [torch.randn(4, 3)])
                assert tag.newest() is None
    finally:
        gc.enable()


def test_blocks_dropped_at_random_and_gradients_that_do_not_come() -> None:
    """Layers are skipped in one of the micro-batches; of a part that no gradient reaches there is no number."""
    blocks, found = {name: Residual(perceptron(3)) for name in "abc"}, Kept()
    ran: list[str] = []

    def forward(self: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = [x := self.get_submodule(name)(x) for name in ran]
        return hidden[-1], hidden[0]

    model = Apply(forward, **blocks)
    opt = SGD(model.parameters(), lr=0.0)
    with track(model, every=1, to=found):
        for ran[:] in (["a", "c"], ["a", "b", "c"]):
            squares(model(batch())[0]).backward()
        opt.step()
        squares(model(batch())[1]).backward()
        opt.step()
    assert found[0]["block"].unique().tolist() == ["a", "b", "c"]
    assert found[0].query("probe == 'gradient_norms'")["value"].notna().all()
    reached = found[1].query("probe == 'gradient_norms'").groupby("block")["value"].apply(lambda v: v.notna().all())
    assert reached.to_dict() == {"a": True, "b": True, "c": False}  # the loss is of b's fork


def test_blocks_named_by_hand() -> None:
    model, x, found = perceptron(3), batch(6), Kept()
    blocks = [model[0], model[2]]
    with record(twin := copy.deepcopy(model), blocks=[twin[0], twin[2]]) as recording:
        squares(twin(x)).backward()
    with nothing_stays(model), track(model, every=1, to=found, measure=gradient_norms, blocks=blocks):
        for part in x.split(2):
            squares(model(part)).backward()
            copy.deepcopy(model)(part)
            with torch.no_grad():
                model(part)
        SGD(model.parameters(), lr=0.0).step()
    wanted = gradient_norms(recording)
    pd.testing.assert_frame_equal(found[0][list(wanted)], wanted, rtol=1e-12)


def test_a_copy_made_inside_a_recorded_step_is_not_recorded() -> None:
    model, x, found = chain(2), batch(), Kept()
    with track(model, every=1, to=found):
        average = copy.deepcopy(model)
        squares(model(x)).backward()
        squares(average(batch())).backward()
        SGD(model.parameters(), lr=0.0).step()
    assert_equal(found[0], by_hand(model, x))


def test_clipping_comes_after() -> None:
    model, x, found = chain(2), batch(), Kept()
    with track(model, every=1, to=found):
        squares(model(x)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
        SGD(model.parameters(), lr=0.0).step()
    assert_equal(found[0], by_hand(model, x))


def test_measurements_of_tensors_where_they_are_kept() -> None:
    model, x = chain(2), batch()
    with record(model, keep=True) as recording:
        model(x)
    wanted = stream_statistics(recording)
    found = step(model, [x], measure=stream_statistics, keep=True)
    pd.testing.assert_frame_equal(found[list(wanted)], wanted)
    with pytest.raises(ValueError, match=r"stream_statistics needs the tensors .*\(put together from 2 forwards\)"):
        step(model, x.split(4), measure=stream_statistics, keep=True)


# Loss scales


def test_a_loss_scale_changes_nothing_in_float64() -> None:
    """Powers of two: exact."""
    model, x = chain(3), batch()
    with record(twin := copy.deepcopy(model)) as recording:
        squares(twin(x)).backward(retain_graph=True)
    paths = path_contributions(recording)["value"].tolist()
    for scale in (65536, 65536.0, torch.amp.GradScaler("cpu", init_scale=65536.0)):
        found = Kept()
        measure = (gradient_norms, residual_magnitudes, path_contributions)
        with track(model, every=1, to=found, loss_scale=scale, measure=measure):
            (65536 * squares(model(x))).backward(retain_graph=True)
            SGD(model.parameters(), lr=0.0).step()
        assert_equal(found[0].query("path_length.isna()"), by_hand(model, x).astype({"depth": "Int64"}))
        assert found[0].query("probe == 'path_contributions'")["value"].tolist() == pytest.approx(paths, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("named", [True, False], ids=["named", "found"])
def test_a_scaler_changes_nothing_under_autocast(dtype: torch.dtype, named: bool) -> None:
    """Gradients of float16 and bfloat16: products of 1024 are exact, unless they leave float16's normal numbers."""
    model, x, tables = chain(3, dtype=torch.float32), batch().float(), []
    for enabled in (False, True):
        scaler, found = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=enabled), Kept()
        opt = SGD(model.parameters(), lr=0.0)
        with track(model, every=1, to=found, loss_scale=scaler if named else None):
            for part in x.split(4):
                with torch.autocast("cpu", dtype):
                    out = model(part)
                scaler.scale(squares(out.float())).backward()
            scaler.unscale_(opt)
            nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
            scaler.step(opt)
            scaler.update()
        tables.append(found[0])
    assert_equal(tables[1], tables[0], rtol=1e-3)


@pytest.mark.parametrize("named", [True, False], ids=["named", "found"])
@pytest.mark.parametrize("fused", [False, True])
def test_steps_that_a_scaler_skips_are_no_steps(named: bool, fused: bool) -> None:
    """The first batch overflows; the table at step 0 is that of the batch that the first step was made of."""
    model, found = chain(2, dtype=torch.float32), Kept()
    batches = [batch().float() for _ in range(3)]
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    opt = SGD(model.parameters(), lr=0.0, fused=fused)
    with track(model, every=1, to=found, loss_scale=scaler if named else None):
        for index, x in enumerate(batches):
            opt.zero_grad()
            scaler.scale(squares(model(x)) * (math.inf if index == 0 else 1)).backward()
            scaler.step(opt)
            scaler.update()
    assert list(found) == [0, 1]
    for step, x in enumerate(batches[1:]):
        assert_equal(found[step], by_hand(model, x), rtol=1e-6)


@pytest.mark.parametrize("order", ["zeroed before the forward", "after the forward", "to zeros"])
@pytest.mark.parametrize("parts", [1, 2], ids=["whole", "micro-batches"])
@pytest.mark.parametrize("named", [True, False], ids=["named", "found"])
@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_is_skipped_for_a_weight_s_gradient_alone(order: str, parts: int, named: bool, fused: bool) -> None:
    """No gradient of an activation has overflown, as under autocast, where those of weights are summed in float16."""
    model, found = chain(2, dtype=torch.float32), Kept()
    scaler, opt = torch.amp.GradScaler("cpu", init_scale=1024.0), SGD(model.parameters(), lr=0.0, fused=fused)
    batches = [batch().float() for _ in range(4)]
    with track(model, every=1, to=found, loss_scale=scaler if named else None):
        for index, x in enumerate(batches):
            if order != "after the forward":
                opt.zero_grad(set_to_none=order != "to zeros")
            for number, part in enumerate(x.chunk(parts)):
                loss = squares(model(part))
                if order == "after the forward" and number == 0:
                    opt.zero_grad()
                scaler.scale(loss).backward()
            weight = next(model.parameters())
            if index in (0, 1) and weight.grad is not None:
                weight.grad.fill_(math.inf)
            scaler.step(opt)
            scaler.update()
    assert list(found) == [0, 1]
    for step, x in enumerate(batches[2:]):
        assert_equal(found[step], by_hand(model, x), rtol=1e-5)


def test_gradients_that_are_set_aside_between_forwards_count_where_no_scaler_skips() -> None:
    """Without a scaler, a step may be made of gradients that were kept elsewhere in the meantime."""
    model, found, x = chain(2, dtype=torch.float32), Kept(), batch().float()
    opt = SGD(model.parameters(), lr=0.0)
    with track(model, every=1, to=found):
        for part in x.split(2):
            opt.zero_grad()
            squares(model(part)).backward()
        opt.step()
    assert_equal(found[0], by_hand(model, x), rtol=1e-5)


@pytest.mark.parametrize("named", [True, False], ids=["named", "found"])
def test_all_micro_batches_of_a_skipped_step_go_with_it(named: bool) -> None:
    model, found, x = chain(2, dtype=torch.float32), Kept(), batch().float()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    opt = SGD(model.parameters(), lr=0.0)
    with track(model, every=1, to=found, loss_scale=scaler if named else None):
        for factor in (math.inf, 1):
            opt.zero_grad()
            for part, of_part in zip(x.split(2), (1, factor, 1, 1), strict=True):
                scaler.scale(squares(model(part)) * of_part).backward()
            scaler.step(opt)
            scaler.update()
    assert list(found) == [0]
    assert_equal(found[0], by_hand(model, x), rtol=1e-5)


# What goes wrong


BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "every=0": ({"every": 0}, ValueError, r"every is 0: give a whole number of steps, at least 1"),
    "every=True": ({"every": True}, ValueError, r"every is True: give a whole number"),
    "every=1.5": ({"every": 1.5}, ValueError, r"every is 1.5: give a whole number"),
    "start": ({"start": -1}, ValueError, r"start is -1: give a whole number of steps, at least 0"),
    "sink": ({"to": 3}, TypeError, r"to is 3: give a path ending in .csv or .parquet, a TensorBoard SummaryWriter"),
    "no sinks": ({"to": []}, ValueError, r"to is empty: give a path"),
    "suffix": ({"to": "norms.txt"}, ValueError, r"'norms.txt' ends in '.txt': give a path ending in .csv"),
    "measure": ({"measure": "norms"}, TypeError, r"measure is 'norms': give functions of a recording"),
    "no measure": ({"measure": ()}, TypeError, r"measure is \(\): give functions of a recording"),
    "twice": ({"measure": [gradient_norms] * 2}, ValueError, r"two measurements of one name, \['gradient_norms'"),
    "loss_scale": ({"loss_scale": "2"}, TypeError, r"loss_scale is '2': give a number, or the GradScaler"),
    "loss_scale=0": ({"loss_scale": 0.0}, ValueError, r"loss_scale is 0.0: give the positive number"),
    "blocks": ({"blocks": [nn.Linear(1, 1)]}, ValueError, r"blocks must be modules of the model"),
}


@pytest.mark.parametrize(("options", "error", "message"), BAD.values(), ids=BAD)
def test_bad_input(options: dict[str, Any], error: type[Exception], message: str) -> None:
    model = scalars()
    with nothing_stays(model), pytest.raises(error, match=message), track(model, **{"to": Kept(), **options}):
        pytest.fail("the training has begun")


def test_a_model_without_junctions() -> None:
    model = perceptron(3)
    message = r"track: step 0: the model has no residual junctions: name the modules .* track\(model, blocks=\[...\]\)"
    with nothing_stays(model), pytest.raises(ValueError, match=message), track(model, to=Kept()):
        train(model, SGD(model.parameters(), lr=0.0), [batch()])


def test_no_step() -> None:
    model, other = chain(1), chain(1)
    message = r"no optimizer of this model's parameters has stepped inside of the context \(seen: none\)"
    with nothing_stays(model), pytest.raises(ValueError, match=message), track(model, to=Kept()):
        squares(model(batch())).backward()
    message = r"\(seen: 2 steps of optimizers that do not hold its parameters\): give the very module that is trained"
    with nothing_stays(model), pytest.raises(ValueError, match=message), track(model, to=Kept()):
        train(other, SGD(other.parameters(), lr=0.0), [batch()] * 2)


def test_a_step_without_a_forward_or_without_a_backward() -> None:
    model = chain(1)
    with nothing_stays(model), pytest.raises(ValueError, match=r"step 0: .* no forward of the model with gradients"):
        step(model, [])
    with nothing_stays(model), torch.no_grad(), pytest.raises(ValueError, match=r"step 0: .* no forward of the model"):
        without_backward(model)
    with nothing_stays(model), pytest.raises(ValueError, match=r"step 0: .* no backward through the model was seen"):
        without_backward(model)


def without_backward(model: nn.Module) -> None:
    with track(model, to=Kept()):
        model(batch())
        SGD(model.parameters(), lr=0.0).step()


def test_paths_need_the_graph() -> None:
    model = chain(1)
    with nothing_stays(model), pytest.raises(RuntimeError, match=r"loss.backward\(retain_graph=True\)"):
        step(model, [batch()], measure=path_contributions)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"of": "parameters"}, r'of parameters \(of="parameters"\) cannot'), ({"samples": 2}, "leave samples= out")],
)
def test_paths_that_have_no_sum(options: dict[str, Any], message: str) -> None:
    model, measure = chain(2), partial(path_contributions, **options)
    assert "norm" in set(step(model, [batch()], measure=measure, retain_graph=True)["quantity"])
    model.zero_grad()
    with nothing_stays(model), pytest.raises(ValueError, match=message):
        step(model, [batch()] * 2, measure=measure, retain_graph=True)


def test_a_measurement_that_is_no_table_of_ours() -> None:
    def unknown(recording: Recording) -> Table:
        return gradient_norms(recording).rename(columns={"depth": "layer"})

    model = chain(1)
    with nothing_stays(model), pytest.raises(ValueError, match=r"unknown columns \['layer'\]"):
        step(model, [batch()], measure=unknown)


def test_an_optimizer_inside_the_backward_is_refused() -> None:
    model = chain(1)
    for parameter in model.parameters():
        opt = SGD([parameter], lr=0.0)
        parameter.register_post_accumulate_grad_hook(lambda _, opt=opt: opt.step())
    with pytest.raises(RuntimeError, match="the optimizer steps while the backward is running"):
        step(model, [batch()])


# Nothing stays


def raising_forward(error: type[BaseException]) -> nn.Module:
    return network(Raising(error))


def raising_backward(_: type[BaseException]) -> nn.Module:
    return network(Apply(lambda _, x: RaisingBackward.apply(x)))


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["forward", "backward", "step", "sink", "measure", "body", "closure"])
def test_nothing_stays_when_something_raises(where: str, error: type[BaseException]) -> None:
    def fails(*_: Any) -> Any:
        raise error

    model = {"forward": raising_forward, "backward": raising_backward}.get(where, lambda _: network())(error)
    opt, found = SGD(model.parameters(), lr=0.0), Kept()
    if where == "step":
        opt.register_step_post_hook(fails)
    options: dict[str, Any] = {"to": fails if where == "sink" else found}
    if where == "measure":
        options["measure"] = fails
    state = len(opt.state), len(opt._optimizer_step_pre_hooks), len(opt._optimizer_step_post_hooks)
    expected = ZeroDivisionError if where == "backward" else error

    def training() -> None:
        if where == "closure":
            opt.step(fails)
        train(model, opt, [torch.randn(4, 3)])
        if where == "body":
            raise error

    with nothing_stays(model), pytest.raises(expected), track(model, every=1, **options):
        training()
    assert (len(opt.state), len(opt._optimizer_step_pre_hooks), len(opt._optimizer_step_post_hooks)) == state
    assert "step" not in vars(opt)
    assert list(found) == ([0] if where in ("step", "body") else [])


def test_a_step_that_raised_and_was_caught_does_not_end_the_counting() -> None:
    model, found = chain(1), Kept()
    opt = SGD(model.parameters(), lr=0.0)

    def fails() -> float:
        raise ZeroDivisionError

    with track(model, every=1, to=found):
        for _ in range(3):
            with pytest.raises(ZeroDivisionError):
                opt.step(fails)
            train(model, opt, [batch()])
    assert list(found) == [0, 1, 2]


def test_two_tracks_of_one_model_and_tracks_of_two() -> None:
    model, other, x = chain(2), chain(2), batch()
    a, b, c = Kept(), Kept(), Kept()
    contexts: list[AbstractContextManager[None]] = [track(model, every=1, to=a), track(other, every=1, to=c)]
    with nothing_stays(model), track(model, every=2, to=b), contexts[0], contexts[1]:
        for net in (model, other):
            train(net, SGD(net.parameters(), lr=0.0), [x, x])
    assert (list(a), list(b), list(c)) == ([0, 1], [0], [0, 1])
    assert_equal(a[0], by_hand(model, x))
    assert_equal(b[0], by_hand(model, x))
    assert_equal(c[1], by_hand(other, x))


def test_convolutions_with_statistics_are_trained_as_without() -> None:
    model, x, found = cifar_resnet(8, width=2).double(), images(4), Kept()
    twin, wanted = copy.deepcopy(model), by_hand(model, x)
    with nothing_stays(model), track(model, every=1, to=found):
        train(model, SGD(model.parameters(), lr=0.1), [x, x])
    train(twin, SGD(twin.parameters(), lr=0.1), [x, x])
    assert_equal(found[0], wanted)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), twin.state_dict().values(), strict=True))
