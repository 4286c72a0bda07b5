"""Residual streams of today, as their papers' code writes them, with the gate built in by hand.

Each body computes from (a model, an embedding, an `Arm`); under `ORDINARY` an arm's methods return what they are given,
so that the very same function is the untouched model and its edited copy.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models import Flow
from probes import scale_gradient
from tests.support.networks import FLOAT64

WIDTH, STREAMS = 6, 2


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH))


@dataclass
class Arm:
    """How the edited copy weights a junction: what an addend is made from, and the addend's value."""

    flow: Flow | None = None
    """None: the model as it is."""
    seen: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    """The addends, shortcut and branch, that the body has noted."""

    def note(self, shortcut: Tensor, branch: Tensor) -> None:
        """The addends of the next junction."""
        self.seen.append((shortcut.detach(), branch.detach()))

    def for_shortcut(self, x: Tensor) -> Tensor:
        """The fork, as the shortcut uses it."""
        return x if self.flow is None else _fork(x, self.flow.shortcut, self.flow.shortcut_gradient)

    def for_branch(self, x: Tensor) -> Tensor:
        """The fork, as the branch uses it."""
        return x if self.flow is None else _fork(x, self.flow.branch, self.flow.branch_gradient)

    def shortcut(self, x: Tensor) -> Tensor:
        """What the shortcut adds."""
        return x if self.flow is None else _addend(x, self.flow.shortcut, self.flow.shortcut_gradient)

    def branch(self, x: Tensor) -> Tensor:
        """What the branch adds."""
        return x if self.flow is None else _addend(x, self.flow.branch, self.flow.branch_gradient)

    def stack(self, x: Tensor, dimension: int = 0) -> Tensor:
        """A stack's tensors as they are summed: the last is what the branch adds."""
        last = x.shape[dimension] - 1
        if self.flow is None or last == 0:
            return x
        parts = self.shortcut(x.narrow(dimension, 0, last)), self.branch(x.narrow(dimension, last, 1))
        return torch.cat(parts, dimension)


def _fork(x: Tensor, value: float, gradient: float) -> Tensor:
    """Relative to the gradient that an addend passes on, which is the value's, or at value 0 the whole."""
    return x if gradient == value else scale_gradient(x, gradient / (value or 1.0))


def _addend(x: Tensor, value: float, gradient: float) -> Tensor:
    return scale_gradient(x, 1.0 if value == 0 and gradient else value, value=value)


class StreamModel(nn.Module):
    """An embedding, a body and a head: (N, T) -> (N, T, 2)."""

    def __init__(self, body: Callable[["StreamModel", Tensor, Arm], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.arm, self.checkpointed = body, Arm(), False
        self.tokens, self.head = nn.Embedding(11, WIDTH), nn.Linear(WIDTH, 2)
        self.f, self.g, self.h, self.v, self.o = mlp(), mlp(), mlp(), mlp(), mlp()
        self.norm, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        shapes = {
            "gamma": (WIDTH,), "scale": (), "alpha": (STREAMS, STREAMS + 1), "beta": (STREAMS,),
            "mix": (STREAMS, STREAMS), "alpha_fn": (WIDTH, STREAMS + 1), "beta_fn": (WIDTH,),
            "phi": (STREAMS * WIDTH, 2 * STREAMS + STREAMS**2), "averages": (3, 3),
        }  # fmt: skip
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(0.5 * torch.randn(shape)))
        self.to(FLOAT64)

    def forward(self, tokens: Tensor) -> Tensor:
        self.arm.seen.clear()
        x = self.tokens(tokens)
        if self.checkpointed:
            return self.head(checkpoint(self.body, self, x, self.arm, use_reentrant=False))
        return self.head(self.body(self, x, self.arm))


def unit(x: Tensor) -> Tensor:
    return x / x.norm(p=2, dim=-1, keepdim=True)


def aten(m: Any, x: Tensor, arm: Arm) -> Tensor:
    for f in (m.f, m.g):
        branch = f(arm.for_branch(x))
        arm.note(x, 0.5 * branch)
        x = torch.ops.aten.add.Tensor(arm.shortcut(arm.for_shortcut(x)), arm.branch(branch), alpha=0.5)
    return x


def lerp(m: Any, x: Tensor, arm: Arm) -> Tensor:
    for f, weight in ((m.f, 0.3), (m.g, m.gamma)):
        branch = f(arm.for_branch(x))
        arm.note((1 - weight) * x, weight * branch)
        x = torch.lerp(arm.shortcut(arm.for_shortcut(x)), arm.branch(branch), weight)
    return x


def gated_lerp(m: Any, x: Tensor, arm: Arm) -> Tensor:
    """The gate is computed from x, and belongs to both addends: its gradient counts as the shortcut's."""
    for f in (m.f, m.g):
        branch, weight = f(arm.for_branch(x)), torch.sigmoid(m.h(arm.for_shortcut(x)))
        arm.note((1 - weight) * x, weight * branch)
        x = arm.shortcut(arm.for_shortcut(x)).lerp(arm.branch(branch), weight)
    return x


def addcmul(m: Any, x: Tensor, arm: Arm) -> Tensor:
    for f in (m.f, m.g):
        branch = f(arm.for_branch(x))
        arm.note(x, 2 * branch * m.gamma)
        x = torch.addcmul(arm.shortcut(arm.for_shortcut(x)), m.gamma, arm.branch(branch), value=2)
    return x


def ngpt(m: Any, x: Tensor, arm: Arm) -> Tensor:
    """nGPT (Loshchilov et al. 2024, arXiv 2410.01131), as its code has it: h + a (h_branch - h), all of norm 1."""
    x = unit(x)
    for f in (m.f, m.g):
        a, b, rate = unit(arm.for_shortcut(x)), unit(f(arm.for_branch(x))), m.gamma.abs()
        arm.note((1 - rate) * a, rate * b)
        a, b = arm.shortcut(a), arm.branch(b)
        x = unit(a + rate * (b - a))
    return x


def backwards_interpolation(m: Any, x: Tensor, arm: Arm) -> Tensor:
    """x - a (x - f(x)): the difference alone would be a junction."""
    for f in (m.f, m.g):
        a, b = arm.for_shortcut(x), f(arm.for_branch(x))
        arm.note(0.7 * a, 0.3 * b)
        a, b = arm.shortcut(a), arm.branch(b)
        x = a - 0.3 * (a - b)
    return x


def first_embedding(m: Any, x: Tensor, arm: Arm) -> Tensor:
    """The lambdas of modded-nanogpt: each block begins with a mixture of the stream and the first embedding."""
    first = m.norm(x)
    x = arm.for_branch(first)
    x = m.scale * x + m.gamma * x
    x = x + m.f(m.norm2(x))
    carried = m.gamma * arm.for_shortcut(first)
    x = arm.branch(m.scale * x) + arm.shortcut(carried)
    return x + m.g(m.norm2(x))


def u_net(m: Any, x: Tensor, arm: Arm) -> Tensor:
    """A transformer with long skips that are added (modded-nanogpt), last in, first out."""
    skips = []
    for f in (m.f, m.g):
        x = x + f(m.norm(x))
        skips.append(arm.for_shortcut(x))
        x = arm.for_branch(x)
    x = x + m.h(m.norm(x))
    for f in (m.v, m.o):
        x = arm.branch(x) + arm.shortcut(m.scale * skips.pop())
        x = x + f(m.norm2(x))
    return x


def denseformer(m: Any, x: Tensor, arm: Arm) -> Tensor:
    """DenseFormer (Pagliardini et al. 2024, arXiv 2402.02622): behind each block an average of all before, by depth."""
    before, x = [x], arm.for_branch(x)
    for index, f in enumerate((m.f, m.g)):
        new = x + f(m.norm(x))
        last = new if index else arm.for_branch(new)  # the fork of the next average
        stack = torch.stack([*map(arm.for_shortcut, before), last])
        x = torch.tensordot(m.averages[index, : len(stack)], arm.stack(stack), dims=1)
        before.append(new)
    return x


def attention_residuals(m: Any, x: Tensor, arm: Arm) -> Tensor:
    """Each layer reads a softmax over all earlier layers' outputs, by a learned query; the head their sum."""
    before = [x]
    for f in (m.f, m.g, m.h):
        values = torch.stack([*map(arm.for_shortcut, before[:-1]), arm.for_branch(before[-1])])
        scores = torch.einsum("d,nbtd->nbt", m.gamma, m.norm(values))
        x = torch.einsum("nbt,nbtd->btd", scores.softmax(0), arm.stack(values))
        before.append(f(m.norm2(x)))
    return arm.stack(torch.stack([*map(arm.for_shortcut, before[:-1]), before[-1]])).sum(0)


def mean_of_layers(m: Any, x: Tensor, arm: Arm) -> Tensor:
    """A scalar mixture of all layers of a plain network (Peters et al. 2018, arXiv 1802.05365)."""
    one = m.f(x)
    two = m.g(arm.for_branch(one))
    stack = arm.stack(torch.stack([arm.for_shortcut(x), arm.for_shortcut(one), two], dim=1), 1)
    return (stack * m.averages[0].softmax(0).view(-1, 1, 1)).sum(dim=1)


def hyper_connections(m: Any, x: Tensor, arm: Arm) -> Tensor:
    """Static hyper-connections (Zhu et al. 2024, arXiv 2409.19606): one matrix gives the input and the next streams."""
    streams = x.unsqueeze(2).expand(-1, -1, STREAMS, -1)
    for f in (m.f, m.g):
        mixed = m.alpha.t() @ streams
        written = torch.einsum("btd,n->btnd", f(m.norm(arm.for_branch(mixed)[..., 0, :])), m.beta)
        arm.note(mixed[..., 1:, :], written)
        streams = arm.branch(written) + arm.shortcut(arm.for_shortcut(mixed)[..., 1:, :])
    return streams.sum(2)


def separate_matrices(m: Any, x: Tensor, arm: Arm) -> Tensor:
    """Hyper-connections whose streams and whose branch's input come by matrices of their own."""
    streams = torch.stack([x, 0.5 * x])
    for f in (m.f, m.g):
        given = torch.einsum("s,sbtd->btd", m.beta, arm.for_branch(streams))
        written = torch.einsum("btd,s->sbtd", f(m.norm(given)), m.beta)
        carried = torch.einsum("sz,sbtd->zbtd", m.mix, arm.for_shortcut(streams))
        arm.note(carried, written)
        streams = arm.shortcut(carried) + arm.branch(written)
    return streams.sum(0)


def dynamic_hyper_connections(m: Any, x: Tensor, arm: Arm) -> Tensor:
    """The same with matrices that are computed from the streams."""
    streams = x.unsqueeze(2).expand(-1, -1, STREAMS, -1)
    for f in (m.f, m.g):
        normed = m.norm(streams)
        alpha = torch.tanh(normed @ m.alpha_fn) * m.scale + m.alpha
        beta = torch.tanh(normed @ m.beta_fn) * m.scale + m.beta
        mixed = alpha.transpose(-1, -2) @ streams
        written = torch.einsum("blh,bln->blnh", f(m.norm2(arm.for_branch(mixed)[..., 0, :])), beta)
        arm.note(mixed[..., 1:, :], written)
        streams = arm.branch(written) + arm.shortcut(arm.for_shortcut(mixed)[..., 1:, :])
    return streams.sum(2)


def manifold_hyper_connections(m: Any, x: Tensor, arm: Arm) -> Tensor:
    """mHC (Xie et al. 2025, arXiv 2512.24880): the streams' matrix is made doubly stochastic. The norm before all three
    matrices belongs to both addends: its gradient counts as the shortcut's."""
    streams = x.unsqueeze(2).expand(-1, -1, STREAMS, -1).contiguous()
    for f in (m.f, m.g):
        flat = F.layer_norm(arm.for_shortcut(streams).flatten(2), (STREAMS * WIDTH,))
        into, out_of, between = (m.scale * (flat @ m.phi)).split([STREAMS, STREAMS, STREAMS**2], -1)
        between = between.view(*between.shape[:-1], STREAMS, STREAMS).exp()
        for _ in range(3):
            between = between / between.sum(-1, keepdim=True)
            between = between / between.sum(-2, keepdim=True)
        given = (into.sigmoid().unsqueeze(-2) @ arm.for_branch(streams)).squeeze(-2)
        written = 2 * out_of.sigmoid().unsqueeze(-1) * f(m.norm(given)).unsqueeze(-2)
        carried = between @ arm.for_shortcut(streams)
        arm.note(carried, written)
        streams = arm.shortcut(carried) + arm.branch(written)
    return streams.sum(2)


def parallel(m: Any, x: Tensor, arm: Arm) -> Tensor:
    """Two branches side by side (GPT-J, PaLM), summed first."""
    for f, g in ((m.f, m.g), (m.h, m.v)):
        y = m.norm(arm.for_branch(x))
        branch = f(y) + g(y)
        arm.note(x, branch)
        x = arm.shortcut(arm.for_shortcut(x)) + arm.branch(branch)
    return x


@dataclass(frozen=True)
class Stream:
    """What is true of one body."""

    body: Callable[[Any, Tensor, Arm], Tensor]
    kinds: tuple[str, ...]
    """Of each junction, in order."""
    gated: tuple[int, ...] | None = None
    """The depths of the junctions that the body weights; None for all."""
    shares_gate: bool = False
    """Whether a gradient cannot be asked of an addend of forward weight 0."""
    learns: bool = False
    """Whether the shortcut holds parameters, whose gradients the body does not weight by hand."""
    backwards: bool = False
    """Whether forward weights are refused."""
    interpolates: bool = False
    """Whether it is written out as an interpolation, whose change is what a lesion deletes."""


ONE = ("identity",)
TABLE = {
    "operators called as torch.ops.aten.add.Tensor": Stream(aten, ONE * 2),
    "torch.lerp": Stream(lerp, ONE * 2),
    "torch.lerp with a gate": Stream(gated_lerp, ONE * 2, shares_gate=True),
    "torch.addcmul": Stream(addcmul, ONE * 2),
    "nGPT": Stream(ngpt, ONE * 2, interpolates=True),
    "x - a (x - f(x))": Stream(backwards_interpolation, ONE * 2, backwards=True, interpolates=True),
    "x0 lambdas": Stream(first_embedding, ONE * 3, (1,), learns=True),
    "U-Net with added skips": Stream(u_net, ONE * 7, (3, 5), learns=True),
    "DenseFormer": Stream(denseformer, ONE * 4, (1, 3)),
    "attention residuals": Stream(attention_residuals, ONE * 3),
    "a scalar mixture of layers": Stream(mean_of_layers, ONE),
    "hyper-connections, static": Stream(hyper_connections, ONE * 2),
    "hyper-connections, separate matrices": Stream(separate_matrices, ("projection",) * 2, learns=True),
    "hyper-connections, dynamic": Stream(dynamic_hyper_connections, ONE * 2),
    "mHC": Stream(manifold_hyper_connections, ("projection",) * 2, shares_gate=True),
    "parallel branches": Stream(parallel, ONE * 2),
}


def tokens() -> Tensor:
    return torch.randint(0, 11, (3, 4), generator=torch.Generator().manual_seed(0))
