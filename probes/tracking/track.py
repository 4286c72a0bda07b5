"""`track`: the probes' tables over a training, whoever writes its loop.

`steps` counts the optimizer's steps. Between two of them, where the second is to be recorded, `forwards` listens to the
model; here what it heard is put together, measured, written and released. In all other steps nothing is on the model.
"""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from ..discovery.refusals import is_sharded
from ..measured import MeasuredRecording, together
from ..measurements.gradient_norms import gradient_norms
from ..measurements.paths import path_contributions
from ..measurements.residual_magnitudes import residual_magnitudes
from ..recording import Recording, listen, measurement_name
from ..tables import stacked
from .forwards import Forwards, Measurement, Part
from .sinks import Sink, sinks
from .steps import Steps


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
            are divided by it. A ``GradScaler`` that calls the step is found by itself, and the steps that it skips are
            told apart; name it where gradients are put aside between the micro-batches of a step. By default nothing
            else is.

    Yields:
        Nothing. A table has the columns ``step``, ``probe`` (the measurement's name), those of the measurements, and
        ``value``. Norms are L2 over the whole batch tensor, of the gradient of the loss as given (under
        DistributedDataParallel, that of the first process, which alone writes).

    Raises:
        TypeError: ``to``, ``measure`` or ``loss_scale`` is none of these.
        ValueError: ``every`` or ``start`` is no such number, a file exists, nothing could be recorded in a step (no
            junctions, no forward, no backward), no optimizer of the model's stepped until the end, or path lengths are
            asked for of sharded weights.
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
    paths = [m for m in measurements if _is_of_paths(m)]
    if paths and any(map(is_sharded, model.parameters())):
        raise ValueError(
            "track: path_contributions runs backwards of its own, for which sharded weights (FSDP, tensor parallelism) "
            "are gathered from all processes, and the first alone measures: it would wait for ever; record a step in "
            "all processes instead"
        )
    forwards = Forwards(model, blocks, keep, _checked_scale(loss_scale), paths)
    tables = _Tables(model, forwards, measurements, sinks(to, start), every)
    steps = Steps(model, start, begin=tables.begin, complete=tables.write, skipped=forwards.drop)
    with closing(tables), steps.count():
        yield


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


class _Tables:
    """Has some steps recorded, measures them, and writes their tables."""

    def __init__(
        self,
        model: nn.Module,
        forwards: Forwards,
        measurements: Sequence[Measurement],
        to: Sequence[Sink],
        every: int,
    ) -> None:
        self.model, self.forwards, self.sinks = model, forwards, to
        self.measurements, self.every = measurements, every
        self.listening: ExitStack | None = None

    def begin(self, step: int) -> bool:
        """Put the recording's hooks on the model, if this step is one to record and this process writes."""
        if step % self.every or not _is_first_process():
            return False
        names: dict[Tensor, str] = {parameter: name for name, parameter in self.model.named_parameters()}
        self.forwards.names = names
        listening = ExitStack()
        listening.enter_context(listen(self.model, self.forwards, self.forwards.blocks))
        self.listening = listening
        return True

    def close(self) -> None:
        """Take them away, and let go of what was recorded."""
        listening, self.listening = self.listening, None
        try:
            if listening is not None:
                listening.close()
        finally:
            self.forwards.clear()

    def write(self, step: int, scaler: GradScaler | None) -> None:
        """Measure what was recorded for a step, and give its table to all places."""
        try:
            if _is_first_process():  # a trainer may have formed the group after the step began
                table = self._table(step, scaler)
                for sink in self.sinks:
                    sink(step, table)
        finally:
            self.close()

    def _table(self, step: int, scaler: GradScaler | None) -> pd.DataFrame:
        forwards = self.forwards
        forwards.collect(at_end=True)
        forwards.settle_scales(scaler)
        parts = forwards.parts
        if not parts:
            raise ValueError(f"track: step {step}: {self._what_was_missing()}")
        scales = [part.loss_scale or 1.0 for part in parts]
        recording = parts[0].recording if len(parts) == 1 and scales == [1.0] else None
        if recording is None:
            recording = together([part.numbers for part in parts], scales)
        else:
            _fill_gaps(recording)
        tables = []
        for m in self.measurements:
            found = _paths_together(m, parts, scales) if m in forwards.paths else m(recording)
            tables.append(found.assign(step=step, probe=measurement_name(m)))
        return stacked(tables)

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


def _fill_gaps(recording: Recording) -> None:
    """Let the norms be nan at sites that no gradient reached."""
    for site in recording.sites:
        if not site.norms:
            site.norms = {name: torch.tensor(math.nan, dtype=torch.float64) for name in site.quantities}


def _is_of_paths(measure: Measurement) -> bool:
    return (measure.func if isinstance(measure, functools.partial) else measure) is path_contributions


def _paths_together(measure: Measurement, parts: Sequence[Part], scales: Sequence[float]) -> pd.DataFrame:
    """The contributions of path lengths to a batch's gradient, from those to its parts.

    Norms add in squares; the share <g_k, g> / <g, g> of the whole is the sum of the parts' inner products over that of
    the squares.
    """
    tables = [part.paths[measurement_name(measure)] for part in parts]
    whole, *others = (table.drop(columns="value") for table in tables)
    of_parameters = getattr(measure, "keywords", {}).get("of") == "parameters"
    if of_parameters and (len(parts) > 1 or scales != [1.0]):
        raise ValueError(
            'track: path_contributions of parameters (of="parameters") cannot be put together from several forwards or '
            'taken under a loss scale: measure those of the inputs, of="inputs"'
        )
    if len(parts) > 1 and not set(whole["quantity"]) <= {"norm", "share"}:
        raise ValueError(
            "track: what sampled paths cancel cannot be put together from several forwards: leave samples= out"
        )
    if not all(map(whole.equals, others)):
        raise ValueError("track: forwards of one step have different path lengths, which have no sum")
    if len(parts) > 1:
        sizes = [_first_total(part.numbers) / scale for part, scale in zip(parts, scales, strict=True)]
        largest = max(sizes)
        weights = [(size / largest) ** 2 if largest else 0.0 for size in sizes]
    else:
        largest, weights = 1.0, [1.0]
    values = []
    for quantity, *found in zip(whole["quantity"], *(table["value"] for table in tables), strict=True):
        if quantity == "norm":
            values.append(math.hypot(*(value / scale for value, scale in zip(found, scales, strict=True))))
        elif len(found) == 1:
            values.append(found[0])
        else:  # a part without a gradient has no share, and adds nothing
            products = (value * weight for value, weight in zip(found, weights, strict=True) if weight)
            values.append(math.fsum(products) / math.fsum(weights) if largest else math.nan)
    return tables[0].assign(value=values)


def _first_total(numbers: MeasuredRecording) -> float:
    return numbers.sites[0].norms["total"].item()
