"""`track`: the probes' tables over a training, whoever writes its loop.

torch calls a hook before and after each step of any optimizer. Between two steps, where the second is to be recorded,
every forward of the model with gradients has a `Recording` of its own; before the step they are put together, measured,
written and released. In all other steps nothing is on the model.
"""

import functools
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Any
from weakref import ref

import pandas as pd
import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from ..discovery.junctions import DetectedJunction, Junction
from ..measured import MeasuredRecording, reduce, together
from ..measurements.gradient_norms import gradient_norms
from ..measurements.paths import path_contributions
from ..measurements.residual_magnitudes import residual_magnitudes
from ..recording import Recording, listen, measurement_name
from ..tables import ordered
from .sinks import Sink, sinks

Measurement = Callable[[Recording], pd.DataFrame]


@contextmanager
def track(
    model: nn.Module,
    *,
    to: Any,
    every: int = 100,
    start: int = 0,
    measure: Measurement | Sequence[Measurement] = (gradient_norms, residual_magnitudes),
    blocks: Sequence[nn.Module] | None = None,
    keep: bool = False,
    loss_scale: float | GradScaler | None = None,
) -> Iterator[None]:
    """Measure a training while it runs: a loop of one's own, ``trainer.train()``, ``Trainer.fit(...)``.

    The steps of the optimizer that holds the model's parameters are counted by torch's own hooks (of several such
    optimizers, one is). What is measured at step s is the gradient that step takes, before it is clipped: that of all
    forwards and backwards since the step before. With micro-batches these are put together exactly, as if they had been
    one batch (where no example's numbers depend on those beside it, as they do in BatchNorm); a forward without a
    backward does not count. Outputs, gradients and the training stay as they were.

    Args:
        model: The module that the training calls: not one around it (of Lightning, the network inside).
        to: Where tables go: a path ending in ``.csv`` or ``.parquet`` (needs pyarrow; written anew each time), a
            TensorBoard ``SummaryWriter``, a Weights & Biases or trackio run (what has ``.log(dict, step=)``), any
            function of ``(step, table)``, or a list of these. Scalars are named ``PROBE/QUANTITY/BLOCK``.
        every: The steps 0, N, 2N, ... are recorded; a step's number is how many came before it.
        start: The step at which a resumed training begins. It continues its files, and writes no step that they have.
        measure: Functions of a recording that return a long table. Where a step has several forwards or a loss scale,
            they are given norms and sizes alone, and what needs more says so; ``path_contributions`` (or a
            ``functools.partial`` of it) is taken of each forward, and put together, and needs
            ``loss.backward(retain_graph=True)``.
        blocks: For networks without junctions, as in ``record``.
        keep: Also keep tensors, as in ``record``, for measurements of steps with one forward.
        loss_scale: What the loss is multiplied by before its backward, a number or a ``GradScaler``: gradients' norms
            are divided by it. A ``GradScaler`` that calls the step is found by itself; naming it also tells the steps
            apart that it skips. By default nothing else is.

    Yields:
        Nothing. A table has the columns ``step``, ``probe`` (the measurement's name), those of the measurements, and
        ``value``. Norms are L2 over the whole batch tensor, of the gradient of the loss as given (under
        DistributedDataParallel, that of the first process, which alone writes).

    Raises:
        TypeError: ``to``, ``measure`` or ``loss_scale`` is none of these.
        ValueError: ``every`` or ``start`` is no such number, a file exists, nothing could be recorded in a step (no
            junctions, no forward, no backward), or no optimizer of the model's stepped until the end.
        RuntimeError: The model hides its adds (see ``record``), or the optimizer steps inside the backward.
        ImportError: A Parquet file, without pyarrow.

    Example::

        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with track(model, every=2, to="norms.csv"):
            for _ in range(5):
                optimizer.zero_grad()
                F.cross_entropy(model(images), labels).backward()
                optimizer.step()
    """
    for name, number, least in (("every", every, 1), ("start", start, 0)):
        if isinstance(number, bool) or not isinstance(number, int) or number < least:
            raise ValueError(f"track: {name} is {number!r}: give a whole number of steps, at least {least}")
    measurements = _checked_measurements(measure)
    forwards = _Forwards(model, blocks, keep, _checked_scale(loss_scale))
    steps = _Steps(model, forwards, measurements, sinks(to, start), every, start)
    with ExitStack() as stack:
        stack.callback(steps.release)
        stack.callback(register_optimizer_step_pre_hook(steps.before).remove)
        stack.callback(register_optimizer_step_post_hook(steps.after).remove)
        steps.open()
        yield
        steps.check()


def _checked_measurements(measure: Measurement | Sequence[Measurement]) -> list[Measurement]:
    found: list[Any] = [measure] if callable(measure) else list(measure)
    if not found or not all(map(callable, found)):
        raise TypeError(f"track: measure is {measure!r}: give functions of a recording, such as gradient_norms")
    names = [measurement_name(m) for m in found]
    if len(set(names)) < len(names):
        raise ValueError(f"track: two measurements of one name, {names}: give each a function of its own name")
    return found


def _checked_scale(loss_scale: float | GradScaler | None) -> float | Callable[[], float] | None:
    read: Any = getattr(loss_scale, "get_scale", None)
    if loss_scale is None:
        return None
    if read is not None:
        return read
    if isinstance(loss_scale, bool) or not isinstance(loss_scale, int | float):
        raise TypeError(f"track: loss_scale is {loss_scale!r}: give a number, or the GradScaler")
    if not 0 < loss_scale < math.inf:
        raise ValueError(f"track: loss_scale is {loss_scale}: give the positive number that the loss is multiplied by")
    return float(loss_scale)


class _Part:
    """A forward whose backward has run."""

    def __init__(self, recording: Recording, paths: Sequence[Measurement], loss_scale: float | None) -> None:
        self.recording: Recording | None = recording
        """Until it is reduced to numbers."""
        self.paths = {measurement_name(m): m(recording) for m in paths}
        """Tables of path lengths, which need the forward's own graph."""
        self.loss_scale = loss_scale
        """None where it is not known until the step."""
        self._numbers: MeasuredRecording | None = None

    @property
    def numbers(self) -> MeasuredRecording:
        """Its norms and sizes; the recording, and so the forward's graph, is let go."""
        if self.recording is not None:
            self._numbers, self.recording = reduce(self.recording), None
        assert self._numbers is not None
        return self._numbers


class _Forwards(Recording):
    """Stands where `record` has its one recording, and gives each forward with gradients one of its own."""

    def __init__(
        self,
        model: nn.Module,
        blocks: Sequence[nn.Module] | None,
        keep: bool,
        scale: float | Callable[[], float] | None,
    ) -> None:
        super().__init__(keep, {})
        self.model, self.blocks, self.scale = model, blocks, scale
        self.paths: list[Measurement] = []
        self.count = 0
        """Forwards with gradients, and how many sites the last had."""
        self.most_sites = 0
        self.parts: list[_Part] = []
        self._pending: list[tuple[Recording, float | None]] = []
        self._newest = Recording(keep, {})

    def _on_start(self) -> None:
        self._newest = Recording(self._keep, self.names, list(self.model.buffers()))
        if torch.is_grad_enabled():
            # An update of the scale lies between this forward and the one before, or it has not changed.
            scale = self.scale() if callable(self.scale) else self.scale
            self.collect(at_end=False)
            self._drop_skipped(scale)
            self.count += 1
            self._pending.append((self._newest, scale))

    def _on_end(self, roots: Any) -> None:
        self._newest._on_end(roots)

    def _on_junction(self, detected: DetectedJunction) -> None:
        self._newest._on_junction(detected)

    def _on_output(self, junction: Junction, output: Tensor) -> None:
        self._newest._on_output(junction, output)

    def _on_block(self, name: str, x: Tensor) -> None:
        self._newest._on_block(name, x)

    def collect(self, *, at_end: bool) -> None:
        """Take the numbers of the forwards whose backward has run, and release them.

        Others wait: a loss may be of several forwards. In eval mode (an evaluation with gradients) they do not, lest
        the graphs of a whole data set are held.
        """
        waiting: list[tuple[Recording, float | None]] = []
        for recording, scale in self._pending:
            self.most_sites = max(self.most_sites, len(recording._sites))
            if any(site.norms for site in recording._sites):
                self.parts.append(_Part(recording, self.paths, scale))
                recording._release()
            elif not at_end and self.model.training:
                waiting.append((recording, scale))
            else:
                recording._release()
        self._pending = waiting
        if not at_end:
            for part in self.parts:
                _ = part.numbers

    def _drop_skipped(self, scale: float | None) -> None:
        """A scaler lowers its scale when it has skipped a step: what was collected for that one is of no step."""
        if scale is not None and any(part.loss_scale is not None and part.loss_scale > scale for part in self.parts):
            self.parts.clear()

    def settle_scales(self, scaler: GradScaler | None) -> None:
        """Give the parts of which no scale is known that of the scaler that calls the step."""
        if scaler is None or all(part.loss_scale is not None for part in self.parts):
            return
        self.scale = scaler.get_scale  # from now on, its skipped steps are seen
        overflown = [i for i, part in enumerate(self.parts) if not _is_finite(part.recording or part.numbers)]
        del self.parts[: overflown[-1] + 1 if overflown else 0]  # the scaler lets no such gradient pass
        for part in self.parts:
            part.loss_scale = scaler.get_scale()

    def clear(self) -> None:
        """Let go of everything."""
        for recording, _ in self._pending:
            recording._release()
        self._pending.clear()
        self.parts.clear()
        self._newest, self.count, self.most_sites = Recording(self._keep, {}), 0, 0


def _is_finite(recording: Recording) -> bool:
    return all(value.isfinite().item() for site in recording.sites for value in site.norms.values())


class _Steps:
    """Counts the steps of one optimizer, and has some of them recorded."""

    def __init__(
        self,
        model: nn.Module,
        forwards: _Forwards,
        measurements: Sequence[Measurement],
        to: Sequence[Sink],
        every: int,
        step: int,
    ) -> None:
        self.model, self.forwards, self.sinks = model, forwards, to
        self.measurements, self.every, self.step = measurements, every, step
        forwards.paths = [m for m in measurements if _is_of_paths(m)]
        self.counted = self.others = 0
        self.optimizer: ref[Optimizer] | None = None
        self.other: ref[Optimizer] | None = None
        self.caller: FrameType | None = None
        self.listening: ExitStack | None = None

    def open(self) -> None:
        """Put the recording's hooks on the model, if the next step is one to record and this process writes."""
        if self.step % self.every or not _is_first_process():
            return
        names: dict[Tensor, str] = {parameter: name for name, parameter in self.model.named_parameters()}
        self.forwards.names = names
        listening = ExitStack()
        listening.enter_context(listen(self.model, self.forwards, self.forwards.blocks))
        self.listening = listening

    def close(self) -> None:
        """Take them away, and let go of what was recorded."""
        listening, self.listening = self.listening, None
        try:
            if listening is not None:
                listening.close()
        finally:
            self.forwards.clear()

    def release(self) -> None:
        """At the end, in whatever way it came."""
        self.caller = None
        self.close()

    def check(self) -> None:
        """Raise ValueError if there was no step to count."""
        if self.counted == 0:
            others = f"{self.others} steps of optimizers that do not hold its parameters" if self.others else "none"
            raise ValueError(
                f"track: no optimizer of this model's parameters has stepped inside of the context (seen: {others}): "
                "give the very module that is trained, and run its training inside"
            )

    # The hooks

    def before(self, optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
        """torch's hook before each step of every optimizer."""
        caller = sys._getframe(1)
        if self._is_inside(caller) or not self._is_counted(optimizer):
            return None
        self.caller = caller
        if self.listening is None:
            return None
        if torch._C._current_graph_task_id() != -1:
            raise RuntimeError(
                "track: the optimizer steps while the backward is running, when not all gradients are there: train "
                "without optimizers in backward hooks"
            )
        scaler = _calling_scaler(caller)
        if scaler is not None and _skips_by_itself(optimizer):
            self.caller = None
            self.forwards.collect(at_end=True)
            self.forwards.parts.clear()
            return None
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if not callable(closure):
            self._write(scaler)
            return None

        def evaluated(*inner: Any, **options: Any) -> Any:
            """The closure computes the gradient, perhaps several times: the first is the step's."""
            loss = closure(*inner, **options)
            if self.listening is not None and self.caller is caller:
                self._write(scaler)
            return loss

        if "closure" in kwargs:
            return args, {**kwargs, "closure": evaluated}
        return (args[0], evaluated, *args[2:]), kwargs

    def after(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """torch's hook after each step of every optimizer."""
        if self.caller is None or sys._getframe(1) is not self.caller:
            return
        self.caller = None
        if self.listening is not None:  # the step did not call its closure
            self._write(None)
        self.step += 1
        self.counted += 1
        self.open()

    def _is_inside(self, frame: FrameType | None) -> bool:
        """Whether the counted step is still running: a subclass's step calls that of its base, which is hooked too."""
        while frame is not None and self.caller is not None and frame.f_back is not self.caller:
            frame = frame.f_back
        return frame is not None and self.caller is not None

    def _is_counted(self, optimizer: Optimizer) -> bool:
        """Of several optimizers that hold the model's parameters the first, unless another steps twice without it."""
        counted = self.optimizer() if self.optimizer is not None else None
        if optimizer is not counted:
            own = {id(parameter) for parameter in self.model.parameters()}
            if not any(id(p) in own for group in optimizer.param_groups for p in group["params"]):
                self.others += 1
                return False
            if counted is not None and (self.other is None or self.other() is not optimizer):
                self.other = ref(optimizer)
                return False
            self.optimizer = ref(optimizer)
        self.other = None
        return True

    # What is measured

    def _write(self, scaler: GradScaler | None) -> None:
        try:
            if _is_first_process():
                table = self._table(scaler)
                for sink in self.sinks:
                    sink(self.step, table)
        finally:
            self.close()

    def _table(self, scaler: GradScaler | None) -> pd.DataFrame:
        forwards = self.forwards
        forwards.collect(at_end=True)
        forwards.settle_scales(scaler)
        parts = forwards.parts
        if not parts:
            raise ValueError(f"track: step {self.step}: {self._what_was_missing()}")
        scales = [part.loss_scale or 1.0 for part in parts]
        recording = parts[0].recording if len(parts) == 1 and scales == [1.0] else None
        if recording is None:
            recording = together([part.numbers for part in parts], scales)
        else:
            _fill_gaps(recording)
        tables = []
        for m in self.measurements:
            name = measurement_name(m)
            of_paths = [part.paths[name] for part in parts] if m in forwards.paths else None
            found = m(recording) if of_paths is None else _paths_together(of_paths, parts, scales)
            tables.append(found.assign(probe=name))
        table = pd.concat(tables, ignore_index=True).assign(step=self.step)
        for column in table.columns.intersection(["depth", "path_length"]):  # where some measurements have none
            if pd.api.types.is_float_dtype(table[column]):
                table[column] = table[column].astype("Int64")
        return ordered(table)

    def _what_was_missing(self) -> str:
        if self.forwards.count == 0:
            return (
                "the optimizer stepped, and no forward of the model with gradients was seen before it: the training "
                "must call the model that is tracked"
            )
        if self.forwards.most_sites == 0:
            return (
                "the model has no residual junctions: name the modules that count as depth, track(model, blocks=[...])"
            )
        return "the optimizer stepped, and no backward through the model was seen before it"


def _is_first_process() -> bool:
    group = torch.distributed
    return not (group.is_available() and group.is_initialized()) or group.get_rank() == 0


def _calling_scaler(frame: FrameType | None) -> GradScaler | None:
    """The scaler whose step calls the optimizer's."""
    while frame is not None:
        if frame.f_code.co_filename.endswith("grad_scaler.py"):
            found = frame.f_locals.get("self")
            if isinstance(found, GradScaler):
                return found
        frame = frame.f_back
    return None


def _skips_by_itself(optimizer: Optimizer) -> bool:
    """Whether a fused optimizer is called by a scaler for a step that it will skip."""
    found = getattr(optimizer, "found_inf", None)
    return isinstance(found, Tensor) and bool(found.item())


def _fill_gaps(recording: Recording) -> None:
    """Let the norms be nan at sites that no gradient reached."""
    for site in recording.sites:
        if not site.norms:
            site.norms = {name: torch.tensor(math.nan, dtype=torch.float64) for name in site.quantities}


def _is_of_paths(measure: Measurement) -> bool:
    return (measure.func if isinstance(measure, functools.partial) else measure) is path_contributions


def _paths_together(tables: Sequence[pd.DataFrame], parts: Sequence[_Part], scales: Sequence[float]) -> pd.DataFrame:
    """The contributions of path lengths to a batch's gradient, from those to its parts.

    Norms add in squares; the share <g_k, g> / <g, g> of the whole is the sum of the parts' inner products over that of
    the squares.
    """
    whole = tables[0].copy()
    keys = [str(column) for column in whole if column != "value"]
    if "block" in keys and (len(parts) > 1 or scales != [1.0]):
        raise ValueError(
            'track: path_contributions of parameters (of="parameters") cannot be put together from several forwards or '
            'taken under a loss scale: measure those of the inputs, of="inputs"'
        )
    if len(parts) > 1 and not set(whole["quantity"]) <= {"norm", "share"}:
        raise ValueError(
            "track: what sampled paths cancel cannot be put together from several forwards: leave samples= out"
        )
    if len(parts) > 1:
        sizes = [_first_total(part.numbers) / scale for part, scale in zip(parts, scales, strict=True)]
        largest = max(sizes)
        weights = [(size / largest) ** 2 if largest else 0.0 for size in sizes]
    else:
        largest, weights = 1.0, [1.0]
    values = []
    for rows in zip(*(table.itertuples(index=False) for table in tables), strict=True):
        found: list[Any] = list(rows)
        if any([getattr(row, key) for key in keys] != [getattr(found[0], key) for key in keys] for row in found):
            raise ValueError("track: forwards of one step have different path lengths, which have no sum")
        if found[0].quantity == "norm":
            values.append(math.hypot(*(row.value / scale for row, scale in zip(found, scales, strict=True))))
        elif len(found) == 1:
            values.append(found[0].value)
        else:  # a part without a gradient has no share, and adds nothing
            products = (row.value * weight for row, weight in zip(found, weights, strict=True) if weight)
            values.append(math.fsum(products) / math.fsum(weights) if largest else math.nan)
    return whole.assign(value=values)


def _first_total(numbers: MeasuredRecording) -> float:
    return numbers.sites[0].norms["total"].item()
