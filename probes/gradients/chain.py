"""Gradients carried back through a chain of junctions, what comes through shortcuts and through branches apart."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node
from torch.utils.hooks import RemovableHandle

from ..discovery.graph import Edge, ancestors, is_parameter
from ..discovery.untracked import is_input
from ..discovery.classify import Verdict

GATED, LIMITED = "residual-probes: gated", "residual-probes: limited"


def mark(node: Node, what: str) -> None:
    """Note that a gate acts on what a node passes on, or a limit on what arrives there."""
    cast(dict[str, bool], node.metadata)[what] = True


def is_marked(node: Node, what: str) -> bool:
    """Whether that was noted."""
    return what in cast(dict[str, bool], node.metadata)


def tolerance(tensor: Tensor, *, rounded: bool = False) -> float:
    """How far two sums of the same gradients, in another order, may lie apart, relative to the largest of them.

    rounded: computed by kernels of less precision than the tensor's (autocast). Float64 networks may still take their
    norms' variances in float32 (Hugging Face's T5).
    """
    if rounded or tensor.dtype not in (torch.float32, torch.float64) or tensor.device.type != "cpu":  # TF32 there
        return 2e-2
    return 1e-6 if tensor.dtype == torch.float64 else 1e-4


def leads_around(roots: Sequence[Node], fork: Node) -> bool:
    """Whether something that a fork was made from, inputs and parameters aside, is used other than through it."""
    before = {node for node in ancestors([fork], through_inputs=True) if node is not fork and not is_input(node)}
    return any(node in before and not is_parameter(node) for node in ancestors(roots, fork, through_inputs=True))


class Carrying:
    """Whether gradients are being carried back for a probe: then hooks that record look away."""

    now = False


@contextmanager
def carrying() -> Iterator[None]:
    """Backwards that run inside are a probe's own."""
    before, Carrying.now = Carrying.now, True
    try:
        yield
    finally:
        Carrying.now = before


def through_junction(
    name: str,
    add: Node,
    verdict: Verdict,
    lengths: Sequence[Tensor],
    leaves: Sequence[Tensor] = (),
    keep: Callable[[int, Sequence[Tensor | None]], None] = lambda length, gradients: None,
) -> list[Tensor]:
    """From K gradients at a junction's sum, by path length, to K + 1 at its fork.

    The shortcut keeps a length, the branch adds one. leaves: parameters within the junction; `keep` is called with each
    length and its gradients of them.
    """
    parts: dict[str, Tensor] = {}
    at_fork: list[Tensor] = []
    with listening(verdict, partial(add_up, parts)):
        for length, gradient in enumerate(lengths):
            parts.clear()
            total, of_leaves = pull(gradient, (add, 0), verdict.fork, name, leaves)
            keep(length, of_leaves)
            shortcut, branch = (parts[k] if k in parts else torch.zeros_like(total) for k in ("shortcut", "branch"))
            at_fork[length:] = [at_fork[length] + shortcut if length else shortcut, branch]
    return at_fork


def through_addend(
    name: str, add: Node, verdict: Verdict, gradient: Tensor, addend: Literal["shortcut", "branch"]
) -> Tensor:
    """From the gradient at a junction's sum to what of it comes through one addend to the fork."""
    start = add.next_functions[verdict.shortcut]
    alone = not verdict.shared and not is_marked(add, GATED) and getattr(add, "_saved_alpha", 1) == 1
    if addend == "shortcut" and alone and start[0] is not None:  # the branch need not be computed
        return pull(gradient, (start[0], start[1]), verdict.fork, name)[0]
    parts: dict[str, Tensor] = {}
    with listening(verdict, partial(add_up, parts)):
        total, _ = pull(gradient, (add, 0), verdict.fork, name)
    return parts[addend] if addend in parts else torch.zeros_like(total)


def pull(
    gradient: Tensor, start: Edge, end: Edge, where: str, leaves: Sequence[Tensor] = ()
) -> tuple[Tensor, list[Tensor | None]]:
    """A gradient at `start` carried back to `end`, and to parameters on the way (None where it does not come)."""
    if start == end:
        return gradient, [None] * len(leaves)
    with _dead_end(end) if leaves else nullcontext():
        at_end, *of_leaves = _differentiate(start, [GradientEdge(*end), *leaves], gradient)
    if at_end is None:
        raise ValueError(
            f"the junctions are no chain ({where}: no way back): path lengths are defined where each junction's "
            "fork is made from the junction before it; gradient_norms and residual_magnitudes work on any model"
        )
    return at_end, of_leaves


@contextmanager
def _dead_end(end: Edge) -> Iterator[None]:
    """Let nothing pass a place: parameters may be met again behind it (tied weights), and count there another time."""
    node, output = end

    def hook(arriving: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
        gradient = arriving[output]
        zeros = None if gradient is None else torch.zeros_like(gradient)
        return (*arriving[:output], zeros, *arriving[output + 1 :])

    handle = node.register_prehook(hook)
    try:
        yield
    finally:
        handle.remove()


def pull_leaves(gradient: Tensor, start: Edge, leaves: Sequence[Tensor]) -> list[Tensor | None]:
    """A gradient at `start` carried back to parameters alone."""
    return _differentiate(start, leaves, gradient) if leaves else []


def _differentiate(start: Edge, ends: Sequence[Any], gradient: Tensor) -> list[Tensor | None]:
    try:
        with carrying():
            found = torch.autograd.grad(
                [GradientEdge(*start)], tuple(ends), [gradient], retain_graph=True, allow_unused=True
            )
        return list(found)
    except RuntimeError as error:
        if "second time" in str(error):
            raise RuntimeError(
                "the recorded graph was freed by the backward: call loss.backward(retain_graph=True) inside "
                "`with record(model)` when path_gradients or path_contributions follow"
            ) from None
        raise


def leaves_between(starts: Sequence[Node], end: Node | None) -> list[Tensor]:
    """The leaves of autograd's graph (parameters) that are met on the way back from some nodes, not passing another."""
    nodes = [] if end in starts else ancestors(starts, end, through_inputs=True)
    return [cast(Any, node).variable for node in nodes if node.name() == "torch::autograd::AccumulateGrad"]


def add_up(parts: dict[str, Tensor], name: str, gradient: Tensor) -> None:
    """Add a gradient to the part of that name."""
    parts[name] = parts[name] + gradient if name in parts else gradient


@contextmanager
def listening(verdict: Verdict, keep: Callable[[str, Tensor], None]) -> Iterator[None]:
    """`on_parts` inside this context."""
    handles = on_parts(verdict, keep)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def on_parts(verdict: Verdict, keep: Callable[[str, Tensor], None]) -> list[RemovableHandle]:
    """Call `keep("shortcut" | "branch", gradient)` for all that a backward passes into the fork by either addend."""

    def listen(name: str, node: Node, index: int) -> RemovableHandle:
        def hook(passed: Sequence[Tensor | None], arriving: Sequence[Tensor | None]) -> None:
            gradient = passed[index]
            if gradient is not None:
                keep(name, kept(gradient))

        return node.register_hook(hook)

    return [listen(part, *entry) for part, entries in verdict.entries.items() for entry in entries]


def kept(gradient: Tensor) -> Tensor:
    """A gradient to hold on to, without its own graph."""
    # The tensor itself, not an alias: autograd leaves a gradient alone while somebody else holds it, and would hand
    # one that only has an alias to the user as a leaf's .grad.
    return gradient.detach() if gradient.requires_grad else gradient
