"""Whole trainings on a GPU: killed and resumed, compiled, in a group of distributed, captured."""

import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from experiments.engine.conditions.controls import NO_CONTROL, Control
from experiments.engine.running import checkpoints, distributed
from experiments.engine.running.run import Run
from experiments.engine.training import loop
from experiments.engine.training.captured_step import WARM_UP, CapturedSteps, cuda_graph
from experiments.engine.training.compute import Computing
from experiments.engine.training.data import Batches, Data, Dataset, load
from experiments.engine.training.loop import Diverged, train
from experiments.engine.training.optimisation import Training
from experiments.engine.training.settings import NetworkSettings
from experiments.engine.training.train_run import make_network, train_run
from models import ARMS, cifar_resnet
from models.variants import Variant
from tests.support.scripts import file_of, run_apart

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.filterwarnings("default"),  # what a GPU's libraries warn of is theirs
]
GPU = torch.device("cuda", 0)
DRAWING = ("dropout-shortcut", "stochastic-depth")  # they draw in their forward, on the device


class Killed(Exception):
    """Ends a training."""


@pytest.fixture(autouse=True)
def same_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal inputs give equal sums; a checkpoint after every epoch."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    monkeypatch.setattr(checkpoints, "EVERY", 0)


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return load(Data(train_limit=256))


def run_of(dataset: Dataset, network: str, device: torch.device) -> Run:
    settings = NetworkSettings(
        network=network, width=4, seeds=(0,), device=str(device), training=Training(epochs=4, batch_size=64)
    )
    return settings.runs("toy", dataset, arms=("residual",), depths=(8,))[0]


def weights_after(
    run: Run, dataset: Dataset, file: Path | None = None, *, killed_in: int | None = None
) -> dict[str, Tensor]:
    """A run's network after four epochs, or the end in one of them."""

    def measure(model: nn.Module, batches: Batches, epoch: int, last: bool) -> dict[str, pd.DataFrame]:
        if epoch == killed_in:
            raise Killed
        return {}

    model = make_network(run, dataset)
    train_run(run, file, dataset=dataset, model=model, measure=measure)
    return model.state_dict()


def killed_and_resumed(run: Run, dataset: Dataset, file: Path) -> dict[str, Tensor]:
    with pytest.raises(Killed):
        weights_after(run, dataset, file, killed_in=3)
    assert file.exists()
    return weights_after(run, dataset, file)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, b[name]) for name, value in a.items())


@pytest.mark.parametrize("network", ["resnet", *DRAWING])
def test_a_killed_training_goes_on_to_the_same_weights(network: str, dataset: Dataset, tmp_path: Path) -> None:
    run = run_of(dataset, network, GPU)
    undisturbed = weights_after(run, dataset)
    assert same(weights_after(run, dataset), undisturbed), "nothing but the seed decides"
    assert same(killed_and_resumed(run, dataset, tmp_path / "a.pt"), undisturbed)


@pytest.mark.parametrize("network", DRAWING)
def test_a_random_state_that_was_not_kept_would_be_noticed(
    network: str, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(dataset, network, GPU)
    undisturbed = weights_after(run, dataset)
    monkeypatch.setattr(loop, "global_generators", lambda device: [torch.default_generator])
    assert not same(killed_and_resumed(run, dataset, tmp_path / "a.pt"), undisturbed)


def trained(dataset: Dataset, device: torch.device, control: Control, how: Computing) -> tuple[list[float], nn.Module]:
    """Each step's loss in the stop-gradient arm, and the network."""
    torch.manual_seed(0)
    model = cifar_resnet(8, flow=ARMS["stop-gradient"], width=4, in_channels=1).to(device)
    backward, training = control.prepare(model, seed=0), Training(epochs=2, batch_size=64)
    losses = train(model, Batches(dataset, device), training, seed=0, backward=backward, computing=how)
    return torch.cat(list(losses)).tolist(), model


@pytest.fixture
def group() -> Iterator[None]:
    """A group of this process alone: NCCL between GPUs, as under torchrun."""
    store = dist.HashStore()  # pyright: ignore[reportPrivateImportUsage]
    dist.init_process_group(distributed.backends(), store=store, rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def check_group(dataset: Dataset, device: torch.device, alone: list[tuple[list[float], nn.Module]]) -> None:
    assert (distributed.count(), distributed.from_leader("word")) == (1, "word")
    assert isinstance(distributed.data_parallel(nn.Linear(2, 2).to(device)), DistributedDataParallel)
    values = torch.tensor([1.0, 2.0], device=device)
    assert distributed.mean(values).data_ptr() != values.data_ptr()  # it went through the group
    for (losses, model), control in zip(alone, CONTROLS, strict=True):
        in_group, other = trained(dataset, device, control, Computing())
        assert in_group == losses
        assert same(other.state_dict(), model.state_dict())


CONTROLS = (NO_CONTROL, Control(rule="true-norm"))


@pytest.fixture
def alone(dataset: Dataset) -> list[tuple[list[float], nn.Module]]:
    """What this process trains without a group."""
    return [trained(dataset, GPU, control, Computing()) for control in CONTROLS]


def test_a_group_of_one_trains_as_a_process_alone(
    dataset: Dataset, alone: list[tuple[list[float], nn.Module]], group: None
) -> None:
    """Through DistributedDataParallel and NCCL; a mean over one process is the value itself."""
    assert "nccl" in str(dist.get_backend_config())
    check_group(dataset, GPU, alone)


@pytest.mark.slow
def test_more_processes_than_gpus_are_refused_with_one_line(tmp_path: Path) -> None:
    count = torch.cuda.device_count() + 1
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    command += [file_of("stopgrad_shortcut"), "--device", "cuda", "--batch-size", str(64 * count)]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "out")], capture_output=True, text=True, env=env, timeout=120
    )
    assert done.returncode
    said = f"error: --device cuda: {count - 1} GPUs here; start no more processes (--nproc-per-node)"
    assert done.stderr.count(said) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "rounding"),
    [(Computing(compile=True), 1e-2), (Computing(autocast=True, channels_last=True, compile=True), 3e-2)],
)
def test_a_compiled_network_trains_as_it_is_written(dataset: Dataset, how: Computing, rounding: float) -> None:
    """Over eight steps: TF32 keeps 11 bits, and bfloat16 8; 1e-2 and 3e-2 are 20 and 8 roundings, which compiled code
    takes at other places. That the network is compiled is under test without a GPU."""
    written, _ = trained(dataset, GPU, NO_CONTROL, replace(how, compile=False))
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's own
        compiled, model = trained(dataset, GPU, NO_CONTROL, how)
    assert compiled == pytest.approx(written, rel=rounding)
    assert all(parameter.isfinite().all() for parameter in model.parameters())


# Captured steps


def called_again(function: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
    """In place of a graph: the step is taken anew each time, with the same kernels, launched by Python."""
    result = torch.full((), torch.nan, device=GPU)
    return lambda: result.copy_(function()), result  # pyright: ignore[reportReturnType]


VARIANTS: dict[str, Variant] = {"dropout-shortcut": "dropout", "stochastic-depth": "stochastic-depth"}
CAPTURED_TRAININGS = {
    "one cycle": Training(epochs=20, batch_size=64),
    "steps": Training(epochs=20, batch_size=64, schedule="step"),
    "signs": Training(epochs=20, batch_size=64, learning_rate=0.001, optimiser="sign"),
    "adamw": Training(epochs=20, batch_size=64, learning_rate=0.01, optimiser="adamw"),
}


@pytest.mark.parametrize("computing", [Computing(), Computing(autocast=True, channels_last=True)], ids=str)
@pytest.mark.parametrize(
    ("network", "optimising"),
    [
        *(("residual", name) for name in CAPTURED_TRAININGS),
        *((name, "one cycle") for name in ("stop-gradient", "gradient-only", *DRAWING)),
    ],
)
def test_gpu_captured_steps_are_plain_steps(
    dataset: Dataset, network: str, optimising: str, computing: Computing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same kernels in the same order, replayed or launched anew: every loss, weight and buffer to the last bit.

    A training without --capture has its rates as numbers, with which kernels on a GPU compute in float64, and an
    optimiser of many kernels: its losses are the same up to rounding, which grows from step to step (5e-2 is about 30
    times what it came to in 40 steps on a CPU in bfloat16).
    """
    training = CAPTURED_TRAININGS[optimising]
    batches = Batches(replace(dataset, augment="crop-flip"), GPU)
    flow, variant = ARMS.get(network, ARMS["residual"]), VARIANTS.get(network, "identity")

    def trained_with(how: Computing) -> tuple[Tensor, dict[str, Tensor]]:
        torch.manual_seed(0)
        model = cifar_resnet(8, flow=flow, width=4, in_channels=1, variant=variant).to(GPU)
        return torch.cat(list(train(model, batches, training, seed=0, computing=how))), model.state_dict()

    losses, weights = trained_with(replace(computing, capture=True))
    assert len(losses) == 80
    with monkeypatch.context() as patched:
        patched.setattr(loop, "CapturedSteps", partial(CapturedSteps, capture=called_again))
        wanted_losses, wanted = trained_with(replace(computing, capture=True))
    assert torch.equal(losses, wanted_losses)
    assert same(weights, wanted)
    plain, _ = trained_with(computing)
    torch.testing.assert_close(losses[:40], plain[:40], rtol=5e-2, atol=0)


def test_gpu_a_step_is_captured_once_and_replayed(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the other tests would compare plain steps with plain steps."""
    calls: list[torch.cuda.Stream] = []

    def counted(function: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        replay, result = cuda_graph(function)
        return lambda: (calls.append(torch.cuda.current_stream(GPU)), replay())[1], result

    monkeypatch.setattr(loop, "CapturedSteps", partial(CapturedSteps, capture=counted))
    model = cifar_resnet(8, width=4, in_channels=1).to(GPU)
    training = Training(epochs=2, batch_size=64)
    list(train(model, Batches(dataset, GPU), training, seed=0, computing=Computing(capture=True)))
    assert calls == (8 - WARM_UP) * [torch.cuda.default_stream(GPU)]


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_gpu_steps_are_captured_on_the_network_s_device_which_need_not_be_the_current_one(dataset: Dataset) -> None:
    losses = []
    for device in (torch.device("cuda", 0), torch.device("cuda", 1)):
        torch.manual_seed(0)
        model = cifar_resnet(8, width=4, in_channels=1).to(device)
        training = Training(epochs=4, batch_size=64)
        steps = train(model, Batches(dataset, device), training, seed=0, computing=Computing(capture=True))
        losses.append(torch.cat(list(steps)).cpu())
        assert torch.cuda.current_device() == 0
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-2, atol=0)


def test_gpu_a_script_takes_the_flag(tmp_path: Path) -> None:
    flags = ("--quick", "--device", "cuda", "--capture", "--seeds", "0", "--out", tmp_path / "out")
    done = run_apart("stopgrad_shortcut", *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "steps are taken without it" not in done.stderr + done.stdout


@pytest.mark.parametrize("network", ["resnet", *DRAWING])
def test_gpu_captured_trainings_are_killed_and_resumed(dataset: Dataset, network: str, tmp_path: Path) -> None:
    run = run_of(dataset, network, GPU)
    run = replace(run, recipe=replace(run.recipe, computing=Computing(capture=True)))
    wanted = weights_after(run, dataset)
    again = killed_and_resumed(run, dataset, tmp_path / "checkpoints" / "run.pt")
    assert all(torch.equal(again[name], value) for name, value in wanted.items())


def test_gpu_a_captured_training_diverges(dataset: Dataset) -> None:
    training = Training(epochs=4, batch_size=64, learning_rate=1e30)
    model = cifar_resnet(8, width=4, in_channels=1).to(GPU)
    with pytest.raises(Diverged):
        list(train(model, Batches(dataset, GPU), training, seed=0, computing=Computing(capture=True)))
