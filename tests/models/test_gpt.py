"""The GPT: equal to Hugging Face's, its flows against detaches written by hand, and what it refuses."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Model

from models import (
    ARMS,
    GPT,
    PLAIN,
    RESIDUAL,
    SHORTEST_PATH,
    STOP_GRADIENT,
    Flow,
    TransformerBlock,
    convert_gpt2_weights,
    gpt,
    residual_blocks,
    set_flows,
)
from probes import find_junctions, gate, jacobian_spectrum, path_contributions, path_gradients, record
from tests.support.networks import FLOAT64, relative_error, values

VOCABULARY, CONTEXT = 17, 9
SIZES: dict[str, Any] = {"width": 12, "heads": 3, "vocabulary": VOCABULARY, "context": CONTEXT}
# Float64 rounding of sums over some hundred products, eps = 2e-16 each; a wrong term is off by more than 1e-3.
CLOSE = 1e-12
QKV = "blocks.{}.attention.branch.attention.qkv"


def tokens(count: int = 2, length: int = CONTEXT) -> Tensor:
    return torch.randint(VOCABULARY, (count, length), generator=torch.Generator().manual_seed(1))


def network(layers: int = 3, *, moved: bool = True, **options: Any) -> GPT:
    """One that has left its first weights, among which are zeros and ones."""
    torch.manual_seed(0)
    model = gpt(layers, **{**SIZES, **options}).double()
    with torch.no_grad():
        for parameter in model.parameters() if moved else ():
            parameter += 0.2 * torch.randn_like(parameter)
    return model


def next_token_loss(model: nn.Module, x: Tensor) -> Tensor:
    return loss_of(model(x), x)


def loss_of(logits: Tensor, x: Tensor) -> Tensor:
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), x[:, 1:].flatten())


def gradients(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Of the loss, by the parameters' names; none is missing."""
    model.zero_grad()
    next_token_loss(model, x).backward()
    return {name: gradient_of(parameter) for name, parameter in model.named_parameters()}


def gradient_of(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad.clone()


# Hugging Face's


def theirs(**options: Any) -> GPT2LMHeadModel:
    """A GPT-2 of random weights, which has left its first ones, without dropout."""
    torch.manual_seed(0)
    sizes = {"n_embd": 12, "n_head": 3, "vocab_size": VOCABULARY, "n_positions": CONTEXT, "n_layer": 3}
    dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    model = GPT2LMHeadModel(GPT2Config(**{**sizes, **dropout, **options})).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return model


def ours(state: dict[str, Tensor], **options: Any) -> GPT:
    model = gpt(3, **{**SIZES, **options}).double()
    model.load_state_dict(state)
    return model


def check_equal_gradients(model: GPT, other: GPT2LMHeadModel) -> None:
    """Theirs, converted as their weights are, are ours."""
    of_theirs = {name: gradient_of(parameter) for name, parameter in other.named_parameters()}
    wanted, got = convert_gpt2_weights(of_theirs), {n: gradient_of(p) for n, p in model.named_parameters()}
    del wanted["head.weight"]  # the token embedding's
    assert list(wanted) == list(got)
    for name, gradient in got.items():
        assert gradient.any(), name
        assert relative_error(gradient, wanted[name]) < CLOSE, name


def test_loss_and_every_gradient_are_those_of_hugging_face() -> None:
    other, x = theirs(), tokens(4)
    model = ours(other.state_dict())
    loss = next_token_loss(model, x)
    loss.backward()
    found = other(x, labels=x)
    loss_of(found.logits, x).backward()
    assert relative_error(model(x), found.logits) < CLOSE
    assert loss.item() == pytest.approx(found.loss.item(), rel=1e-6)  # they take their loss of logits in float32
    # Every bias of a key adds one number to a row of logits, which softmax does not see: its gradient is rounding.
    keys = slice(12, 24)
    for layer in range(3):
        for part in (other.get_submodule(f"transformer.h.{layer}.attn.c_attn"), model.get_submodule(QKV.format(layer))):
            assert gradient_of(part.get_parameter("bias"))[keys].abs().max() < 1e-15
    check_equal_gradients(model, other)


def test_stop_gradient_at_attention_is_the_gated_model_of_hugging_face() -> None:
    """Their block adds twice, first the attention: ``transformer.h.0``, then the MLP: ``transformer.h.0#1``."""
    other, x = theirs(), tokens(4)
    for flows, where in (({"attention": STOP_GRADIENT}, "*.h.?"), ({"mlp": STOP_GRADIENT}, "*.h.?#1")):
        model = ours(other.state_dict(), **flows)
        gradients(model, x)
        other.zero_grad()
        with gate(other, shortcut_gradient=0.0, where=where):
            loss_of(other(x).logits, x).backward()
        check_equal_gradients(model, other)


@pytest.mark.parametrize("written", ["GPT2Model", "published file", "DataParallel"])
def test_every_written_form_of_their_weights_loads(written: str) -> None:
    """The published files name neither the outer module nor the read-out, and hold the masks."""
    other = theirs()
    state = dict(other.state_dict())
    if written == "DataParallel":
        state = {f"module.{name}": value for name, value in state.items()}
    else:
        state = {name.removeprefix("transformer."): value for name, value in state.items() if "lm_head" not in name}
    if written == "GPT2Model":
        bare = GPT2Model(other.config).double()
        bare.load_state_dict(other.transformer.state_dict())
        assert list(bare.state_dict()) == list(state)
    if written == "published file":
        state |= {"h.0.attn.bias": torch.ones(1, 1, 9, 9), "h.1.attn.masked_bias": torch.tensor(-1e4)}
    assert torch.equal(ours(state)(tokens()), ours(other.state_dict())(tokens()))


@pytest.mark.parametrize(
    ("layers", "width", "heads", "millions"),
    [(12, 768, 12, 124.440), (24, 1024, 16, 354.823), (48, 1600, 25, 1557.611)],
)
def test_all_sizes_of_gpt2_load_key_for_key(layers: int, width: int, heads: int, millions: float) -> None:
    """Names and shapes, and the number of parameters that Hugging Face's own has."""
    with torch.device("meta"):
        model = gpt(layers, width=width, heads=heads, vocabulary=50257, context=1024)
        other = GPT2LMHeadModel(GPT2Config(n_layer=layers, n_embd=width, n_head=heads))
    state = {name: value for name, value in other.state_dict().items() if name != "lm_head.weight"}
    converted = convert_gpt2_weights(state)
    assert {n: v.shape for n, v in converted.items()} == {n: v.shape for n, v in model.state_dict().items()}
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=5e-4)


def test_weights_by_our_own_names_load_as_they_are_and_what_is_missing_is_named() -> None:
    model, other = network(), theirs()
    again = network(moved=False)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(tokens()), model(tokens()))
    state = dict(other.state_dict())
    del state["transformer.h.1.mlp.c_fc.bias"]
    with pytest.raises(RuntimeError, match=r"Missing key\(s\) in state_dict: \"blocks.1.mlp.branch.mlp.hidden.bias\""):
        model.load_state_dict(state)


def test_other_weights_are_refused() -> None:
    with pytest.raises(ValueError, match=r"with names such as state_dict; wanted GPT-2's, .* pass its state_dict"):
        convert_gpt2_weights({"state_dict": torch.ones(1)})
    with pytest.raises(ValueError, match=r"names such as \(none\)"):
        convert_gpt2_weights({})
    untied = theirs(tie_word_embeddings=False).state_dict()
    with pytest.raises(ValueError, match=r"lm_head.weight is not wte.weight: `gpt` reads out by its token embedding"):
        convert_gpt2_weights(untied)


# Flows


def by_hand(model: GPT, x: Tensor, attention: Callable[[Tensor], Tensor], mlp: Callable[[Tensor], Tensor]) -> Tensor:
    """The logits of the residual network, written out, where the shortcuts carry a function of the stream."""
    stream = model.tokens(x) + model.positions(torch.arange(x.shape[1]))
    for block in model.blocks:
        stream = attention(stream) + block.get_submodule("attention.branch")(stream)
        stream = mlp(stream) + block.get_submodule("mlp.branch")(stream)
    return model.head(model.norm(stream))


def same(x: Tensor) -> Tensor:
    return x


DETACHES: dict[str, tuple[dict[str, Any], tuple[Callable[[Tensor], Tensor], ...]]] = {
    "attention": ({"attention": STOP_GRADIENT}, (Tensor.detach, same)),
    "mlp": ({"mlp": STOP_GRADIENT}, (same, Tensor.detach)),
    "both": ({"attention": STOP_GRADIENT, "mlp": STOP_GRADIENT}, (Tensor.detach, Tensor.detach)),
    "neither": ({}, (same, same)),
    "plain attention": ({"attention": PLAIN}, (torch.zeros_like, same)),
}


@pytest.mark.parametrize(("flows", "carry"), DETACHES.values(), ids=DETACHES)
def test_stop_gradient_is_a_detach_written_by_hand_to_the_last_bit(flows: dict[str, Any], carry: Any) -> None:
    x, model, twin = tokens(), network(**flows), network()
    logits = by_hand(twin, x, *carry)
    loss_of(logits, x).backward()
    assert torch.equal(model(x), logits)
    got = gradients(model, x)
    for name, parameter in twin.named_parameters():
        assert torch.equal(got[name], gradient_of(parameter)), name


def test_a_gate_finds_attention_and_mlps_by_their_names() -> None:
    x = tokens()
    for kind in ("attention", "mlp"):
        model = network()
        with gate(model, shortcut_gradient=0.0, where=f"*.{kind}"):
            got = gradients(model, x)
        cut: dict[str, Any] = {kind: STOP_GRADIENT}
        wanted = gradients(network(**cut), x)
        assert all(torch.equal(got[name], wanted[name]) for name in wanted)


def test_no_two_flows_have_one_gradient() -> None:
    """Which the test above would not see if it compared what no flow changes."""
    found = [gradients(network(**flows), tokens())["tokens.weight"] for flows, _ in DETACHES.values()]
    assert all(not torch.equal(a, b) for i, a in enumerate(found) for b in found[:i])


JUNCTIONS = [f"blocks.{layer}.{kind}" for layer in range(3) for kind in ("attention", "mlp")]


@pytest.mark.parametrize("normalisation", ["pre", "post"])
@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_has_the_same_junctions_weights_and_gradients(arm: str, normalisation: str) -> None:
    model, x = network(attention=ARMS[arm], mlp=ARMS[arm], normalisation=normalisation), tokens()
    found = find_junctions(model, x)
    assert [junction.name for junction in found] == JUNCTIONS
    assert {junction.shortcut for junction in found} == {"identity"}
    twin = network(normalisation=normalisation)
    assert all(torch.equal(value, twin.state_dict()[name]) for name, value in model.state_dict().items())
    assert torch.equal(model(x), twin(x)) == (ARMS[arm].shortcut == 1)
    gradients(model, x)
    with record(model) as recording:
        next_token_loss(model, x).backward(retain_graph=True)
    assert [site.name for site in recording.junctions] == JUNCTIONS


@pytest.mark.parametrize("normalisation", ["pre", "post"])
def test_path_lengths_sum_to_autograd_and_their_ends_are_arms(normalisation: str) -> None:
    x, found = tokens(), {}
    for arm in ("residual", "stop-gradient", "shortest-path", "plain"):
        model = network(attention=ARMS[arm], mlp=ARMS[arm], normalisation=normalisation)
        with record(model, keep=True) as recording:
            next_token_loss(model, x).backward(retain_graph=True)
        found[arm] = path_gradients(recording), recording.gradient(recording.sites[0], "total")
    lengths, total = found["residual"]
    assert lengths.shape == (7, 2, CONTEXT, 12)
    assert relative_error(lengths.sum(0), total) < CLOSE
    assert relative_error(lengths[-1], found["stop-gradient"][1]) < CLOSE
    assert relative_error(lengths[0], found["shortest-path"][1]) < CLOSE
    for arm in ("stop-gradient", "plain"):
        lengths, total = found[arm]
        assert not lengths[:-1].any()
        assert relative_error(lengths[-1], total) < CLOSE


def test_stop_gradient_at_attention_leaves_the_paths_through_every_attention() -> None:
    """Of 3 blocks: at least 3 branches, and as many as the network has."""
    model, x = network(attention=STOP_GRADIENT), tokens()
    with record(model) as recording:
        next_token_loss(model, x).backward(retain_graph=True)
    norms = values(path_contributions(recording), "norm")
    assert [norm > 0 for norm in norms] == [False] * 3 + [True] * 4


def test_each_block_may_have_its_own_flow() -> None:
    attention, mlp = ([Flow(shortcut_gradient=k / 8 + shift) for k in range(3)] for shift in (0, 0.5))
    wanted = [flow for pair in zip(attention, mlp, strict=True) for flow in pair]
    model = network(attention=attention, mlp=mlp)
    assert [block.flow for block in residual_blocks(model)] == wanted
    names = {module: name for name, module in model.named_modules()}
    assert [names[block] for block in residual_blocks(model)] == JUNCTIONS
    other = network()
    set_flows(other, wanted)
    got, by_setting = (gradients(of, tokens()) for of in (model, other))
    assert all(torch.equal(got[name], by_setting[name]) for name in got)
    block = model.blocks[1]
    assert isinstance(block, TransformerBlock)
    block.mlp.flow = SHORTEST_PATH
    assert residual_blocks(model)[3].flow == SHORTEST_PATH


def test_weights_act_at_the_fork_and_not_on_what_a_branch_learns() -> None:
    """The last block's branches learn alike, whatever flows back through them; at weights 0 nothing reaches before."""
    x = tokens()
    cut = network(1, attention=Flow(shortcut_gradient=0, branch_gradient=0))
    got, wanted = gradients(cut, x), gradients(network(1), x)
    for name in got:
        before = name == "positions.weight"
        if name != "tokens.weight":  # which is the read-out, too
            assert torch.equal(got[name], torch.zeros_like(got[name]) if before else wanted[name]), name


# What it computes


def test_a_later_token_changes_no_earlier_output() -> None:
    for options in ({}, {"first_weights": "near-identity", "attention": PLAIN, "mlp": PLAIN}):
        model, x = network(**options), tokens(1)
        before = model(x)
        for place in range(CONTEXT):
            changed = x.clone()
            changed[0, place] = (x[0, place] + 1) % VOCABULARY
            moved = (model(changed) != before).any(-1)[0].tolist()
            assert moved == [False] * place + [True] * (CONTEXT - place)
        torch.testing.assert_close(model(x[:, :4]), before[:, :4], rtol=CLOSE, atol=CLOSE)


def test_post_normalisation_on_paper() -> None:
    """norm(x + attention(x)), then norm(x + mlp(x)), and nothing after the last block."""
    model, x = network(1, normalisation="post"), tokens()
    part = model.get_submodule
    stream = model.tokens(x) + model.positions(torch.arange(CONTEXT))
    for kind in ("attention", "mlp"):
        stream = part(f"blocks.0.{kind}.activation")(stream + part(f"blocks.0.{kind}.branch.{kind}")(stream))
    assert torch.equal(model(x), stream @ model.tokens.weight.T)
    assert sum(isinstance(module, nn.LayerNorm) for module in model.modules()) == 2


# First weights

# Orthogonal matrices were made in float32, eps = 1.2e-7.
ORTHOGONAL = 2e-6
CHOICES = ("ordinary", "depth-scaled", "near-identity")


def begun(first_weights: str, layers: int = 3, **options: Any) -> GPT:
    return network(layers, moved=False, first_weights=first_weights, **options)


def test_networks_of_one_seed_differ_in_their_branches_matrices_alone() -> None:
    models = {choice: begun(choice) for choice in CHOICES}
    ordinary, state = models["ordinary"].state_dict(), torch.get_rng_state()
    for choice, matrices in (("depth-scaled", ("output",)), ("near-identity", ("output", "hidden", "qkv"))):
        for name, value in begun(choice).state_dict().items():
            if name.endswith(".own"):
                assert value.item() == 3
                continue
            changes = any(f".{matrix}.weight" in name for matrix in matrices)
            assert torch.equal(value, ordinary[name]) != changes, name
        assert torch.equal(torch.get_rng_state(), state)
    query_and_key = QKV.format(0) + ".weight"
    assert torch.equal(models["near-identity"].state_dict()[query_and_key][:24], ordinary[query_and_key][:24])


def test_ordinary_weights_are_those_of_gpt2() -> None:
    """Normal of deviation 0.02 (1.6 million numbers give it to 0.1 %), without biases; the last of each branch over
    root 2 L, as Hugging Face's begin, where that is asked for."""
    for choice, factor in (("ordinary", 1.0), ("depth-scaled", 0.5)):
        torch.manual_seed(0)
        model = gpt(2, width=256, heads=4, vocabulary=100, context=64, first_weights=choice)  # type: ignore[arg-type]
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                wanted = 0.02 * (factor if ".output." in name else 1)
                assert parameter.std().item() == pytest.approx(wanted, rel=0.02), name
                assert abs(parameter.mean().item()) < 1e-3
            else:
                assert torch.equal(parameter, torch.full_like(parameter, float("norm.weight" in name))), name


def test_near_identity_branches_pass_their_normalised_input_on() -> None:
    """MLPs exactly; attention where a token sees itself alone, and where all tokens are alike."""
    model = begun("near-identity")
    x = torch.randn(2, 5, 12, dtype=FLOAT64)
    for block in model.blocks:
        mlp, attention = (block.get_submodule(f"{kind}.branch") for kind in ("mlp", "attention"))
        normed = F.layer_norm(x, (12,))
        assert relative_error(mlp(x), normed) < ORTHOGONAL
        assert relative_error(attention(x)[:, 0], normed[:, 0]) < ORTHOGONAL
        alike = x[:, :1].expand_as(x)
        assert relative_error(attention(alike), F.layer_norm(alike, (12,))) < ORTHOGONAL


def test_a_near_identity_token_gives_itself_l_times_what_it_gives_all_others() -> None:
    """Of 3 layers, with queries of 0: itself 3/4, and the mean of all earlier tokens 1/4."""
    model = begun("near-identity")
    attention = model.get_submodule("blocks.1.attention.branch.attention")
    with torch.no_grad():
        attention.qkv.weight[:12] = 0  # type: ignore[index, union-attr]
    x = torch.randn(2, 5, 12, dtype=FLOAT64)
    earlier = torch.stack([x[:, :place].mean(1) for place in range(1, 5)], 1)
    got = attention(x)
    assert relative_error(got[:, 0], x[:, 0]) < ORTHOGONAL
    assert relative_error(got[:, 1:], 0.75 * x[:, 1:] + 0.25 * earlier) < ORTHOGONAL


@pytest.mark.parametrize("normalisation", ["pre", "post"])
def test_plain_near_identity_blocks_are_near_isometries_and_their_stream_at_any_depth(normalisation: str) -> None:
    """The spread of squared singular values, 1 for an isometry, is here at least D / (D - 2): a layer norm sends two of
    a token's D directions to zero. MLPs have that, attention a twentieth more. Ordinary plain blocks are far from it
    (2 to 20), and so is their stream (100)."""

    def spreads(first_weights: str, layers: int, of: Any) -> list[float]:
        model = begun(first_weights, layers, attention=PLAIN, mlp=PLAIN, normalisation=normalisation)
        found = jacobian_spectrum(model, tokens(1, 6), of=of)
        if of == "blocks" and first_weights == "near-identity":  # but the first, which scales the embeddings to 1
            assert values(found, "mean_square")[1:] == pytest.approx([0.9] * 11, abs=0.3)
        return values(found, "spread")

    assert spreads("near-identity", 6, "blocks")[1:] == pytest.approx([1.2] * 11, rel=0.05)
    assert min(spreads("ordinary", 6, "blocks")) > 2
    assert spreads("near-identity", 6, "stream")[0] < 3.5
    assert spreads("near-identity", 12, "stream")[0] < 3.5
    assert spreads("ordinary", 6, "stream")[0] > 50


def test_what_leans_to_the_diagonal_does_not_load_as_what_does_not() -> None:
    """The bias is stored with the weights: without it they would be another network's."""
    near, ordinary = begun("near-identity"), begun("ordinary")
    again = begun("near-identity")
    again.load_state_dict(copy.deepcopy(near.state_dict()))
    for model, other in ((ordinary, near), (near, ordinary)):
        with pytest.raises(RuntimeError, match=r"attention\.own"):
            model.load_state_dict(other.state_dict())


# What it refuses


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": 0}, "layers 0: give at least 1"),
        ({"width": 10, "heads": 4}, "width 10 cannot be shared by 4 heads: give a multiple of 4"),
        ({"heads": 0}, "heads 0: give at least 1"),
        ({"vocabulary": 0}, "vocabulary 0: give at least 1"),
        ({"context": 0}, "context 0: give at least 1"),
        ({"normalisation": "rms"}, r'normalisation is \'rms\': choose "pre" \(in each branch\) or "post"'),
        ({"first_weights": "he"}, "first_weights is 'he': give ordinary, depth-scaled or near-identity"),
        ({"attention": "plain"}, "attention is 'plain': give a Flow, such as STOP_GRADIENT"),
        ({"mlp": [RESIDUAL] * 3}, "mlp: got 3 flows for 2 blocks: give one Flow for all, or one for each block"),
    ],
)
def test_bad_input(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gpt(**{"layers": 2, **SIZES, **options})


def test_sequences_that_do_not_fit_are_refused() -> None:
    model = network()
    with pytest.raises(ValueError, match="a sequence of 10 tokens is longer than the context of 9: cut it"):
        model(tokens(1, 10))
    with pytest.raises(ValueError, match=r"tokens of shape \(4,\): give \(N, T\), N sequences of T token numbers"):
        model(tokens(1, 4)[0])
