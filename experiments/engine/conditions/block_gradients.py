"""A network's parameters block by block: their gradients, and how far they have moved."""

from collections.abc import Mapping, Sequence

import pandas as pd
import torch
from torch import Tensor, nn

from experiments.engine.running import distributed
from models import residual_blocks
from probes.norms import norm
from probes.tables import table

Group = list[nn.Parameter]
Gradients = Mapping[nn.Parameter, Tensor]


def block_names(model: nn.Module) -> list[str]:
    """The names of the residual blocks, in order of depth."""
    names = {module: name for name, module in model.named_modules()}
    return [names[block] for block in residual_blocks(model)]


def stages(model: nn.Module) -> list[int]:
    """The stage of each block, from 1: blocks of one outermost module are one stage."""
    outermost = [name.split(".")[0] for name in block_names(model)]
    order = list(dict.fromkeys(outermost))
    return [order.index(name) + 1 for name in outermost]


def groups(model: nn.Module) -> dict[str, Group]:
    """The parameters of each block by its name, and all others by the name of their outermost module, in order; a
    shared parameter belongs to the first group that has it."""
    blocks, found, seen = set(block_names(model)), dict[str, Group](), set[nn.Parameter]()
    for name, parameter in model.named_parameters():
        path = name.split(".")
        inside = [".".join(path[:end]) for end in range(1, len(path)) if ".".join(path[:end]) in blocks]
        if parameter not in seen:
            seen.add(parameter)
            found.setdefault(inside[0] if inside else path[0], []).append(parameter)
    return found


def gradients(loss: Tensor, parameters: Sequence[nn.Parameter], *, retain_graph: bool) -> Gradients:
    """The gradient of each parameter under the network's present flows, averaged over the processes that train it."""
    found = torch.autograd.grad(loss, parameters, retain_graph=retain_graph)
    return dict(zip(parameters, distributed.means(found), strict=True))


def flat(group: Group, of: Gradients) -> Tensor:
    """A group's gradients as one vector of float64."""
    return torch.cat([of[parameter].flatten().double() for parameter in group])


def assign(group: Group, vector: Tensor) -> None:
    """Write a vector's parts into a group's `.grad`."""
    for parameter, part in zip(group, vector.split([p.numel() for p in group]), strict=True):
        parameter.grad = part.view_as(parameter).to(parameter.dtype)


def movement(first: Mapping[str, Tensor], model: nn.Module) -> pd.DataFrame:
    """||w - w0|| / ||w0|| of each residual block, w all weights of its branch's layers (BatchNorm's shifts begin at
    zero): block, depth, quantity ("movement"), value. first: a copy of the network's first parameters, by name."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    rows = []
    for depth, (name, block) in enumerate(zip(block_names(model), residual_blocks(model), strict=True)):
        weights = [layer.weight for layer in block.branch.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
        start, after = (
            torch.cat([weight.detach().flatten() for weight in of_layers])
            for of_layers in ([first[names[weight]] for weight in weights], weights)
        )
        value = norm(after - start) / norm(start)
        rows.append({"block": name, "depth": depth, "quantity": "movement", "value": value.item()})
    return table(rows)
