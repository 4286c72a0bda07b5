"""What a script prints while it runs: the logger, a user's mistakes, durations."""

import logging
from collections.abc import Sequence

from rich.console import Console


class BadInput(Exception):
    """A user's mistake: the message says what was given, what was wanted, and what to do."""


class _Lines(logging.Handler):
    """Prints lines on standard error, above a progress bar if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        Console(stderr=True, highlight=False, markup=False).print(self.format(record), soft_wrap=True)


logger = logging.getLogger("experiments")
logger.setLevel(logging.INFO)
logger.propagate = False
logger.addHandler(_Lines())


def first_line(error: Exception) -> str:
    """The first line of an error's message."""
    return (str(error).strip().splitlines() or [""])[0]


def duration(seconds: float) -> str:
    """`40 s`, `5 min` or `2.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def check_choice(flag: str, given: str, choices: tuple[str, ...]) -> None:
    """Raise BadInput unless `given` is one of the choices."""
    if given not in choices:
        raise BadInput(f"{flag}: unknown {given!r}; choose from {', '.join(choices)}")


def check_unique(flag: str, values: Sequence[object]) -> None:
    """Raise BadInput unless there is a value, and none twice."""
    if not values or len(set(values)) < len(values):
        raise BadInput(f"{flag}: got {' '.join(map(str, values)) or 'none'}; give one or more, each once")


def check_at_least(flag: str, value: float, least: int) -> None:
    """Raise BadInput for a smaller value."""
    if value < least:
        raise BadInput(f"{flag} {value}: give at least {least}")
