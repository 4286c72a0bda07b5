"""Which adds are junctions: every way to write one, what is none, and the names."""

import operator
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.ao.nn.quantized import FloatFunctional
from torch.nn.utils import prune

from models import ARMS, cifar_resnet
from models.projections import Projection
from probes import find_junctions, record, residual_magnitudes, scale_gradient
from tests.support.networks import FLOAT64, Apply, Residual, block_of, chain, dense, perceptron, recorded, rows, values


class Host(nn.Module):
    """stem, then what `join` makes of itself and x, then head; f, g and linear are there to be used."""

    def __init__(self, join: Callable[["Host", Tensor], Tensor]) -> None:
        super().__init__()
        self.join = join
        self.f, self.g = perceptron(), perceptron()
        self.stem, self.linear, self.linear2, self.head = (nn.Linear(3, 3, dtype=FLOAT64) for _ in range(4))
        self.norm, self.dropout = nn.LayerNorm(3, dtype=FLOAT64), nn.Dropout(0.5)
        self.gamma = nn.Parameter(torch.tensor([0.1, -0.2, 3.0], dtype=FLOAT64))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.join(self, self.stem(x)))


def found(model: nn.Module, x: Tensor | None = None) -> list[tuple[object, ...]]:
    inputs = torch.randn(2, 3, dtype=FLOAT64) if x is None else x
    return [(found.name, found.depth, found.shortcut) for found in find_junctions(model, inputs)]


SUMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "x + y": lambda x, y: x + y,
    "y + x": lambda x, y: y + x,
    "x += y": operator.iadd,
    "y += x": lambda x, y: operator.iadd(y, x),
    "x.add(y)": lambda x, y: x.add(y),
    "y.add_(x)": lambda x, y: y.add_(x),
    "x.add(other=y)": lambda x, y: x.add(other=y),
    "torch.add(y, x)": lambda x, y: torch.add(y, x),
    "torch.add(x, other=y)": lambda x, y: torch.add(x, other=y),
    "torch.add(input=x, other=y)": lambda x, y: torch.add(input=x, other=y),
}
IDENTITIES: dict[str, Callable[[Host, Tensor], Tensor]] = {
    "a linear branch": lambda host, x: x + host.linear(x),
    "pre-activation": lambda host, x: x + host.f(host.norm(x).relu()),
    "a gate on the branch": lambda host, x: x + torch.sigmoid(host.linear(x)) * host.f(x),
    "scale_gradient": lambda host, x: scale_gradient(x, 0.0) + scale_gradient(host.f(x), 0.5),
    "a shortcut of value 0": lambda host, x: scale_gradient(x, 1.0, value=0.0) + host.f(x),
    "a norm of the sum": lambda host, x: host.norm(x + host.f(x)),
    "a loose activation": lambda host, x: (x + host.f(x)).relu(),
}
PROJECTIONS: dict[str, Callable[[Host, Tensor], Tensor]] = {
    "linear": lambda host, x: host.linear(x) + host.f(x),
    "linear on the right": lambda host, x: host.f(x) + host.linear(x),
    "a norm of a linear": lambda host, x: host.norm(host.linear(x)) + host.f(x),
    "pooling": lambda host, x: F.avg_pool1d(x, 1) + host.f(x),
    "a gated linear": lambda host, x: torch.sigmoid(host.linear2(x)) * host.linear(x) + host.f(x),
    "padding": lambda host, x: F.pad(x[:, :2], (0, 1)) + host.f(x),
}
NONE: dict[str, Callable[[Host, Tensor], Tensor]] = {
    "a bias": lambda host, x: x + host.gamma.expand_as(x),
    "a number": lambda host, x: host.f(x) + 1.0,
    "itself": lambda host, x: x + x,
    "a rotary embedding": lambda host, x: x * x.new_tensor([0.6, 0.8, 1]) + x.roll(1, -1) * x.new_tensor([0.8, 0.6, 0]),
    "a shortcut cut from the graph": lambda host, x: x.detach() + host.f(x),
    "a branch cut from the graph": lambda host, x: x + host.f(x.detach()),
    "a difference from a projection": lambda host, x: host.linear(x) - host.f(x),
    "a concatenation": lambda host, x: torch.cat([x, host.f(x)], 1)[:, 2:5],
    "a product": lambda host, x: x * host.f(x),
}


@pytest.mark.parametrize("add", SUMS.values(), ids=SUMS)
def test_every_way_to_write_an_add_is_a_junction_whose_shortcut_is_the_fork(
    add: Callable[[Tensor, Tensor], Tensor],
) -> None:
    model, x = Host(lambda host, x: add(x, host.f(x))), torch.randn(2, 3, dtype=FLOAT64)
    fork = model.stem(x)
    branch = model.f(fork)
    with record(model) as recording:
        model(x)
    assert found(model, x) == [("(model)", 0, "identity")]
    table = residual_magnitudes(recording)
    assert values(table, "shortcut") == pytest.approx([fork.norm().item()], rel=1e-14)
    assert values(table, "branch") == pytest.approx([branch.norm().item()], rel=1e-14)


@pytest.mark.parametrize("join", IDENTITIES.values(), ids=IDENTITIES)
def test_an_addend_that_is_the_fork_is_an_identity_shortcut(join: Callable[[Host, Tensor], Tensor]) -> None:
    assert found(Host(join)) == [("(model)", 0, "identity")]


@pytest.mark.parametrize("both", [True, False])
def test_a_shortcut_times_a_gate_is_still_a_shortcut(both: bool) -> None:
    """A highway layer, whose two gates sum to 1, and a gate of the shortcut's own."""

    def highway(host: Host, x: Tensor) -> Tensor:
        gate = torch.sigmoid(host.linear(x))
        return (1 - gate) * x + (gate * host.f(x) if both else host.f(x))

    model, x = Host(highway), torch.randn(2, 3, dtype=FLOAT64)
    with record(model) as recording:
        model(x)
    fork = model.stem(x)
    shortcut = (1 - torch.sigmoid(model.linear(fork))) * fork
    wanted = pytest.approx([shortcut.norm().item()], rel=1e-14)
    assert values(residual_magnitudes(recording), "shortcut") == wanted


def test_a_gate_that_addcmul_takes_first_stands_beside_the_shortcut() -> None:
    def highway(host: Host, x: Tensor) -> Tensor:
        gate = torch.sigmoid(host.linear(x))
        return torch.addcmul((1 - gate) * host.f(x), gate, x)

    assert found(Host(highway)) == [("(model)", 0, "identity")]


@pytest.mark.parametrize("join", PROJECTIONS.values(), ids=PROJECTIONS)
def test_an_addend_that_is_linear_in_the_fork_is_a_projection(join: Callable[[Host, Tensor], Tensor]) -> None:
    assert found(Host(join)) == [("(model)", 0, "projection")]


@pytest.mark.parametrize("join", NONE.values(), ids=NONE)
def test_other_adds_are_none(join: Callable[[Host, Tensor], Tensor]) -> None:
    assert found(Host(join)) == []


def test_a_merge_of_features_of_two_resolutions_is_none() -> None:
    """A pyramid's lateral connection: 1x1 convolution + upsampled deeper features."""

    def pyramid(self: nn.Module, x: Tensor) -> Tensor:
        fine = self.get_submodule("stem")(x)
        coarse = self.get_submodule("deep")(fine).relu()
        return self.get_submodule("lateral")(fine) + F.interpolate(coarse, scale_factor=2, mode="nearest")

    convolutions = {"stem": nn.Conv2d(3, 4, 3, padding=1), "lateral": nn.Conv2d(4, 4, 1)}
    model = Apply(pyramid, deep=nn.Conv2d(4, 4, 3, stride=2, padding=1), **convolutions)
    assert found(model, torch.randn(1, 3, 8, 8)) == []


def block_within(self: nn.Module, x: Tensor) -> Tensor:
    return self.get_submodule("f")(x) + self.get_submodule("inner")(x).tanh()


def block_third(self: nn.Module, x: Tensor) -> Tensor:
    return x + self.get_submodule("f")(x) + self.get_submodule("inner")(x).tanh()


def swish_at_the_end(self: nn.Module, x: Tensor) -> Tensor:
    y = self.get_submodule("f")(x)
    return torch.sigmoid(y) * y + self.get_submodule("inner")(x).tanh()


@pytest.mark.parametrize(
    ("forward", "inner", "wanted"),
    [
        (block_within, Residual(dense()), [("inner", "identity")]),
        (block_third, Residual(dense()), [("(model)", "identity"), ("inner", "identity")]),
        (swish_at_the_end, dense(), [("(model)", "projection")]),
    ],
)
def test_known_gaps(
    forward: Callable[[nn.Module, Tensor], Tensor], inner: nn.Module, wanted: list[tuple[str, str]]
) -> None:
    """As `docs/compatibility.md` lists them: a merge in the model's own forward, a third addend that holds a junction,
    an activation that passes for a gate."""
    junctions = find_junctions(Apply(forward, f=dense(), inner=inner), rows())
    assert [(junction.name, junction.shortcut) for junction in junctions] == wanted


def test_the_first_fork_may_be_the_model_s_raw_input() -> None:
    x = torch.randn(2, 3, dtype=FLOAT64)
    assert found(chain(2), x) == [("0", 0, "identity"), ("1", 1, "identity")]
    assert not x.requires_grad


def test_the_raw_input_may_lie_in_a_list_or_a_dictionary() -> None:
    model, x = Apply(lambda self, inputs: self.f(inputs[0]["x"]), f=chain(2)), torch.randn(2, 3).double()
    assert [junction.name for junction in find_junctions(model, [{"x": x}])] == ["f.0", "f.1"]


def test_the_raw_input_may_be_overwritten_by_the_model() -> None:
    model = nn.Sequential(nn.ReLU(inplace=True), Residual(perceptron()))
    x = torch.tensor([[-1.0, 2.0, 3.0]], dtype=FLOAT64)
    wanted = model(x.clone())
    with record(model) as recording:
        assert torch.equal(model(x), wanted)
    assert len(recording.junctions) == len(find_junctions(model, x)) == 1
    assert x.min() == 0, "the model overwrites it, recorded or not"


def test_an_embedding_may_be_overwritten_by_a_model_that_is_partly_frozen() -> None:
    """As CTRL does; integers have their node in autograd's graph behind the embedding."""

    def forward(self: nn.Module, ids: Tensor) -> Tensor:
        x = self.get_submodule("embedding")(ids)
        x *= 2
        return self.get_submodule("block")(x)

    model, ids = Apply(forward, embedding=nn.Embedding(5, 3).double(), block=Residual(perceptron())), torch.arange(4)
    for frozen in ("block", "embedding"):
        model.requires_grad_(True).get_submodule(frozen).requires_grad_(False)
        trained = [p for p in model.parameters() if p.requires_grad]
        wanted = torch.autograd.grad(model(ids).square().sum(), trained)
        with record(model) as recording:
            got = torch.autograd.grad(model(ids).square().sum(), trained)
        assert [site.name for site in recording.sites] == [j.name for j in find_junctions(model, ids)] == ["block"]
        assert all(map(torch.equal, got, wanted))


def test_a_number_among_the_inputs_may_decide_what_the_first_fork_is() -> None:
    class Optional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.blocks = nn.Linear(3, 3, dtype=FLOAT64), chain(2)

        def forward(self, x: Tensor, *, raw: bool) -> Tensor:
            return self.blocks(x if raw else self.stem(x))

    model, x = Optional(), torch.randn(2, 3, dtype=FLOAT64)
    for raw in (False, True, False, True):
        with record(model) as recording:
            model(x, raw=raw)
        assert [site.name for site in recording.sites] == ["blocks.0", "blocks.1"]


@pytest.mark.parametrize("dimension", [0, 1, -1])
@pytest.mark.parametrize("examples", [1, 2])
def test_a_stack_is_summed_along_any_axis(dimension: int, examples: int) -> None:
    model = Host(lambda host, x: torch.stack([x, host.f(x)], dimension).sum(dimension))
    assert found(model, torch.randn(examples, 3, dtype=FLOAT64)) == [("(model)", 0, "identity")]


def test_a_model_that_can_be_quantised_is_none_that_is() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f, self.add = perceptron(), FloatFunctional()

        def forward(self, x: Tensor) -> Any:
            return self.add.add(x, self.f(x))

    assert found(nn.Sequential(Block(), Block())) == [("0", 0, "identity"), ("1", 1, "identity")]


def test_a_module_that_is_called_again_counts_its_calls() -> None:
    block = Residual(perceptron())
    assert [name for name, *_ in found(nn.Sequential(block, nn.Tanh(), block, block))] == ["0", "0@1", "0@2"]


def test_a_module_that_adds_again_counts_its_adds() -> None:
    def layer(self: nn.Module, x: Tensor) -> Tensor:
        x = x + self.get_submodule("attention")(x)
        return x + self.get_submodule("mlp")(x)

    h = Apply(layer, attention=perceptron(), mlp=perceptron())
    model = nn.Sequential()
    model.add_module("h", h)
    model.add_module("again", nn.Sequential(h))
    assert [(name, depth) for name, depth, _ in found(model)] == [("h", 0), ("h#1", 1), ("h@1", 2), ("h@1#1", 3)]


def test_a_junction_around_junctions_is_found_after_them() -> None:
    assert found(Residual(chain(2))) == [
        ("branch.0", 0, "identity"), ("branch.1", 1, "identity"), ("(model)", 2, "identity"),
    ]  # fmt: skip


def test_a_branch_of_a_thousand_layers() -> None:
    branch = nn.Sequential(*(module for _ in range(600) for module in (nn.Linear(3, 3, dtype=FLOAT64), nn.Tanh())))
    assert len(found(Residual(branch))) == 1


STEMS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(3, 3),
    "linear without bias": lambda: nn.Linear(3, 3, bias=False),
    "convolution": lambda: nn.Conv1d(5, 5, 3, padding=1),
    "BatchNorm": lambda: nn.BatchNorm1d(5),
    "GroupNorm": lambda: nn.GroupNorm(1, 5),
    "LayerNorm": lambda: nn.LayerNorm(3),
}


@pytest.mark.parametrize("stem", STEMS.values(), ids=STEMS)
def test_what_a_stem_makes_of_inputs_is_an_activation_also_where_inputs_have_no_node(
    stem: Callable[[], nn.Module],
) -> None:
    """From the second forward on they have none; a learned embedding, added there, would be no shortcut."""

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        x = self.get_submodule("stem")(x)
        return x + self.get_submodule("outer")(self.get_submodule("inner")(x))

    x = torch.randn(5, 3) if isinstance(module := stem(), nn.Linear) else torch.randn(4, 5, 3)
    model = Apply(forward, stem=module, inner=Residual(perceptron(dtype=torch.float32)), outer=nn.Linear(3, 3))
    with record(model) as recording:
        for _ in range(2):
            model(x)
            assert [site.name for site in recording.sites] == ["inner", "(model)"]


@pytest.mark.parametrize(("positions", "with_node"), [(False, False), (True, True)])
def test_inputs_have_no_node_where_none_is_needed(positions: bool, with_node: bool) -> None:
    """Which costs a gradient into them: a learned embedding that is added to raw inputs would pass for a parameter."""

    class Stem(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.positions = nn.Linear(3, 3, dtype=FLOAT64), nn.Parameter(torch.ones(3, dtype=FLOAT64))
            self.had_node: list[bool] = []

        def forward(self, x: Tensor) -> Tensor:
            self.had_node.append(x.grad_fn is not None)
            return x + self.positions if positions else self.linear(x)

    model, x = nn.Sequential(stem := Stem(), *chain(2)), torch.randn(2, 3, dtype=FLOAT64)
    with record(model) as recording:
        for _ in range(2):
            model(x)
            assert len(recording.junctions) == 2
    assert stem.had_node == [True, with_node]


def test_any_arguments_are_handed_to_the_forward() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.block = nn.Embedding(5, 3, dtype=FLOAT64), Residual(perceptron())

        def forward(self, tokens: Tensor, *, scale: Tensor, times: int) -> dict[str, Tensor]:
            x = self.embedding(tokens) * scale
            for _ in range(times):
                x = self.block(x)
            return {"logits": x}

    junctions = find_junctions(Tokens(), torch.tensor([[1, 4]]), scale=torch.tensor(2.0, dtype=FLOAT64), times=2)
    assert [junction.name for junction in junctions] == ["block", "block@1"]


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_junctions_are_found_where_gradients_are_switched_off(context: Callable[[], torch.no_grad]) -> None:
    model, x = chain(2), torch.randn(2, 3, dtype=FLOAT64)
    with context():
        assert len(find_junctions(model, x)) == len(find_junctions(model, x.clone())) == 2
        assert not torch.is_grad_enabled()


@pytest.mark.parametrize(("operations", "junctions"), [(8, 1), (9, 0)])
def test_a_weight_may_be_computed_from_a_parameter_by_up_to_eight_operations(operations: int, junctions: int) -> None:
    """What lies further back is not searched: a walk through a whole network would find parameters everywhere."""

    def join(host: Host, x: Tensor) -> Tensor:
        weight: Tensor = host.linear.weight
        for _ in range(operations):
            weight = -weight
        return x + torch.tanh(x @ weight)

    assert len(found(Host(join))) == junctions


def test_a_user_s_backward_hook_on_the_shortcut_hides_no_junction() -> None:
    model = nn.Sequential(dense(), block_of(lambda m, x: m.i(x) + m.f(x).tanh()), dense())
    for module in model.modules():
        module.register_full_backward_hook(lambda *_: None)
    assert len(find_junctions(model, rows())) == 1


def test_unfreezing_changes_no_junction() -> None:
    model = nn.Sequential(dense(), *chain(3, 4), dense())

    def seen(frozen: int) -> list[str]:
        for index, module in enumerate(model):
            module.requires_grad_(index != frozen)
        return [site.name for site in recorded(model, rows()).sites]

    assert seen(0) == seen(4) == seen(0) == ["1", "2", "3"]


def test_frozen_pruned_weights_are_parameters() -> None:
    model = nn.Sequential(*(block_of(lambda m, x: x + m.f(x).tanh()) for _ in range(2)))
    for residual in model:
        residual.get_submodule("f").register_parameter("bias", None)
        prune.l1_unstructured(residual.get_submodule("f"), "weight", amount=0.3)  # type: ignore[no-untyped-call]
    model.requires_grad_(False)
    assert [site.name for site in recorded(model, rows().requires_grad_()).junctions] == ["0", "1"]


def test_a_constant_that_is_added_to_the_shortcut_leaves_it_an_identity() -> None:
    model = Apply(lambda self, x: sum([x, self.get_submodule("f")(x)]), f=nn.Linear(3, 3))
    assert [junction.shortcut for junction in find_junctions(model, torch.randn(2, 3))] == ["identity"]


def test_a_long_product_of_a_tensor_with_itself_is_walked_once() -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        h = x
        for _ in range(40):  # 2 ** 40 ways back
            h = h * h
        return h + self.get_submodule("f")(h)

    assert len(find_junctions(Apply(forward, f=nn.Linear(3, 3)), torch.rand(2, 3))) == 1


def test_a_block_in_another_thread_is_refused() -> None:
    def forward(self: nn.Module, x: Tensor) -> Any:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(self.get_submodule("block"), x).result()

    with pytest.raises(RuntimeError, match="'block' runs in a thread of its own"):
        find_junctions(Apply(forward, block=Residual(nn.Linear(3, 3))), torch.randn(2, 3))


# Our networks.


@pytest.mark.parametrize("projection", ["A", "B", "C"])
@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_of_ours_has_the_same_junctions(arm: str, projection: Projection) -> None:
    model = cifar_resnet(20, flow=ARMS[arm], width=4, projection=projection)
    junctions = find_junctions(model, torch.randn(2, 3, 8, 8))
    names = [f"layer{stage}.{index}" for stage in (1, 2, 3) for index in range(3)]
    assert [junction.name for junction in junctions] == names
    assert [junction.depth for junction in junctions] == list(range(9))
    projections = set(names) if projection == "C" else {"layer2.0", "layer3.0"}
    assert {junction.name for junction in junctions if junction.shortcut == "projection"} == projections


def test_bottlenecks_change_their_channels_in_the_first_block_too() -> None:
    junctions = find_junctions(cifar_resnet(29, block="bottleneck", width=4), torch.randn(2, 3, 8, 8))
    assert [j.shortcut for j in junctions] == ["projection", "identity", "identity"] * 3
