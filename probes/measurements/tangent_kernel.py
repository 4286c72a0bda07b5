"""How does a gradient step move the outputs, and does it move them downhill?"""

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal, get_args

import pandas as pd
import torch
from torch import Tensor, nn

from ..discovery.graph import ancestors
from ..discovery.refusals import refuse_sharded_parameters
from ..gradients.blocks import block_parameters, find_blocks, gradients, refuse_limited, unchanged
from ..norms import gram, times_power
from ..tables import table

Of = Literal["model", "blocks"]
Biased = nn.Module | Callable[[], AbstractContextManager[object]]
Group = tuple[str, int]  # a block's name and depth


def tangent_kernel(
    model: nn.Module,
    *inputs: Any,
    biased: Biased | None = None,
    of: Of = "model",
    outputs: Callable[[Any], Tensor] | None = None,
    blocks: Sequence[nn.Module] | None = None,
    **kwargs: Any,
) -> pd.DataFrame:
    r"""The empirical neural tangent kernel of a batch, or that of a backward which is not the function's own.

    A step of gradient flow moves the n outputs f by df/dt = -Θ dL/df with the kernel Θ = J J^T, J (n, P) the Jacobian
    of the outputs with respect to the parameters (Jacot et al. 2018, arXiv:1806.07572). Where the gradient is computed
    by another backward than that of the function (a stop-gradient through shortcuts, fixed feedback weights),
    parameters move along that one's Jacobian, and Θ = J_true J_biased^T, a *pseudo*-NTK, which need not be symmetric.
    The loss falls for every dL/df if and only if the symmetric part (Θ + Θ^T) / 2 is positive; each of its negative
    eigenvalues belongs to a direction of the outputs in which a step goes uphill.

    Gradients are taken as the backward gives them, one backward for each output: the weights of a ``gate`` or of a
    network's gradient count, and ``model`` itself must have the true backward where ``biased`` is given. In train mode
    BatchNorm couples the inputs of a batch, and the kernel is that of the batch. The mode stays as it is; buffers,
    random state and ``.grad`` too. It takes the memory of n gradients of all parameters, of 2 n with ``biased``.

    Args:
        model: Any module; it is not changed.
        inputs: The forward's positional arguments, a small batch.
        biased: What gives the other backward of the same function: a model whose parameters have the same names and
            values (a copy with other gradient weights), or a function that returns a context in which ``model`` has it
            (a ``gate``, or one that changes a network's flows). None for the kernel of ``model``'s own backward.
        of: ``"model"``, of all parameters, in the row of block ``"(model)"``; or ``"blocks"``, of those in each block's
            shortcut and branch: with those that stand beside all blocks, these kernels sum to that of the model.
        outputs: The outputs that count, as a tensor, from what the model returns; by default all of it.
        blocks: For networks without junctions, the modules of ``model`` that count as blocks.
        kwargs: The forward's keyword arguments.

    Returns:
        Columns ``block``, ``depth``, ``order``, ``quantity``, ``value``, in squared outputs over squared parameters:

        - ``eigenvalue``: of (Θ + Θ^T) / 2, the largest first, with ``order`` 0 ... n - 1 (of all else ``order`` is 0);
        - ``trace``: of Θ;
        - ``effective_rank``: the exponential of the entropy of Θ's normalised singular values, 1 to n (Roy and Vetterli
          2007);
        - ``negative``: Σ ``|λ|`` over the negative eigenvalues over that of all; 0 where the backward is true
          (eigenvalues below n roundings of the gradients' precision, beside the largest, count as 0);
        - ``antisymmetric``: ``|(Θ - Θ^T) / 2|_F²`` / ``|Θ|_F²``, the share of Θ that moves outputs without any change
          of the loss to first order; 0 where the backward is true;
        - ``cosine``: <Θ, K> / (``|Θ|_F`` ``|K|_F``) with the true kernel K = J_true J_true^T; 1 without ``biased``.

        Shares, rank and cosine are nan where Θ is 0, and all is nan where a gradient is not finite. A block without
        trainable parameters has no rows.

    Raises:
        ValueError: The biased model has other parameters, or gives other outputs; the outputs are no tensor with a
            gradient; no parameter requires one, or they are DTensors; there are no junctions; an option is unknown; or
            the model runs under ``limit_paths``.
        RuntimeError: The model hides its adds (compiled, exported, replicated, with reentrant checkpointing).

    Warns:
        RuntimeWarning: A number is too large or too small for float64, and given as inf or 0.

    Example::

        exact = copy.deepcopy(model)                         # one of our networks, with a biased backward
        for block in exact.blocks:
            block.flow = block.flow.exact
        tangent_kernel(exact, images, biased=model)
        tangent_kernel(resnet18, images, biased=lambda: gate(resnet18, shortcut_gradient=0.0))
    """
    if of not in get_args(Of):
        raise ValueError(f'tangent_kernel: of is {of!r}: give "model" or "blocks"')
    refuse_sharded_parameters(model.parameters(), "tangent_kernel")
    with unchanged(model, (inputs, kwargs)):
        values, found = _run(model, inputs, kwargs, of, outputs, blocks)
        names = {parameter: name for name, parameter in model.named_parameters()}
        groups = {group: [names[p] for p in held] for group, held in found.items() if held}
        if not groups:
            raise ValueError(
                "tangent_kernel: no parameter requires a gradient: call requires_grad_() on those that count"
            )
        true = _jacobians(values, dict(model.named_parameters()), groups)
    other = None
    if biased is not None:
        twin = biased if isinstance(biased, nn.Module) else model
        parameters = _parameters(twin, model, groups)
        # A second forward, with the first one's random state and buffers.
        with unchanged(twin, (inputs, kwargs)), _context(biased):
            again, _ = _run(twin, inputs, kwargs, "model", outputs, None)
            _check_equal(values, again)
            other = _jacobians(again, parameters, groups)
    rows: list[dict[str, object]] = []
    for (name, depth), vectors in true.items():
        kernel = _quantities(vectors, None if other is None else other[name, depth])
        rows += [{"block": name, "depth": depth, "order": i, "quantity": q, "value": value} for q, i, value in kernel]
    return table(rows)


def _context(biased: Biased) -> AbstractContextManager[object]:
    return torch.enable_grad() if isinstance(biased, nn.Module) else biased()


def _run(
    model: nn.Module,
    inputs: Sequence[Any],
    kwargs: dict[str, Any],
    of: Of,
    outputs: Callable[[Any], Tensor] | None,
    blocks: Sequence[nn.Module] | None,
) -> tuple[Tensor, dict[Group, list[nn.Parameter]]]:
    """The outputs that count, in one row, and the parameters of each block."""
    if of == "model":
        output = model(*inputs, **kwargs)
        found: dict[Group, list[nn.Parameter]] = {("(model)", 0): [p for p in model.parameters() if p.requires_grad]}
    else:
        output, listed = find_blocks(model, lambda: model(*inputs, **kwargs), blocks=blocks, caller="tangent_kernel")
        pairs = zip(listed, block_parameters(listed), strict=True)
        found = {(block.name, block.depth): held for block, held in pairs}
    values = output if outputs is None else outputs(output)
    if not isinstance(values, Tensor) or not values.numel():
        got = f"a tensor of shape {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(
            f"tangent_kernel: the outputs are {got}: say which tensor counts, such as "
            "outputs=lambda output: output.logits"
        )
    if any(found.values()) and not values.requires_grad:
        raise ValueError("tangent_kernel: no gradient leads from the outputs to the model: they must not be detached")
    refuse_limited(ancestors([values.grad_fn]), "tangent_kernel")
    return values.flatten(), found


def _parameters(twin: nn.Module, model: nn.Module, groups: dict[Group, list[str]]) -> dict[str, nn.Parameter]:
    """The biased model's parameters by name."""
    there, here = dict(twin.named_parameters()), dict(model.named_parameters())
    names = [name for group in groups.values() for name in group]
    wrong = [name for name in names if name not in there or there[name].shape != here[name].shape]
    frozen = [name for name in names if name not in wrong and not there[name].requires_grad]
    if wrong or frozen:
        raise ValueError(
            f"tangent_kernel: the biased model has no trainable parameters {(wrong or frozen)[:4]} of the model's "
            "shapes: give a copy of the model, with another backward"
        )
    return there


def _check_equal(values: Tensor, again: Tensor) -> None:
    """The two backwards must be of one function."""
    same = values.shape == again.shape
    gap = (values - again).abs().max().item() if same else math.inf
    tolerance = 1e3 * torch.finfo(values.dtype).eps * values.abs().max().item()  # another order of sums
    if gap > tolerance:
        raise ValueError(
            f"tangent_kernel: the biased model gives other outputs (by up to {gap:.3g}): it must compute the same "
            "function with another backward, from equal weights and buffers, in the same mode"
        )


def _jacobians(
    values: Tensor, parameters: dict[str, nn.Parameter], groups: dict[Group, list[str]]
) -> dict[Group, list[list[Tensor]]]:
    """For every block the gradients of its parameters, one row an output."""
    names = [name for group in groups.values() for name in group]
    rows: dict[Group, list[list[Tensor]]] = {group: [] for group in groups}
    for value in values:
        of_all = gradients(value, [parameters[name] for name in names], retain_graph=True)
        following = iter(
            torch.zeros_like(parameters[name]) if g is None else g for name, g in zip(names, of_all, strict=True)
        )
        for group, held in groups.items():
            rows[group].append([next(following) for _ in held])
    return rows


def _quantities(
    true: Sequence[Sequence[Tensor]], biased: Sequence[Sequence[Tensor]] | None
) -> Iterable[tuple[str, int, float]]:
    """Quantity, order and value."""
    kernel, own_exponent = gram(true)
    theta, exponent = (kernel, own_exponent) if biased is None else gram(true, biased)
    n = len(theta)
    if not theta.isfinite().all() or not kernel.isfinite().all():
        yield from (("eigenvalue", order, math.nan) for order in range(n))
        yield from ((name, 0, math.nan) for name in ("trace", "effective_rank", "negative", "antisymmetric", "cosine"))
        return
    symmetric, antisymmetric = (theta + theta.T) / 2, (theta - theta.T) / 2
    eigenvalues = torch.linalg.eigvalsh(symmetric).flip(0)
    for order, value in enumerate(eigenvalues.tolist()):
        yield "eigenvalue", order, times_power(value, exponent, "tangent_kernel")
    yield "trace", 0, times_power(theta.trace().item(), exponent, "tangent_kernel")
    sizes = eigenvalues.abs()
    rounding = n * torch.finfo(true[0][0].dtype).eps * sizes.max()  # of gradients that two backwards give
    sigma = torch.linalg.svdvals(theta)
    shares = sigma / sigma.sum()
    yield "effective_rank", 0, torch.exp(torch.special.entr(shares).sum()).item()
    yield "negative", 0, (sizes[eigenvalues < -rounding].sum() / sizes.sum()).item()
    square = theta.square().sum()
    yield "antisymmetric", 0, (antisymmetric.square().sum() / square).item()
    yield "cosine", 0, ((theta * kernel).sum() / (square.sqrt() * kernel.norm())).item()
