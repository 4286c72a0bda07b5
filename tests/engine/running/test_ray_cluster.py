"""A grid on a Ray cluster that the tests start and stop: the tables of joblib's processes, and nothing left behind."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch

from experiments.engine.running import distributed, ray_cluster
from experiments.engine.running.grid import run_grid
from experiments.engine.running.messages import BadInput
from experiments.engine.running.output import Output
from experiments.engine.running.workers import Execution
from experiments.engine.training.data import Data, load
from experiments.engine.training.optimisation import Training
from experiments.engine.training.settings import NetworkSettings
from experiments.engine.training.train_run import train_run
from experiments.stopgrad_shortcut import measure
from tests.support.grid_script import NAMES, RUNS, alive, finished, ran, run_slowly, start, wait_until

CPU = torch.device("cpu")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A cluster of one machine with two CPUs; --block ends all of it with its first process."""
    ray = pytest.importorskip("ray", reason="the extra cluster is not installed")
    found = f"127.0.0.1:{free_port()}"
    with TemporaryDirectory(prefix="ray") as folder:  # short: sockets lie in it
        options = f"--head --block --num-cpus=2 --include-dashboard=false --disable-usage-stats --temp-dir={folder}"
        options += " --node-ip-address=127.0.0.1 --object-store-memory=100000000"
        command = [str(Path(sys.executable).with_name("ray")), "start", *options.split(), f"--port={found[10:]}"]
        log = Path(folder) / "log"
        with log.open("w") as written, subprocess.Popen(command, stdout=written, stderr=written) as head:
            try:
                wait_until(lambda: "Ray runtime started" in log.read_text() or head.poll() is not None)
                assert head.poll() is None, log.read_text()
                yield found
            finally:
                ray.shutdown()
                head.send_signal(signal.SIGTERM)


@pytest.mark.slow
def test_a_cluster_gives_the_tables_of_processes(tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = load(Data(train_limit=256))
    settings = NetworkSettings(width=2, seeds=(0, 1), training=Training(epochs=2))
    outputs = ("gradients", "magnitudes", "paths")
    runs = settings.runs("toy", data, arms=("residual", "stop-gradient"), depths=(8,), outputs=outputs)
    run_slowly(tmp_path / "before", 0, execution=Execution(2))
    monkeypatch.chdir(tmp_path)  # relative names mean the same to workers, also to those that began elsewhere
    task = partial(train_run, dataset=data, measure=measure)
    run_grid(runs, task, Output(Path("processes")), execution=Execution(2))
    run_grid(runs, task, Output(Path("ray")), execution=Execution(backend="ray", ray_address=connected(address)))
    tables = {file.name: file.read_bytes() for file in (tmp_path / "processes").glob("*.csv")}
    assert {"outcomes.csv", "losses.csv", "gradients.csv", "paths.csv"} < set(tables)
    assert {file.name: file.read_bytes() for file in (tmp_path / "ray").glob("*.csv")} == tables


def connected(address: str) -> str:
    ray_cluster.connect(address)
    return address


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked up in /proc")
def test_a_killed_invocation_ends_its_runs_and_the_same_command_resumes(tmp_path: Path, address: str) -> None:
    process = start(run_on_cluster, tmp_path, address, 0.5)
    wait_until(lambda: len(finished(tmp_path)) >= 3)
    workers = {int(line.split()[1]) for line in (tmp_path / "log").read_text().splitlines()}
    assert process.pid not in workers
    process.kill()
    wait_until(lambda: not any(map(alive, workers)))
    done, before = finished(tmp_path), len(ran(tmp_path))
    assert len(done) < len(RUNS)
    run_on_cluster(tmp_path, address, 0)
    assert set(ran(tmp_path)[before:]) == NAMES - done
    run_slowly(tmp_path / "undisturbed", 0)
    assert (tmp_path / "outcomes.csv").read_bytes() == (tmp_path / "undisturbed" / "outcomes.csv").read_bytes()


def run_on_cluster(folder: Path, address: str, seconds: float) -> None:
    run_slowly(folder, seconds, execution=Execution(backend="ray", ray_address=connected(address)))


@pytest.mark.slow
def test_no_more_run_max_parallel_than_is_asked_for_and_results_come_as_they_are_done(
    tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    connected(address)

    def timed(seconds: float) -> tuple[float, float]:
        begin = time.time()
        time.sleep(seconds)
        return begin, time.time()

    (first, second) = ray_cluster.imap_unordered(timed, [0.2, 0.2], device=CPU, max_parallel=1)
    assert first[1] <= second[0]
    monkeypatch.chdir(tmp_path)
    assert list(ray_cluster.imap_unordered(lambda item: Path.cwd(), [0], device=CPU, max_parallel=1)) == [tmp_path]

    def in_turn(item: str) -> str:
        if item == "second":
            (tmp_path / "second").touch()
        else:
            wait_until((tmp_path / "second").exists)
            time.sleep(1)
        return item

    done = list(ray_cluster.imap_unordered(in_turn, ["first", "second"], device=CPU, max_parallel=2))
    assert done == ["second", "first"]


@pytest.mark.slow
def test_an_error_in_a_run_is_raised_as_itself(address: str) -> None:
    connected(address)

    def fail(item: int) -> None:
        raise OSError(28, f"no space for {item}")

    with pytest.raises(OSError, match="no space for 7") as caught:
        list(ray_cluster.imap_unordered(fail, [7], device=CPU, max_parallel=1))
    assert caught.value.errno == 28


@pytest.mark.slow
def test_a_run_whose_process_is_lost_is_rerun(tmp_path: Path, address: str) -> None:
    connected(address)

    def dies_once(item: int) -> int:
        if not (mark := tmp_path / "begun").exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return item

    assert list(ray_cluster.imap_unordered(dies_once, [7], device=CPU, max_parallel=1)) == [7]


@pytest.mark.slow
def test_what_the_cluster_lacks_is_named(tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadInput, match="--backend ray --device cuda: the cluster has no GPU"):
        Execution(backend="ray", ray_address=address).check("cuda")
    ray_cluster.check_sees(tmp_path)
    assert not list(tmp_path.iterdir())
    with monkeypatch.context() as patch:
        patch.setattr(ray_cluster, "CHECKOUT", tmp_path / "nowhere")
        with pytest.raises(BadInput, match=r"does not see .*nowhere; every machine of the cluster must see"):
            ray_cluster.check_sees(tmp_path)
        patch.undo()
        patch.setattr(torch, "__version__", "0.1")
        with pytest.raises(BadInput, match=r"has torch [2-9].*, this machine 0.1: use one"):
            ray_cluster.check_sees(tmp_path)
    assert Execution(backend="ray", ray_address=address).max_parallel(CPU) == 2
    assert Execution(1, backend="ray", ray_address=address).max_parallel(CPU) == 1


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("nonsense", "--ray-address nonsense: give HOST:PORT, or auto"),
        ("ray:", "--ray-address ray:: give HOST:PORT, or auto"),
        ("ray://127.0.0.1:10001", "--ray-address ray://127.0.0.1:10001: give HOST:PORT, or auto"),
        ("127.0.0.1:{port}", r"no cluster answers at 127.0.0.1:{port} .*start one \(ray start --head\), or give its"),
        ("auto", "RAY_ADDRESS rubbish: give HOST:PORT, or auto"),
    ],
)
def test_an_address_that_does_not_answer_is_refused_at_once(
    address: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray", reason="the extra cluster is not installed")
    port = free_port()
    if address == "auto":
        monkeypatch.setenv("RAY_ADDRESS", "rubbish")
    with pytest.raises(BadInput, match=message.format(port=port)):
        Execution(backend="ray", ray_address=address.format(port=port)).check("cpu")


def test_a_missing_ray_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(BadInput, match=r"Ray is not installed; pip install -e '.\[cluster\]'"):
        Execution(backend="ray").check("cpu")


def test_torchrun_and_a_cluster_exclude_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "count", lambda: 2)
    with pytest.raises(BadInput, match="torchrun's processes train one network together; give one of the two"):
        Execution(backend="ray").check("cpu")
