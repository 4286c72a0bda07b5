"""How large is the residual beside what the shortcut carries, and does it point the same way?"""

import math

import pandas as pd

from probes.norms import cosines, norms
from probes.recording import Recording
from probes.tables import table


def residual_magnitudes(recording: Recording) -> pd.DataFrame:
    """Size of the two addends at every junction: block, depth, quantity, value.

    quantity: `branch` and `shortcut`, each addend's norm (L2 over the whole batch tensor, as it was added); `ratio`,
    branch / shortcut; `cosine`, of the angle between the two. Ratio and cosine are nan where the shortcut is zero.
    He et al. 2015 (arXiv 1512.03385, Fig. 7) read small residuals as a sign that blocks stay near the identity.

    Raises ValueError where there is no junction, RuntimeError where the model has overwritten an addend since.
    """
    sites = recording.junctions
    pairs = [site.addends() for site in sites]
    flat = norms([addend for pair in pairs for addend in pair])
    sizes = list(zip(flat[::2], flat[1::2], strict=True))
    rows: list[dict[str, object]] = []
    for site, (shortcut, branch), cosine in zip(sites, sizes, cosines(pairs, sizes), strict=True):
        values = {
            "branch": branch,
            "shortcut": shortcut,
            "ratio": branch / shortcut if shortcut else math.nan,
            "cosine": cosine,
        }
        rows += [{"block": site.name, "depth": site.depth, "quantity": k, "value": v} for k, v in values.items()]
    return table(rows)
