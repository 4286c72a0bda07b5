"""Autocast, channels_last and compile: what they may change, what they may not, and no waiting for the device."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from experiments import short_paths
from experiments.engine.conditions.conditions import ConditionSettings
from experiments.engine.conditions.controls import Control, Cut
from experiments.engine.running.messages import BadInput
from experiments.engine.running.run import Run
from experiments.engine.training import compute
from experiments.engine.training.compute import Computing
from experiments.engine.training.data import Batches, Data, Dataset, load
from experiments.engine.training.loop import evaluate, train
from experiments.engine.training.optimisation import Training
from experiments.engine.training.settings import NetworkSettings
from experiments.engine.training.train_run import train_run
from models import ARMS, PLAIN, CifarResNet, Flow, cifar_resnet
from probes import gradient_norms, record

ONE_STEP = Training(epochs=1, batch_size=300)


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return load(Data(train_limit=300))


@pytest.fixture(scope="module")
def batches(dataset: Dataset) -> Batches:
    return Batches(dataset, torch.device("cpu"))


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """All of the compiler but the code that it writes, which takes minutes."""
    monkeypatch.setattr(compute, "BACKEND", "aot_eager")
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's own, which change from version to version
        yield
    torch._dynamo.reset()


def network(flow: Flow = ARMS["residual"], depth: int = 20) -> CifarResNet:
    torch.manual_seed(0)
    return cifar_resnet(depth, flow=flow, width=4, in_channels=1)


def run_of(
    dataset: Dataset,
    how: Computing,
    network: str = "resnet",
    arm: str = "residual",
    training: Training = Training(epochs=2, batch_size=100),  # noqa: B008 (frozen)
) -> Run:
    settings = NetworkSettings(network=network, width=4, seeds=(0,), training=training, computing=how)
    return settings.runs("x", dataset, arms=(arm,), depths=(8,))[0]


def trained(batches: Batches, how: Computing, arm: str) -> tuple[nn.Module, list[float]]:
    model = network(ARMS[arm], depth=8)
    learning = train(model, batches, Training(epochs=2, batch_size=100), seed=0, computing=how)
    return model, torch.cat(list(learning)).tolist()


def test_norms_under_autocast_are_those_of_float32_as_far_as_bfloat16_tells(batches: Batches) -> None:
    """bfloat16 has 8 bits: each product is off by up to 2^-9 at random, and 20 layers there and back add up to no more
    than a few of these in a norm; 5 % is 26 of them. The junctions and quantities are the same."""
    found = {}
    for autocast in (False, True):
        with record(model := network()) as recording:
            how = Computing(autocast=autocast)
            list(train(model, batches, ONE_STEP, seed=0, computing=how))
        found[autocast] = gradient_norms(recording).set_index(["block", "depth", "quantity"])["value"]
    assert len(found[True]) == 9 * 4
    pd.testing.assert_series_equal(found[True], found[False], rtol=0.05, atol=0, check_exact=False)
    assert (found[True] != found[False]).any()  # it was on


def test_what_is_recorded_under_autocast_is_autograds_gradient(batches: Batches) -> None:
    """Each block's input keeps its own gradient, in another run of the same step."""
    with record(model := network()) as recording:
        list(train(model, batches, ONE_STEP, seed=0, computing=Computing(autocast=True)))
    norms = gradient_norms(recording).query("quantity == 'total'")["value"].tolist()
    twin, inputs = network(), list[Tensor]()

    def keep(_: nn.Module, args: tuple[Tensor]) -> None:
        args[0].retain_grad()
        inputs.append(args[0])

    for block in twin.blocks:
        block.register_forward_pre_hook(keep)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    images, labels = batches.get("train", order)
    with torch.autocast("cpu", torch.bfloat16):
        loss = F.cross_entropy(twin.train()(images), labels)
    loss.backward()
    gradients = [x.grad for x in inputs if x.grad is not None]
    assert norms == [pytest.approx(gradient.double().norm().item(), rel=1e-5) for gradient in gradients]  # float32 sums
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


def test_measuring_and_evaluating_stay_in_float32(dataset: Dataset) -> None:
    seen = list[tuple[bool, torch.dtype]]()

    def measure(model: nn.Module, batches: Batches, epoch: int, last: bool) -> dict[str, pd.DataFrame]:
        seen.append((torch.is_autocast_enabled("cpu"), model(batches.get("test", slice(0, 8))[0]).dtype))
        return {}

    train_run(run_of(dataset, Computing(autocast=True), training=Training(epochs=1)), dataset=dataset, measure=measure)
    assert seen == [(False, torch.float32)] * 2


@pytest.mark.parametrize("arm", ["stop-gradient", "gradient-only"])
def test_layout_changes_rounding_alone(batches: Batches, arm: str) -> None:
    model, losses = trained(batches, Computing(channels_last=True), arm)
    assert losses == pytest.approx(trained(batches, Computing(), arm)[1], rel=1e-4)  # float32 sums, over six steps
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in model.parameters() if p.ndim == 4)


def test_a_network_is_compiled_as_one_for_training_alone(
    batches: Batches, monkeypatch: pytest.MonkeyPatch, compiler: None
) -> None:
    """One code for a network and a batch's shape; evaluations call the network as it is written."""
    shapes = list[list[Any]]()

    def note(graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        shapes.append([size for x in inputs for size in (x.shape if isinstance(x, Tensor) else [x])])
        assert sum("conv" in str(node.target) for node in graph.graph.nodes if node.op == "call_function") == 7
        return graph.forward

    monkeypatch.setattr(compute, "BACKEND", note)
    model, _ = trained(batches, Computing(compile=True), "residual")
    assert len(shapes) == 1
    assert all(type(size) is int for size in shapes[0])
    evaluate(model, batches, "test")
    assert len(shapes) == 1


@pytest.mark.parametrize("name", ["exclusive-gate", "stochastic-depth"])
@pytest.mark.parametrize(
    "arm", [arm if arm == "stop-gradient" else pytest.param(arm, marks=pytest.mark.slow) for arm in ARMS]
)
def test_compiled_code_trains_every_arm_as_it_is_written(dataset: Dataset, compiler: None, name: str, arm: str) -> None:
    """To the last bit, since the code that would round otherwise is not written here."""
    runs = [run_of(dataset, how, network=name, arm=arm) for how in (Computing(), Computing(compile=True))]
    found = [train_run(run, dataset=dataset).tables["losses"]["value"].tolist() for run in runs]
    assert found[0] == found[1]


def test_compiled_code_follows_weights_that_change_before_a_forward(batches: Batches, compiler: None) -> None:
    def losses(how: Computing) -> list[float]:
        model = network(ARMS["gradient-only"], depth=8)
        learning, found = train(model, batches, Training(epochs=2, batch_size=100), seed=0, computing=how), []
        for of_epoch in learning:
            found += of_epoch.tolist()
            for block in model.blocks:
                block.flow = ARMS["plain"]
        return found

    assert losses(Computing(compile=True)) == losses(Computing())
    assert losses(Computing())[4:] != trained(batches, Computing(), "gradient-only")[1][4:]


def test_what_compiled_code_would_not_follow_is_refused(batches: Batches) -> None:
    how, message = Computing(compile=True), "--compile: compiled code does not follow what this experiment does"
    backward = Control(cut=Cut(chance=0.5)).prepare(network(depth=8), seed=0)
    changes: list[dict[str, Any]] = [{"backward": backward}, {"gradient_context": lambda model: nullcontext()}]
    for options in changes:
        with pytest.raises(BadInput, match=message):
            next(train(network(depth=8), batches, ONE_STEP, seed=0, computing=how, **options))
    for settings in (ConditionSettings(computing=how), short_paths.Settings(computing=how)):
        with pytest.raises(BadInput, match=message):
            settings.check()


def test_random_feedback_learns_under_autocast_as_in_float32(batches: Batches) -> None:
    """Its backward is written by hand: its operands come in two types. 3 % is 15 roundings of bfloat16."""

    def losses(how: Computing) -> list[float]:
        model = network(depth=8)
        backward = Control(feedback=True).prepare(model, seed=0)
        return torch.cat(list(train(model, batches, ONE_STEP, seed=0, computing=how, backward=backward))).tolist()

    assert losses(Computing(autocast=True)) == pytest.approx(losses(Computing()), rel=0.03)


def test_a_machine_that_cannot_compile_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compute, "BACKEND", "nonesuch")
    with pytest.raises(BadInput, match=r"--compile: torch cannot compile for cpu here .*nonesuch"):
        NetworkSettings(computing=Computing(compile=True)).check()


class NoWaiting(TorchDispatchMode):
    """Fails where a tensor's value is asked for, which would wait for a GPU."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        waiting = {torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero}
        waiting |= {torch.ops.aten.equal, torch.ops.aten.is_nonzero}
        assert func.overloadpacket not in waiting, f"{func} waits for the device"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("optimiser", ["sgd", "sign"])  # Adam counts its steps on the CPU, which costs no waiting
def test_no_step_waits_for_its_values(optimiser: str) -> None:
    batches = Batches(load(Data(train_limit=300, augment="crop-flip")), torch.device("cpu"))
    training = Training(epochs=1, batch_size=100, optimiser=optimiser)
    list(train(network(PLAIN, depth=8), batches, training, seed=0, gradient_context=lambda model: NoWaiting()))
