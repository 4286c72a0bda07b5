"""Path lengths on graphs of junctions, against the gradients through every set of branches, and walk by walk."""

import itertools
import random
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from probes import Junction, Recording, path_contributions, path_gradients, record, scale_gradient
from probes.gradients.chain import backpropagate, through_junction
from tests.support.networks import (
    FLOAT64,
    Apply,
    chain,
    linear,
    one,
    recorded,
    relative_error,
    scalars,
    squares,
    values,
)

# Some hundred sums of float64 gradients of size 1; a path more or less is off by more than 1e-3.
CLOSE = 1e-12


class Block(nn.Module):
    """x + branch(x, ...), whose branch can be closed to the gradient by hand."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch, self.is_open = branch, True

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        return added(self, x, self.branch(torch.cat([x, *others], -1)))


def added(block: Block, x: Tensor, y: Tensor) -> Tensor:
    """x + y, where nothing passes into y if the block's branch is closed."""
    if not block.is_open:
        y.register_hook(torch.zeros_like)
    return x + y


def block(inputs: int = 1) -> Block:
    return Block(nn.Sequential(nn.Linear(3 * inputs, 3, dtype=FLOAT64), nn.Tanh(), nn.Linear(3, 3, dtype=FLOAT64)))


def affine() -> nn.Linear:
    return nn.Linear(3, 3, dtype=FLOAT64)


def mixed(weights: Tensor, *streams: Tensor) -> Tensor:
    """A weighted sum of several streams that is no junction: no add of two, nor a sum over a stack."""
    return len(streams) * (weights[: len(streams), None, None] * torch.stack(streams)).mean(0)


WEIGHTS = torch.tensor([0.3, -0.7, 1.1, 0.4], dtype=FLOAT64)


def long_skip(m: Any, x: Tensor) -> Tensor:
    x = m.stem(x)
    return m.head(mixed(WEIGHTS, x, m.c(m.b(m.a(x)))))


def dense_sums(m: Any, x: Tensor) -> Tensor:
    streams = [x := m.stem(x), m.a(x)]
    for each in (m.b, m.c):
        streams.append(each(mixed(WEIGHTS, *streams).tanh()))
    return mixed(WEIGHTS, *streams)


def u_net(m: Any, x: Tensor) -> Tensor:
    first = m.a(m.stem(x))
    second = m.b(first)
    up = m.c(mixed(WEIGHTS, second, m.head(second)))
    return m.d(mixed(WEIGHTS, up, first))


def two_streams(m: Any, x: Tensor) -> Tensor:
    left, right = m.stem(x), m.head(x)
    left, right = m.a(left), m.b(right)
    left = m.two(left, right)
    right = m.c(mixed(WEIGHTS, left, right))
    return mixed(WEIGHTS, left, right.tanh())


def side_by_side(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    return m.b(m.a(x := m.stem(x))), m.c(x)


def cross_attention(m: Any, x: Tensor) -> Tensor:
    encoded = m.b(m.a(m.stem(x)))
    decoded = m.c(m.head(x))
    return m.d(m.two(decoded, encoded))


def auxiliary_head(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    first = m.a(m.stem(x))
    return m.c(m.b(first)), m.head(first).sin()


def unused_head(m: Any, x: Tensor) -> Tensor:
    """A head of the detached stream, on which the loss does not depend."""
    first = m.a(m.stem(x))
    m.d(m.c(first.detach()))
    return m.head(m.b(first))


def hidden_state(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    first = m.a(m.stem(x))
    return m.head(m.c(m.b(first))), first


def nested(m: Any, x: Tensor) -> Tensor:
    return m.outer(m.a(m.stem(x)))


def nested_first(m: Any, x: Tensor) -> Tensor:
    return m.b(m.outer(m.stem(x)))


def nested_tapped(m: Any, x: Tensor) -> Tensor:
    """What is inside a branch is used outside of it, too."""
    out = m.outer(m.stem(x))
    return m.b(mixed(WEIGHTS, out, m.outer.branch.inside))


def value_residual(m: Any, x: Tensor) -> Tensor:
    """What the first branch computes is read by the last."""
    x = m.a(m.stem(x))
    hidden = m.b.branch[0](x)
    return m.two(m.c(added(m.b, x, m.b.branch[2](hidden.tanh()))), hidden)


def mixing_from_the_stream(m: Any, x: Tensor) -> Tensor:
    x = m.stem(x)
    y = m.b(m.a(x))
    return m.c(torch.einsum("ns,snd->nd", m.head(x).softmax(-1), torch.stack([x, y, x.sin()])))


def both_addends_elsewhere(m: Any, x: Tensor) -> Tensor:
    """Shortcut and branch of one junction read an earlier state."""
    first = m.stem(x)
    second = m.b(m.a(first))
    return m.d(added(m.two, second * first.sin(), m.two.branch(torch.cat([second, first], -1))))


def highway(m: Any, x: Tensor) -> Tensor:
    """Both addends of a junction have a gate, which counts as the shortcut's."""
    first = m.stem(x)
    second = m.a(first)
    gate = m.head(second).sigmoid()
    branch = m.b.branch(second)
    if not m.b.is_open:
        branch.register_hook(torch.zeros_like)
    return mixed(WEIGHTS, m.d(second * (1 - gate) + branch * gate), first)


def two_branches(m: Any, x: Tensor) -> Tensor:
    """x + f(x) + g(x) is one junction, whose first branch reads an earlier state, too."""
    stem = m.stem(x)
    first = m.a(stem)
    second = added(m.b, first, m.b.branch(first * stem.sin()))
    return mixed(WEIGHTS, m.d(added(m.b, second, m.c.branch(first))), first)


class Nest(nn.Module):
    """Layers, a block and layers, whose state in the middle can be read."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.inner, self.after = affine(), block(), affine()

    def forward(self, x: Tensor) -> Tensor:
        self.inside = self.inner(self.before(x).tanh())
        return self.after(self.inside.tanh())


GRAPHS = [
    long_skip, dense_sums, u_net, two_streams, side_by_side, cross_attention, auxiliary_head, unused_head, hidden_state,
    nested, nested_first, nested_tapped, value_residual, mixing_from_the_stream, both_addends_elsewhere, highway,
    two_branches,
]  # fmt: skip
graphs = pytest.mark.parametrize("graph", GRAPHS, ids=lambda graph: graph.__name__)


def network(graph: Callable[[Any, Tensor], object]) -> Apply:
    parts: dict[str, nn.Module] = {"stem": affine(), "head": affine(), "two": block(2), "outer": Block(Nest())}
    return Apply(graph, **parts, **{name: block() for name in "abcd"})


def loss(output: Any) -> Tensor:
    tensors = [output] if isinstance(output, Tensor) else output
    return torch.stack([(number + 1) * x.square().sum() for number, x in enumerate(tensors)]).sum()


def blocks_of(model: nn.Module, recording: Recording) -> list[tuple[str, Block]]:
    """The blocks that are used, in the order of the junctions."""
    used = {site.name: site for site in recording.junctions}
    found = [(name, module) for name, module in model.named_modules() if isinstance(module, Block)]
    ordered = [(name, dict(found).get(name)) for name in used]
    by_hand = (
        "two" if getattr(model, "function", None) is both_addends_elsewhere else "b"
    )  # where the graph itself adds
    return [(name, module) if module is not None else (by_hand, dict(found)[by_hand]) for name, module in ordered]


def by_branches(
    model: nn.Module, blocks: Iterable[Block], x: Tensor, ends: Callable[[], list[Tensor]]
) -> dict[frozenset[int], list[Tensor]]:
    """The gradients along all paths that take just these branches, for every set of branches."""
    listed = list(blocks)
    sets = [frozenset(c) for n in range(len(listed) + 1) for c in itertools.combinations(range(len(listed)), n)]
    whole: dict[frozenset[int], list[Tensor]] = {}
    for chosen in sets:  # the gradient with these open, less that of all smaller sets: by inclusion and exclusion
        for number, each in enumerate(listed):
            each.is_open = number in chosen
        value = loss(model(x))
        found = torch.autograd.grad(value, ends(), allow_unused=True)
        whole[chosen] = [torch.zeros_like(e) if g is None else g for g, e in zip(found, ends(), strict=True)]
        for smaller in whole:
            if smaller < chosen:
                whole[chosen] = [a - b for a, b in zip(whole[chosen], whole[smaller], strict=True)]
    for each in listed:
        each.is_open = True
    return whole


def close(got: Tensor, wanted: Tensor, scale: Tensor) -> bool:
    return (got - wanted).norm().item() <= CLOSE * max(scale.norm().item(), 1.0)


@graphs
def test_lengths_kinds_and_blocks_are_sums_over_every_set_of_branches(graph: Callable[[Any, Tensor], object]) -> None:
    model, x = network(graph), torch.randn(2, 3, dtype=FLOAT64)
    forks: list[Any] = []
    model.get_submodule("stem").register_forward_hook(lambda _, __, output: forks.append(output))
    recording = recorded(model, x, loss)
    blocks = blocks_of(model, recording)
    assert not recording.is_chain()
    wanted = by_branches(model, [module for _, module in blocks], x, lambda: forks[-1:])

    lengths = path_gradients(recording)
    total = sum((gradient for (gradient,) in wanted.values()), torch.zeros_like(x))
    assert lengths.shape == (len(blocks) + 1, *x.shape)
    for length, gradient in enumerate(lengths):
        of_length = [g for taken, (g,) in wanted.items() if len(taken) == length]
        assert close(gradient, sum(of_length, torch.zeros_like(x)), total)
    assert sum(gradient.norm() > 1e-3 for gradient in lengths) > 1
    assert relative_error(lengths.sum(0), total) < CLOSE
    assert relative_error(lengths.sum(0), recording.gradient(recording.first, "total")) < CLOSE
    for most in range(len(lengths)):
        short = path_gradients(recording, max_length=most)
        assert all(close(a, b, total) for a, b in zip(short, lengths[: most + 1], strict=True))

    def share(gradient: Tensor) -> float:
        return ((gradient * total).sum() / total.square().sum()).item()

    def kind(junction: Junction) -> str:
        return "even" if junction.depth % 2 == 0 else "odd"

    table = path_contributions(recording, by=kind)
    shares = table[table["quantity"] == "share"]
    assert sorted({"even", "odd"} & set(shares.columns)) == ["even", "odd"]
    for row in shares.to_dict("records"):
        counts = row["even"], row["odd"]
        taken = [t for t in wanted if (sum(b % 2 == 0 for b in t), sum(b % 2 for b in t)) == counts]
        assert row["value"] == pytest.approx(sum(share(wanted[t][0]) for t in taken), abs=1e-11)
        assert row["path_length"] == sum(counts)
    by_block = path_contributions(recording, by="block")
    assert by_block["block"].unique().tolist() == [site.name for site in recording.junctions]
    single = [share(wanted[frozenset([number])][0]) for number in range(len(blocks))]
    assert values(by_block, "share") == pytest.approx(single, abs=1e-11)


@graphs
def test_lengths_at_parameters_leave_out_the_branches_that_hold_them(graph: Callable[[Any, Tensor], object]) -> None:
    model, x = network(graph), torch.randn(2, 3, dtype=FLOAT64)
    recording = recorded(model, x, loss)
    blocks = blocks_of(model, recording)
    parameters = {name: p for name, p in model.named_parameters() if p.grad is not None}
    wanted = by_branches(model, [module for _, module in blocks], x, lambda: list(parameters.values()))
    lengths = path_gradients(recording, of="parameters")
    before = (
        {"head.weight", "head.bias"} if graph in (hidden_state, unused_head) else set[str]()
    )  # is behind the last junction
    assert lengths.keys() == parameters.keys() - before
    for place, (name, parameter) in enumerate(parameters.items()):
        if name in before:
            continue
        assert parameter.grad is not None
        assert close(lengths[name].sum(0), parameter.grad, parameter.grad), name
        if graph in (two_streams, value_residual):  # what another branch reads is held by that branch, too
            continue
        within = name.replace("c.branch.", "b.branch.") if graph is two_branches else name  # one junction, of both
        holding = {
            number for number, (block_name, _) in enumerate(blocks) if within.startswith(f"{block_name}.branch.")
        }
        for length, gradient in enumerate(lengths[name]):
            terms = [g[place] for taken, g in wanted.items() if len(taken - holding) == length]
            assert close(gradient, sum(terms, torch.zeros_like(parameter)), parameter.grad), (name, length)


def walks(mixes: list[list[float]], branches: list[float], outputs: list[float]) -> list[float]:
    """Of blocks v + w v whose forks are sums of all earlier streams: the walks to the first fork, one by one."""
    lengths = [0.0] * (len(branches) + 1)

    def walk(stream: int, length: int, product: float) -> None:
        if stream == 0:
            return  # the input itself, which no walk to the first fork passes
        for weight, more in ((1.0, 0), (branches[stream - 1], 1)):
            if stream == 1:
                lengths[length + more] += product * weight
            for source, mix in enumerate(mixes[stream - 1]):
                walk(source, length + more, product * weight * mix)

    for stream, weight in enumerate(outputs):
        walk(stream, 0, weight)
    return lengths


@pytest.mark.parametrize("depth", [1, 4, 10])
def test_dense_sums_of_scalar_blocks_are_all_walks(depth: int) -> None:
    """Three to the power of nine walks and more, none of which is weighed by a number near 0."""
    draw = random.Random(depth)
    *mixes, outputs = ([draw.uniform(0.2, 1.0) for _ in range(number)] for number in range(1, depth + 2))
    branches = [draw.uniform(-1.0, 1.0) for _ in range(depth)]
    blocks = [Block(linear(weight)) for weight in branches]

    def forward(_: nn.Module, x: Tensor) -> Tensor:
        streams = [x]
        for mix, each in zip(mixes, blocks, strict=True):
            streams.append(each(mixed(torch.tensor(mix, dtype=FLOAT64), *streams)))
        return mixed(torch.tensor(outputs, dtype=FLOAT64), *streams)

    lengths = path_gradients(recorded(Apply(forward, blocks=nn.ModuleList(blocks)), one())).flatten()
    assert lengths.tolist() == pytest.approx(walks(mixes, branches, outputs), rel=1e-12, abs=1e-12)


def kind_of(junction: Junction) -> str:
    return "mlp" if junction.depth == 1 else "attention"


def test_kinds_and_blocks_on_paper() -> None:
    """(1 + 2a)(1 + 3m)(1 + 5a) = 1 + 7a + 10a² + 3m + 21am + 30a²m; through one branch alone 2, 3 and 5."""
    recording = recorded(scalars(), one())
    table = path_contributions(recording, by=kind_of)
    assert list(table.columns) == ["path_length", "attention", "mlp", "quantity", "value"]
    norms = table[table["quantity"] == "norm"]
    got = {(row["attention"], row["mlp"]): row["value"] for row in norms.to_dict("records")}
    assert got == {(0, 0): 1, (1, 0): 7, (2, 0): 10, (0, 1): 3, (1, 1): 21, (2, 1): 30}
    assert norms["path_length"].tolist() == (norms["attention"] + norms["mlp"]).tolist()
    assert sum(values(table, "share")) == pytest.approx(1, abs=1e-15)
    short = path_contributions(recording, by=kind_of, max_length=1)
    assert values(short, "norm") == [1, 3, 7]
    by_block = path_contributions(recording, by="block")
    assert list(by_block.columns) == ["block", "depth", "path_length", "quantity", "value"]
    assert by_block["block"].tolist() == ["0", "0", "1", "1", "2", "2"]
    assert values(by_block, "norm") == [2, 3, 5]
    assert values(by_block, "share") == pytest.approx([2 / 72, 3 / 72, 5 / 72], rel=1e-15)


def test_kinds_at_parameters_on_paper() -> None:
    """The first block's weight sees (1 + 3m)(1 + 5a), the last one's nothing but its own input's 1 + 2 + 3 + 6 = 12."""
    table = path_contributions(recorded(scalars(), one()), by=kind_of, of="parameters")
    assert list(table.columns) == ["block", "path_length", "attention", "mlp", "quantity", "value"]
    norms = table[table["quantity"] == "norm"].set_index("block")
    first, last = norms.loc["0.branch.weight"], norms.loc["2.branch.weight"]
    assert dict(zip(zip(first["attention"], first["mlp"], strict=True), first["value"], strict=True)) == {
        (0, 0): 1, (1, 0): 5, (0, 1): 3, (1, 1): 15,
    }  # fmt: skip
    assert (last["attention"], last["mlp"], last["value"]) == (0, 0, 12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"by": "layer"}, "by is 'layer': give a function that names a junction's kind.*or \"block\""),
        ({"by": lambda junction: junction.depth}, "by gives 0 for the junction '0': give a kind's name, a string"),
        ({"by": lambda junction: ""}, "by gives '' for the junction '0'"),
        ({"by": lambda junction: "value"}, "by gives 'value' .* not that of another column"),
        ({"by": "block", "max_length": 2}, 'by="block" is of the paths through a single branch'),
        ({"by": "block", "of": "parameters"}, 'by="block" is of the paths through a single branch'),
        ({"by": kind_of, "samples": 3}, "give samples or by, not both"),
        ({"by": kind_of, "max_length": 9}, "max_length is 9: give a number from 0 to 3"),
    ],
)
def test_what_by_may_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        path_contributions(recorded(scalars(), one()), **options)


def test_too_many_kinds_are_refused_unless_paths_are_short() -> None:
    recording = recorded(scalars(*[0.5] * 14), one())
    with pytest.raises(ValueError, match=r"14 kinds of junctions, .* 16,384 combinations \(at most 10,000\)"):
        path_contributions(recording, by=lambda junction: f"kind {junction.name}")
    table = path_contributions(recording, by=lambda junction: f"kind {junction.name}", max_length=1)
    assert sorted(values(table, "norm")) == [0.5] * 14 + [1]


def carried_along_a_chain(recording: Recording, most: int) -> Tensor:
    """What path lengths were before junctions could form any graph."""
    sites = recording.junctions
    lengths = [recording.gradient(sites[-1], "junction")]
    for site, before in zip(reversed(sites), [*sites[-2::-1], None], strict=True):
        lengths = through_junction(site.name, site.add, site.match, lengths)[: most + 1]
        if before is not None:
            lengths = [backpropagate(g, site.match.fork, (before.add, 0), site.name) for g in lengths]
    return torch.stack(lengths)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("most", [1, 6])
def test_a_chain_is_carried_back_as_ever_to_the_last_bit(dtype: torch.dtype, most: int) -> None:
    model = nn.Sequential(*(nn.Sequential(each, nn.Tanh()) for each in chain(6, dtype=dtype)))
    recording = recorded(model, torch.randn(4, 3, dtype=dtype), squares)
    assert recording.is_chain()
    assert torch.equal(path_gradients(recording, max_length=most), carried_along_a_chain(recording, most))


def test_a_loss_that_reads_what_is_not_returned_is_refused() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        m.tapped = m.a(m.stem(x))
        return m.c(m.b(m.tapped))

    model: Any = network(forward)
    with record(model) as recording:
        (model(torch.randn(2, 3, dtype=FLOAT64)).square().sum() + model.tapped.sin().sum()).backward(retain_graph=True)
    for of in ("inputs", "parameters"):
        with pytest.raises(
            ValueError,
            match=r"at the fork of 'b' .* elsewhere than from what the model returned: let the model return what the "
            r"loss reads.*gradient weights have changed",
        ):
            path_gradients(recording, of=of)


def test_what_is_returned_from_within_a_branch_needs_its_gradient_kept() -> None:
    def forward(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        y = m.b(m.outer(m.a(m.stem(x))))
        return y, m.outer.branch.inner.branch.hidden

    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = affine(), affine()

        def forward(self, x: Tensor) -> Tensor:
            self.hidden = self.first(x).tanh()
            return self.last(self.hidden)

    model, x = network(forward), torch.randn(2, 3, dtype=FLOAT64)
    nest: Any = model.get_submodule("outer.branch")
    nest.inner = Block(Hidden())
    with pytest.raises(ValueError, match=r"elsewhere than from what the model returned.*record\(model, keep=True\)"):
        path_gradients(recorded(model, x, loss))
    recording = recorded(model, x, loss, keep=True)
    assert relative_error(path_gradients(recording).sum(0), recording.gradient(recording.first, "total")) < CLOSE


def test_weights_that_have_changed_since_the_backward_are_refused() -> None:
    weight = [0.5]

    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        return mixed(WEIGHTS, x, m.b(scale_gradient(m.a(x), lambda: weight[0])))

    recording = recorded(network(forward), torch.randn(2, 3, dtype=FLOAT64), loss)
    assert path_gradients(recording).any()
    weight[0] = 0.25
    with pytest.raises(ValueError, match="gradient weights have changed since the recorded backward"):
        path_gradients(recording)


def test_hooks_of_the_user_that_expect_a_gradient_get_one() -> None:
    seen: list[float] = []

    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.a(x := m.stem(x)).tanh()
        y.register_hook(lambda gradient: seen.append(gradient.norm().item()))
        return m.two(m.b(y), x)

    recording = recorded(network(forward), torch.randn(2, 3, dtype=FLOAT64), loss)
    assert relative_error(path_gradients(recording).sum(0), recording.gradient(recording.first, "total")) < CLOSE
    assert len(seen) > 1


class Unlearned(torch.autograd.Function):
    """x * w, of which w gets no gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(w)
        return x * w

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.saved_tensors[0], None


def test_a_parameter_that_gets_no_gradient_has_zeros() -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1, dtype=FLOAT64))

        def forward(self, x: Tensor) -> Any:
            return Unlearned.apply(x, self.weight)

    lengths = path_gradients(recorded(nn.Sequential(Scale(), *scalars(2.0, 3.0)), one()), of="parameters")
    assert lengths["0.weight"].tolist() == [[0], [0], [0]]
    assert lengths["1.branch.weight"].tolist() == [[[1]], [[3]]]


def test_gradients_and_recording_stay_as_they_were() -> None:
    model = network(u_net)
    recording = recorded(model, torch.randn(2, 3, dtype=FLOAT64), loss)
    before = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    once, twice = path_gradients(recording), path_gradients(recording)
    assert torch.equal(once, twice)
    assert all(torch.equal(model.get_parameter(name).grad, g) for name, g in before.items())  # type: ignore[arg-type]


def test_kinds_of_a_language_model_sum_to_its_lengths() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=11, n_positions=6)
    model = transformers.GPT2LMHeadModel(config).double().eval()
    ids = torch.randint(11, (2, 5))
    recording = recorded(model, ids, lambda output: output.logits.square().mean())
    joint = path_contributions(recording, by=lambda junction: "mlp" if "#1" in junction.name else "attention")
    shares = joint[joint["quantity"] == "share"]
    assert len(shares) == 9
    summed = shares.groupby("path_length")["value"].sum()
    plain = path_contributions(recording)
    assert summed.tolist() == pytest.approx(values(plain, "share"), abs=CLOSE)
    assert (shares.groupby(["attention", "mlp"])["value"].sum().abs() > 1e-9).all()
