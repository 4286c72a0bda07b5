"""`record`: what happened at every junction over one forward and one backward, kept for the probes to read."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node, get_gradient_edge
from torch.utils.hooks import RemovableHandle

from probes.graph import Edge, Residual
from probes.inputs import differentiable
from probes.watch import Sighting, watch


@dataclass(eq=False)
class Site:
    """One place in depth where the gradient is recorded: a junction's fork, or the input of a named block."""

    name: str
    depth: int
    gradients: dict[str, Tensor] = field(default_factory=dict)
    """By name: "total", at the fork x and in its shape. At a junction also "shortcut" and "branch", what of the total
    came back through either addend, and "junction", the gradient of the sum itself."""


@dataclass(eq=False)
class JunctionSite(Site):
    """A recorded junction: its addends, and their place in autograd's graph, beside the gradients at its fork."""

    sighting: Sighting = field(kw_only=True)
    listens_to_parts: bool = False

    def __post_init__(self) -> None:
        self._versions = self._now()

    def addends(self) -> tuple[Tensor, Tensor]:
        """The values of shortcut and branch as they were added, (N, C, H, W) or (N, T, D).

        Raises RuntimeError where the model has overwritten one of them since.
        """
        if self._now() != self._versions:
            raise RuntimeError(
                f"an addend of junction {self.name!r} was overwritten in place after it was added: its value is lost; "
                "make that later operation out-of-place (inplace=False)"
            )
        return self.sighting.shortcut, self.sighting.branch

    def _now(self) -> tuple[int, int]:
        return self.sighting.shortcut._version, self.sighting.branch._version


class Recording:
    """What `record` keeps: one `Site` a junction (or named block), in execution order.

    It describes the last forward inside its context and the last backward through it. While it lives, so does that
    forward's autograd graph.
    """

    def __init__(self) -> None:
        self._sites: list[Site] = []
        self._handles: list[RemovableHandle] = []
        self._listening = True
        self._backward: int | None = None

    @property
    def junctions(self) -> list[JunctionSite]:
        """The sites that are junctions; raises ValueError where there is none."""
        found = [site for site in self.sites if isinstance(site, JunctionSite)]
        if not found:
            raise ValueError(
                "this recording has no residual junctions (a plain network, or blocks named by hand): "
                "only gradient_norms can be taken of it"
            )
        return found

    @property
    def sites(self) -> list[Site]:
        """All sites; raises ValueError where nothing was recorded."""
        if not self._sites:
            raise ValueError(
                "nothing was recorded: inside `with record(model)`, call the model itself with gradients enabled; "
                "if it has no residual junctions, name the modules that count as depth: record(model, blocks=[...])"
            )
        return self._sites

    def gradient(self, site: Site, name: str) -> Tensor:
        """The gradient "total" | "shortcut" | "branch" | "junction" of a site; zeros where none came that way."""
        total = site.gradients.get("total")
        if total is None:
            raise ValueError(
                f"no gradient reached {site.name!r}: inside `with record(model)`, after the forward, run the backward "
                "of a loss that depends on this part of the model (autograd.grad skips what its inputs do not need)"
            )
        return site.gradients.get(name, total.new_zeros(()).expand_as(total))

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Gradients that are computed inside are not recorded."""
        self._listening = False
        try:
            yield
        finally:
            self._listening = True

    def _restart(self) -> None:
        self._release()
        self._sites.clear()

    def _release(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _see_junction(self, sighting: Sighting) -> None:
        junction = sighting.junction
        site = JunctionSite(junction.name, junction.depth, sighting=sighting)
        self._sites.append(site)
        self._listen(site, (sighting.add, 0), "junction")
        self._listen(site, sighting.residual.fork, "total")

    def _see_block(self, name: str, x: Tensor) -> None:
        site = Site(name, len(self._sites))
        self._sites.append(site)
        edge = get_gradient_edge(x)
        self._listen(site, (edge.node, edge.output_nr), "total")

    def _listen(self, site: Site, edge: Edge, name: str) -> None:
        """Keep the gradient that arrives at an edge. Hooks must not own the recording, which owns the hooked nodes."""
        node, output = edge
        index, this = len(self._sites) - 1, ref(self)

        def hook(arriving: Sequence[Tensor | None]) -> None:
            recording, gradient = this(), arriving[output]
            if recording is not None and gradient is not None:
                recording._arrive(recording._sites[index], name, gradient)

        self._handles.append(node.register_prehook(hook))

    def _arrive(self, site: Site, name: str, gradient: Tensor) -> None:
        if not self._listening:
            return
        if self._backward != (backward := _running_backward()):  # another backward: forget the one before
            self._backward = backward
            for each in self._sites:
                each.gradients.clear()
        site.gradients[name] = _kept(gradient)
        if name == "junction" and isinstance(site, JunctionSite) and not site.listens_to_parts:
            # Only now, so that these hooks run after any that other contexts have put on the same nodes.
            site.listens_to_parts = True
            index, this = self._sites.index(site), ref(self)

            def keep(part: str, passed: Tensor) -> None:
                if (recording := this()) is not None and recording._listening:
                    add_up(recording._sites[index].gradients, part, passed)

            self._handles += on_parts(site.sighting.residual, keep)


def _running_backward() -> int:
    return torch._C._current_graph_task_id()


def _kept(gradient: Tensor) -> Tensor:
    # The tensor itself, not an alias: autograd leaves a gradient alone while somebody else holds it, and would hand
    # one that only has an alias to the user as a leaf's .grad.
    return gradient.detach() if gradient.requires_grad else gradient


def add_up(parts: dict[str, Tensor], name: str, gradient: Tensor) -> None:
    """Add a gradient to the part of that name."""
    parts[name] = parts[name] + gradient if name in parts else gradient


def on_parts(residual: Residual, keep: Callable[[str, Tensor], None]) -> list[RemovableHandle]:
    """Call `keep("shortcut" | "branch", gradient)` for all that the backward passes into the fork by either addend."""

    def listen(name: str, node: Node, index: int) -> RemovableHandle:
        def hook(passed: Sequence[Tensor | None], arriving: Sequence[Tensor | None]) -> None:
            gradient = passed[index]
            if gradient is not None:
                keep(name, _kept(gradient))

        return node.register_hook(hook)

    return [listen(part, *entry) for part, entries in residual.entries.items() for entry in entries]


@contextmanager
def record(model: nn.Module, *, blocks: Sequence[nn.Module] | None = None) -> Iterator[Recording]:
    """Record the junctions of `model` while it runs inside this context; hooks exist only in here.

        with record(model) as recording:
            loss = F.cross_entropy(model(images), labels)
            loss.backward()                    # retain_graph=True if path_gradients or path_contributions follow
        gradient_norms(recording)

    blocks: for networks without junctions, the modules of `model` that count as depth; then only the total gradient at
    each one's (first) input is recorded. Recording changes no output, gradient, buffer or random state. A BatchNorm in
    train mode moves its running statistics at each forward, recorded or not: record the training step itself, or a
    copy of the model.

    Raises ValueError for a block that is no part of the model.
    """
    recording = Recording()
    if blocks is None:
        watching = watch(model, recording._see_junction, start=recording._restart)
    else:
        watching = _watch_blocks(model, blocks, recording)
    try:
        with watching:
            yield recording
    finally:
        recording._release()


@contextmanager
def _watch_blocks(model: nn.Module, blocks: Sequence[nn.Module], recording: Recording) -> Iterator[None]:
    names = {module: name or "(model)" for name, module in model.named_modules()}
    strangers = [type(block).__name__ for block in blocks if block not in names]
    if strangers or not blocks:
        raise ValueError(f"record: blocks must be modules of the model, such as model.features[0]; got {strangers}")

    calls: Counter[nn.Module] = Counter()

    def start(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        recording._restart()
        calls.clear()
        return differentiable((args, kwargs))

    def see(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = next((x for x in (*args, *kwargs.values()) if isinstance(x, Tensor) and x.requires_grad), None)
        if x is not None:
            calls[block] += 1
            recording._see_block(names[block] + (f"@{calls[block] - 1}" if calls[block] > 1 else ""), x)

    handles = [model.register_forward_pre_hook(start, with_kwargs=True)]
    handles += [block.register_forward_pre_hook(see, with_kwargs=True) for block in blocks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
