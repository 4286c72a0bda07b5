"""Norms in one pass: float32's digits over millions of elements, any layout, and a rest distinct from rounding."""

import math

import pytest
import torch
from torch import Tensor

from probes.norms import RUN, norm, norms_and_cosine, norms_and_rest, scaled_norm

LAYOUTS = {
    "contiguous": lambda x: x,
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "a slice": lambda x: torch.stack([x, x], dim=-1)[..., 0],
    "transposed": lambda x: x.transpose(0, 3).contiguous().transpose(0, 3),
}


def tensors(count: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> list[Tensor]:
    """Tensors of several runs, the last one short."""
    generator = torch.Generator().manual_seed(0)
    shape = (torch.get_num_threads() * 3, 16, 64, 65)
    found = [(torch.randn(shape, generator=generator) * scale).to(dtype) for _ in range(count)]
    assert found[0].numel() > 2 * RUN * torch.get_num_threads()
    return found


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("scale", [1e-40, 1e-25, 1e-6, 1.0, 1e25])
def test_norms_and_cosines_are_float64_s(dtype: torch.dtype, scale: float) -> None:
    a, b = tensors(2, dtype, scale)
    b = (a + b / 2).to(dtype)
    wanted = [scaled_norm(a), scaled_norm(b)]
    got = [x.item() for x in norms_and_cosine(a, b)]
    assert norm(a).item() == got[0]
    # Float32 sums of 65536 squares, in lanes as wide as the processor has: squares of numbers of few digits
    # round to one side, at most a thousand times in a lane by 6e-8, mostly a hundredth of that.
    half = dtype in (torch.bfloat16, torch.float16)
    assert got[:2] == pytest.approx(wanted, rel=1e-5 if half else 1e-6, abs=0, nan_ok=True)
    if min(wanted) > 0 and max(wanted) < math.inf:
        product = (a.double() / wanted[0] * (b.double() / wanted[1])).sum().item()
        assert got[2] == pytest.approx(product, rel=1e-5 if half else 3e-6)
    else:
        assert math.isnan(got[2])


@pytest.mark.parametrize("first", LAYOUTS)
@pytest.mark.parametrize("second", LAYOUTS)
def test_layouts_do_not_matter(first: str, second: str) -> None:
    a, b = tensors(2, torch.float64)
    c, d = LAYOUTS[first](a), LAYOUTS[second](b)
    assert torch.stack(norms_and_cosine(c, d)).tolist() == pytest.approx(
        torch.stack(norms_and_cosine(a, b)).tolist(), rel=1e-13
    )
    assert [x.item() for x in norms_and_rest(c + d, c, d)][1:] == [norm(c).item(), pytest.approx(norm(b).item()), 0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("scale", [1e-30, 1.0])
@pytest.mark.parametrize("index", [0, -1])
def test_one_element_that_is_off_by_its_last_digit_is_a_rest(dtype: torch.dtype, scale: float, index: int) -> None:
    a, b = tensors(2, dtype, scale)
    total = a + b
    assert norms_and_rest(total, a, b)[3].item() == 0
    element = total.view(-1)[index]
    element.copy_(torch.nextafter(element, torch.tensor(math.inf, dtype=dtype)))
    wanted = (total - (a + b)).double().abs().max().item()
    assert norms_and_rest(total, a, b)[3].item() == pytest.approx(wanted, rel=1e-7, abs=0)
    assert wanted > 0


def test_operands_are_left_as_they_were() -> None:
    a, b = tensors(2)
    kept = a.clone(), b.clone()
    norms_and_rest(a + b, a, b)
    norms_and_rest(a, a, torch.zeros(()).expand_as(a))
    assert torch.equal(a, kept[0])
    assert torch.equal(b, kept[1])


def test_what_is_not_finite() -> None:
    one, inf, nan = (torch.tensor([1.0, value]) for value in (1.0, math.inf, math.nan))
    assert [x.item() for x in norms_and_rest(inf + one, inf, one)][::3] == [math.inf, 0]
    assert [math.isnan(x.item()) for x in norms_and_rest(nan + one, nan, one)] == [True, True, False, True]
    assert math.isnan(norms_and_cosine(inf, one)[2].item())


@pytest.mark.parametrize("shape", [(), (0,), (2, 0, 3), (1,)])
def test_small_shapes(shape: tuple[int, ...]) -> None:
    a = torch.full(shape, 3.0)
    size = 3.0 * math.sqrt(a.numel())
    assert [x.item() for x in norms_and_rest(2 * a, a, a)] == [2 * size, size, size, 0]


def test_nothing_waits_for_a_device() -> None:
    """Tensors on the meta device have no values: whoever asks for one gets an error."""
    a = torch.empty(2, 3, 4, 5, device="meta")
    found = (norm(a), *norms_and_cosine(a, a), *norms_and_rest(a, a, a))
    assert {(x.device.type, x.dtype, x.dim()) for x in found} == {("meta", torch.float64, 0)}


def test_the_addends_of_a_sum_may_differ_in_precision() -> None:
    """A stream that is kept in float32 beside a branch in float64."""
    a, b = tensors(2, torch.float64)
    wanted = torch.stack(norms_and_cosine(a, b)).tolist()
    for pair in ((a, b.float()), (a.float(), b)):
        assert torch.stack(norms_and_cosine(*pair)).tolist() == pytest.approx(wanted, rel=1e-6, abs=1e-7)
