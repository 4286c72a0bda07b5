"""Who runs a cell: one process at a time, and none whose parent is gone."""

import os
import signal
import time
from pathlib import Path
from threading import Thread

from filelock import FileLock


def claim(home: Path, name: str) -> FileLock:
    """The lock of a cell, which dies with its holder; several invocations on one folder share the work by it."""
    locks = home.parent / "locks"
    locks.mkdir(exist_ok=True)
    return FileLock(locks / f"{name}.lock")


def begin_worker(parent: int) -> None:
    """Begin a worker: Ctrl-C is its parent's to handle, and it ends soon after its parent, also a killed one.

    Without this, a worker would go on with its cell and with those that already wait for it, and an idle one for
    minutes.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int, *, every: float = 0.5) -> None:
    while os.getppid() == parent:
        time.sleep(every)
    os._exit(1)
