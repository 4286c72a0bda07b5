"""`gate` on other people's models and on ours: equal to the same model with its forward edited by hand."""

import copy
from collections.abc import Callable
from functools import partial
from inspect import signature
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
import transformers
from torch import Tensor, nn
from torch.func import functional_call

from models import GRADIENT_ONLY, PLAIN, RESIDUAL, SHORTEST_PATH, STOP_GRADIENT, Flow, cifar_resnet
from probes import gate, scale_gradient
from tests.support.networks import FLOAT64, images
from tests.support.zoo import ZOO

Pair = tuple[float, float]
WEIGHTS: list[Pair] = [(0.0, 1.0), (0.3, 1.0), (1.0, 0.0), (0.5, 0.2), (-1.5, 1.0)]  # shortcut, branch


def fork(x: Tensor, weights: Pair) -> tuple[Tensor, Tensor]:
    """What the shortcut and the branch are made from."""
    return scale_gradient(x, weights[0]), scale_gradient(x, weights[1])


# Each model's block as its authors wrote it, with `fork` where the two addends part.


def basic_block(block: Any, weights: Pair, x: Tensor) -> Tensor:
    shortcut, x = fork(x, weights)
    out = block.bn2(block.conv2(block.relu(block.bn1(block.conv1(x)))))
    out += shortcut if block.downsample is None else block.downsample(shortcut)
    return block.relu(out)


def pre_activation(block: Any, weights: Pair, x: Tensor) -> Tensor:
    if block.downsample is None:
        shortcut, x = fork(x, weights)
        x = block.norm1(x)
    else:  # the projection begins behind the first activation
        shortcut, x = fork(block.norm1(x), weights)
        shortcut = block.downsample(shortcut)
    return block.conv3(block.norm3(block.conv2(block.norm2(block.conv1(x))))) + shortcut


def vit_block(block: Any, weights: Pair, input: Tensor) -> Tensor:
    shortcut, x = fork(input, weights)
    x = block.ln_1(x)
    x = block.dropout(block.self_attention(x, x, x, need_weights=False)[0]) + shortcut
    shortcut, y = fork(x, weights)
    return shortcut + block.mlp(block.ln_2(y))


def convnext_block(block: Any, weights: Pair, x: Tensor) -> Tensor:
    shortcut, x = fork(x, weights)
    x = block.mlp(block.norm(block.conv_dw(x)))
    return block.drop_path(x.mul(block.gamma.reshape(1, -1, 1, 1))) + block.shortcut(shortcut)


def gpt2_block(block: Any, weights: Pair, x: Tensor, *_: Any, attention_mask: Any = None, **__: Any) -> Tensor:
    shortcut, x = fork(x, weights)
    shortcut, x = fork(block.attn(block.ln_1(x), attention_mask=attention_mask)[0] + shortcut, weights)
    return shortcut + block.mlp(block.ln_2(x))


def bert_layer(layer: Any, weights: Pair, x: Tensor, mask: Any = None, *_: Any, **__: Any) -> Tensor:
    shortcut, x = fork(x, weights)
    x = layer.attention.self(x, attention_mask=mask)[0]
    shortcut, x = fork(layer.attention.output(x, shortcut), weights)
    return layer.output(layer.intermediate(x), shortcut)


def gptj_block(block: Any, weights: Pair, x: Tensor, *_: Any, **keywords: Any) -> Any:
    """Attention and perceptron in parallel: together they are one branch. Before transformers 5.24 in a tuple."""
    shortcut, x = fork(x, weights)
    x = block.ln_1(x)
    out, attention = block.attn(hidden_states=x, **{k: v for k, v in keywords.items() if k != "hidden_states"})
    total = out + block.mlp(x) + shortcut
    return (total, attention) if "tuple" in str(signature(type(block).forward).return_annotation) else total


def inverted_residual(block: Any, weights: Pair, x: Tensor) -> Tensor:
    if not block.use_res_connect:
        return block.conv(x)
    shortcut, x = fork(x, weights)
    return shortcut + block.conv(x)


def vit() -> nn.Module:
    model: Any = ZOO["torchvision:vit"].make()
    nn.init.normal_(model.heads.get_parameter("head.weight"))  # begins at zero: nothing would come back through it
    return model


def gpt2() -> nn.Module:
    config = transformers.GPT2Config(n_embd=32, n_layer=3, n_head=2, vocab_size=50, bos_token_id=0, eos_token_id=0)
    return transformers.GPT2Model(config)


def tokens() -> Tensor:
    return torch.randint(0, 50, (2, 6))


Edit = Callable[..., Any]
CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor], str, Edit]] = {
    "resnet18": (lambda: torchvision.models.resnet18(num_classes=5), partial(images, 2, 32), "BasicBlock", basic_block),
    "mobilenet_v2": (
        lambda: torchvision.models.mobilenet_v2(num_classes=5), partial(images, 2, 32), "InvertedResidual",
        inverted_residual,
    ),
    "resnetv2": (
        lambda: timm.create_model("resnetv2_50", layers=(2, 2), channels=(32, 64), stem_chs=16, num_classes=5),
        partial(images, 2, 32), "PreActBottleneck", pre_activation,
    ),
    "vit": (vit, partial(images, 2, 16), "EncoderBlock", vit_block),
    "convnext_atto": (
        lambda: timm.create_model("convnext_atto", num_classes=5, drop_path_rate=0.3, ls_init_value=0.1),
        partial(images, 2, 32), "ConvNeXtBlock", convnext_block,
    ),
    "gpt2": (gpt2, tokens, "GPT2Block", gpt2_block),
    "bert": (ZOO["hf:bert"].make, tokens, "BertLayer", bert_layer),
    "gptj": (ZOO["hf:gptj"].make, tokens, "GPTJBlock", gptj_block),
}  # fmt: skip


def edited(model: nn.Module, block: str, edit: Edit, weights: Pair | Flow) -> nn.Module:
    """A copy of the model whose blocks run the edited forward."""
    twin, count = copy.deepcopy(model), 0
    for module in twin.modules():
        if type(module).__name__ == block:
            module.forward = partial(edit, module, weights)
            count += 1
    assert count, f"no {block} in the model"
    return twin


def step(model: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor | None]]:
    """Outputs and gradients, in train mode, with the same random draws each time."""
    torch.manual_seed(1)
    out = model(x)
    out = out if isinstance(out, Tensor) else out.last_hidden_state
    (out * torch.randn_like(out)).sum().backward()
    return out.detach(), {name: p.grad for name, p in model.named_parameters()}


def assert_equal(got: dict[str, Tensor | None], wanted: dict[str, Tensor | None]) -> None:
    """Equal but for the order of sums: each to 1e-11 of itself, or to 1e-13 of the largest gradient for those that are
    zero in exact arithmetic (a bias before a normalisation)."""
    largest = max(g.norm().item() for g in wanted.values() if g is not None)
    for name, reference in wanted.items():
        gradient = got[name]
        assert (gradient is None) == (reference is None), name
        if gradient is not None and reference is not None:
            assert (gradient - reference).norm() <= 1e-11 * reference.norm() + 1e-13 * largest, name


@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_gated_gradients_are_those_of_the_model_edited_by_hand(name: str, weights: Pair) -> None:
    make, inputs, block, edit = CASES[name]
    model, x = make().to(FLOAT64).train(), inputs()
    plain, edit_of_nothing = copy.deepcopy(model), edited(model, block, edit, (1.0, 1.0))
    twin = edited(model, block, edit, weights)
    out, gradients = step(plain, x)
    same_out, same_gradients = step(edit_of_nothing, x)
    assert torch.equal(same_out, out), "the edit must be the model's own computation"
    assert_equal(same_gradients, gradients)
    _, wanted = step(twin, x)
    with gate(model, shortcut_gradient=weights[0], branch_gradient=weights[1]):
        gated_out, got = step(model, x)
    assert torch.equal(gated_out, out)
    assert_equal(got, wanted)
    assert [n for n in got if (got[n] is None) != (gradients[n] is None)] == []
    with pytest.raises(AssertionError):
        assert_equal(got, gradients)


# Forward weights: each addend as `models.Flow` means it, with its parameters' gradients weighted by hand.


class Call(nn.Module):
    def __init__(self, block: nn.Module, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.block, self.functions = block, [function]  # in a list: a part of the block is not registered twice

    def forward(self, x: Tensor) -> Tensor:
        return self.functions[0](x)


def weighted(block: Any, function: Callable[[Tensor], Tensor], x: Tensor, value: float, gradient: float) -> Tensor:
    """value · function(x), with the block's parameters; its gradient reaches x with a weight of its own."""
    call = Call(block, function)
    parameters = {name: scale_gradient(p, value) for name, p in call.named_parameters()}
    return scale_gradient(functional_call(call, parameters, (scale_gradient(x, gradient),)), 1.0, value=value)


def junction(block: Any, flow: Flow, x: Tensor, shortcut: Any, branch: Any) -> Tensor:
    return weighted(block, branch, x, flow.branch, flow.branch_gradient) + weighted(
        block, shortcut, x, flow.shortcut, flow.shortcut_gradient
    )


def same(x: Tensor) -> Tensor:
    return x


def weighted_basic_block(block: Any, flow: Flow, x: Tensor) -> Tensor:
    branch = lambda x: block.bn2(block.conv2(block.relu(block.bn1(block.conv1(x)))))  # noqa: E731
    return block.relu(junction(block, flow, x, block.downsample or same, branch))


def weighted_convnext_block(block: Any, flow: Flow, x: Tensor) -> Tensor:
    scale = lambda x: x.mul(block.gamma.reshape(1, -1, 1, 1))  # noqa: E731
    branch = lambda x: block.drop_path(scale(block.mlp(block.norm(block.conv_dw(x)))))  # noqa: E731
    return junction(block, flow, x, block.shortcut, branch)


def weighted_gpt2_block(block: Any, flow: Flow, x: Tensor, *_: Any, attention_mask: Any = None, **__: Any) -> Tensor:
    x = junction(block, flow, x, same, lambda x: block.attn(block.ln_1(x), attention_mask=attention_mask)[0])
    return junction(block, flow, x, same, lambda x: block.mlp(block.ln_2(x)))


def weighted_llama_layer(layer: Any, flow: Flow, hidden_states: Tensor, *_: Any, **keywords: Any) -> Tensor:
    attention = lambda x: layer.self_attn(layer.input_layernorm(x), **keywords)[0]  # noqa: E731
    x = junction(layer, flow, hidden_states, same, attention)
    return junction(layer, flow, x, same, lambda x: layer.mlp(layer.post_attention_layernorm(x)))


ORDER = (
    1e-13  # GPT-2's attention, in memory of another alignment, rounds otherwise; the others are equal to the last bit
)
WEIGHTED: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor], str, Edit]] = {
    "resnet18": (*CASES["resnet18"][:3], weighted_basic_block),
    "convnext_atto": (*CASES["convnext_atto"][:3], weighted_convnext_block),
    "gpt2": (*CASES["gpt2"][:3], weighted_gpt2_block),
    "llama": (ZOO["hf:llama"].make, tokens, "LlamaDecoderLayer", weighted_llama_layer),
}
FLOWS = [
    Flow(shortcut=0.0), Flow(shortcut=0.0, shortcut_gradient=1.0), Flow(shortcut_gradient=0.0), Flow(0.5, 2.0),
    Flow(branch=0.0, branch_gradient=0.5), Flow(0.5, 0.25, 1.0, 0.0), Flow(branch=0.0),
]  # fmt: skip


@pytest.mark.parametrize("flow", FLOWS, ids=str)
@pytest.mark.parametrize("name", WEIGHTED)
def test_forward_weights_are_those_of_the_model_edited_by_hand(name: str, flow: Flow) -> None:
    make, inputs, block, edit = WEIGHTED[name]
    model, x = make().to(FLOAT64).train(), inputs()
    twin = edited(model, block, edit, flow)
    evaluated = copy.deepcopy(twin).eval()
    wanted_out, wanted = step(twin, x)
    ordinary: dict[str, Any] = {"shortcut": flow.shortcut, "branch": flow.branch}
    gradients: dict[str, Any] = {"shortcut_gradient": flow.shortcut_gradient, "branch_gradient": flow.branch_gradient}
    for weights in (ordinary | gradients, ordinary) if flow == flow.exact else (ordinary | gradients,):
        copied = copy.deepcopy(model)
        with gate(copied, **weights):
            out, got = step(copied, x)
            assert (out - wanted_out).norm() <= ORDER * wanted_out.norm()
            assert_equal(got, wanted)
            assert None not in [got[n] for n, gradient in wanted.items() if gradient is not None]
    if name != "resnet18":  # whose running statistics have moved
        with torch.no_grad(), gate(model.eval(), **ordinary):
            got_out, wanted_out = model(x), evaluated(x)
        if not isinstance(got_out, Tensor):
            got_out, wanted_out = got_out.last_hidden_state, wanted_out.last_hidden_state
        assert (got_out - wanted_out).norm() <= ORDER * wanted_out.norm()
        assert not got_out.requires_grad


@pytest.mark.parametrize("projection", ["A", "B"])
@pytest.mark.parametrize("arm", [GRADIENT_ONLY, PLAIN, Flow(0.5, 2.0, 0.0, 1.0), Flow(1.0, 0.0, 1.0, 1.0)], ids=str)
def test_ours_under_forward_weights_equals_its_arm(arm: Flow, projection: Any) -> None:
    model = cifar_resnet(14, flow=RESIDUAL, width=4, projection=projection).to(FLOAT64)
    twin = cifar_resnet(14, flow=arm, width=4, projection=projection).to(FLOAT64)
    twin.load_state_dict(model.state_dict())
    x = images(3, 16)
    out, wanted = step(twin, x)
    weights: dict[str, Any] = {
        name: getattr(arm, name) for name in ("shortcut", "branch", "shortcut_gradient", "branch_gradient")
    }
    with gate(model, **weights):
        gated_out, got = step(model, x)
    assert torch.equal(gated_out, out)
    assert_equal(got, wanted)


@pytest.mark.parametrize("projection", ["A", "B"])
@pytest.mark.parametrize(
    "arm", [STOP_GRADIENT, SHORTEST_PATH, Flow(shortcut_gradient=0.5, branch_gradient=0.2)], ids=str
)
def test_ours_under_gate_equals_its_arm_to_the_last_bit(arm: Flow, projection: Any) -> None:
    model = cifar_resnet(14, flow=RESIDUAL, width=4, projection=projection).to(FLOAT64)
    twin = cifar_resnet(14, flow=arm, width=4, projection=projection).to(FLOAT64)
    twin.load_state_dict(model.state_dict())
    x = images(3, 16)
    out, wanted = step(twin, x)
    with gate(model, shortcut_gradient=arm.shortcut_gradient, branch_gradient=arm.branch_gradient):
        gated_out, got = step(model, x)
    assert torch.equal(gated_out, out)
    for name, gradient in wanted.items():
        assert gradient is not None
        assert torch.equal(gradient, got[name] if got[name] is not None else gradient + 1), name  # pyright: ignore


@pytest.mark.parametrize("weights", [(0.0, 1.0), (0.3, 0.7)], ids=str)
def test_training_under_gate_is_training_the_model_edited_by_hand(weights: Pair) -> None:
    model = torchvision.models.resnet18(num_classes=5).to(FLOAT64)
    bare, twin = copy.deepcopy(model), edited(model, "BasicBlock", basic_block, weights)
    batches = [(images(4, 16), torch.arange(4)) for _ in range(3)]

    def train(network: nn.Module) -> dict[str, Tensor]:
        optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-3)
        for x, labels in batches:
            optimizer.zero_grad()
            F.cross_entropy(network(x), labels).backward()
            optimizer.step()
        return network.state_dict()

    wanted, otherwise = train(twin), train(bare)
    with gate(model, shortcut_gradient=weights[0], branch_gradient=weights[1]):
        got = train(model)
    # Rounding of 1e-16 in a gradient passes through three steps of batch statistics over few elements.
    for name, value in wanted.items():
        torch.testing.assert_close(got[name], value, rtol=1e-7, atol=1e-9, msg=name)
    assert (otherwise["conv1.weight"] - wanted["conv1.weight"]).norm() > 1e-4 * wanted["conv1.weight"].norm()
