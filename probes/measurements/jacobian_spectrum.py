"""How far is the Jacobian of a block, a stage or the whole stream from an isometry?"""

import math
from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any, get_args

import pandas as pd
import torch
from torch import Tensor, nn

from ..gradients.jacobians import Jacobian, Span, linearised
from ..norms import gram, scaled_norm, times_power
from ..tables import table

QUANTITIES = ("mean_square", "spread", "largest", "smallest", "condition", "distance")
EXACT = 512  # dimensions up to which a Jacobian is written out


def jacobian_spectrum(
    model: nn.Module,
    *inputs: Any,
    of: Span = "blocks",
    blocks: Sequence[nn.Module] | None = None,
    probes: int = 32,
    seed: int = 0,
    **kwargs: Any,
) -> pd.DataFrame:
    r"""The singular values of the Jacobians of blocks, stages or the whole stream, in few numbers.

    A network is well conditioned (*dynamical isometry*) where all singular values of its Jacobian are near 1: then
    every gradient keeps its norm on the way back (Saxe et al. 2014, arXiv:1312.6120; Pennington et al. 2017,
    arXiv:1711.04735; Xiao et al. 2018, arXiv:1806.05393).

    The Jacobian J of a block y = act(shortcut(x) + branch(x)) leads from its fork x to the next junction's fork, so
    that the activation behind the sum counts, and whatever else lies between two blocks. Where no fork follows that is
    made from the sum, it leads to the output of the module that adds, or to the sum itself if that module is the whole
    model, gives no tensor, or gives one that is not made from the sum. What goes around the sum does not count.

    It is the map that the *backward* applies, known by its vector-Jacobian products: the weights of a ``gate`` or of a
    network's gradient count as they stand, and a network whose backward is not its forward's derivative has the
    Jacobian of its backward. It is that of the whole batch tensor, whose axis counts as a dimension: in train mode
    BatchNorm couples the images of a batch.

    The model runs once, in the mode that it is in, with gradients enabled also inside ``torch.no_grad``. Buffers
    (BatchNorm's statistics), random state and ``.grad`` stay as they are.

    Args:
        model: Any module; it is not changed.
        inputs: The forward's positional arguments.
        of: ``"blocks"``, each by itself; ``"stages"``, products of consecutive blocks whose sums have one shape (the
            first axis, of the batch, aside); or ``"stream"``, the product of all, from the first fork to the end of the
            last block. What lies beside the way between (an auxiliary head) does not matter.
        blocks: For networks without junctions, the modules of ``model`` that count as blocks, each from its (first)
            input to its output. For stages and stream, what lies between two of them counts too.
        probes: Random vectors for each Jacobian of more than 512 dimensions, at least 2. It takes a backward of
            activations for each, and the memory of as many ends and forks.
        seed: Of these vectors, which are the same for all Jacobians of one size.
        kwargs: The forward's keyword arguments.

    Returns:
        Columns ``block`` (the junction's name, or ``"layer1.0 to layer1.8"``), ``depth`` (of the first junction, from
        0), ``quantity``, ``value``. For J from n_in to n_out numbers, with n = min(n_in, n_out) singular values σ:

        - ``mean_square``: mean σ² = ``|J|_F²`` / n;
        - ``spread``: mean σ⁴ / (mean σ²)²: 1 for a multiple of an isometry, n where one direction is left;
        - ``largest``, ``smallest``: σ;
        - ``condition``: largest / smallest, inf where smallest is 0;
        - ``distance``: ``|J - I|_F`` / √n where both ends have one shape, otherwise nan.

        Up to 512 dimensions (n_in and n_out) J is written out, a backward a row, and all are exact. The model's own
        rounding remains: of the largest singular value, what is below 1e-7 (in float32) or 1e-16 (float64) is noise.

        Beyond, ``largest``, ``smallest`` and ``condition`` are nan, and the others are estimates from k = ``probes``
        vectors u, uniform on the sphere of radius √n_out. ``mean_square`` and the square of ``distance`` are means of
        ``|J^T u|²`` and ``|J^T u - u|²``, without bias. For ``spread``, tr((J J^T - cI)²) with c = tr(J J^T) / n_out is
        the mean of (u_i^T (J J^T - cI) u_j)² over pairs of vectors, and it is divided by the like mean of
        ``|J^T u_i|²`` ``|J^T u_j|²``. The standard error is about √(2 (spread - 1) / (n k)) of ``mean_square`` and
        2 / k of (spread - 1), for n_out <= n_in (otherwise n / n_out in place of 1), with a bias of that first error
        squared; more where few directions dominate (a spread near n). Multiples of isometries are exact.

        Products are rescaled between blocks, so that no stream is too deep. nan where J is not finite; ``spread`` is
        nan where J is 0.

    Raises:
        ValueError: There are no junctions, the junctions are no chain (for stages and stream), a block is no part of
            the model or cannot be differentiated, an option is unknown, or the model runs under ``limit_paths``.
        TypeError: A block's output is no tensor.
        RuntimeError: The model hides its adds (compiled, exported, replicated, with reentrant checkpointing).

    Warns:
        RuntimeWarning: A number is too large or too small for float64, and given as inf or 0.

    Example::

        jacobian_spectrum(model, images, of="stages")
    """
    if of not in get_args(Span):
        raise ValueError(f'jacobian_spectrum: of is {of!r}: give "blocks", "stages" or "stream"')
    for name, number, least in (("probes", probes, 2), ("seed", seed, 0)):
        if not isinstance(number, int) or number < least:
            raise ValueError(f"jacobian_spectrum: {name} is {number!r}: give a whole number of at least {least}")
    vectors = lru_cache(maxsize=1)(partial(_Vectors, probes, seed))  # consecutive blocks are of one size, mostly
    rows: list[dict[str, object]] = []
    with linearised(model, inputs, kwargs, blocks=blocks, of=of) as jacobians:
        for jacobian in jacobians:
            exact = max(jacobian.n_in, jacobian.n_out) <= EXACT
            found = (
                _exact(jacobian)
                if exact
                else _estimated(jacobian, vectors(jacobian.n_out, jacobian.device, jacobian.dtype))
            )
            rows += [
                {"block": jacobian.name, "depth": jacobian.depth, "quantity": name, "value": value}
                for name, value in found.items()
            ]
    return table(rows)


def _exact(jacobian: Jacobian) -> dict[str, float]:
    identity = list(torch.eye(jacobian.n_out, dtype=torch.float64))
    products = _Products(jacobian, identity)
    rows, exponent = products.relative(), products.exponent
    if not rows.isfinite().all():
        return dict.fromkeys(QUANTITIES, math.nan)
    sigma = torch.linalg.svdvals(rows)
    largest, smallest = sigma[0].item(), sigma[-1].item()
    shares = (sigma / largest).square()  # in units of the largest: fourth powers stay in range
    return {
        "mean_square": times_power(sigma.square().mean().item(), 2 * exponent, "jacobian_spectrum"),
        "spread": (shares.square().mean() / shares.mean().square()).item(),
        "largest": times_power(largest, exponent, "jacobian_spectrum"),
        "smallest": times_power(smallest, exponent, "jacobian_spectrum"),
        "condition": largest / smallest if smallest else math.inf,
        "distance": products.distance(),
    }


def _estimated(jacobian: Jacobian, vectors: "_Vectors") -> dict[str, float]:
    n_out, least = jacobian.n_out, min(jacobian.n_in, jacobian.n_out)
    products = _Products(jacobian, vectors.tensors)
    gram = products.gram()  # u_i^T A u_j, of A = J J^T
    if not gram.isfinite().all():
        return dict.fromkeys(QUANTITIES, math.nan)
    squares, pairs = gram.diagonal(), ~torch.eye(len(gram), dtype=torch.bool)
    trace, trace_squared = squares.mean(), torch.outer(squares, squares)[pairs].mean()
    rest = (gram - trace / n_out * vectors.gram)[pairs].square().mean()  # tr(A²) - tr(A)² / n_out
    return dict.fromkeys(QUANTITIES, math.nan) | {
        "mean_square": times_power(trace.item() / least, 2 * products.exponent, "jacobian_spectrum"),
        "spread": least * (1 / n_out + rest / trace_squared).item(),
        "distance": products.distance(),
    }


class _Vectors:
    """Random vectors of length √n: like Gaussian ones E uu^T = I, but an isometry's products have no variance."""

    def __init__(self, count: int, seed: int, dimensions: int, device: torch.device, dtype: torch.dtype) -> None:
        generator, length = torch.Generator().manual_seed(seed), math.sqrt(dimensions)
        drawn = (torch.randn(dimensions, generator=generator, dtype=torch.float64) for _ in range(count))
        self.tensors = [(u * (length / u.norm())).to(device, dtype) for u in drawn]
        products, exponent = gram([[u] for u in self.tensors])
        self.gram = products * 2.0**exponent


class _Products:
    """The products J^T u with some vectors u, each a tensor times a power of 2."""

    def __init__(self, jacobian: Jacobian, vectors: Sequence[Tensor]) -> None:
        self.vectors = vectors
        self.square = jacobian.shape_in == jacobian.shape_out
        self.tensors, self.powers = zip(*map(jacobian.pull_back, vectors), strict=True)
        self.exponent: int = max(
            (power for w, power in zip(self.tensors, self.powers, strict=True) if w.any()), default=0
        )

    def factors(self, unit: int) -> list[float]:
        """What the tensors are multiplied by to be products in units of 2 ** unit, which is no less than `exponent`."""
        return [2.0 ** min(power - unit, 0) for power in self.powers]

    def relative(self) -> Tensor:
        """The products as rows, in units of 2 ** exponent."""
        return torch.stack([_wide(w) * f for w, f in zip(self.tensors, self.factors(self.exponent), strict=True)])

    def gram(self) -> Tensor:
        """Their inner products, in units of 2 ** (2 exponent)."""
        products, exponent = gram([[w] for w in self.tensors])  # near 1 each
        factors = torch.tensor(self.factors(self.exponent), dtype=torch.float64)
        return products * 2.0**exponent * torch.outer(factors, factors)

    def distance(self) -> float:
        """The root of the mean |J^T u - u|² over that of the mean |u|²; nan unless both ends have one shape."""
        if not self.square:
            return math.nan
        unit = max(self.exponent, 0)
        triples = zip(self.tensors, self.factors(unit), self.vectors, strict=True)
        norms = [scaled_norm(_wide(w) * factor - _wide(u) * 2.0**-unit) for w, factor, u in triples]
        return times_power(math.hypot(*norms) / math.hypot(*map(scaled_norm, self.vectors)), unit, "jacobian_spectrum")


def _wide(tensor: Tensor) -> Tensor:
    return tensor.cpu().double()
