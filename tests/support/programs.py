"""Random residual programs whose junctions, addends and gradients are known, because the program itself notes them.

A `Program` is a description (frozen, printable, a value that `repr` gives back). `random_program` draws one, `build`
makes the network of it. The network runs in two ways: as it is, for the probes to look at; and under a `Trace`, as
somebody would have gated it by hand: every fork is then split into two aliases, one for the shortcut and one for the
branch, whose gradients are weighted with `detach` alone. The trace knows names, kinds, addends and gradients without
any of the library's code.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, fields, is_dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from probes import scale_gradient
from tests.support.networks import FLOAT64

WIDTH = 4
SHAPES = {"rows": (3, WIDTH), "tokens": (2, 3, WIDTH), "images": (2, WIDTH, 4, 4)}
VOCABULARY = 5

# Descriptions.

IDENTITIES = (
    "identity", "cloned", "reshaped", "constant", "divided", "negative", "learned", "shifted", "scale_gradient",
    "dropped", "gated", "highway", "highway, reversed",
)  # fmt: skip
PROJECTIONS = ("linear", "norm of linear", "pooled", "padded", "gated linear")
LEARNED = {
    "learned", "gated", "highway", "highway, reversed", "linear", "norm of linear", "gated linear",
}  # fmt: skip
LAYERS = (
    "dense", "tanh", "relu", "norm", "batch norm", "dropout", "layer scale", "half", "bias", "gate", "excite", "gelu",
    "rotary", "attention", "cross",
)  # fmt: skip
NONLINEAR = {"tanh", "relu", "gelu", "attention", "cross"}
FORMS = (
    "s + b", "b + s", "torch.add(s, b)", "b.add(s)", "b += s", "s += b", "s - b", "s -= b", "torch.add(s, b, alpha)",
    "sum([s, b])",
)  # fmt: skip
NO_JUNCTIONS = (
    "twice", "two branches", "two projections", "error", "mixture", "noise", "positions", "full bias", "cut branch",
    "cut shortcut", "concatenation", "product", "gelu", "rotary", "upsampled merge",
)  # fmt: skip
LEADING_AROUND = ("long skip", "head", "merge beside junctions")
Medium = Literal["rows", "tokens", "images"]


class Description:
    """A value whose `repr` makes it again, and leaves out what is as usual."""

    def __repr__(self) -> str:
        own: Any = self
        usual = {f.name: f.default for f in fields(own)}
        given = (f"{name}={value!r}" for name, value in vars(self).items() if value != usual[name])
        return f"{type(self).__name__}({', '.join(given)})"


@dataclass(frozen=True, repr=False)
class Junction(Description):
    """after(shortcut(x) + branch(x)), x = before(what is given); each branch is a row of layers, blocks and others."""

    shortcut: str = "identity"
    branches: tuple[tuple[Any, ...], ...] = (("dense",),)
    """More than one: x + f(x) + g(x)."""
    form: str = "s + b"
    parallel: bool = False
    """x + (f(x) + g(x)) in place of x + f(x) + g(x)."""
    before: str = ""
    after: str = ""
    checkpointed: bool = False
    """Whether the branches are."""


@dataclass(frozen=True, repr=False)
class Block(Description):
    """A module with junctions of its own, one after another."""

    junctions: tuple[Junction, ...] = (Junction(),)
    calls: int = 1
    """How often it is called, with a tanh between."""
    frozen: bool = False
    checkpointed: bool = False
    gives: Literal["tensor", "tuple", "dict"] = "tensor"


@dataclass(frozen=True, repr=False)
class Other(Description):
    """What adds, or leads around junctions, without being one."""

    kind: str
    items: tuple[Any, ...] = ()


@dataclass(frozen=True, repr=False)
class Program(Description):
    """A network: a stem, items, junctions of the network's own, a head; and before that perhaps a second stream."""

    items: tuple[Any, ...] = ()
    own: tuple[Junction, ...] = ()
    memory: tuple[Any, ...] | None = None
    """The items of a second stream, which "cross" reads."""
    medium: Medium = "rows"
    inputs: Literal["plain", "tracked", "integers"] = "plain"
    stem: Literal["none", "dense", "frozen"] = "dense"
    outputs: Literal["tensor", "tuple", "dict"] = "tensor"
    training: bool = True
    seed: int = 0


def parts(description: Any) -> Iterator[Any]:
    """A description and all that is in it: descriptions, and the names of layers."""
    yield description
    inside = (
        [getattr(description, f.name) for f in fields(description)] if is_dataclass(description)
        else description if isinstance(description, tuple) else ()
    )  # fmt: skip
    for part in inside:
        yield from parts(part)


def features(program: Program) -> set[str]:
    """What there is in a program, by name."""
    found = {program.medium, f"inputs: {program.inputs}", f"stem: {program.stem}", f"outputs: {program.outputs}"}
    found.add("train" if program.training else "eval")
    found |= _named(
        ("two streams", program.memory is not None),
        ("chain", is_chain(program)),
        ("junctions of the model itself", bool(program.own)),
    )
    for part in parts(program):
        if isinstance(part, Junction):
            found |= {f"shortcut: {part.shortcut}", f"form: {part.form}"}
            inner = [item for branch in part.branches for item in branch]
            found |= {f"layer: {name}" for name in inner if isinstance(name, str)}
            found |= _named(
                (f"before: {part.before}", bool(part.before)),
                (f"after: {part.after}", bool(part.after)),
                ("checkpointed branch", part.checkpointed),
                ("sum of three", len(part.branches) > 1 and not part.parallel),
                ("parallel branches", part.parallel),
                ("nested junction", any(isinstance(item, Junction) for item in parts(tuple(inner)))),
            )
        if isinstance(part, Block):
            found |= _named(
                ("called again", part.calls > 1),
                ("frozen", part.frozen),
                ("checkpointed block", part.checkpointed),
                (f"gives: {part.gives}", part.gives != "tensor"),
                ("several junctions in a module", len(part.junctions) > 1),
            )
        if isinstance(part, Other):
            found.add(f"none: {part.kind}")
    return found


def _named(*claims: tuple[str, bool]) -> set[str]:
    """The names of the claims that hold."""
    return {name for name, holds in claims if holds}


def is_chain(program: Program) -> bool:
    """Whether path lengths are defined: junctions one behind the other, and no way around them."""
    listed = [j for item in program.items if isinstance(item, Block) for j in item.junctions] + list(program.own)
    junctions = [part for part in parts(program) if isinstance(part, Junction)]
    return (
        program.memory is None
        and bool(junctions)
        and len(listed) == len(junctions)
        and not any(isinstance(part, Other) and part.kind in LEADING_AROUND for part in parts(program))
    )


# Drawing.


class Draw:
    """Draws from lists, the first entry being the simplest; `below(n)` gives a number in 0..n - 1."""

    def __init__(self, below: Callable[[int], int]) -> None:
        self.below = below
        self.left = 7
        """How many more junctions the program may have."""

    def one_of(self, *entries: Any) -> Any:
        return entries[self.below(len(entries))]

    def happens(self, percent: int) -> bool:
        return self.below(100) >= 100 - percent

    def program(self) -> Program:
        medium: Medium = self.one_of("rows", "tokens", "images")
        inputs = self.one_of("plain", "tracked", *(["integers"] if medium == "tokens" else []))
        memory = self.items(medium, at_most=2, depth=1, memory=False) if self.happens(30) else None
        return Program(
            medium=medium,
            inputs=inputs,
            # Without a stem, the memory would be made from the first fork, and its readers would be a way back there.
            stem=self.one_of("dense", "frozen", *(["none"] if memory is None else [])),
            memory=memory,
            items=self.items(medium, at_most=4, depth=0, memory=memory is not None),
            own=self.junctions(medium, 2, 1, memory is not None, whole=True) if self.happens(25) else (),
            outputs=self.one_of("tensor", "tuple", "dict"),
            training=not self.happens(30),
            seed=self.below(100),
        )

    def items(self, medium: Medium, *, at_most: int, depth: int, memory: bool) -> tuple[Any, ...]:
        return tuple(self.item(medium, depth, memory) for _ in range(self.below(at_most + 1)))

    def item(self, medium: Medium, depth: int, memory: bool) -> Any:
        kind = self.below(10)
        if kind < 6 and self.left > 0:
            return self.block(medium, depth, memory)
        if kind < 7:
            return self.layer(medium, memory)
        if kind < 9:
            # Of a projection's branch, one that is upsampled again would make a merge of features.
            upsampled = ("upsampled merge",) * 8 if medium == "images" and depth == 0 else ()
            return Other(self.one_of(*NO_JUNCTIONS[:-1], *upsampled))
        kind = self.one_of("long skip", "head", *(["merge beside junctions"] if self.left > 0 else []))
        if kind == "head":
            return Other(kind)
        inside = self.items(medium, at_most=2, depth=depth + 1, memory=memory)
        if kind == "merge beside junctions":  # beside none, it would be a projection
            inside = (*inside, self.block(medium, depth + 1, memory))
        return Other(kind, (*inside, "tanh"))

    def layer(self, medium: Medium, memory: bool) -> str:
        left_out = {"attention"} if medium == "images" else set[str]()
        left_out |= set[str]() if memory else {"cross"}
        return self.one_of(*(name for name in LAYERS if name not in left_out))

    def block(self, medium: Medium, depth: int, memory: bool) -> Block:
        checkpointed = self.happens(10)
        junctions = self.junctions(medium, 2, depth + 1, memory)
        inside = [*parts(junctions)]
        again = checkpointed or any(isinstance(part, Junction | Block) and part.checkpointed for part in inside)
        return Block(
            junctions,
            calls=2 if self.happens(15) and len(junctions) <= self.left else 1,
            # Without a gradient through it, it is not computed again: its statistics move once, under `record` twice.
            frozen=self.happens(12) and not (again and "batch norm" in inside),
            checkpointed=checkpointed,
            gives=self.one_of("tensor", "tensor", "tuple", "dict"),
        )

    def junctions(
        self, medium: Medium, at_most: int, depth: int, memory: bool, *, whole: bool = False
    ) -> tuple[Junction, ...]:
        """whole: of the network itself, in which a projection beside other junctions counts as a merge of features."""
        return tuple(self.junction(medium, depth, memory, whole=whole) for _ in range(1 + self.below(at_most)))

    def junction(self, medium: Medium, depth: int, memory: bool, *, whole: bool) -> Junction:
        self.left -= 1
        shortcut = self.one_of("identity", *PROJECTIONS) if self.happens(40) else self.one_of(*IDENTITIES)
        form = self.one_of(*FORMS)
        if form in ("s += b", "s -= b"):
            shortcut = "identity"
        if form == "s - b" and shortcut in PROJECTIONS:
            form = "s + b"  # a projection is looked for in sums alone: of two terms of an error, one may be linear
        in_place_shortcut = form in ("s += b", "s -= b")
        count = 2 if self.happens(20) and not shortcut.startswith("highway") else 1
        parallel = count == 2 and (in_place_shortcut or self.happens(50))  # in place, a third addend is made of the sum
        # A checkpointed branch is computed again from x, which an in-place add would have overwritten.
        checkpointed = not in_place_shortcut and self.happens(15)
        branches = []
        for index in range(count):
            # Of x + f(x) + g(x) with junctions inside g, only x + f(x) is found: see docs/compatibility.md.
            nested = not (index and not parallel) and not (whole and shortcut in PROJECTIONS)
            must = parallel or shortcut in PROJECTIONS
            branch = self.branch(medium, depth if nested else 9, memory, nonlinear=must)
            if in_place_shortcut:
                branch = ("tanh", *branch)  # which keeps its output for the backward, not its input
            # An activation x * sigmoid(x) at the end of an addend would pass for a gate of what is before it.
            no_gate = (parallel or shortcut == "gated linear") and branch[-1] != "dense"
            if form == "b += s" or no_gate:
                branch = (*branch, "dense")  # which does not keep its output for the backward
            branches.append(branch)
        return Junction(
            shortcut,
            tuple(branches),
            form,
            parallel,
            before=self.one_of("", "", "", "norm", "tanh"),
            after=self.one_of("", "", "relu", "tanh", "norm"),
            checkpointed=checkpointed,
        )

    def branch(self, medium: Medium, depth: int, memory: bool, *, nonlinear: bool) -> tuple[Any, ...]:
        items: list[Any] = []
        for _ in range(self.below(4)):
            nest = depth < 3 and self.left > 0 and self.happens(20)
            items.append(self.item(medium, depth, memory) if nest else self.layer(medium, memory))
        if nonlinear and not NONLINEAR & {item for item in items if isinstance(item, str)}:
            items.append("tanh")
        if "dense" not in items:
            items.append("dense")
        return tuple(items)


def random_program(below: Callable[[int], int]) -> Program:
    """A program, from a function that gives a random number in 0..n - 1."""
    return Draw(below).program()


# What a program notes of itself.


@dataclass
class Truth:
    """A junction, by the program's own account."""

    fork: int
    """Its number, in the order in which forks are met."""
    name: str
    kind: str
    shortcut: Tensor
    branch: Tensor
    """The addends, as they were added."""


@dataclass
class Fork:
    """A fork split by hand: where x and its aliases are in autograd's graph, and the gradients that came there."""

    places: dict[str, tuple[Any, int]]
    gradients: dict[str, Tensor] = field(default_factory=dict)
    same: "Fork | None" = None
    """The fork of which this is an alias: a block begins with another."""

    def total(self) -> Tensor:
        """The gradient at x, by whatever route it came."""
        return self.gradients["total"] if self.same is None else self.same.total()


Weights = Mapping[int, tuple[float, float]]


class Trace:
    """One forward and backward of a program that is gated by hand.

    weights: of the gradient through (shortcut, branch), by the number of the fork.
    """

    def __init__(self, weights: Weights | None = None) -> None:
        self.weights: Weights = weights or {}
        self.forks: list[Fork] = []
        self.truths: list[Truth] = []
        self.calls: Counter[str] = Counter()
        self.adds: Counter[str] = Counter()
        self.running: list[str] = []

    @contextmanager
    def inside(self, module: str) -> Iterator[None]:
        call = self.calls[module]
        self.calls[module] += 1
        self.running.append(module + (f"@{call}" if call else ""))
        yield
        self.running.pop()

    def add(self) -> str:
        """The name of the add that comes now."""
        call = self.running[-1]
        self.adds[call] += 1
        return call + (f"#{self.adds[call] - 1}" if self.adds[call] > 1 else "")

    def split(self, x: Tensor) -> tuple[int, Tensor, Tensor]:
        """The number of a fork, its alias for the shortcut, and that for the branch."""
        number = len(self.forks)
        through_shortcut, through_branch = self.weights.get(number, (1.0, 1.0))
        tensors = {"total": x, "shortcut": weighted(x, through_shortcut), "branch": weighted(x, through_branch)}
        fork = Fork({name: (tensor.grad_fn, tensor.output_nr) for name, tensor in tensors.items()})
        fork.same = next((f for f in self.forks[::-1] if fork.places["total"] in f.places.values()), None)
        for name, tensor in tensors.items():
            tensor.register_hook(partial(fork.gradients.__setitem__, name))
        self.forks.append(fork)
        return number, tensors["shortcut"], tensors["branch"]

    def join(self, fork: int, kind: str, shortcut: Tensor, branch: Tensor) -> None:
        """Note the add that comes now; a later one of the same fork takes its place."""
        truth = Truth(fork, self.add(), kind, shortcut.detach().clone(), branch.detach().clone())
        if self.truths and self.truths[-1].fork == fork:
            truth.branch = self.truths[-1].branch + truth.branch
            truth.shortcut = self.truths.pop().shortcut
        self.truths.append(truth)

    def is_exact(self, loss: Tensor) -> bool:
        """Whether every fork is read at most once by either addend and by nobody else: its gradient is then a sum of
        two, whose order does not matter."""
        users: Counter[Any] = Counter()
        seen, waiting = set[Any](), [loss.grad_fn]
        while waiting:
            node = waiting.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            users.update(edge for edge in node.next_functions if edge[0] is not None)
            waiting += [n for n, _ in node.next_functions]
        return all(
            users[x] == 2 and users[shortcut] <= 1 and users[branch] <= 1
            for x, shortcut, branch in (fork.places.values() for fork in self.forks)
        )


def weighted(x: Tensor, weight: float) -> Tensor:
    """x to the last bit, through which a gradient travels back times a weight."""
    return x.detach() + weight * (x - x.detach())


@dataclass
class Wires:
    """What all modules of a network share."""

    trace: Trace | None = None
    memory: Tensor | None = None
    extra: list[Tensor] = field(default_factory=list)
    """What heads on the way gave."""


# The networks.


class Piece(nn.Module):
    """A module that notes its calls and adds."""

    name = ""

    def __init__(self, wires: Wires) -> None:
        super().__init__()
        self.wires = wires

    def forward(self, x: Any) -> Any:
        trace = self.wires.trace
        context: AbstractContextManager[None] = nullcontext() if trace is None else trace.inside(self.name)
        with context:
            return self.run(x)

    def run(self, x: Any) -> Any:
        raise NotImplementedError

    def add(self, a: Tensor, b: Tensor) -> Tensor:
        """An add that is no junction."""
        if self.wires.trace is not None:
            self.wires.trace.add()
        return a + b


def linear_map(medium: Medium) -> nn.Module:
    if medium == "images":
        return nn.Conv2d(WIDTH, WIDTH, 3, padding=1, dtype=FLOAT64)
    return nn.Linear(WIDTH, WIDTH, dtype=FLOAT64)


def normalisation(medium: Medium) -> nn.Module:
    return nn.GroupNorm(2, WIDTH, dtype=FLOAT64) if medium == "images" else nn.LayerNorm(WIDTH, dtype=FLOAT64)


def batch_normalisation(medium: Medium) -> nn.Module:
    kind = nn.BatchNorm2d if medium == "images" else nn.BatchNorm1d
    return kind(SHAPES[medium][1], dtype=FLOAT64)


def along_channels(medium: Medium, size: int = WIDTH) -> tuple[int, ...]:
    return (size, 1, 1) if medium == "images" else (size,)


def channels(medium: Medium) -> int:
    return 1 if medium == "images" else -1


class Scale(nn.Module):
    """x times a learned vector."""

    def __init__(self, medium: Medium) -> None:
        super().__init__()
        self.gamma = nn.Parameter(0.5 + torch.rand(along_channels(medium), dtype=FLOAT64))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Layer(Piece):
    """A layer that is more than a module of torch's."""

    def __init__(self, wires: Wires, medium: Medium, kind: str) -> None:
        super().__init__(wires)
        self.kind = kind
        self.medium: Medium = medium
        if kind in ("gate", "excite"):
            self.gate = linear_map(medium)
        if kind == "bias":
            self.beta = nn.Parameter(torch.randn(along_channels(medium), dtype=FLOAT64))
        if kind in ("attention", "cross"):
            self.q, self.k, self.v, self.o = (linear_map("rows") for _ in range(4))

    def run(self, x: Tensor) -> Tensor:
        dim = channels(self.medium)
        if self.kind == "gate":
            return torch.sigmoid(self.gate(x)) * x
        if self.kind == "excite":
            return x * torch.sigmoid(self.gate(x - x.mean()))
        if self.kind == "bias":
            return self.add(x, self.beta)
        if self.kind == "half":
            return x * 0.5
        if self.kind == "gelu":
            return 0.5 * x * (1 + torch.tanh(0.8 * self.add(x, 0.044715 * x**3)))
        if self.kind == "rotary":
            angle = torch.arange(WIDTH, dtype=FLOAT64).reshape(along_channels(self.medium))
            return self.add(x * angle.cos(), torch.cat([-x.narrow(dim, 2, 2), x.narrow(dim, 0, 2)], dim) * angle.sin())
        memory = x
        if self.kind == "cross":
            assert self.wires.memory is not None
            memory = self.wires.memory
        if self.medium == "images":  # pixels are the tokens
            x, memory = (t.flatten(2).transpose(1, 2) for t in (x, memory))
        scores = self.q(x) @ self.k(memory).transpose(-1, -2) / 2
        if self.kind == "attention":
            mask = torch.full(scores.shape[-2:], -100.0, dtype=FLOAT64).triu(1)
            scores = self.add(scores, mask.expand_as(scores))
        mixed = self.o(scores.softmax(-1) @ self.v(memory))
        return mixed.transpose(1, 2).unflatten(2, (4, 4)) if self.medium == "images" else mixed


class Row(Piece):
    """Items one after another."""

    def __init__(self, wires: Wires, medium: Medium, items: tuple[Any, ...]) -> None:
        super().__init__(wires)
        self.items = nn.ModuleList(make(wires, medium, item) for item in items)
        self.calls = [item.calls if isinstance(item, Block) else 1 for item in items]

    def run(self, x: Tensor) -> Tensor:
        for item, calls in zip(self.items, self.calls, strict=True):
            for call in range(calls):
                x = unwrapped(item(torch.tanh(x) if call else x))
        return x


def unwrapped(x: Any) -> Tensor:
    return x["hidden"] if isinstance(x, dict) else x[0] if isinstance(x, tuple) else x


class Junctions(Piece):
    """The junctions of a block."""

    def __init__(self, wires: Wires, medium: Medium, junctions: tuple[Junction, ...]) -> None:
        super().__init__(wires)
        self.junctions = junctions
        self.medium: Medium = medium
        self.inner = nn.ModuleList()
        for junction in junctions:
            inner = nn.ModuleDict()
            inner["branches"] = nn.ModuleList(Row(wires, medium, items) for items in junction.branches)
            if junction.shortcut not in (
                "identity",
                "cloned",
                "reshaped",
                "constant",
                "divided",
                "negative",
                "shifted",
            ):
                inner["linear"], inner["gate"] = linear_map(medium), linear_map(medium)
                inner["norm"], inner["scale"] = normalisation(medium), Scale(medium)
            for where, kind in (("before", junction.before), ("after", junction.after)):
                if kind == "norm":
                    inner[where] = normalisation(medium)
            self.inner.append(inner)

    def run_junctions(self, x: Tensor) -> Tensor:
        for junction, inner in zip(self.junctions, self.inner, strict=True):
            x = self.activate(junction.before, inner, "before", x)
            x = self.activate(junction.after, inner, "after", self.join(junction, inner, x))
        return x

    def activate(self, kind: str, inner: Any, where: str, x: Tensor) -> Tensor:
        return inner[where](x) if kind == "norm" else getattr(torch, kind)(x) if kind else x

    def join(self, junction: Junction, inner: Any, x: Tensor) -> Tensor:
        trace, form = self.wires.trace, junction.form
        if form in ("s += b", "s -= b"):
            x = x.clone()
        number, s, b = (0, x, x) if trace is None else trace.split(x)
        shortcut, gate = self.shortcut(junction.shortcut, inner, s)
        kind = "projection" if junction.shortcut in PROJECTIONS else "identity"
        if junction.parallel:
            f, g = (self.run_branch(branch, b, junction) for branch in inner["branches"])
            total, later = self.first_add(number, kind, form, shortcut, self.add(f, g)), []
        else:
            f = self.run_branch(inner["branches"][0], b, junction)
            total = self.first_add(number, kind, form, shortcut, f if gate is None else gate * f)
            later = inner["branches"][1:]
        for branch in later:
            g = self.run_branch(branch, b, junction)
            if trace is not None:
                trace.join(number, kind, shortcut, g)
            total = g + total if form == "b + s" else total + g
        return total

    def run_branch(self, branch: nn.Module, x: Tensor, junction: Junction) -> Tensor:
        if junction.checkpointed and self.wires.trace is None:
            return checkpoint(branch, x, use_reentrant=False)
        return branch(x)

    def shortcut(self, kind: str, inner: Any, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """The shortcut's addend, and the gate of the branch if there is one."""
        if kind.startswith("highway"):
            gate = torch.sigmoid(inner["gate"](x))
            return ((1 - gate) * x, gate) if kind == "highway" else (gate * x, 1 - gate)
        if kind == "reshaped":
            return x.flatten().unsqueeze(0).reshape(x.shape), None
        if kind == "padded":
            half = x.narrow(channels(self.medium), 0, 2)
            return F.pad(half, (0, 0, 0, 0, 1, 1) if self.medium == "images" else (1, 1)), None
        if kind == "pooled":
            pool = F.avg_pool2d if self.medium == "images" else F.avg_pool1d
            return pool(x, 3, 1, 1), None
        made: dict[str, Callable[[], Tensor]] = {
            "identity": lambda: x,
            "cloned": lambda: x.clone(),
            "constant": lambda: 0.75 * x,
            "divided": lambda: x / 2,
            "negative": lambda: -x,
            "shifted": lambda: x + 1.0,
            "learned": lambda: inner["scale"](x),
            "scale_gradient": lambda: scale_gradient(x, 0.5),
            "dropped": lambda: F.dropout(x, 0.3, self.training),
            "gated": lambda: torch.sigmoid(inner["gate"](x)) * x,
            "linear": lambda: inner["linear"](x),
            "norm of linear": lambda: inner["norm"](inner["linear"](x)),
            "gated linear": lambda: torch.sigmoid(inner["gate"](x)) * inner["linear"](x),
        }
        return made[kind](), None

    def first_add(self, number: int, kind: str, form: str, s: Tensor, b: Tensor) -> Tensor:
        weight = -1.0 if form in ("s - b", "s -= b") else -0.5 if form.endswith("alpha)") else 1.0
        if self.wires.trace is not None:
            self.wires.trace.join(number, kind, s, weight * b)
        if form == "s += b":
            s += b
            return s
        if form == "s -= b":
            s -= b
            return s
        if form == "b += s":
            b += s
            return b
        made: dict[str, Callable[[], Tensor]] = {
            "s + b": lambda: s + b,
            "b + s": lambda: b + s,
            "torch.add(s, b)": lambda: torch.add(s, other=b),
            "b.add(s)": lambda: b.add(s),
            "s - b": lambda: s - b,
            "torch.add(s, b, alpha)": lambda: torch.add(s, b, alpha=-0.5),
            "sum([s, b])": lambda: sum([s, b]),  # type: ignore[dict-item]
        }
        return made[form]()


class Wrapped(Junctions):
    """A block: its junctions, and the form in which it gives their result."""

    def __init__(self, wires: Wires, medium: Medium, block: Block) -> None:
        super().__init__(wires, medium, block.junctions)
        self.block = block
        if block.frozen:
            self.requires_grad_(False)

    def run(self, x: Tensor) -> Any:
        if self.block.checkpointed and self.wires.trace is None:
            x = checkpoint(self.run_junctions, x, use_reentrant=False)
        else:
            x = self.run_junctions(x)
        return {"tensor": x, "tuple": (x, None), "dict": {"hidden": x}}[self.block.gives]


class NoJunction(Piece):
    """What adds without a junction."""

    def __init__(self, wires: Wires, medium: Medium, other: Other) -> None:
        super().__init__(wires)
        self.kind = other.kind
        self.medium: Medium = medium
        mlp = ("dense", "tanh", "dense")
        self.f, self.g = Row(wires, medium, mlp), Row(wires, medium, mlp)
        self.q, self.k, self.scale = linear_map(medium), linear_map(medium), Scale(medium)
        self.inner = Row(wires, medium, other.items)
        self.merge = Merge(wires)
        full = SHAPES[medium][1:]
        self.positions = nn.Parameter(torch.randn(full, dtype=FLOAT64))

    def run(self, x: Tensor) -> Tensor:
        dim = channels(self.medium)
        if self.kind == "upsampled merge":
            return self.add(self.q(x), F.interpolate(self.f(F.avg_pool2d(x, 2)), scale_factor=2, mode="nearest"))
        if self.kind == "merge beside junctions":
            deep = self.inner(x)
            return self.merge((self.q(x), deep))
        if self.kind == "head":
            x = torch.tanh(x)  # at the begin of a branch, it would read the fork beside the branch, not within
            self.wires.extra.append(self.q(x))
            return x
        if self.kind in ("concatenation", "long skip"):
            both = torch.cat([x, self.f(x) if self.kind == "concatenation" else self.inner(x)], dim)
            return self.k(both.narrow(dim, 2, WIDTH))
        made: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {
            "twice": lambda: (x, x),
            "two branches": lambda: (self.f(x), self.g(x)),
            "two projections": lambda: (self.q(x), self.k(x)),
            "mixture": lambda: (self.scale(x), self.scale(x)),
            "noise": lambda: (x, torch.randn_like(x)),
            "positions": lambda: (x, self.positions),
            "full bias": lambda: (x, self.positions.expand_as(x)),
            "cut branch": lambda: (x, self.f(x.detach())),
            "cut shortcut": lambda: (x.detach(), self.f(x)),
        }
        if self.kind in made:
            return self.add(*made[self.kind]())
        if self.kind == "product":
            return x * self.f(x)
        assert self.kind == "error"
        if self.wires.trace is not None:
            self.wires.trace.add()
        return self.f(x) - x


class Merge(Piece):
    """The sum of two features, where neither is computed."""

    def run(self, x: tuple[Tensor, Tensor]) -> Tensor:
        return self.add(*x)


def make(wires: Wires, medium: Medium, item: Any) -> nn.Module:
    if isinstance(item, Block):
        return Wrapped(wires, medium, item)
    if isinstance(item, Other):
        return Layer(wires, medium, item.kind) if item.kind in LAYERS else NoJunction(wires, medium, item)
    made: dict[str, Callable[[], nn.Module]] = {
        "dense": lambda: linear_map(medium),
        "tanh": nn.Tanh,
        "relu": nn.ReLU,
        "norm": lambda: normalisation(medium),
        "batch norm": lambda: batch_normalisation(medium),
        "dropout": lambda: nn.Dropout(0.3),
        "layer scale": lambda: Scale(medium),
    }
    return made[item]() if item in made else Layer(wires, medium, item)


class Network(Junctions):
    """The network of a program."""

    def __init__(self, program: Program) -> None:
        wires, medium = Wires(), program.medium
        super().__init__(wires, medium, program.own)
        self.program = program
        self.embedding = nn.Embedding(VOCABULARY, WIDTH, dtype=FLOAT64)
        self.stem = nn.Identity() if program.stem == "none" else linear_map(medium)
        if program.stem == "frozen":
            self.stem.requires_grad_(False)
            self.embedding.requires_grad_(False)
        self.body = Row(wires, medium, program.items)
        self.memory_stem, self.memory_body = linear_map(medium), Row(wires, medium, program.memory or ())
        self.head = linear_map(medium)
        for name, module in self.named_modules():
            if isinstance(module, Piece):
                module.name = name or "(model)"
        self.first_buffers = [buffer.clone() for buffer in self.buffers()]

    def reset(self) -> None:
        """Back to the state before the first step."""
        self.zero_grad()
        for buffer, value in zip(self.buffers(), self.first_buffers, strict=True):
            buffer.data.copy_(value)  # also where a graph still waits for its backward

    def run(self, x: Tensor) -> Any:
        self.wires.extra.clear()
        if not x.is_floating_point():
            x = self.embedding(x)
        if self.wires.trace is not None:
            x = (x if x.requires_grad else x.requires_grad_()).view_as(x)  # with a node, whose users can be counted
        memory = None
        if self.program.memory is not None:
            memory = self.memory_body(self.memory_stem(x))
        self.wires.memory = memory  # until the next forward: what is checkpointed reads it again in the backward
        x = self.run_junctions(self.body(self.stem(x)))
        outputs = [self.head(x), *self.wires.extra, *([] if memory is None else [memory])]
        self.wires.extra.clear()
        if self.program.outputs == "tensor":
            return torch.cat([y.flatten() for y in outputs])
        return tuple(outputs) if self.program.outputs == "tuple" else {"logits": outputs[0], "more": outputs[1:]}


def build(program: Program) -> tuple[Network, Tensor]:
    """The network of a program, and inputs for it; the same of the same program."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(program.seed)
        network = Network(program).train(program.training)
        if program.inputs == "integers":
            return network, torch.randint(0, VOCABULARY, SHAPES["tokens"][:2])
        return network, torch.randn(SHAPES[program.medium], dtype=FLOAT64).requires_grad_(program.inputs == "tracked")


@contextmanager
def gated_by_hand(network: Network, trace: Trace) -> Iterator[None]:
    """Let a network run as somebody would have gated it by hand."""
    network.wires.trace = trace
    try:
        yield
    finally:
        network.wires.trace = None
