"""The plan as data against the page that fixed it."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from experiments import answer, robustness
from experiments.engine.conditions.conditions import Condition
from experiments.engine.conditions.controls import NO_CONTROL, Control
from experiments.engine.conditions.learning_rate_search import exponent_of, rate_of
from experiments.engine.statistics import shares
from experiments.questions.answer import results
from experiments.questions.answer.plan import (
    ADDED,
    CLOSED,
    LONGER,
    PARTS,
    PLAIN,
    PLAIN_NEAR,
    PRE_PLAIN,
    PRE_RESIDUAL,
    PRIMARY,
    RESIDUAL,
    SEEDS,
    SHARES,
    TUNING_SEEDS,
    VALUE_NEAR,
    Part,
    closed,
)
from models import ARMS, Flow, cifar_resnet

PAGE = Path(answer.__file__).with_suffix(".md").read_text(encoding="utf-8")
HEADING = re.compile(
    r"\*\*Part (\d)\*\*: (digits|CIFAR-10), (\d+) times the epochs; learning rates ([\d., ]+) on (\d) tuning seeds?; "
    r"(\d+) reported seeds\.\n\n(.*?)(?=\n\n)",
    re.DOTALL,
)
OTHER_SETTINGS = {
    "weights 0.6, 0.8; of gradients 0.6, 0.8": {"flow": Flow(0.6, 0.8)},
    "weights 0.6, 0.8; of gradients 0, 1.4": {
        "flow": Flow(0.6, 0.8, shortcut_gradient=0.0, branch_gradient=1.4),
    },
    "weights 0.6, 0.8; of gradients 0, 1.4; true-norm": {
        "flow": Flow(0.6, 0.8, shortcut_gradient=0.0, branch_gradient=1.4),
        "control": Control(rule="true-norm"),
    },
    "-": {},
    "at most 3 branches; true-norm": {"control": Control(at_most=3, rule="true-norm")},
    "at least 4 branches; true-norm": {"control": Control(at_least=4, rule="true-norm")},
    "own-norm": {"control": Control(rule="own-norm")},
    "depth-scaled": {"network": "depth-scaled"},
    "preactivation": {"network": "preactivation"},
    "preactivation; own-norm": {"network": "preactivation", "control": Control(rule="own-norm")},
    "preactivation; placebo": {"network": "preactivation", "control": Control(rule="placebo")},
    **{f"first {k}/27 frozen": {"control": Control(frozen=k / 27)} for k in (18, 21, 24)},
}
"""What each entry of the column `control` says."""


def conditions_of(text: str) -> tuple[Condition, ...]:
    """Of a table, one a row; of a list of names, those that the tables before it have."""
    if not text.startswith("|"):
        names = text.removeprefix("Conditions as above: ").rstrip(".").split("; ")
        known = {condition.name: condition for _, table in on_page() for condition in table}
        return tuple(known[name] for name in names)
    found = []
    for line in text.splitlines()[2:]:
        name, arm, weights, control = (entry.strip() for entry in line.strip("|").split("|"))
        first_weights = None if weights == "he" else float(weights) if weights[0].isdigit() else weights
        found.append(Condition(name, arm, first_weights=cast(None, first_weights), **OTHER_SETTINGS[control]))
    return tuple(found)


def on_page() -> list[tuple[re.Match[str], tuple[Condition, ...]]]:
    """The parts that have a table of their own."""
    return [(found, conditions_of(found[7])) for found in HEADING.finditer(PAGE) if found[7].startswith("|")]


def test_the_page_s_tables_are_the_plan() -> None:
    read = []
    for number, found in enumerate(HEADING.finditer(PAGE), 1):
        assert int(found[1]) == number
        rates = [float(rate) for rate in found[4].split(", ")]
        exponents = tuple(exponent_of(rate) for rate in rates)
        assert [rate_of(exponent) for exponent in exponents] == rates
        data = cast(Any, found[2])
        read.append(Part(data, int(found[3]), conditions_of(found[7]), exponents, int(found[5]), int(found[6])))
    assert tuple(read) == PARTS


def test_the_page_s_shares_are_the_plan_s() -> None:
    """Y of every condition that a row names, with the sign it has there: 1 - [a - b] / gap is (gap - a + b) / gap."""
    rows = re.findall(r"^\| (conditioning|value|short paths) \| (1 - )?\[Y\((.*?)\) - Y\((.*?)\)\] / Δ \|", PAGE, re.M)
    names = {
        "plain, C": "plain, near-identity", "residual, C": "residual, near-identity",
        "value alone, C": "value alone, near-identity", "at least 4": "paths of at least 4",
        "at most 3": "paths of at most 3",
    }  # fmt: skip
    assert [row[0] for row in rows] == [share.name for share in SHARES]
    for (_, one_minus, first, second), share in zip(rows, SHARES, strict=True):
        wanted = {names[first]: 1.0, names[second]: -1.0}
        if one_minus:
            wanted = {"plain": 1.0, "residual": -1.0} | {name: -weight for name, weight in wanted.items()}
        assert share.above == wanted
        assert share.below == {"plain": 1.0, "residual": -1.0}
    assert "Δ = Y(plain) - Y(residual)" in PAGE


def test_shares_of_a_world_whose_shares_are_known() -> None:
    errors = {
        "residual": 0.0, "plain": 1.0, "plain, near-identity": 0.2, "residual, near-identity": 0.1,
        "value alone, near-identity": 0.15, "paths of at most 3": 0.3, "paths of at least 4": 0.7,
    }  # fmt: skip
    found = {
        share.name: sum(weight * errors[name] for name, weight in share.above.items())
        / sum(weight * errors[name] for name, weight in share.below.items())
        for share in SHARES
    }
    assert found == pytest.approx({"conditioning": 0.9, "value": 0.05, "short paths": 0.4}, abs=1e-12)  # rounding alone


def test_a_gap_is_closed_by_less_error_than_plain_has() -> None:
    of = {share.name: share for share in CLOSED}
    assert of["stop-gradient"].above == {"plain": 1.0, "stop-gradient": -1.0}
    mirror = of["pre-activation, mirror"]
    assert mirror.above == {PRE_PLAIN.name: 1.0, "pre-activation, mirror": -1.0}
    assert mirror.below == {PRE_PLAIN.name: 1.0, PRE_RESIDUAL.name: -1.0}
    every = {condition.name for part in PARTS[:-1] for condition in part.conditions}
    assert set(of) == every - {PLAIN.name, RESIDUAL.name, PRE_PLAIN.name, PRE_RESIDUAL.name}


def test_what_was_added_reads_the_value_of_one_condition() -> None:
    of = {share.name: share for share in ADDED}
    (condition,) = PARTS[-1].conditions
    assert of[condition.name] == closed(condition)
    assert of["value, true norms"].above == {PLAIN_NEAR.name: 1.0, condition.name: -1.0}
    assert of["value, true norms"].below == {PLAIN.name: 1.0, RESIDUAL.name: -1.0}
    assert set(of) == {condition.name, "value, true norms"}


def test_seeds_are_new_and_disjoint() -> None:
    assert list(SEEDS) == list(range(1000, 1010))
    assert TUNING_SEEDS == (2000, 2001)
    assert "Reported seeds: 1000 to 1009" in PAGE
    assert "Tuning seeds: 2000 and 2001" in PAGE
    tuned = [set(SEEDS), set(TUNING_SEEDS), {*range(10), 100, 101}, {3000}]  # the page's own trial was on 3000
    tuned += [set(robustness.Settings().seeds), set(robustness.Settings().tuning_seeds)]
    assert len(set().union(*tuned)) == sum(map(len, tuned))
    assert max(part.seeds for part in PARTS) == len(SEEDS)
    assert max(part.tuning_seeds for part in PARTS) == len(TUNING_SEEDS)
    settings = answer.Settings()
    assert (settings.seeds, settings.tuning_seeds, settings.depths) == (SEEDS, TUNING_SEEDS, (56,))
    assert settings.parts == tuple(range(1, len(PARTS) + 1))


def test_every_condition_of_a_share_is_in_the_primary_part() -> None:
    primary = {condition.name for condition in PARTS[0].conditions}
    assert PARTS[0].conditions == PRIMARY
    assert (PARTS[0].data, PARTS[0].budget, PARTS[0].seeds) == ("digits", 1, 10)
    for share in SHARES:
        assert set(share.conditions) <= primary, share.name
    longer = {condition.name for condition in LONGER}
    assert [share.name for share in SHARES if set(share.conditions) <= longer] == ["conditioning", "value"]


def test_all_conditions_have_names_and_recipes_of_their_own() -> None:
    every = list(dict.fromkeys(condition for part in PARTS for condition in part.conditions))
    assert len({condition.name for condition in every}) == len(every)
    recipes = [replace(condition, name="", flow=condition.flow or ARMS[condition.arm]) for condition in every]
    assert len(set(recipes)) == len(recipes)
    for part in PARTS:
        assert len(set(part.conditions)) == len(part.conditions)


@pytest.mark.parametrize("condition", PRIMARY, ids=[condition.name for condition in PRIMARY])
def test_flows_say_what_names_say(condition: Condition) -> None:
    """The value alone brings no gradient back through the shortcut; its function is that of the residual network."""
    flow = condition.flow or ARMS[condition.arm]
    assert (flow.shortcut == 0) == (condition.arm == "plain")
    assert (flow.shortcut_gradient == 0) == (condition.arm in ("plain", "stop-gradient"))
    assert (condition.control != NO_CONTROL) == condition.name.startswith("paths of")
    if condition.flow:
        assert flow.shortcut**2 + flow.branch**2 == pytest.approx(1)
        assert flow.shortcut_gradient + flow.branch_gradient == pytest.approx(flow.shortcut + flow.branch)


def test_the_margins_are_the_page_s() -> None:
    assert (shares.MOST, shares.SMALL, shares.ALPHA, shares.POWER) == (0.5, 0.1, 0.05, 0.95)
    assert list(shares.RIGHT) == [0, 0.3, 0.7, 1]
    assert (results.PARALLEL, results.CLOSE, results.WIDEST, results.TARGETS) == (0.5, 0.05, 0.5, (0.5, 0.1))
    for said in (
        "*explains most* if the low end is above 0.5, else *contributes* if it is above 0.1",
        "comes within 0.05 of near-identity in test error",
        "Where it is below 0.95 at 0 or at 1",
        "at true shares of 0, 0.3, 0.7 and 1",
        "a share whose interval is wider than 0.5",
        "Steps to a training loss of 0.5 and of 0.1",
        "is below 0.5 in at least half of the blocks",
    ):
        assert said in " ".join(PAGE.split()), said


def test_the_value_alone_keeps_its_gradient_within_two_orders() -> None:
    """At the first of 27 blocks, in float64: a twentieth to a tenth of the true gradient (0.9 for each block, since
    a branch's Jacobian is not quite the identity), where the branch at its own weight, 0.8, leaves 3e-8 of it."""
    size_kept = VALUE_NEAR.flow
    assert size_kept is not None
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(16, 1, 8, 8, generator=generator, dtype=torch.float64)

    def gradient(flow: Flow) -> Tensor:
        torch.manual_seed(0)
        model = cifar_resnet(56, flow=flow, width=4, in_channels=1, first_weights="near-identity").double()
        F.cross_entropy(model(images), torch.arange(16) % 10).backward()
        return torch.cat([weight.grad.flatten() for weight in model.blocks[0].parameters() if weight.grad is not None])

    true, kept = gradient(size_kept.exact), gradient(size_kept)
    plain = gradient(replace(size_kept, branch_gradient=size_kept.branch))
    assert 0.02 < kept.norm() / true.norm() < 0.5
    assert plain.norm() / true.norm() < 1e-6
    assert kept.norm() / plain.norm() == pytest.approx((1.4 / 0.8) ** 26, rel=1e-6)  # one for each block behind it
    assert torch.cosine_similarity(kept, true, dim=0) > 0.5
    assert torch.cosine_similarity(kept, plain, dim=0) == pytest.approx(1)  # every path but one is cut in both
