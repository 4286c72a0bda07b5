"""How large is the residual beside what the shortcut carries, and does it point the same way?"""

import math

import pandas as pd

from ..recording import Recording
from ..tables import table

QUANTITIES = ("branch", "shortcut", "ratio", "cosine")


def residual_magnitudes(recording: Recording) -> pd.DataFrame:
    """Size of the two addends at every junction, and the angle between them.

    He et al. (2015, arXiv:1512.03385, Fig. 7) read small residuals as a sign that blocks stay near the identity.

    Args:
        recording: Of a forward; no backward is needed.

    Returns:
        Columns ``block``, ``depth``, ``quantity``, ``value``, with the quantities

        - ``branch`` and ``shortcut``: each addend's norm (L2 over the whole batch tensor, as it was added);
        - ``ratio``: branch / shortcut, nan where the shortcut is zero;
        - ``cosine``: of the angle between the two, nan where one is zero.

    Raises:
        ValueError: There is no junction.

    Example::

        with record(model) as recording:
            model(images)
        residual_magnitudes(recording)
    """
    rows: list[dict[str, object]] = []
    for site in recording.junctions:
        sizes = {name: size.item() for name, size in site.sizes.items()}
        sizes["ratio"] = sizes["branch"] / sizes["shortcut"] if sizes["shortcut"] else math.nan
        rows += [{"block": site.name, "depth": site.depth, "quantity": k, "value": sizes[k]} for k in QUANTITIES]
    return table(rows)
