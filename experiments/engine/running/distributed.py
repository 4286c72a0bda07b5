"""One network trained by several processes, as torchrun starts them: the first leads, the others train along.

The leader runs a script as if it were alone: it alone decides which runs are missing, writes and prints. Before it
trains a run, it sends it to the others, which train it, too, each on its share of every batch, and write nothing.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

Item = TypeVar("Item")
Result = TypeVar("Result")
PATIENCE = timedelta(days=1)  # while the leader reads data or draws; a process that dies is noticed immediately


def count() -> int:
    """How many processes train a network together; 1 without torchrun."""
    return dist.get_world_size() if together() else 1


def together() -> bool:
    """Whether a group has been joined, of one process or more."""
    return dist.is_initialized()


def rank() -> int:
    """This process's number among them; 0 is the leader."""
    return dist.get_rank() if together() else 0


@contextmanager
def joined() -> Iterator[None]:
    """Join the other processes that torchrun has started, if it has: gloo between CPUs, NCCL between GPUs, of which
    each process takes one."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or "TORCHELASTIC_RUN_ID" not in os.environ:
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    dist.init_process_group(backends(), timeout=PATIENCE)
    yield
    dist.destroy_process_group()  # not after an error, when the others may not answer


def backends() -> str:
    """gloo for messages from the leader, which come from the CPU, and NCCL for gradients on GPUs."""
    return "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"


_NO_TASK: Any = None
_waiting = True  # whether the others wait for the leader's next task: a fact of this process group, as the group itself


def lead(task: Callable[..., Result], *arguments: object) -> Result:
    """The leader's result of a task that all processes do. An error in it ends this process, and with it all."""
    global _waiting
    from_leader((task, arguments))
    _waiting = False
    result = task(*arguments)
    _waiting = True
    return result


def dismiss(status: int) -> None:
    """Let the others end with that exit status, unless they are in the middle of a task that broke."""
    if _waiting:
        from_leader(status)


def follow() -> int:
    """Do the leader's tasks until it dismisses this process; the exit status that it sent."""
    while not isinstance(message := from_leader(_NO_TASK), int):
        task, arguments = message
        task(*arguments)
    return message


def from_leader(value: Item) -> Item:
    """The leader's value, in all processes."""
    if not together():
        return value
    values = [value]
    dist.broadcast_object_list(values, device=torch.device("cpu"))
    return values[0]


def data_parallel(model: nn.Module) -> nn.Module:
    """The network as a module whose backward averages gradients over all processes."""
    return DistributedDataParallel(model, forward_sync_buffers=False) if together() else model


def share(images: int) -> slice:
    """This process's part of a batch of that many images; ValueError if it does not divide."""
    if images % count():
        raise ValueError(f"{images} images do not divide by {count()} processes")
    size = images // count()
    return slice(rank() * size, (rank() + 1) * size)


def mean(values: Tensor) -> Tensor:
    """The mean over the processes, in all of them."""
    if not together():
        return values
    summed = values.clone()
    dist.all_reduce(summed)
    return summed / count()


def means(values: Sequence[Tensor]) -> Sequence[Tensor]:
    """The mean of each tensor over the processes, in one message."""
    if not together():
        return values
    whole = mean(torch.cat([value.flatten() for value in values]))
    parts = whole.split([value.numel() for value in values])
    return [part.view_as(value) for part, value in zip(parts, values, strict=True)]


@torch.no_grad()
def check_alike(model: nn.Module) -> None:
    """Raise RuntimeError where the processes' weights differ, which gradients that were not averaged would do."""
    if not together():
        return
    norms = torch.stack([parameter.double().norm() for parameter in model.parameters()])
    if not torch.allclose(norms, mean(norms), rtol=1e-6, atol=0, equal_nan=True):
        raise RuntimeError(
            f"the weights of {count()} processes differ: this training's gradients do not come from loss.backward(), "
            "in which DistributedDataParallel averages them; run it in one process"
        )
