"""Who runs a cell: one process at a time, and none whose parent is gone."""

import os
import signal
import time
from itertools import count
from pathlib import Path
from threading import Thread

import torch
from filelock import FileLock, Timeout


def claim(home: Path, name: str) -> FileLock:
    """The lock of a cell, which dies with its holder; several invocations on one folder share the work by it."""
    locks = home.parent / "locks"
    locks.mkdir(exist_ok=True)
    return FileLock(locks / f"{name}.lock")


def begin_worker(parent: int, numbered: Path | None = None) -> None:
    """Begin a worker: Ctrl-C is its parent's to handle, and it ends soon after its parent, also a killed one.

    Without this, a worker would go on with its cell and with those that already wait for it, and an idle one for
    minutes. numbered: the folder whose workers take the GPUs of this machine in turn.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_watch, args=(parent,), daemon=True).start()
    if numbered:
        torch.cuda.set_device(number(numbered) % torch.cuda.device_count())


_taken: list[FileLock] = []


def number(home: Path) -> int:
    """The lowest number, from 0, that no other worker has, also of another invocation; this process's to its end."""
    return next(free for free in count() if _take(claim(home, f"worker{free}")))


def _take(lock: FileLock) -> bool:
    """Whether the lock was free; it is then held to the end of this process."""
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return False
    _taken.append(lock)
    return True


def _watch(parent: int, *, every: float = 0.5) -> None:
    while os.getppid() == parent:
        time.sleep(every)
    os._exit(1)
