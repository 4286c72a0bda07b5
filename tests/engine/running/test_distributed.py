"""Two processes train one network as one process does, and what cannot be shared is refused by both."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, redirect_stderr, redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor, nn

from experiments import stopgrad_shortcut
from experiments.engine.conditions.block_gradients import assign
from experiments.engine.conditions.controls import NO_CONTROL, Control, Cut
from experiments.engine.running import checkpoints, distributed
from experiments.engine.running.cli import run_script
from experiments.engine.running.workers import Execution
from experiments.engine.training.data import Batches, Data, load
from experiments.engine.training.loop import Backward, Moment, train
from experiments.engine.training.optimisation import Training
from experiments.engine.training.settings import NetworkSettings
from experiments.engine.training.train_run import train_run
from models import RESIDUAL, STOP_GRADIENT, residual_mlp
from probes import gate, limit_paths

Context = Callable[[nn.Module], AbstractContextManager[object]]
ROOT = Path(__file__).parents[3]
SCRIPT = """
from experiments import stopgrad_shortcut
from experiments.engine.running.cli import run_script
stopgrad_shortcut.report = lambda *_: print("reported")  # its figures take longer than all the rest
run_script("experiments.stopgrad_shortcut")
"""
TOY = stopgrad_shortcut.Settings(
    seeds=(0,),
    depths=(5,),
    arms=("residual", "stop-gradient"),
    network="mlp",
    width=4,
    training=Training(epochs=2),
    data=Data(train_limit=256, augment="crop"),
    execution=Execution(1),
)
FLAGS = "--seeds 0 --depths 5 --arms residual stop-gradient --network mlp --width 4 --epochs 2 --train-limit 256"
FLAGS += " --augment crop"


@pytest.mark.slow
def test_two_processes_write_what_one_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without BatchNorm, at the same global batch. Sums over a batch are taken in two halves: float32's last bits,
    which five layers and four steps make up to 2e-6 of a value; 1e-4 leaves room for other machines."""
    (script := tmp_path / "toy.py").write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    command += [*FLAGS.split(), "--out", str(tmp_path / "two")]
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=300)
    assert done.returncode == 0, done.stderr
    monkeypatch.setattr(stopgrad_shortcut, "report", lambda *_: None)
    stopgrad_shortcut.main(replace(TOY, out=tmp_path / "one"))
    one, two = (tmp_path / name / "stopgrad_shortcut" for name in ("one", "two"))

    tables = {file.name for file in one.glob("*.csv")}
    assert tables == {file.name for file in two.glob("*.csv")} >= {"losses.csv", "outcomes.csv", "paths.csv"}
    for name in tables:
        wanted, got = (pd.read_csv(folder / name) for folder in (one, two))
        pd.testing.assert_frame_equal(got, wanted, rtol=1e-4, atol=1e-7)
    runs = [sorted(path.name for path in (folder / "runs").iterdir()) for folder in (one, two)]
    assert len(runs[0]) == len(runs[1]) == 2
    assert not set(runs[0]) & set(runs[1])  # sums in another order: another run
    assert all(done.stderr.count(name) == 1 for name in runs[1])
    assert done.stdout.count("reported") == 1


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def trained(control: Control | None, context: Context = lambda model: nullcontext()) -> dict[str, Tensor]:
    """Weights after two steps, updates made as the control says; None: in a way that no process shares."""
    torch.manual_seed(0)
    model = residual_mlp(5, in_features=64, width=16, flow=RESIDUAL if control == NO_CONTROL else STOP_GRADIENT)
    batches = Batches(load(Data(train_limit=200)), torch.device("cpu"))
    backward: Backward = alone if control is None else control.prepare(model, seed=0)
    list(train(model, batches, Training(epochs=1, batch_size=100), seed=0, backward=backward, gradient_context=context))
    return model.state_dict()


def alone(model: nn.Module, loss: Tensor, moment: Moment) -> None:
    parameters = list(model.parameters())
    assign(parameters, torch.cat([part.flatten() for part in torch.autograd.grad(loss, parameters)]))


UPDATES: tuple[tuple[Control, Context], ...] = (
    (Control(rule="true-norm"), lambda model: nullcontext()),
    (Control(rule="noise"), lambda model: nullcontext()),
    (Control(cut=Cut(chance=0.5)), lambda model: nullcontext()),
    (Control(frozen=0.5), lambda model: nullcontext()),
    (NO_CONTROL, lambda model: gate(model, shortcut_gradient=0.5)),
    (NO_CONTROL, lambda model: limit_paths(model, at_most=1)),
)


def refuse(out: str) -> tuple[object, str]:
    """The exit status of a script whose batches cannot be shared, and what it says."""
    sys.argv, shown = ["toy", "--batch-size", "127", "--out", out], StringIO()
    with pytest.raises(SystemExit) as end, redirect_stdout(shown), redirect_stderr(shown):
        run_script("experiments.stopgrad_shortcut")
    return end.value.code, shown.getvalue()


def killed_and_resumed(folder: str) -> tuple[list[int], list[float], list[float]]:
    """A run that breaks in its second epoch and resumes: the epochs that were measured then, its losses, and those of
    a run that did not break. The leader alone has a file."""
    dataset, epochs = load(Data(train_limit=200)), list[int]()
    settings = NetworkSettings(network="mlp", width=4, seeds=(0,), training=Training(epochs=3, batch_size=100))
    (run,) = settings.runs("x", dataset, arms=("residual",), depths=(5,))
    file = Path(folder) / str(distributed.rank()) / "run.checkpoint"

    def measure(model: nn.Module, batches: Batches, epoch: int, last: bool) -> dict[str, pd.DataFrame]:
        epochs.append(epoch)
        if epochs == [0, 1, 2]:
            raise InterruptedError
        return {}

    undisturbed = train_run(run, dataset=dataset)
    with pytest.raises(InterruptedError):
        train_run(run, file, dataset=dataset, measure=measure)
    epochs.clear()
    resumed = train_run(run, file, dataset=dataset, measure=measure)
    assert file.exists() == (distributed.rank() == 0)
    first, second = (outcome.tables["losses"]["value"].tolist() for outcome in (resumed, undisturbed))
    return epochs, first, second


def worker(rank: int, folder: str, ports: tuple[str, str]) -> None:
    """All that two processes do in these tests, since they take longest to start."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": ports[0], "TORCHELASTIC_RUN_ID": "toy"}
    mistake = refuse(f"{folder}/out")
    os.environ["MASTER_PORT"] = ports[1]
    with distributed.joined():
        weights = [trained(control, context) for control, context in UPDATES]
        with pytest.raises(RuntimeError) as refused:
            trained(None)
        recipe = NetworkSettings().recipe(load(Data())).processes
        checkpoints.EVERY = 0
        resumed = killed_and_resumed(folder)
        torch.save((weights, str(refused.value), recipe, resumed, mistake), f"{folder}/{rank}.pt")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """What each of two processes found."""
    folder = tmp_path_factory.mktemp("two")
    mp.spawn(worker, (str(folder), (free_port(), free_port())), nprocs=2)  # pyright: ignore[reportPrivateImportUsage]
    assert {path.name for path in folder.iterdir()} == {"0", "0.pt", "1.pt"}  # a refusal writes nothing
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.slow
def test_controls_gates_and_limits_make_the_update_of_the_whole_batch(found: list[Any]) -> None:
    """Rules are not linear in the gradient: they need the whole batch's. Float32, in two halves, as above."""
    wanted = [trained(control, context) for control, context in UPDATES]
    assert not torch.equal(wanted[-1]["stem.0.weight"], wanted[-2]["stem.0.weight"])
    for weights, *_ in found:
        for by_one, by_two in zip(wanted, weights, strict=True):
            for name, value in by_one.items():
                torch.testing.assert_close(by_two[name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_a_batch_that_does_not_divide_ends_both_processes_with_one_line(found: list[Any]) -> None:
    (leader, said), follower = (mistake for *_, mistake in found)
    assert (leader, follower) == (2, (2, ""))
    assert said.startswith("error: 2 processes cannot share a batch of 127 images evenly: give a --batch-size, and")
    assert said.count("\n") == 1


@pytest.mark.slow
def test_weights_that_come_apart_are_noticed_and_the_run_is_another(found: list[Any]) -> None:
    for _, refused, recipe, *_ in found:
        assert refused.startswith("the weights of 2 processes differ")
        assert recipe == 2
    assert NetworkSettings().recipe(load(Data())).processes == 1


@pytest.mark.slow
def test_a_run_that_was_killed_resumes_in_both_processes(found: list[Any]) -> None:
    for *_, (epochs, resumed, undisturbed), _ in found:
        assert epochs == [2, 3]
        assert resumed == undisturbed


def test_one_process_is_alone() -> None:
    assert (distributed.count(), distributed.rank(), distributed.share(7)) == (1, 0, slice(0, 7))
    model = nn.Linear(2, 2)
    assert distributed.data_parallel(model) is model
