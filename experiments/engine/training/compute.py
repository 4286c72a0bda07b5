"""How a training computes on its device: in float32 and uncompiled, unless a setting says otherwise."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from experiments.engine.running.messages import BadInput, first_line

BACKEND = "inductor"  # of torch.compile
CODES = 256  # one for each arm, depth and network that a worker trains; torch stops at 8, and in all at 256


@dataclass(frozen=True)
class Computing:
    """What makes training faster on some devices. Evaluations and probes are in float32 and uncompiled in any case."""

    autocast: bool = False
    """Compute training's forwards and backwards in bfloat16 where torch deems it safe; weights and their gradients stay
    float32."""
    channels_last: bool = False
    """Lay images and convolutions out in memory with the channels of a pixel side by side."""
    compile: bool = False
    """Compile the network for training (torch.compile); what begins with it may take minutes."""
    capture: bool = False
    """On a GPU, capture a training step in a CUDA graph and repeat it, so that nothing waits for Python. Where that
    cannot be (a control or a limit changes gradients, images are in files, torchrun, --compile), steps are
    taken as without it, and a line says so."""

    def check(self, device: torch.device) -> None:
        """Raise BadInput where torch cannot compile for the device."""
        if self.compile:
            try:
                torch.compile(torch.sin, backend=BACKEND)(torch.ones(2, device=device))
            except Exception as error:
                raise BadInput(
                    f"--compile: torch cannot compile for {device} here ({type(error).__name__}: {first_line(error)}); "
                    "on the CPU it needs a C++ compiler; or leave --compile out"
                ) from None

    def refuse_compile(self) -> None:
        """Raise BadInput for --compile, in an experiment that changes gradients between forward and backward."""
        if self.compile:
            raise BadInput(
                "--compile: compiled code does not follow what this experiment does to gradients; leave it out"
            )

    def lay_out(self, model: nn.Module) -> None:
        """Change the memory layout of the network's weights, in place, to that of training."""
        if self.channels_last:
            model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def laid_out(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) in that memory layout."""
        return images.contiguous(memory_format=torch.channels_last) if self.channels_last else images

    def forward(self, device: torch.device) -> torch.autocast:
        """The context of a forward and its loss."""
        return torch.autocast(device.type, torch.bfloat16, enabled=self.autocast)

    def compiled(self, forward: nn.Module) -> Callable[[Tensor], Tensor]:
        """The network for training: itself, or compiled for the shape of its input.

        Compiled code sees a gradient weight that changes before the next forward, but none that changes between a
        forward and its backward.
        """
        if not self.compile:
            return forward
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, CODES)
        return torch.compile(forward, backend=BACKEND, dynamic=False)


AS_WRITTEN = Computing()
