"""How large is the residual stream, how much does each block add to its variance, and how alike are its tokens?"""

import math

import pandas as pd
import torch
from torch import Tensor

from ..recording import Recording
from ..sites import JunctionSite, Site
from ..tables import table
from .contributions import feature_dimension
from .per import Per, check_per, norms, portions, rows


def stream_statistics(recording: Recording, *, per: Per | None = None, features: int | None = None) -> pd.DataFrame:
    r"""Size, variance, rank and direction of the stream at every fork.

    Args:
        recording: Of a forward under ``record(model, keep=True)``; no backward is needed. Of blocks named by hand
            (``blocks=``), whatever describes the fork is given, of each block's input.
        per: ``"example"`` or ``"token"`` (of ``(N, T, D)``) for a value each, in the columns ``example`` and ``token``,
            in place of one for the whole batch; a single token has no rank.
        features: Which dimension holds the features; by default the last of ``(N, D)`` and ``(N, T, D)``, the second of
            ``(N, C, H, W)``. Networks that keep images as (N, H, W, C) (Swin) want -1. All dimensions but this one and
            the first are positions.

    Returns:
        Columns ``block``, ``depth``, ``quantity``, ``value``, with the quantities

        - ``rms``: root mean square of the fork's elements;
        - ``variance_ratio``: variance of the branch's addend over that of the shortcut's, as they are added, each over
          all elements. At initialisation it is 1 / l at the l-th junction of a network with normalised branches of
          one variance, that of the stream's beginning (De and Smith 2020, arXiv:2002.10444). nan where the shortcut is
          constant, as where its weight is 0;
        - ``effective_rank``: exp of the entropy of the singular values, divided by their sum (Roy and Vetterli 2007,
          *The effective rank*), of the matrix X with a row for each token (of sequences), position (of images) or
          example (of vectors), and a column for each feature; not centred;
        - ``stable_rank``: ``|X|_F² / |X|_2²`` of the same matrix;
        - ``cosine``: the mean cosine between two different tokens of one sequence (positions of one image, examples of
          a batch of vectors), over all pairs, then over the examples; of a token that to the others of its sequence.
          Zero vectors are left out; nan where a sequence has fewer than two others.

        Where attention stands without shortcuts, the stable rank of a sequence falls to 1 and the cosine rises to 1
        (Dong et al. 2021, arXiv:2103.03404): the ranks of each sequence are those of ``per="example"``.

        Ranks are nan where X is 0 or not finite. Whatever describes the fork is nan where its value could not be kept:
        where no module takes or gives it, and its shortcut does not carry it.

        Ranks cost a decomposition in float64, about 2 m n² operations for a matrix m x n.

    Raises:
        ValueError: There is no junction, no tensor was kept, or an option is unknown.

    Example::

        with record(model, keep=True) as recording:
            model(images)
        stream_statistics(recording)
    """
    check_per(per, "stream_statistics")
    found: list[dict[str, object]] = []
    for site in recording.kept_sites("stream_statistics"):
        about: dict[str, object] = {"block": site.name, "depth": site.depth}
        for name, values in _statistics(site, per, features).items():
            found += rows(about, name, values)
    return table(found)


def _statistics(site: Site, per: Per | None, features: int | None) -> dict[str, Tensor]:
    fork = site.fork
    if fork is None:
        fork = site.shortcut * math.nan if isinstance(site, JunctionSite) else torch.full((1, 1), math.nan)
    parts = portions(fork, per, site.name)
    found = {"rms": norms(parts) / math.sqrt(parts.shape[-1])}
    if isinstance(site, JunctionSite):
        branch, shortcut = (_deviations(portions(addend, per, site.name)) for addend in (site.branch, site.shortcut))
        found["variance_ratio"] = torch.where(shortcut == 0, math.nan, (branch / shortcut).square())
    examples = _as_matrices(fork, feature_dimension(fork, features))
    if per is None:
        found["effective_rank"], found["stable_rank"] = _ranks(examples.flatten(0, 1))
    elif per == "example":
        ranks = [torch.stack(_ranks(matrix)) for matrix in examples]
        found["effective_rank"], found["stable_rank"] = torch.stack(ranks, dim=-1)
    vectors = fork.dim() < 3  # the examples of a batch are compared with each other
    similar = _mean_cosines(examples.transpose(0, 1) if vectors else examples)
    by_example = similar[0] if vectors else similar.nanmean(1)
    found["cosine"] = {None: by_example.nanmean(), "example": by_example, "token": similar}[per]
    return found


def _deviations(vectors: Tensor) -> Tensor:
    """A multiple of the standard deviations of vectors ``(..., values)``."""
    return norms(vectors - vectors.mean(-1, keepdim=True)) / math.sqrt(vectors.shape[-1])


def _as_matrices(tensor: Tensor, features: int) -> Tensor:
    """``(N, positions, features)`` in float64."""
    wide = tensor.detach().double()
    if wide.dim() < 2:
        wide = wide.reshape(1, -1)
    elif features % wide.dim() == 0:
        raise ValueError(
            f"features is {features}, and the stream is {tuple(tensor.shape)}: give one of its dimensions behind the "
            "first, which is that of the examples"
        )
    return wide.movedim(features, -1).reshape(len(wide), -1, wide.shape[features])


def _ranks(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Effective and stable rank of a matrix; nan where it is 0 or not finite."""
    largest = matrix.abs().max()
    if not largest.isfinite() or largest == 0:
        return torch.full_like(largest, math.nan), torch.full_like(largest, math.nan)
    matrix = matrix / largest
    if matrix.shape[0] > matrix.shape[1]:  # as exact, and cheaper, without the left factor
        matrix = torch.linalg.qr(matrix, mode="r").R
    sigma = torch.linalg.svdvals(matrix)
    shares = sigma / sigma.sum()
    return torch.exp(-torch.xlogy(shares, shares).sum()), sigma.square().sum() / sigma[0].square()


def _mean_cosines(sequences: Tensor) -> Tensor:
    """The mean cosine of each vector to the others of its sequence, (N, T, D) -> (N, T); nan of zero vectors."""
    sizes = norms(sequences)[..., None]
    units = torch.where(sizes == 0, 0.0, sequences / torch.where(sizes == 0, 1.0, sizes))
    present = (sizes[..., 0] != 0).double()
    others = present.sum(1, keepdim=True) - 1
    to_all = (units * units.sum(1, keepdim=True)).sum(-1)
    mean = (to_all - units.square().sum(-1)) / others
    return torch.where((present == 0) | (others < 1), math.nan, mean)
