"""Cases that a reviewer's odd networks brought up."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from probes import find_junctions, gate, gradient_norms, record, scale_gradient
from tests.support.networks import FLOAT64, Apply, Residual, network, relative_error


def in_place(shortcut_gradient: float | None) -> Callable[[nn.Module, Tensor], Tensor]:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        h = self.get_submodule("a")(x).relu()
        y = self.get_submodule("b")(h)  # a view, where x has three dimensions
        y += h if shortcut_gradient is None else scale_gradient(h, shortcut_gradient)
        return y

    return forward


@pytest.mark.parametrize("shape", [(2, 4), (2, 3, 4)])
def test_an_in_place_add_into_a_view_is_seen_and_gated(shape: tuple[int, ...]) -> None:
    layers = {name: nn.Linear(4, 4).to(FLOAT64) for name in "ab"}
    x = torch.randn(shape, dtype=FLOAT64)
    model, by_hand = Apply(in_place(None), **layers), Apply(in_place(0.3), **layers)
    assert [junction.shortcut for junction in find_junctions(model, x)] == ["identity"]
    wanted = torch.autograd.grad(by_hand(x).square().sum(), list(by_hand.parameters()))
    with gate(model, shortcut_gradient=0.3):
        out = model(x)
    assert torch.equal(out, by_hand(x))
    got = torch.autograd.grad(out.square().sum(), list(model.parameters()))
    for mine, theirs in zip(got, wanted, strict=True):
        assert relative_error(mine, theirs) < 1e-14  # a few roundings


def test_a_constant_that_is_added_to_the_shortcut_leaves_it_an_identity() -> None:
    model = Apply(lambda self, x: sum([x, self.get_submodule("f")(x)]), f=nn.Linear(3, 3))
    assert [junction.shortcut for junction in find_junctions(model, torch.randn(2, 3))] == ["identity"]


def test_a_long_product_of_a_tensor_with_itself_is_walked_once() -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        h = x
        for _ in range(40):  # 2 ** 40 ways back
            h = h * h
        return h + self.get_submodule("f")(h)

    assert len(find_junctions(Apply(forward, f=nn.Linear(3, 3)), torch.rand(2, 3))) == 1


def test_a_block_in_another_thread_is_refused() -> None:
    def forward(self: nn.Module, x: Tensor) -> Any:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(self.get_submodule("block"), x).result()

    with pytest.raises(RuntimeError, match="'block' runs in a thread of its own"):
        find_junctions(Apply(forward, block=Residual(nn.Linear(3, 3))), torch.randn(2, 3))


def test_a_whole_model_checkpointed_from_outside_is_recorded_each_time() -> None:
    model, x = network().eval(), torch.randn(4, 3)
    with record(model) as recording:
        model(x).square().sum().backward()
    wanted = gradient_norms(recording)
    for _ in range(2):
        with record(model) as recording:
            outputs: Any = checkpoint(model, x, use_reentrant=False)
            outputs.square().sum().backward()
        assert gradient_norms(recording).equals(wanted)
