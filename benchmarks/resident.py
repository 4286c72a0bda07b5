"""How much memory a process holds: its resident set, now and at its highest."""

import re
import resource
from pathlib import Path


def highest_resident() -> int:
    """The highest resident set of this process, in kilobytes.

    From /proc where there is one: getrusage would report the parent's peak, which a child inherits.
    """
    if Path("/proc/self/status").exists():
        return _status_kilobytes("self", "VmHWM")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def resident(process: int) -> int:
    """The resident set that a process has now, in kilobytes; from /proc, which Linux has."""
    return _status_kilobytes(process, "VmRSS")


def _status_kilobytes(process: int | str, name: str) -> int:
    status = Path(f"/proc/{process}/status").read_text()
    return int(re.search(rf"{name}:\s+(\d+)", status)[1])  # pyright: ignore[reportOptionalSubscript]
