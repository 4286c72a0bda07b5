"""How an update lies to the true gradient: what each control is meant to keep, it keeps."""

import copy
import math
from functools import partial

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from experiments.engine import answer
from experiments.engine.alignment import alignment, compare, measure_alignment, true_gradients
from experiments.engine.conditions import Condition
from experiments.engine.controls import Control, Cut, Moment
from experiments.engine.data import Batches, Data, load
from experiments.engine.networks import make
from models import ARMS
from tests.networks import relative_error

START = Moment(step=0, epoch=0)
BY_NAME = {condition.name: condition for condition in (*answer.AS_THEY_ARE, *answer.MAGNITUDE)}
IMAGES = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(16) % 10


def network(condition: Condition, name: str = "resnet") -> nn.Module:
    torch.manual_seed(0)
    model = make(name, 20, flow=ARMS[condition.arm], width=4, shape=(3, 8, 8), num_classes=10).double()
    condition.control.prepare(model, seed=0)
    return model


def measured(name: str, moment: Moment = START, control: Control | None = None) -> pd.DataFrame:
    """A row for each of the nine blocks, columns cosine and norm ratio."""
    condition = BY_NAME[name]
    model = network(condition)
    found = alignment(model, control or condition.control, IMAGES.double(), LABELS, seed=0, moment=moment)
    assert found["block"].nunique() == 9
    return found.pivot(index="depth", columns="quantity", values="value")


def same(given: "pd.Series[float]", wanted: "pd.Series[float] | float") -> bool:
    """To the rounding of float64, over many blocks."""
    return bool(((given - wanted).abs() < 1e-9).all())


def test_on_paper() -> None:
    """(3, 4) against (4, 0): cosine 3/5, ratio 5/4."""
    true, made = torch.tensor([4.0, 0.0], dtype=torch.float64), torch.tensor([3.0, 4.0], dtype=torch.float64)
    assert compare(true, made) == {"cosine": pytest.approx(0.6), "norm ratio": pytest.approx(1.25)}
    none = torch.zeros(2, dtype=torch.float64)
    assert math.isnan(compare(true, none)["cosine"])
    assert compare(true, none)["norm ratio"] == 0
    assert math.isnan(compare(none, made)["norm ratio"])


@pytest.mark.parametrize("arm", ["residual", "plain"])
def test_an_ordinary_update_is_the_true_gradient(arm: str) -> None:
    found = measured(arm)
    assert same(found["cosine"], 1)
    assert same(found["norm ratio"], 1)


def test_controls_keep_what_they_say_and_change_the_rest() -> None:
    stop = measured("stop-gradient")
    assert stop["cosine"][0] < 0.5 > stop["norm ratio"][0]
    norms, direction = measured("stop-gradient, true norms"), measured("true direction, stop-gradient norms")
    noise = measured("true and noise, like stop-gradient")
    assert same(norms["cosine"], stop["cosine"])
    assert same(norms["norm ratio"], 1)
    assert same(direction["cosine"], 1)
    assert same(direction["norm ratio"], stop["norm ratio"])
    assert same(noise["cosine"], stop["cosine"])
    assert same(noise["norm ratio"], stop["norm ratio"])


def test_frozen_blocks_have_no_direction_and_no_length() -> None:
    found = measured("residual, first two thirds frozen")
    assert found["cosine"][:6].isna().all()
    assert (found["norm ratio"][:6] == 0).all()
    assert same(found["cosine"][6:], 1)


def test_under_random_feedback_the_true_gradient_is_still_that_of_the_weights() -> None:
    condition = BY_NAME["stop-gradient, random feedback"]
    model, twin = network(condition), network(BY_NAME["residual"])
    ours, theirs = (true_gradients(each, IMAGES.double(), LABELS) for each in (model, twin))
    assert all(relative_error(a, b) < 1e-9 for a, b in zip(ours.values(), theirs.values(), strict=True))
    assert measured(condition.name)["cosine"][:8].abs().max() < 0.5


def test_a_cut_holds_at_its_moment_only() -> None:
    cut = Control(Cut(end=1))
    during, after = (measured("residual", Moment(0, epoch), cut) for epoch in (0, 1))
    assert same(during["cosine"], measured("stop-gradient")["cosine"])
    assert same(after["cosine"], 1)


@pytest.mark.parametrize("name", ["resnet", "dropout-shortcut"])
def test_measuring_moves_nothing(name: str) -> None:
    model = network(BY_NAME["stop-gradient, true norms"], name).train()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    flows = [block.flow for block in model.modules() if hasattr(block, "flow")]
    found = [
        alignment(model, Control(rule="true-norm"), IMAGES.double(), LABELS, seed=0, moment=START) for _ in range(2)
    ]
    assert found[0].equals(found[1])
    ratios = found[0][found[0]["quantity"] == "norm ratio"]["value"]
    assert same(ratios, 1)  # the two gradients saw the same dropout
    assert torch.equal(torch.get_rng_state(), state)
    assert [block.flow for block in model.modules() if hasattr(block, "flow")] == flows
    assert all(p.grad is None for p in model.parameters())
    changed = [key for key, value in model.state_dict().items() if not torch.equal(value, before[key])]
    assert not changed


def test_it_is_measured_first_and_last_under_the_last_epoch_s_control() -> None:
    batches = Batches(load(Data(train_limit=256)), torch.device("cpu"))
    torch.manual_seed(0)
    model = make("resnet", 8, flow=ARMS["residual"], width=4, shape=(1, 8, 8), num_classes=10)
    measure = partial(measure_alignment, control=Control(Cut(begin=2)), seed=0)
    assert measure(model, batches, 1, False) == {}
    first, last = (measure(model, batches, epoch, end)["alignment"] for epoch, end in ((0, False), (3, True)))

    def cosine(table: pd.DataFrame) -> Tensor:
        return torch.tensor(table[table["quantity"] == "cosine"]["value"].to_numpy())

    assert cosine(first).min() > 1 - 1e-6  # float32 networks
    assert cosine(last).min() < 0.99
