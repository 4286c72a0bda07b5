"""Other people's networks as data: how to make one, its inputs, its junctions, and where their addends come from.

Where an addend comes from is read off the authors' code. "{}" is the module that adds; "<a.b" means the first input of
module a.b, "a.b>" its (first) output; of several, the first whose module exists counts. `None`: no module's value.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import timm
import torch
import torchvision.models as tv
import transformers as hf
from torch import Tensor, nn

Where = str | tuple[str, ...] | None


@dataclass(frozen=True)
class Specimen:
    """One network; identities and projections are how many junctions of each kind it has."""

    make: Callable[[], nn.Module]
    inputs: Callable[[], dict[str, Any]]
    identities: int = 0
    projections: int = 0
    addends: dict[str, tuple[Where, Where]] = field(default_factory=dict)
    """By what stands behind the module's name in the junction's ("", "#1", …) or by the end of that name: the shortcut
    and the branch."""


def images(size: int = 64, name: str = "x") -> dict[str, Any]:
    return {name: torch.randn(2, 3, size, size)}


def tokens(**more: int) -> dict[str, Any]:
    return {"input_ids": torch.randint(3, 50, (2, 8))} | {k: torch.randint(3, 50, (2, n)) for k, n in more.items()}


def vision(name: str, **settings: Any) -> Callable[[], nn.Module]:
    return partial(getattr(tv, name), num_classes=5, **settings)


def small(name: str, **settings: Any) -> Callable[[], nn.Module]:
    return partial(timm.create_model, name, num_classes=5, **settings)


IDS: dict[str, Any] = {"vocab_size": 50, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
SIZES: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
}  # fmt: skip
GPT: dict[str, Any] = {"n_embd": 32, "n_layer": 2, "n_head": 2} | IDS
T5: dict[str, Any] = {
    "d_model": 32, "num_layers": 2, "num_heads": 2, "d_ff": 64, "d_kv": 16, "decoder_start_token_id": 0,
} | IDS  # fmt: skip
WHISPER: dict[str, Any] = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_source_positions": 20, "decoder_start_token_id": 1,
} | IDS  # fmt: skip


def hugging_face(name: str, config: str, **settings: Any) -> Callable[[], nn.Module]:
    return lambda: getattr(hf, name)(getattr(hf, config)(**settings))


def detr() -> nn.Module:
    sizes: dict[str, Any] = {"embedding_size": 8, "hidden_sizes": [8, 16, 32, 64], "depths": [1, 1, 1, 1]}
    backbone = hf.ResNetConfig(**sizes, layer_type="basic")
    layers: dict[str, Any] = {f"{part}_{k}": v for part in ("encoder", "decoder") for k, v in DETR_LAYERS.items()}
    return hf.DetrModel(hf.DetrConfig(backbone_config=backbone, d_model=32, num_queries=5, **layers, **NO_TIMM))


NO_TIMM: dict[str, Any] = {"use_timm_backbone": False}
DETR_LAYERS = {"layers": 2, "attention_heads": 2, "ffn_dim": 64}
RESNET: dict[str, tuple[Where, Where]] = {"": (("{}.downsample>", "<{}"), ("{}.bn3>", "{}.bn2>"))}
BEFORE_AND_AFTER: dict[str, tuple[Where, Where]] = {
    "": ("<{}.norm1", ("{}.drop_path1>", "{}.attn>")),
    "#1": ("<{}.norm2", ("{}.drop_path2>", "{}.mlp>")),
}
LLAMA: dict[str, tuple[Where, Where]] = {
    "": ("<{}.input_layernorm", "{}.self_attn>"),
    "#1": ("<{}.post_attention_layernorm", "{}.mlp>"),
}
T5_LAYERS: dict[str, tuple[Where, Where]] = {"": ("<{}.layer_norm", "{}.dropout>")}

ZOO = {
    "torchvision:resnet18": Specimen(vision("resnet18"), images, 5, 3, RESNET),
    "torchvision:resnet50": Specimen(vision("resnet50"), partial(images, 32), 12, 4, RESNET),
    "torchvision:mobilenet_v2": Specimen(vision("mobilenet_v2"), images, 10, 0, {"": ("<{}", "{}.conv>")}),
    "torchvision:efficientnet_b0": Specimen(
        vision("efficientnet_b0"), images, 9, 0, {"": ("<{}", "{}.stochastic_depth>")}
    ),
    "torchvision:convnext_tiny": Specimen(
        vision("convnext_tiny"), images, 18, 0, {"": ("<{}", "{}.stochastic_depth>")}
    ),
    "torchvision:swin_t": Specimen(
        vision("swin_t"), images, 24, 0,
        {"": ("<{}.norm1", "{}.stochastic_depth>"), "#1": ("<{}.norm2", "{}.stochastic_depth>@1")},
    ),
    "torchvision:vit": Specimen(
        lambda: tv.VisionTransformer(16, 8, 3, 2, 16, 24, num_classes=5, dropout=0.1), partial(images, 16), 6, 0,
        {"": ("<{}", "{}.dropout>"), "#1": ("<{}.ln_2", "{}.mlp>")},
    ),
    "torchvision:regnet_y_400mf": Specimen(
        vision("regnet_y_400mf"), images, 12, 4, {"": (("{}.proj>", "<{}"), "{}.f>")}
    ),
    "torchvision:shufflenet_v2_x0_5": Specimen(vision("shufflenet_v2_x0_5"), images),
    "torchvision:densenet121": Specimen(vision("densenet121"), images),
    "torchvision:vgg11": Specimen(lambda: tv.vgg11(init_weights=False).features, partial(images, name="input")),
    "torchvision:googlenet": Specimen(vision("googlenet", init_weights=False), images),
    "timm:resnetv2_50": Specimen(
        small("resnetv2_50"), images, 12, 4, {"": (("{}.downsample>", "<{}"), "{}.drop_path>")}
    ),
    "timm:vit_tiny_patch16_224": Specimen(
        small("vit_tiny_patch16_224", img_size=32, depth=3, drop_path_rate=0.2), partial(images, 32), 6, 0,
        BEFORE_AND_AFTER,
    ),
    "timm:convnext_atto": Specimen(small("convnext_atto"), images, 12, 0, {"": ("{}.shortcut>", "{}.drop_path>")}),
    "timm:seresnet18": Specimen(small("seresnet18"), images, 5, 3, {"": (("{}.downsample>", "<{}"), "{}.se>")}),
    "timm:mixer_s16_224": Specimen(
        small("mixer_s16_224", img_size=32), partial(images, 32), 16, 0,
        {"": ("<{}.norm1", None), "#1": ("<{}.norm2", "{}.mlp_channels>")},
    ),
    "timm:nfnet_l0": Specimen(small("nfnet_l0"), images, 8, 4, {"": (("{}.downsample>", "<{}"), None)}),
    "timm:repvgg_a0": Specimen(small("repvgg_a0"), images),
    "timm:vovnet39a": Specimen(small("vovnet39a"), images),
    "timm:poolformer_s12": Specimen(
        small("poolformer_s12"), images, 24, 0,
        {"": ("{}.res_scale1>", "{}.layer_scale1>"), "#1": ("{}.res_scale2>", "{}.layer_scale2>")},
    ),
    "timm:levit_128s": Specimen(
        small("levit_128s"), partial(images, 224), 20, 0,
        {"downsample": ("<{}.mlp", "{}.drop_path>"), "": ("<{}", "{}.attn>"), "#1": ("<{}.mlp", "{}.mlp>")},
    ),
    "timm:focalnet_tiny_srf": Specimen(
        small("focalnet_tiny_srf"), images, 24, 0,
        {"": ("<{}.norm1", "{}.drop_path1>"), "#1": ("<{}.norm2", "{}.drop_path2>")},
    ),
    # The first block of each stage projects behind an activation of its own: not found.
    "timm:dpn68": Specimen(small("dpn68"), images, 18, 0),
    "timm:hiera_tiny_224": Specimen(small("hiera_tiny_224"), partial(images, 224), 21, 3),
    "timm:mvitv2_tiny": Specimen(small("mvitv2_tiny"), partial(images, 64), 27, 3),
    "hf:gpt2": Specimen(
        hugging_face("GPT2Model", "GPT2Config", **GPT), tokens, 4, 0,
        {"": ("<{}.ln_1", "{}.attn>"), "#1": ("<{}.ln_2", "{}.mlp>")},
    ),
    "hf:bert": Specimen(
        hugging_face("BertModel", "BertConfig", **SIZES, **IDS), tokens, 4, 0, {"": ("<{}@shortcut", "{}.dropout>")}
    ),
    "hf:vit": Specimen(
        hugging_face("ViTModel", "ViTConfig", **SIZES, image_size=32, patch_size=8),
        partial(images, 32, "pixel_values"), 4, 0,
        {"": ("<{}.layernorm_before", "{}.dropout>"), "#1": ("<{}.layernorm_after", "{}.dropout>@1")},
    ),
    "hf:t5_encoder": Specimen(hugging_face("T5EncoderModel", "T5Config", **T5), tokens, 4, 0, T5_LAYERS),
    "hf:t5": Specimen(
        hugging_face("T5Model", "T5Config", **T5), partial(tokens, decoder_input_ids=5), 10, 0, T5_LAYERS
    ),
    "hf:llama": Specimen(
        hugging_face("LlamaModel", "LlamaConfig", **SIZES, **IDS, num_key_value_heads=1), tokens, 4, 0, LLAMA
    ),
    "hf:mixtral": Specimen(
        hugging_face("MixtralModel", "MixtralConfig", **SIZES, **IDS, num_key_value_heads=2, num_local_experts=2),
        tokens, 4, 0, LLAMA,
    ),
    "hf:cohere": Specimen(
        hugging_face("CohereModel", "CohereConfig", **SIZES, **IDS, num_key_value_heads=2), tokens, 2, 0,
        {"#1": ("<{}.input_layernorm", None)},
    ),
    "hf:detr": Specimen(detr, partial(images, 64, "pixel_values"), 11, 3),
    "hf:wav2vec2": Specimen(
        hugging_face(
            "Wav2Vec2Model", "Wav2Vec2Config", **SIZES, conv_dim=(32, 32), conv_stride=(5, 2), conv_kernel=(10, 3),
            num_feat_extract_layers=2, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2, vocab_size=50,
        ),
        lambda: {"input_values": torch.randn(2, 800)}, 5, 0,
    ),
    "hf:mamba": Specimen(
        hugging_face(
            "MambaModel", "MambaConfig", hidden_size=32, num_hidden_layers=2, state_size=4, use_mambapy=False, **IDS
        ),
        tokens, 2, 0, {"": ("<{}.norm", "{}.mixer>")},
    ),
    "hf:gptj": Specimen(
        hugging_face("GPTJModel", "GPTJConfig", rotary_dim=8, **GPT), tokens, 2, 0, {"#1": ("<{}.ln_1", None)}
    ),
    "hf:opt": Specimen(
        hugging_face(
            "OPTModel", "OPTConfig", hidden_size=32, num_hidden_layers=2, num_attention_heads=2, ffn_dim=64,
            word_embed_proj_dim=32, dropout=0.0, **IDS,
        ),
        tokens, 4, 0,
        {"": ("<{}.self_attn_layer_norm", "{}.self_attn>"), "#1": ("<{}.final_layer_norm", "{}.fc2>")},
    ),
    "hf:whisper": Specimen(
        hugging_face("WhisperModel", "WhisperConfig", **WHISPER),
        lambda: {"input_features": torch.randn(2, 80, 40), "decoder_input_ids": torch.randint(3, 50, (2, 5))}, 10, 0,
        {
            "": ("<{}.self_attn_layer_norm", "{}.self_attn>"),
            "#1": (("<{}.encoder_attn_layer_norm", "<{}.final_layer_norm"), ("{}.encoder_attn>", "{}.fc2>")),
            "#2": ("<{}.final_layer_norm", "{}.fc2>"),
        },
    ),
}  # fmt: skip


def tensors(value: Any) -> list[Tensor]:
    return [x for x in (value.values() if isinstance(value, dict) else value) if isinstance(x, Tensor)]


class ModuleValues:
    """The inputs and outputs of every module, copied while the model ran: from hooks, not from autograd."""

    def __init__(self, model: nn.Module) -> None:
        self.kept: dict[str, list[Tensor]] = {}
        for name, module in model.named_modules():
            module.register_forward_pre_hook(self.keep_inputs(name), with_kwargs=True)
            module.register_forward_hook(self.keep_output(name))

    def keep_inputs(self, name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given = [*tensors(args), *tensors(kwargs)]
            for place, x in zip((f"<{name}", f"<{name}@shortcut"), given[:2], strict=False):
                self.kept.setdefault(place, []).append(x.detach().clone())

        return hook

    def keep_output(self, name: str) -> Callable[..., None]:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            for x in tensors([output] if isinstance(output, Tensor) else output)[:1]:
                self.kept.setdefault(f"{name}>", []).append(x.detach().clone())

        return hook

    def at(self, where: Where, block: str) -> Tensor | None:
        """The value at the first of these places that exists."""
        for place in (where,) if isinstance(where, str) else where or ():
            place, call = (place.removesuffix("@1"), 1) if place.endswith("@1") else (place, 0)
            if place.format(block) in self.kept:
                return self.kept[place.format(block)][call]
        assert where is None, f"no module at {where} of {block!r}: {sorted(self.kept)[:20]}"
        return None
