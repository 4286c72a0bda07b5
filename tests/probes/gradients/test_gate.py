"""`gate`: where, weights of every form, when they are read, nesting, what the probes see under it, and its errors."""

import copy
import gc
import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack
from torch.utils.checkpoint import checkpoint
from torch.utils.hooks import RemovableHandle

from models import STOP_GRADIENT, cifar_resnet
from probes import (
    Junction,
    find_junctions,
    gate,
    gradient_norms,
    limit_paths,
    path_contributions,
    path_gradients,
    record,
    scale_gradient,
)
from tests.support import gated_by_hand
from tests.support.networks import (
    FLOAT64,
    Apply,
    Residual,
    Tag,
    chain,
    left_as_it_was,
    linear,
    network,
    recorded,
    relative_error,
    scalars,
    squares,
)

# Blocks x + w x with w = 2, 3, 5: under gate (s, b) the gradient at the first fork is (s + 2b)(s + 3b)(s + 5b).
FACTORS = (2.0, 3.0, 5.0)


def one() -> Tensor:
    return torch.ones(1, 1, dtype=FLOAT64, requires_grad=True)


def at_fork(model: nn.Module, **gates: Any) -> float:
    """The gradient at the first fork."""
    x = one()
    with gate(model, **gates):
        model(x).sum().backward()
    return slope(x)


def slope(x: Tensor) -> float:
    assert x.grad is not None
    return x.grad.item()


def product(*weights: tuple[float, float]) -> float:
    return math.prod(s + b * w for (s, b), w in zip(weights, FACTORS, strict=True))


class TwoBranches(nn.Module):
    """x + 2x + 3x, added from the left: one junction, with a branch of two."""

    def __init__(self) -> None:
        super().__init__()
        self.f, self.g = linear(2.0), linear(3.0)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.f(x) + self.g(x)


@pytest.mark.parametrize(("shortcut", "branch"), [(0, 1), (1, 0), (0.5, 0.25)])
def test_a_sum_of_three_is_gated_as_one(shortcut: float, branch: float) -> None:
    model = nn.Sequential(TwoBranches(), TwoBranches())
    assert at_fork(model, shortcut_gradient=shortcut, branch_gradient=branch) == (shortcut + 5 * branch) ** 2
    recording = recorded(model, one())
    assert path_gradients(recording).flatten().tolist() == [1, 10, 25]
    assert [site.name for site in recording.junctions] == ["0#1", "1#1"]


@pytest.mark.parametrize(("shortcut", "branch"), [(0, 1), (1, 0), (0.5, 0.25), (0, 0), (-1, 2), (1, 1), (True, False)])
def test_on_paper(shortcut: float, branch: float) -> None:
    got = at_fork(scalars(), shortcut_gradient=shortcut, branch_gradient=branch)
    assert got == product(*[(shortcut, branch)] * 3)


@pytest.mark.parametrize(
    ("where", "gated"),
    [
        ("*", (0, 1, 2)), ("1", (1,)), ("[02]", (0, 2)), (lambda junction: junction.depth == 2, (2,)),
        (lambda junction: junction.name != "0" and junction.shortcut == "identity", (1, 2)),
    ],
)  # fmt: skip
def test_where_is_a_glob_or_a_predicate(where: Any, gated: tuple[int, ...]) -> None:
    weights = [(0.0, 1.0) if index in gated else (1.0, 1.0) for index in range(3)]
    assert at_fork(scalars(), shortcut_gradient=0.0, where=where) == product(*weights)


@pytest.mark.parametrize(
    "weights", [{"1": 0.5}, lambda junction: 0.5 if junction.name == "1" else 1], ids=["mapping", "function"]
)
def test_weights_may_depend_on_the_junction(weights: Any) -> None:
    assert at_fork(scalars(), shortcut_gradient=weights) == product((1, 1), (0.5, 1), (1, 1))
    assert at_fork(scalars(), branch_gradient=weights) == product((1, 1), (1, 0.5), (1, 1))


@pytest.mark.parametrize("form", ["mapping", "function"])
def test_weights_are_read_when_the_backward_runs(form: str) -> None:
    weights, model, x, asked = {"0": 1.0}, scalars(), one(), list[Junction]()

    def ask(junction: Junction) -> float:
        asked.append(junction)
        return weights.get(junction.name, 1.0)

    with gate(model, shortcut_gradient=weights if form == "mapping" else ask):
        out = model(x)
    assert asked == []
    for weight in (0.0, 0.5, 1.0, 0.0):  # several backwards of one forward, all after the context
        weights["0"] = weight
        (gradient,) = torch.autograd.grad(out.sum(), x, retain_graph=True)
        assert gradient.item() == product((weight, 1), (1, 1), (1, 1))


def test_a_graph_keeps_its_weights_after_the_context_and_a_new_one_has_none() -> None:
    model, x, y = scalars(), one(), one()
    with gate(model, shortcut_gradient=0.0):
        out = model(x)
    model(y).sum().backward()
    out.sum().backward()
    assert (x.grad, y.grad) == (torch.tensor([[30.0]]), torch.tensor([[72.0]]))


@pytest.mark.parametrize(("outer", "inner"), [(0.5, 0.5), (0.0, 2.0), (2.0, 0.0), (0.0, 0.0), (3.0, -1.0)])
def test_gates_nest_and_their_weights_multiply(outer: float, inner: float) -> None:
    model, x = scalars(), one()
    with gate(model, shortcut_gradient=outer, where="[01]"):
        with gate(model, shortcut_gradient=inner, branch_gradient=0.5, where="1"):
            model(x).sum().backward()
        assert slope(x) == product((outer, 1), (outer * inner, 0.5), (1, 1))
        x.grad = None
        model(x).sum().backward()
        assert slope(x) == product((outer, 1), (outer, 1), (1, 1)), "leaving the inner one restores the outer"


@pytest.mark.parametrize("bad", [math.inf, math.nan])
@pytest.mark.parametrize("addend", ["shortcut_gradient", "branch_gradient"])
def test_weight_0_is_exactly_zero_where_the_gradient_is_not_finite(addend: str, bad: float) -> None:
    """Also beneath another gate: 0 times its inf or nan is not zero."""
    model, x = Residual(linear(2.0)), one()
    other = "branch_gradient" if addend == "shortcut_gradient" else "shortcut_gradient"
    with gate(model, **{addend: 0.0}), gate(model, **{addend: 3.0, other: 0.0}):  # pyright: ignore[reportArgumentType]
        model(x).backward(torch.full((1, 1), bad, dtype=FLOAT64))
    assert slope(x) == 0.0
    assert not model.branch.weight.grad.isfinite().any(), "what the branch learns is its own"  # pyright: ignore


# Forward weights.


@pytest.mark.parametrize(
    "weights",
    [
        (0, 1, None, None), (0, 1, 1, None), (1, 0, None, 1), (0.5, 0.25, None, None), (0.5, 0.25, 1, 1),
        (0.5, 0.25, 0, 2), (0, 0, 1, 1), (0, 0, None, None), (-2, 1, {"1": 0.0}, lambda junction: 3.0), (1, 2, 1, 1),
    ],
)  # fmt: skip
def test_forward_weights_on_paper(weights: tuple[Any, ...]) -> None:
    """Blocks s x + b w x: the value, the gradient at x, and w's own, which is that of the value."""
    names, model, x = ("shortcut", "branch", "shortcut_gradient", "branch_gradient"), scalars(), one()
    with gate(model, **dict(zip(names, weights, strict=True))):
        out = model(x)
        out.sum().backward()
    s, b, *gradients = weights
    assert out.item() == product(*[(s, b)] * 3)
    passed: list[Any] = [
        (value if g is None else g(None) if callable(g) else g.get(name, value) if isinstance(g, dict) else g)
        for name in "012"
        for g, value in zip(gradients, (s, b), strict=True)
    ]
    pairs = list(zip(passed[::2], passed[1::2], strict=True))
    assert slope(x) == pytest.approx(product(*pairs), rel=1e-15)
    for index in range(3):  # what was added before, and what comes back from behind
        before = math.prod(s + b * w for w in FACTORS[:index])
        behind = math.prod(g + h * w for (g, h), w in list(zip(pairs, FACTORS, strict=True))[index + 1 :])
        weight = model[index].branch.weight.grad  # pyright: ignore
        assert weight.item() == pytest.approx(before * b * behind, rel=1e-15)  # pyright: ignore


@pytest.mark.parametrize(
    "weights", [{"1": 0.5}, lambda junction: 0.5 if junction.name == "1" else 1], ids=["mapping", "function"]
)
def test_forward_weights_may_depend_on_the_junction(weights: Any) -> None:
    model = scalars()
    with gate(model, shortcut=weights, where="[01]"), gate(model, branch=lambda junction: 3.0, where="2"):
        assert model(one()).item() == product((1, 1), (0.5, 1), (1, 3))


def test_gates_nest_and_their_forward_weights_multiply() -> None:
    model, x = scalars(), one()
    with gate(model, shortcut=0.5, branch=2.0), gate(model, shortcut=3.0, shortcut_gradient=1.0, where="1"):
        out = model(x)
        out.sum().backward()
    assert out.item() == product((0.5, 2), (1.5, 2), (0.5, 2))
    assert slope(x) == pytest.approx(product((0.5, 2), (0.5, 2), (0.5, 2)), rel=1e-15)


@pytest.mark.parametrize("bad", [math.inf, math.nan])
@pytest.mark.parametrize("gradient", [None, 0.0, 1.0])
@pytest.mark.parametrize("addend", ["shortcut", "branch"])
def test_forward_weight_0_adds_nothing_even_where_x_is_not_finite(
    addend: str, gradient: float | None, bad: float
) -> None:
    """An addend of bad values, whose parameters then get zeros, also where another sum behind it is not finite."""
    fine, spoilt = nn.Linear(3, 3, dtype=FLOAT64), nn.Linear(3, 3, dtype=FLOAT64)
    with torch.no_grad():
        spoilt.weight[0, 0] = bad

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        x = x * 1.0
        return spoilt(x) + fine(x).tanh() if addend == "shortcut" else x + fine(spoilt(x).tanh())

    model, x = Apply(forward, fine=fine, spoilt=spoilt), torch.randn(2, 3, dtype=FLOAT64, requires_grad=True)
    weights: dict[str, Any] = {addend: 0.0, f"{addend}_gradient": gradient}
    with gate(model, **weights):
        out = model(x)
        out.sum().backward()
    wanted = x if addend == "branch" else fine(x).tanh()
    assert torch.equal(out, wanted)
    for parameter in spoilt.parameters() if addend == "shortcut" else model.parameters():
        assert parameter.grad is not None
        assert not parameter.grad.any(), "exactly zero"
    assert x.grad is not None
    assert x.grad.isfinite().all() == (gradient != 1.0)


@dataclass(frozen=True)
class Output:
    logits: Tensor
    states: list[Tensor]


@pytest.mark.parametrize("without", [torch.no_grad, torch.inference_mode])
def test_forward_weights_hold_without_gradients(without: Callable[[], Any]) -> None:
    model = scalars()
    with without():
        x = torch.ones(1, 1, dtype=FLOAT64)
        with gate(model, shortcut=0.5):
            out = model(x)
            assert not torch.is_grad_enabled()
            assert torch.is_inference_mode_enabled() == (without is torch.inference_mode)
    assert out.item() == product(*[(0.5, 1)] * 3)
    assert not out.requires_grad
    with gate(model, shortcut=0.5), without(), pytest.raises(RuntimeError):
        model(torch.ones(1, 2, dtype=FLOAT64))
    assert torch.is_grad_enabled(), "also after an error"


def test_dataclasses_of_outputs_are_detached_without_gradients() -> None:
    model = Apply(lambda self, x: Output(self.get_submodule("blocks")(x), [x]), blocks=scalars())
    with torch.no_grad(), gate(model, shortcut=0.5):
        out = model(one())
    assert isinstance(out, Output)
    assert out.logits.item() == product(*[(0.5, 1)] * 3)
    assert not any(x.requires_grad for x in (out.logits, *out.states))


def test_one_forward_of_a_forward_weight_has_backwards_of_several_gradient_weights() -> None:
    model, x, weight = scalars(), one(), {"0": 1.0}
    with gate(model, shortcut=0.0, shortcut_gradient=weight):
        out = model(x)
    for number in (0.0, 0.5, 1.0):
        weight["0"] = number
        (gradient,) = torch.autograd.grad(out.sum(), x, retain_graph=True)
        assert gradient.item() == product((number, 1), (0, 1), (0, 1))


@pytest.mark.parametrize(("shortcut", "branch"), [(0, 1), (1, 0), (0.5, 0.25)])
@pytest.mark.parametrize("gradient", [None, 1.0])
def test_a_sum_of_three_has_one_forward_weight_for_its_branches(
    shortcut: float, branch: float, gradient: float | None
) -> None:
    model, x = nn.Sequential(TwoBranches(), TwoBranches()), one()
    with gate(model, shortcut=shortcut, branch=branch, shortcut_gradient=gradient, branch_gradient=gradient):
        out = model(x)
        out.sum().backward()
    assert out.item() == (shortcut + 5 * branch) ** 2
    assert slope(x) == pytest.approx((shortcut + 5 * branch) ** 2 if gradient is None else 36, rel=1e-15)
    assert model[0].f.weight.grad.item() == model[0].g.weight.grad.item()  # pyright: ignore
    message = "gate: '1' is part of the sum '1#1', but their forward weights differ"
    with gate(model, branch=0.0, where="1#1"), pytest.raises(ValueError, match=message):
        model(x)


def two_in_place(self: nn.Module, x: Tensor) -> Tensor:
    y = self.get_submodule("a")(x)
    z = y.clone()
    z += self.get_submodule("b")(y)
    z += self.get_submodule("c")(y)
    return z.relu_()


@pytest.mark.parametrize("outside", ["gate", "record"])
def test_record_sees_the_weighted_addends_on_either_side_of_the_gate(outside: str) -> None:
    """In place, in a sum of three."""
    torch.manual_seed(0)
    model = Apply(two_in_place, **{name: nn.Linear(4, 4).to(FLOAT64) for name in "abc"})
    x = torch.randn(3, 4, dtype=FLOAT64)
    with ExitStack() as stack:
        if outside == "gate":
            stack.enter_context(gate(model, shortcut=0.5, branch=-2.0))
        recording = stack.enter_context(record(model, keep=True))
        if outside == "record":
            stack.enter_context(gate(model, shortcut=0.5, branch=-2.0))
        out = model(x)
        out.square().sum().backward()
    a, b, c = (model.get_submodule(name) for name in "abc")
    y = a(x)
    shortcut, branch = 0.5 * y, -2.0 * b(y) - 2.0 * c(y)
    torch.testing.assert_close(out, (shortcut + branch).relu(), rtol=1e-14, atol=1e-14)
    (site,) = recording.junctions
    torch.testing.assert_close(site.shortcut, shortcut.detach(), rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(site.branch, branch.detach(), rtol=1e-14, atol=1e-14)
    assert site.output is not None, "the activation is seen behind the sum"
    table = gradient_norms(recording).set_index("quantity")["value"]
    assert table["other"] <= 1e-14 * table["total"]


def test_gradients_of_lengths_under_forward_weights_sum_to_autograd_s() -> None:
    model, x = chain(4), torch.randn(2, 3, dtype=FLOAT64, requires_grad=True)
    with gate(model, shortcut=0.0, shortcut_gradient=1.0, branch=0.5, where="[12]"), record(model) as recording:
        model(x).square().sum().backward(retain_graph=True)
    assert x.grad is not None
    assert relative_error(path_gradients(recording).sum(0), x.grad) < 1e-14


def test_a_gradient_through_a_gate_of_both_addends_at_value_0_is_refused() -> None:
    def highway(self: nn.Module, x: Tensor) -> Tensor:
        g = self.get_submodule("gate")(x).sigmoid()
        return (1 - g) * x + g * self.get_submodule("f")(x)

    model = Apply(highway, gate=linear(0.5), f=nn.Sequential(linear(2.0), nn.Tanh()))
    choices: list[dict[str, Any]] = [{"shortcut": 0.0}, {"branch": 0.0}]
    for weights in choices:
        with gate(model, **weights):  # the gradient of the value
            x = one()
            model(x).sum().backward()
            g, y = torch.sigmoid(torch.tensor(0.5, dtype=FLOAT64)), torch.tanh(torch.tensor(2.0, dtype=FLOAT64))
            slope_g = g * (1 - g) / 2
            wanted = slope_g * y + g * 2 * (1 - y**2) if "shortcut" in weights else 1 - g - slope_g
            assert slope(x) == pytest.approx(wanted.item(), rel=1e-14)
    with gate(model, shortcut=0.0, shortcut_gradient=1.0), pytest.raises(ValueError, match="a gate computed from the"):
        model(one())


def test_a_head_inside_a_branch_learns_while_the_branch_adds_nothing() -> None:
    """A router's loss: what a branch of forward weight 0 sends elsewhere keeps its gradient."""
    head = list[Tensor]()

    def blocks(self: nn.Module, x: Tensor) -> Tensor:
        x = x * 1.0
        y = self.get_submodule("f")(x)
        head.append(y)
        return x + self.get_submodule("g")(y)

    model = Apply(blocks, f=linear(2.0), g=linear(3.0))
    with gate(model, branch=0.0):
        out = model(one())
        (out + head[-1]).sum().backward()
    assert [model.get_submodule(name).weight.grad.item() for name in "fg"] == [1.0, 0.0]  # pyright: ignore


@pytest.mark.parametrize("whole", [True, False], ids=["the whole model", "a block"])
def test_forward_weights_under_checkpointing_are_refused(whole: bool) -> None:
    """What is computed again in the backward would lack them; where the weights are 1, nothing is refused."""
    model = gated_by_hand.model(reentrant=(None, None if whole else False, None))

    def run() -> Tensor:
        x = gated_by_hand.inputs().requires_grad_()
        return checkpoint(model, x, use_reentrant=False) if whole else model(x)  # pyright: ignore[reportReturnType]

    with (
        gate(model, branch=0.5),
        pytest.raises(RuntimeError, match=r"gate: '.' is under activation checkpointing, .*:"),
    ):
        run()
    with gate(model, branch=lambda junction: 1.0, where="2"):
        run().sum().backward()


# What the probes see.


@pytest.mark.parametrize("outside", ["gate", "record"])
def test_record_sees_the_gated_gradient_on_either_side_of_the_gate(outside: str) -> None:
    arm = cifar_resnet(14, flow=STOP_GRADIENT, width=4).to(FLOAT64)
    model = cifar_resnet(14, width=4).to(FLOAT64)
    model.load_state_dict(arm.state_dict())
    x = torch.randn(3, 3, 8, 8, dtype=FLOAT64)
    wanted = recorded(arm, x, squares)
    with ExitStack() as stack:
        if outside == "gate":
            stack.enter_context(gate(model, shortcut_gradient=0.0))
        recording = stack.enter_context(record(model))
        if outside == "record":
            stack.enter_context(gate(model, shortcut_gradient=0.0))
        model(x).square().sum().backward()
    table = gradient_norms(recording)
    assert table.equals(gradient_norms(wanted))
    assert (table.loc[table["quantity"] == "shortcut", "value"] == 0).all()
    assert (table.loc[table["quantity"] == "total", "value"] > 0).all()


@pytest.mark.parametrize("weights", [(0.0, 1.0), (1.0, 0.0), (0.3, 0.7)], ids=str)
def test_path_lengths_under_gate_take_the_gated_gradient_apart(weights: tuple[float, float]) -> None:
    model, x = chain(4), torch.randn(2, 3, dtype=FLOAT64, requires_grad=True)
    with gate(model, shortcut_gradient=weights[0], branch_gradient=weights[1]), record(model) as recording:
        model(x).square().sum().backward(retain_graph=True)
        lengths = path_gradients(recording)
        table = path_contributions(recording)
    assert x.grad is not None
    assert relative_error(lengths.sum(0), x.grad) < 1e-14
    for length, ungated in enumerate(path_gradients(recorded(model, x, squares))):
        share = weights[0] ** (4 - length) * weights[1] ** length
        assert relative_error(lengths[length], share * ungated) < 1e-14 if share else not lengths[length].any()
    assert table.loc[table["quantity"] == "share", "value"].sum() == pytest.approx(1)


def test_path_lengths_on_paper() -> None:
    model, x = scalars(), one()
    with gate(model, shortcut_gradient=0.5, where="1"):
        recording = recorded(model, x)
    # (1 + 2t)(0.5 + 3t)(1 + 5t) = 0.5 + 6.5 t + 26 t^2 + 30 t^3
    assert path_gradients(recording).flatten().tolist() == [0.5, 6.5, 26.0, 30.0]


# Errors.


@pytest.mark.parametrize("weight", [math.inf, math.nan, -math.inf, "0", None, torch.ones(2), 1j], ids=repr)
@pytest.mark.parametrize("addend", ["shortcut_gradient", "branch_gradient", "shortcut", "branch"])
@pytest.mark.parametrize("in_mapping", [False, True], ids=["number", "mapping"])
def test_a_weight_that_is_no_finite_number_is_refused(weight: Any, addend: str, in_mapping: bool) -> None:
    if weight is None and not in_mapping and addend.endswith("gradient"):
        return  # the forward weight's
    model = scalars()
    given: dict[str, Any] = {addend: {"1": weight} if in_mapping else weight}
    with (
        left_as_it_was(model),
        pytest.raises(ValueError, match=rf"gate: {addend}.* is .*; give a finite number"),
        gate(model, **given),
    ):
        pytest.fail("it must not begin")


@pytest.mark.parametrize("weight", [math.nan, math.inf, "0", None])
def test_a_function_that_returns_no_finite_number_fails_in_the_backward(weight: Any) -> None:
    model = scalars()
    with left_as_it_was(model):
        with gate(model, shortcut_gradient=lambda junction: weight):
            loss = model(one()).sum()
            with pytest.raises(ValueError, match=r"gate: the weight of '2' is .*; give a finite number"):
                loss.backward()
        model.zero_grad()


@pytest.mark.parametrize("where", ["layer9.*", "", lambda junction: False])
def test_where_must_match_something_once_gradients_are_on(where: Any) -> None:
    model = scalars()
    with left_as_it_was(model), gate(model, where=where):
        with torch.no_grad():
            model(one())
        with pytest.raises(ValueError, match="matches none of the model's junctions: 0, 1, 2"):
            model(one())


def test_where_on_a_model_without_junctions() -> None:
    model = nn.Sequential(nn.Linear(1, 1), nn.ReLU()).to(FLOAT64)
    with gate(model), pytest.raises(ValueError, match=r"where='\*' matches none .*: \(none\)"):
        model(one())


def test_many_names_are_not_all_listed() -> None:
    model = chain(12, 1)
    with gate(model, where="x"), pytest.raises(ValueError, match="0, 1, 2, 3, 4, 5, 6, 7 and 4 more"):
        model(one())


@pytest.mark.parametrize("name", ["shortcut_gradient", "branch_gradient"])
def test_a_mapping_s_names_must_be_junctions(name: str) -> None:
    model, weights = scalars(), {name: {"0": 0.5, "layer1": 0.5}}
    message = "no gated junction is called layer1; there are 0, 1, 2"
    with left_as_it_was(model), gate(model, **weights), pytest.raises(ValueError, match=message):  # pyright: ignore
        model(one())


# Nothing is left behind.


class Guest(TorchFunctionMode):
    """A mode of the user's own."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **kwargs or {})


def test_a_mode_of_the_user_s_stays_where_it_was() -> None:
    """Also where the forward fails before the first module runs: only our own mode may be taken off the stack."""
    model = Residual(linear(2.0))
    with Guest() as own:
        with gate(model):
            model(one())
        assert _get_current_function_mode_stack() == [own]
        with gate(model), pytest.raises(RuntimeError):
            torch.func.grad(lambda x: model(x).sum())(one().detach())
        assert _get_current_function_mode_stack() == [own]


def gated_step(model: nn.Module, x: Tensor) -> None:
    with gate(model, shortcut_gradient=0.5, branch_gradient={"1": 0.2}):
        model(x).sum().backward()


def weighted_step(model: nn.Module, x: Tensor) -> None:
    with gate(model, shortcut=0.0, branch=0.5, shortcut_gradient={"1": 0.2}):
        model(x).sum().backward()


def recorded_step(model: nn.Module, x: Tensor) -> None:
    gradient_norms(recorded(model, x))


def limited_step(model: nn.Module, x: Tensor) -> None:
    with limit_paths(model, at_most=1):
        model(x).sum().backward()


def alive() -> int:
    """How many tensors, frames, hooks' handles, modes and things of ours there are."""
    kinds = (Tensor, FrameType, RemovableHandle, TorchFunctionMode)
    return sum(issubclass(type(x), kinds) or str(type(x).__module__).startswith("probes") for x in gc.get_objects())


@pytest.mark.parametrize("step", [gated_step, weighted_step, recorded_step, limited_step, find_junctions])
def test_memory_is_back_after_every_step_without_the_garbage_collector(
    step: Callable[[nn.Module, Tensor], object],
) -> None:
    model, x = network(tag := Tag()), torch.randn(4, 3)
    gc.collect()
    gc.disable()
    try:
        counts = []
        for index in range(50):
            step(model, x)
            assert tag.newest() is None, "the step's graph lives on"
            if index % 10 == 9:
                counts.append(alive())
        assert len(set(counts)) == 1, counts
    finally:
        gc.enable()


def test_the_model_may_be_copied_inside_and_the_copy_is_not_gated() -> None:
    """An averaged copy of the weights, say: it is another model, and the context has an end."""
    model = scalars()
    with gate(model, shortcut_gradient=0.0):
        twin = copy.deepcopy(model)
    x = one()
    twin(x).sum().backward()
    assert slope(x) == product((1, 1), (1, 1), (1, 1))


def in_place(shortcut_gradient: float | None) -> Callable[[nn.Module, Tensor], Tensor]:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        h = self.get_submodule("a")(x).relu()
        y = self.get_submodule("b")(h)  # a view, where x has three dimensions
        y += h if shortcut_gradient is None else scale_gradient(h, shortcut_gradient)
        return y

    return forward


@pytest.mark.parametrize("shape", [(2, 4), (2, 3, 4)])
def test_an_in_place_add_into_a_view_is_seen_and_gated(shape: tuple[int, ...]) -> None:
    layers = {name: nn.Linear(4, 4).to(FLOAT64) for name in "ab"}
    x = torch.randn(shape, dtype=FLOAT64)
    model, by_hand = Apply(in_place(None), **layers), Apply(in_place(0.3), **layers)
    assert [junction.shortcut for junction in find_junctions(model, x)] == ["identity"]
    wanted = torch.autograd.grad(by_hand(x).square().sum(), list(by_hand.parameters()))
    with gate(model, shortcut_gradient=0.3):
        out = model(x)
    assert torch.equal(out, by_hand(x))
    got = torch.autograd.grad(out.square().sum(), list(model.parameters()))
    for mine, theirs in zip(got, wanted, strict=True):
        assert relative_error(mine, theirs) < 1e-14  # a few roundings
