"""The gradient at the first fork, taken apart exactly by the length of the paths that it travelled."""

import math
from functools import partial

import pandas as pd
import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from probes.graph import Edge
from probes.norms import inner, scaled_norm
from probes.recording import Recording, add_up, on_parts
from probes.sites import JunctionSite
from probes.tables import table


def path_gradients(recording: Recording) -> Tensor:
    """One gradient per path length, of shape (L + 1, *first fork's shape) for L junctions in a chain.

    A path takes, at every junction, either the shortcut or the branch; its length is the number of branches it takes
    (Veit et al. 2016, arXiv 1605.06431). Entry k is the sum over *all* paths of length k, in the units of the loss's
    gradient as it was given; the sum over k is autograd's gradient at the first fork. One gradient a length is carried
    back from the last junction: what comes back through a shortcut keeps its length, what comes back through a branch
    gains one. What the backward really computes is taken apart, so backward weights count as they stand now.

    Costs the branch products of about (L + 1) / 2 backward passes, and the memory of L + 1 forks.

    Raises ValueError where the junctions are no chain (a route leads around one, or one lies inside another) or nothing
    was recorded, and RuntimeError where the graph was freed: call loss.backward(retain_graph=True).
    """
    chain = recording.junctions
    for site in chain:
        _check_entries(recording, site)
    lengths = [recording.gradient(chain[-1], "junction")]
    with recording.paused():
        for index in reversed(range(len(chain))):
            lengths = _through_junction(chain[index], lengths)
            if index:
                lengths = _through_gap(chain[index - 1], chain[index], lengths)
    stacked = torch.stack(lengths)
    _check_total(recording, chain[0], stacked)
    return stacked


def path_contributions(recording: Recording) -> pd.DataFrame:
    """What each path length contributes to the gradient at the first fork: path_length, quantity, value.

    quantity: `norm`, of the summed gradient g_k of all paths of length k (L2 over the whole batch tensor); `share`,
    <g_k, g> / <g, g> with g the whole gradient: signed, the shares sum to 1, nan if g = 0. The norm of a sum is not the
    sum of norms that Veit et al. (2016) sample. Cost and errors as for `path_gradients`.
    """
    lengths = path_gradients(recording).cpu()
    # In units of its largest element, so that squares of a vanished gradient stay in range.
    unit = lengths.abs().amax().double().item() or 1.0
    whole = lengths.double().sum(0) / unit
    square = inner(whole, whole)
    rows: list[dict[str, object]] = []
    for length, gradient in enumerate(lengths):
        share = inner(gradient.double() / unit, whole) / square if square else math.nan
        rows += [
            {"path_length": length, "quantity": "norm", "value": scaled_norm(gradient)},
            {"path_length": length, "quantity": "share", "value": share},
        ]
    return table(rows)


def _through_junction(site: JunctionSite, lengths: list[Tensor]) -> list[Tensor]:
    """From K gradients at a junction's sum to K + 1 at its fork: the shortcut keeps lengths, the branch adds one."""
    verdict = site.verdict
    parts: dict[str, Tensor] = {}
    handles = on_parts(verdict, partial(add_up, parts))
    at_fork: list[Tensor] = []
    try:
        for length, gradient in enumerate(lengths):
            parts.clear()
            none = torch.zeros_like(_pull(gradient, (site.add, 0), verdict.fork, site.name))
            shortcut, branch = parts.get("shortcut", none), parts.get("branch", none)
            at_fork[length:] = [at_fork[length] + shortcut if length else shortcut, branch]
    finally:
        for handle in handles:
            handle.remove()
    return at_fork


def _through_gap(before: JunctionSite, here: JunctionSite, lengths: list[Tensor]) -> list[Tensor]:
    """From a fork back to the sum of the junction before it, through whatever lies between."""
    fork, add = here.verdict.fork, (before.add, 0)
    return [_pull(gradient, fork, add, f"{before.name!r} to {here.name!r}") for gradient in lengths]


def _pull(gradient: Tensor, start: Edge, end: Edge, where: str) -> Tensor:
    """A gradient at `start` carried back to `end`."""
    if start == end:
        return gradient
    try:
        return torch.autograd.grad(GradientEdge(*start), [GradientEdge(*end)], gradient, retain_graph=True)[0]
    except RuntimeError as error:
        if "second time" in str(error):
            raise RuntimeError(
                "the recorded graph was freed by the backward: call loss.backward(retain_graph=True) inside "
                "`with record(model)` when path_gradients or path_contributions follow"
            ) from None
        if "not have been used" in str(error):
            raise ValueError(
                f"the junctions are no chain ({where}: no way back): path lengths are defined where each junction's "
                "fork is made from the junction before it; gradient_norms and residual_magnitudes work on any model"
            ) from None
        raise


def _check_entries(recording: Recording, site: JunctionSite) -> None:
    """No gradient may enter a fork by neither addend."""
    norms = {name: value.item() for name, value in recording.norms(site).items()}
    # Rounding of a sum whose terms are the very tensors is far below this; a route of any weight is far above.
    if norms["other"] > 1e-4 * norms["total"]:
        raise ValueError(_NO_CHAIN.format(site.name, norms["other"], norms["total"]))


def _check_total(recording: Recording, site: JunctionSite, lengths: Tensor) -> None:
    """The lengths must sum to what was recorded at the first fork."""
    total = recording.gradient(site, "total")
    whole, missing = scaled_norm(total), scaled_norm(lengths.sum(0) - total)
    precision = torch.finfo(total.dtype)
    # The lengths are computed anew, in float32 perhaps by kernels of less precision (autocast, TF32).
    small = precision.eps**0.5 if total.dtype == torch.float64 else 0.05
    limit = small * max(whole, *map(scaled_norm, lengths)) + precision.tiny / precision.eps
    if math.isfinite(whole) and missing > limit:
        raise ValueError(_NO_CHAIN.format(site.name, missing, whole))


_NO_CHAIN = (
    "the junctions are no chain: at the fork of {!r} a gradient of norm {:.3g} (of {:.3g}) came by a route around the "
    "junctions (a long skip, an auxiliary head, a nested junction), where path lengths are not defined; or gradient "
    "weights have changed since the recorded backward"
)
