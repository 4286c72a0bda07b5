"""How far is the gradient from what it would be without rounding?"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_map

from ..discovery.refusals import refuse_sharded_parameters
from ..gradients.blocks import Block, block_parameters, find_blocks, fork_gradients, scalar, unchanged
from ..norms import norms_and_cosine, scaled_norm
from ..tables import table


def precision(
    model: nn.Module,
    *inputs: Any,
    loss: Callable[[Any], Tensor] | None = None,
    blocks: Sequence[nn.Module] | None = None,
    **kwargs: Any,
) -> pd.DataFrame:
    r"""The gradient as it is computed against the same gradient in float64, block by block.

    Deep networks without shortcuts can be chaotic: a rounding in the first layers moves ReLU masks and normalisations
    above, and gradients in float32 then have little in common with those of the function. What is measured of such a
    network is to be read with that in mind, and pairs of runs by seed are none. (How errors grow on the way: Higham
    2002, *Accuracy and Stability of Numerical Algorithms*, ch. 3.)

    The model runs twice with equal weights, buffers and random state (dropout draws the same masks where it draws them
    independently of the precision, as torch's does): in the precision that it has, autocast included, and with float64
    copies of all weights, buffers and inputs, without autocast. Tensors that the model holds otherwise keep their
    precision, and so do casts in its code. The mode stays as it is; buffers, random state and ``.grad`` too.

    Args:
        model: Any module that is not in float64; it is not changed.
        inputs: The forward's positional arguments.
        loss: A number from the model's output, in either precision; by default the sum of the output.
        blocks: For networks without junctions, the modules of ``model`` that count as blocks.
        kwargs: The forward's keyword arguments.

    Returns:
        Columns ``block``, ``depth``, ``quantity``, ``value``. With g for the gradient as it is and h in float64

        - ``difference``: ``|g - h|`` / ``|h|`` at the block's fork, over the whole batch tensor: about 1e-7 times the
          number of operations in a benign float32 network, about 1.4 where nothing is left in common; inf where h alone
          is 0;
        - ``cosine``: of the angle between the two, nan where one is 0 (underflow, in float32 below 1e-45);
        - ``parameter_difference``, ``parameter_cosine``: the same of the gradients of all parameters in the block's
          shortcut and branch together; no rows where none of them requires a gradient.

        nan where h is not finite, or both are 0.

    Raises:
        ValueError: The model is in float64 already or has no floating parameters, there are no junctions, other
            junctions are found in float64, the loss gives no gradient, or parameters are DTensors.
        TypeError: The output is no tensor and there is no ``loss``.
        RuntimeError: The model hides its adds (compiled, exported, replicated, with reentrant checkpointing).

    Example::

        precision(model, images, loss=lambda output: F.cross_entropy(output, labels))
    """
    parameters = dict(model.named_parameters())
    refuse_sharded_parameters(parameters.values(), "precision")
    floating = [p for p in parameters.values() if p.is_floating_point()]
    if not any(p.dtype != torch.float64 for p in floating):
        got = "all parameters are float64" if floating else "no parameter is a floating tensor"
        raise ValueError(
            f"precision: {got}: there is nothing to compare; give the model in the precision that it runs in"
        )
    state = {**parameters, **dict(model.named_buffers())}
    # Parameters that require gradients, so that what is found of a frozen model does not depend on their names.
    wide: dict[str, Tensor] = {
        name: nn.Parameter(_widen(x)) if name in parameters else _widen(x)
        for name, x in state.items()
        if x.is_floating_point()
    }
    given, wide_given = tree_map(_copy, (inputs, kwargs)), tree_map(_widen, (inputs, kwargs))
    with unchanged(model, (inputs, kwargs)):
        found, forks, held = _gradients(model, lambda: model(*given[0], **given[1]), loss, blocks, parameters, None)
    with unchanged(model, (inputs, kwargs)), torch.autocast(floating[0].device.type, enabled=False):
        names = [[name for name, _ in of_block] for of_block in held]
        again, wide_forks, wide_held = _gradients(
            model, lambda: functional_call(model, wide, *wide_given), loss, blocks, parameters | wide, names
        )
    if [block.name for block in again] != [block.name for block in found]:
        raise ValueError("precision: in float64 other junctions are found: name the modules that count, blocks=[...]")
    rows: list[dict[str, object]] = []
    for index, block in enumerate(found):
        values = _compared(forks[index], wide_forks[index], "")
        if held[index]:
            flat, wide_flat = (
                torch.cat([g.double().flatten() for _, g in of]) for of in (held[index], wide_held[index])
            )
            values |= _compared(flat, wide_flat, "parameter_")
        rows += [
            {"block": block.name, "depth": block.depth, "quantity": name, "value": value}
            for name, value in values.items()
        ]
    return table(rows)


Named = list[tuple[str, Tensor]]


def _gradients(
    model: nn.Module,
    run: Callable[[], Any],
    loss: Callable[[Any], Tensor] | None,
    blocks: Sequence[nn.Module] | None,
    parameters: dict[str, Any],
    names: list[list[str]] | None,
) -> tuple[list[Block], list[Tensor], list[Named]]:
    """The blocks, the gradients at their forks, and those of their parameters by name.

    parameters: by name, as they are in this forward. names: those of each block's parameters, if known.
    """
    output, found = find_blocks(model, run, blocks=blocks, caller="precision")
    value = scalar(output, loss, "precision")
    if names is None:
        of = {parameter: name for name, parameter in parameters.items()}
        names = [[of[p] for p in held] for held in block_parameters(found)]
    flat = [name for of_block in names for name in of_block]
    forks, gradients = fork_gradients(value, found, [parameters[name] for name in flat], caller="precision")
    following = iter(gradients)
    return found, forks, [[(name, next(following)) for name in of_block] for of_block in names]


def _compared(g: Tensor, h: Tensor, prefix: str) -> dict[str, float]:
    g, h = g.cpu().double(), h.cpu().double()
    missing, whole = scaled_norm(g - h), scaled_norm(h)
    difference = missing / whole if whole else math.inf if missing else math.nan
    return {f"{prefix}difference": difference, f"{prefix}cosine": norms_and_cosine(g, h)[2].item()}


def _copy(x: Any) -> Any:
    """What the model may overwrite, as it was given."""
    return x.detach().clone() if isinstance(x, Tensor) else x


def _widen(x: Any) -> Any:
    return x.detach().to(torch.float64, copy=True) if isinstance(x, Tensor) and x.is_floating_point() else _copy(x)
