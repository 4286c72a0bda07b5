"""Does each block move the stream downhill on the loss, as a step of gradient descent would?"""

import math

import pandas as pd
import torch

from ..recording import Recording
from ..tables import table
from .per import Per, check_per, cosines, portions, rows


def iterative_inference(recording: Recording, *, per: Per | None = None) -> pd.DataFrame:
    r"""The cosine of each branch's value F(h) with the descent direction -∂L/∂h at its fork.

    Where it is positive, the block refines the stream: L(h + F(h)) is L(h) + <F(h), ∂L/∂h> to first order
    (Jastrzębski et al. 2018, arXiv:1710.04773, who average it over examples, and find it larger in late blocks).

    Args:
        recording: Of a forward and a backward under ``record(model, keep=True)``. The gradient is the one that this
            backward computed: under a gate, or in an arm with biased gradients, not that of the loss.
        per: ``"example"`` or ``"token"`` (of ``(N, T, D)``) for a cosine each, in the columns ``example`` and
            ``token``, in place of one of the whole batch's tensors, in which large gradients weigh more.

    Returns:
        Columns ``block``, ``depth``, ``quantity``, ``value``, with the quantity ``cosine``; nan where the value or the
        gradient is zero, and where branch and fork differ in shape (behind most projections). A projection of one shape
        has a value, although branch and fork then stand in different bases. The value is the addend, as it was added.
        A junction that no gradient reached has no row, and a warning names it.

    Raises:
        ValueError: There is no junction, no backward was recorded, no tensor was kept, or there are no tokens.

    Example::

        with record(model, keep=True) as recording:
            F.cross_entropy(model(images), labels).backward()
        iterative_inference(recording)
    """
    check_per(per, "iterative_inference")
    found: list[dict[str, object]] = []
    junctions, reached = recording.kept_junctions("iterative_inference"), recording.reached("iterative_inference")
    for site in (junction for junction in junctions if junction in reached):
        gradient = recording.gradient(site, "total")
        branch = portions(site.branch, per, site.name)
        if gradient.shape == site.branch.shape:
            values = cosines(branch, -portions(gradient, per, site.name))
        else:
            values = torch.full(branch.shape[:-1], math.nan)
        found += rows({"block": site.name, "depth": site.depth}, "cosine", values)
    return table(found)
