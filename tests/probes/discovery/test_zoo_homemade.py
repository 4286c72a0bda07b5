"""Networks as people write them at home: which of their adds are junctions, which value is the shortcut, and why."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from probes import find_junctions, gradient_norms, record
from tests.support.networks import Residual, left_as_it_was
from tests.support.zoo import ZOO

WIDTH = 8


def dense() -> nn.Linear:
    return nn.Linear(WIDTH, WIDTH)


def mlp() -> nn.Sequential:
    return nn.Sequential(dense(), nn.ReLU(), dense())


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def rotate(x: Tensor) -> Tensor:
    angle = torch.arange(x.shape[1]).float()[:, None]
    return x * angle.cos() + torch.cat([-x[..., WIDTH // 2 :], x[..., : WIDTH // 2]], -1) * angle.sin()


class Home(nn.Module):
    """An embedding of tokens or a linear stem, what `body` makes of (itself, x), and a head: (N, T) -> (N, T, 2)."""

    def __init__(self, body: Callable[["Home", Tensor], Tensor]) -> None:
        super().__init__()
        self.body = body
        self.tokens, self.positions, self.head = nn.Embedding(11, WIDTH), nn.Embedding(7, WIDTH), nn.Linear(WIDTH, 2)
        self.f, self.g, self.h, self.norm, self.norm2 = mlp(), mlp(), mlp(), nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.q, self.k, self.v, self.o, self.gate = dense(), dense(), dense(), dense(), dense()
        self.scale, self.gamma = nn.Parameter(torch.tensor(0.7)), nn.Parameter(torch.full((WIDTH,), 0.1))
        self.bias = nn.Parameter(torch.randn(1, 5, 5))
        self.dropout, self.drop_path = nn.Dropout(0.3), StochasticDepth(0.3, "row")
        self.seen: list[tuple[Tensor, Tensor]] = []

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.body(self, self.tokens(tokens)))

    def expect(self, shortcut: Tensor, branch: Tensor) -> None:
        """What the probes should see."""
        self.seen.append((shortcut.detach().clone(), branch.detach().clone()))

    def note(self, shortcut: Tensor, branch: Tensor) -> Tensor:
        """Their sum, noted."""
        self.expect(shortcut, branch)
        return shortcut + branch

    def attention(self, x: Tensor) -> Tensor:
        q, k = rotate(self.q(x)), rotate(self.k(x))
        scores = q @ k.transpose(1, 2) / WIDTH**0.5 + self.bias.expand(len(x), 5, 5)
        mask = torch.full((5, 5), -torch.inf).triu(1).expand_as(scores)
        return self.o((scores + mask).softmax(-1) @ self.v(x))


def gated(home: Home, x: Tensor) -> Tensor:
    g = torch.sigmoid(home.h(x))
    return home.note((1 - g) * x, g * home.f(x))


def parallel(home: Home, x: Tensor) -> Tensor:
    y = home.norm(x)
    return home.note(x, home.attention(y) + home.f(y))


def transformer(home: Home, x: Tensor) -> Tensor:
    x = x + home.positions(torch.arange(x.shape[1])).expand_as(x)
    x = home.note(x, home.dropout(home.attention(home.norm(x))))
    return home.note(x, home.v(gelu(home.q(home.norm2(x)))))


def squeezed(home: Home, x: Tensor) -> Tensor:
    """The shortcut and the branch meet in another shape."""
    flat = x.reshape(-1, WIDTH)
    return home.note(flat.unsqueeze(0).transpose(0, 1), home.f(flat).unsqueeze(1)).squeeze(1).view_as(x)


def out_of(home: Home, x: Tensor) -> Tensor:
    branch = home.f(x)
    home.expect(x, branch)
    return torch.add(x, branch, out=torch.empty_like(x))


def minus(home: Home, x: Tensor) -> Tensor:
    branch = home.f(x)
    home.expect(x, -0.5 * branch)
    return torch.add(x, branch, alpha=-0.5)


def shared(home: Home, x: Tensor) -> Tensor:
    for _ in range(3):
        x = home.note(x, home.f(home.norm(x)))
    return x


def shared_biases(home: Home, x: Tensor) -> Tensor:
    """Attention whose two layers share position biases (T5, MPNet), of as many dimensions as their scores."""
    places = torch.arange(x.shape[1])
    biases = home.positions((places - places[:, None]).abs())[..., 0].expand(len(x), -1, -1)
    for _ in range(2):
        scores = home.q(x) @ home.k(x).mT + biases
        x = home.note(x, home.o(scores.softmax(-1) @ home.v(x)))
    return x


def inner(home: Home, x: Tensor) -> Tensor:
    """A residual block within a branch."""
    y = home.norm(x)
    return home.note(x, home.o(home.note(y, home.f(y))))


def one_bias(home: Home, x: Tensor) -> Tensor:
    return home.note(x, torch.tanh(x + home.gamma))


def two_branches(home: Home, x: Tensor) -> Tensor:
    """One junction of three addends, from the left."""
    with torch.no_grad():
        home.expect(x, home.f(x) + home.g(home.norm(x)))
    torch.clear_autocast_cache()  # torch 2.7 keeps casts made without gradients for the forward that needs them
    return x + home.f(x) + home.g(home.norm(x))


def three_branches(home: Home, x: Tensor) -> Tensor:
    with torch.no_grad():
        home.expect(x, home.f(x) + home.g(x) + home.h(x))
    torch.clear_autocast_cache()
    return sum([home.f(x), home.g(x), home.h(x)], start=x)


def difference(home: Home, x: Tensor) -> Tensor:
    home.expect(x, -home.f(x))
    return x - home.f(x)


def difference_in_place(home: Home, x: Tensor) -> Tensor:
    home.expect(x, -home.f(x))
    x = x.clone()
    x -= home.f(x.clone())
    return x


def copied(home: Home, x: Tensor) -> Tensor:
    """The shortcut is written into a tensor that something else was computed in."""
    return home.note(home.f(x).clone().copy_(x), home.g(x))


def stacked(home: Home, x: Tensor) -> Tensor:
    branch = home.f(x)
    home.expect(x, branch)
    return torch.stack([x, branch]).sum(0)


def multiplied(home: Home, x: Tensor) -> Tensor:
    home.expect(x, home.gamma * x)
    return torch.addcmul(x, home.gamma, x)


def filled(home: Home, x: Tensor) -> Tensor:
    """The stream is written into a tensor part by part, as class tokens and patches are."""
    stream = torch.zeros_like(x)
    stream[:, :1], stream[:, 1:] = x[:, :1], home.o(x[:, 1:])
    return home.note(stream, home.f(stream))


def into_a_view(home: Home, x: Tensor) -> Tensor:
    """One junction of three addends, which is computed in a view of another tensor."""
    flat = x.clone().view(-1, WIDTH)
    given = flat.clone()
    with torch.no_grad():
        home.expect(given, home.f(given) + home.g(given))
    torch.clear_autocast_cache()
    flat += home.f(given)
    flat += home.g(given)
    return flat.view_as(x)


FOUND: dict[str, Callable[[Home, Tensor], Tensor]] = {
    "a learned scale of the shortcut": lambda home, x: home.note(x * home.scale, home.f(x)),
    "a constant scale of the shortcut": lambda home, x: home.note(x * 0.5, home.f(x)),
    "a divided shortcut": lambda home, x: home.note(x / 2, home.f(x)),
    "a negative shortcut": lambda home, x: home.note(-x, home.f(x)),
    "a copy in place": copied,
    "a stream that was written part by part": filled,
    "three addends in a view": into_a_view,
    "a stack": stacked,
    "a learned factor by addcmul": multiplied,
    "LayerScale": lambda home, x: home.note(x, home.gamma * home.f(home.norm(x))),
    "drop-path": lambda home, x: home.note(x, home.drop_path(home.f(home.norm(x)))),
    "dropout": lambda home, x: home.note(x, home.dropout(home.f(x))),
    "both scaled": lambda home, x: home.note(0.8 * x, 0.6 * home.f(x)),
    "out=": out_of,
    "alpha=": minus,
    "exclusive gating": gated,
    "attention and perceptron in parallel": parallel,
    "a transformer": transformer,
    "a reshaped shortcut": squeezed,
    "shared weights": shared,
    "shared position biases": shared_biases,
    "a block within a branch": inner,
    "two branches": two_branches,
    "three branches": three_branches,
    "a difference": difference,
    "a difference in place": difference_in_place,
    "a learned factor": lambda home, x: home.note(x, home.gamma * x),
    "a gate from elsewhere": lambda home, x: home.note(x, home.gate(x.mean(1, keepdim=True).detach()) * home.f(x)),
    "a branch of one bias": one_bias,
    "a branch of one normalisation": lambda home, x: home.note(x, F.avg_pool1d(home.norm(x), 3, 1, 1)),
}


def attention_of(home: Home, x: Tensor, v: Tensor) -> Tensor:
    return (home.q(x) @ home.k(x).mT).softmax(-1) @ v


def values_in_place(home: Home, x: Tensor) -> Tensor:
    """Attention, and a linear map of its values (Nystromformer, CSWin)."""
    v = home.v(x)
    return attention_of(home, x, v) + home.o(v)


def values_by_part(home: Home, x: Tensor) -> Tensor:
    """The same by part of the channels, times the queries (CoaT)."""
    v = home.v(x)
    mapped = [F.pad(home.gate(F.pad(part, (0, WIDTH // 2))), (0, -WIDTH // 2)) for part in v.split(WIDTH // 2, -1)]
    return attention_of(home, x, v) + home.h(x) * torch.cat(mapped, -1)


def scan(home: Home, x: Tensor) -> Tensor:
    """A linear recurrence whose coefficients are computed from the input: no parameters act on its state."""
    a, b = torch.sigmoid(home.q(x)), home.k(x)
    states, h = [], torch.zeros_like(x[:, 0])
    for t in range(x.shape[1]):
        h = a[:, t] * h + b[:, t] * x[:, t]
        states.append(h)
    return home.o(torch.stack(states, 1))


def learned_scan(home: Home, x: Tensor) -> Tensor:
    states, h = [], torch.zeros_like(x[:, 0])
    for t in range(x.shape[1]):
        h = torch.sigmoid(home.q(x[:, t])) * h + home.gamma * x[:, t]
        states.append(h)
    return torch.stack(states, 1)


NONE: dict[str, Callable[[Home, Tensor], Tensor]] = {
    "a recurrence": scan,
    "a recurrence with a learned gate": learned_scan,
    "a shift in time": lambda home, x: x * home.gamma + x.roll(1, 1) * (1 - home.gamma),
    "a mixture with gates from elsewhere": lambda home, x: (lambda g: x * g[..., :1] + home.f(x) * g[..., 1:2])(
        home.h(x.flip(1).detach()) * x.detach()
    ),
    "an error": lambda home, x: home.f(x) - x,
    "a constant matrix": lambda home, x: x + torch.tanh(x @ torch.ones(WIDTH, WIDTH)),
    "attention with masks, biases and rotary embeddings": lambda home, x: home.attention(x),
    "positions": lambda home, x: x + home.positions(torch.arange(x.shape[1])).expand_as(x),
    "GELU, written out": lambda home, x: home.v(gelu(home.q(x))),
    "a mixture of two experts": lambda home, x: home.f(x) * home.q(x).sigmoid() + home.g(x) * home.k(x).sigmoid(),
    "a stack of three experts": lambda home, x: torch.einsum(
        "nbtd,btn->btd", torch.stack([home.f(x), home.g(x), home.h(x)]), home.gate(x)[..., :3].softmax(-1)
    ),
    "a stack whose last tensor is the oldest": lambda home, x: torch.stack([home.f(x), x]).sum(0),
    "a stack of as many as there are examples, whose sum is taken": lambda home, x: torch.stack(
        [x, home.f(x), home.g(x)]
    ).sum(1),
    "a stack of copies": lambda home, x: (torch.stack([x, 2 * x, -x]) * home.scale).sum(0),
    "a linear layer of a stack": lambda home, x: torch.stack([x[:, 0], home.f(x[:, 0])]) @ home.q.weight,
    "lerp of two experts": lambda home, x: torch.lerp(home.f(x), home.g(x), 0.3),
    "lerp of two learned factors": lambda home, x: torch.lerp(x, 2 * x, home.gamma),
    "addcmul of a constant": lambda home, x: torch.addcmul(torch.ones_like(x), home.gamma, home.f(x)),
    "attention beside a perceptron": lambda home, x: home.attention(x) + home.f(x),
    "values mixed beside a perceptron": lambda home, x: (home.q(x) @ home.k(x).mT).softmax(-1) @ home.v(x) + home.f(x),
    "values mixed beside a linear map of them": values_in_place,
    "values mixed beside a map of their parts": values_by_part,
    "a sum with what was overwritten": lambda home, x: x + home.f(x).clone().copy_(torch.ones(WIDTH)),
    "two streams of one input": lambda home, x: home.f(x) + home.g(x),
    "a mean of three": lambda home, x: (home.f(x) + home.g(x) + home.h(x)) / 3,
    "noise": lambda home, x: home.f(x + torch.randn_like(x)),
    "label smoothing": lambda home, x: 0.9 * x + 0.1 * torch.full_like(x, 0.5),
}


def tokens() -> Tensor:
    return torch.randint(0, 11, (3, 5))


@pytest.mark.parametrize("mode", ["train", "eval", "frozen", "autocast"])
@pytest.mark.parametrize("body", FOUND.values(), ids=FOUND)
def test_a_homemade_junction_and_its_addends(body: Callable[[Home, Tensor], Tensor], mode: str) -> None:
    """The network itself notes what it adds; integers go in; a frozen backbone is one whose body asks no gradients."""
    home = Home(body).train(mode != "eval")
    if mode == "frozen":
        home.requires_grad_(False).tokens.requires_grad_(True)
    with torch.autocast("cpu", torch.bfloat16, enabled=mode == "autocast"), record(home, keep=True) as recording:
        home(tokens()).square().sum().backward()
    seen = home.seen[::-1] if body is inner else home.seen
    sites = recording.junctions[::-1] if body is inner else recording.junctions
    assert len(sites) == len(seen)
    assert {site.match.kind for site in sites} == {"identity"}
    for site, wanted in zip(sites, seen, strict=True):
        assert all(torch.equal(got, value) for got, value in zip((site.shortcut, site.branch), wanted, strict=True)), (
            site.name
        )
    table = gradient_norms(recording)
    assert table["value"].map(math.isfinite).all()
    assert (table.loc[table["quantity"] == "total", "value"] > 0).all()


@pytest.mark.parametrize("mode", ["train", "eval", "autocast"])
@pytest.mark.parametrize("body", NONE.values(), ids=NONE)
def test_homemade_adds_that_are_no_junctions(body: Callable[[Home, Tensor], Tensor], mode: str) -> None:
    home = Home(body).train(mode != "eval")
    with torch.autocast("cpu", torch.bfloat16, enabled=mode == "autocast"), left_as_it_was(home):
        assert find_junctions(home, tokens()) == []


@pytest.mark.parametrize("part", [0, 1])
def test_what_stands_beside_a_sum_in_one_tensor_does_not_extend_it(part: int) -> None:
    """A sum is written into one of two parts of a tensor: what a part is then added to is no x + f(x) + g(x)."""

    def body(home: Home, x: Tensor) -> Tensor:
        both = torch.ones(2, *x.shape)
        other = both[1 - part]
        both[part] = x + home.f(x)
        return other + home.g(x)

    assert [junction.name for junction in find_junctions(Home(body), tokens())] == ["(model)"]


def learned_scan_step(home: Home, x: Tensor) -> Tensor:
    """The gate of another state is made from what is added; nothing else of the other addend is."""
    state = home.k(x.detach())
    return torch.sigmoid(home.q(x)) * state + x


@dataclass
class Output:
    hidden: Tensor
    extra: int = 0


@pytest.mark.parametrize("wrap", [lambda x: (x, None), lambda x: {"hidden": x}, Output, lambda x: [x, [x]]])
@pytest.mark.parametrize("unwrap", [True, False])
def test_modules_may_hand_on_tuples_dictionaries_and_dataclasses(wrap: Callable[[Tensor], Any], unwrap: bool) -> None:
    class Wrapped(nn.Module):
        def __init__(self, *, last: bool) -> None:
            super().__init__()
            self.block, self.last = Residual(mlp()), last

        def forward(self, x: Any) -> Any:
            if isinstance(x, Output):
                x = x.hidden
            x = x["hidden"] if isinstance(x, dict) else x[0] if isinstance(x, tuple | list) else x
            return self.block(x) if self.last and unwrap else wrap(self.block(x))

    model = nn.Sequential(nn.Linear(3, WIDTH), Wrapped(last=False), Wrapped(last=True))
    assert [j.name for j in find_junctions(model, torch.randn(2, 3))] == ["1.block", "2.block"]


# The reasons.


def test_every_add_is_explained() -> None:
    """GPT-2's adds, one by one: two junctions a block, positions, and a GELU that its authors wrote out."""
    model = ZOO["hf:gpt2"].make()
    table = find_junctions(model, torch.randint(3, 50, (2, 6)), explain=True)
    assert list(table.columns) == ["block", "depth", "verdict", "reason"]
    by_name = table.set_index("block")
    identity = "one addend carries the tensor that the other, with parameters, is made from"
    for depth, name in enumerate(["h.0", "h.0#1", "h.1", "h.1#1"]):
        assert tuple(by_name.loc[name]) == (depth, "identity", identity)
    others = table[table["verdict"] == "none"]
    assert others["depth"].isna().all()
    reasons = dict(zip(others["block"], others["reason"], strict=True))
    assert reasons.keys() == {"(model)", "h.0.mlp.act", "h.1.mlp.act"}
    assert reasons["(model)"] == "its addends differ in shape: a bias, an embedding or a mask"
    assert all(re.search("no parameters", reasons[f"h.{index}.mlp.act"]) for index in (0, 1))


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (lambda home, x: home.f(x) + home.g(x), "neither addend is linear in what they share"),
        (lambda home, x: home.q(x) + home.k(x), "both addends are linear in what they share"),
        (lambda home, x: x + 2 * x, "both addends are linear in what they share"),
        (lambda home, x: home.scale * x + home.gamma * x, "a mixture: both addends are what they share, times a lea"),
        (learned_scan_step, "only gates the other, which comes from elsewhere"),
        (lambda home, x: x + torch.tanh(x), "(no parameters lie between|the addend that is not linear holds no param)"),
        (lambda home, x: home.q(x) + torch.tanh(x), "the addend that is not linear holds no parameters"),
        (lambda home, x: x + torch.ones_like(x), "its addends share no earlier activation"),
        (lambda home, x: x + home.positions(torch.arange(5)), "its addends differ in shape"),
        (lambda home, x: x.detach() + home.f(x).detach(), "no gradient passes through it"),
        (lambda home, x: home.q(x) + F.interpolate(home.f(x), scale_factor=1.0), "a merge of features"),
    ],
)
def test_reasons_against(body: Callable[[Home, Tensor], Tensor], reason: str) -> None:
    table = find_junctions(Home(body), tokens(), explain=True)
    assert table["verdict"].tolist() == ["none"]
    assert re.search(reason, table["reason"].iloc[0])


def test_a_sum_of_three_is_explained_once() -> None:
    table = find_junctions(Home(lambda home, x: x + home.f(x) + home.g(x)), tokens(), explain=True)
    assert table["block"].tolist() == ["(model)", "(model)#1"]
    assert table["verdict"].tolist() == ["none", "identity"]
    assert table["reason"].iloc[0] == "part of a sum that goes on"


@pytest.mark.parametrize("name", ["torchvision:resnet18", "timm:nfnet_l0", "hf:bert", "torchvision:densenet121"])
def test_the_explanation_and_the_list_agree(name: str) -> None:
    model, inputs = ZOO[name].make(), ZOO[name].inputs()
    table, junctions = find_junctions(model, **inputs, explain=True), find_junctions(model, **inputs)
    kept = table[table["verdict"] != "none"]
    assert list(zip(kept["block"], kept["depth"], kept["verdict"], strict=True)) == [
        (j.name, j.depth, j.shortcut) for j in junctions
    ]
    assert table["block"].is_unique
    projections = table.loc[table["verdict"] == "projection", "reason"]
    assert projections.str.contains("one addend is linear in the tensor that the other, with parameters").all()
