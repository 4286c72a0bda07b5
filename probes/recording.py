"""`record`: what happened at every junction over one forward and one backward, for the measurements to read."""

import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from html import escape
from pathlib import Path
from typing import Any, cast
from weakref import ref

import pandas as pd
import torch
from torch import Tensor, nn
from torch.autograd.graph import Node, get_gradient_edge
from torch.utils.hooks import RemovableHandle

from .discovery.graph import Edge, ancestors
from .discovery.junctions import DetectedJunction, Junction, detect_junctions
from .discovery.named_blocks import block_names, detect_blocks
from .discovery.refusals import refuse_sharded_activation
from .files import write_zip
from .gradients.chain import (
    LIMITED,
    NO_CHAIN,
    UNREACHED,
    NoChain,
    accumulate,
    backpropagate,
    hook_parts,
    inside_probe_backward,
    is_bypassed,
    is_marked,
    is_rounding,
    without_graph,
)
from .gradients.junction_graph import next_places
from .norms import norm, scaled_norm
from .notebook import recording_html
from .sites import JunctionSite, Site
from .tables import table

FORMAT = 1
"""Of the files that ``Recording.save`` writes; a later one adds to it, and ``load`` reads all up to its own."""

OWN = ("gradient_norms", "residual_magnitudes")
"""The tables of every recording, of which ``load`` makes one again."""


class Recording:
    """What ``record`` keeps: one ``Site`` for every junction (or named block), in execution order.

    It describes the last forward inside its context and the last backward through it. Norms are taken at once, so that
    no activation is held; while a recording lives, so does its forward's autograd graph.
    """

    def __init__(self, keep: bool, names: dict[Tensor, str], buffers: Sequence[Tensor] = ()) -> None:
        self._keep = keep
        self.names = names
        """The model's parameters, by name."""
        self.buffers = buffers
        """The model's buffers."""
        self._sites: list[Site] = []
        self._handles: list[RemovableHandle] = []
        self._backward: int | None = None
        self._roots: list[Node] = []
        self._first: JunctionSite | None = None
        """`first`, from the end of the forward on: a backward asks for it at every site."""
        self._outputs: dict[Edge, Tensor] = {}
        """The gradients that arrived at what the model returned, as far as they are kept."""
        self._loss_meets_last = False
        """Whether what the model returned leads to the junctions through the last one's sum alone."""

    def __repr__(self) -> str:
        if not self._sites:
            return "Recording(nothing recorded)"
        junctions = sum(isinstance(site, JunctionSite) for site in self._sites)
        what = "junction" if junctions else "block"
        names = repr(self._sites[0].name)
        if len(self._sites) > 1:
            what, names = what + "s", f"{names} to {self._sites[-1].name!r}"
        reached = sum(bool(site.norms) for site in self._sites)
        backward = "forward" if not reached else "forward and backward"
        if 0 < reached < len(self._sites):
            backward += f", which reached {reached} of them"
        return f"Recording({len(self._sites)} {what}, {names}; {backward}{'; tensors kept' if self._keep else ''})"

    def _repr_html_(self) -> str:
        """Junctions and profile, in a notebook."""
        if not self._sites:
            return f"<code>{escape(repr(self))}</code>"
        return recording_html(repr(self), [(site.name, _kind(site) or "") for site in self._sites], self.tables())

    def tables(self, *measurements: "Callable[[Recording], pd.DataFrame]") -> dict[str, pd.DataFrame]:
        """What was measured, as long tables by the measurement's name.

        Args:
            measurements: Further functions of a recording that return a table, such as ``path_contributions`` (while
                its graph is there) or ``functools.partial(path_contributions, max_length=3)``.

        Returns:
            ``gradient_norms`` of the sites that a backward reached; ``residual_magnitudes``, where there are junctions;
            then the tables of ``measurements``. The two are those that the functions of these names return.

        Raises:
            ValueError: Nothing was recorded, two measurements have one name, or one with options has that of the two.
        """
        sites, found = self.sites, dict[str, pd.DataFrame]()
        reached = [site for site in sites if site.norms]
        if reached and not any(map(_is_limited, sites)):
            found["gradient_norms"] = table(
                row for site in reached for row in _rows(site, {k: v.item() for k, v in site.norms.items()})
            )
        junctions = [site for site in sites if isinstance(site, JunctionSite)]
        if junctions:
            found["residual_magnitudes"] = table(row for site in junctions for row in _rows(site, site.magnitudes()))
        names = [name for m in measurements if (name := measurement_name(m)) not in OWN]
        for measure in measurements:
            name = measurement_name(measure)
            if name in OWN and getattr(measure, "__module__", None) != f"{__package__}.measurements.{name}":
                raise ValueError(
                    f"{name} is a table of every recording, of the whole batch: give what is measured otherwise, such "
                    'as per="example", by a function of another name'
                )
        if len(set(names)) < len(names):
            raise ValueError(f"two measurements of one name: {names}: give each a function of its own name")
        return found | {measurement_name(measure): measure(self) for measure in measurements}

    def save(self, file: str | os.PathLike[str], *measurements: "Callable[[Recording], pd.DataFrame]") -> None:
        """Write what was measured to a file, without the graph, the model, or anything that runs when it is read.

        The file is a zip of ``NAME.csv`` for each of ``tables(*measurements)``, and ``about.json`` with the sites and
        versions. ``probes.load`` reads it; so does pandas alone, in ten years::

            with zipfile.ZipFile("step_0.zip") as archive, archive.open("gradient_norms.csv") as file:
                pandas.read_csv(file, dtype={"block": str}, converters={"value": float})

        Values have all their digits, and may be nan or inf; Python's ``float`` reads them to the last bit.

        Args:
            file: Where to; what is there is replaced, complete or not at all.
            measurements: As of ``tables``.

        Raises:
            ValueError: As of ``tables``.
        """
        about = {
            "format": FORMAT,
            "what": repr(self),
            "units": "L2 norms over the whole batch tensor, gradients of the loss as given",
            "torch": torch.__version__,
            "sites": [{"block": site.name, "depth": site.depth, "shortcut": _kind(site)} for site in self.sites],
        }
        write_zip(Path(file), self.tables(*measurements), about)

    @property
    def sites(self) -> list[Site]:
        """All sites.

        Raises:
            ValueError: Nothing was recorded.
        """
        if not self._sites:
            raise ValueError(
                "nothing was recorded: inside `with record(model)`, call the model itself with gradients enabled; "
                "if it has no residual junctions, name the modules that count as depth: record(model, blocks=[...])"
            )
        return self._sites

    @property
    def junctions(self) -> list[JunctionSite]:
        """The sites that are junctions.

        Raises:
            ValueError: There is none.
        """
        found = [site for site in self.sites if isinstance(site, JunctionSite)]
        if not found:
            raise ValueError(
                "this recording has no residual junctions (a plain network, or blocks named by hand): "
                "only gradient_norms and stream_statistics can be taken of it"
            )
        return found

    @property
    def first(self) -> JunctionSite:
        """The junction whose fork was made first: of nested junctions the outermost, although it adds last.

        Raises:
            ValueError: There is none.
        """
        return min(self.junctions, key=lambda site: site.match.fork[0]._sequence_nr())

    @property
    def is_bypassed(self) -> bool:
        """Whether what the first fork was made from is used behind it too, other than through it (a long skip)."""
        return is_bypassed(self.junctions[0].match.fork[0], self._roots)

    def norms(self, site: Site) -> dict[str, Tensor]:
        """The norms of a site's gradients.

        Args:
            site: One of ``sites``.

        Returns:
            ``total`` and, at a junction, ``shortcut``, ``branch`` and ``other``, by name. Norms are L2 over the whole
            batch tensor, of the gradient of the loss as given; float64 without dimensions.

        Raises:
            ValueError: No gradient reached the site, or it was recorded under ``limit_paths``.
        """
        if _is_limited(site):
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

    def reached(self, wanted_by: str) -> list[Site]:
        """The sites that a gradient reached: a loss need not depend on all parts of a model (an unused head, say).

        Args:
            wanted_by: Who needs them, for the warning.

        Returns:
            Those of ``sites`` that have norms; one warning names the others.

        Raises:
            ValueError: No gradient reached any site, or it was recorded under ``limit_paths``.
        """
        missed = [site.name for site in self.sites if not site.norms and not _is_limited(site)]
        if len(missed) == len(self.sites):
            self.norms(self.sites[0])
        if missed:
            names = ", ".join(map(repr, missed[:8])) + (f" and {len(missed) - 8} more" if len(missed) > 8 else "")
            warnings.warn(
                f"{wanted_by}: no gradient reached {names}, of which there are no rows: the loss of the last backward "
                "does not depend on this part of the model",
                stacklevel=3,
            )
        return [site for site in self.sites if site.name not in missed]

    def gradient(self, site: Site, name: str) -> Tensor:
        """A gradient at a site.

        Args:
            site: One of ``sites``.
            name: ``total`` (at the fork x), ``shortcut`` or ``branch`` (what of it came by either addend) or
                ``junction`` (at the sum).

        Returns:
            The gradient of the loss as given, in x's shape; zeros where none came that way.

        Raises:
            ValueError: No gradient reached the site, or it was not kept (see ``record``).
        """
        total = self.norms(site)["total"]
        if name in site.gradients:
            return site.gradients[name]
        if not self._keep:
            raise ValueError(f"the gradient {name!r} of {site.name!r} was not kept: record(model, keep=True)")
        return total.new_zeros(()).expand_as(site.gradients["total"])

    def kept_sites(self, wanted_by: str) -> list[Site]:
        """All sites, checked to hold their tensors.

        Args:
            wanted_by: Who needs them, for the error.

        Returns:
            ``sites``.

        Raises:
            ValueError: Nothing was recorded, or no tensor was kept (see ``record``).
        """
        if self.sites and not self._keep:
            raise ValueError(
                f"{wanted_by} needs the tensors themselves, not only their norms: record(model, keep=True)"
            )
        return self.sites

    def kept_junctions(self, wanted_by: str) -> list[JunctionSite]:
        """The sites that are junctions, checked to hold their addends and sums.

        Args:
            wanted_by: Who needs them, for the error.

        Returns:
            ``junctions``.

        Raises:
            ValueError: There is no junction, or no tensor was kept (see ``record``).
        """
        self.kept_sites(wanted_by)
        return self.junctions

    def chain(self) -> list[JunctionSite]:
        """The junctions, checked to be a chain: every fork is made from the junction before it, nothing goes around.

        Returns:
            The sites, in execution order.

        Raises:
            ValueError: A gradient came by another route, there are no junctions, or no gradient was recorded.
        """
        missed = [site.name for site in self.junctions if not (site.norms or _is_limited(site))]
        if missed and self.first.norms:
            raise NoChain(UNREACHED.format(missed[0]))
        for site in self.junctions:
            norms = {name: value.item() for name, value in self.norms(site).items()}
            # Rounding of a sum whose terms are the very tensors is far below this; a route of any weight is far above.
            if norms["other"] > 1e-4 * norms["total"]:
                raise NoChain(NO_CHAIN.format(site.name, norms["other"], norms["total"]))
        self._check_gaps()
        return self.junctions

    def is_chain(self) -> bool:
        """Whether the junctions are a chain.

        Raises:
            ValueError: There are no junctions, or no gradient was recorded.
        """
        try:
            return bool(self.chain())
        except NoChain:
            return False

    def loss_gradients(self) -> dict[Edge, Tensor]:
        """The gradients that the loss sends into the model, by the place in autograd's graph at which they arrive.

        These are the tensors that the model returns or, where all these lead there, the last junction's sum. At a
        returned tensor that the model uses itself it is the gradient by all ways, and it is there only if the tensor is
        a junction's sum or fork, or with ``keep``.
        """
        last = self.junctions[-1]
        meets_last = self._loss_meets_last and last.norms
        return self._outputs | ({(last.add, 0): self.gradient(last, "junction")} if meets_last else {})

    def _check_gaps(self) -> None:
        """What left the last junction must be all that arrived at the first fork: nothing came in between junctions."""
        chain = self.junctions
        carried = self.gradient(chain[-1], "junction")
        for site, before in zip(reversed(chain), [*chain[-2::-1], None], strict=True):
            carried = backpropagate(carried, (site.add, 0), site.match.fork, site.name)
            if before is not None:
                where = f"{before.name!r} to {site.name!r}"
                carried = backpropagate(carried, site.match.fork, (before.add, 0), where)
        total = self.gradient(self.first, "total")
        whole, missing = scaled_norm(total), scaled_norm(carried - total)
        if math.isfinite(whole) and not is_rounding(missing, max(whole, scaled_norm(carried)), total):
            raise NoChain(NO_CHAIN.format(chain[0].name, missing, whole))

    def _on_start(self) -> None:
        self._release()
        self._sites.clear()
        self._first = None
        self._roots.clear()
        self._outputs.clear()

    def _on_end(self, roots: list[Node]) -> None:
        self._roots = list(dict.fromkeys(roots))
        junctions = [site for site in self._sites if isinstance(site, JunctionSite)]
        if not junctions:
            return
        places: set[Edge] = {place for site in junctions for place in ((site.add, 0), site.match.fork)}
        used = {n for node in ancestors(roots) for n, _ in node.next_functions} if len(self._roots) > 1 else set()
        outer = [(node, output) for node in self._roots if node not in used for output in _outputs(node)]
        ends, passed = next_places(outer, places)
        self._first = self.first
        before = self._first.match.fork[0]._sequence_nr()
        bypassed = any(node._sequence_nr() < before for node in passed)
        self._loss_meets_last = list(ends) == [(junctions[-1].add, 0)] and not bypassed
        for index, node in enumerate(self._roots):
            # Other gradients are not held: those of a language model's logits, or of its keys and values, are large.
            outermost = node not in used and not self._loss_meets_last
            if self._keep or outermost or any((node, output) in places for output in _outputs(node)):
                self._handles.append(node.register_prehook(partial(_keep_output, ref(self), index)))

    def _release(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _on_junction(self, detected: DetectedJunction) -> None:
        junction = detected.junction
        if junction.depth < len(self._sites):  # what was detected there was but a part of this sum
            self._sites.pop()
            for handle in (self._handles.pop(), self._handles.pop()):
                handle.remove()
        site = JunctionSite(junction.name, junction.depth, junction=junction, add=detected.add, match=detected.match)
        site.measure_addends(detected.shortcut_value, detected.branch_value)
        if self._keep:
            _keep_values(site, detected)
            before = [s.sum for s in self._sites if isinstance(s, JunctionSite) and s.add is detected.match.fork[0]]
            if site.fork is None and before:
                site.fork = before[0]
        self._sites.append(site)
        self._hook_gradient((detected.add, 0), "junction")
        self._hook_gradient(detected.match.fork, "total")

    def _on_output(self, junction: Junction, output: Tensor) -> None:
        site = self._sites[junction.depth]
        if isinstance(site, JunctionSite):
            site.output = output.clone()

    def _on_block(self, name: str, x: Tensor) -> None:
        refuse_sharded_activation(x, name)
        self._sites.append(Site(name, len(self._sites), fork=x.detach().clone() if self._keep else None))
        edge = get_gradient_edge(x)
        self._hook_gradient((edge.node, edge.output_nr), "total")

    def _hook_gradient(self, edge: Edge, name: str) -> None:
        """Keep the gradient that arrives at an edge, as the last site's. Hooks must not own the recording, which owns
        the hooked nodes."""
        node, output = edge
        index, this = len(self._sites) - 1, ref(self)

        def hook(arriving: Sequence[Tensor | None]) -> None:
            recording, gradient = this(), arriving[output]
            if recording is not None and gradient is not None:
                recording._on_gradient(recording._sites[index], name, gradient)

        self._handles.append(node.register_prehook(hook))

    def _on_gradient(self, site: Site, name: str, gradient: Tensor) -> None:
        if inside_probe_backward():
            return
        self._on_backward()
        site.gradients[name] = without_graph(gradient)
        if name == "total":
            self._finish(site)
        if name == "junction" and isinstance(site, JunctionSite) and not site.has_part_hooks:
            # Only now, so that these hooks run after any that other contexts have put on the same nodes.
            site.has_part_hooks = True
            index, this = self._sites.index(site), ref(self)

            def keep(part: str, passed: Tensor) -> None:
                if (recording := this()) is not None and not inside_probe_backward():
                    accumulate(recording._sites[index].gradients, part, passed)

            self._handles += hook_parts(site.match, keep)

    def _on_backward(self) -> None:
        if self._backward != (backward := _running_backward()):  # another backward: forget the one before
            self._backward = backward
            self._outputs.clear()
            for recorded in self._sites:
                recorded.gradients.clear()
                recorded.norms.clear()

    def _finish(self, site: Site) -> None:
        """All of a site's gradient has come: take the norms, and release what nobody will ask for."""
        if isinstance(site, JunctionSite):
            site.measure_gradients()
        else:
            site.norms["total"] = norm(site.gradients["total"])
        if not self._keep:  # the path functions begin at the last junction's sum, and end at the first fork
            first = site is ((self._first or self.first) if isinstance(site, JunctionSite) else self._sites[0])
            last = site is self._sites[-1]
            ends = {"total": first, "junction": last}
            site.gradients = {name: gradient for name, gradient in site.gradients.items() if ends.get(name)}


def measurement_name(measure: Callable[..., object]) -> str:
    """What a measurement's table is called: the function's name, also of a `functools.partial` of it."""
    return getattr(getattr(measure, "func", measure), "__name__", type(measure).__name__)


def _rows(site: Site, values: dict[str, float]) -> Iterator[dict[str, object]]:
    for quantity, value in values.items():
        yield {"block": site.name, "depth": site.depth, "quantity": quantity, "value": value}


def _kind(site: Site) -> str | None:
    return site.match.kind if isinstance(site, JunctionSite) else None


def _is_limited(site: Site) -> bool:
    return isinstance(site, JunctionSite) and is_marked(site.add, LIMITED)


def _keep_values(site: JunctionSite, detected: DetectedJunction) -> None:
    site.shortcut, site.branch = detected.shortcut_value.clone(), detected.branch_value.clone()
    site.sum = detected.sum.clone()
    shortcut = detected.add.next_functions[detected.match.shortcut_operand]
    if shortcut == detected.match.fork and len(detected.junction.adds) == 1:
        site.fork = site.shortcut
    elif detected.fork is not None:
        site.fork = detected.fork.clone()
    if detected.origin is not None:
        site.module, site.factor = detected.origin.module, detected.origin.factor


def _outputs(node: Node) -> range:
    return range(len(cast(Any, node)._input_metadata))


def _keep_output(this: "ref[Recording]", index: int, arriving: Sequence[Tensor | None]) -> None:
    """Keep what arrives at a tensor that the model returned. Hooks must not own the recording, nor the hooked node."""
    recording = this()
    if recording is None or inside_probe_backward():
        return
    recording._on_backward()
    for output, gradient in enumerate(arriving):
        if gradient is not None:
            recording._outputs[recording._roots[index], output] = without_graph(gradient)


def _running_backward() -> int:
    return torch._C._current_graph_task_id()


@contextmanager
def record(model: nn.Module, *, blocks: Sequence[nn.Module] | None = None, keep: bool = False) -> Iterator[Recording]:
    """Record the junctions of ``model`` while it runs inside this context; hooks exist only in here.

    Recording changes no output, gradient, buffer or random state. A BatchNorm in train mode moves its running
    statistics at each forward, recorded or not: record the training step itself, or a copy of the model.

    Args:
        model: Any module; it is not changed.
        blocks: For networks without junctions, the modules of ``model`` that count as depth; then only the total
            gradient at each one's (first) input is recorded, and with ``keep`` that input.
        keep: Also keep the tensors, for measurements that need them (``contributions``, ``stream_statistics``,
            ``per="example"``) and for your own: all gradients (``Recording.gradient``), the addends and their sum
            (``site.shortcut``, ``site.branch``, ``site.sum``), in memory like the activations'.

    Yields:
        The ``Recording``, which can be measured inside the context and after it.

    Raises:
        ValueError: A block is no part of the model.
        RuntimeError: The model hides its adds (compiled, exported, replicated, with reentrant checkpointing), is
            quantised for inference, keeps its stream as DTensors, or runs in part by itself.

    Example::

        with record(model) as recording:
            loss = F.cross_entropy(model(images), labels)
            loss.backward()                    # retain_graph=True if path_gradients or path_contributions follow
        gradient_norms(recording)
    """
    recording = Recording(
        keep, {parameter: name for name, parameter in model.named_parameters()}, list(model.buffers())
    )
    try:
        with listen(model, recording, blocks):
            yield recording
    finally:
        recording._release()


def listen(model: nn.Module, recording: Recording, blocks: Sequence[nn.Module] | None) -> AbstractContextManager[None]:
    """A context in which a recording is called at the model's forwards, and at each junction or block in them."""
    if blocks is not None:
        names = block_names(model, blocks, "record")
        return detect_blocks(model, names, recording._on_block, on_start=recording._on_start)
    return detect_junctions(
        model,
        recording._on_junction,
        on_start=recording._on_start,
        on_end=recording._on_end,
        on_output=recording._on_output if recording._keep else None,
    )
