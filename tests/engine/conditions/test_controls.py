"""Controls at work on whole networks: coins, schedules, rules, frozen blocks, random feedback."""

import itertools
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from experiments.engine.conditions.block_gradients import block_names, flat, gradients, groups, stages
from experiments.engine.conditions.controls import (
    RULES,
    Control,
    Cut,
    Rule,
    frozen_parameters,
    noisy,
    with_own_norm,
    with_true_norm,
)
from experiments.engine.training.data import Batches, Data, load
from experiments.engine.training.loop import Moment, backpropagation, context_of, train
from experiments.engine.training.networks import make
from experiments.engine.training.optimisation import Training
from experiments.short_paths import Limit
from models import (
    ARMS,
    RESIDUAL,
    STOP_GRADIENT,
    Flow,
    cifar_resnet,
    permuted_shortcuts,
    random_feedback,
    residual_blocks,
    residual_mlp,
)
from probes import find_junctions
from tests.support.networks import images, relative_error

IMAGES, LABELS = images(), torch.arange(4)
START = Moment(step=0, epoch=0)


def network(flow: Flow = RESIDUAL, depth: int = 8) -> nn.Module:
    torch.manual_seed(0)
    return cifar_resnet(depth, flow=flow, width=4).double()


def update(model: nn.Module, control: Control, moment: Moment = START, seed: int = 0) -> list[Tensor | None]:
    backward = control.prepare(model, seed=seed)
    backward(model, F.cross_entropy(model(IMAGES), LABELS), moment)
    return [parameter.grad for parameter in model.parameters()]


def ordinary(model: nn.Module) -> list[Tensor]:
    return list(torch.autograd.grad(F.cross_entropy(model(IMAGES), LABELS), list(model.parameters())))


def equal(given: Sequence[Tensor | None], wanted: list[Tensor]) -> bool:
    return all(a is not None and torch.equal(a, b) for a, b in zip(given, wanted, strict=True))


def test_without_a_control_it_is_backpropagation() -> None:
    assert Control().prepare(network(), seed=0) is backpropagation
    assert equal(update(network(STOP_GRADIENT), Control()), ordinary(network(STOP_GRADIENT)))


@pytest.mark.parametrize("name", ["resnet", "mlp", "imagenet"])
def test_a_cut_of_all_shortcuts_is_the_stop_gradient_arm(name: str) -> None:
    found = []
    for arm, control in (("residual", Control(Cut())), ("stop-gradient", Control())):
        torch.manual_seed(0)
        depth, width = (18, 64) if name == "imagenet" else (8, 4)
        model = make(name, depth, flow=ARMS[arm], width=width, shape=(3, 8, 8), num_classes=10)
        images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
        control.prepare(model, seed=0)(model, F.cross_entropy(model(images), LABELS), START)
        found.append([parameter.grad for parameter in model.parameters()])
        assert all(block.flow == ARMS[arm] for block in residual_blocks(model))
    assert equal(*found)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("cut", "epoch", "wanted"),
    [
        (Cut(weight=0.3), 0, [0.3] * 6),
        (Cut(begin=2), 1, [None] * 6),
        (Cut(begin=2), 2, [0.0] * 6),
        (Cut(end=2), 1, [0.0] * 6),
        (Cut(end=2), 2, [None] * 6),
        (Cut(stage=2), 0, [None, None, 0.0, 0.0, None, None]),
        (Cut(every=3), 0, [None, None, 0.0, None, None, 0.0]),
        (Cut(stage=1, every=2, end=1), 0, [None, 0.0, None, None, None, None]),
        (Cut(chance=0.0), 0, [None] * 6),
        (Cut(chance=0.0, unbiased=True), 0, [1.0] * 6),
    ],
)
def test_where_and_when_a_cut_holds(cut: Cut, epoch: int, wanted: list[float | None]) -> None:
    assert cut.weights([1, 1, 2, 2, 3, 3], Moment(step=8 * epoch, epoch=epoch), torch.Generator()) == wanted


def test_a_schedule_switches_at_its_step() -> None:
    """Epoch 1 begins: until then the gradient is the residual arm's, from then on stop-gradient's."""
    model = network()
    backward = Control(Cut(begin=1)).prepare(model, seed=0)
    for moment, arm in ((Moment(7, 0), RESIDUAL), (Moment(8, 1), STOP_GRADIENT)):
        model.zero_grad()
        backward(model, F.cross_entropy(model(IMAGES), LABELS), moment)
        assert equal([p.grad for p in model.parameters()], ordinary(network(arm)))


@pytest.mark.parametrize("weight", [0.0, 0.4])
def test_unbiased_coins_average_to_the_true_gradient_by_enumeration(weight: float) -> None:
    """Over all 2^3 outcomes for three blocks, weighted with their chances; float64 rounding of eight terms."""
    chance = 0.3
    mean = [torch.zeros_like(parameter) for parameter in network().parameters()]
    spared = (1 - chance * weight) / (1 - chance)
    for cuts in itertools.product((True, False), repeat=3):
        flows = [Flow(shortcut_gradient=weight if cut else spared) for cut in cuts]
        torch.manual_seed(0)
        model = cifar_resnet(8, flow=flows, width=4).double()
        likely = math.prod(chance if cut else 1 - chance for cut in cuts)
        mean = [total + likely * each for total, each in zip(mean, ordinary(model), strict=True)]
    assert all(relative_error(a, b) < 1e-12 for a, b in zip(mean, ordinary(network()), strict=True))


@pytest.mark.parametrize("unbiased", [True, False])
def test_coins_average_to_the_true_gradient_only_if_unbiased(unbiased: bool) -> None:
    """The first convolution's mean over 400 draws against the true gradient, in standard errors of a fixed projection
    (to 4: one in 16,000 by chance; the biased coin misses by far more)."""
    model, true = network(), ordinary(network())[0]
    backward = Control(Cut(chance=0.5, unbiased=unbiased)).prepare(model, seed=0)
    first, found = next(model.parameters()), []
    for _ in range(400):
        model.zero_grad()
        backward(model, F.cross_entropy(model(IMAGES), LABELS), START)
        assert first.grad is not None
        found.append((first.grad * true).sum() / true.norm() ** 2)
    values = torch.stack(found)
    error = abs(values.mean() - 1) / (values.std() / 20)
    assert (error < 4) == unbiased


@pytest.mark.parametrize("rule", ["true-norm", "own-norm", "noise"])
def test_rules_act_on_each_block_alone(rule: str) -> None:
    model = network(STOP_GRADIENT)
    update(model, Control(rule=rule))  # type: ignore[arg-type]
    parameters = list(model.parameters())
    made = {parameter: parameter.grad for parameter in parameters}
    wanted = [dict(zip(parameters, ordinary(network(flow)), strict=True)) for flow in (RESIDUAL, STOP_GRADIENT)]
    for group in groups(model).values():
        (true, own), update_ = (flat(group, each) for each in wanted), flat(group, made)  # type: ignore[arg-type]
        direction = {"true-norm": own, "own-norm": true}.get(rule)
        length = true.norm() if rule == "true-norm" else own.norm()
        assert relative_error(update_.norm(), length) < 1e-12
        if direction is not None:
            assert relative_error(update_ / length, direction / direction.norm()) < 1e-12
        else:
            cosines = [(each @ true) / each.norm() / true.norm() for each in (update_, own)]
            assert abs(cosines[0] - cosines[1]) < 1e-12
            assert relative_error(update_, own) > 0.1 or relative_error(own, true) < 1e-12


def test_own_norms_of_a_flow_that_is_no_named_arm() -> None:
    """Values 0.6 S + 0.8 F, no gradient through shortcuts, branches that make up for them: the true direction at that
    length. In float64 norms and cosines of some thousand numbers round at 1e-14."""
    flow = Flow(0.6, 0.8, shortcut_gradient=0, branch_gradient=1.4)
    model = network(flow, depth=14)
    update(model, Control(rule="own-norm"))
    assert all(block.flow == flow for block in residual_blocks(model))
    parameters = list(model.parameters())
    found = dict(zip(parameters, [p.grad for p in parameters], strict=True))
    true, own = (dict(zip(parameters, ordinary(network(f, depth=14)), strict=True)) for f in (Flow(0.6, 0.8), flow))
    differ = []
    for group in groups(model).values():
        made, of_true, of_own = (flat(group, of) for of in (found, true, own))  # type: ignore[arg-type]
        assert relative_error(made.norm(), of_own.norm()) < 1e-12
        assert abs(cosine(made, of_true) - 1) < 1e-12
        differ.append(abs(cosine(of_own, of_true) - 1) > 0.01)
    assert sum(differ) >= 4  # all but the last block, the classifier, and what little the first adds


# A placebo: two backwards of one graph, the shortcuts' channels permuted in the first.


@pytest.mark.parametrize("kind", ["basic", "preactivation"])
@pytest.mark.parametrize("flow", [ARMS["gradient-only"], RESIDUAL], ids=["gradient-only", "residual"])
def test_a_placebo_has_the_arm_s_norms_and_the_direction_of_permuted_shortcuts(kind: str, flow: Flow) -> None:
    def made(depth: int = 14) -> nn.Module:
        torch.manual_seed(0)
        return cifar_resnet(depth, flow=flow, width=4, block=kind).double()  # type: ignore[arg-type]

    model, twin = made(), made()
    state = torch.get_rng_state()
    update(model, Control(rule="placebo"), seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    own = ordinary(twin)
    assert equal(ordinary(model), own)  # nothing stays switched on
    permuted_shortcuts(twin, source(3)).active = True
    parameters = list(model.parameters())
    permuted, of_arm = (dict(zip(parameters, found, strict=True)) for found in (ordinary(twin), own))
    found = {parameter: parameter.grad for parameter in parameters}
    cosines = []
    for group in groups(model).values():
        update_, direction, arm = (flat(group, of) for of in (found, permuted, of_arm))  # type: ignore[arg-type]
        assert relative_error(update_.norm(), arm.norm()) < 1e-12
        assert abs(cosine(update_, direction) - 1) < 1e-12
        cosines.append(cosine(update_, arm))
    assert cosines[-1] == pytest.approx(1, abs=1e-12)  # no shortcut lies above the classifier
    assert max(cosines[:4]) < 0.9


# Limits of path lengths: one graph carries the limited gradient and the true one.


def limited(control: Control, depth: int = 20) -> tuple[nn.Module, list[Tensor]]:
    model = network(depth=depth)
    backward = control.prepare(model, seed=0)
    with context_of(backward, model):
        backward(model, F.cross_entropy(model(IMAGES), LABELS), START)
    return model, [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]


def test_short_and_long_paths_sum_to_the_true_gradient() -> None:
    """Up to the order of sums over nine blocks; the classifier has its whole gradient in both."""
    (_, short), (model, long) = limited(Control(at_most=3)), limited(Control(at_least=4))
    whole = ordinary(network(depth=20))
    for (name, _), a, b, wanted in zip(model.named_parameters(), short, long, whole, strict=True):
        if name.startswith("classifier"):
            assert torch.equal(a, wanted)
            assert torch.equal(b, wanted)
        else:
            assert relative_error(a + b, wanted) < 1e-12, name
            assert b.any() == (name.split(".branch")[0] not in block_names(model)[-4:]), name


@pytest.mark.parametrize("limit", [{"at_most": 3}, {"at_least": 4}, {"at_least": 1, "at_most": 2}])
@pytest.mark.parametrize("rule", ["true-norm", "own-norm"])
def test_rules_take_limited_paths_for_the_arm_s_own_gradient(rule: Rule, limit: dict[str, Any]) -> None:
    model, made = limited(Control(rule=rule, **limit))
    _, own = limited(Control(**limit))
    parameters = list(model.parameters())
    found, of_paths, true = (
        dict(zip(parameters, values, strict=True)) for values in (made, own, ordinary(network(depth=20)))
    )
    nothing = []
    for name, group in groups(model).items():
        update_, paths, whole = (flat(group, of) for of in (found, of_paths, true))
        if not paths.any():
            assert not update_.any()
            nothing.append(name)
            continue
        length, direction = (whole, paths) if rule == "true-norm" else (paths, whole)
        assert relative_error(update_.norm(), length.norm()) < 1e-12
        assert abs(cosine(update_, direction) - 1) < 1e-12
    assert nothing == block_names(model)[9 - limit.get("at_least", 0) :]


def test_limited_paths_train_as_in_the_experiment_on_short_paths() -> None:
    batches, training = Batches(load(Data(train_limit=256)), torch.device("cpu")), Training(epochs=2, batch_size=64)
    found = []
    for ours in (True, False):
        torch.manual_seed(0)
        model = cifar_resnet(14, width=2, in_channels=1)
        how: dict[str, Any] = (
            {"backward": Control(at_most=1).prepare(model, seed=0)}
            if ours
            else {"gradient_context": partial(Limit("at-most", 1).context, generator=source())}
        )
        losses = torch.cat(list(train(model, batches, training, seed=0, **how)))
        found.append([losses, *model.parameters()])
    assert equal(*found)


def test_a_limit_without_its_context_is_refused() -> None:
    with pytest.raises(RuntimeError, match="this control limits paths: run forwards and backwards inside"):
        update(network(), Control(at_most=1))


def test_a_limit_beyond_the_blocks_is_refused() -> None:
    Control(at_least=3).prepare(network(), seed=0)
    with pytest.raises(ValueError, match="no path has 4 branches: the network has 3 blocks"):
        Control(at_least=4).prepare(network(), seed=0)


def test_frozen_blocks_and_what_lies_before_them_get_no_update() -> None:
    model = network(depth=14)
    found = update(model, Control(frozen=2 / 3))
    free = [name for (name, _), each in zip(model.named_parameters(), found, strict=True) if each is not None]
    assert {name.split(".")[0] for name in free} == {"layer3", "classifier"}
    assert frozen_parameters(model, 0) == []
    assert len(frozen_parameters(model, 1)) == len(found) - 2


def test_groups_are_blocks_and_what_is_around() -> None:
    model = network()
    assert list(groups(model)) == ["stem", *block_names(model), "classifier"]
    assert block_names(model) == ["layer1.0", "layer2.0", "layer3.0"]
    assert stages(model) == [1, 2, 3]
    assert sum(len(group) for group in groups(model).values()) == len(list(model.parameters()))
    loss = F.cross_entropy(model(IMAGES), LABELS)
    found = gradients(loss, groups(model)["layer2.0"], retain_graph=False)
    assert all(torch.equal(found[p], dict(zip(model.parameters(), ordinary(network()), strict=True))[p]) for p in found)


def test_random_feedback_keeps_values_and_names_and_leaves_the_gradient_of_the_last_layers() -> None:
    model, twin = network(STOP_GRADIENT), network(STOP_GRADIENT)
    names = list(model.state_dict())
    random_feedback(model, torch.Generator().manual_seed(0))
    assert list(model.state_dict()) == names
    assert torch.equal(model(IMAGES), twin(IMAGES))
    assert len(find_junctions(model, IMAGES)) == 3
    found, wanted = ordinary(model), ordinary(twin)
    assert all(torch.equal(a, b) for a, b in zip(found[-2:], wanted[-2:], strict=True))
    assert relative_error(found[0], wanted[0]) > 0.5


def test_random_feedback_on_paper() -> None:
    """A 1x1 convolution of weight 2 with feedback 5: the value is 2x, x gets 5g, the weight x·g."""
    model = cifar_resnet(8, width=2)
    random_feedback(model, torch.Generator().manual_seed(0))
    convolution = residual_blocks(model)[0].branch.get_submodule("conv1")
    convolution.weight = nn.Parameter(torch.zeros(1, 1, 3, 3))
    convolution.feedback = torch.zeros(1, 1, 3, 3)
    with torch.no_grad():
        convolution.weight[0, 0, 1, 1], convolution.feedback[0, 0, 1, 1] = 2.0, 5.0
    x = torch.full((1, 1, 1, 1), 3.0, requires_grad=True)
    y = convolution(x)
    y.backward(torch.full_like(y, 7.0))
    assert (y.item(), x.grad.item(), convolution.weight.grad[0, 0, 1, 1].item()) == (6, 35, 21)  # type: ignore[union-attr]


def test_random_feedback_keeps_a_convolution_s_bias() -> None:
    """The values of `nn.Conv2d`, to the rounding of sums over 36 products; the bias's own gradient counts pixels."""
    model = cifar_resnet(8, width=4, block="skipinit").double()
    convolution, x = (
        residual_blocks(model)[0].branch.get_submodule("conv1"),
        torch.rand(2, 4, 5, 5, dtype=torch.float64),
    )
    wanted = convolution(x)
    random_feedback(model, torch.Generator().manual_seed(0))
    found = convolution(x)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-14)
    found.sum().backward()
    assert convolution.bias.grad.tolist() == [2 * 5 * 5] * 4  # type: ignore[union-attr]


def test_controls_are_values() -> None:
    assert len({Control(), Control(Cut()), Control(Cut()), Control(Cut(stage=1))}) == 3
    assert len({Control(), Control(at_most=3), Control(at_most=4), Control(at_least=3), Control(rule="placebo")}) == 5


@pytest.mark.parametrize(
    ("make_it", "message"),
    [
        (lambda: Cut(chance=1.5), "a chance of 1.5: give 0 to 1"),
        (lambda: Cut(chance=1.0, unbiased=True), "less than 1 if it is to be unbiased"),
        (lambda: Cut(begin=3, end=3), "such a cut is nowhere"),
        (lambda: Cut(end=0), "such a cut is nowhere"),
        (lambda: Control(rule="both"), "rule 'both', frozen 0.0: give one of"),  # type: ignore[arg-type]
        (lambda: Cut(chance=-0.1), "a chance of -0.1: give 0 to 1"),
        (lambda: Control(frozen=2), "give one of"),
        (lambda: Control(frozen=-0.1), "give one of"),
        (lambda: Control(at_most=-1), "paths of at least None and at most -1 branches: there are none"),
        (lambda: Control(at_least=-1), "there are none"),
        (lambda: Control(at_least=4, at_most=3), "paths of at least 4 and at most 3 branches: there are none"),
        (lambda: random_feedback(residual_mlp(4, in_features=2), torch.Generator()), "needs convolutions inside"),
    ],
)
def test_what_makes_no_sense_is_refused(make_it: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_it()  # type: ignore[operator]


# Update rules: made of two gradients; lengths and directions, on paper and for drawn vectors.
TRUE, OWN = torch.tensor([3.0, 4.0], dtype=torch.float64), torch.tensor([0.0, 2.0], dtype=torch.float64)


def source(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a / a.norm()) @ (b / b.norm())).item()


def test_norm_swaps_on_paper() -> None:
    assert with_true_norm(TRUE, OWN, source()).tolist() == [0, 5]
    assert with_own_norm(TRUE, OWN, source()).tolist() == pytest.approx([1.2, 1.6], abs=1e-15)


def test_in_two_dimensions_noise_at_a_cosine_has_two_places() -> None:
    """cos = 0.8: the own gradient itself, or its mirror image at the true one, (1.92, 0.56)."""
    seen = {tuple(round(x, 9) for x in noisy(TRUE, OWN, source(seed)).tolist()) for seed in range(20)}
    assert {(abs(x), y) for x, y in seen} == {(0.0, 2.0), (1.92, 0.56)}


@given(seed=st.integers(0, 10_000), size=st.integers(2, 300), small=st.floats(1e-25, 1))
def test_noise_meets_its_cosine_and_its_length(seed: int, size: int, small: float) -> None:
    """Wanted to 1e-6; in float64 both are met to rounding, also for gradients that have all but vanished."""
    draws = source(seed)
    true, own = (torch.randn(size, generator=draws, dtype=torch.float64) for _ in range(2))
    own *= small
    update = noisy(true, own, draws)
    assert update.norm().item() == pytest.approx(own.norm().item(), rel=1e-9)
    assert cosine(update, true) == pytest.approx(cosine(own, true), abs=1e-9)


def test_noise_on_paper() -> None:
    """Of length 2 with cos = 0.8 to the first axis, the rest along the drawn vector's own second and third entry."""
    true, own = (torch.tensor(vector, dtype=torch.float64) for vector in ([5.0, 0, 0], [1.6, 1.2, 0]))
    drawn = torch.randn(3, generator=source(), dtype=torch.float64)[1:]
    wanted = torch.cat([own[:1], 1.2 * drawn / drawn.norm()])
    assert relative_error(noisy(true, own, source()), wanted) < 1e-14


def test_of_parallel_gradients_the_own_one_is_left() -> None:
    """Among 100 pairs some have a cosine above 1 by rounding; a sine of sqrt(eps) = 1.5e-8 may be left."""
    draws = source()
    for true in torch.randn(100, 20, generator=draws, dtype=torch.float64):
        assert relative_error(noisy(true, 0.3 * true, draws), 0.3 * true) < 1e-7


def test_noise_is_drawn_anew() -> None:
    draws, vectors = source(), torch.ones(2, 50, dtype=torch.float64) * torch.linspace(-1, 2, 50, dtype=torch.float64)
    true, own = vectors[0], vectors[1].flip(0)
    assert not torch.equal(noisy(true, own, draws), noisy(true, own, draws))


@pytest.mark.parametrize("rule", RULES)
def test_nothing_is_made_of_nothing(rule: str) -> None:
    zeros = torch.zeros(2, dtype=torch.float64)
    if rule not in ("own-norm", "placebo"):
        assert not RULES[rule](TRUE, zeros, source()).any()
    if rule != "noise":
        assert not RULES[rule](zeros, OWN, source()).any()
    assert not RULES[rule](zeros, zeros, source()).any()


def test_noise_alone_where_the_true_gradient_is_zero() -> None:
    assert noisy(torch.zeros_like(OWN), OWN, source()).norm().item() == pytest.approx(2)
