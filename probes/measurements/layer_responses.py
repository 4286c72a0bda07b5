"""How strongly does each layer respond?"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from ..discovery.hooks import hooked, names_of_modules
from ..tables import table

NORMALISATIONS = (
    nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, nn.modules.instancenorm._InstanceNorm
)  # fmt: skip


def layer_responses(
    model: nn.Module, *inputs: Any, layers: Sequence[nn.Module] | None = None, **kwargs: Any
) -> pd.DataFrame:
    """The standard deviation of every layer's response, in the order in which the layers run.

    A layer's response is its output after normalisation and before the nonlinearity or the addition (He et al. 2015,
    arXiv:1512.03385, Fig. 7), so by default the outputs of the model's normalisations. After a BatchNorm that is hardly
    more than its learned scale: the size of a branch, not its size beside its shortcut (``residual_magnitudes``). The
    model runs once, without gradients, in the mode that it is in; in train mode a BatchNorm moves its running
    statistics.

    Args:
        model: Any module; it needs no junctions.
        inputs: The forward's positional arguments.
        layers: Other modules whose outputs count, such as a network's convolutions where it has no normalisation.
        kwargs: The forward's keyword arguments.

    Returns:
        Columns ``block`` (the layer's name, ``@1`` behind it in its second call), ``depth`` (its place in order of
        execution, from 0), ``quantity`` (``std``), ``value`` (over all elements of the output, in its own unit).

    Raises:
        ValueError: A layer is no part of the model, or there is none.
        TypeError: A layer's output is no tensor.

    Example::

        layer_responses(model.eval(), images)
    """
    names = names_of_modules(model)
    chosen = [m for m in names if isinstance(m, NORMALISATIONS)] if layers is None else list(layers)
    if unknown := [type(layer).__name__ for layer in chosen if layer not in names]:
        raise ValueError(f"layer_responses: layers must be modules of the model, such as model.conv1; got {unknown}")
    calls: Counter[nn.Module] = Counter()
    found: list[tuple[str, Tensor]] = []

    def keep(layer: nn.Module, _: Any, output: Any) -> None:
        name = names[layer] + (f"@{calls[layer]}" if calls[layer] else "")
        if not isinstance(output, Tensor):
            raise TypeError(
                f"layer_responses: {name!r} gives a {type(output).__name__}; choose layers that give a tensor"
            )
        calls[layer] += 1
        found.append((name, output.detach().double().std(correction=0)))

    with hooked([layer.register_forward_hook(keep) for layer in chosen]), torch.no_grad():
        model(*inputs, **kwargs)
    if not found:
        raise ValueError(
            "layer_responses: no layer ran that counts; a model without normalisations needs its layers named: "
            "layer_responses(model, images, layers=[model.conv1, ...])"
        )
    rows = enumerate(found)
    return table({"block": name, "depth": i, "quantity": "std", "value": float(std)} for i, (name, std) in rows)
