"""A GPT (Radford et al. 2019) with a flow at each attention and each MLP; GPT-2's weights load."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _IncompatibleKeys

from models.construction import check_sizes
from models.flow import RESIDUAL, Flow
from models.transformer import (
    Normalisation,
    TransformerBlock,
    TransformerWeights,
    check_transformer_weights,
    set_transformer_weights,
    transformer_blocks,
)


class GPT(nn.Module):
    """Embeddings of tokens and positions, transformer blocks, and the token embedding again as read-out; made by `gpt`.

    Args:
        vocabulary: Number of tokens.
        context: The longest sequence.
        width: Features of a token.
        blocks: In order of depth.
        norm: What follows the last block.
    """

    def __init__(
        self, vocabulary: int, context: int, *, width: int, blocks: Sequence[TransformerBlock], norm: nn.Module
    ) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
        self.blocks, self.norm = nn.Sequential(*blocks), norm
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """(N, T) token numbers -> (N, T, vocabulary), at each place the logits of the token that follows.

        Raises ValueError for another shape or a sequence that is longer than the context.
        """
        if tokens.dim() != 2:
            raise ValueError(f"tokens of shape {tuple(tokens.shape)}: give (N, T), N sequences of T token numbers")
        length, context = tokens.shape[1], self.positions.num_embeddings
        if length > context:
            raise ValueError(f"a sequence of {length} tokens is longer than the context of {context}: cut it")
        x = self.tokens(tokens) + self.positions(torch.arange(length, device=tokens.device))
        return self.head(self.norm(self.blocks(x)))

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> _IncompatibleKeys:
        """As of any module; a GPT-2's by Hugging Face's names is converted first (`convert_gpt2_weights`)."""
        if any(re.search(r"(^|\.)wte\.weight$", name) for name in state_dict):
            state_dict = convert_gpt2_weights(state_dict)
        return super().load_state_dict(state_dict, strict, assign)


def gpt(
    layers: int,
    *,
    width: int = 64,
    heads: int = 4,
    vocabulary: int = 256,
    context: int = 64,
    attention: Flow | Sequence[Flow] = RESIDUAL,
    mlp: Flow | Sequence[Flow] = RESIDUAL,
    normalisation: Normalisation = "pre",
    first_weights: TransformerWeights = "ordinary",
) -> GPT:
    """A GPT (Radford et al. 2019) whose shortcuts are switched around attention, around MLPs, or in any block.

    It is GPT-2 without dropout: learned positions, pre-normalisation, the approximate GELU, the token embedding as
    read-out. Its `load_state_dict` takes GPT-2's weights under Hugging Face's names, too. Under one random seed all
    flows begin with the same weights.

    Args:
        layers: Transformer blocks, each with two junctions (GPT-2: 12, 24, 36, 48).
        width: Features of a token, a multiple of `heads` (GPT-2: 768, 1024, 1280, 1600).
        heads: Of attention (GPT-2: 12, 16, 20, 25).
        vocabulary: Number of tokens (GPT-2: 50257; 256 for bytes).
        context: The longest sequence (GPT-2: 1024).
        attention: The flow at the junctions of attention: one for all blocks, or one a block in order of depth.
        mlp: The same at the junctions of the MLPs.
        normalisation: ``"pre"`` in each branch, and after the last block; ``"post"`` after each sum (Vaswani et al.
            2017, arXiv 1706.03762), and then not after the last block.
        first_weights: ``"ordinary"`` (normal of deviation 0.02), ``"depth-scaled"`` (the last matrix of each branch
            divided by √(2 layers), as GPT-2 begins) or ``"near-identity"``, for networks without shortcuts; see
            `models.transformer.set_transformer_weights`.

    Returns:
        A network (N, T) token numbers, T at most context -> logits (N, T, vocabulary), in train mode.

    Raises:
        ValueError: A size under 1, a width that the heads cannot share, unknown normalisation or first weights, or a
            wrong number of flows.
    """
    check_sizes(vocabulary=vocabulary, context=context)
    check_transformer_weights(first_weights)
    blocks = transformer_blocks(
        layers,
        width=width,
        heads=heads,
        causal=True,
        gelu="tanh",
        normalisation=normalisation,
        attention=attention,
        mlp=mlp,
    )
    norm = nn.LayerNorm(width) if normalisation == "pre" else nn.Identity()
    model = GPT(vocabulary, context, width=width, blocks=blocks, norm=norm)
    set_transformer_weights(model, blocks, first_weights)
    return model


GPT2_NAMES = (
    (r"^module\.", ""),  # left by DataParallel
    (r"^transformer\.", ""),
    (r"^wte\.", "tokens."),
    (r"^wpe\.", "positions."),
    (r"^h\.(\d+)\.ln_1\.", r"blocks.\1.attention.branch.norm."),
    (r"^h\.(\d+)\.attn\.c_attn\.", r"blocks.\1.attention.branch.attention.qkv."),
    (r"^h\.(\d+)\.attn\.c_proj\.", r"blocks.\1.attention.branch.attention.output."),
    (r"^h\.(\d+)\.ln_2\.", r"blocks.\1.mlp.branch.norm."),
    (r"^h\.(\d+)\.mlp\.c_fc\.", r"blocks.\1.mlp.branch.mlp.hidden."),
    (r"^h\.(\d+)\.mlp\.c_proj\.", r"blocks.\1.mlp.branch.mlp.output."),
    (r"^ln_f\.", "norm."),
    (r"^lm_head\.", "head."),
)
MASKS = r"\.attn\.(bias|masked_bias)$"  # buffers in older files
TRANSPOSED = r"\.(qkv|hidden|output)\.weight$"  # GPT-2 stores them as (in, out)


def convert_gpt2_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of a GPT-2 by Hugging Face's names, under those of `gpt`, with matrices as ``nn.Linear`` has them.

    Takes that of GPT2LMHeadModel or of GPT2Model, as well as the published files. The network loads them by it::

        ours = gpt(12, width=768, heads=12, vocabulary=50257, context=1024)
        ours.load_state_dict(GPT2LMHeadModel.from_pretrained("gpt2").state_dict())

    Args:
        state: Tensors by Hugging Face's names.

    Returns:
        Tensors by our names, views of the same memory; `load_state_dict` names what does not fit.

    Raises:
        ValueError: Nothing looks like a GPT-2, or its read-out is not the token embedding.
    """
    converted = {}
    for name, value in state.items():
        if re.search(MASKS, name):
            continue
        for pattern, replacement in GPT2_NAMES:
            name = re.sub(pattern, replacement, name)
        converted[name] = value.T if re.search(TRANSPOSED, name) else value
    embedding = converted.get("tokens.weight")
    if embedding is None:
        raise ValueError(
            f"got a state dict with names such as {', '.join(list(state)[:3]) or '(none)'}; wanted GPT-2's, such as "
            "transformer.wte.weight or h.0.attn.c_attn.weight: if the weights lie inside a checkpoint, pass its "
            "state_dict"
        )
    read_out = converted.setdefault("head.weight", embedding)
    if read_out is not embedding and not torch.equal(read_out, embedding):
        raise ValueError(
            "lm_head.weight is not wte.weight: `gpt` reads out by its token embedding, as GPT-2 does, and cannot hold "
            "another"
        )
    return converted
