"""What a reader found wrong in paths, limits, lesions and discovery, each with the number that is right."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from probes import (
    Junction,
    branch_attribution,
    find_junctions,
    gate,
    gradient_norms,
    lesion,
    limit_paths,
    path_contributions,
    path_gradients,
    permute,
    record,
    sample_paths,
)
from tests.support.networks import FLOAT64, Apply, chain, relative_error, values


def dense(out: int = 4) -> nn.Linear:
    return nn.Linear(4, out, dtype=FLOAT64)


def block(function: object) -> Apply:
    return Apply(function, f=dense(), g=dense(), i=nn.Identity())  # type: ignore[arg-type]


def inputs() -> Tensor:
    return torch.randn(5, 4, dtype=FLOAT64)


SUMS = {
    "x + f + g": lambda m, x: x + m.f(x).tanh() + m.g(x).tanh(),
    "f + x + g": lambda m, x: m.f(x).tanh() + x + m.g(x).tanh(),
    "g + (x + f)": lambda m, x: m.g(x).tanh() + (x + m.f(x).tanh()),
    "x + f - g": lambda m, x: x + m.f(x).tanh() - m.g(x).tanh(),
    "x - f - g": lambda m, x: x - m.f(x).tanh() - m.g(x).tanh(),
    "alpha": lambda m, x: torch.add(x + m.f(x).tanh(), m.g(x).tanh(), alpha=0.5),
}


@pytest.mark.parametrize("body", SUMS.values(), ids=SUMS)
def test_sums_of_three_are_one_junction_for_every_probe(body: object) -> None:
    """Single paths of length 0 and L are the exact ones; without branches, the block is the identity both ways."""
    torch.manual_seed(0)
    model, x = nn.Sequential(dense(), block(body), block(body), dense()), inputs()
    junctions = find_junctions(model, x)
    assert len(junctions) == 2
    with record(model) as recording:
        model(x).square().sum().backward(retain_graph=True)
    exact = path_gradients(recording)
    assert values(gradient_norms(recording), "other") == pytest.approx([0, 0], abs=1e-12)  # two ways in: rounding
    sampled = sample_paths(recording, samples=None, lengths=[0, 2])
    assert values(sampled, "path_norm") == pytest.approx([exact[0].norm().item(), exact[2].norm().item()], rel=1e-12)
    short = nn.Sequential(model[0], model[3])
    with torch.no_grad(), lesion(model, delete=junctions):
        assert torch.equal(model(x), short(x))
    model.zero_grad()
    with gate(model, branch_gradient=0.0):
        model(x).square().sum().backward()
    got = model[0].weight.grad
    upstream = 2 * model(x) @ model.get_parameter("3.weight")
    assert isinstance(got, Tensor)
    assert relative_error(got, upstream.T @ x) < 1e-12


def test_a_weighted_shortcut_weighs_single_paths() -> None:
    """y = f(x) + x / 2 in two blocks: the path without branches carries a quarter."""
    model, x = nn.Sequential(*(block(lambda m, x: torch.add(m.f(x).tanh(), x, alpha=0.5)) for _ in range(2))), inputs()
    with record(model) as recording:
        model(x).sum().backward(retain_graph=True)
    (shortest,) = values(sample_paths(recording, lengths=[0]), "path_norm")
    assert shortest == pytest.approx(0.25 * x.numel() ** 0.5, rel=1e-12)


def test_a_user_s_backward_hook_on_the_shortcut_hides_no_junction() -> None:
    model = nn.Sequential(dense(), block(lambda m, x: m.i(x) + m.f(x).tanh()), dense())
    for module in model.modules():
        module.register_full_backward_hook(lambda *_: None)
    assert len(find_junctions(model, inputs())) == 1


class Between(nn.Module):
    """Blocks with a layer between them, whose input goes to the head as well."""

    def __init__(self, *, tap: int, weight: float) -> None:
        super().__init__()
        self.stem, self.blocks, self.tap, self.weight = dense(), chain(3, 4), tap, weight
        self.before = nn.ModuleList(dense() for _ in range(3))
        self.head = dense()

    def forward(self, x: Tensor) -> Tensor:
        x, tapped = self.stem(x), x
        for index, (residual, before) in enumerate(zip(self.blocks, self.before, strict=True)):
            x = x.tanh()
            tapped = x if index == self.tap else tapped
            x = residual(before(x))
        return self.head(x).square().sum() + self.weight * tapped.sin().sum()


@pytest.mark.parametrize("tap", [1, 2])
def test_routes_that_begin_between_junctions_are_refused(tap: int) -> None:
    torch.manual_seed(0)
    model = Between(tap=tap, weight=1e-3)
    with record(model) as recording:
        model(inputs()).backward(retain_graph=True)
    for probe in (
        lambda: path_gradients(recording),
        lambda: path_gradients(recording, max_length=1),
        lambda: path_gradients(recording, max_length=3),
        lambda: sample_paths(recording, samples=3),
    ):
        with pytest.raises(ValueError, match="the junctions are no chain"):
            probe()
    with pytest.raises(ValueError, match="the junctions are no chain"), limit_paths(model, at_most=1):
        model(inputs()).backward()


def test_routes_that_begin_before_the_first_fork_matter_to_parameters() -> None:
    model = Between(tap=0, weight=1.0)
    with record(model) as recording:
        model(inputs()).backward(retain_graph=True)
    lengths = path_gradients(recording)
    assert relative_error(lengths.sum(0), recording.gradient(recording.sites[0], "total")) < 1e-12
    with pytest.raises(ValueError, match="also used by a route around"):
        path_gradients(recording, of="parameters")
    with pytest.raises(ValueError, match="also used by a route around"), limit_paths(model, exactly=1):
        model(inputs())


def test_without_path_does_not_list_what_the_head_uses_too() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        y = m.get_submodule("blocks")(x)
        return y @ m.get_submodule("blocks.2.branch.0").weight  # type: ignore[operator]

    model = Apply(forward, blocks=chain(3, 4))
    with limit_paths(model, at_least=2) as limit:
        model(inputs()).sum().backward()  # type: ignore[attr-defined]
    assert "blocks.2.branch.0.weight" not in limit.without_path
    assert "blocks.2.branch.2.weight" in limit.without_path


def test_limits_go_with_gates_in_either_order_and_not_with_recordings() -> None:
    x, model = inputs(), nn.Sequential(dense(), *chain(3, 4), dense())
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
    x, model = inputs(), chain(3, 4)
    with limit_paths(model, at_most=1):
        loss = model(x).sum()
        with torch.no_grad():
            model(x)
        loss.backward()
    assert all(p.grad is not None for p in model.parameters())


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.f, self.g = dense(), dense()

    def forward(self, x: Tensor) -> Tensor:
        x = x + torch.randn_like(x) if self.training else x
        x = x + self.f(x).tanh()
        return x + self.g(x).tanh()


def test_names_that_mean_another_add_in_another_mode() -> None:
    model = nn.Sequential(Noisy()).train()
    junctions = find_junctions(model, inputs())
    model.eval()
    with (
        pytest.raises(ValueError, match="'0' adds 2 times in this forward, and 3 times where"),
        lesion(model, delete=junctions[:1]),
    ):
        model(inputs())


def test_a_skipped_block_that_overwrites_its_input() -> None:
    inner = nn.Sequential(nn.ReLU(inplace=True), dense())
    model, x = nn.Sequential(dense(), inner, dense()), inputs()
    wanted = model[2](model[0](x))
    with lesion(model, skip=[inner]):
        assert torch.equal(model(x), wanted)


def test_junctions_of_one_s_own_making_and_other_strangers() -> None:
    model = chain(2, 4)
    with (
        pytest.raises(ValueError, match="give junctions as find_junctions"),
        lesion(model, delete=[Junction("0", 0, "identity")]),
    ):
        pass
    with (
        pytest.raises(ValueError, match="takes a list of junctions"),
        lesion(
            model,
            delete=find_junctions(model, inputs())[0],  # type: ignore[arg-type]
        ),
    ):
        pass
    with pytest.raises(ValueError, match="the same blocks on both sides"), permute(model, ["0"]):  # type: ignore[arg-type]
        pass


def test_unfreezing_changes_no_junction() -> None:
    model = nn.Sequential(dense(), *chain(3, 4), dense())

    def seen(frozen: int) -> list[str]:
        for index, module in enumerate(model):
            module.requires_grad_(index != frozen)
        with record(model) as recording:
            model(inputs()).sum().backward()
        return [site.name for site in recording.sites]

    assert seen(0) == seen(4) == seen(0) == ["1", "2", "3"]


def test_frozen_pruned_weights_are_parameters() -> None:
    model = nn.Sequential(*(block(lambda m, x: x + m.f(x).tanh()) for _ in range(2)))
    for each in model:
        each.get_submodule("f").register_parameter("bias", None)
        prune.l1_unstructured(each.get_submodule("f"), "weight", amount=0.3)  # type: ignore[no-untyped-call]
    model.requires_grad_(False)
    with record(model) as recording:
        model(inputs().requires_grad_()).sum().backward()
    assert [site.name for site in recording.junctions] == ["0", "1"]


@pytest.mark.parametrize("limit", [1.5, "1", float("nan"), True])
def test_limits_are_whole_numbers(limit: object) -> None:
    with pytest.raises(ValueError, match="give a whole number"), limit_paths(chain(1), at_most=limit):  # type: ignore[arg-type]
        pass


def test_lengths_are_whole_numbers() -> None:
    model = chain(2, 4)
    with record(model) as recording:
        model(inputs()).sum().backward(retain_graph=True)
    with pytest.raises(ValueError, match=r"max_length is 1\.5"):
        path_contributions(recording, max_length=1.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"lengths \[1.0\]"):
        sample_paths(recording, lengths=[1.0])  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": 7}, "target is 7"),
        ({"target": None}, "target is None"),
        ({"steps": 0}, "steps is 0"),
        ({"junctions": "others"}, "give junctions as|no add is called"),
    ],
)
def test_attributions_that_cannot_be(change: dict[str, object], message: str) -> None:
    model, x = nn.Sequential(*chain(2, 4), dense(3)).eval(), inputs()
    other = nn.Sequential(nn.Sequential(*chain(1, 4))).eval()
    given = {"target": 1, "steps": 4} | change
    junctions = find_junctions(other if given.pop("junctions", None) else model, x)
    with pytest.raises(ValueError, match=message):
        branch_attribution(model, junctions, x, **given)  # type: ignore[arg-type]


def test_attribution_asks_for_the_batch_first() -> None:
    model = Apply(lambda m, x: m.block(x.transpose(0, 1)).mean(0), block=chain(1, 4)).eval()
    x = torch.randn(5, 3, 4, dtype=FLOAT64)
    with pytest.raises(ValueError, match="addends must be batch-first"):
        branch_attribution(model, find_junctions(model, x), x, target=0)
