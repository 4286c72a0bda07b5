"""A Ray cluster that somebody has started: each run takes one of its CPUs, or GPUs.

Its machines share a file system: runs are locked, kept and looked up in one folder, as on a single machine.
"""

import logging
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from experiments.engine.running.messages import BadInput, first_line
from experiments.engine.running.provenance import CHECKOUT

if TYPE_CHECKING:
    import ray

Item = TypeVar("Item")
Result = TypeVar("Result")
PATIENCE = 120  # seconds in which a machine starts a process that imports torch


def connect(address: str) -> None:
    """Connect to a cluster, if that is not done; BadInput where none answers, or Ray is not installed."""
    try:
        import ray
    except ImportError:
        raise BadInput("--backend ray: Ray is not installed; pip install -e '.[cluster]'") from None
    where, source = address, "--ray-address"
    if address == "auto" and os.environ.get("RAY_ADDRESS"):
        where, source = os.environ["RAY_ADDRESS"], "RAY_ADDRESS"
    host, _, port = where.rpartition(":")
    if where != "auto" and not (host and "/" not in host and port.isdecimal()):
        raise BadInput(f"{source} {where}: give HOST:PORT, or auto")
    advice = "start one (ray start --head), or give its --ray-address HOST:PORT"
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")  # the first error ends the grid, and is printed; not all
    try:
        if where != "auto":
            socket.create_connection((host, int(port)), timeout=10).close()  # Ray itself would try for minutes
    except (OSError, OverflowError) as error:
        raise BadInput(f"--backend ray: no cluster answers at {where} ({error}); {advice}") from None
    path = {"env_vars": {"PYTHONPATH": str(CHECKOUT)}}
    try:
        ray.init(where, ignore_reinit_error=True, logging_level=logging.WARNING, runtime_env=path)
    except Exception as error:
        if where == "auto" and isinstance(error, ConnectionError):
            raise BadInput(f"--backend ray: this machine has joined no cluster; {advice}") from None
        raise BadInput(f"--backend ray: cannot join the cluster at {where} ({first_line(error)})") from None


def slots(device: torch.device) -> int:
    """How many runs the cluster can run at once on such a device; BadInput if none."""
    import ray

    kind = "GPU" if device.type == "cuda" else "CPU"
    if not (found := int(ray.cluster_resources().get(kind, 0))):
        raise BadInput(f"--backend ray --device {device}: the cluster has no {kind}")
    return found


def check_sees(home: Path) -> None:
    """Raise BadInput unless every machine of the cluster has this version of torch, and sees this checkout, the
    store of runs, and the working folder."""
    import ray
    from ray.exceptions import GetTimeoutError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    def seen(paths: Sequence[Path]) -> tuple[str, list[Path], str]:  # nested, and so sent whole: it needs no checkout
        import torch

        return socket.gethostname(), [path for path in paths if not path.exists()], str(torch.__version__)

    with NamedTemporaryFile(dir=home, prefix=".seen-") as here:  # a folder of the same name would not have it
        there = [
            ray.remote(num_cpus=0)(seen)
            .options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False))
            .remote([CHECKOUT, Path(here.name), Path.cwd()])
            for node in ray.nodes()
            if node["Alive"]
        ]
        try:
            answers = ray.get(there, timeout=PATIENCE)
        except GetTimeoutError:
            raise BadInput(f"--backend ray: a machine of the cluster has not answered in {PATIENCE} s") from None
    for machine, missing, version in answers:
        if missing:
            raise BadInput(
                f"--backend ray: {machine} does not see {' nor '.join(map(str, missing))}; every machine "
                "of the cluster must see the checkout, --out and the working folder by these names"
            )
        if version != torch.__version__:
            raise BadInput(f"--backend ray: {machine} has torch {version}, this machine {torch.__version__}: use one")


def imap_unordered(
    function: Callable[[Item], Result], items: Sequence[Item], *, device: torch.device, max_parallel: int
) -> Iterator[Result]:
    """The results of a function for all items, in the order in which they come; a call takes a CPU, or a GPU too.

    A run whose machine is lost is rerun elsewhere, from its last checkpoint. An error in it is raised as itself.
    """
    import ray
    from ray.exceptions import RayTaskError

    folder = Path.cwd()

    def call(function: Callable[[Item], Result], item: Item) -> Result:
        os.chdir(folder)  # relative names mean there what they mean here
        return function(item)

    remote, sent = ray.remote(num_gpus=int(device.type == "cuda"))(call), ray.put(function)  # once, with its data
    waiting, running = list(reversed(items)), list["ray.ObjectRef[Any]"]()
    while waiting or running:
        while waiting and len(running) < max_parallel:
            running.append(remote.remote(sent, waiting.pop()))
        (first,), running = ray.wait(running)
        try:
            yield ray.get(first)
        except RayTaskError as error:
            raise error.cause from error
