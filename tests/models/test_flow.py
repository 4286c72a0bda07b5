"""Flow: its weights, and the arms as whole networks: what they share, and that each parameter has a gradient."""

import copy
import dataclasses
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import ARMS, RESIDUAL, CifarResNet, Flow, cifar_resnet, rescale
from models.projections import Projection
from tests.support.networks import images

SAME_FUNCTION = [("residual", "stop-gradient"), ("residual", "shortest-path"), ("plain", "gradient-only")]


def arm(flow: Flow | str, projection: Projection = "A", depth: int = 8) -> CifarResNet:
    torch.manual_seed(1)
    return cifar_resnet(depth, flow=ARMS[flow] if isinstance(flow, str) else flow, width=4, projection=projection)


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(a[key], b[key]) for key in a)


def train_step(model: nn.Module, x: Tensor) -> Tensor:
    logits = model(x)
    F.cross_entropy(logits, torch.arange(len(x))).backward()
    return logits.detach()


def test_a_gradient_weight_defaults_to_its_forward_weight() -> None:
    assert Flow(shortcut=0.5, branch=2) == Flow(0.5, 2, 0.5, 2)
    assert Flow(shortcut=0.5, shortcut_gradient=0) == Flow(0.5, 1, 0, 1)
    assert list(ARMS) == ["residual", "stop-gradient", "gradient-only", "plain", "shortest-path"]
    assert list(ARMS.values()) == [
        Flow(1, 1, 1, 1), Flow(1, 1, 0, 1), Flow(0, 1, 1, 1), Flow(0, 1, 0, 1), Flow(1, 1, 1, 0),
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["shortcut", "branch", "shortcut_gradient", "branch_gradient"])
@pytest.mark.parametrize("weight", [math.nan, math.inf])
def test_a_weight_that_is_not_finite_is_refused(name: str, weight: float) -> None:
    with pytest.raises(ValueError, match=rf"Flow: {name} is {weight}; give a finite number \(0 cuts, 1 leaves untou"):
        Flow(**{name: weight})


@pytest.mark.parametrize("flow", [*ARMS.values(), Flow(0.5, -2.0, 0.0, 3.0)])
def test_an_exact_flow_has_the_forward_s_weights_backwards(flow: Flow) -> None:
    assert flow.exact == Flow(flow.shortcut, flow.branch, flow.shortcut, flow.branch)
    assert flow.exact.exact == flow.exact


def test_a_flow_is_a_value() -> None:
    flow = Flow(0.5, 2.0, 0.0, 3.0)
    assert dataclasses.replace(flow, branch_gradient=1.0) == Flow(0.5, 2.0, 0.0, 1.0)
    assert pickle.loads(pickle.dumps(flow)) == copy.deepcopy(flow) == flow
    assert len({flow, Flow(0.5, 2.0, 0.0, 3.0), Flow()}) == 2
    assert repr(flow) == "Flow(shortcut=0.5, branch=2.0, shortcut_gradient=0.0, branch_gradient=3.0)"
    with pytest.raises(dataclasses.FrozenInstanceError):
        flow.shortcut = 1.0  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]


def test_a_rescaled_flow_keeps_its_cuts() -> None:
    flow = Flow(shortcut=0.0, branch=3.0, shortcut_gradient=1.0, branch_gradient=0.0)
    assert rescale(flow, shortcut=0.5, branch=2.0) == Flow(0.0, 6.0, 0.5, 0.0)
    assert rescale(flow) == flow


@pytest.mark.parametrize("projection", ["A", "B", "C"])
def test_all_arms_of_one_seed_begin_with_the_same_weights(projection: Projection) -> None:
    states = [arm(name, projection).state_dict() for name in ARMS]
    assert all(equal(state, states[0]) for state in states)
    assert states[0]["stem.0.weight"].any()


@pytest.mark.parametrize("projection", ["A", "B", "C"])
@pytest.mark.parametrize(("one", "other"), SAME_FUNCTION)
def test_arms_of_one_forward_compute_the_same_function_to_the_last_bit(
    one: str, other: str, projection: Projection
) -> None:
    x, models = images(dtype=torch.float32), [arm(name, projection, depth=20) for name in (one, other)]
    first, second = (train_step(model, x) for model in models)
    assert torch.equal(first, second)
    assert equal(*(dict(model.named_buffers()) for model in models))
    gradients = [torch.cat([p.grad.flatten() for p in m.parameters() if p.grad is not None]) for m in models]
    assert not torch.equal(*gradients)


def test_arms_of_different_forwards_differ() -> None:
    x = images(dtype=torch.float32)
    assert not torch.equal(arm("residual")(x), arm("plain")(x))


@pytest.mark.parametrize("forward", [(1.0, 1.0), (0.5, 2.0), (0.0, 1.0), (1.0, 0.0)])
def test_gradient_weights_change_no_output_and_no_statistic(forward: tuple[float, float]) -> None:
    x = images(dtype=torch.float32)
    outputs, buffers = [], []
    for backward in [(1.0, 1.0), (0.0, 1.0), (1.0, 0.0), (0.0, 0.0), (0.3, -0.7)]:
        model = arm(Flow(*forward, *backward), "B")
        outputs.append(train_step(model, x))
        buffers.append(dict(model.named_buffers()))
    assert all(torch.equal(output, outputs[0]) for output in outputs)
    assert all(equal(b, buffers[0]) for b in buffers)
    assert buffers[0]["layer2.0.branch.bn1.num_batches_tracked"] == 1


def test_a_forward_weight_leaves_the_statistics_of_its_own_branch_alone() -> None:
    x = images(dtype=torch.float32)
    whole, half = arm(RESIDUAL), arm(Flow(branch=0.5))
    for model in (whole, half):
        train_step(model, x)
    for key in ("running_mean", "running_var"):  # of the first block, whose input is the same in both
        name = f"layer1.0.branch.bn2.{key}"
        assert torch.equal(half.get_buffer(name), whole.get_buffer(name))
        assert half.get_buffer(name).any()


@pytest.mark.parametrize("projection", ["A", "B", "C"])
@pytest.mark.parametrize("name", ARMS)
def test_every_parameter_gets_a_gradient_in_every_arm(name: str, projection: Projection) -> None:
    model = arm(name, projection)
    train_step(model, images(dtype=torch.float32))
    gradients = {key: p.grad for key, p in model.named_parameters()}
    assert not [key for key, gradient in gradients.items() if gradient is None]
    cut = {key for key in gradients if ".shortcut." in key and ARMS[name].shortcut == 0}
    assert {key for key, gradient in gradients.items() if gradient is not None and not gradient.any()} == cut


def test_a_cut_network_gives_its_stem_exact_zeros_even_where_the_loss_is_infinite() -> None:
    model = arm(Flow(shortcut_gradient=0, branch_gradient=0), "C")
    (model(images(dtype=torch.float32)) * math.inf).sum().backward()
    for parameter in model.stem.parameters():
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, torch.zeros_like(parameter))
