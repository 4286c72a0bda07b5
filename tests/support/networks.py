"""Small networks, and the few measures, that several tests share."""

import copy
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack

from probes import Recording, record

FLOAT64 = torch.float64


class Residual(nn.Module):
    """x + branch(x), and nothing else."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


class Apply(nn.Module):
    """A module from a function of (itself, x), its parts given by name."""

    def __init__(self, function: Callable[..., object], **parts: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> object:
        return self.function(self, x)


def linear(weight: Sequence[Sequence[float]] | float) -> nn.Linear:
    """A linear map without bias whose (out, in) matrix is written down, in float64."""
    matrix = torch.tensor(weight, dtype=FLOAT64).reshape(1, 1) if isinstance(weight, float) else torch.tensor(weight)
    layer = nn.Linear(*matrix.shape[::-1], bias=False, dtype=FLOAT64)
    layer.weight.data.copy_(matrix)
    return layer


def perceptron(width: int = 3, *, dtype: torch.dtype = FLOAT64) -> nn.Sequential:
    """Two linear layers and a tanh between them: a branch that can be differentiated everywhere."""
    return nn.Sequential(nn.Linear(width, width, dtype=dtype), nn.Tanh(), nn.Linear(width, width, dtype=dtype))


def chain(depth: int, width: int = 3, *, dtype: torch.dtype = FLOAT64) -> nn.Sequential:
    return nn.Sequential(*(Residual(perceptron(width, dtype=dtype)) for _ in range(depth)))


def scalars(*weights: float) -> nn.Sequential:
    """Blocks x + w x, without an activation; by default of weights 2, 3, 5."""
    return nn.Sequential(*(Residual(linear(weight)) for weight in weights or (2.0, 3.0, 5.0)))


def one() -> Tensor:
    return torch.ones(1, 1, dtype=FLOAT64)


def squares(outputs: Tensor) -> Tensor:
    return outputs.square().sum()


def recorded(model: nn.Module, x: Tensor, loss: Callable[[Any], Tensor] = torch.sum, **options: Any) -> Recording:
    """Of a forward and the backward of a loss of its outputs, under `record`'s options; the graph is kept."""
    with record(model, **options) as recording:
        loss(model(x)).backward(retain_graph=True)
    return recording


def dense(out: int = 4) -> nn.Linear:
    return nn.Linear(4, out, dtype=FLOAT64)


def block_of(function: Callable[..., object]) -> Apply:
    """A block of width 4, from a function of (itself, x): with two linear maps f and g, and the identity i."""
    return Apply(function, f=dense(), g=dense(), i=nn.Identity())


def rows() -> Tensor:
    """A batch for blocks of width 4."""
    return torch.randn(5, 4, dtype=FLOAT64)


def images(count: int = 4, size: int = 8, *, dtype: torch.dtype = FLOAT64) -> Tensor:
    return torch.randn(count, 3, size, size, dtype=dtype)


def gradients_at(
    model: nn.Module, names: Sequence[str], x: Tensor, loss: Callable[[Tensor], Tensor]
) -> tuple[Tensor, ...]:
    """What autograd itself says of the gradient at these modules' inputs; taken of a copy, as BatchNorm changes."""
    twin, inputs = copy.deepcopy(model), []
    for name in names:
        twin.get_submodule(name).register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    return torch.autograd.grad(loss(twin(x.detach().requires_grad_())), inputs)


def relative_error(got: Tensor, wanted: Tensor) -> float:
    return ((got - wanted).norm() / wanted.norm()).item()


def values(table: pd.DataFrame, quantity: str) -> list[float]:
    """One quantity of a probe's table, in the table's order."""
    return table.loc[table["quantity"] == quantity, "value"].tolist()


HOOKS = (
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs", "_backward_hooks", "_backward_pre_hooks",
)  # fmt: skip


def visible(model: nn.Module) -> dict[str, Any]:
    """Everything on a model's modules and parameters that a guest might leave behind."""
    return {
        f"{name}.{key}": list(value) if key in HOOKS else id(value)
        for name, module in model.named_modules()
        for key, value in vars(module).items()
    } | {name: (p.requires_grad, id(p.grad), p._backward_hooks) for name, p in model.named_parameters()}


@contextmanager
def left_as_it_was(model: nn.Module) -> Iterator[None]:
    before = visible(model)
    yield
    assert visible(model) == before
    assert _get_current_function_mode_stack() == []
    assert torch.is_grad_enabled()


class Tag(nn.Module):
    """The identity, which keeps a weak eye on the newest graph that went through it."""

    newest: weakref.ref[nn.Module]

    def forward(self, x: Tensor) -> Tensor:
        x = x.clone()
        node: Any = x.grad_fn
        node.metadata["tag"] = token = nn.Module()  # dies with the node
        self.newest = weakref.ref(token)
        return x


class Raising(nn.Module):
    """Raises an error in its forward while `armed`."""

    def __init__(self, error: type[BaseException] = ZeroDivisionError) -> None:
        super().__init__()
        self.error, self.armed = error, True

    def forward(self, x: Tensor) -> Tensor:
        if self.armed:
            raise self.error
        return x


def branch(*inner: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), *inner, nn.Dropout(0.3), nn.Linear(3, 3))


def network(*inner: nn.Module) -> nn.Sequential:
    """Three residual blocks with statistics and randomness, the second of which may hold more."""
    return nn.Sequential(Residual(branch()), Residual(branch(*inner)), Residual(branch()))


class RaisingBackward(torch.autograd.Function):
    """The identity, whose backward raises."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        raise ZeroDivisionError
