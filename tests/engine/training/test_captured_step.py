"""Captured steps against plain ones. There is no CUDA graph on a CPU: in its place stands what calls the step again,
which proves all but the graph: the memory that is read and written, rates, schedules, checkpoints."""

import copy
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from experiments.engine.conditions.controls import Control
from experiments.engine.running import checkpoints
from experiments.engine.running.checkpoints import Checkpoint
from experiments.engine.training import captured_step, loop
from experiments.engine.training.captured_step import WARM_UP, CapturedSteps, take_rates_from_tensors
from experiments.engine.training.compute import Computing
from experiments.engine.training.data import Batches, Data, Draw, load
from experiments.engine.training.loop import Diverged, train
from experiments.engine.training.optimisation import Training, make_optimiser
from models import cifar_resnet

CPU = torch.device("cpu")
CAPTURE = Computing(capture=True)
TRAININGS = {
    "sgd, one cycle": Training(epochs=3, batch_size=32, learning_rate=0.1),
    "sgd, steps": Training(epochs=3, batch_size=32, learning_rate=0.1, schedule="step"),
    "signs": Training(epochs=3, batch_size=32, learning_rate=0.01, optimiser="sign"),
    "adamw": Training(epochs=3, batch_size=32, learning_rate=0.01, optimiser="adamw", weight_decay=0.1),
}


@pytest.fixture(scope="module")
def batches() -> Batches:
    return Batches(load(Data(train_limit=160, augment="crop-flip")), CPU)


def network() -> nn.Module:
    torch.manual_seed(0)
    return cifar_resnet(8, width=4, in_channels=1)


def fused(model: nn.Module, training: Training) -> torch.optim.Optimizer:
    """The training's optimiser, in one kernel, as captured steps have it."""
    optimiser = make_optimiser(model, training)
    take_rates_from_tensors(optimiser)
    return optimiser


def again(function: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
    """In place of a graph: calls the function anew. Like a graph, it computes nothing while it captures."""
    result = torch.full((), torch.nan)
    return lambda: captured_calls.append(result.copy_(function()).item()), result


captured_calls: list[float] = []


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    captured_calls.clear()
    monkeypatch.setattr(loop, "may_capture", lambda *args, **kwargs: True)
    monkeypatch.setattr(loop, "CapturedSteps", partial(CapturedSteps, capture=again))
    yield
    assert captured_calls, "no step was captured"


def trained(batches: Batches, training: Training, **changes: Any) -> tuple[list[float], dict[str, Tensor]]:
    """Every step's loss, and the final weights and buffers."""
    model = network()
    losses = torch.cat(list(train(model, batches, training, seed=0, **changes)))
    return losses.tolist(), copy.deepcopy(model.state_dict())


@pytest.mark.parametrize("training", TRAININGS.values(), ids=TRAININGS.keys())
def test_captured_steps_are_plain_steps_to_the_last_bit(batches: Batches, training: Training, captured: None) -> None:
    losses, weights = trained(batches, training, computing=CAPTURE)
    assert len(losses) == 15
    assert losses[WARM_UP:] == captured_calls
    wanted = trained(batches, training, make_optimiser=fused)
    if training.optimiser == "adamw":  # whose kernel computes with the rate as a float64 where it is a number
        assert losses == pytest.approx(wanted[0], rel=1e-5)
    else:
        assert losses == wanted[0]
        assert all(torch.equal(weights[name], value) for name, value in wanted[1].items())
    # An optimiser of many kernels rounds elsewhere: 15 steps of float32.
    assert losses == pytest.approx(trained(batches, training)[0], rel=1e-4)


def test_a_captured_training_that_was_killed_resumes_as_if_it_had_not_been(
    batches: Batches, captured: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "EVERY", 0.0)
    training, file = TRAININGS["sgd, one cycle"], tmp_path / "checkpoints" / "run.pt"
    wanted = trained(batches, training, computing=CAPTURE)
    killed = train(network(), batches, training, seed=0, computing=CAPTURE, checkpoint=Checkpoint(file))
    first = [next(killed).tolist(), next(killed).tolist()]  # what follows the first is written when the second begins
    model = network()
    rest = [x.tolist() for x in train(model, batches, training, seed=0, computing=CAPTURE, checkpoint=Checkpoint(file))]
    assert len(rest) == 2
    assert first[0] + rest[0] + rest[1] == wanted[0]
    assert rest[0] == first[1]
    assert all(torch.equal(model.state_dict()[name], value) for name, value in wanted[1].items())


def test_a_captured_training_diverges_at_the_same_step(batches: Batches, captured: None) -> None:
    training = Training(epochs=3, batch_size=32, learning_rate=1e30, optimiser="sgd", schedule="step")
    ends = []
    given: list[dict[str, Any]] = [{"computing": CAPTURE}, {"make_optimiser": fused}]
    for changes in given:
        with pytest.raises(Diverged) as end:
            trained(batches, training, **changes)
        ends.append(end.value.step)
    captured_calls.append(0)  # it may have ended before a step was captured
    assert ends[0] == ends[1]


class NothingIsRead(TorchDispatchMode):
    """Raises where a tensor's number comes to Python: a graph cannot be captured there, nor would it be read again."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            raise AssertionError("a number is read back")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("training", TRAININGS.values(), ids=TRAININGS.keys())
@pytest.mark.parametrize("computing", [CAPTURE, replace(CAPTURE, autocast=True, channels_last=True)], ids=str)
def test_no_number_of_a_captured_step_comes_to_python(
    batches: Batches, training: Training, computing: Computing, captured: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = []

    def watched(function: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        def call() -> Tensor:
            with NothingIsRead():
                return function()

        return again(call)

    class Watched(CapturedSteps):
        def _take(self) -> Tensor:
            rates.extend(self.rates)
            return super()._take()

    monkeypatch.setattr(loop, "CapturedSteps", partial(Watched, capture=watched))
    trained(batches, training, computing=computing)
    assert len({rate.data_ptr() for rate in rates}) == 2, "one place for each group of parameters"
    with pytest.raises(AssertionError, match="read back"), NothingIsRead():
        torch.ones(()).item()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, "it needs a GPU"),
        ({"backward": Control(frozen=0.5)}, "something changes gradients in Python"),
        ({"gradient_context": lambda model: nullcontext()}, "something changes gradients in Python"),
    ],
)
def test_where_no_step_can_be_captured_a_line_says_so(
    batches: Batches, changes: dict[str, Any], reason: str, caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """On a GPU (pretended here), all but the first; the training is that without --capture, to the last bit."""
    given, model = dict(changes), network()
    if "backward" in given:
        given["backward"] = given["backward"].prepare(model, seed=0)
    training = replace(TRAININGS["sgd, one cycle"], epochs=1)
    device = batches.device
    plain = "backward" not in given and "gradient_context" not in given
    with caplog.at_level(logging.WARNING):
        if not plain:
            monkeypatch.setattr(batches, "device", torch.device("cuda"))
        assert not loop.may_capture(batches, CAPTURE, plain=plain)
        monkeypatch.setattr(batches, "device", device)
        assert f"--capture: steps are taken without it, since {reason}" in caplog.text
        losses = torch.cat(list(train(model, batches, training, seed=0, computing=CAPTURE, **given)))
    if plain:
        assert losses.tolist() == trained(batches, training)[0]


def test_a_step_is_captured_on_a_gpu_alone_without_torchrun(batches: Batches, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "device", torch.device("cuda"))
    assert loop.may_capture(batches, CAPTURE, plain=True)
    assert not loop.may_capture(batches, replace(CAPTURE, compile=True), plain=True)
    monkeypatch.setattr(loop.distributed, "together", lambda: True)  # also alone: what averages gradients is there
    assert not loop.may_capture(batches, CAPTURE, plain=True)


class FakeStream:
    """Notes what waits for what, under the names that it is given."""

    def __init__(self, name: str, order: list[str]) -> None:
        self.name, self.order, self.device = name, order, torch.device("cuda", 1)

    def wait_stream(self, other: "FakeStream") -> None:
        self.order.append(f"{self.name} waits for {other.name}")


@pytest.fixture
def order(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What happens on a GPU's streams, in order, of calls that are replaced."""
    order: list[str] = []
    current = [FakeStream("default", order)]

    @contextmanager
    def on(stream: FakeStream) -> Iterator[None]:
        current.append(stream)
        yield
        current.pop()

    class Graph:
        def replay(self) -> None:
            order.append(f"replay on {current[-1].name}")

    @contextmanager
    def capturing(graph: Graph, *, stream: FakeStream) -> Iterator[None]:
        assert isinstance(graph, Graph)
        order.append(f"capture on {stream.name}")
        yield
        order.append("captured")

    monkeypatch.setattr(torch.cuda, "current_stream", lambda *device: current[-1])
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", capturing)
    return order


def test_the_graph_itself_is_torch_s(order: list[str]) -> None:
    """What is captured, on the current stream, is replayed, and its result is read where it was written."""
    loss = torch.ones(())

    def step() -> Tensor:
        order.append("step")
        return loss

    replay, result = captured_step.cuda_graph(step)
    replay()
    assert order == ["capture on default", "step", "captured", "replay on default"]
    assert result is loss


def test_plain_steps_and_the_capture_are_on_one_stream_and_replays_on_the_default_one(order: list[str]) -> None:
    """A step's kernels are replayed on the stream of the draws; what goes before waits, on either side."""
    optimiser = torch.optim.SGD([torch.zeros(1)], lr=0.1)

    def step(draw: Draw) -> Tensor:
        order.append(f"step on {torch.cuda.current_stream().name}")  # pyright: ignore[reportAttributeAccessIssue]
        return torch.ones(())

    steps = CapturedSteps(step, optimiser)
    draw = Draw(torch.zeros(2, dtype=torch.long), None, None)
    steps.given, steps.stream = draw, FakeStream("side", order)  # pyright: ignore[reportAttributeAccessIssue]
    for _ in range(WARM_UP + 2):
        steps(draw)
    waits, waited = ["side waits for default"], ["default waits for side"]
    captured = ["capture on side", "step on side", "captured"]
    replayed = ["replay on default"]
    assert order == WARM_UP * [*waits, "step on side", *waited] + [*waits, *captured, *waited] + 2 * replayed
