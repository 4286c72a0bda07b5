"""What a step takes its gradient from: all forwards and backwards since the step before, each with its loss scale.

Every forward of the model with gradients has a `Recording` of its own; those whose backward has run are the step's
parts.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from ..discovery.junctions import DetectedJunction, Junction
from ..discovery.refusals import is_sharded
from ..measured import MeasuredRecording, reduce
from ..recording import Recording, measurement_name

Measurement = Callable[[Recording], pd.DataFrame]


class Part:
    """A forward whose backward has run."""

    def __init__(
        self, recording: Recording, paths: Sequence[Measurement], loss_scale: float | None, begins: bool
    ) -> None:
        self.recording: Recording | None = recording
        """Until it is reduced to numbers."""
        self.paths = {measurement_name(m): m(recording) for m in paths}
        """Tables of path lengths, which need the forward's own graph."""
        self.loss_scale = loss_scale
        """None where it is not known until the step."""
        self.begins = begins
        """Whether no gradient of an earlier forward was there any more when it began, or none that a step can take."""
        self._numbers: MeasuredRecording | None = None

    @property
    def numbers(self) -> MeasuredRecording:
        """Its norms and sizes; the recording, and so the forward's graph, is let go."""
        if self.recording is not None:
            self._numbers, self.recording = reduce(self.recording), None
        assert self._numbers is not None
        return self._numbers


class Forwards(Recording):
    """Stands where `record` has its one recording, and gives each forward with gradients one of its own."""

    def __init__(
        self,
        model: nn.Module,
        blocks: Sequence[nn.Module] | None,
        keep: bool,
        scale: float | Callable[[], float] | None,
        paths: Sequence[Measurement],
    ) -> None:
        super().__init__(keep, {})
        self.model, self.blocks, self.scale, self.paths = model, blocks, scale, paths
        self.count = 0
        """Forwards with gradients, and how many sites the last had."""
        self.most_sites = 0
        self.parts: list[Part] = []
        self._pending: list[tuple[Recording, float | None, bool]] = []
        self._newest = Recording(keep, {})

    def _on_start(self) -> None:
        self._newest = Recording(self._keep, self.names, list(self.model.buffers()))
        if torch.is_grad_enabled():
            # An update of the scale lies between this forward and the one before, or it has not changed.
            scale = self.scale() if callable(self.scale) else self.scale
            self.collect(at_end=False)
            self._drop_skipped(scale)
            self.count += 1
            begins = scale is None and bool(self._pending or self.parts) and not _wait_for_a_step(self.model)
            self._pending.append((self._newest, scale, begins))

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
        waiting: list[tuple[Recording, float | None, bool]] = []
        for recording, scale, begins in self._pending:
            self.most_sites = max(self.most_sites, len(recording._sites))
            if any(site.norms for site in recording._sites):
                self.parts.append(Part(recording, self.paths, scale, begins))
                recording._release()
            elif not at_end and self.model.training:
                waiting.append((recording, scale, begins))
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
        # The scaler lets no gradient pass that has overflown, of an activation or of a parameter alone.
        skipped = [i + 1 for i, part in enumerate(self.parts) if not _is_finite(part.recording or part.numbers)]
        if scaler.state_dict().get("_growth_tracker") == 0:  # as after a skipped step, or at the beginning
            skipped += [i for i, part in enumerate(self.parts) if part.begins]
        del self.parts[: max(skipped, default=0)]
        for part in self.parts:
            part.loss_scale = scaler.get_scale()

    def drop(self) -> None:
        """Let go of what was collected for a step that is not made."""
        self.collect(at_end=True)
        self.parts.clear()

    def clear(self) -> None:
        """Let go of everything."""
        for recording, *_ in self._pending:
            recording._release()
        self._pending.clear()
        self.parts.clear()
        self._newest, self.count, self.most_sites = Recording(self._keep, {}), 0, 0


def _is_finite(recording: Recording) -> bool:
    return all(value.isfinite().item() for site in recording.sites for value in site.norms.values())


def _wait_for_a_step(model: nn.Module) -> bool:
    """Whether parameters hold gradients that an optimizer could take: not all are 0 or missing, and all are finite."""
    sizes: list[float] = []
    found: list[Any] = [p.grad for p in model.parameters() if p.grad is not None]
    for gradient in found:
        own = gradient.to_local() if is_sharded(gradient) else gradient
        values = own._values() if own.is_sparse else own
        sizes.append(torch.linalg.vector_norm(values.detach(), dtype=torch.float64).item())
    return sum(sizes) > 0 and math.isfinite(sum(sizes))
