"""`record`, `gate` and `track` where weights are frozen, adapted or quantised, and in forwards with a cache."""

import copy
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD

from probes import Recording, find_junctions, gate, gradient_norms, record, residual_magnitudes, track
from tests.support.networks import Apply, Residual, left_as_it_was, values

WIDTH = 16  # of what int8 and 4-bit kernels take


@pytest.fixture(autouse=True)
def _their_warnings() -> Iterator[None]:
    """Those of peft, torchao, bitsandbytes and transformers are not ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


# Quantised weights. The blocks have no bias and no norm: nothing but the quantised weights makes a branch of them.


def quantisable() -> Any:
    torch.manual_seed(0)

    def block() -> Residual:
        inner = nn.Linear(WIDTH, 2 * WIDTH, bias=False), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH, bias=False)
        return Residual(nn.Sequential(*inner))

    return nn.Sequential(nn.Linear(WIDTH, WIDTH), block(), block())


def features() -> Tensor:
    return torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(1))


def to_int8(network: Any) -> None:
    torchao: Any = pytest.importorskip("torchao.quantization", exc_type=ImportError)
    torchao.quantize_(network[1:], torchao.Int8WeightOnlyConfig())


def to_bitsandbytes(make: Callable[[Any, nn.Linear], nn.Module]) -> Callable[[Any], None]:
    def quantise(network: Any) -> None:
        library: Any = pytest.importorskip("bitsandbytes", exc_type=ImportError)
        for block in network[1:]:
            for index in (0, 2):
                layer = block.branch[index]
                quantised = make(library.nn, layer)
                quantised.load_state_dict(layer.state_dict())
                block.branch[index] = quantised.to("cpu")  # which quantises

    return quantise


def in_4_bits(library: Any, layer: nn.Linear) -> nn.Module:
    shape = layer.in_features, layer.out_features
    return library.Linear4bit(*shape, bias=False, compute_dtype=torch.float32, quant_type="nf4")


def in_8_bits(library: Any, layer: nn.Linear) -> nn.Module:
    return library.Linear8bitLt(layer.in_features, layer.out_features, bias=False, has_fp16_weights=False)


QUANTISED: dict[str, Callable[[Any], None]] = {
    "torchao int8": to_int8,
    "bitsandbytes 4 bits": to_bitsandbytes(in_4_bits),
    "bitsandbytes 8 bits": to_bitsandbytes(in_8_bits),
}


@pytest.mark.parametrize("quantise", QUANTISED.values(), ids=QUANTISED)
def test_gradients_pass_quantised_weights(quantise: Callable[[Any], None]) -> None:
    """The norms are those of autograd, through the quantised layers."""
    network, x = quantisable(), features()
    quantise(network)
    assert not any(p.requires_grad for p in network[1:].parameters())
    assert [j.name for j in find_junctions(network, x)] == ["1", "2"]
    with left_as_it_was(network):
        with record(network) as recording:
            network(x).square().mean().backward()
        network.zero_grad()
    hidden = [network[0](x)]
    for block in network[1:]:
        hidden.append(block(hidden[-1]))
    wanted = torch.autograd.grad(hidden[-1].square().mean(), hidden[:-1])
    # Float32, and gradients of a fork summed in another order
    assert values(gradient_norms(recording), "total") == pytest.approx([g.norm().item() for g in wanted], rel=1e-5)
    branches = [block.branch(h).norm().item() for block, h in zip(network[1:], hidden, strict=False)]
    assert values(residual_magnitudes(recording), "branch") == pytest.approx(branches, rel=1e-5)


@pytest.mark.parametrize("quantise", QUANTISED.values(), ids=QUANTISED)
def test_the_gate_acts_on_quantised_weights(quantise: Callable[[Any], None]) -> None:
    network, x = quantisable(), features()
    quantise(network)
    with gate(network, shortcut_gradient=0.0, branch_gradient=0.0, where="1"):
        network(x).square().mean().backward()
    assert network[0].weight.grad.count_nonzero() == 0
    with gate(network, branch_gradient=0.0):
        network(x).square().mean().backward()
    twin = copy.deepcopy(network[:1])
    twin.zero_grad()
    (twin(x) * network(x).detach() * (2 / x.numel())).sum().backward()  # by the shortcuts alone
    assert torch.allclose(network[0].weight.grad, twin[0].weight.grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("bits", [4, 8])
def test_what_a_quantised_layer_gives_is_no_parameter(bits: int) -> None:
    """Of inputs without a node, which those of a second forward are, only its bias is left in the graph."""
    library: Any = pytest.importorskip("bitsandbytes", exc_type=ImportError)
    kind = {4: library.nn.Linear4bit, 8: partial(library.nn.Linear8bitLt, has_fp16_weights=False)}[bits]
    inner = Residual(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU()))

    def forward(self: Any, x: Tensor) -> Tensor:
        hidden = self.stem(x)
        return hidden + self.inner(hidden).tanh()

    network = Apply(forward, stem=kind(WIDTH, WIDTH).to("cpu"), inner=inner)
    for _ in range(3):
        with record(network) as recording:
            network(features()).sum().backward()
        assert [site.name for site in recording.sites] == ["inner", "(model)"]


def test_layers_quantised_for_inference_are_refused() -> None:
    """They pass no gradient: junctions around them would be missed."""
    network: Any = torch.ao.quantization.quantize_dynamic(quantisable(), {nn.Linear}, dtype=torch.qint8)
    message = r"torch.ao.nn.quantized's Linear passes no gradient back, so that junctions would be missed: .*\(torchao"
    for context in (record, gate):
        with left_as_it_was(network), pytest.raises(RuntimeError, match=message), context(network):
            pytest.fail("it must not begin")
    with pytest.raises(RuntimeError, match=message):
        find_junctions(network, features())


# Language models: adapters, and caches of keys and values.


def language_model(name: str) -> Any:
    transformers: Any = pytest.importorskip("transformers")
    torch.manual_seed(0)
    special = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    if name == "gpt2":
        config = transformers.GPT2Config(
            n_layer=2, n_embd=16, n_head=2, vocab_size=20, n_positions=16, loss_type="ForCausalLM", **special
        )
        return transformers.GPT2LMHeadModel(config).eval()  # without dropout
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = transformers.LlamaConfig(
        num_hidden_layers=2, vocab_size=20, max_position_embeddings=16, **sizes, **special
    )
    return transformers.LlamaForCausalLM(config).eval()


def tokens() -> Tensor:
    return torch.randint(1, 20, (2, 8), generator=torch.Generator().manual_seed(1))


JUNCTIONS = {
    "gpt2": ["transformer.h.0", "transformer.h.0#1", "transformer.h.1", "transformer.h.1#1"],
    "llama": ["model.layers.0", "model.layers.0#1", "model.layers.1", "model.layers.1#1"],
}
each_model = pytest.mark.parametrize("name", JUNCTIONS)


def trained(model: nn.Module, ids: Tensor, **options: Any) -> Recording:
    with record(model) as recording:
        model(input_ids=ids, labels=ids, **options).loss.backward()
    return recording


def numbers(recording: Recording) -> pd.DataFrame:
    tables = [gradient_norms(recording), residual_magnitudes(recording)]
    return pd.concat(tables, ignore_index=True).drop(columns="block")


@each_model
@pytest.mark.parametrize("part", ["attention", "all"])
def test_lora_s_adapters_leave_frozen_bases_their_junctions(name: str, part: str) -> None:
    """New adapters add exactly zero: the numbers are the base's own. With those in the attention alone, the branches of
    the MLP hold frozen weights only."""
    peft: Any = pytest.importorskip("peft", exc_type=ImportError)
    base, ids = language_model(name), tokens()
    wanted = numbers(trained(copy.deepcopy(base), ids))
    layers = {"gpt2": ["c_attn"], "llama": ["q_proj", "v_proj"]}[name] if part == "attention" else "all-linear"
    model = peft.get_peft_model(base, peft.LoraConfig(target_modules=layers, r=2, fan_in_fan_out=name == "gpt2"))
    assert not any(p.requires_grad for name, p in model.named_parameters() if "lora_" not in name)
    junctions = [f"base_model.model.{junction}" for junction in JUNCTIONS[name]]
    assert [j.name for j in find_junctions(model, input_ids=ids)] == junctions
    with left_as_it_was(model):
        recording = trained(model, ids)
        model.zero_grad()
    assert [site.name for site in recording.sites] == junctions
    pd.testing.assert_frame_equal(numbers(recording), wanted, rtol=1e-5, atol=1e-7)  # float32


def reached(model: nn.Module, call: Callable[[], Tensor], where: str) -> tuple[set[str], set[str]]:
    """Of which of the model's parameters gradients are not zero: without a gate, and where one closes a junction."""
    found: list[set[str]] = []
    for weight in (1.0, 0.0):
        with gate(model, shortcut_gradient=weight, branch_gradient=weight, where=where):
            call().backward()
        found.append({name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()})
        model.zero_grad()
    return found[0], found[1]


@each_model
def test_the_gate_acts_on_adapted_models_and_on_forwards_with_a_cache(name: str) -> None:
    """The last junction's fork gets nothing: what is left are the parameters of its branch and behind it."""
    peft: Any = pytest.importorskip("peft", exc_type=ImportError)
    model, ids = language_model(name), tokens()
    last, of_last = JUNCTIONS[name][-1], {"gpt2": "transformer.h.1.", "llama": "model.layers.1."}[name]
    inside = (
        f"{of_last}mlp",
        f"{of_last}ln_2",
        f"{of_last}post_attention",
        "transformer.ln_f",
        "model.norm",
        "lm_head",
    )
    embeddings = {"transformer.wte.weight"} if name == "gpt2" else set[str]()  # GPT-2's is the head's weight, too

    def after_a_cache() -> Tensor:
        with torch.no_grad():
            cache = model(input_ids=ids[:, :5], use_cache=True).past_key_values
        return model(input_ids=ids[:, 5:], past_key_values=cache).logits.square().mean()

    ungated, gated = reached(model, after_a_cache, last)
    assert gated == {p for p in ungated if p.startswith(inside)} | embeddings
    assert gated < ungated
    layers = {"gpt2": ["c_attn", "c_fc"], "llama": ["q_proj", "up_proj"]}[name]
    settings = peft.LoraConfig(target_modules=layers, r=2, fan_in_fan_out=name == "gpt2", init_lora_weights=False)
    adapted = peft.get_peft_model(model, settings)
    ungated, gated = reached(adapted, lambda: adapted(input_ids=ids, labels=ids).loss, f"base_model.model.{last}")
    assert len(ungated) == 8
    assert gated == {p for p in ungated if p.startswith(f"base_model.model.{of_last}mlp")}
    assert len(gated) == 2


def test_lora_on_weights_of_4_bits() -> None:
    """QLoRA: the branches of the MLP hold a frozen norm and weights of 4 bits."""
    peft: Any = pytest.importorskip("peft", exc_type=ImportError)
    library: Any = pytest.importorskip("bitsandbytes", exc_type=ImportError)
    base, ids = language_model("llama"), tokens()
    for layer in base.model.layers:
        for module in (layer.mlp, layer.self_attn):
            for part, linear in list(module.named_children()):
                if isinstance(linear, nn.Linear):
                    quantised = in_4_bits(library.nn, linear)
                    quantised.load_state_dict(linear.state_dict())
                    setattr(module, part, quantised.to("cpu"))
    model = peft.get_peft_model(base, peft.LoraConfig(target_modules=["q_proj", "v_proj"], r=2))
    recording = trained(model, ids)
    assert [site.name for site in recording.sites] == [
        f"base_model.model.{junction}" for junction in JUNCTIONS["llama"]
    ]
    assert min(values(gradient_norms(recording), "total")) > 0


def test_adapters_are_tracked_in_hugging_face_s_trainer(tmp_path: Path) -> None:
    """Each step's norms are those of `record` on a twin that is trained by hand."""
    peft: Any = pytest.importorskip("peft", exc_type=ImportError)
    pytest.importorskip("accelerate")
    from transformers import Trainer, TrainingArguments

    settings = peft.LoraConfig(target_modules=["c_attn"], r=2, fan_in_fan_out=True, init_lora_weights=False)
    model = peft.get_peft_model(language_model("gpt2"), settings)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    twin, tables = copy.deepcopy(model), dict[int, pd.DataFrame]()
    labels = tokens()
    labels[:, 0] = -100  # predicted by none: without it, the trainer divides the loss by more tokens than the model
    examples: Any = [{"input_ids": row, "labels": of_row} for row, of_row in zip(tokens(), labels, strict=True)] * 3
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=2,
        max_steps=3,
        max_grad_norm=0.0,
        lr_scheduler_type="constant",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
    )

    class InOrder(Trainer):
        def _get_train_sampler(self, *_: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
            return torch.utils.data.SequentialSampler(examples)

    adapters = [p for p in model.parameters() if p.requires_grad]
    trainer = InOrder(model, arguments, train_dataset=examples, optimizers=(SGD(adapters, lr=0.1), None))  # pyright: ignore[reportArgumentType]
    with track(model, every=2, to=tables.__setitem__):
        trainer.train()
    assert list(tables) == [0, 2]
    opt = SGD([p for p in twin.parameters() if p.requires_grad], lr=0.1)
    for step in range(3):
        opt.zero_grad()
        recording = trained(twin, tokens())
        if step in tables:
            found = tables[step].query("probe == 'gradient_norms'")["value"].tolist()
            assert found == pytest.approx(gradient_norms(recording)["value"].tolist(), rel=1e-4, abs=1e-7)  # float32
        opt.step()


@each_model
@pytest.mark.parametrize("with_graph", [True, False])
def test_a_forward_that_reads_a_cache(name: str, with_graph: bool) -> None:
    """Keys and values of earlier tokens are no junctions of this forward, and its own are the uncached forward's."""
    model, ids = language_model(name), tokens()
    with record(model) as whole:
        model(input_ids=ids)
    with torch.set_grad_enabled(with_graph):
        before = model(input_ids=ids[:, :5], use_cache=True)
    with record(model) as recording:
        out = model(input_ids=ids[:, 5:], past_key_values=before.past_key_values)
        out.logits.square().mean().backward()
    assert [site.name for site in recording.sites] == [site.name for site in whole.sites] == JUNCTIONS[name]
    found = gradient_norms(recording)
    assert min(values(found, "total")) > 0
    assert max(values(found, "other")) < 1e-5 * min(values(found, "total"))  # nothing of this forward goes around
    forks = last_forks(model, ids, before_with_graph=with_graph)
    assert values(found, "total") == pytest.approx(forks, rel=1e-4)


def last_forks(model: Any, ids: Tensor, *, before_with_graph: bool) -> list[float]:
    """Autograd's gradient at the input of each attention's and each MLP's norm, in the second of two forwards."""
    with torch.set_grad_enabled(before_with_graph):
        cache = model(input_ids=ids[:, :5], use_cache=True).past_key_values
    forks: list[Tensor] = []
    norms = [
        m for n, m in model.named_modules() if n.endswith(("ln_1", "ln_2", "input_layernorm", "attention_layernorm"))
    ]
    handles = [norm.register_forward_pre_hook(lambda _, args: forks.append(args[0])) for norm in norms]
    try:
        loss = model(input_ids=ids[:, 5:], past_key_values=cache).logits.square().mean()
    finally:
        for handle in handles:
            handle.remove()
    return [g.norm().item() for g in torch.autograd.grad(loss, forks)]


@each_model
def test_generation_records_nothing_and_is_not_changed(name: str) -> None:
    model, ids = language_model(name), tokens()[:, :4]
    settings: dict[str, Any] = {"max_new_tokens": 3, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    wanted = model.generate(ids, **settings)
    with left_as_it_was(model):
        with record(model) as recording:
            assert torch.equal(model.generate(ids, **settings), wanted)
        with gate(model, shortcut_gradient=0.0):
            assert torch.equal(model.generate(ids, **settings), wanted)
    with pytest.raises(ValueError, match=r"nothing was recorded: .* with gradients enabled"):
        gradient_norms(recording)
