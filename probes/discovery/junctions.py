"""Junctions are discovered, not listed."""

from collections import Counter
from dataclasses import replace
from typing import Any, Literal, overload

import pandas as pd
import torch
from torch import nn
from torch.func import functional_call

from .adds import call_of
from .detection import Junction, Sighting, watch


@overload
def find_junctions(
    model: nn.Module, *inputs: Any, explain: Literal[False] = False, **kwargs: Any
) -> list[Junction]: ...
@overload
def find_junctions(model: nn.Module, *inputs: Any, explain: Literal[True], **kwargs: Any) -> pd.DataFrame: ...
def find_junctions(
    model: nn.Module, *inputs: Any, explain: bool = False, **kwargs: Any
) -> list[Junction] | pd.DataFrame:
    """The residual junctions of a model, in execution order, found by running `model(*inputs, **kwargs)` once.

    An add is a junction when its addends reconverge on one earlier tensor: an *identity* shortcut carries that tensor
    itself, at most reshaped or multiplied by a factor; a *projection* is linear in it (convolution, normalisation,
    pooling, padding) while the branch is not; and the branch holds parameters. The model is not changed: buffers
    (BatchNorm statistics) and random state stay as they are, and no gradient is left.

    explain: give a table instead, with a row for every add of two tensors: block (the name of the add), depth (where it
    is a junction), verdict (identity | projection | none) and reason. Raises RuntimeError for a model that cannot be
    watched (compiled, traced, replicated, with reentrant checkpointing).
    """
    found: list[Junction] = []
    rows: list[tuple[str, int | None, str, str]] = []

    def see(sighting: Sighting) -> None:
        junction = sighting.junction
        if junction.depth < len(found):
            part = found.pop().name
            rows[:] = [row if row[0] != part else (part, None, "none", "part of a sum that goes on") for row in rows]
        found.append(junction)
        rows.append((junction.name, junction.depth, junction.shortcut, sighting.verdict.reason))

    def pass_over(name: str, reason: str) -> None:
        rows.append((name, None, "none", reason))

    state = {name: buffer.clone() for name, buffer in model.named_buffers()}
    # Parameters that require gradients, so that a frozen model has a graph too.
    state |= {name: nn.Parameter(p.detach()) for name, p in model.named_parameters() if p.is_floating_point()}
    devices = {p.device.index for p in model.parameters() if p.device.type == "cuda"}
    with (
        torch.random.fork_rng(devices=sorted(devices)),
        torch.inference_mode(False),
        torch.enable_grad(),
        watch(model, see, pass_over=pass_over),
    ):
        functional_call(model, state, inputs, kwargs)
    if explain:
        return pd.DataFrame(rows, columns=["block", "depth", "verdict", "reason"])
    adds = Counter(call_of(name) for name, *_ in rows)
    return [replace(junction, adds_of_call=adds[call_of(junction.name)]) for junction in found]
