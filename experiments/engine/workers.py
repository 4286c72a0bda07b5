"""Where a grid's cells run at once: in processes of this machine, or in the slots of a Ray cluster."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import torch
from joblib import Parallel, delayed, parallel_config

from experiments.engine import cluster, processes
from experiments.engine.claims import begin_worker
from experiments.engine.command import BadInput, check_choice, check_device
from experiments.engine.progress import logger

Item = TypeVar("Item")
Result = TypeVar("Result")
Each = Callable[[Callable[[Item], Result], Sequence[Item]], Iterator[Result]]
"""Calls a function for each item, and gives what comes back, in the order in which it comes."""
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class Workers:
    """Who runs the cells."""

    workers: int | None = None
    """Cells that run at once, one thread each; by default as many as this machine has cores, or the cluster slots."""
    backend: Literal["processes", "ray"] = "processes"
    """processes: here. ray: on the Ray cluster that this machine is of; a cell takes a CPU, and for cuda a GPU."""
    ray_address: str = "auto"
    """That cluster's host:port; auto: as RAY_ADDRESS says, or the cluster that this machine has joined."""

    def check(self, device: str) -> None:
        """Raise BadInput for workers or a device that there cannot be; warn of more workers than cores."""
        if self.workers is not None and self.workers < 1:
            raise BadInput(f"--workers {self.workers}: give at least 1")
        if self.backend == "ray":
            if processes.count() > 1:
                raise BadInput("--backend ray: torchrun's processes train one cell together; give one of the two")
            check_choice("--device", device, ("cpu", "cuda"))  # whatever this machine, which need not run cells, has
            cluster.connect(self.ray_address)
            self.at_once(torch.device(device))
            return
        check_device(device)
        if self.workers and self.workers > CORES and processes.count() == 1:
            logger.warning(f"--workers {self.workers}: more than the {CORES} cores here, so each will be slower")

    def at_once(self, device: torch.device) -> int:
        """How many cells run at once, if there are as many."""
        if self.backend == "ray":
            slots = cluster.slots(device)
            return min(self.workers or slots, slots)
        return 1 if processes.count() > 1 else self.workers or CORES

    @contextmanager
    def pool(self, device: torch.device, home: Path, *, most: int) -> Iterator[Each[Any, Any]]:
        """What runs a function for each item, of which there are `most`, for cells that are kept in `home`."""
        at_once = min(self.at_once(device), max(1, most))
        if self.backend == "ray":
            if most:
                cluster.check_sees(home.absolute())
            yield lambda function, items: cluster.each(function, items, device=device, at_once=at_once)
            return
        several = device == torch.device("cuda") and torch.cuda.device_count() > 1
        begin = {"initializer": begin_worker, "initargs": (os.getpid(), home if several else None)}
        with parallel_config("loky", inner_max_num_threads=1, **begin):
            pool = Parallel(n_jobs=at_once, return_as="generator_unordered")
            yield lambda function, items: cast(Any, pool(delayed(function)(item) for item in items))
