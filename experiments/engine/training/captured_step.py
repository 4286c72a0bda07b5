"""Training steps that do not wait for Python: one is captured in a CUDA graph, and replayed.

A small network's step on a GPU is hundreds of short kernels, each of which Python and torch take longer to launch than
it runs. A CUDA graph launches them all at once (https://pytorch.org/docs/stable/notes/cuda.html#cuda-graphs).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from experiments.engine.training.data import Draw

WARM_UP = 3
"""Steps that are taken plainly before one is captured: they fill the optimiser's state and choose kernels."""

Step = Callable[[Draw], Tensor]
"""Makes the batch of a draw and takes a step on it, without reading a number back; the loss, without dimensions."""
Capture = Callable[[Callable[[], Tensor]], tuple[Callable[[], None], Tensor]]
"""Of a function of no arguments: what repeats its work in the same memory, and the tensor in which its result is."""


def cuda_graph(function: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
    """Capture a function's kernels, which are not executed yet, in a CUDA graph, on the current stream (torch's own
    choice is a stream of the device that was current when it first captured, which need not be the network's)."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
        result = function()
    return graph.replay, result


class CapturedSteps:
    """Takes the steps of a training: the first ones plainly, then from one that it has captured."""

    def __init__(self, step: Step, optimiser: torch.optim.Optimizer, *, capture: Capture = cuda_graph) -> None:
        self.step, self.optimiser, self.capture = step, optimiser, capture
        self.rates = [torch.zeros(()) for _ in optimiser.param_groups]
        self.taken = 0
        self.stream: torch.cuda.Stream | None = None
        """Beside the default one, for the plain steps and the capture: one alone, since each keeps its own memory."""
        self.given: Draw | None = None
        """Where the captured step reads what was drawn for it."""
        self.replay: Callable[[], None] | None = None
        self.loss = torch.zeros(())
        """Where it leaves its loss."""

    def __call__(self, draw: Draw) -> Tensor:
        """Take a step at the optimiser's present rates; its loss."""
        if self.given is None:
            self.given = Draw(*(None if x is None else x.clone() for x in draw.tensors))  # pyright: ignore[reportArgumentType]
            device = draw.indices.device
            self.rates = [torch.zeros((), device=device) for _ in self.rates]
            self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        for there, drawn in zip(self.given.tensors, draw.tensors, strict=True):
            if there is not None and drawn is not None:
                there.copy_(drawn)
        for rate, group in zip(self.rates, self.optimiser.param_groups, strict=True):
            rate.fill_(group["lr"])
        if self.replay is None:
            with beside(self.stream):
                if self.taken < WARM_UP:
                    self.taken += 1
                    return self._take()
                self.replay, self.loss = self.capture(self._take)
        self.replay()
        return self.loss.clone()

    def _take(self) -> Tensor:
        assert self.given is not None
        with rates_of(self.optimiser, self.rates):
            return self.step(self.given)


@contextmanager
def rates_of(optimiser: torch.optim.Optimizer, rates: Sequence[Tensor]) -> Iterator[None]:
    """The rates as tensors inside: a captured step reads them anew, where it would repeat a number for ever. Outside,
    the schedule and checkpoints see the numbers."""
    numbers = [group["lr"] for group in optimiser.param_groups]
    for group, rate in zip(optimiser.param_groups, rates, strict=True):
        group["lr"] = rate
    try:
        yield
    finally:
        for group, number in zip(optimiser.param_groups, numbers, strict=True):
            group["lr"] = number


def take_rates_from_tensors(optimiser: torch.optim.Optimizer) -> None:
    """Let an optimiser step in one kernel, which reads its rates from the device."""
    for group in optimiser.param_groups:
        group["fused"], group["foreach"] = True, False
        if "capturable" in group:
            group["capturable"] = True


@contextmanager
def beside(stream: torch.cuda.Stream | None) -> Iterator[None]:
    """Work inside runs on a stream beside the present one, in its turn, and on the stream's device; None: as it is."""
    if stream is None:
        yield
        return
    present = torch.cuda.current_stream(stream.device)
    stream.wait_stream(present)
    with torch.cuda.stream(stream):
        yield
    present.wait_stream(stream)
