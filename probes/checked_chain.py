"""Path lengths are defined on a chain of junctions: is the recorded one such a chain?"""

import math

import torch

from .gradients.chain import pull, tolerance
from .norms import scaled_norm
from .recording import Recording
from .sites import JunctionSite

NO_CHAIN = (
    "the junctions are no chain: at the fork of {!r} a gradient of norm {:.3g} (of {:.3g}) came by a route around the "
    "junctions (a long skip, an auxiliary head, a nested junction), where path lengths are not defined; or gradient "
    "weights have changed since the recorded backward"
)


def checked_chain(recording: Recording) -> list[JunctionSite]:
    """The recorded junctions, where each one's fork is made from the one before, and no gradient comes around them.

    Raises ValueError where that is not so, where there are no junctions, and where no gradient was recorded.
    """
    for site in recording.junctions:
        norms = {name: value.item() for name, value in recording.norms(site).items()}
        # Rounding of a sum whose terms are the very tensors is far below this; a route of any weight is far above.
        if norms["other"] > 1e-4 * norms["total"]:
            raise ValueError(NO_CHAIN.format(site.name, norms["other"], norms["total"]))
    _check_gaps(recording)
    return recording.junctions


def _check_gaps(recording: Recording) -> None:
    """What left the last junction must be all that arrived at the first fork: nothing came in between junctions."""
    chain = recording.junctions
    carried = recording.gradient(chain[-1], "junction")
    for site, before in zip(reversed(chain), [*chain[-2::-1], None], strict=True):
        carried, _ = pull(carried, (site.add, 0), site.verdict.fork, site.name)
        if before is not None:
            carried, _ = pull(carried, site.verdict.fork, (before.add, 0), f"{before.name!r} to {site.name!r}")
    total = recording.gradient(chain[0], "total")
    whole, missing = scaled_norm(total), scaled_norm(carried - total)
    smallest = torch.finfo(total.dtype).tiny / torch.finfo(total.dtype).eps
    if math.isfinite(whole) and missing > tolerance(total) * max(whole, scaled_norm(carried)) + smallest:
        raise ValueError(NO_CHAIN.format(chain[0].name, missing, whole))
