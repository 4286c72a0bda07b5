"""A vision transformer (Dosovitskiy et al. 2020) with a flow at each attention and each MLP."""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

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

Pooling = Literal["class", "mean"]


class ViT(nn.Module):
    """Patches as tokens, learned positions, transformer blocks, and a linear classifier; made by `vit`.

    Args:
        patches: From images to a map with one place a patch.
        tokens: Their number in an image, without the class token.
        blocks: In order of depth.
        norm: What follows the last block.
        classifier: From the pooled features to the classes.
        pooling: Whether a class token before all others is classified, or the mean of all tokens.
    """

    class_token: nn.Parameter | None

    def __init__(
        self,
        patches: nn.Conv2d,
        tokens: int,
        *,
        blocks: Sequence[TransformerBlock],
        norm: nn.Module,
        classifier: nn.Linear,
        pooling: Pooling,
    ) -> None:
        super().__init__()
        width, first = patches.out_channels, int(pooling == "class")
        self.patches = patches
        self.register_parameter("class_token", nn.Parameter(torch.zeros(1, 1, width)) if first else None)
        self.positions = nn.Parameter(torch.zeros(1, first + tokens, width))
        self.blocks, self.norm, self.classifier = nn.Sequential(*blocks), norm, classifier

    def forward(self, images: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, num_classes); raises ValueError for images of another size."""
        x = self.patches(images).flatten(2).transpose(1, 2)  # (N, T, D)
        if self.class_token is not None:
            x = torch.cat([self.class_token.expand(len(x), -1, -1), x], dim=1)
        if x.shape[1] != self.positions.shape[1]:
            raise ValueError(
                f"images of {images.shape[2]} x {images.shape[3]} pixels become {x.shape[1]} tokens, and this network "
                f"has positions for {self.positions.shape[1]}: give images of the size that it was made for"
            )
        x = self.norm(self.blocks(x + self.positions))
        return self.classifier(x.mean(1) if self.class_token is None else x[:, 0])


def vit(
    layers: int,
    *,
    image_size: int | tuple[int, int] = 32,
    patch: int = 4,
    width: int = 64,
    heads: int = 4,
    in_channels: int = 3,
    num_classes: int = 10,
    pooling: Pooling = "class",
    attention: Flow | Sequence[Flow] = RESIDUAL,
    mlp: Flow | Sequence[Flow] = RESIDUAL,
    normalisation: Normalisation = "pre",
    first_weights: TransformerWeights = "ordinary",
) -> ViT:
    """A vision transformer (Dosovitskiy et al. 2020, arXiv 2010.11929), whose shortcuts are switched around attention,
    around MLPs, or in any block.

    Without dropout. Under one random seed all flows begin with the same weights.

    Args:
        layers: Transformer blocks, each with two junctions.
        image_size: Pixels of a side, or (H, W).
        patch: Pixels of a patch's side, which divides both.
        width: Features of a token, a multiple of `heads`.
        heads: Of attention.
        in_channels: Channels of the images.
        num_classes: Outputs of the classifier.
        pooling: ``"class"`` classifies a learned token that stands before all others, ``"mean"`` the mean of all.
        attention: The flow at the junctions of attention: one for all blocks, or one a block in order of depth.
        mlp: The same at the junctions of the MLPs.
        normalisation: ``"pre"`` in each branch, and after the last block; ``"post"`` after each sum alone.
        first_weights: As in `gpt`.

    Returns:
        A network (N, in_channels, H, W) -> (N, num_classes), in train mode.

    Raises:
        ValueError: A size under 1, a width that the heads cannot share, images that patches do not tile, unknown
            pooling, normalisation or first weights, or a wrong number of flows.
    """
    height, across = (image_size, image_size) if isinstance(image_size, int) else image_size
    check_sizes(image_height=height, image_width=across, patch=patch, in_channels=in_channels, num_classes=num_classes)
    if height % patch or across % patch:
        raise ValueError(f"patches of {patch} pixels do not tile an image of {height} x {across}: give a divisor")
    if pooling not in get_args(Pooling):
        raise ValueError(f'pooling is {pooling!r}: choose "class" (a token of its own) or "mean" (of all tokens)')
    check_transformer_weights(first_weights)
    blocks = transformer_blocks(
        layers,
        width=width,
        heads=heads,
        causal=False,
        gelu="none",
        normalisation=normalisation,
        attention=attention,
        mlp=mlp,
    )
    model = ViT(
        nn.Conv2d(in_channels, width, patch, stride=patch),
        (height // patch) * (across // patch),
        blocks=blocks,
        norm=nn.LayerNorm(width) if normalisation == "pre" else nn.Identity(),
        classifier=nn.Linear(width, num_classes),
        pooling=pooling,
    )
    set_transformer_weights(model, blocks, first_weights)
    return model
