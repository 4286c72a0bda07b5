"""A script's command line: typed settings in, one plain line for a user's mistake."""

import errno
import os
import sys
from collections.abc import Callable
from contextvars import ContextVar
from functools import partial
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import tyro

from experiments.engine import processes
from experiments.engine.progress import logger

DRY_RUN = ContextVar("DRY_RUN", default=False)
"""Whether a plan is told and nothing else: no folder is made, nothing is trained or written."""


class Planned(Exception):
    """A dry run has told its plan; what would follow depends on the cells in it."""


class BadInput(Exception):
    """A user's mistake: the message says what was given, what was wanted, and what to do."""


def first_line(error: Exception) -> str:
    """What an error says first, for a message of one line."""
    return (str(error).strip().splitlines() or [""])[0]


def run_script(name: str) -> None:
    """Run the script of that module name: its `Settings` become flags (--quick: those of its `QUICK`) for its `main`.

    The script is imported by its name, since workers cannot import what lives in `__main__`. Exit status: 0; 2 for a
    user's mistake and 1 for a full disk, with one line on standard error; 130 when interrupted. Under torchrun the
    first process runs it, and the others train along.
    """
    script = import_module(name)
    settings = tyro.cli(
        script.Settings,
        description=script.__doc__,
        default=script.QUICK if "--quick" in sys.argv[1:] else script.Settings(),
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
    )
    level = logger.level
    logger.setLevel(getattr(settings, "log_level", "info").upper())
    dry = DRY_RUN.set(getattr(settings, "dry_run", False))
    try:
        with processes.joined():
            if processes.rank() == 0:
                status = _attempt(partial(script.main, settings))
                processes.dismiss(status)
            else:
                status = _attempt(processes.follow)
    finally:
        DRY_RUN.reset(dry)
        logger.setLevel(level)
    if status:
        sys.exit(status)


def _attempt(main: Callable[[], int | None]) -> int:
    """The exit status of a script's main; the first process says what went wrong."""
    go_on = "the same command goes on from there"
    try:
        return main() or 0
    except Planned:
        return 0
    except BadInput as error:
        status, message = 2, f"error: {error}"
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        status, message = 1, f"error: {error.strerror}: finished cells are kept; make room, and {go_on}"
    except KeyboardInterrupt:
        status, message = 130, f"interrupted: finished cells are kept; {go_on}"
    if processes.rank() == 0:
        print(message, file=sys.stderr)
    return status


def check_choice(flag: str, given: str, choices: tuple[str, ...]) -> None:
    """Raise BadInput unless `given` is one of the choices."""
    if given not in choices:
        raise BadInput(f"{flag}: unknown {given!r}; choose from {', '.join(choices)}")


def check_device(name: str) -> torch.device:
    """The device of that name; BadInput where the name means nothing or the machine has none."""
    has = ["cpu"] + [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    if name not in (*has, "cuda") or (name == "cuda" and len(has) == 1):
        raise BadInput(f"--device {name}: not available here; this machine has {', '.join(has)}")
    if processes.count() > 1 and name.startswith("cuda"):
        if name != "cuda":
            raise BadInput(f"--device {name}: under torchrun each process takes a GPU of its own; give --device cuda")
        if int(os.environ["LOCAL_WORLD_SIZE"]) > len(has) - 1:
            raise BadInput(f"--device cuda: {len(has) - 1} GPUs here; start no more processes (--nproc-per-node)")
    return torch.device(name)


def make_folder(folder: Path) -> Path:
    """Create an output folder and see that it can be written; BadInput where it cannot, with nothing left behind.

    In a dry run it is not touched.
    """
    if DRY_RUN.get():
        return folder
    missing = next((path for path in reversed([folder, *folder.parents]) if not path.exists()), None)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder):
            pass
    except OSError as error:
        if missing and missing.is_dir():
            missing.rmdir()
        raise BadInput(f"--out {folder}: cannot be written ({error.strerror}); choose another folder") from None
    return folder
