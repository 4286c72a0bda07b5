"""`read_out` on logits done on paper, and after the last block against the model's own loss, to the bit."""

import math
from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from models import ARMS, cifar_resnet, residual_mlp
from probes import read_out, record
from tests.support.networks import FLOAT64, Residual, chain, images, left_as_it_was, linear, one, scalars, values
from tests.support.zoo import GPT, IDS, SIZES, hugging_face, tokens


def two_logits(h: Tensor) -> Tensor:
    """(h, 0): the probability of the first is sigmoid(h)."""
    return torch.cat([h, torch.zeros_like(h)], -1)


def test_two_scalar_blocks_as_on_paper() -> None:
    """The stream is 3, then 12."""
    with record(model := scalars(2.0, 3.0), keep=True) as recording:
        model(torch.cat([one(), -one()]))
    table = read_out(recording, two_logits, torch.tensor([0, 0]))
    assert list(table.columns) == ["block", "depth", "quantity", "value"]
    assert table["block"].tolist() == ["0"] * 5 + ["1"] * 5
    assert table["quantity"].tolist() == ["loss", "accuracy", "entropy", "divergence", "agreement"] * 2
    wanted = []
    for h in (3, 12):
        p, last = 1 / (1 + math.exp(-h)), 1 / (1 + math.exp(-12))
        loss = (-math.log(p) - math.log(1 - p)) / 2  # of h and of -h, both with the label 0
        entropy = -p * math.log(p) - (1 - p) * math.log(1 - p)
        divergence = last * math.log(last / p) + (1 - last) * math.log((1 - last) / (1 - p))
        wanted += [loss, 0.5, entropy, divergence, 1]
    # 1 - p of e^-12 keeps ten digits.
    assert table["value"].tolist() == pytest.approx(wanted, rel=1e-9, abs=1e-15)
    assert read_out(recording, two_logits)["quantity"].tolist() == ["entropy", "divergence", "agreement"] * 2
    ignoring = read_out(recording, two_logits, torch.tensor([0, -100]))  # what is ignored is no miss either
    assert values(ignoring, "accuracy") == [1, 1]
    assert values(ignoring, "loss") == pytest.approx([math.log1p(math.exp(-h)) for h in (3, 12)], rel=1e-9)


@pytest.mark.parametrize("arm", ARMS)
def test_the_last_block_s_read_out_is_the_model_s_own_loss(arm: str) -> None:
    """In train mode, whose BatchNorm has only the batch's own statistics."""
    labels = torch.arange(4)
    model = cifar_resnet(14, flow=ARMS[arm], width=4).double()
    with record(model, keep=True) as recording:
        logits = model(images())
    wanted = F.cross_entropy(logits, labels).item()
    heads: dict[str, Callable[[Tensor], Tensor]] = dict.fromkeys(("layer3.0", "layer3.1"), model.classifier)
    table = read_out(recording, heads, labels)
    assert values(table, "loss")[-1] == wanted
    assert values(table, "accuracy")[-1] == (logits.argmax(-1) == labels).double().mean().item()
    assert values(table, "divergence")[-1] == 0
    assert table["block"].unique().tolist() == ["layer3.0", "layer3.1"]
    by_hand = {"layer3.1": lambda h: model.classifier(model.pool(torch.relu(h)))}
    assert values(read_out(recording, by_hand, labels), "loss") == [wanted]


def test_a_pre_activation_network_s_head_moves_no_statistics() -> None:
    model, labels = cifar_resnet(14, width=4, block="preactivation").double(), torch.arange(4)
    with record(model, keep=True) as recording:
        wanted = F.cross_entropy(model(images()), labels).item()
    buffers = [x.clone() for x in model.buffers()]
    state = torch.get_rng_state()
    with left_as_it_was(model):
        last = {"layer3.1": lambda h: model.classifier(F.dropout(model.pool(h), 0.0) + 0 * torch.rand(()))}
        assert values(read_out(recording, last, labels), "loss") == [wanted]
    assert all(torch.equal(a, b) for a, b in zip(buffers, model.buffers(), strict=True))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_foreign_network_that_overwrites_its_sums() -> None:
    model, labels = torchvision.models.resnet18(weights=None, num_classes=10), torch.arange(3)
    with record(model, keep=True) as recording:
        wanted = F.cross_entropy(model(torch.randn(3, 3, 64, 64)), labels).item()
    table = read_out(recording, {"layer4.0": model.fc, "layer4.1": model.fc}, labels)
    assert values(table, "loss")[-1] == wanted


def test_every_block_of_a_network_of_vectors() -> None:
    """Against the network cut short by hand."""
    model, x = residual_mlp(6, in_features=5, width=8).double(), torch.randn(7, 5, dtype=FLOAT64)
    labels = torch.arange(7)
    with record(model, keep=True) as recording:
        model(x)
    table = read_out(recording, model.classifier, labels)
    h = model.stem(x)
    for depth, block in enumerate(model.blocks):
        h = block(h)
        assert values(table, "loss")[depth] == F.cross_entropy(model.classifier(h), labels).item()


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_language_model_s_lens(name: str) -> None:
    """The head is the final normalisation and the unembedding; labels are the next tokens."""
    make = {
        "gpt2": hugging_face("GPT2LMHeadModel", "GPT2Config", **GPT),
        "llama": hugging_face("LlamaForCausalLM", "LlamaConfig", **SIZES, **IDS),
    }[name]
    model: Any = make().eval()
    norm = model.transformer.ln_f if name == "gpt2" else model.model.norm
    given = tokens()["input_ids"]
    with record(model, keep=True) as recording:
        out = model(input_ids=given, labels=given)
    table = read_out(recording, lambda h: model.lm_head(norm(h))[:, :-1], given[:, 1:])
    assert len(table) == 4 * 5
    assert values(table, "loss")[-1] == pytest.approx(out.loss.item(), rel=1e-6)  # transformers sums in another order
    own = F.cross_entropy(out.logits[:, :-1].flatten(0, 1), given[:, 1:].flatten()).item()
    assert values(table, "loss")[-1] == own
    ignored = given[:, 1:].clone()
    ignored[:, 2:] = -100
    wanted = F.cross_entropy(out.logits[:, :2].flatten(0, 1), given[:, 1:3].flatten()).item()
    part = read_out(recording, lambda h: model.lm_head(norm(h))[:, :-1], ignored)
    assert values(part, "loss")[-1] == pytest.approx(wanted, rel=1e-6)
    hit = (out.logits[:, :2].argmax(-1) == given[:, 1:3]).double().mean().item()
    assert values(part, "accuracy")[-1] == pytest.approx(hit)


def test_it_may_be_read_inside_the_context() -> None:
    model = nn.Sequential(chain(2), head := nn.Linear(3, 4, dtype=FLOAT64))
    with record(model, keep=True) as recording:
        out = model(torch.randn(5, 3, dtype=FLOAT64))
        table = read_out(recording, head, torch.zeros(5, dtype=torch.long))
        out.sum().backward()
    assert values(table, "loss")[-1] == F.cross_entropy(out, torch.zeros(5, dtype=torch.long)).item()
    assert len(recording.junctions) == 2


def test_logits_that_are_minus_infinity_count_nothing() -> None:
    with record(model := scalars(2.0), keep=True) as recording:
        model(one())
    table = read_out(recording, lambda h: torch.cat([two_logits(h), torch.full_like(h, -math.inf)], -1))
    assert values(table, "divergence") == [0]
    assert values(table, "entropy")[0] > 0


def test_errors_say_what_to_do() -> None:
    with record(model := Residual(linear([[1.0, 0.0], [0.0, 1.0]])), keep=True) as recording:
        model(torch.ones(3, 2, dtype=FLOAT64))
    with record(model) as without:
        model(torch.ones(3, 2, dtype=FLOAT64))
    good, labels = nn.Linear(2, 4, dtype=FLOAT64), torch.zeros(3, dtype=torch.long)
    wrong: Any = "head"
    with pytest.raises(ValueError, match=r"read_out needs the tensors.*record\(model, keep=True\)"):
        read_out(without, good)
    with pytest.raises(ValueError, match=r"head does not fit the stream after '\(model\)', \(3, 2\) .*give a function"):
        read_out(recording, nn.Linear(5, 4, dtype=FLOAT64))
    with pytest.raises(ValueError, match=r"head names \['x'\]: give a head for some of \(model\)"):
        read_out(recording, {"x": good})
    with pytest.raises(ValueError, match="head names no block"):
        read_out(recording, {})
    with pytest.raises(TypeError, match="head is a str: give a module or a function"):
        read_out(recording, wrong)
    with pytest.raises(TypeError, match=r"head gives a tuple after '\(model\)'"):
        read_out(recording, lambda h: (h, h))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"head gives \(\) of torch\.float64 .*logits \(N, K\)"):
        read_out(recording, torch.sum)
    with pytest.raises(ValueError, match=r"labels are \(2,\) of torch\.int64, and the logits .* \(3, 4\): give whole"):
        read_out(recording, good, labels[:2])
    with pytest.raises(ValueError, match=r"labels are \(3,\) of torch\.float32"):
        read_out(recording, good, labels.float())
    for outside in (4, -1):
        with pytest.raises(ValueError, match=rf"read_out: labels hold {outside}, and there are 4 classes: give 0 to 3"):
            read_out(recording, good, torch.tensor([0, 1, outside]))
    wanted = read_out(recording, good, torch.tensor([0, -100, 3]))
    for dtype in (torch.int32, torch.int8):
        pd.testing.assert_frame_equal(read_out(recording, good, torch.tensor([0, -100, 3], dtype=dtype)), wanted)
    with record(two := scalars(2.0, 3.0), keep=True) as recording:
        two(one())
    heads = {"0": linear([[1.0], [1.0]]), "1": linear([[1.0], [1.0], [1.0]])}
    with pytest.raises(ValueError, match=r"gives \(1, 2\) after '0', and \(1, 3\) after the last block"):
        read_out(recording, heads)
