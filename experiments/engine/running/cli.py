"""A script's command line: typed settings in, one plain line for a user's mistake."""

import errno
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from types import ModuleType
from typing import Any

import tyro

from experiments.engine.running import distributed
from experiments.engine.running.grid import DryRun
from experiments.engine.running.messages import BadInput, logger


def run_script(name: str) -> None:
    """Run the script of that module name: its `Settings` become flags (--quick: those of its `QUICK`) for its `main`.

    The script is imported by its name, since workers cannot import what lives in `__main__`. Exit status: 0; 2 for a
    user's mistake and 1 for a full disk, with one line on standard error; 130 when interrupted. Under torchrun the
    first process runs it, and the others train along.
    """
    script = import_module(name)
    settings = parse(script, sys.argv[1:])
    level = logger.level
    logger.setLevel(getattr(settings, "log_level", "info").upper())
    try:
        with distributed.joined():
            if distributed.rank() == 0:
                status = _attempt(partial(script.main, settings))
                distributed.dismiss(status)
            else:
                status = _attempt(distributed.follow)
    finally:
        logger.setLevel(level)
    if status:
        sys.exit(status)


def parse(script: ModuleType, arguments: Sequence[str]) -> Any:
    """The settings that a command line gives a script."""
    return tyro.cli(
        script.Settings,
        args=arguments,
        description=script.__doc__,
        default=script.QUICK if "--quick" in arguments and hasattr(script, "QUICK") else script.Settings(),
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
    )


def _attempt(main: Callable[[], int | None]) -> int:
    """The exit status of a script's main; the first process prints what went wrong."""
    resume = "run the same command again to resume"
    try:
        return main() or 0
    except DryRun:
        return 0
    except BadInput as error:
        status, message = 2, f"error: {error}"
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        status, message = 1, f"error: {error.strerror}: finished runs are kept; make room, and {resume}"
    except KeyboardInterrupt:
        status, message = 130, f"interrupted: finished runs are kept; {resume}"
    if distributed.rank() == 0:
        print(message, file=sys.stderr)
    return status
