"""`record`: what happened at every junction over one forward and one backward, kept for the probes to read."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import Node, get_gradient_edge
from torch.utils.hooks import RemovableHandle

from probes.junctions import Sighting, differentiable, watch


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
        self._listening = [True]  # shared with the hooks, which must not hold the recording: it holds their nodes

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
                "of a loss that depends on this part of the model"
            )
        return site.gradients.get(name, total.new_zeros(()).expand_as(total))

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Gradients that are computed inside are not recorded."""
        self._listening[0] = False
        try:
            yield
        finally:
            self._listening[0] = True

    def _restart(self) -> None:
        self._release()
        self._sites.clear()

    def _release(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _see_junction(self, sighting: Sighting) -> None:
        junction, residual = sighting.junction, sighting.residual
        site = JunctionSite(junction.name, junction.depth, sighting=sighting)
        self._sites.append(site)
        self._listen(site, sighting.add, 0, "junction")
        for index, side in enumerate(residual.sides):
            for entry in side.entries:
                self._add_up(site, *entry, "shortcut" if index == residual.shortcut else "branch")
        self._listen(site, *residual.fork, "total")

    def _see_block(self, name: str, x: Tensor) -> None:
        site = Site(name, len(self._sites))
        self._sites.append(site)
        edge = get_gradient_edge(x)
        self._listen(site, edge.node, edge.output_nr, "total")

    def _listen(self, site: Site, node: Node, output: int, name: str) -> None:
        """Keep the gradient that arrives at one output of a node."""
        gradients, listening = site.gradients, self._listening

        def hook(arriving: Sequence[Tensor | None]) -> None:
            gradient = arriving[output]
            if not listening[0] or gradient is None:
                return
            if name in gradients:  # the first gradient of another backward: forget the one before
                gradients.clear()
            gradients[name] = gradient.detach()

        self._handles.append(node.register_prehook(hook))

    def _add_up(self, site: Site, node: Node, index: int, name: str) -> None:
        """Keep the gradient that a node passes to one of its inputs; where several nodes do, their sum."""
        gradients, listening = site.gradients, self._listening

        def hook(passed: Sequence[Tensor | None], arriving: Sequence[Tensor | None]) -> None:
            gradient = passed[index]
            if listening[0] and gradient is not None:
                gradients[name] = gradients[name] + gradient if name in gradients else gradient.detach()

        self._handles.append(node.register_hook(hook))


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
    try:
        with (
            watch(model, recording._see_junction, recording._restart)
            if blocks is None
            else _watch_blocks(model, blocks, recording)
        ):
            yield recording
    finally:
        recording._release()


@contextmanager
def _watch_blocks(model: nn.Module, blocks: Sequence[nn.Module], recording: Recording) -> Iterator[None]:
    names = {module: name or "(model)" for name, module in model.named_modules()}
    strangers = [type(block).__name__ for block in blocks if block not in names]
    if strangers or not blocks:
        raise ValueError(f"record: blocks must be modules of the model, such as model.features[0]; got {strangers}")

    def start(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        recording._restart()
        return tuple(map(differentiable, args)), {key: differentiable(value) for key, value in kwargs.items()}

    def see(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = next((x for x in (*args, *kwargs.values()) if isinstance(x, Tensor) and x.requires_grad), None)
        if x is not None:
            recording._see_block(names[block], x)

    handles = [model.register_forward_pre_hook(start, with_kwargs=True)]
    handles += [block.register_forward_pre_hook(see, with_kwargs=True) for block in blocks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
