"""Random residual programs: what the probes find, gate, record and take apart is what each program knows of itself.

200 programs run here, and the simplest that fails is printed: `check` takes what is printed. `make fuzz PROGRAMS=20000`
runs as many as you like, and counts what was in them.
"""

import argparse
import math
import random
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from itertools import product

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._pytree import tree_leaves

from probes import Recording, find_junctions, gate, gradient_norms, path_gradients, record, residual_magnitudes
from tests.support.networks import left_as_it_was
from tests.support.programs import (
    FORMS,
    IDENTITIES,
    LAYERS,
    LEADING_AROUND,
    NO_JUNCTIONS,
    PROJECTIONS,
    Block,
    Junction,
    Network,
    Program,
    Trace,
    build,
    features,
    gated_by_hand,
    is_chain,
    random_program,
)

ROUNDING = 1e-12  # float64 sums in another order, through a few dozen layers that scale by about 1
WEIGHTS = (1.0, 0.0, 0.5, 2.0, -1.0)  # by which a product is exact
LONGEST = 3  # junctions of a chain whose 2 ** L paths are followed one by one
SLOW = (HealthCheck.too_slow, HealthCheck.data_too_large)  # no failures where other programs share the machine


def state(network: Network) -> dict[str, Tensor]:
    """Buffers and random state."""
    return {name: b.clone() for name, b in network.named_buffers()} | {"random": torch.get_rng_state()}


class Step:
    """A forward and a backward from one state of the network: all that they leave behind."""

    def __init__(self, network: Network, x: Tensor) -> None:
        network.reset()
        x.grad = None
        torch.manual_seed(1)
        outputs = tree_leaves(network(x))
        self.loss = torch.stack([(y.sin() * y).sum() for y in outputs]).sum()
        self.loss.backward(retain_graph=True)
        self.gradients = {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
        if x.grad is not None:
            self.gradients["(input)"] = x.grad.clone()
        self.state = state(network) | {f"output {index}": y.detach() for index, y in enumerate(outputs)}


def by_hand(network: Network, x: Tensor, weights: Sequence[tuple[float, float]] = ()) -> tuple[Trace, Step]:
    """A step that is gated by hand; weights: of (shortcut, branch), by fork."""
    trace = Trace(dict(enumerate(weights)))
    inputs = x.detach().clone()
    with gated_by_hand(network, trace):
        return trace, Step(network, inputs.requires_grad_() if x.is_floating_point() else inputs)


def assert_same(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    """To the last bit."""
    assert got.keys() == wanted.keys()
    for name in wanted:
        assert torch.equal(got[name], wanted[name]), name


def assert_near(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    """Up to rounding of the largest gradient: the terms of a small one may cancel (a bias behind which is a norm)."""
    assert got.keys() == wanted.keys()
    size = max(gradient.norm() for gradient in wanted.values())
    for name in wanted:
        assert (got[name] - wanted[name]).norm() <= ROUNDING * size, name


def check(program: Program) -> None:
    """Hold the probes against a program."""
    network, x = build(program)
    plain = Step(network, x)
    trace, twin = by_hand(network, x)
    assert_near(plain.gradients, {name: twin.gradients[name] for name in plain.gradients})  # it is a twin
    assert_found(network, x, trace)
    for keep in (False, True):  # in the second forward, inputs may have no node in autograd's graph
        with record(network, keep=keep) as recording:
            step = Step(network, x)
        assert_same(step.gradients, plain.gradients)
        assert_same(step.state, plain.state)
        if not trace.truths:
            with pytest.raises(ValueError, match="nothing was recorded"):
                gradient_norms(recording)
        else:
            assert_recorded(recording, trace)
            if keep:
                assert_paths(program, network, x, recording, trace)
    if trace.truths:
        assert_gated(program, network, x, plain, trace)
    assert_same(Step(network, x).gradients, plain.gradients)


def assert_found(network: Network, x: Tensor, trace: Trace) -> None:
    """`find_junctions` gives the program's junctions, and changes nothing."""
    network.reset()
    before = state(network)
    with left_as_it_was(network):
        found = find_junctions(network, x)
    assert_same(state(network), before)
    wanted = [(truth.name, depth, truth.kind) for depth, truth in enumerate(trace.truths)]
    assert [(junction.name, junction.depth, junction.shortcut) for junction in found] == wanted


def assert_recorded(recording: Recording, trace: Trace) -> None:
    """The tables are those of the program's own gradients and addends."""
    gradients, magnitudes = gradient_norms(recording), residual_magnitudes(recording)
    names = [truth.name for truth in trace.truths]
    assert gradients["block"].unique().tolist() == magnitudes["block"].unique().tolist() == names
    size = max(fork.total().norm().item() for fork in trace.forks)  # a small gradient is a sum of such as cancel
    for depth, truth in enumerate(trace.truths):
        fork = trace.forks[truth.fork]
        parts = {"total": fork.total()} | {name: fork.gradients[name] for name in ("shortcut", "branch")}
        parts["other"] = parts["total"] - (parts["shortcut"] + parts["branch"])
        got = gradients[gradients["depth"] == depth].set_index("quantity")["value"].to_dict()
        wanted = {name: part.norm().item() for name, part in parts.items()}
        assert got == pytest.approx(wanted, rel=0, abs=ROUNDING * size), truth.name
        branch, shortcut = truth.branch.norm().item(), truth.shortcut.norm().item()
        inner = (truth.branch * truth.shortcut).sum().item()
        wanted = {"branch": branch, "shortcut": shortcut, "ratio": branch / shortcut if shortcut else math.nan}
        wanted["cosine"] = inner / branch / shortcut if branch and shortcut else math.nan
        got = magnitudes[magnitudes["depth"] == depth].set_index("quantity")["value"].to_dict()
        assert got == pytest.approx(wanted, rel=ROUNDING, abs=ROUNDING, nan_ok=True), truth.name


def assert_gated(program: Program, network: Network, x: Tensor, plain: Step, trace: Trace) -> None:
    """`gate` gives the gradients of the program that is gated by hand, and changes nothing else."""
    draw = random.Random(program.seed)
    weights = [(draw.choice(WEIGHTS), draw.choice(WEIGHTS)) for _ in trace.forks]
    trace_of_twin, twin = by_hand(network, x, weights)
    of_junction = {truth.name: weights[truth.fork] for truth in trace.truths}
    with gate(
        network,
        shortcut_gradient={name: shortcut for name, (shortcut, _) in of_junction.items()},
        branch_gradient={name: branch for name, (_, branch) in of_junction.items()},
    ):
        gated = Step(network, x)
    assert_same(gated.state, plain.state)
    wanted = {name: twin.gradients[name] for name in plain.gradients}
    # The order in which a convolution sums its bias's gradient depends on how that lies in memory.
    exact = program.medium != "images" and trace_of_twin.is_exact(twin.loss)
    (assert_same if exact else assert_near)(gated.gradients, wanted)


def assert_paths(program: Program, network: Network, x: Tensor, recording: Recording, trace: Trace) -> None:
    """The terms by path length sum to autograd's gradient at the fork that was made first, of nested junctions the
    outermost; in a chain they are sums over all paths."""
    lengths = path_gradients(recording)
    # What rounds is as large as the largest gradient on the way: one that has shrunk to 1e-5 of it has fewer digits.
    size = max(lengths.flatten(1).norm(dim=1).sum().item(), *(fork.total().norm().item() for fork in trace.forks))
    first = trace.forks[min(truth.fork for truth in trace.truths)]
    assert (lengths.sum(0) - first.total()).norm() <= ROUNDING * size
    junctions = len(trace.truths)
    if is_chain(program):
        assert len(lengths) == junctions + 1
        if junctions <= LONGEST:
            paths = torch.zeros_like(lengths)
            for branches in product((0, 1), repeat=junctions):
                alone, _ = by_hand(network, x, [(1.0 - branch, float(branch)) for branch in branches])
                paths[sum(branches)] += alone.forks[0].total()
            assert (lengths - paths).norm() <= ROUNDING * size


@st.composite
def programs(draw: st.DrawFn) -> Program:
    def below(n: int) -> int:
        return draw(st.integers(0, n - 1))

    return random_program(below)


@given(programs())
@settings(max_examples=200, derandomize=True, deadline=None, suppress_health_check=SLOW)
def test_random_programs(program: Program) -> None:
    check(program)


FOUND = {
    "a highway whose gate comes first": Program((Block((Junction("highway, reversed"),)),)),
    "a projection around a block, called again": Program(
        (Block((Junction("linear", (("tanh", Block(), "dense"),)),), calls=2),)
    ),
    "a sum written in place into a view of its second branch": Program(
        own=(Junction(branches=((Block((Junction(branches=((Block(), "dense"), ("dense",)), form="b += s"),)),),)),),
        inputs="integers",
    ),
    "a frozen stem, after find_junctions": Program((Block(),), stem="frozen"),
    "inputs that ask for a gradient": Program(
        (Block((Junction("highway, reversed", before="norm"),)),), inputs="tracked"
    ),
    "inputs times a learned factor": Program(
        ("layer scale", Block((Junction("gated linear", (("tanh", "dense"),)),))), stem="none"
    ),
    "a rotation of what a frozen bias was added to": Program(
        (Block((Junction(branches=(("bias", "rotary", "dense"),), before="tanh"),), frozen=True),)
    ),
    "three addends, begun in place in a view": Program(
        (Block((Junction(branches=(("tanh", "dense"), ("tanh", "dense")), form="b += s"),)),), medium="tokens"
    ),
}


@pytest.mark.parametrize("program", FOUND.values(), ids=FOUND)
def test_programs_in_which_errors_were_found(program: Program) -> None:
    check(program)


def test_what_is_drawn() -> None:
    """Every feature, in more than one program of forty."""
    counts = Counter[str]()
    for seed in range(2000):
        counts.update(features(by_seed(seed)))
    names = {f"shortcut: {name}" for name in (*IDENTITIES, *PROJECTIONS)} | {f"form: {name}" for name in FORMS}
    names |= {f"layer: {name}" for name in LAYERS} | {f"none: {name}" for name in (*NO_JUNCTIONS, *LEADING_AROUND)}
    names |= {"chain", "nested junction", "sum of three", "parallel branches", "called again", "frozen", "two streams"}
    names |= {
        "checkpointed branch",
        "checkpointed block",
        "gives: tuple",
        "gives: dict",
        "several junctions in a module",
    }
    assert names <= counts.keys()
    assert [name for name in counts if counts[name] < 50] == []


def by_seed(seed: int) -> Program:
    return random_program(random.Random(seed).randrange)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--programs", type=int, default=20_000)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    counts, failed, start = Counter[str](), list[int](), time.perf_counter()
    with suppress(KeyboardInterrupt):
        for seed in range(arguments.first, arguments.first + arguments.programs):
            program = by_seed(seed)
            counts.update({"programs", *features(program)})
            try:
                check(program)
            except Exception as error:
                failed.append(seed)
                print(f"seed {seed}: {type(error).__name__}: {str(error)[:300]}\n    {program!r}", flush=True)
    for name, count in sorted(counts.items(), key=lambda item: item[1]):
        print(f"{count:7} {name}")
    print(f"{len(failed)} failed {failed[:20]}, {time.perf_counter() - start:.0f} s")
    raise SystemExit(bool(failed))


if __name__ == "__main__":
    main()
