"""`gradient_alignment` on angles done on paper, and against plain vectors of a network's two backwards."""

import math
from typing import Any

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import cifar_resnet
from probes import gate, gradient_alignment
from tests.support.networks import FLOAT64, images


def gradient(**parts: list[float]) -> dict[str, Tensor]:
    return {name.replace("_", "."): torch.tensor(part, dtype=FLOAT64) for name, part in parts.items()}


def numbers(table: pd.DataFrame) -> dict[Any, float]:
    """By block and quantity."""
    return table.set_index(["block", "quantity"])["value"].to_dict()


def test_angles_as_on_paper() -> None:
    """(3, 4) and (4, 3): 24 / 25. (1) and (-2): opposed. Together 22 / (√26 √29)."""
    table = gradient_alignment(gradient(w=[3, 4], v=[1]), gradient(w=[4, 3], v=[-2]))
    assert list(table.columns) == ["block", "quantity", "value"]
    assert table["block"].tolist() == ["w", "w", "v", "v", "total", "total"]
    assert table["quantity"].tolist() == ["cosine", "norm_ratio"] * 3
    wanted = [0.96, 1, -1, 2, 22 / math.sqrt(26 * 29), math.sqrt(29 / 26)]
    assert table["value"].tolist() == pytest.approx(wanted, rel=1e-14)


def test_blocks_are_modules_or_groups() -> None:
    a, b = gradient(x_w=[3], x_b=[4], xy_w=[2]), gradient(x_w=[4], x_b=[3], xy_w=[1])
    wanted = {("x", "cosine"): 0.96, ("x", "norm_ratio"): 1, ("xy", "cosine"): 1, ("xy", "norm_ratio"): 0.5}
    for blocks in (["x", "xy"], {"x": ["x.w", "x.b"], "xy": ("xy.w",)}):
        found = numbers(gradient_alignment(a, b, blocks=blocks))
        assert found.pop(("total", "cosine")) == pytest.approx(26 / math.sqrt(29 * 26), rel=1e-14)
        assert found.pop(("total", "norm_ratio")) == pytest.approx(math.sqrt(26 / 29), rel=1e-14)
        assert found == pytest.approx(wanted, rel=1e-14)
    assert set(gradient_alignment(a, b, blocks="x")["block"]) == {"x", "total"}
    assert set(gradient_alignment(a, b, blocks=["x.w"])["block"]) == {"x.w", "total"}


@pytest.mark.parametrize("blocks", [None, ["total"], {"total": ["v"]}], ids=["parameter", "module", "group"])
def test_a_block_that_is_called_total_is_refused(blocks: Any) -> None:
    a = gradient(total=[1], v=[2])
    with pytest.raises(ValueError, match="'total' is the row of all parameters: name it otherwise"):
        gradient_alignment(a, a, blocks=blocks)
    groups = {"sum": ["total"], "v": ["v"]}
    assert gradient_alignment(a, a, blocks=groups)["block"].unique().tolist() == ["sum", "v", "total"]


def test_zeros_have_no_angle() -> None:
    found = numbers(gradient_alignment(gradient(w=[0, 0], v=[1, 2], u=[1]), gradient(w=[1, 0], v=[0, 0], u=[2])))
    assert math.isnan(found["w", "cosine"])
    assert math.isnan(found["w", "norm_ratio"])
    assert math.isnan(found["v", "cosine"])
    assert found["v", "norm_ratio"] == 0
    assert found["total", "cosine"] == pytest.approx(2 / math.sqrt(6 * 5), rel=1e-14)


@pytest.mark.parametrize("scale", [1e-200, 1e-30, 1e30, 1e200])
def test_sizes_whose_squares_leave_the_range(scale: float) -> None:
    a, b = gradient(w=[3, 4], v=[1]), gradient(w=[4, 3], v=[-2])
    scaled = {name: part * scale for name, part in b.items()}
    wanted = numbers(gradient_alignment(a, b))
    found = numbers(gradient_alignment(a, scaled))
    for (block, quantity), value in wanted.items():
        times = scale if quantity == "norm_ratio" else 1
        assert found[block, quantity] == pytest.approx(value * times, rel=1e-12)


def two_gradients(dtype: torch.dtype) -> tuple[nn.Module, dict[str, Tensor], dict[str, Tensor]]:
    model, x = cifar_resnet(14, width=4).to(dtype), images(dtype=dtype)
    names = [name for name, _ in model.named_parameters()]
    with gate(model, shortcut_gradient=0.0):
        biased = torch.autograd.grad(F.cross_entropy(model(x), torch.arange(4)), list(model.parameters()))
    true = torch.autograd.grad(F.cross_entropy(model(x), torch.arange(4)), list(model.parameters()))
    return model, dict(zip(names, true, strict=True)), dict(zip(names, biased, strict=True))


@pytest.mark.parametrize("dtype", [FLOAT64, torch.float32])
def test_a_network_s_two_backwards_against_plain_vectors(dtype: torch.dtype) -> None:
    """Both in float64: sums in another order round at 1e-15."""
    _, true, biased = two_gradients(dtype)
    blocks = [f"layer{stage}.{index}" for stage in (1, 2, 3) for index in (0, 1)]
    found = numbers(gradient_alignment(true, biased, blocks=blocks))
    for block in [*blocks, "total"]:
        inside = [name for name in true if block == "total" or name.startswith(f"{block}.")]
        a, b = (torch.cat([part[name].flatten().double() for name in inside]) for part in (true, biased))
        assert found[block, "cosine"] == pytest.approx((a @ b / a.norm() / b.norm()).item(), rel=1e-12, abs=1e-14)
        assert found[block, "norm_ratio"] == pytest.approx((b.norm() / a.norm()).item(), rel=1e-12)
    assert found["layer3.1", "cosine"] == pytest.approx(1, rel=1e-6), "nothing is above the last block's own shortcut"
    assert found["layer1.0", "cosine"] < 0.9


def test_a_gradient_is_parallel_to_itself() -> None:
    _, true, _ = two_gradients(FLOAT64)
    twice = {name: 2 * part for name, part in true.items()}
    table = gradient_alignment(true, twice)
    cosines = table[table["quantity"] == "cosine"]["value"].dropna()
    assert cosines.tolist() == pytest.approx([1] * len(cosines), rel=1e-12)


def test_errors_say_what_to_do() -> None:
    a = gradient(w=[3, 4], v=[1])
    with pytest.raises(ValueError, match=r"different parameters: \['u', 'v'\] are in one alone; give both of the same"):
        gradient_alignment(a, gradient(w=[1, 2], u=[1]))
    with pytest.raises(ValueError, match=r"gradients of 'w' have the shapes \(2,\) and \(1,\): give gradients of the"):
        gradient_alignment(a, gradient(w=[1], v=[1]))
    with pytest.raises(TypeError, match=r"gradient of 'v' is a NoneType: give a tensor, torch.zeros_like"):
        gradient_alignment(a, {**a, "v": None})  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="there is no gradient"):
        gradient_alignment({}, {})
    with pytest.raises(ValueError, match=r"block 'x' holds no parameter: give names .* of w, v"):
        gradient_alignment(a, a, blocks=["x"])
    with pytest.raises(ValueError, match=r"block 'x' holds unknown \['y'\]"):
        gradient_alignment(a, a, blocks={"x": ["w", "y"]})
