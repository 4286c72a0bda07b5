"""Norms and cosines that neither underflow nor overflow on the way, in as few passes through memory as they need.

On a CPU they are taken in the tensors' own precision (at least float32), and again in float64 where a norm is so small
or so large that squares may have left that precision's range. On a device they are taken in float64 at once, and stay
there: nothing waits for them. All are float64, without dimensions.
"""

import math
import warnings
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

SAFE = (1e-12, 1e12)  # float32 squares lose digits below about 1e-19 an element, and overflow above 1e19
RUN = 2**16  # elements a thread: a few such runs stay in a core's cache, and float32 sums of them round at about 1e-7


def norm(tensor: Tensor) -> Tensor:
    """The L2 norm over all elements."""
    if tensor.device.type != "cpu":
        return torch.linalg.vector_norm(tensor, dtype=torch.float64)
    return _numbers(_root(sum(_product(x, x) for (x,) in _runs(tensor)), tensor))[0]


def norms_and_cosine(a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
    """The norms of two tensors of one shape, and the cosine between them: nan where one is zero."""
    if a.device.type != "cpu":
        size_a, size_b = norm(a), norm(b)
        return size_a, size_b, _dot(a.flatten(), b.flatten()).double() / size_a / size_b
    squares_a = squares_b = product = 0.0
    for x, y in _runs(a, b):
        squares_a += _product(x, x)
        squares_b += _product(y, y)
        product += _product(x, y)
    size_a, size_b = _root(squares_a, a), _root(squares_b, b)
    if not (size_a and size_b):
        cosine = math.nan
    elif SAFE[0] < min(size_a, size_b) and max(size_a, size_b) < SAFE[1]:
        cosine = product / size_a / size_b
    else:
        cosine = inner(a.double() / size_a, b.double() / size_b)
    return _numbers(size_a, size_b, cosine)


def norms_and_rest(total: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
    """The norms of three tensors of one shape and of what is left, total - (a + b): exactly 0 where that is equal."""
    if total.device.type != "cpu":
        whole = a + b
        rest = (total - whole).masked_fill_(total == whole, 0)  # inf - inf is nan
        return norm(total), norm(a), norm(b), norm(rest)
    squares, equal = [0.0, 0.0, 0.0], True
    for run in _runs(total, a, b):
        squares = [square + _product(x, x) for square, x in zip(squares, run, strict=True)]
        equal = equal and not (run[1] + run[2]).ne_(run[0]).sum().item()  # half of the time of torch.equal
    rest = 0.0 if equal else norm(total - (a + b)).item()
    return _numbers(*map(_root, squares, (total, a, b)), rest)


def scaled_norm(tensor: Tensor) -> float:
    """The L2 norm in float64, divided by the largest element first: right over float64's whole range."""
    ends = tensor.detach().aminmax() if tensor.numel() else ()  # a fifth of the time of the norm of order inf
    largest = max((abs(end.item()) for end in ends), default=0.0)
    if largest == 0 or not math.isfinite(largest):
        return largest
    return largest * torch.linalg.vector_norm(tensor.detach().cpu().double() / largest).item()


def inner(a: Tensor, b: Tensor) -> float:
    """The inner product of two tensors of one shape, summed in float64."""
    return (a.cpu().double() * b.cpu().double()).sum().item()


def gram(
    a: Sequence[Sequence[Tensor]], b: Sequence[Sequence[Tensor]] | None = None, *, centred: bool = False
) -> tuple[Tensor, int]:
    """The inner products of vectors in float64, (len(a), len(b)), and e: they are in units of 2 ** e, which keeps them
    in range. Each vector is a list of tensors, its parts. Without b: of a with itself, exactly symmetric. centred: of
    what each differs by from its side's mean; exactly 0 where all are equal."""
    sides = [a] if b is None else [a, b]
    units = [unit(vectors) for vectors in sides]
    total = torch.zeros(len(a), len(sides[-1]), dtype=torch.float64)
    for part in range(len(a[0])):
        for start in range(0, a[0][part].numel(), RUN):
            rows = [
                torch.stack([v[part].reshape(-1)[start : start + RUN] for v in vectors])
                .cpu()
                .double()
                .mul_(2.0**-power)
                for vectors, power in zip(sides, units, strict=True)
            ]
            if centred:
                rows = [side - side[0] for side in rows]
                rows = [side - side.mean(0) for side in rows]
            total += rows[0] @ rows[-1].T
    return ((total + total.T) / 2, 2 * units[0]) if b is None else (total, sum(units))


def times_power(number: float, exponent: int, caller: str) -> float:
    """number * 2 ** exponent; inf or 0 where float64 ends, with a warning."""
    try:
        value = math.ldexp(number, exponent)
    except OverflowError:
        value = math.copysign(math.inf, number)
    if math.isfinite(number) and (math.isinf(value) or bool(number) != bool(value)):
        warnings.warn(
            f"{caller}: {number:.3g} * 2**{exponent} is outside of float64's range and given as {value}",
            RuntimeWarning,
            stacklevel=3,
        )
    return value


def unit(vectors: Sequence[Sequence[Tensor]]) -> int:
    """The power of 2 near the largest element; 0 where all are zero or one is not finite."""
    ends = [part.detach().aminmax() for vector in vectors for part in vector if part.numel()]
    largest = max((abs(end.item()) for pair in ends for end in pair), default=0.0)
    return max(-1000, min(1000, math.frexp(largest)[1])) if 0 < largest < math.inf else 0


def _runs(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Tensors of one shape side by side, a run of elements at a time, in the order in which the first lies in memory.

    What is computed of a run finds it in the cache: elements come from memory once, however many sums they enter.
    """
    if not tensors[0].is_contiguous():
        order = sorted(range(tensors[0].dim()), key=tensors[0].stride, reverse=True)
        tensors = tuple(x.permute(order) for x in tensors)
    flat = tuple(x.reshape(-1) for x in tensors)
    length = RUN * torch.get_num_threads()
    return zip(*(x.split(length) for x in flat), strict=True) if flat[0].numel() > length else iter([flat])


def _product(x: Tensor, y: Tensor) -> float:
    return _dot(x, y).item()


def _dot(x: Tensor, y: Tensor) -> Tensor:
    wide = torch.float64 if torch.float64 in (x.dtype, y.dtype) else torch.float32  # a sum may be of both
    return torch.dot(x.to(wide), y.to(wide))


def _root(squares: float, tensor: Tensor) -> float:
    """The norm of a tensor from the sum of its squares, if that can be trusted."""
    value = math.sqrt(squares)
    return value if SAFE[0] < value < SAFE[1] else scaled_norm(tensor)


def _numbers(*values: float) -> tuple[Tensor, ...]:
    return torch.tensor(values, dtype=torch.float64).unbind()
