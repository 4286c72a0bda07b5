"""Where a grid's runs are executed: in processes of this machine, or in the slots of a Ray cluster."""

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from threading import Thread
from typing import Any, Literal, TypeVar, cast

import torch
from filelock import FileLock, Timeout
from joblib import Parallel, delayed, parallel_config

from experiments.engine.running import distributed, ray_cluster
from experiments.engine.running.messages import BadInput, check_at_least, check_choice, logger
from experiments.engine.running.store import lock

Item = TypeVar("Item")
Result = TypeVar("Result")
ImapUnordered = Callable[[Callable[[Item], Result], Sequence[Item]], Iterator[Result]]
"""Calls a function for each item, and gives the results in the order in which they come."""
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class Execution:
    """How a grid is executed. None of it changes a result."""

    workers: int | None = None
    """Runs in parallel, one thread each; by default as many as this machine has cores, or the cluster slots."""
    backend: Literal["processes", "ray"] = "processes"
    """processes: here. ray: on the Ray cluster of this machine; a run takes a CPU, and for cuda a GPU."""
    ray_address: str = "auto"
    """That cluster's host:port; auto: RAY_ADDRESS, or the cluster that this machine has joined."""
    dry_run: bool = False
    """Print the planned runs and an estimated duration; run and write nothing."""

    def check(self, device: str) -> None:
        """Raise BadInput for workers or a device that there cannot be; warn of more workers than cores."""
        if self.workers is not None:
            check_at_least("--workers", self.workers, 1)
        if self.backend == "ray":
            if distributed.count() > 1:
                raise BadInput("--backend ray: torchrun's processes train one network together; give one of the two")
            check_choice("--device", device, ("cpu", "cuda"))  # whatever this machine, which need not run any, has
            ray_cluster.connect(self.ray_address)
            self.max_parallel(torch.device(device))
            return
        check_device(device)
        if self.workers and self.workers > CORES and distributed.count() == 1:
            logger.warning(f"--workers {self.workers}: more than the {CORES} cores here, so each will be slower")

    def max_parallel(self, device: torch.device) -> int:
        """How many runs are executed in parallel, if there are as many."""
        if self.backend == "ray":
            slots = ray_cluster.slots(device)
            return min(self.workers or slots, slots)
        return 1 if distributed.count() > 1 else self.workers or CORES

    @contextmanager
    def pool(self, device: torch.device, home: Path, *, most: int) -> Iterator[ImapUnordered[Any, Any]]:
        """A function that maps in parallel, over at most `most` items, for runs that are stored in `home`."""
        parallel = min(self.max_parallel(device), max(1, most))
        if self.backend == "ray":
            if most:
                ray_cluster.check_sees(home.absolute())
            yield lambda function, items: ray_cluster.imap_unordered(
                function, items, device=device, max_parallel=parallel
            )
            return
        several = device == torch.device("cuda") and torch.cuda.device_count() > 1
        begin = {"initializer": begin_worker, "initargs": (os.getpid(), home if several else None)}
        with parallel_config("loky", inner_max_num_threads=1, **begin):
            pool = Parallel(n_jobs=parallel, return_as="generator_unordered")
            yield lambda function, items: cast(Any, pool(delayed(function)(item) for item in items))


def check_device(name: str) -> torch.device:
    """The device of that name; BadInput where the name means nothing or the machine has none."""
    has = ["cpu"] + [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    if name not in (*has, "cuda") or (name == "cuda" and len(has) == 1):
        raise BadInput(f"--device {name}: not available here; this machine has {', '.join(has)}")
    if distributed.count() > 1 and name.startswith("cuda"):
        if name != "cuda":
            raise BadInput(f"--device {name}: under torchrun each process takes a GPU of its own; give --device cuda")
        if int(os.environ["LOCAL_WORLD_SIZE"]) > len(has) - 1:
            raise BadInput(f"--device cuda: {len(has) - 1} GPUs here; start no more processes (--nproc-per-node)")
    return torch.device(name)


def begin_worker(parent: int, numbered: Path | None = None) -> None:
    """Set a worker up: its parent handles Ctrl-C, and it ends soon after its parent, also after a killed one.

    Without this, a worker would continue with its run and with those in its queue, and an idle one would live for
    minutes. numbered: the store whose workers take the GPUs of this machine in turn.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_end_with, args=(parent,), daemon=True).start()
    if numbered:
        torch.cuda.set_device(worker_number(numbered) % torch.cuda.device_count())


_held: list[FileLock] = []  # to the end of this process


def worker_number(home: Path) -> int:
    """The lowest number, from 0, that no other worker has, also of another invocation; this process's to its end."""
    return next(number for number in count() if _take(lock(home, f"worker{number}")))


def _take(free: FileLock) -> bool:
    """Whether the lock was free; it is then held to the end of this process."""
    try:
        free.acquire(blocking=False)
    except Timeout:
        return False
    _held.append(free)
    return True


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
