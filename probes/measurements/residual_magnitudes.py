"""How large is the residual beside what the shortcut carries, and does it point the same way?"""

import math

import pandas as pd
import torch

from ..recording import Recording
from ..tables import table
from .per import Per, check_per, cosines, norms, portions
from .per import rows as rows_of

QUANTITIES = ("branch", "shortcut", "ratio", "cosine")


def residual_magnitudes(recording: Recording, *, per: Per | None = None) -> pd.DataFrame:
    """Size of the two addends at every junction, and the angle between them.

    He et al. (2015, arXiv:1512.03385, Fig. 7) read small residuals as a sign that blocks stay near the identity.

    Args:
        recording: Of a forward; no backward is needed.
        per: ``"example"`` or ``"token"`` (of ``(N, T, D)``) for a value each, in the columns ``example`` and ``token``,
            in place of one for the whole batch; of a recording under ``record(model, keep=True)``. The squares of the
            norms sum to that of the batch.

    Returns:
        Columns ``block``, ``depth``, ``quantity``, ``value``, with the quantities

        - ``branch`` and ``shortcut``: each addend's norm (L2 over the whole batch tensor, as it was added);
        - ``ratio``: branch / shortcut, nan where the shortcut is zero;
        - ``cosine``: of the angle between the two, nan where one is zero.

    Raises:
        ValueError: There is no junction; with ``per``, no tensor was kept, or there are no tokens.

    Example::

        with record(model) as recording:
            model(images)
        residual_magnitudes(recording)
    """
    check_per(per, "residual_magnitudes")
    if per is not None:
        return _magnitudes_per(recording, per)
    rows: list[dict[str, object]] = []
    for site in recording.junctions:
        sizes = site.magnitudes()
        rows += [{"block": site.name, "depth": site.depth, "quantity": k, "value": sizes[k]} for k in QUANTITIES]
    return table(rows)


def _magnitudes_per(recording: Recording, per: Per) -> pd.DataFrame:
    found: list[dict[str, object]] = []
    for site in recording.kept_junctions(f'residual_magnitudes(recording, per="{per}")'):
        branch, shortcut = (portions(addend, per, site.name) for addend in (site.branch, site.shortcut))
        sizes = {"branch": norms(branch), "shortcut": norms(shortcut)}
        ratio = torch.where(sizes["shortcut"] == 0, math.nan, sizes["branch"] / sizes["shortcut"])
        sizes |= {"ratio": ratio, "cosine": cosines(branch, shortcut)}
        for name in QUANTITIES:
            found += rows_of({"block": site.name, "depth": site.depth}, name, sizes[name])
    return table(found)
