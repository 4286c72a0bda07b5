"""The steps of a training are counted by the hooks that torch calls before and after each step of any optimizer."""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Any
from weakref import ref

from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from ..discovery.hooks import in_backward


class Steps:
    """Counts the steps of one optimizer, and says where the gradient of a step that is recorded is complete.

    begin: called with a step's number before its first forward; returns whether it is recorded. complete: called in a
    recorded step, with its number and the scaler that calls the optimizer, when all backwards have run and no weight
    has moved. skipped: called where a fused optimizer will not step, as the scaler tells it.
    """

    def __init__(
        self,
        model: nn.Module,
        step: int,
        *,
        begin: Callable[[int], bool],
        complete: Callable[[int, GradScaler | None], None],
        skipped: Callable[[], None],
    ) -> None:
        self.model, self.step = model, step
        self.begin, self.complete, self.skipped = begin, complete, skipped
        self.recorded = False
        self.counted = self.others = 0
        self.optimizer: ref[Optimizer] | None = None
        self.other: ref[Optimizer] | None = None
        self.caller: FrameType | None = None

    @contextmanager
    def count(self) -> Iterator[None]:
        """A context around the training; raises ValueError at its end if there was no step to count."""
        with ExitStack() as stack:
            stack.callback(register_optimizer_step_pre_hook(self.before).remove)
            stack.callback(register_optimizer_step_post_hook(self.after).remove)
            self.recorded = self.begin(self.step)
            yield
        if self.counted == 0:
            others = f"{self.others} steps of optimizers that do not hold its parameters" if self.others else "none"
            raise ValueError(
                f"track: no optimizer of this model's parameters has stepped inside of the context (seen: {others}): "
                "give the very module that is trained, and run its training inside"
            )

    def before(self, optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
        """torch's hook before each step of every optimizer."""
        caller = sys._getframe(1)
        if self._is_inside(caller) or not self._is_counted(optimizer):
            return None
        self.caller = caller
        if not self.recorded:
            return None
        if in_backward():
            raise RuntimeError(
                "track: the optimizer steps while the backward is running, when not all gradients are there: train "
                "without optimizers in backward hooks"
            )
        scaler = _calling_scaler(caller)
        if scaler is not None and _skips_by_itself(optimizer):
            self.caller = None
            self.skipped()
            return None
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if not callable(closure):
            self._complete(scaler)
            return None

        def evaluated(*inner: Any, **options: Any) -> Any:
            """The closure computes the gradient, perhaps several times: the first is the step's."""
            loss = closure(*inner, **options)
            if self.recorded and self.caller is caller:
                self._complete(scaler)
            return loss

        if "closure" in kwargs:
            return args, {**kwargs, "closure": evaluated}
        return (args[0], evaluated, *args[2:]), kwargs

    def after(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """torch's hook after each step of every optimizer."""
        if self.caller is None or sys._getframe(1) is not self.caller:
            return
        self.caller = None
        if self.recorded:  # the step did not call its closure
            self._complete(None)
        self.step += 1
        self.counted += 1
        self.recorded = self.begin(self.step)

    def _complete(self, scaler: GradScaler | None) -> None:
        self.recorded = False  # once, also where a closure is evaluated again
        self.complete(self.step, scaler)

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
