"""`record`: what happened at every junction over one forward and one backward, kept for the probes to read."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node, get_gradient_edge
from torch.utils.hooks import RemovableHandle

from .gradients.chain import LIMITED, Carrying, add_up, is_marked, kept, leads_around, on_parts
from .discovery.graph import Edge
from .discovery.untracked import differentiable
from .norms import norm
from .sites import JunctionSite, Site
from .discovery.detection import Sighting, watch


class Recording:
    """What `record` keeps: one `Site` a junction (or named block), in execution order.

    It describes the last forward inside its context and the last backward through it. Norms are taken at once, so that
    no activation is held; while a recording lives, so does its forward's autograd graph.
    """

    def __init__(self, keep: bool, names: dict[Tensor, str]) -> None:
        self._keep = keep
        self.names = names
        """The model's parameters, by name."""
        self._sites: list[Site] = []
        self._handles: list[RemovableHandle] = []
        self._backward: int | None = None
        self._roots: list[Node] = []

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
    def leads_around(self) -> bool:
        """Whether what the first fork was made from is used behind it too, other than through it (a long skip)."""
        return leads_around(self._roots, self.junctions[0].verdict.fork[0])

    @property
    def sites(self) -> list[Site]:
        """All sites; raises ValueError where nothing was recorded."""
        if not self._sites:
            raise ValueError(
                "nothing was recorded: inside `with record(model)`, call the model itself with gradients enabled; "
                "if it has no residual junctions, name the modules that count as depth: record(model, blocks=[...])"
            )
        return self._sites

    def norms(self, site: Site) -> dict[str, Tensor]:
        """The norms of a site's gradients by name; raises ValueError where no gradient reached it."""
        if isinstance(site, JunctionSite) and is_marked(site.add, LIMITED):
            raise ValueError(
                "this was recorded under limit_paths, whose gradients are put together from several backwards: record "
                "the model without it"
            )
        if not site.norms:
            raise ValueError(
                f"no gradient reached {site.name!r}: inside `with record(model)`, after the forward, run the backward "
                "of a loss that depends on this part of the model (autograd.grad skips what its inputs do not need)"
            )
        return site.norms

    def gradient(self, site: Site, name: str) -> Tensor:
        """The gradient "total" | "shortcut" | "branch" | "junction" of a site; zeros where none came that way.

        Raises ValueError where no gradient reached the site, or where it was not kept (see `record`).
        """
        total = self.norms(site)["total"]
        if name in site.gradients:
            return site.gradients[name]
        if not self._keep:
            raise ValueError(f"the gradient {name!r} of {site.name!r} was not kept: record(model, keep=True)")
        return total.new_zeros(()).expand_as(site.gradients["total"])

    def _restart(self) -> None:
        self._release()
        self._sites.clear()
        self._roots.clear()

    def _end(self, roots: list[Node]) -> None:
        self._roots = roots

    def _release(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _see_junction(self, sighting: Sighting) -> None:
        junction = sighting.junction
        if junction.depth < len(self._sites):  # what was seen there was but a part of this sum
            self._sites.pop()
            for handle in (self._handles.pop(), self._handles.pop()):
                handle.remove()
        site = JunctionSite(junction.name, junction.depth, add=sighting.add, verdict=sighting.verdict)
        site.measure(sighting.shortcut, sighting.branch)
        if self._keep:
            site.shortcut, site.branch = sighting.shortcut.clone(), sighting.branch.clone()
        self._sites.append(site)
        self._listen(site, (sighting.add, 0), "junction")
        self._listen(site, sighting.verdict.fork, "total")

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
        if Carrying.now:  # a probe's own
            return
        if self._backward != (backward := _running_backward()):  # another backward: forget the one before
            self._backward = backward
            for each in self._sites:
                each.gradients.clear()
                each.norms.clear()
        site.gradients[name] = kept(gradient)
        if name == "total":
            self._finish(site)
        if name == "junction" and isinstance(site, JunctionSite) and not site.listens_to_parts:
            # Only now, so that these hooks run after any that other contexts have put on the same nodes.
            site.listens_to_parts = True
            index, this = self._sites.index(site), ref(self)

            def keep(part: str, passed: Tensor) -> None:
                if (recording := this()) is not None and not Carrying.now:
                    add_up(recording._sites[index].gradients, part, passed)

            self._handles += on_parts(site.verdict, keep)

    def _finish(self, site: Site) -> None:
        """All of a site's gradient has come: take the norms, and let go of what nobody will ask for."""
        if isinstance(site, JunctionSite):
            site.split()
        else:
            site.norms["total"] = norm(site.gradients["total"])
        if not self._keep:  # the path functions begin at the last junction's sum, and end at the first fork
            first, last = site is self._sites[0], site is self._sites[-1]
            ends = {"total": first, "junction": last}
            site.gradients = {name: gradient for name, gradient in site.gradients.items() if ends.get(name)}


def _running_backward() -> int:
    return torch._C._current_graph_task_id()


@contextmanager
def record(model: nn.Module, *, blocks: Sequence[nn.Module] | None = None, keep: bool = False) -> Iterator[Recording]:
    """Record the junctions of `model` while it runs inside this context; hooks exist only in here.

        with record(model) as recording:
            loss = F.cross_entropy(model(images), labels)
            loss.backward()                    # retain_graph=True if path_gradients or path_contributions follow
        gradient_norms(recording)

    blocks: for networks without junctions, the modules of `model` that count as depth; then only the total gradient at
    each one's (first) input is recorded. keep: also keep the tensors, for probes of your own: all gradients
    (`Recording.gradient`) and the addends (`site.shortcut`, `site.branch`).

    Recording changes no output, gradient, buffer or random state. A BatchNorm in train mode moves its running
    statistics at each forward, recorded or not: record the training step itself, or a copy of the model.

    Raises ValueError for a block that is no part of the model.
    """
    recording = Recording(keep, {parameter: name for name, parameter in model.named_parameters()})
    if blocks is None:
        watching = watch(model, recording._see_junction, start=recording._restart, end=recording._end)
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
