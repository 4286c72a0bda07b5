"""How much gradient is there at each depth, and by which way did it come?"""

from collections.abc import Iterator

import pandas as pd

from ..recording import Recording
from ..sites import JunctionSite, Site
from ..tables import table
from .per import Per, check_per, norms, portions, rows


def gradient_norms(recording: Recording, *, per: Per | None = None) -> pd.DataFrame:
    """Norm of the loss's gradient at every fork, and of what came by either addend.

    Args:
        recording: Of a forward and a backward, with or without junctions.
        per: ``"example"`` or ``"token"`` (of ``(N, T, D)``) for a norm each, in the columns ``example`` and ``token``,
            in place of one for the whole batch; of a recording under ``record(model, keep=True)``. Their squares sum to
            that of the batch. What is given is each one's part of the batch's gradient: where examples meet (in
            BatchNorm), or the loss is a mean, it is not the gradient of that example's own loss.

    Returns:
        Columns ``block``, ``depth``, ``quantity``, ``value``, with the quantities

        - ``total``: the gradient at the fork (for blocks named by hand, at each block's input, and this one alone);
        - ``shortcut`` and ``branch``: what of it entered the fork from either (from the branch also what a head on its
          inside sent);
        - ``other``: what came by neither (long skips, auxiliary heads, returned hidden states). Where a branch reads
          its fork several times (queries, keys, values), it holds rounding.

        total = shortcut + branch + other as tensors, while their norms need not add up. A site that no gradient reached
        (an unused head's) has no rows, and a warning names it.

        Each norm is L2 over the whole batch tensor, of the gradient of the loss as given: the loss summed over a batch
        of N has N times the norms of its mean.

    Raises:
        ValueError: No forward was recorded, or no backward that reached a site; with ``per``, no tensor was kept, or
            there are no tokens.

    Example::

        with record(model) as recording:
            F.cross_entropy(model(images), labels).backward()
        gradient_norms(recording)
    """
    check_per(per, "gradient_norms")
    if per is not None:
        recording.kept_sites(f'gradient_norms(recording, per="{per}")')
        reached = recording.reached("gradient_norms")
        return table(row for site in reached for row in _rows_per(recording, site, per))
    return table(
        {"block": site.name, "depth": site.depth, "quantity": name, "value": value.item()}
        for site in recording.reached("gradient_norms")
        for name, value in recording.norms(site).items()
    )


def _rows_per(recording: Recording, site: Site, per: Per) -> Iterator[dict[str, object]]:
    gradients = {"total": recording.gradient(site, "total")}
    if isinstance(site, JunctionSite):
        gradients |= {name: recording.gradient(site, name) for name in ("shortcut", "branch")}
        both = gradients["shortcut"] + gradients["branch"]
        total = gradients["total"]
        gradients["other"] = (total - both).masked_fill(total == both, 0)  # inf - inf is nan
    for name, gradient in gradients.items():
        about: dict[str, object] = {"block": site.name, "depth": site.depth}
        yield from rows(about, name, norms(portions(gradient, per, site.name)))
