"""What can be read out linearly after every block?"""

import math
from typing import Any, Literal, get_args

import pandas as pd
import torch
from torch import Tensor

from ..recording import Recording
from ..tables import table
from .similarity import Value

Positions = Literal["mean", "features"]


def linear_probes(
    recording: Recording,
    labels: Tensor,
    *,
    held_out: float | Tensor = 0.5,
    seed: int = 0,
    alpha: float = 1.0,
    of: Value = "sum",
    positions: Positions = "mean",
) -> pd.DataFrame:
    """Accuracy of a linear classifier of the activations after every block, on what it was fitted to and on the rest.

    Linear probes tell at which depth classes become linearly separable (Alain and Bengio 2016, arXiv:1610.01644). Here
    it is ridge regression on the classes (scikit-learn's ``RidgeClassifier``), which has one solution and no training
    to tune. Features are standardised with mean and standard deviation of the examples that it is fitted to.

    More features than fitted examples fit anything: read the held-out accuracy, and compare blocks of equal width.

    Args:
        recording: Of ``record(model, keep=True)`` and a forward of all examples, (N, ...) at every junction.
        labels: The N classes, whole numbers.
        held_out: The share of the examples that is held out, drawn with ``seed``, 0 to 1; or a mask of N booleans that
            is true for those held out.
        seed: Of the split.
        alpha: The ridge's penalty, for standardised features: a number above 0.
        of: What is read at each junction: the ``"sum"`` of its addends (before any activation behind it), the residual
            ``"branch"``, or the ``"shortcut"``.
        positions: What becomes of tokens (N, T, D) or pixels (N, C, H, W): their ``"mean"``, as before a head with
            pooling, which leaves D or C features; or ``"features"``: each is features of its own.

    Returns:
        Columns ``split`` (train | held-out), ``block``, ``depth``, ``quantity`` (``accuracy``), ``value`` (0 to 1; nan
        where activations are not finite).

    Raises:
        ValueError: The recording does not hold its tensors or has no junctions, labels do not fit, an option is
            unknown or out of range, one side of the split is empty, or fewer than two classes are to be fitted.
        ModuleNotFoundError: scikit-learn is not installed.

    Example::

        with record(model.eval(), keep=True) as recording:
            model(images)
        linear_probes(recording, labels, held_out=0.3)
    """
    try:
        from sklearn.linear_model import RidgeClassifier
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "linear_probes needs scikit-learn (in the extra residual-probes[experiments]): pip install scikit-learn"
        ) from error
    for name, value, known in (("of", of, get_args(Value)), ("positions", positions, get_args(Positions))):
        if value not in known:
            raise ValueError(f"linear_probes: {name} is {value!r}: give {' or '.join(map(repr, known))}")
    if not alpha > 0 or not math.isfinite(alpha):
        raise ValueError(f"linear_probes: alpha is {alpha!r}: give a number above 0")
    if labels.dim() != 1 or labels.is_floating_point() or labels.is_complex():
        raise ValueError(
            f"linear_probes: labels are a tensor of {labels.dtype} of shape {tuple(labels.shape)}; give a class, a "
            "whole number, for each example: (N,)"
        )
    classes = labels.cpu()
    rest = _held_out(held_out, len(classes), seed)
    if len(classes[~rest].unique()) < 2:
        raise ValueError(
            "linear_probes: the examples to be fitted have fewer than two classes: hold out fewer, or others"
        )
    rows: list[dict[str, object]] = []
    for site in recording.kept_junctions("linear_probes"):
        x = _features(getattr(site, of), positions, len(classes), site.name)
        accuracies = {"train": math.nan, "held-out": math.nan}
        if x.isfinite().all():
            x = _standardised(x, ~rest)
            probe: Any = RidgeClassifier(alpha=alpha).fit(x[~rest].numpy(), classes[~rest].numpy())
            accuracies = {
                split: float(probe.score(x[mask].numpy(), classes[mask].numpy()))
                for split, mask in (("train", ~rest), ("held-out", rest))
            }
        rows += [
            {"block": site.name, "depth": site.depth, "split": split, "quantity": "accuracy", "value": value}
            for split, value in accuracies.items()
        ]
    return table(rows)


def _held_out(given: float | Tensor, count: int, seed: int) -> Tensor:
    """A mask of the examples that are held out."""
    if isinstance(given, Tensor):
        if given.dtype != torch.bool or given.shape != (count,):
            raise ValueError(
                f"linear_probes: held_out is a tensor of {given.dtype} of shape {tuple(given.shape)}; give a boolean "
                f"for each of the {count} labels, or a share"
            )
        mask = given.cpu()
    else:
        if not 0 < given < 1:
            raise ValueError(f"linear_probes: held_out is {given!r}: give a share between 0 and 1, or a mask")
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
        mask = torch.zeros(count, dtype=torch.bool)
        mask[order[: round(given * count)]] = True
    if mask.all() or not mask.any():
        raise ValueError(f"linear_probes: of {count} examples {int(mask.sum())} are held out: leave some on both sides")
    return mask


def _features(value: Tensor, positions: Positions, count: int, name: str) -> Tensor:
    """A junction's values as (N, features)."""
    if len(value) != count:
        raise ValueError(
            f"linear_probes: {name!r} has values of shape {tuple(value.shape)} for {count} labels: the first axis must "
            "be that of the examples"
        )
    value = value.cpu().double()
    if positions == "mean" and value.dim() > 2:
        value = value.mean(1) if value.dim() == 3 else value.flatten(2).mean(2)
    return value.reshape(count, -1)


def _standardised(x: Tensor, fitted: Tensor) -> Tensor:
    """Features in units of their standard deviation over the examples that are fitted; what does not vary is 0."""
    largest = x.abs().max().item()
    x = x / largest if largest else x
    x = x - x[fitted].mean(0)
    scale = x[fitted].square().mean(0).sqrt()
    return torch.where(scale > 0, x / scale, 0.0)
