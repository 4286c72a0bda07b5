"""The vision transformer: equal to timm's, its flows, its tokens on paper, and what it refuses."""

import re
from typing import Any

import pytest
import timm.models.vision_transformer
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import PLAIN, RESIDUAL, STOP_GRADIENT, Flow, ViT, permuted_shortcuts, residual_blocks, vit
from models.transformer import SelfAttention
from probes import find_junctions, jacobian_spectrum
from tests.support.networks import FLOAT64, images, relative_error, values

SIZES: dict[str, Any] = {"image_size": 8, "patch": 4, "width": 8, "heads": 2}
# Float64 rounding of sums over some hundred products, eps = 2e-16 each; a wrong term is off by more than 1e-3.
CLOSE = 1e-12
# What was made orthogonal in float32, eps = 1.2e-7.
ORTHOGONAL = 2e-6


def network(layers: int = 3, *, moved: bool = True, **options: Any) -> ViT:
    """One that has left its first weights, among which are zeros and ones."""
    torch.manual_seed(0)
    model = vit(layers, **{**SIZES, **options}).double()
    with torch.no_grad():
        for parameter in model.parameters() if moved else ():
            parameter += 0.2 * torch.randn_like(parameter)
    return model


def step(model: nn.Module, x: Tensor) -> Tensor:
    logits = model(x)
    F.cross_entropy(logits, torch.arange(len(x))).backward()
    return logits.detach()


def gradient_of(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


# timm's

TIMM_NAMES = (
    (r"^cls_token$", "class_token"),
    (r"^pos_embed$", "positions"),
    (r"^patch_embed\.proj\.", "patches."),
    (r"^(blocks\.\d)\.norm1\.", r"\1.attention.branch.norm."),
    (r"^(blocks\.\d)\.attn\.qkv\.", r"\1.attention.branch.attention.qkv."),
    (r"^(blocks\.\d)\.attn\.proj\.", r"\1.attention.branch.attention.output."),
    (r"^(blocks\.\d)\.norm2\.", r"\1.mlp.branch.norm."),
    (r"^(blocks\.\d)\.mlp\.fc1\.", r"\1.mlp.branch.mlp.hidden."),
    (r"^(blocks\.\d)\.mlp\.fc2\.", r"\1.mlp.branch.mlp.output."),
    (r"^fc_norm\.", "norm."),  # where the mean is classified
    (r"^head\.", "classifier."),
)


def renamed(name: str) -> str:
    """Ours, of timm's."""
    for pattern, replacement in TIMM_NAMES:
        name = re.sub(pattern, replacement, name)
    return name


@pytest.mark.parametrize("pooling", ["class", "mean"])
def test_outputs_and_every_gradient_are_those_of_timm(pooling: str) -> None:
    model, x = network(pooling=pooling), images()
    other = timm.models.vision_transformer.VisionTransformer(
        img_size=8, patch_size=4, embed_dim=8, depth=3, num_heads=2, num_classes=10,
        class_token=pooling == "class", global_pool="token" if pooling == "class" else "avg", fc_norm=False,
        norm_layer=nn.LayerNorm,
    ).double()  # fmt: skip
    ours = model.state_dict()
    other.load_state_dict({name: ours[renamed(name)] for name in other.state_dict()})
    assert relative_error(step(model, x), step(other, x)) < CLOSE
    wanted = {renamed(name): gradient_of(parameter) for name, parameter in other.named_parameters()}
    assert set(wanted) == set(ours)
    for name, parameter in model.named_parameters():
        assert relative_error(gradient_of(parameter), wanted[name]) < CLOSE, name


# Flows, which tests/models/test_networks.py asks of all networks


@pytest.mark.parametrize("pooling", ["class", "mean"])
@pytest.mark.parametrize("normalisation", ["pre", "post"])
@pytest.mark.parametrize("count", [1, 4])
def test_each_block_has_a_junction_of_attention_and_one_of_its_mlp(
    pooling: str, normalisation: str, count: int
) -> None:
    """Also for a single image, of whose sum with the positions both addends have one shape."""
    found = find_junctions(network(pooling=pooling, normalisation=normalisation), images(count))
    wanted = [f"blocks.{layer}.{kind}" for layer in range(3) for kind in ("attention", "mlp")]
    assert [junction.name for junction in found] == wanted
    assert {junction.shortcut for junction in found} == {"identity"}


def test_stop_gradient_at_attention_is_a_detach_written_by_hand_to_the_last_bit() -> None:
    attention = [STOP_GRADIENT, RESIDUAL, STOP_GRADIENT]
    model, twin, x = network(attention=attention), network(), images()
    got = step(model, x)
    patches = twin.patches(x).flatten(2).transpose(1, 2)
    assert twin.class_token is not None
    stream = torch.cat([twin.class_token.expand(4, -1, -1), patches], 1) + twin.positions
    for layer, block in enumerate(twin.blocks):
        carried = stream.detach() if layer != 1 else stream
        stream = carried + block.get_submodule("attention.branch")(stream)
        stream = stream + block.get_submodule("mlp.branch")(stream)
    logits = twin.classifier(twin.norm(stream)[:, 0])
    F.cross_entropy(logits, torch.arange(4)).backward()
    assert torch.equal(got, logits)
    for (name, parameter), other in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert torch.equal(gradient_of(parameter), gradient_of(other)), name


def test_flows_of_attention_and_mlp_alternate() -> None:
    attention, mlp = [Flow(0.1), Flow(0.2), Flow(0.3)], Flow(0.9)
    found = [block.flow for block in residual_blocks(network(attention=attention, mlp=mlp))]
    assert found == [Flow(0.1), mlp, Flow(0.2), mlp, Flow(0.3), mlp]


def test_permuted_shortcuts_permute_features_alike_in_all_tokens() -> None:
    """As many tokens as features, so that the axes could be taken for each other."""
    model, x = network(1, image_size=16, patch=4, width=16, pooling="mean"), images(2, 16)
    block = residual_blocks(model)[1]
    switch = permuted_shortcuts(model, torch.Generator().manual_seed(0))
    stream = torch.randn(2, 16, 16, dtype=FLOAT64, requires_grad=True)
    upstream, found = torch.randn(2, 16, 16, dtype=FLOAT64), {}
    for active in (False, True):
        switch.active = active
        (found[active],) = torch.autograd.grad(block.shortcut(stream), stream, upstream)
    assert torch.equal(found[False], upstream)
    assert not torch.equal(found[True], upstream)
    order = [int((upstream[0, 0] == value).nonzero()) for value in found[True][0, 0]]
    assert torch.equal(found[True], upstream[..., order])
    assert torch.equal(model(x), network(1, image_size=16, patch=4, width=16, pooling="mean")(x))


# What it computes


def test_tokens_on_paper() -> None:
    """The digits' 8 x 8 pixels as 16 tokens of 2 x 2, row by row; the class token stands before them."""
    model = network(1, image_size=8, patch=2, in_channels=1)
    x = torch.arange(64, dtype=FLOAT64).view(1, 1, 8, 8)
    tokens = model.patches(x).flatten(2).transpose(1, 2)
    assert tokens.shape == (1, 16, 8)
    weight, bias = model.patches.weight.flatten(1), model.patches.bias
    assert bias is not None
    for place, pixels in ((0, [0, 1, 8, 9]), (1, [2, 3, 10, 11]), (4, [16, 17, 24, 25]), (15, [54, 55, 62, 63])):
        wanted = weight @ torch.tensor(pixels, dtype=FLOAT64) + bias
        torch.testing.assert_close(tokens[0, place], wanted, rtol=CLOSE, atol=CLOSE)
    assert model.positions.shape == (1, 17, 8)


def test_sizes_on_paper() -> None:
    """A block: 12 width² and 13 width; CIFAR's patches, 65 positions and a class token, the norm, the classifier."""
    width = 64
    size = sum(parameter.numel() for parameter in vit(2, width=width, heads=4).parameters())
    assert size == 2 * (12 * width**2 + 13 * width) + (48 + 1) * width + (65 + 1) * width + 2 * width + (width + 1) * 10


def test_images_may_be_oblong() -> None:
    model = network(1, image_size=(4, 12), pooling="mean")
    assert model(torch.randn(2, 3, 4, 12, dtype=FLOAT64)).shape == (2, 10)
    assert model.positions.shape == (1, 3, 8)


# First weights


def test_a_near_identity_token_gives_itself_l_times_what_it_gives_all_others() -> None:
    """Of 3 layers and 5 tokens, with queries of 0: itself 3/4, and the mean of the others 1/4."""
    model = network(moved=False, first_weights="near-identity")
    attention = model.get_submodule("blocks.2.attention.branch.attention")
    assert isinstance(attention, SelfAttention)
    with torch.no_grad():
        attention.qkv.weight[:8] = 0
    x = torch.randn(2, 5, 8, dtype=FLOAT64)
    others = (x.sum(1, keepdim=True) - x) / 4
    assert relative_error(attention(x), 0.75 * x + 0.25 * others) < ORTHOGONAL
    assert relative_error(attention(x[:, :1]), x[:, :1]) < ORTHOGONAL


def test_near_identity_mlps_pass_their_normalised_input_on() -> None:
    model = network(moved=False, first_weights="near-identity")
    x = torch.randn(2, 5, 8, dtype=FLOAT64)
    for block in model.blocks:
        assert relative_error(block.get_submodule("mlp.branch")(x), F.layer_norm(x, (8,))) < ORTHOGONAL


def test_plain_near_identity_blocks_are_near_isometries() -> None:
    """The spread of squared singular values is at least D / (D - 2) = 4/3 behind a layer norm; 1 is an isometry."""
    spreads = {}
    for choice in ("near-identity", "ordinary"):
        model = network(6, moved=False, first_weights=choice, attention=PLAIN, mlp=PLAIN, pooling="mean")
        spreads[choice] = values(jacobian_spectrum(model, images(1)), "spread")[1:]
    assert spreads["near-identity"] == pytest.approx([4 / 3] * 11, rel=0.1)
    assert min(spreads["ordinary"]) > 1.5


# What it refuses


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": 0}, "layers 0: give at least 1"),
        ({"heads": 3}, "width 8 cannot be shared by 3 heads: give a multiple of 3"),
        ({"patch": 3}, "patches of 3 pixels do not tile an image of 8 x 8: give a divisor"),
        ({"image_size": (8, 6)}, "patches of 4 pixels do not tile an image of 8 x 6"),
        ({"image_size": 0}, "image_height 0: give at least 1"),
        ({"num_classes": 0}, "num_classes 0: give at least 1"),
        ({"pooling": "max"}, r'pooling is \'max\': choose "class" \(a token of its own\) or "mean"'),
        ({"normalisation": None}, r'normalisation is None: choose "pre" \(in each branch\) or "post"'),
        ({"first_weights": 0.5}, r"first_weights is 0\.5: give ordinary, depth-scaled or near-identity"),
        ({"attention": [STOP_GRADIENT]}, "attention: got 1 flows for 2 blocks: give one Flow for all"),
        ({"mlp": 1.0}, r"mlp is 1\.0: give a Flow"),
    ],
)
def test_bad_input(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vit(**{"layers": 2, **SIZES, **options})


def test_images_of_another_size_are_refused() -> None:
    with pytest.raises(
        ValueError, match="images of 12 x 8 pixels become 7 tokens, and this network has positions for 5"
    ):
        network()(torch.randn(2, 3, 12, 8, dtype=FLOAT64))
