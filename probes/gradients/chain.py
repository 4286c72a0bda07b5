"""Gradients followed back through a chain of junctions, those through shortcuts apart from those through branches."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, TypeVar, cast

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node
from torch.utils.hooks import RemovableHandle

from ..discovery.classify import JunctionMatch
from ..discovery.graph import Edge, ancestors, is_parameter
from ..discovery.hooks import hooked
from ..discovery.untracked import is_input

GATED, LIMITED = "residual-probes: gated", "residual-probes: limited"
NO_CHAIN = (
    "the junctions are no chain: at the fork of {!r} a gradient of norm {:.3g} (of {:.3g}) came by a route around the "
    "junctions (a long skip, an auxiliary head, a nested junction), and paths are sampled and limited in a chain alone "
    "(path_gradients and path_contributions take any graph); or gradient weights have changed since the recorded "
    "backward"
)
UNREACHED = (
    "the junctions are no chain: no gradient reached {!r} (an unused head, a detached stream), and paths are sampled "
    "and limited in a chain alone (path_gradients and path_contributions take any graph): let the loss depend on this "
    "part of the model, or leave it out of the forward"
)
OVERWRITTEN_VIEW = (
    "torch takes no gradient at a view that was overwritten in place (an assertion inside autograd fails): write the "
    "sum out of place, x = x + f(x), or clone the view before it"
)

K = TypeVar("K")
Addend = Literal["shortcut", "branch"]


class NoChain(ValueError):
    """The junctions are no chain: a route leads around one, or one lies inside another."""


def mark(node: Node, label: str) -> None:
    """Note on a node that it is GATED (in what it passes on) or LIMITED (in what arrives)."""
    cast(dict[str, bool], node.metadata)[label] = True


def is_marked(node: Node, label: str) -> bool:
    """Whether a node was marked so."""
    return label in cast(dict[str, bool], node.metadata)


def tolerance(tensor: Tensor, *, rounded: bool = False) -> float:
    """The relative difference that rounding explains between two sums of the same gradients in another order.

    rounded: computed by kernels of less precision than the tensor's (autocast). Float64 networks may still take their
    norms' variances in float32 (Hugging Face's T5).
    """
    if rounded or tensor.dtype not in (torch.float32, torch.float64) or tensor.device.type != "cpu":  # TF32 there
        return 2e-2
    return 1e-6 if tensor.dtype == torch.float64 else 1e-4


def is_rounding(difference: float, norm: float, tensor: Tensor) -> bool:
    """Whether rounding explains a difference of that norm between two sums of the same gradients, of such tensors."""
    smallest = torch.finfo(tensor.dtype).tiny / torch.finfo(tensor.dtype).eps
    return difference <= tolerance(tensor) * norm + smallest


def is_bypassed(fork: Node, roots: Sequence[Node]) -> bool:
    """Whether an activation that a fork was made from is used by the roots other than through the fork."""
    before = {node for node in ancestors([fork], through_inputs=True) if node is not fork and not is_input(node)}
    return any(node in before and not is_parameter(node) for node in ancestors(roots, fork, through_inputs=True))


PROBE_BACKWARD = f"{__name__}: inside a probe's backward"


def inside_probe_backward() -> bool:
    """Whether the backward that is running is a probe's own: then hooks that record or limit return at once."""
    return torch._C._is_key_in_tls(PROBE_BACKWARD) and torch._C._get_obj_in_tls(PROBE_BACKWARD)


@contextmanager
def probe_backward() -> Iterator[None]:
    """Backwards that run inside are a probe's own."""
    # In torch's thread-local state, which autograd takes along to its threads, one a GPU; Python's would stay behind.
    before = inside_probe_backward()
    torch._C._stash_obj_in_tls(PROBE_BACKWARD, True)
    try:
        yield
    except RuntimeError as error:
        if "should_execute" in str(error):  # an assertion in autograd's CopySlices
            raise RuntimeError(OVERWRITTEN_VIEW) from error
        raise
    finally:
        torch._C._stash_obj_in_tls(PROBE_BACKWARD, before)


def through_junction(name: str, add: Node, match: JunctionMatch, lengths: Sequence[Tensor]) -> list[Tensor]:
    """The K + 1 gradients at a junction's fork, by path length, from K gradients at its sum.

    The shortcut keeps a length, the branch adds one.
    """
    parts: dict[str, Tensor] = {}
    at_fork: list[Tensor] = []
    with parts_hooked(match, partial(accumulate, parts)):
        for length, gradient in enumerate(lengths):
            parts.clear()
            total = backpropagate(gradient, (add, 0), match.fork, name)
            shortcut, branch = (parts[k] if k in parts else torch.zeros_like(total) for k in ("shortcut", "branch"))
            at_fork[length:] = [at_fork[length] + shortcut if length else shortcut, branch]
    return at_fork


def through_addend(name: str, add: Node, match: JunctionMatch, gradient: Tensor, addend: Addend) -> Tensor:
    """What of the gradient at a junction's sum arrives at its fork through one addend."""
    start = add.next_functions[match.shortcut_operand]
    alone = not match.shared and not is_marked(add, GATED) and getattr(add, "_saved_alpha", 1) == 1
    if addend == "shortcut" and alone and start[0] is not None:  # the branch need not be computed
        return backpropagate(gradient, (start[0], start[1]), match.fork, name)
    parts: dict[str, Tensor] = {}
    with parts_hooked(match, partial(accumulate, parts)):
        total = backpropagate(gradient, (add, 0), match.fork, name)
    return parts[addend] if addend in parts else torch.zeros_like(total)


def backpropagate(gradient: Tensor, start: Edge, end: Edge, where: str) -> Tensor:
    """The gradient at `end`, from the gradient at `start`."""
    if start == end:
        return gradient
    (at_end,) = differentiate(start, [GradientEdge(*end)], gradient)
    if at_end is None:
        raise NoChain(
            f"the junctions are no chain ({where}: no way back); path_gradients and path_contributions take any graph "
            "of junctions, gradient_norms and residual_magnitudes any model"
        )
    return at_end


def differentiate(start: Edge, ends: Sequence[Any], gradient: Tensor) -> list[Tensor | None]:
    """The gradients at some edges or leaves, None where none arrives, from the gradient at `start`."""
    try:
        with probe_backward():
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
    """The leaves of autograd's graph (parameters) between some nodes and an earlier one."""
    nodes = [] if end in starts else ancestors(starts, end, through_inputs=True)
    return [cast(Any, node).variable for node in nodes if node.name() == "torch::autograd::AccumulateGrad"]


def accumulate(parts: dict[K, Tensor], name: K, gradient: Tensor) -> None:
    """Add a gradient to the part of that name."""
    parts[name] = parts[name] + gradient if name in parts else gradient


@contextmanager
def parts_hooked(match: JunctionMatch, keep: Callable[[Addend, Tensor], None]) -> Iterator[None]:
    """`hook_parts`, whose hooks leave with this context."""
    with hooked(hook_parts(match, keep)):
        yield


def hook_parts(match: JunctionMatch, keep: Callable[[Addend, Tensor], None]) -> list[RemovableHandle]:
    """Call `keep("shortcut" | "branch", gradient)` for all that a backward passes into the fork by either addend."""

    def listen(name: Addend, node: Node, index: int) -> RemovableHandle:
        def hook(passed: Sequence[Tensor | None], arriving: Sequence[Tensor | None]) -> None:
            gradient = passed[index]
            if gradient is not None:
                keep(name, without_graph(gradient))

        return node.register_hook(hook)

    return [listen(part, *entry) for part, entries in match.entries.items() for entry in entries]


def without_graph(gradient: Tensor) -> Tensor:
    """A gradient to keep, without its own graph."""
    # The tensor itself, not an alias: autograd leaves a gradient alone while somebody else holds it, and would hand
    # one that only has an alias to the user as a leaf's .grad.
    return gradient.detach() if gradient.requires_grad else gradient
