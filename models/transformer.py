"""The transformer block: attention and an MLP, each added to the stream at a junction with a flow of its own."""

import math
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from models.block import ResidualBlock
from models.construction import check_sizes, flow_per_block
from models.first_weights import orthogonal
from models.flow import Flow

Normalisation = Literal["pre", "post"]
TransformerWeights = Literal["ordinary", "depth-scaled", "near-identity"]
DEVIATION = 0.02
"""Of all matrices and embeddings at first, as in GPT-2."""


class SelfAttention(nn.Module):
    """Multi-head self-attention, softmax(q kᵀ / √d) v in each head (Vaswani et al. 2017, arXiv 1706.03762).

    Written out rather than fused, so that every derivative exists, also the second.

    Args:
        width: Features of a token.
        heads: How many heads share them; d = width / heads.
        causal: Whether a token attends to itself and to earlier ones alone.
    """

    own: Tensor | None
    """The weight that a token gives itself before training, all others together being 1; see `set_transformer_weights`.
    A constant of the network that first weights near the identity have, and is stored with its weights."""

    def __init__(self, width: int, heads: int, *, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.qkv = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)
        self.register_buffer("own", None)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, D) -> (N, T, D)."""
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
        logits = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])  # (N, heads, T, T)
        if self.own is not None:
            logits = logits + own_bias(self.own, x.shape[1], causal=self.causal).diag()
        if self.causal:
            later = torch.ones(logits.shape[-2:], dtype=torch.bool, device=x.device).triu(1)
            logits = logits.masked_fill(later, -math.inf)
        attended = logits.softmax(-1) @ v
        return self.output(attended.transpose(1, 2).flatten(2))

    def extra_repr(self) -> str:
        """The settings, for the module's repr."""
        return f"heads={self.heads}, causal={self.causal}"


def own_bias(own: Tensor, length: int, *, causal: bool) -> Tensor:
    """What to add to each token's logit for itself, (T,), so that equal logits become the weights own : 1 for it and
    all others that it sees together; the first of a causal sequence sees none, whatever is added."""
    position = torch.arange(length, dtype=own.dtype, device=own.device)
    others = position if causal else torch.full_like(position, length - 1)
    return (own * others.clamp(min=1)).log()


class MLP(nn.Module):
    """Linear, GELU, linear, with four times as many features between them.

    Args:
        width: Features of a token.
        gelu: ``"none"`` for the exact GELU, ``"tanh"`` for the approximation of GPT-2 (Hendrycks and Gimpel 2016, arXiv
            1606.08415).
    """

    def __init__(self, width: int, *, gelu: Literal["none", "tanh"]) -> None:
        super().__init__()
        self.hidden = nn.Linear(width, 4 * width)
        self.gelu = nn.GELU(gelu)
        self.output = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, D) -> (N, T, D)."""
        return self.output(self.gelu(self.hidden(x)))


class TransformerBlock(nn.Module):
    """x + attention(x), then x + mlp(x): two junctions, both a `ResidualBlock` with a flow of its own.

    Its parts are named after what they add: the junctions of block 0 are ``blocks.0.attention`` and ``blocks.0.mlp``.

    Args:
        attention: x + attention(norm(x)), or norm(x + attention(x)).
        mlp: x + mlp(norm(x)), or norm(x + mlp(x)).
    """

    def __init__(self, attention: ResidualBlock, mlp: ResidualBlock) -> None:
        super().__init__()
        self.attention, self.mlp = attention, mlp

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, D) -> (N, T, D)."""
        x = self.attention(x)  # x = x + attention(norm(x)), the addends weighted by its flow
        return self.mlp(x)  # x = x + mlp(norm(x))


def transformer_blocks(
    layers: int,
    *,
    width: int,
    heads: int,
    causal: bool,
    gelu: Literal["none", "tanh"],
    normalisation: Normalisation,
    attention: Flow | Sequence[Flow],
    mlp: Flow | Sequence[Flow],
) -> list[TransformerBlock]:
    """The blocks of a transformer; raises ValueError for what `gpt` and `vit` say."""
    check_sizes(layers=layers, width=width, heads=heads)
    if width % heads:
        raise ValueError(f"width {width} cannot be shared by {heads} heads: give a multiple of {heads}")
    if normalisation not in get_args(Normalisation):
        raise ValueError(
            f'normalisation is {normalisation!r}: choose "pre" (in each branch) or "post" (after each sum)'
        )
    attention_flows = flow_per_block(attention, layers, name="attention")
    mlp_flows = flow_per_block(mlp, layers, name="mlp")
    pre = normalisation == "pre"

    def residual(name: str, function: nn.Module, flow: Flow) -> ResidualBlock:
        branch = OrderedDict([("norm", nn.LayerNorm(width)), (name, function)] if pre else [(name, function)])
        after = nn.Identity() if pre else nn.LayerNorm(width)
        return ResidualBlock(nn.Sequential(branch), activation=after, flow=flow)

    return [
        TransformerBlock(
            residual("attention", SelfAttention(width, heads, causal=causal), attention_flow),
            residual("mlp", MLP(width, gelu=gelu), mlp_flow),
        )
        for attention_flow, mlp_flow in zip(attention_flows, mlp_flows, strict=True)
    ]


def check_transformer_weights(first_weights: TransformerWeights) -> None:
    """Raise ValueError unless it is one of the names."""
    if first_weights not in (names := get_args(TransformerWeights)):
        raise ValueError(f"first_weights is {first_weights!r}: give {', '.join(names[:-1])} or {names[-1]}")


@torch.no_grad()
def set_transformer_weights(
    model: nn.Module, blocks: Iterable[TransformerBlock], first_weights: TransformerWeights
) -> None:
    r"""Draw the first weights of a transformer, and change those of its branches as `first_weights` says.

    No choice draws another random number: networks of one seed differ in their branches alone.

    Args:
        model: The transformer; all its matrices and embeddings are drawn, all biases become 0.
        blocks: Its L blocks.
        first_weights: ``"ordinary"``, N(0, 0.02) for all matrices and embeddings. ``"depth-scaled"`` divides the last
            matrix of each branch by √(2L), as GPT-2 does (Radford et al. 2019). ``"near-identity"`` is for networks
            without shortcuts. A branch then begins near the identity (behind its normalisation): of attention, value
            and output are a random orthogonal matrix Q and Qᵀ, the Q of the ordinary value matrix, and each token
            gives itself L times the weight of all others together, so that after L layers of averaging it still is
            about 1/e itself; of MLPs, hidden and output are [Q, -Q] and its transpose, so that
            Qᵀ (gelu(Qx) - gelu(-Qx)) = QᵀQ x = x. (He, Martens et al. 2023, arXiv 2302.10322: orthogonal value and
            output, a fixed bias towards the diagonal; He and Hofmann 2023, arXiv 2311.01906; Ji et al. 2025, arXiv
            2510.00345; gelu(z) - gelu(-z) = z as ReLU's in Balduzzi et al. 2017, arXiv 1702.08591; L and 1/e are ours.)

    Raises:
        ValueError: Another name.
    """
    check_transformer_weights(first_weights)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=DEVIATION)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)
    blocks = list(blocks)
    parts = [module for block in blocks for module in block.modules() if isinstance(module, SelfAttention | MLP)]
    for part in parts:
        if first_weights == "depth-scaled":
            part.output.weight /= math.sqrt(2 * len(blocks))
        elif first_weights == "near-identity":
            _pass_on(part, own=len(blocks))


def _pass_on(part: SelfAttention | MLP, *, own: int) -> None:
    """Give a branch's function the weights of the identity, or nearly: a token attends to itself at own : 1."""
    if isinstance(part, SelfAttention):
        value = part.qkv.weight.chunk(3)[2]
        value.copy_(orthogonal(value))
        part.output.weight.copy_(value.T)
        part.own = torch.tensor(float(own), dtype=value.dtype, device=value.device)
    else:
        q = orthogonal(part.hidden.weight.chunk(2)[0])  # (2 width, width), QᵀQ = 1
        part.hidden.weight.copy_(torch.cat([q, -q]))
        part.output.weight.copy_(part.hidden.weight.T)
