"""Attribution to the two addends: a case on paper, a slow twin, and completeness."""

from typing import Any

import pandas as pd
import pytest
import timm
import torch
import transformers as hf
from torch import Tensor, nn

from models import PLAIN, cifar_resnet
from probes import branch_attribution, find_junctions
from tests.support.networks import FLOAT64, Apply, Residual, chain, dense, images, linear, perceptron, rows
from tests.support.zoo import GPT


def parts(table: pd.DataFrame) -> pd.DataFrame:
    return table.pivot_table(index="depth", columns="quantity", values="value")


def test_on_paper() -> None:
    """Blocks x + 2x, x + 3x of 1, then 5: the score is 60; 5·4 of it go through the first shortcut, 5·4·2 through its
    branch; at the second junction, x = 3: 15 and 45."""
    model = nn.Sequential(Residual(linear(2.0)), Residual(linear(3.0)), linear(5.0)).eval()
    x = torch.ones(2, 1, dtype=FLOAT64)
    table = branch_attribution(model, find_junctions(model, x), x, target=0)
    assert list(table.columns) == ["block", "depth", "quantity", "value"]
    got = parts(table)
    assert got["shortcut"].tolist() == pytest.approx([20, 15], rel=1e-7)  # captum's steps are float32
    assert got["branch"].tolist() == pytest.approx([40, 45], rel=1e-7)
    assert got["score"].tolist() == [60, 60]
    assert got["delta"].tolist() == pytest.approx([0, 0], abs=1e-6)


def test_a_slow_obvious_twin() -> None:
    """The integral as a sum of 2,000 gradients of the rest of the network, done by hand."""
    block, rest = Residual(perceptron()), nn.Sequential(nn.Tanh(), nn.Linear(3, 2, dtype=FLOAT64))
    x, model = torch.randn(5, 3, dtype=FLOAT64), nn.Sequential(block, rest).eval()
    got = parts(branch_attribution(model, find_junctions(model, x), x, target=1, steps=50))
    with torch.no_grad():
        moves = {"shortcut": x, "branch": block.branch(x) - block.branch(0 * x)}
        start, whole = block(0 * x), block(x) - block(0 * x)
    wanted = dict.fromkeys(moves, 0.0)
    for step in range(2000):
        at = (start + (step + 0.5) / 2000 * whole).requires_grad_()
        (gradient,) = torch.autograd.grad(rest(at)[:, 1].sum(), at)
        for name, move in moves.items():
            wanted[name] += (gradient * move).sum().item() / 2000 / 5
    for name, value in wanted.items():
        assert got[name].item() == pytest.approx(value, rel=1e-5)  # the midpoint rule's error, of order 1 / 2000²


@pytest.mark.parametrize("target", [2, torch.tensor([0, 1, 2, 2])], ids=["one class", "a class each"])
def test_the_parts_sum_to_the_score(target: int | Tensor) -> None:
    model = cifar_resnet(8, width=4, num_classes=3).double().eval()
    x = images()
    got = parts(branch_attribution(model, find_junctions(model, x), x, target=target, steps=100))
    chosen = torch.as_tensor(target).expand(4)
    with torch.no_grad():
        wanted = (model(x) - model(torch.zeros_like(x)))[torch.arange(4), chosen].mean().item()
    assert got["score"].tolist() == pytest.approx([wanted] * 3, rel=1e-12)
    # The integrand has kinks (ReLU): the error of 100 steps is about 1 / 100 of what moves.
    scale = got[["shortcut", "branch"]].abs().to_numpy().max()
    assert (got["shortcut"] + got["branch"] - got["score"]).abs().max() < 2e-2 * scale
    assert got["delta"].max() < 2e-2 * scale


def test_more_steps_come_closer() -> None:
    model, x = chain(3).eval(), torch.randn(4, 3, dtype=FLOAT64)
    coarse, fine = (parts(branch_attribution(model, find_junctions(model, x), x, target=0, steps=n)) for n in (2, 20))
    assert (fine["delta"] < 1e-3 * coarse["delta"] + 1e-8).all()  # captum's steps are float32


def test_a_plain_network_s_shortcut_has_no_part() -> None:
    model = cifar_resnet(8, width=4, flow=PLAIN).double().eval()
    x = images()
    got = parts(branch_attribution(model, find_junctions(model, x), x, target=0, steps=8))
    assert (got["shortcut"] == 0).all()


def test_foreign_networks() -> None:
    vit = timm.create_model("vit_tiny_patch16_224", depth=2, num_classes=5, img_size=32)
    gpt = hf.GPT2LMHeadModel(hf.GPT2Config(**GPT))
    pixels, words = torch.randn(2, 3, 32, 32), torch.randint(1, 50, (2, 8))
    resnet = timm.create_model("resnet10t", num_classes=5)
    for model, x, read in (
        (vit, pixels, lambda output: output),
        (resnet, pixels, lambda output: output),
        (gpt, words, lambda output: output.logits[:, -1]),
    ):
        model.eval()
        got = parts(branch_attribution(model, find_junctions(model, x), x, target=1, steps=16, read=read))
        missing = (got["shortcut"] + got["branch"] - got["score"]).abs()
        assert (missing <= got["delta"] + 1e-4 * got[["shortcut", "branch"]].abs().max(axis=1)).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": True}, r"call model.eval\(\) first"),
        ({"junctions": []}, "no junctions"),
        ({"baselines": torch.zeros(1, 1)}, "differ in shape"),
        ({"target": 7}, "target is 7"),
        ({"target": None}, "target is None"),
        ({"steps": 0}, "steps is 0"),
        ({"junctions": "others"}, "give junctions as|no add is called"),
    ],
)
def test_attributions_that_cannot_be(change: dict[str, Any], message: str) -> None:
    model, x = nn.Sequential(*chain(2, 4), dense(3)).train("train" in change), rows()
    given = {"target": 1, "steps": 4, "junctions": find_junctions(model, x)} | change
    if given["junctions"] == "others":
        given["junctions"] = find_junctions(nn.Sequential(nn.Sequential(*chain(1, 4))), x)
    junctions, _ = given.pop("junctions"), given.pop("train", None)
    with pytest.raises(ValueError, match=message):
        branch_attribution(model, junctions, x, **given)


def test_attribution_asks_for_the_batch_first() -> None:
    model = Apply(lambda m, x: m.block(x.transpose(0, 1)).mean(0), block=chain(1, 4)).eval()
    x = torch.randn(5, 3, 4, dtype=FLOAT64)
    with pytest.raises(ValueError, match="addends must be batch-first"):
        branch_attribution(model, find_junctions(model, x), x, target=0)
