"""The blocks of one forward: their ends in autograd's graph, their parameters, and the gradients at both."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

from ..discovery.adds import call_name
from ..discovery.graph import Edge, ancestors
from ..discovery.hooks import hooked, names_of_modules
from ..discovery.junctions import DetectedJunction, detect_junctions, gpus_of
from ..discovery.named_blocks import block_names, first_tracked
from ..discovery.untracked import differentiable, is_input
from .chain import LIMITED, is_marked, probe_backward

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Block:
    """A block in one forward's graph: its ends, and its sum on the way between them."""

    name: str
    depth: int
    fork: Edge
    sum: Edge
    """Where the addends meet; of a module named by hand, its output."""
    end: Edge
    """What follows the block: the next fork, or what the module that adds gives."""
    module: nn.Module | None = None
    """The module, where it was named by hand."""


@contextmanager
def unchanged(model: nn.Module, inputs: Any) -> Iterator[None]:
    """Gradients are enabled; the model acts on copies of its buffers, and random state is afterwards what it was."""
    # During the backward too, in which checkpointing runs parts of the forward again.
    before = [(module, dict(module._buffers)) for module in model.modules()]
    gpus = gpus_of(([*model.parameters(), *model.buffers()], inputs))
    with torch.random.fork_rng(devices=gpus), torch.inference_mode(False), torch.enable_grad():
        copies = {buffer: buffer.detach().clone() for buffer in model.buffers()}
        try:
            for module, buffers in before:
                module._buffers.update({name: copies[b] for name, b in buffers.items() if b is not None})
            yield
        finally:
            for module, buffers in before:
                module._buffers.clear()
                module._buffers.update(buffers)


def find_blocks(
    model: nn.Module, run: Callable[[], T], *, blocks: Sequence[nn.Module] | None, caller: str
) -> tuple[T, list[Block]]:
    """What `run` returns, and the blocks of the model's forward that it runs: junctions, or the modules of that list.

    caller: the measurement that errors name. Raises ValueError where there are no blocks, or under `limit_paths`.
    """
    if blocks is None:
        return _junction_blocks(model, run, caller)
    return _named_blocks(model, run, blocks, caller)


def block_parameters(found: Sequence[Block]) -> list[list[nn.Parameter]]:
    """The parameters of each block that require a gradient: those between a junction's sum and its fork, in either
    addend (or all of a module that was named by hand). Blocks inside a branch keep theirs; one that several blocks
    share belongs to the first."""
    seen, parameters = set[Tensor](), list[list[nn.Parameter]]()
    for block in found:
        if block.module is None:
            held = _leaves(block, found)
        else:
            held = [p for p in block.module.parameters() if p.requires_grad]
        parameters.append(cast(list[nn.Parameter], [p for p in held if p not in seen]))
        seen.update(held)
    return parameters


def _leaves(block: Block, found: Sequence[Block]) -> list[Tensor]:
    """The leaves of autograd's graph between a block's sum and its fork. The way leads around the blocks between them,
    and ends at others, whose values the block reads too (cross-attention)."""
    sums = {other.sum[0]: other for other in found if other is not block}
    forks = {other.fork[0] for other in found}
    start, end = block.sum[0], block.fork[0]
    seen: set[Node | None] = {None, end}
    waiting, leaves = [start], list[Tensor]()
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        if node is not start and (node in sums or node in forks):
            if end not in ancestors([node]):
                continue
            if node in sums:
                waiting.append(sums[node].fork[0])
                continue
        if node.name() == "torch::autograd::AccumulateGrad":
            leaves.append(cast(Any, node).variable)
        waiting += [] if is_input(node) else [n for n, _ in node.next_functions if n is not None]
    return leaves[::-1]


def scalar(output: Any, loss: Callable[[Any], Tensor] | None, caller: str) -> Tensor:
    """The loss of a model's output, by default its sum; raises TypeError or ValueError where that cannot be followed
    back."""
    if loss is None and not isinstance(output, Tensor):
        raise TypeError(
            f"{caller}: the model gives a {type(output).__name__}: say what of it is differentiated, such as "
            "loss=lambda output: output.logits.sum()"
        )
    value = cast(Tensor, output).sum() if loss is None else loss(output)
    return checked_loss(value, caller)


def checked_loss(value: Any, caller: str) -> Tensor:
    """A loss, if it is one number that gradients can be taken of."""
    if not isinstance(value, Tensor) or value.numel() != 1:
        got = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"{caller}: loss gives {got}; give a function that returns one number as a tensor")
    if not value.requires_grad:
        raise ValueError(
            f"{caller}: no gradient leads from the loss to the model: it must be computed from the model's output, "
            "without detach, item or argmax"
        )
    refuse_limited(ancestors([value.grad_fn]), caller)
    return value.reshape(())


def refuse_limited(nodes: Iterable[Node | None], caller: str) -> None:
    """Raise ValueError where a node was made under `limit_paths`, whose backward a probe's own would not be."""
    if any(is_marked(node, LIMITED) for node in nodes if node is not None):
        raise ValueError(
            f"{caller}: under limit_paths gradients are put together from several backwards, which no single backward "
            "gives: measure the model without it"
        )


def gradients(
    value: Tensor, places: Sequence[Edge | Tensor], *, retain_graph: bool = False
) -> tuple[Tensor | None, ...]:
    """The gradients of a number at places in the graph, and at parameters; None where none arrives. Recordings do not
    see this backward."""
    ends = [place if isinstance(place, Tensor) else GradientEdge(*place) for place in places]
    if not ends:
        return ()
    with probe_backward():
        found = torch.autograd.grad(value, cast(Any, ends), retain_graph=retain_graph, allow_unused=True)
    return tuple(None if g is None else g.detach() for g in found)


def fork_gradients(
    value: Tensor, found: Sequence[Block], parameters: Sequence[Tensor] = (), *, caller: str
) -> tuple[list[Tensor], list[Tensor]]:
    """The gradient at every block's fork, and at parameters (zeros where none arrives)."""
    at = gradients(value, [*(block.fork for block in found), *parameters])
    for block, gradient in zip(found, at, strict=False):
        if gradient is None:
            raise ValueError(
                f"{caller}: no gradient of the loss reaches {block.name!r}: give a loss that depends on this part of "
                "the model"
            )
    of_parameters = zip(at[len(found) :], parameters, strict=True)
    return list(cast(Any, at[: len(found)])), [torch.zeros_like(p) if g is None else g for g, p in of_parameters]


def _junction_blocks(model: nn.Module, run: Callable[[], T], caller: str) -> tuple[T, list[Block]]:
    found: list[tuple[str, Node, Edge]] = []

    def on_junction(detected: DetectedJunction) -> None:
        del found[detected.junction.depth :]  # what was detected there was but a part of this sum
        found.append((detected.junction.name, detected.add, detected.match.fork))

    outputs: dict[str, Edge] = {}
    with detect_junctions(model, on_junction, values=False), _outputs_kept(model, outputs):
        result = run()
    if not found:
        raise ValueError(
            f"{caller}: the model ran without a residual junction; for a network without shortcuts, name the modules "
            f"that count as depth: {caller}(..., blocks=[model.features[0], ...])"
        )
    refuse_limited([add for _, add, _ in found], caller)
    following = [fork for _, _, fork in found[1:]]
    return result, [
        Block(name, depth, fork, (add, 0), _end(name, add, [*following[depth : depth + 1]], outputs))
        for depth, (name, add, fork) in enumerate(found)
    ]


def _end(name: str, add: Node, following: list[Edge], outputs: dict[str, Edge]) -> Edge:
    """Where a junction's block ends: the next fork, else what the module that adds gives, else the sum."""
    call = call_name(name)
    candidates = following + ([outputs[call]] if call in outputs and call != "(model)" else [])
    return next((edge for edge in candidates if add in ancestors([edge[0]])), (add, 0))


@contextmanager
def _outputs_kept(model: nn.Module, outputs: dict[str, Edge]) -> Iterator[None]:
    """Keep the place in the graph of what each call of a module gives, under the names that its adds have."""
    calls: Counter[str] = Counter()
    names = names_of_modules(model)

    def hook(module: nn.Module, _: Any, output: Any) -> None:
        call = names[module] + (f"@{calls[names[module]]}" if calls[names[module]] else "")
        calls[names[module]] += 1
        if isinstance(output, Tensor) and output.requires_grad:
            outputs[call] = _edge(output)

    with hooked([module.register_forward_hook(hook) for module in names]):
        yield


def _named_blocks(
    model: nn.Module, run: Callable[[], T], blocks: Sequence[nn.Module], caller: str
) -> tuple[T, list[Block]]:
    named = _NamedBlocks(block_names(model, blocks, caller), caller)
    handles = [model.register_forward_pre_hook(lambda _, *given: differentiable(given), with_kwargs=True)]
    for block in named.names:
        handles.append(block.register_forward_pre_hook(named.before, with_kwargs=True))
        handles.append(block.register_forward_hook(named.after))
    with hooked(handles):
        result = run()
    if not named.found:
        raise ValueError(f"{caller}: the model ran without {list(named.names.values())}")
    return result, [named.found[depth] for depth in sorted(named.found)]


class _NamedBlocks:
    """The hooks of blocks that are named by hand."""

    def __init__(self, names: dict[nn.Module, str], caller: str) -> None:
        self.names, self.caller = names, caller
        self.found: dict[int, Block] = {}
        self.calls: Counter[nn.Module] = Counter()
        self.running: list[tuple[int, str, Edge]] = []

    def before(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note the input of a block that starts."""
        name = self.names[block] + (f"@{self.calls[block]}" if self.calls[block] else "")
        x = first_tracked(args, kwargs)
        if x is None:
            raise ValueError(
                f"{self.caller}: none of the tensors that {name!r} is given carries a gradient: choose later blocks"
            )
        self.running.append((self.calls.total(), name, _edge(x)))
        self.calls[block] += 1

    def after(self, block: nn.Module, _: Any, output: Any) -> None:
        """Note the output of a block that ends."""
        depth, name, fork = self.running.pop()
        if not isinstance(output, Tensor):
            raise TypeError(
                f"{self.caller}: {name!r} gives a {type(output).__name__}; choose blocks that give a tensor"
            )
        if not output.requires_grad or fork[0] not in ancestors([_edge(output)[0]]):
            raise ValueError(
                f"{self.caller}: no gradient leads from the output of {name!r} to its (first) input: choose blocks "
                "that can be differentiated"
            )
        self.found[depth] = Block(name, depth, fork, _edge(output), _edge(output), block)


def _edge(tensor: Tensor) -> Edge:
    edge = get_gradient_edge(tensor)
    return edge.node, edge.output_nr
