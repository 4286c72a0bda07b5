"""Limits on path lengths, against a chain on paper, the sum over enumerated paths, and the shortest-path arm."""

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import RESIDUAL, SHORTEST_PATH, cifar_resnet
from probes import find_junctions, gate, gradient_norms, limit_paths, path_gradients, record
from tests.support.networks import (
    FLOAT64,
    Apply,
    Residual,
    chain,
    dense,
    images,
    left_as_it_was,
    linear,
    one,
    perceptron,
    recorded,
    relative_error,
    rows,
    scalars,
)

LABELS = torch.tensor([0, 1, 2, 3])
CLASSIFIER = {"classifier.weight", "classifier.bias"}


def small(flow: object = RESIDUAL) -> nn.Module:
    torch.manual_seed(0)
    return cifar_resnet(8, flow=flow, width=4, projection="B").double()  # type: ignore[arg-type]


def gradients(model: nn.Module, x: Tensor, **limits: Any) -> dict[str, Tensor]:
    model.zero_grad()
    with limit_paths(model, **limits):
        loss_of(model(x)).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def by_length(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    return path_gradients(recorded(model, x, loss_of), of="parameters")


def loss_of(logits: Tensor) -> Tensor:
    return F.cross_entropy(logits, LABELS)


@pytest.mark.parametrize(
    ("limits", "wanted"),
    [  # behind each block the gradient is the product of (1 + w t) above it; its weight's own gradient: times its input
        ({"at_most": 0}, (1, 3, 12)),
        ({"at_most": 1}, (9, 18, 12)),
        ({"exactly": 1}, (8, 15, 0)),
        ({"at_least": 1}, (23, 15, 0)),
        ({"at_least": 2}, (15, 0, 0)),
        ({"at_most": 9}, (24, 18, 12)),
        ({"at_least": 1, "at_most": 1}, (8, 15, 0)),
    ],
)
def test_on_paper(limits: dict[str, Any], wanted: tuple[float, ...]) -> None:
    """Blocks x + 2x, x + 3x, x + 5x of 1: inputs 1, 3, 12; above the first (1 + 3t)(1 + 5t) = 1 + 8t + 15t²."""
    model = scalars()
    with limit_paths(model, **limits) as limit:
        model(one()).sum().backward()
    assert [p.grad.item() for p in model.parameters() if p.grad is not None] == list(wanted)
    assert limit.without_path == [n for (n, _), g in zip(model.named_parameters(), wanted, strict=True) if not g]
    assert limit.junctions == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("low", "high"), [(0, 0), (0, 1), (0, 2), (1, 1), (2, 2), (1, 2), (1, None), (2, None), (3, None)]
)
def test_limits_are_sums_of_exact_lengths(low: int, high: int | None) -> None:
    """Equal up to the order of sums: 1e-12 in float64 of networks with train-mode BatchNorm."""
    x, model = images(), small()
    lengths = by_length(model, x)
    got = gradients(model, x, at_least=low, **({} if high is None else {"at_most": high}))
    for name, of_length in lengths.items():
        wanted = of_length[low : None if high is None else high + 1].sum(0)
        assert relative_error(got[name], wanted) < 1e-12 if wanted.any() else not got[name].any(), name
    whole = {name: gradient for name, gradient in ordinary(model, x).items() if name not in lengths}
    assert whole.keys() == CLASSIFIER
    assert all(torch.equal(got[name], gradient) for name, gradient in whole.items())


def ordinary(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss_of(model(x)).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_lengths_of_parameters_against_every_single_path() -> None:
    """All 2^L choices of branch or shortcut by `gate`: a parameter's gradient along the paths of one length."""
    x = torch.randn(4, 3, dtype=FLOAT64)
    model = nn.Sequential(nn.Linear(3, 3, dtype=FLOAT64), *chain(4), nn.Linear(3, 5, dtype=FLOAT64))
    names = [junction.name for junction in find_junctions(model, x)]
    lengths = by_length(model, x)
    assert {name: len(g) for name, g in lengths.items() if name.endswith("weight") and ".2" not in name} == {
        "0.weight": 5, "1.branch.0.weight": 4, "2.branch.0.weight": 3, "3.branch.0.weight": 2, "4.branch.0.weight": 1,
    }  # fmt: skip
    wanted = {name: torch.zeros_like(g) for name, g in lengths.items()}
    for path in itertools.product((0.0, 1.0), repeat=4):
        branches = dict(zip(names, path, strict=True))
        with gate(model, branch_gradient=branches, shortcut_gradient={n: 1 - b for n, b in branches.items()}):
            model.zero_grad()
            loss_of(model(x)).backward()
        for name, parameter in model.named_parameters():
            block = int(name.split(".")[0])
            if block < 5 and not any(path[: len(path) - (4 - block)]) and parameter.grad is not None:
                # What the junctions before the parameter do does not matter to it: each path is counted once.
                wanted[name][int(sum(path[block:]))] += parameter.grad
    for name, of_length in lengths.items():
        for got, want in zip(of_length, wanted[name], strict=True):
            assert torch.allclose(got, want, rtol=1e-12, atol=1e-14), name


def test_a_parameter_that_is_used_three_times() -> None:
    """(1 + w)³ at w = 2: uses on inputs 1, 3, 9 with (1 + 2t)², 1 + 2t, 1 above them; the gradient is 27."""
    shared = Residual(linear(2.0))
    model = nn.Sequential(shared, shared, shared)
    recording = recorded(model, one())
    (lengths,) = path_gradients(recording, of="parameters").values()
    assert lengths.flatten().tolist() == [13, 10, 4]
    assert path_gradients(recording, max_length=1, of="parameters")["0.branch.weight"].flatten().tolist() == [13, 10]


def test_no_branch_is_the_shortest_path_arm() -> None:
    x = images()
    got, wanted = gradients(small(), x, at_most=0), ordinary(small(SHORTEST_PATH), x)
    assert got.keys() == wanted.keys()
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)


def test_all_lengths_are_ordinary_training_bit_for_bit() -> None:
    x, model = images(), small()
    got, wanted = gradients(model, x, at_most=3), ordinary(model, x)
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)


def test_the_forward_is_untouched_and_nothing_stays() -> None:
    model = small()
    model.eval()
    x = images()
    wanted = model(x)
    with left_as_it_was(model), limit_paths(model, at_most=1):
        assert torch.equal(model(x), wanted)


def test_a_backward_may_be_repeated_and_follow_another_forward() -> None:
    x, model = images(), small()
    wanted = gradients(model, x, at_most=1)
    with limit_paths(model, at_most=1):
        loss_of(model(x)).backward()
        model.zero_grad()
        loss = loss_of(model(x))
        loss.backward(retain_graph=True)
        model.zero_grad()
        loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, wanted[name])


def test_sampled_branches() -> None:
    """Two of three branches pass the gradient on: which, tells the generator; the rest is the gate's."""
    x, model = images(), small()
    generator = torch.Generator().manual_seed(3)
    drawn = []
    for _ in range(6):
        model.zero_grad()
        with limit_paths(model, sampled=2, generator=generator) as limit:
            loss_of(model(x)).backward()
        got = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        closed = set(limit.junctions) - set(limit.branches)
        assert len(closed) == 1
        drawn.append(closed.pop())
        model.zero_grad()
        with gate(model, branch_gradient=0, where=drawn[-1]):
            loss_of(model(x)).backward()
        assert all(torch.equal(got[n], p.grad) for n, p in model.named_parameters() if p.grad is not None)
    assert len(set(drawn)) > 1


def around(module: nn.Module, x: Tensor) -> Tensor:
    y = module.get_submodule("first")(x)
    return module.get_submodule("second")(y) + 0.1 * y.sum()


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({}, "give at_most, at_least or both, or exactly, or sampled; got none"),
        ({"exactly": 1, "at_most": 2}, "got at_most, exactly"),
        ({"sampled": 1, "at_most": 2}, "got at_most, sampled"),
        ({"at_most": -1}, "at_most is -1; give a whole number from 0"),
        ({"at_least": 3, "at_most": 2}, "at_least=3 is more than at_most=2: no path is left"),
        ({"at_least": 4}, "4 branches are more than the 3 junctions have"),
        ({"sampled": 5}, "5 branches are more than the 3 junctions have"),
        *(({"at_most": limit}, "give a whole number") for limit in (1.5, "1", float("nan"), True)),
    ],
)
def test_limits_that_make_no_sense(limits: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gradients(small(), images(), **limits)


def test_no_junctions() -> None:
    with pytest.raises(ValueError, match="the model has no residual junctions"):
        gradients(nn.Sequential(nn.Flatten(), nn.Linear(192, 4, dtype=FLOAT64)), images(), at_most=1)


def test_a_route_around_a_junction_is_no_chain() -> None:
    model = Apply(around, first=chain(1), second=chain(2))
    with pytest.raises(ValueError, match="the junctions are no chain"), limit_paths(model, at_most=1):
        model(torch.randn(2, 3, dtype=FLOAT64)).sum().backward()  # type: ignore[attr-defined]


def under_autocast(route: float) -> None:
    """Four junctions, linear layers between them whose products round in bfloat16, and a route around the last two."""

    def forward(module: nn.Module, x: Tensor) -> Tensor:
        middle = module.get_submodule("first")(x)
        return module.get_submodule("last")(middle).float().square().sum() + route * middle.float().sum()

    def half() -> nn.Sequential:
        blocks = (Residual(perceptron(8, dtype=torch.float32)) for _ in range(2))
        return nn.Sequential(*(part for block in blocks for part in (block, nn.Linear(8, 8))))

    model = Apply(forward, first=half(), last=half())
    with limit_paths(model, at_most=2), torch.autocast("cpu", torch.bfloat16):
        model(torch.randn(16, 8)).backward()  # type: ignore[attr-defined]


def test_the_rounding_of_autocast_is_no_route_around_junctions() -> None:
    """At the float32 sums, too: there it is 0.3 %, a route of 5 % is refused."""
    under_autocast(0.0)
    with pytest.raises(ValueError, match="the junctions are no chain"):
        under_autocast(0.02)


def test_a_backward_too_late() -> None:
    model, x = small(), images()
    with limit_paths(model, at_most=1):
        loss = loss_of(model(x))
    with pytest.raises(RuntimeError, match="run each backward inside the context, before the model's next forward"):
        loss.backward()


def test_create_graph_is_refused() -> None:
    model, x = small(), images()
    with (
        limit_paths(model, at_most=1),
        pytest.raises(RuntimeError, match="create_graph=True cannot be limited"),
        pytest.warns(UserWarning, match="create_graph"),
    ):
        loss_of(model(x)).backward(create_graph=True)


def test_without_path_does_not_list_what_the_head_uses_too() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        y = m.get_submodule("blocks")(x)
        return y @ m.get_submodule("blocks.2.branch.0").weight  # type: ignore[operator]

    model = Apply(forward, blocks=chain(3, 4))
    with limit_paths(model, at_least=2) as limit:
        model(rows()).sum().backward()  # type: ignore[attr-defined]
    assert "blocks.2.branch.0.weight" not in limit.without_path
    assert "blocks.2.branch.2.weight" in limit.without_path


def test_limits_go_with_gates_in_either_order_and_not_with_recordings() -> None:
    x, model = rows(), nn.Sequential(dense(), *chain(3, 4), dense())
    found = []
    for contexts in ((True, False), (False, True)):
        model.zero_grad()
        outer, inner = (
            limit_paths(model, at_most=1) if limited else gate(model, branch_gradient=0.5) for limited in contexts
        )
        with outer, inner:
            model(x).sum().backward()
        found.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    with record(model) as recording, limit_paths(model, at_most=1):
        model(x).sum().backward(retain_graph=True)
    with pytest.raises(ValueError, match="recorded under limit_paths"):
        gradient_norms(recording)
    with (
        pytest.raises(ValueError, match="limit_paths does not nest"),
        limit_paths(model, at_most=1),
        limit_paths(model, at_least=1),
    ):
        model(x)


def test_a_validation_between_forward_and_backward() -> None:
    x, model = rows(), chain(3, 4)
    with limit_paths(model, at_most=1):
        loss = model(x).sum()
        with torch.no_grad():
            model(x)
        loss.backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("limits", [{"at_most": 1}, {"at_least": 2}, {"exactly": 0}, {"sampled": 1}])
def test_a_limit_is_switched_off_and_on_between_backwards_of_one_forward(limits: dict[str, Any]) -> None:
    """Each backward is, bit for bit, the limited or the ordinary one, in whatever order."""
    x, model = images(), small()
    whole = ordinary(model, x)
    options = {**limits, **({"generator": torch.Generator().manual_seed(0)} if "sampled" in limits else {})}
    limited = gradients(model, x, **options)
    if "sampled" in limits:
        options["generator"].manual_seed(0)
    with limit_paths(model, **options) as limit:
        loss = loss_of(model(x))
        for limit.active in (False, True, True, False, True):
            model.zero_grad()
            loss.backward(retain_graph=True)
            wanted = limited if limit.active else whole
            assert all(torch.equal(wanted[n], p.grad) for n, p in model.named_parameters() if p.grad is not None)
    assert any(not torch.equal(limited[name], whole[name]) for name in whole)
