"""`contributions` on paper, on transformers whose authors' code says what is added, and against plain projections."""

import math
from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models import ARMS, PLAIN, STOP_GRADIENT, Flow, ResidualBlock, cifar_resnet
from probes import contributions, gate, record
from tests.support.networks import (
    FLOAT64,
    Apply,
    Residual,
    block_of,
    chain,
    images,
    left_as_it_was,
    linear,
    one,
    perceptron,
    recorded,
    rows,
    scalars,
    values,
)
from tests.support.zoo import GPT, IDS, SIZES, ModuleValues, hugging_face, tokens

QUANTITIES = ["branch", "stream", "sum", "factor", "error"]


def of(model: nn.Module, *inputs: Any, **options: Any) -> pd.DataFrame:
    with record(model, keep=True) as recording:
        model(*inputs)
    return contributions(recording, **options)


def modules(table: pd.DataFrame) -> list[str | None]:
    """That of each junction."""
    return [None if pd.isna(module) else module for module in table["module"][::5]]


def test_two_scalar_blocks_as_on_paper() -> None:
    """3 = 1 + 2, then 12 = 3 + 9."""
    table = of(scalars(2.0, 3.0), one())
    assert list(table.columns) == ["block", "depth", "module", "quantity", "value"]
    assert table["quantity"].tolist() == QUANTITIES * 2
    assert table["block"].tolist() == ["0"] * 5 + ["1"] * 5
    assert table["depth"].tolist() == [0] * 5 + [1] * 5
    assert table["module"].tolist() == ["0.branch"] * 5 + ["1.branch"] * 5
    assert table["value"].tolist() == [2, 1, 3, 1, 0, 9, 3, 12, 1, 0]


def test_norms_are_those_of_the_tensors() -> None:
    """x = (3, 4), F(x) = (-4, 3): a right angle, 5² + 5² = 50."""
    table = of(Residual(linear([[0.0, -1.0], [1.0, 0.0]])), torch.tensor([[3.0, 4.0]], dtype=FLOAT64))
    assert table["value"].tolist() == pytest.approx([5, 5, math.sqrt(50), 1, 0], rel=1e-15)


TRANSFORMERS: dict[str, tuple[str, str, dict[str, Any], list[str | None], float]] = {
    # the model, its settings, the modules whose output the authors' code adds (in layer 0), and the factor
    "bloom": (
        "BloomForCausalLM", "BloomConfig", {"hidden_size": 32, "n_layer": 2, "n_head": 2} | IDS,
        ["transformer.h.0.self_attention.dense", "transformer.h.0.mlp.dense_4h_to_h"], 1,
    ),
    "mpt": (
        "MptForCausalLM", "MptConfig", {"d_model": 32, "n_layers": 2, "n_heads": 2, "max_seq_len": 32} | IDS,
        ["transformer.blocks.0.resid_attn_dropout", "transformer.blocks.0.ffn.down_proj"], 1,
    ),
    "olmo2": (
        "Olmo2ForCausalLM", "Olmo2Config", SIZES | IDS,
        ["model.layers.0.post_attention_layernorm", "model.layers.0.post_feedforward_layernorm"], 1,
    ),
    "gemma2": (
        "Gemma2ForCausalLM", "Gemma2Config", SIZES | IDS | {"head_dim": 16, "num_key_value_heads": 1},
        ["model.layers.0.post_attention_layernorm", "model.layers.0.post_feedforward_layernorm"], 1,
    ),
    "gemma3": (
        "Gemma3ForCausalLM", "Gemma3TextConfig", SIZES | IDS | {"head_dim": 16, "num_key_value_heads": 1},
        ["model.layers.0.post_attention_layernorm", "model.layers.0.post_feedforward_layernorm"], 1,
    ),
    "glm4": (
        "Glm4ForCausalLM", "Glm4Config", SIZES | IDS | {"head_dim": 16, "num_key_value_heads": 1},
        ["model.layers.0.post_self_attn_layernorm", "model.layers.0.post_mlp_layernorm"], 1,
    ),
    "granite": ("GraniteForCausalLM", "GraniteConfig", SIZES | IDS | {"residual_multiplier": 0.22}, [None, None], 0.22),
    "llama": (
        "LlamaForCausalLM", "LlamaConfig", SIZES | IDS, ["model.layers.0.self_attn", "model.layers.0.mlp"], 1
    ),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", GPT, ["transformer.h.0.attn", "transformer.h.0.mlp"], 1),
}  # fmt: skip


def different_weights(model: nn.Module) -> None:
    """Also of the normalisations, whose ones and zeros would hide what they multiply."""
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_what_a_transformer_adds_and_which_module_gives_it(name: str, training: bool) -> None:
    make, config, settings, wanted, factor = TRANSFORMERS[name]
    model = hugging_face(make, config, **settings)().train(training)
    different_weights(model)
    kept = ModuleValues(model)
    with record(model, keep=True) as recording:
        model(**tokens())
    table = contributions(recording)
    assert values(table, "error") == [0] * 4
    assert values(table, "factor") == [factor] * 4
    found = modules(table)
    assert found == [*wanted, *(module and module.replace(".0.", ".1.") for module in wanted)]
    for site, module in zip(recording.junctions, found, strict=True):
        if module is not None:
            (output,) = kept.kept[f"{module}>"]
            assert torch.equal(site.branch, output), site.name


class LayerScale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=FLOAT64))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class Normalised(nn.Module):
    """A normalisation written by hand: its weights are no factor of the branch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((4,), 7.0, dtype=FLOAT64))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True)))


ROOT_MEAN_SQUARE = math.sqrt((1 + 4 + 9 + 16) / 4)
SCALE = torch.tensor(0.25, dtype=FLOAT64)


def parametrised(function: Callable[[Any, Tensor], Tensor], **parts: nn.Module) -> nn.Module:
    block = block_of(function)
    for name, part in parts.items():
        block.add_module(name, part)
    block.alpha = nn.Parameter(torch.tensor(-0.5, dtype=FLOAT64))
    return block


FACTORS: dict[str, tuple[Callable[[Any, Tensor], Tensor], float, str | None]] = {
    "none": (lambda m, x: x + m.f(x), 1, "f"),
    "behind another layer": (lambda m, x: x + m.g(m.f(x) * 3), 1, "g"),
    "a number": (lambda m, x: x + 0.3 * m.f(x), 0.3, None),
    "a number, branch first": (lambda m, x: m.f(x) * 0.3 + x, 0.3, None),
    "in place": (lambda m, x: x + m.f(x).mul_(0.3), 0.3, None),
    "a quotient": (lambda m, x: x + m.f(x) / 4, 0.25, None),
    "a tensor without dimensions": (lambda m, x: x + SCALE * m.f(x), 0.25, None),
    "two": (lambda m, x: x + 0.5 * (3 * m.f(x)), 1.5, None),
    "a learned scalar": (lambda m, x: x + m.alpha * m.f(x), -0.5, None),
    "a learned scalar, frozen": (lambda m, x: x + m.alpha.detach() * m.f(x), -0.5, None),
    "a difference": (lambda m, x: x - m.f(x), -1, None),
    "a negation": (lambda m, x: x + (-m.f(x)), -1, None),
    "alpha": (lambda m, x: torch.add(x, m.f(x), alpha=2), 2, None),
    "alpha of the shortcut": (lambda m, x: torch.add(m.f(x), x, alpha=2), 1, "f"),
    "LayerScale, a module": (lambda m, x: x + m.scale(m.f(x)), ROOT_MEAN_SQUARE, "scale"),
    "LayerScale, then a module that does nothing": (lambda m, x: x + m.i(m.scale(m.f(x))), ROOT_MEAN_SQUARE, "i"),
    "LayerScale, inline": (lambda m, x: x + m.scale.scale * m.f(x), ROOT_MEAN_SQUARE, None),
    "a number, then LayerScale": (lambda m, x: x + m.scale(m.f(x) * 2), 2 * ROOT_MEAN_SQUARE, "scale"),
    "a normalisation": (lambda m, x: x + m.norm(m.f(x)), 1, "norm"),
    "a number of a normalisation": (lambda m, x: x + 0.3 * m.norm(m.f(x)), 0.3, None),
    "a gate of the stream": (lambda m, x: x + torch.sigmoid(0 * m.g(x)) * m.f(x), 0.5, None),
    "a product of two": (lambda m, x: x + m.g(x) * m.f(x), 1, None),
    "reshaped": (lambda m, x: x + m.f(x).view(-1, 2, 2).reshape(-1, 4), 1, "f"),
    "dropout": (lambda m, x: x + torch.dropout(m.f(x), 0.5, True), 1, None),
    "a function of a module": (lambda m, x: x + torch.tanh(m.f(x)), 1, None),
    "a sum of two modules": (lambda m, x: x + (m.f(x) + m.g(x)), 1, None),
    "two addends": (lambda m, x: x + m.f(x) + m.g(x), 1, None),
    "two addends with one factor": (lambda m, x: x + 2 * m.f(x) + 2 * m.g(x), 2, None),
    "two addends with two factors": (lambda m, x: x + m.f(x) + 2 * m.g(x), math.nan, None),
}


@pytest.mark.parametrize("form", FACTORS)
def test_factors_and_modules(form: str) -> None:
    function, factor, module = FACTORS[form]
    model = nn.Sequential(parametrised(function, scale=LayerScale(), norm=Normalised()), Residual(perceptron(4)))
    x = rows()
    with record(model, keep=True) as recording:
        out = model(x)
    table = contributions(recording)
    assert values(table, "factor")[0] == pytest.approx(factor, rel=1e-15, nan_ok=True)
    assert modules(table)[0] == (None if module is None else f"0.{module}")
    assert values(table, "error") == [0, 0], "also where the sum has three addends"
    assert values(table, "sum")[-1] == pytest.approx(out.norm().item(), rel=1e-14)


def test_a_factor_that_was_overwritten_is_not_known() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        scale = torch.ones(4, dtype=FLOAT64)
        residual = self.f(x) * scale.mul_(2)
        scale.detach().zero_()
        return x + residual

    assert math.isnan(values(of(block_of(forward), rows()), "factor")[0])


@pytest.mark.parametrize("flow", [Flow(2, 3), PLAIN, STOP_GRADIENT], ids=str)
def test_our_block_s_weights_are_factors(flow: Flow) -> None:
    block = ResidualBlock(linear([[0.0, 1.0], [1.0, 0.0]]), activation=nn.Identity(), flow=flow)
    table = of(block, torch.tensor([[3.0, 4.0]], dtype=FLOAT64))
    assert values(table, "factor") == [flow.branch]
    assert modules(table)[0] == ("branch" if flow.branch == 1 else None)
    assert values(table, "branch") == pytest.approx([5 * flow.branch], rel=1e-15)
    assert values(table, "stream") == pytest.approx([5 * flow.shortcut], rel=1e-15)


def between(function: Callable[[Any, Tensor, Tensor], Tensor]) -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.second(function(self, x, self.first(x)))

    model = Apply(forward, first=Residual(linear(2.0)), second=Residual(linear(3.0)), n=nn.LayerNorm(1).double())
    model.p = nn.Parameter(torch.ones(1, 1, dtype=FLOAT64))
    return model


@pytest.mark.parametrize(
    ("form", "error"),
    [  # at x = 1 the first sum is 3
        (lambda m, x, y: y, 0),
        (lambda m, x, y: y.view(1, 1), 0),
        (lambda m, x, y: y * 0.5, 1.5),
        (lambda m, x, y: y + torch.full((1, 1), 2.0, dtype=FLOAT64), 2),
        (lambda m, x, y: 0.75 * y - m.p, 1.75),
        (lambda m, x, y: y.add_(4), 4),
        (lambda m, x, y: torch.relu(y), math.nan),
        (lambda m, x, y: m.n(y), math.nan),
        (lambda m, x, y: x.clone(), math.nan),
    ],
    ids=[
        "chain",
        "view",
        "halved",
        "a constant",
        "a learned vector",
        "in place",
        "activation",
        "normalised",
        "no chain",
    ],
)
def test_the_error_is_what_is_done_to_the_stream_in_between(form: Any, error: float) -> None:
    assert values(of(between(form), one()), "error") == pytest.approx([error, 0], nan_ok=True)


def test_a_stream_that_changes_its_shape_goes_on() -> None:
    """As OPT's does, which flattens its tokens before every MLP; of a stream that is permuted, it is not known."""

    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.third(self.second(y.reshape(-1, 4)).view(y.shape).transpose(0, 1))

    model = Apply(forward, **{name: Residual(perceptron(4)) for name in ("first", "second", "third")})
    table = of(model, torch.randn(2, 3, 4, dtype=FLOAT64))
    assert values(table, "error") == pytest.approx([0, math.nan, 0], nan_ok=True)


def test_the_next_shortcut_of_a_plain_network_is_not_the_sum() -> None:
    blocks = [ResidualBlock(linear(w), activation=nn.Identity(), flow=PLAIN) for w in (2.0, 3.0)]
    assert of(nn.Sequential(*blocks), one())["value"].tolist() == [2, 0, 2, 1, 2, 6, 0, 6, 1, 0]


def test_an_inner_stream_ends_where_the_outer_one_adds_it() -> None:
    model = nn.Sequential(Residual(nn.Sequential(linear(1.0), Residual(linear(2.0)))), Residual(linear(3.0)))
    table = of(model, one())
    assert table["block"].tolist()[::5] == ["0.branch.1", "0", "1"]
    assert values(table, "error") == pytest.approx([math.nan, 0, 0], nan_ok=True)


@pytest.mark.parametrize("arm", ARMS)
def test_no_later_shortcut_is_the_sum_of_a_post_activation_network(arm: str) -> None:
    table = of(cifar_resnet(14, flow=ARMS[arm], width=4).double(), images())
    assert values(table, "error") == pytest.approx([math.nan] * 5 + [0], nan_ok=True)
    assert set(table["module"]) == {f"layer{stage}.{block}.branch" for stage in (1, 2, 3) for block in (0, 1)}


def test_a_foreign_network_that_overwrites_its_addends() -> None:
    model = torchvision.models.resnet18(weights=None, num_classes=10).double()
    with record(model, keep=True) as recording:
        model(images(2, 32))
    table = contributions(recording)
    for site in recording.junctions:
        assert torch.equal(site.shortcut + site.branch, site.sum), site.name
    assert values(table, "sum") == [pytest.approx(s.sum.norm().item(), rel=1e-14) for s in recording.junctions]
    assert table["module"].tolist()[::5] == [f"layer{i}.{j}.bn2" for i in (1, 2, 3, 4) for j in (0, 1)]


def test_a_checkpointed_network_is_not_computed_again() -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        for block in self.children():
            x = checkpoint(block, x, use_reentrant=False)  # pyright: ignore[reportAssignmentType]
        return x

    calls: list[int] = []
    blocks = {str(i): parametrised(lambda m, x: x + m.scale(m.f(x)) * 2, scale=LayerScale()) for i in (0, 1)}
    wanted = of(nn.Sequential(*blocks.values()), x := rows())
    blocks["1"].register_forward_hook(lambda *_: calls.append(1))
    table = of(Apply(forward, **blocks), x)
    pd.testing.assert_frame_equal(table, wanted)
    assert calls == [1]


def same_table(form: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Of a network with LayerScale as it is, and under what may go together with a recording."""
    model = nn.Sequential(*(parametrised(lambda m, x: x + m.scale(2 * m.f(x)), scale=LayerScale()) for _ in range(2)))
    x = rows()
    wanted = of(model, x)
    if form == "frozen":
        return of(model.requires_grad_(False), x), wanted
    with gate(model, shortcut_gradient=0.0, branch_gradient=0.5):
        if form == "inside a gate":
            return of(model, x), wanted
    with record(model, keep=True) as recording, gate(model, shortcut_gradient=0.0, branch_gradient=0.5):
        model(x)
    return contributions(recording), wanted


@pytest.mark.parametrize("form", ["frozen", "inside a gate", "around a gate"])
def test_frozen_weights_and_gates_change_nothing(form: str) -> None:
    pd.testing.assert_frame_equal(*same_table(form))


def test_autocast_adds_two_precisions() -> None:
    model = chain(2, width=4, dtype=torch.float32)
    with record(model, keep=True) as recording, torch.autocast("cpu", torch.bfloat16):
        model(torch.randn(5, 4))
    table = contributions(recording)
    assert [site.branch.dtype for site in recording.junctions] == [torch.bfloat16] * 2
    assert values(table, "error") == [0, 0]
    assert modules(table) == ["0.branch", "1.branch"]


def test_a_module_that_is_called_twice() -> None:
    block = Residual(linear(2.0))
    table = of(nn.Sequential(block, block), one())
    assert table["block"].tolist()[::5] == ["0", "0@1"]
    assert modules(table) == ["0.branch"] * 2
    assert table["value"].tolist() == [2, 1, 3, 1, 0, 6, 3, 9, 1, 0]


# --- onto a direction ---


def test_a_direction_on_paper() -> None:
    """Of (3, 4) and (-4, 3), along (2, 1): 10 and -5; two examples of which one is zeros have half."""
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0]], dtype=FLOAT64)
    direction = torch.tensor([2.0, 1.0], dtype=FLOAT64)
    model = Residual(linear([[0.0, -1.0], [1.0, 0.0]]))
    assert of(model, x, onto=direction)["value"].tolist() == [-2.5, 5, 2.5, 1, 0]
    per = of(model, x, onto=direction, per="example")
    assert list(per.columns) == ["block", "depth", "module", "example", "quantity", "value"]
    assert values(per, "branch") == [-5, 0]
    assert per["quantity"].tolist() == ["branch"] * 2 + ["stream"] * 2 + ["sum"] * 2 + ["error"] * 2


def test_the_effects_of_all_addends_are_a_logit() -> None:
    """What the stream begins with and what each addend adds sum to the logit that the unembedding reads at its end."""
    model = chain(3, width=5)
    unembedding = nn.Linear(5, 7, bias=False, dtype=FLOAT64)
    x = torch.randn(2, 4, 5, dtype=FLOAT64)
    logits = unembedding(model(x))[..., 3]
    table = of(model, x, onto=unembedding.weight[3], per="token")
    assert list(table.columns) == ["block", "depth", "module", "example", "token", "quantity", "value"]
    start = table[(table["quantity"] == "stream") & (table["depth"] == 0)]["value"].to_numpy()
    added = table[table["quantity"] == "branch"].groupby(["example", "token"])["value"].sum().to_numpy()
    assert start + added == pytest.approx(logits.detach().flatten().numpy(), rel=1e-12)
    whole = of(model, x, onto=unembedding.weight[3])
    assert values(whole, "sum")[-1] == pytest.approx(logits.mean().item(), rel=1e-12)
    assert values(whole, "error") == [0] * 3


def test_a_direction_of_channels_and_of_the_last_dimension() -> None:
    """(N, C, H, W) has its features second, unless it is said otherwise; stages of another width have none."""
    model = cifar_resnet(8, width=4).double()
    direction = torch.randn(8, dtype=FLOAT64)
    with record(model, keep=True) as recording:
        model(images())
    table = contributions(recording, onto=direction)
    wanted = torch.einsum("nchw,c->nhw", recording.junctions[1].branch, direction).mean().item()
    assert values(table, "branch") == pytest.approx([math.nan, wanted, math.nan], rel=1e-12, nan_ok=True)
    by_example = contributions(recording, onto=direction, per="example")
    assert values(by_example, "branch")[4:8] == pytest.approx(
        torch.einsum("nchw,c->nhw", recording.junctions[1].branch, direction).mean((1, 2)).tolist(), rel=1e-12
    )
    last = contributions(recording, onto=direction[:2], features=-1)
    wanted = torch.einsum("nchw,w->nch", recording.junctions[2].branch, direction[:2]).mean().item()
    assert values(last, "branch")[2] == pytest.approx(wanted, rel=1e-12)


# --- of each example and token ---


def test_squares_of_examples_and_of_tokens_sum_to_the_batch_s() -> None:
    model, x = chain(2, width=5), torch.randn(3, 4, 5, dtype=FLOAT64)
    whole = of(model, x)
    whole = whole[whole["quantity"] != "factor"].set_index(["block", "quantity"])["value"].to_dict()
    for per in ("example", "token"):
        table = of(model, x, per=per)
        squares = (table.assign(value=table["value"] ** 2).groupby(["block", "quantity"])["value"].sum()) ** 0.5
        assert squares.to_dict() == pytest.approx(whole, rel=1e-13)


def test_tiny_addends_keep_their_digits() -> None:
    """Float32's squares of these are 0, and so are float64's of the second."""
    for size in (1e-30, 1e-200):
        dtype = torch.float32 if size > 1e-38 else FLOAT64
        x = torch.tensor([[3.0, 4.0], [0.0, 0.0]], dtype=dtype) * size
        table = of(Residual(linear([[0.0, -1.0], [1.0, 0.0]]).to(dtype)), x, per="example")
        assert values(table, "branch") == pytest.approx([5 * size, 0], rel=1e-6)


def test_errors_say_what_to_do() -> None:
    model = scalars()
    with pytest.raises(ValueError, match=r"contributions needs the tensors themselves.*record\(model, keep=True\)"):
        contributions(recorded(model, one()))
    recording = recorded(model, one(), keep=True)
    with pytest.raises(ValueError, match=r"per is 'batch': give \"example\", \"token\""):
        contributions(recording, per="batch")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"per=\"token\" needs tensors \(N, T, D\), and '0' has \(1, 1\): give per"):
        contributions(recording, per="token")
    with pytest.raises(ValueError, match=r"onto has the shape \(3,\), and the stream \[1\] features.*give one vector"):
        contributions(recording, onto=torch.ones(3))
    with pytest.raises(ValueError, match=r"onto has the shape \(1, 1\)"):
        contributions(recording, onto=torch.ones(1, 1))
    with pytest.raises(TypeError, match="onto is list: give a tensor of floating-point numbers"):
        contributions(recording, onto=[1.0])  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match=r"onto is torch\.int64"):
        contributions(recording, onto=torch.ones(1, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"features is 2, and the stream is \(1, 1\): give one of its dimensions"):
        contributions(recording, onto=torch.ones(1), features=2)
    plain = perceptron(4)
    with pytest.raises(ValueError, match="no residual junctions"):
        contributions(recorded(plain, rows(), blocks=[plain[2]], keep=True))
    with record(perceptron(), keep=True) as empty:
        pass
    with pytest.raises(ValueError, match="nothing was recorded"):
        contributions(empty)


def test_measuring_changes_nothing() -> None:
    model, x = scalars(), one()
    with left_as_it_was(model):
        table = of(model, x)
        assert torch.equal(x, one())
    with record(model, keep=True) as recording:
        model(x)
    state = torch.get_rng_state()
    pd.testing.assert_frame_equal(contributions(recording), table)
    assert torch.equal(torch.get_rng_state(), state)
