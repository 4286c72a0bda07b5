import copy
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from experiments.engine.running.messages import BadInput
from experiments.engine.training.data import Batches, Data, load
from experiments.engine.training.loop import Diverged, evaluate, recompute_bn_statistics, train
from experiments.engine.training.optimisation import Training, make_optimiser, make_schedule, parameter_groups
from models import ARMS, GRADIENT_ONLY, PLAIN, RESIDUAL, CifarResNet, Flow, cifar_resnet


@pytest.fixture(scope="module")
def batches() -> Batches:
    return Batches(load(Data(train_limit=300)), torch.device("cpu"))


def network(flow: Flow = RESIDUAL, **options: object) -> CifarResNet:
    torch.manual_seed(0)
    return cifar_resnet(8, flow=flow, width=4, in_channels=1, **options)  # pyright: ignore[reportArgumentType]


def test_the_loop_is_sgd_with_momentum_on_cross_entropy(batches: Batches) -> None:
    training = Training(epochs=2, batch_size=128, learning_rate=0.05, schedule="step")
    model = network()
    twin = copy.deepcopy(model)
    reported = list(train(model, batches, training, seed=7))

    generator, velocity, losses = torch.Generator().manual_seed(7), {}, []
    twin.train()
    for epoch in range(2):
        order = torch.randperm(300, generator=generator)
        for step in range(2):  # 300 images make two whole batches; the rest waits for another epoch's order
            rate = 0.05 * (1, 1, 0.1, 0.01)[2 * epoch + step]
            images, labels = batches.get("train", order[128 * step : 128 * (step + 1)])
            loss = F.cross_entropy(twin(images), labels)
            losses.append(loss.item())
            for p, g in zip(twin.parameters(), torch.autograd.grad(loss, list(twin.parameters())), strict=True):
                velocity[p] = 0.9 * velocity.get(p, torch.zeros_like(p)) + g + 1e-4 * p.detach()
                p.data -= rate * velocity[p]
    for mine, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        # float32, the same sums in another order
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)
    assert [len(of_epoch) for of_epoch in reported] == [2, 2]
    assert torch.cat(reported).tolist() == pytest.approx(losses, rel=1e-4)


def keep_input(kept: list[Tensor]) -> Callable[[nn.Module, tuple[Tensor]], None]:
    return lambda _, args: kept.append(args[0].clone())


def test_every_arm_of_a_seed_sees_the_same_batches(batches: Batches) -> None:
    seen: dict[str, list[Tensor]] = {arm: [] for arm in ARMS}
    for arm, flow in ARMS.items():
        model = network(flow)
        model.register_forward_pre_hook(keep_input(seen[arm]))
        list(train(model, batches, Training(epochs=2, batch_size=100), seed=3))
        torch.manual_seed(len(seen))  # global random state must play no part
    first = seen.pop("residual")
    assert len(first) == 6
    for others in seen.values():
        assert all(torch.equal(a, b) for a, b in zip(first, others, strict=True))


def test_a_seed_repeats_a_run_bit_for_bit_and_another_does_not(batches: Batches) -> None:
    def losses(seed: int) -> list[float]:
        return torch.cat(list(train(network(), batches, Training(epochs=2), seed=seed))).tolist()

    assert losses(0) == losses(0) != losses(1)


def test_a_loss_that_is_not_finite_ends_training_at_its_step(batches: Batches) -> None:
    model = network()
    steps = 0

    def count(*_: object) -> None:
        nonlocal steps
        steps += 1

    model.register_forward_hook(lambda _, __, outputs: count() if outputs.isfinite().all() else None)
    with pytest.raises(Diverged) as end:
        list(train(model, batches, Training(epochs=9, batch_size=100, learning_rate=1e30), seed=0))
    assert end.value.step == steps > 0  # counted from 0: the first step after the finite ones


def test_evaluation_is_the_mean_over_the_split_and_changes_nothing(batches: Batches) -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    found = evaluate(model, batches, "validation")
    images, labels = batches.get("validation", slice(None))
    with torch.no_grad():
        outputs = model.eval()(images)
    assert found["loss"] == pytest.approx(F.cross_entropy(outputs, labels).item(), rel=1e-5)  # float32
    assert found["accuracy"] == int((outputs.argmax(1) == labels).sum()) / 360
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_settled_statistics_are_those_of_the_network_in_which_nothing_is_dropped(batches: Batches) -> None:
    """As torch's update_bn gives them to the twin that drops nothing, to the last bit."""
    dropping, twin = network(variant="dropout"), network()
    recompute_bn_statistics(dropping, batches)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    update_bn((batches.get("train", indices)[0] for indices in order.split(128)), twin)
    wanted = dict(twin.named_buffers())
    assert all(torch.equal(value, wanted[name]) for name, value in dropping.named_buffers())
    assert wanted["stem.1.num_batches_tracked"] == 3
    assert not any(module.training for module in dropping.modules())
    assert dropping.stem[1].momentum == 0.1  # type: ignore[index]


def test_a_last_batch_of_one_image_is_left_out_of_the_statistics() -> None:
    """On maps of one pixel it has no variance."""
    batches = Batches(load(Data(train_limit=257)), torch.device("cpu"))
    pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(1))
    recompute_bn_statistics(pooled, batches, batch_size=128)
    assert pooled[1].num_batches_tracked == 2  # type: ignore[union-attr]


@pytest.mark.parametrize(("optimiser", "kind"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)])
def test_adamw_s_weight_decay_is_apart_from_the_gradient(optimiser: str, kind: type[torch.optim.Optimizer]) -> None:
    """Where the gradient is 0, AdamW takes rate * decay of a weight; in Adam the decay is a gradient like any other,
    and its first step is the rate, whatever the weight's size."""
    model = network(PLAIN, projection="C")
    training = Training(optimiser=optimiser, learning_rate=0.01, weight_decay=0.5, momentum=0.8)
    made = make_optimiser(model, training)
    assert type(made) is kind
    assert [group["betas"] for group in made.param_groups] == [(0.8, 0.999)] * 2
    assert [group["weight_decay"] for group in made.param_groups] == [0.5, 0.0]
    before = copy.deepcopy(model)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    made.step()
    fixed = {name for name, _ in model.named_parameters() if "shortcut" in name}
    assert fixed
    for (name, old), new in zip(before.named_parameters(), model.parameters(), strict=True):
        decayed = old * (1 - 0.01 * 0.5) if optimiser == "adamw" else old - 0.01 * old.sign()
        torch.testing.assert_close(new, old if name in fixed else decayed, rtol=1e-5, atol=1e-5)  # Adam's epsilon


def test_adamw_trains_and_repeats_bit_for_bit(batches: Batches) -> None:
    def losses(optimiser: str) -> list[float]:
        training = Training(epochs=4, optimiser=optimiser, learning_rate=0.01, weight_decay=0.1)
        return torch.cat(list(train(network(), batches, training, seed=0))).tolist()

    found = losses("adamw")
    assert found == losses("adamw") != losses("adam")
    assert found[-1] < 0.9 * found[0]


@pytest.mark.parametrize("flow", [PLAIN, GRADIENT_ONLY])
def test_projections_without_a_forward_value_stay_as_they_began(batches: Batches, flow: Flow) -> None:
    model = network(flow, projection="C")
    before = copy.deepcopy([list(block.shortcut.parameters()) for block in model.blocks])
    list(train(model, batches, Training(epochs=1), seed=0))
    for block, parameters in zip(model.blocks, before, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(block.shortcut.parameters(), parameters, strict=True))
    assert len(parameter_groups(model, 0.1)[1]["params"]) == 9  # pyright: ignore[reportArgumentType]
    assert len(parameter_groups(network(), 0.1)[1]["params"]) == 0  # pyright: ignore[reportArgumentType]


def test_schedules_reach_their_rates() -> None:
    def rates(training: Training, steps: int) -> list[float]:
        optimiser = torch.optim.SGD([torch.zeros(1)], lr=training.learning_rate)
        schedule = make_schedule(optimiser, training, steps)
        found = []
        for _ in range(steps):
            found.append(optimiser.param_groups[0]["lr"])
            optimiser.step()
            schedule.step()
        return found

    one_cycle = rates(Training(learning_rate=0.2), 100)
    assert max(one_cycle) == pytest.approx(0.2)
    assert one_cycle.index(max(one_cycle)) == 29  # the top after 30 % of the steps
    assert one_cycle[-1] < 1e-5
    step = rates(Training(learning_rate=0.2, schedule="step"), 64)
    assert step == pytest.approx([0.2] * 32 + [0.02] * 16 + [0.002] * 16)
    assert rates(Training(learning_rate=0.2, schedule="step"), 1) == [0.2]
    assert rates(Training(learning_rate=0.2, schedule="step"), 2) == pytest.approx([0.2, 0.02])
    assert rates(Training(learning_rate=0.2, schedule="step"), 3) == pytest.approx([0.2, 0.2, 0.02])


@pytest.mark.parametrize(
    ("training", "message"),
    [
        (Training(epochs=0), "--epochs 0"),
        (Training(batch_size=1), "--batch-size 1"),
        (Training(learning_rate=math.nan), "--learning-rate nan"),
        (Training(momentum=1), "--momentum 1"),
        (Training(weight_decay=-1), "--weight-decay -1"),
        (Training(schedule="cosine"), "--schedule: unknown 'cosine'; choose from one-cycle, step"),
    ],
)
def test_settings_that_make_no_sense(training: Training, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        training.check()


def test_another_loss_sees_outputs_images_and_labels(batches: Batches) -> None:
    """The first step's loss is that of the first weights on the first batch, by hand; the gradient is that loss's."""

    def loss(outputs: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        return (outputs[:, 0] - images.mean((1, 2, 3)) - labels).square().mean()

    model, twin = network(), network().train()
    training = Training(epochs=1, batch_size=300, weight_decay=0)
    (reported,) = train(model, batches, training, seed=0, loss=loss)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    of_batch = loss(twin(batches.get("train", order)[0]), *batches.get("train", order))
    assert reported.tolist() == [pytest.approx(of_batch.item(), rel=1e-5)]
    assert torch.equal(model.classifier.weight[1:], twin.classifier.weight[1:])  # outputs that the loss does not read
    assert not torch.equal(model.classifier.weight[0], twin.classifier.weight[0])
