"""How much gradient is there at each depth, and by which way did it come?"""

import pandas as pd

from ..recording import Recording
from ..tables import table


def gradient_norms(recording: Recording) -> pd.DataFrame:
    """Norm of the loss's gradient at every fork, and of what came by either addend.

    Args:
        recording: Of a forward and a backward, with or without junctions.

    Returns:
        Columns ``block``, ``depth``, ``quantity``, ``value``, with the quantities

        - ``total``: the gradient at the fork (for blocks named by hand, at each block's input, and this one alone);
        - ``shortcut`` and ``branch``: what of it entered the fork from either (from the branch also what a head on its
          inside sent);
        - ``other``: what came by neither (long skips, auxiliary heads, returned hidden states). Where a branch reads
          its fork several times (queries, keys, values), it holds rounding.

        total = shortcut + branch + other as tensors, while their norms need not add up.

        Each norm is L2 over the whole batch tensor, of the gradient of the loss as given: the loss summed over a batch
        of N has N times the norms of its mean.

    Raises:
        ValueError: No forward or no backward was recorded.

    Example::

        with record(model) as recording:
            F.cross_entropy(model(images), labels).backward()
        gradient_norms(recording)
    """
    return table(
        {"block": site.name, "depth": site.depth, "quantity": name, "value": value.item()}
        for site in recording.sites
        for name, value in recording.norms(site).items()
    )
