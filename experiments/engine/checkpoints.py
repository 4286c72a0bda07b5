"""A cell in the middle of its training: what decides the rest of it, kept now and then until the cell is done."""

import hashlib
import io
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Protocol

import pandas as pd
import torch

from experiments.engine import processes
from experiments.engine.progress import logger
from experiments.engine.provenance import commit

_FILE: ContextVar[Path | None] = ContextVar("_FILE", default=None)
EVERY = 10.0
"""Seconds from one checkpoint to the next, at least: each takes as long as a step or two."""


class Stateful(Protocol):
    """A network, an optimiser, a schedule."""

    def state_dict(self) -> Any: ...
    def load_state_dict(self, state_dict: Any, /) -> Any: ...


@contextmanager
def checkpoint_at(file: Path) -> Iterator[None]:
    """Let the first training in here that can go on from a checkpoint do so, by this file; gone once all is done."""
    token = _FILE.set(file)
    try:
        yield
        file.unlink(missing_ok=True)
    finally:
        _FILE.reset(token)


class Checkpoint:
    """The state of one training at an epoch's end. file: None keeps nothing.

    A file that is damaged, or another version's, is not used, which is told.
    """

    def __init__(self, file: Path | None = None) -> None:
        self.file, self.last = file, time.monotonic()
        self.found = read(file) if file else None
        self.tell: Callable[[], dict[str, Any]] = dict
        """What the training's caller wants to find again."""

    @classmethod
    def take(cls) -> "Checkpoint":
        """That of the running cell, for its first training; one that keeps nothing for any further.

        Several processes go on from what the first has found; it alone keeps anything.
        """
        file = _FILE.get()
        _FILE.set(None)
        taken = cls(file)
        taken.found = processes.leaders(taken.found)
        return taken

    @property
    def told(self) -> dict[str, Any]:
        """What the caller has told; nothing where a training begins."""
        return self.found["told"] if self.found else {}

    def restore(self, parts: Mapping[str, Stateful], generators: Sequence[torch.Generator]) -> int:
        """Put everything back, if something was found; how many epochs are over."""
        if self.found is None:
            return 0
        for name, part in parts.items():
            part.load_state_dict(self.found[name])
        for generator, state in zip(generators, self.found["generators"], strict=True):
            generator.set_state(state)
        return self.found["epochs"]

    def save(self, epochs: int, parts: Mapping[str, Stateful], generators: Sequence[torch.Generator]) -> None:
        """Keep everything, as it is after so many epochs, unless that was done a moment ago."""
        if self.file is None or time.monotonic() - self.last < EVERY:
            return
        state = {name: part.state_dict() for name, part in parts.items()}
        state |= {"epochs": epochs, "generators": [generator.get_state() for generator in generators]}
        state |= {"told": self.tell(), "commit": commit()}
        torch.save(state, buffer := io.BytesIO())
        aside = self.file.with_suffix(".partial")
        self.file.parent.mkdir(exist_ok=True)
        try:
            aside.write_bytes(hashlib.sha256(buffer.getbuffer()).digest() + buffer.getbuffer())
            aside.replace(self.file)
        finally:
            aside.unlink(missing_ok=True)
        self.last = time.monotonic()


def read(file: Path) -> dict[str, Any] | None:
    """A checkpoint's state; None if there is none, or none that can be used, which is then set aside."""
    if not file.exists():
        return None
    content = file.read_bytes()
    if hashlib.sha256(content[32:]).digest() != content[:32]:
        reason = "damaged"
    else:
        state = torch.load(io.BytesIO(content[32:]), weights_only=True, map_location="cpu")
        if state["commit"] == commit():
            return state
        reason = "of another version of the code"
    damaged = file.parent.parent / "damaged"
    damaged.mkdir(exist_ok=True)
    file.replace(damaged / file.name)
    logger.warning(f"the checkpoint of {file.stem} is {reason}: it is set aside in {damaged}, and the cell begins anew")
    return None


def plain(table: pd.DataFrame) -> dict[str, Any]:
    """A table as lists, which a checkpoint can hold."""
    return {"columns": table.to_dict("list"), "types": {name: str(kind) for name, kind in table.dtypes.items()}}


def framed(kept: dict[str, Any]) -> pd.DataFrame:
    """The table that was made plain."""
    return pd.DataFrame(kept["columns"]).astype(kept["types"])
