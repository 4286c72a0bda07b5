"""Checkpoints: the state of an unfinished training, written now and then, from which a killed run resumes."""

import hashlib
import io
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import pandas as pd
import torch

from experiments.engine.running import distributed
from experiments.engine.running.messages import logger
from experiments.engine.running.provenance import commit

EVERY = 10.0
"""Seconds from one checkpoint to the next, at least: each takes as long as a step or two."""


class Stateful(Protocol):
    """A network, an optimiser, a schedule."""

    def state_dict(self) -> Any: ...
    def load_state_dict(self, state_dict: Any, /) -> Any: ...


class Checkpoint:
    """The state of one training at an epoch's end. file: None writes nothing.

    A file that is damaged, or of another version of the code, is not used, with a warning. Of several processes the
    first alone reads and writes; the others resume from its state.
    """

    def __init__(self, file: Path | None = None, *, outputs: Sequence[str] = ()) -> None:
        leads = distributed.rank() == 0
        self.outputs = list(outputs)
        self.file, self.written = file if leads else None, time.monotonic()
        self.state = distributed.from_leader(read(file, self.outputs) if leads else None) if file else None
        self.caller_state: Callable[[], dict[str, Any]] = dict
        """Gives what the training's caller wants to be restored."""

    @property
    def restored_state(self) -> dict[str, Any]:
        """The caller's state from the checkpoint; empty where a training starts from the beginning."""
        return self.state["caller"] if self.state else {}

    def restore(self, parts: Mapping[str, Stateful], generators: Sequence[torch.Generator]) -> int:
        """Restore all parts and generators, if there is a checkpoint; the number of epochs that it has finished."""
        if self.state is None:
            return 0
        for name, part in parts.items():
            part.load_state_dict(self.state[name])
        for generator, state in zip(generators, self.state["generators"], strict=True):
            generator.set_state(state)
        return self.state["epochs"]

    def save(self, epochs: int, parts: Mapping[str, Stateful], generators: Sequence[torch.Generator]) -> None:
        """Write the state after that many epochs, unless the last checkpoint is less than `EVERY` seconds old."""
        if self.file is None or time.monotonic() - self.written < EVERY:
            return
        state = {name: part.state_dict() for name, part in parts.items()}
        state |= {"epochs": epochs, "generators": [generator.get_state() for generator in generators]}
        state |= {"caller": self.caller_state(), "commit": commit(), "outputs": self.outputs}
        torch.save(state, buffer := io.BytesIO())
        partial = self.file.with_suffix(".partial")
        self.file.parent.mkdir(exist_ok=True)
        try:
            partial.write_bytes(hashlib.sha256(buffer.getbuffer()).digest() + buffer.getbuffer())
            partial.replace(self.file)
        finally:
            partial.unlink(missing_ok=True)
        self.written = time.monotonic()


def read(file: Path, outputs: list[str]) -> dict[str, Any] | None:
    """A checkpoint's state; None if there is none, or none that can be used, which is then moved away."""
    if not file.exists():
        return None
    content = file.read_bytes()
    if hashlib.sha256(content[32:]).digest() != content[:32]:
        reason = "damaged"
    else:
        state = torch.load(io.BytesIO(content[32:]), weights_only=True, map_location="cpu")
        if (state["commit"], state["outputs"]) == (commit(), outputs):
            return state
        reason = "of another version of the code, or of other outputs"
    damaged = file.parent.parent / "damaged"
    damaged.mkdir(exist_ok=True)
    file.replace(damaged / file.name)
    logger.warning(f"the checkpoint of {file.stem} is {reason}: moved to {damaged}, and the run starts over")
    return None


def to_lists(table: pd.DataFrame) -> dict[str, Any]:
    """A table as lists, which a checkpoint can store."""
    return {"columns": table.to_dict("list"), "types": {name: str(kind) for name, kind in table.dtypes.items()}}


def from_lists(kept: dict[str, Any]) -> pd.DataFrame:
    """The table that was turned into lists."""
    return pd.DataFrame(kept["columns"]).astype(kept["types"])
