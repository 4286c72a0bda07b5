"""What is added to the residual stream at every junction, by which module, and does the stream carry it on?"""

import math
from collections.abc import Iterator, Sequence

import pandas as pd
import torch
from torch import Tensor
from torch.autograd.graph import Node

from ..discovery.graph import FACTOR, LAYOUT, scales_gradient
from ..recording import Recording
from ..sites import JunctionSite
from ..tables import table
from .per import Per, check_per, norms, portions, rows

STREAM_ARITHMETIC = LAYOUT | FACTOR | {"AddBackward0", "SubBackward0"}


def contributions(
    recording: Recording, onto: Tensor | None = None, *, per: Per | None = None, features: int | None = None
) -> pd.DataFrame:
    r"""What is added to the stream at every junction: stream + branch = sum.

    With ``onto``, the direct effect of every addend on what reads the stream along that direction: on a token's logit,
    for its row of the unembedding (Elhage et al. 2021, *A Mathematical Framework for Transformer Circuits*; "direct
    logit attribution"). A final normalisation in between is left out: multiply its weights into the direction, and
    divide by its scale, to count it.

    Args:
        recording: Of a forward under ``record(model, keep=True)``; no backward is needed.
        onto: A direction of the stream's features, ``(D,)`` or ``(C,)``; not normalised.
        per: ``"example"`` or ``"token"`` (of ``(N, T, D)``) for a value each, in the columns ``example`` and ``token``,
            in place of one for the whole batch. The squares of the norms of all examples, or of all tokens, sum to that
            of the batch.
        features: Which dimension ``onto`` lies along; by default the last of ``(N, D)`` and ``(N, T, D)``, the second
            of ``(N, C, H, W)``. Networks that keep images as (N, H, W, C) (Swin) want -1.

    Returns:
        Columns ``block``, ``depth``, ``module``, ``quantity``, ``value``. ``module`` is the qualified name of the
        module whose output is what is added, at most reshaped: of several that return it (an MLP, and its last layer),
        the one that returned last; None where it is no module's output, but a product (a multiplier between module and
        sum), a difference or a sum of several. The quantities are

        - ``branch``: the norm of the residual branch's addend, as it was added;
        - ``stream``: the norm of the stream before, that is, of the shortcut's addend (behind a projection, in the
          sum's shape);
        - ``sum``: the norm of the stream after, before any activation;
        - ``factor``: what the branch's output was multiplied by before the add (a constant, a learned scalar, a gate):
          1 where by nothing, of a factor with several elements (LayerScale) the root mean square, nan where the factor
          was overwritten or where addends of one sum have several. A factor inside a module counts where that module
          does nothing but multiply, as a LayerScale does. Dropout's mask is left out, stochastic depth's is not. One
          for a junction: left out under ``per``;
        - ``error``: the norm of stream + branch - next shortcut. It is exactly 0 where the stream goes on unchanged,
          and its size where something is done to the stream in between (it is rescaled, something is added, or the next
          shortcut has another weight, as in plain networks). nan where no later shortcut could be the sum: behind an
          activation (post-activation blocks), a normalisation or a projection, and where the sum ends in the branch of
          another junction, or in no junction (an encoder's). At the last junction the next shortcut is the sum itself.

        Each norm is L2 over the whole batch tensor. With ``onto``, the value of all but ``factor`` is the inner product
        of that tensor's features with the direction, averaged over all examples and positions (of each example, of each
        token): signed, in units of a logit; branch adds to stream, to give sum. nan at junctions of another width.

    Raises:
        ValueError: There is no junction, no tensor was kept, ``onto`` fits no junction, or an option is unknown.
        TypeError: ``onto`` is no tensor of floating-point numbers.

    Example::

        with record(model, keep=True) as recording:
            model(images)
        contributions(recording)
        contributions(recording, onto=model.classifier.weight[3], per="example")    # on the logit of class 3
    """
    check_per(per, "contributions")
    sites = recording.kept_junctions("contributions")
    if onto is not None:
        _check_direction(onto, sites, features)
    found: list[dict[str, object]] = []
    for index, site in enumerate(sites):
        about: dict[str, object] = {"block": site.name, "depth": site.depth, "module": site.module}
        values = {"branch": site.branch, "stream": site.shortcut, "sum": site.sum}
        for name, tensor in values.items():
            found += rows(about, name, _measured(tensor, onto, per, features, site.name))
        if per is None:
            found.append({**about, "quantity": "factor", "value": site.factor})
        after = _next_shortcut(sites, index)
        # Equal elements have no difference, also where they are infinite.
        rest = site.sum * math.nan if after is None else (site.sum - after).masked_fill(site.sum == after, 0)
        found += rows(about, "error", _measured(rest, onto, per, features, site.name))
    return table(found)


def _measured(tensor: Tensor, onto: Tensor | None, per: Per | None, features: int | None, block: str) -> Tensor:
    """A tensor's norms, or the mean of its projections."""
    if onto is None:
        return norms(portions(tensor, per, block))
    along = feature_dimension(tensor, features)
    portions(tensor, per, block)  # raises where there are no examples or tokens
    if tensor.shape[along] != len(onto):
        projected = torch.full(tensor.movedim(along, -1).shape[:-1], math.nan, dtype=torch.float64)
    else:
        projected = tensor.detach().double().movedim(along, -1) @ onto.detach().to(tensor.device).double()
    return projected.reshape(*projected.shape[: (None, "example", "token").index(per)], -1).mean(-1)


def feature_dimension(tensor: Tensor, features: int | None) -> int:
    """Which dimension holds the features: the one given, the second of (N, C, H, W), or the last."""
    if features is None:
        return 1 if tensor.dim() > 3 else -1
    if not -tensor.dim() <= features < tensor.dim():
        raise ValueError(f"features is {features}, and the stream is {tuple(tensor.shape)}: give one of its dimensions")
    return features


def _check_direction(onto: object, sites: Sequence[JunctionSite], features: int | None) -> None:
    if not isinstance(onto, Tensor) or not onto.is_floating_point():
        got = str(onto.dtype) if isinstance(onto, Tensor) else type(onto).__name__
        raise TypeError(f"contributions: onto is {got}: give a tensor of floating-point numbers")
    sizes = {site.sum.shape[feature_dimension(site.sum, features)] for site in sites if site.sum.dim()}
    if onto.dim() != 1 or len(onto) not in sizes:
        raise ValueError(
            f"contributions: onto has the shape {tuple(onto.shape)}, and the stream {sorted(sizes)} features (its last "
            "dimension, of (N, C, H, W) the second): give one vector of that length, such as a row of the "
            "unembedding; or name the stream's dimension, features=-1"
        )


def _next_shortcut(sites: Sequence[JunctionSite], index: int) -> Tensor | None:
    """The shortcut's addend at the next junction of the same stream."""
    site, *later = sites[index:]
    others = {other.add for other in sites} - {site.add}
    for after in later:
        if site.add in _arithmetic(after.match.fork[0], site.add, others):
            return _in_shape(after.shortcut, site.sum) if after.match.kind == "identity" else None
    return None if later else site.sum


def _in_shape(shortcut: Tensor, total: Tensor) -> Tensor | None:
    """A shortcut in the shape of the sum that it carries; None where that is not known (it was permuted, say)."""
    if shortcut.shape == total.shape:
        return shortcut
    viewed = shortcut.reshape(total.shape) if shortcut.numel() == total.numel() else None
    return viewed if viewed is not None and torch.equal(viewed, total) else None


def _arithmetic(node: Node, oldest: Node, ends: set[Node]) -> Iterator[Node]:
    """The nodes that a tensor is made of by sums and factors, as far back as the oldest, and as the ends."""
    seen, waiting = set[Node](), [node]
    while waiting:
        node = waiting.pop()
        if node in seen or node in ends or node.name() == "torch::autograd::AccumulateGrad":
            continue
        seen.add(node)
        yield node
        if node._sequence_nr() > oldest._sequence_nr() and (node.name() in STREAM_ARITHMETIC or scales_gradient(node)):
            waiting += [before for before, _ in node.next_functions if before is not None]
